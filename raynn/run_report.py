"""The report of a run: how it learned, what it predicts and gets wrong, what it is made of, how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import numpy as np

from raynn import page as html
from raynn.charts import Chart, Line, Mark, bars, lines_chart, over_epochs
from raynn.columns import ColumnSpec
from raynn.encodings import CategoricalEncoding, Encoding, ImageEncoding, SequenceEncoding, StandardScale, TextEncoding
from raynn.exhibits import MAX_LABELS, PALETTE, cases, class_table, pictures, prediction_charts, texts
from raynn.inspection import Inspection
from raynn.job import Job
from raynn.metrics import higher_is_better
from raynn.page import Page

KNOWN_KEYS = {"epoch", "step", "seconds", "examples_per_second", "learning_rate"}
MAX_LAYERS = 40  # of a chart


def run_page(found: Inspection) -> Page:
    """The report of one run."""
    name = str(found.result.get("name", found.folder.name))
    page = Page(f"{name}: raynn report")
    page.head = _head(found, name)
    page.add("learning", "Learning", page.figures(_learning(found)), _epochs(found))
    where = f" on the {found.split} set" if found.split else ""
    shown = page.figures(prediction_charts(found)), class_table(found), texts(found)
    page.add("predictions", f"Predictions{where}", *shown)
    page.add("samples", "Images", pictures(found))
    page.add("errors", "The worst errors", cases(found))
    page.add("network", "Network", _network(page, found))
    page.add("data", "Data", _data(page, found))
    page.add("settings", "Settings", _settings(found.job))
    page.add("again", "Predict and repeat", _commands(found), _environment(found))
    return page


def _head(found: Inspection, name: str) -> str:
    result, job = found.result, found.job
    status = str(result.get("status", "not ended"))
    color = {"finished": "finished", "stopped_early": "stopped_early", "failed": "failed"}.get(status, "running")
    metrics = result.get("metrics") or {}
    entries = {key: html.shown(value) for key, value in metrics.items() if _headline(key, metrics)}
    if result.get("best_epoch"):
        entries["best of its epochs"] = f"{result['best_epoch']} of {result['epochs']}"
    if result.get("parameters"):
        entries["parameters"] = f"{result['parameters']:,}"
    if result.get("seconds"):
        entries["seconds in all"] = f"{result['seconds']:,.1f}"
    if result.get("examples_per_second"):
        entries["examples per second"] = f"{result['examples_per_second']:,.0f}"
    notices = "".join(f'<div class="notice">Missing. {html.text(reason)}</div>' for reason in found.missing)
    if status == "failed":
        notices = f'<div class="notice"><b>Failed.</b> {html.text(result.get("stop_reason"))}</div>' + notices
    return (
        f'<h1>{html.text(name)}<span class="badge" style="color:var(--{color})">{html.text(status)}</span></h1>'
        f'<p class="lead">{html.text(found.task)} with a <strong>{html.text(job.network.kind)}</strong> network, '
        f"{_sentence(found)}</p>{html.tiles(entries)}{notices}"
    )


def _headline(key: str, metrics: dict[str, Any]) -> bool:
    """Test figures where there are, else validation; and the losses of both sides of the gap."""
    split = "test/" if any(name.startswith("test/") for name in metrics) else "val/"
    return key.startswith(split) or key in ("train/loss", "val/loss")


def _sentence(found: Inspection) -> str:
    """Where it stopped, why, and what the gap was there."""
    result = found.result
    if not result.get("best_epoch"):
        return f"{len(found.records)} epochs recorded."
    words = f"best at epoch <strong>{result['best_epoch']}</strong>; {html.text(result['stop_reason'])}."
    train, val = (result["metrics"].get(f"{split}/loss") for split in ("train", "val"))
    if train is not None and val is not None:
        side = "above" if val > train else "below"
        words += f" There the validation loss was {abs(val - train):.3g} {side} the training loss."
    return words


# ---- learning ---------------------------------------------------------------------------------------------------


def _learning(found: Inspection) -> Iterator[Chart]:
    records = found.records
    if len(records) < 2:  # a point is no curve; the table has it
        return
    epochs = [record["epoch"] for record in records]
    best, ended = found.result.get("best_epoch"), bool(found.result)
    marks = [Mark(best, f"best: {best}", "var(--test)")] if best else []
    if ended and (best or 0) < epochs[-1] - 0.12 * len(epochs):  # else their words would overlap
        marks.append(Mark(epochs[-1], "stopped" if found.result["status"] == "stopped_early" else "end"))
    losses = {split: [record.get(f"{split}/loss") for record in records] for split in ("train", "val")}
    lines = [
        Line("training", losses["train"], "var(--train)"),
        Line("validation", losses["val"], "var(--val)", symbol="circle" if len(epochs) < 40 else "none"),
    ]
    reason = str(found.result.get("stop_reason", "the run has not ended"))
    note = (
        f"Shaded: the gap between them. The training loss is the mean over the epoch, with regularization at work; the "
        f"validation loss is taken at its end. Ended because {reason}."
    )
    positive = all(x is not None and x > 0 for x in losses["train"] + losses["val"])
    values = [x for x in losses["train"] + losses["val"] if x]
    log = positive and max(values) > 20 * min(values)
    yield lines_chart(
        "Loss, training and validation",
        epochs,
        lines,
        "epoch",
        "loss (log)" if log else "loss",
        gap=(losses["train"], losses["val"]),
        marks=marks,
        log_y=log,
        note=note,
        height=340,
        wide=True,
    )
    others = [key for key in dict.fromkeys(k for r in records for k in r) if key not in KNOWN_KEYS | {"train/loss"}]
    for key in others:
        if key == "val/loss":
            continue
        y = [record.get(key) for record in records]
        color = "var(--val)" if key.startswith("val/") else "var(--four)"
        better = ""
        if key.rpartition("/")[2] in ("accuracy", "f1_macro", "auroc", "r2", "rmse", "mae", "perplexity"):
            better = "Higher is better." if higher_is_better(key) else "Lower is better."
        if key != "val/mse_standardized":  # which is the loss
            yield lines_chart(key, epochs, [Line(key, y, color)], "epoch", marks=marks, note=better, height=240)
    rates = [record.get("learning_rate") for record in records]
    yield lines_chart("Learning rate", epochs, [Line("learning rate", rates, "var(--five)")], "epoch", height=240)


def _epochs(found: Inspection) -> str:
    if not found.records:
        return ""
    keys = list(dict.fromkeys(key for record in found.records for key in record))
    rows = [[record.get(key) for key in keys] for record in found.records]
    inner = html.scrolled(html.table(keys, rows))
    open_ = " open" if len(found.records) < 2 else ""
    return f"<details{open_}><summary>Every epoch: metrics.jsonl</summary>{inner}</details>"


# ---- network, data, settings ------------------------------------------------------------------------------------


def _network(page: Page, found: Inspection) -> str:
    if not found.layers:
        return ""
    header = ("layer", "kind", "parameters' shape", "puts out", "parameters", "norm", "root mean square")
    rows = [
        (layer.name, layer.kind, layer.shape, layer.output, layer.parameters, layer.norm, layer.rms)
        for layer in found.layers
    ]
    parts = [html.card(html.scrolled(html.table(header, rows)), "Layer by layer, of the best weights")]
    names = [layer.name for layer in found.layers][:MAX_LAYERS]
    size = bars("Parameters", names, [layer.parameters for layer in found.layers][:MAX_LAYERS], "parameters")
    rms = bars(
        "Size of the weights", names, [layer.rms for layer in found.layers][:MAX_LAYERS], "root mean square of a weight"
    )
    parts.append(page.figures([size, rms]))
    parts.append(page.figures(_norms(found)))
    if found.filters is not None:
        name, image = found.filters
        caption = "<figcaption>Gray is zero, white the largest weight of its filter, black its negative.</figcaption>"
        parts.append(html.card(html.picture(image, f"filters of {name}") + caption, f"Filters of {name}"))
    return "<br>".join(parts)


def _norms(found: Inspection) -> Iterator[Chart]:
    """What each layer's weights and gradient did while training, of the first layers that a chart has room for."""
    if not found.norms:
        return
    told = {
        "weight": "Frobenius norm of each layer's weights before the last step of each epoch.",
        "gradient": "Of the gradient that the last step of each epoch was made with: penalties added, clipped. A row "
        "that fades while others do not is a layer that hardly learns; one that grows and grows is about to diverge.",
    }
    epochs = [int(record["epoch"]) for record in found.norms]
    for kind, note in told.items():
        start = f"norms/{kind}/"
        names = [key.removeprefix(start) for key in found.norms[-1] if key.startswith(start)][:MAX_LAYERS]
        rows = {name: [record.get(start + name) for record in found.norms] for name in names}
        yield over_epochs(f"{kind.capitalize()} norms, layer by layer", epochs, rows, f"{kind} norm", note)


def _data(page: Page, found: Inspection) -> str:
    parts = []
    if found.rows_of_splits:
        unit = {"forecasting": "windows", "language_modeling": "windows"}.get(found.task, "rows")
        parts.append(html.tiles({f"{name} {unit}": f"{n:,}" for name, n in found.rows_of_splits.items()}))
    if found.run is not None:
        preprocessing = found.run.preprocessing
        rows: list[tuple[Any, ...]] = [
            (spec.name, spec.kind, *_held(spec, encoding))
            for spec, encoding in zip(preprocessing.features, preprocessing.encodings, strict=True)
        ]
        for spec, target in zip(preprocessing.targets, preprocessing.target_encodings, strict=True):
            held = (
                f"{len(target.labels)} classes: {_few([str(label) for label in target.labels])}"
                if target.kind == "class"
                else f"mean {target.mean:.4g}, standard deviation {target.std:.4g}"
            )
            rows.append((spec.name, "target", held, spec.reason))
        header = ("column", "kind", "what the training rows held", "why")
        parts.append(html.card(html.scrolled(html.table(header, rows)), "Columns"))
    if found.classes is not None and len(found.classes.labels) <= MAX_LABELS:
        parts.append(page.figures([_class_chart(found)]))
    if found.bad_rows:
        rows = [(bad.get("file"), bad.get("row"), bad.get("column"), bad.get("reason")) for bad in found.bad_rows[:50]]
        inner = html.scrolled(html.table(("file", "row", "column", "reason"), rows))
        parts.append(html.card(inner, f"{len(found.bad_rows)} rows could not be used"))
    else:
        parts.append('<p class="lead">Every row could be used.</p>')
    return "<br>".join(parts)


def _class_chart(found: Inspection) -> Chart:
    assert found.classes is not None
    labels = list(found.classes.labels)
    chart = bars("Rows of each class", labels, [0.0] * len(labels), "rows")
    chart.option["series"] = [
        {"type": "bar", "stack": "all", "name": split, "data": counts, "itemStyle": {"color": f"var({color})"}}
        for (split, counts), color in zip(found.class_counts.items(), PALETTE, strict=False)
    ]
    chart.option["legend"] = {"top": 0}
    chart.option["grid"]["top"] = 34
    rows = tuple(zip(labels, *found.class_counts.values(), strict=True))
    return Chart(chart.title, chart.option, "", 110 + 24 * len(labels), False, ("class", *found.class_counts), rows)


def _few(names: list[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _held(spec: ColumnSpec, encoding: Encoding) -> tuple[str, str]:
    """What the training rows held of a column, as the model's preprocessing remembers it; and why it is of its kind."""
    if isinstance(encoding, CategoricalEncoding):
        names = ["(missing)" if name is None else name for name in encoding.categories]
        return f"{len(names)} categories: {_few(names)}", spec.reason
    if isinstance(encoding, ImageEncoding):
        means = ", ".join(f"{m:.4g} \u00b1 {s:.4g}" for m, s in zip(encoding.mean, encoding.std, strict=True))
        return f"{' x '.join(map(str, spec.shape))}; gray values of a channel: {means}", spec.reason
    if isinstance(encoding, SequenceEncoding):
        length = f"{spec.shape[0]} steps" if spec.shape[0] else "any length"
        means = _few([f"{scale.mean:.4g} \u00b1 {scale.std:.4g}" for scale in encoding.channels], 4)
        return f"{length}, {len(encoding.channels)} channels: {means}", spec.reason
    if isinstance(encoding, TextEncoding):
        size = encoding.tokenizer.vocabulary_size
        return (
            f"vocabulary of {size:,} {type(encoding.tokenizer).__name__.removesuffix('Tokenizer').lower()}",
            spec.reason,
        )
    missing = ", some missing" if encoding.indicator else ""
    if isinstance(encoding.scale, StandardScale):
        return f"mean {encoding.scale.mean:.4g}, standard deviation {encoding.scale.std:.4g}{missing}", spec.reason
    low, high = encoding.scale.values[0], encoding.scale.values[-1]
    middle = float(np.interp(0.0, encoding.scale.normals, encoding.scale.values))
    return f"{low:.4g} to {high:.4g}, median {middle:.4g}{missing}", spec.reason


def flat(tree: Any, name: str = "") -> dict[str, Any]:
    """A tree of settings by dotted key."""
    if isinstance(tree, dict) and tree:
        return {k: v for key, value in tree.items() for k, v in flat(value, f"{name}.{key}" if name else key).items()}
    return {name: tree}


def settings_against_defaults(job: Job) -> list[tuple[str, Any, Any]]:
    """Dotted key, value, default for this kind of network; those that differ come first."""
    tree = job.model_dump(mode="json", exclude={"search"})
    bare = {"kind": job.network.kind, **{key: tree["network"][key] for key in ("target",) if key in tree["network"]}}
    default = Job.from_dict({"name": job.name, "data": {"train": tree["data"]["train"]}, "network": bare})
    defaults = flat(default.model_dump(mode="json", exclude={"search"}))
    rows = [(key, value, defaults.get(key)) for key, value in flat(tree).items()]
    return sorted(rows, key=lambda row: row[1] == row[2])


def _settings(job: Job) -> str:
    rows, classes = [], []
    for key, value, default in settings_against_defaults(job):
        changed = value != default
        rows.append((key, _plain(value), _plain(default) if changed else ""))
        classes.append("changed" if changed else "")
    note = '<p class="lead">In bold what the job says otherwise than the defaults of its kind of network.</p>'
    return note + html.card(html.scrolled(html.table(("setting", "value", "default"), rows, classes)))


def _plain(value: Any) -> str:
    if value is None:
        return "\u2013"
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "\u2013"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _commands(found: Inspection) -> str:
    run = str(found.folder)
    lines = {"repeat it": ["raynn", "train", f"{run}/job.yaml"], "write this report anew": ["raynn", "report", run]}
    if found.task in ("language_modeling", "image_generation"):
        lines = {"generate": ["raynn", "generate", run, "--seed", "1"], **lines}
    if found.task != "image_generation":
        out = ["DATA", "--out", "predictions.parquet"]
        lines = {"predict": ["raynn", "predict", run, *out], "evaluate": ["raynn", "evaluate", run], **lines}
    commands = "\n".join(f"{shlex.join(command)}    # {what}" for what, command in lines.items())
    code = f"import raynn\n\nrun = raynn.open_run({run!r})\n"
    code += "table = run.predict(rows)   # a pyarrow.Table, data frame or dict"
    python = "" if found.task == "image_generation" else f"<pre>{html.text(code)}</pre>"
    return f"<pre>{html.text(commands)}</pre>{python}"


def _environment(found: Inspection) -> str:
    if not found.environment:
        return ""
    rows = [(key, _plain(value)) for key, value in flat(found.environment).items()]
    return f"<br>{html.card(html.scrolled(html.table(('environment', ''), rows)))}"
