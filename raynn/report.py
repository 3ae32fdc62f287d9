"""RUN/report.html: what a run did, in one file. Numbers come from the run folder; result.json has the same.

Shapes: N rows or windows, H steps.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from raynn import page as html
from raynn.charts import Chart, Cloud, Line, Mark, bars, heatmap, histogram_chart, lines_chart, scatter, short
from raynn.columns import ColumnSpec
from raynn.encodings import CategoricalEncoding, Encoding, ImageEncoding, SequenceEncoding, StandardScale, TextEncoding
from raynn.findings import calibration, histogram, rocs, spread
from raynn.inspection import Case, Inspection, inspect
from raynn.job import Job
from raynn.metrics import higher_is_better
from raynn.page import Page

FILE = "report.html"
MAX_CURVES = 12  # classes with an ROC curve of their own
MAX_LABELS = 60  # classes of a confusion matrix
CLOUD_POINTS = 2000
NUM_FORECASTS = 4
PAST_STEPS = 96
MAX_TARGETS = 3
PALETTE = ("--train", "--val", "--test", "--four", "--five", "--six")
KNOWN_KEYS = {"epoch", "step", "seconds", "examples_per_second", "learning_rate"}


def write_report(run: str | Path, *, max_bytes: int | None = None) -> Path:
    """Writes RUN/report.html whole, of a run that has ended well, failed, or goes on.

    Args:
        run: the run folder.
        max_bytes: larger local sources are not read again.

    Raises:
        RunError: it is no run folder.
    """
    folder = Path(run)
    content = run_page(inspect(folder, max_bytes=max_bytes)).html()
    partial = folder / f"{FILE}.partial-{os.getpid()}"
    partial.write_text(content)
    partial.replace(folder / FILE)
    return folder / FILE


def run_page(found: Inspection) -> Page:
    """The report of one run."""
    name = str(found.result.get("name", found.folder.name))
    page = Page(f"{name}: raynn report")
    page.head = _head(found, name)
    page.add("learning", "Learning", page.figures(_learning(found)), _epochs(found))
    where = f" on the {found.split} set" if found.split else ""
    page.add("predictions", f"Predictions{where}", page.figures(_predictions(found)), _classes(found), _texts(found))
    page.add("samples", "Images", _pictures(found))
    page.add("errors", "The worst errors", _cases(found))
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
    if not records:
        return
    epochs = [record["epoch"] for record in records]
    best, ended = found.result.get("best_epoch"), bool(found.result)
    marks = [Mark(best, f"best: {best}", "var(--test)")] if best else []
    if ended and best != epochs[-1]:
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
        gap=None if log else (losses["train"], losses["val"]),
        marks=marks,
        log_y=log,
        note=note,
        height=340,
        wide=True,
    )
    others = [key for key in dict.fromkeys(k for r in records for k in r) if key not in KNOWN_KEYS | {"train/loss"}]
    for key in others:
        if key == "val/loss" or "norm" in key:
            continue
        y = [record.get(key) for record in records]
        color = "var(--val)" if key.startswith("val/") else "var(--four)"
        better = ""
        if key.rpartition("/")[2] in ("accuracy", "f1_macro", "auroc", "r2", "rmse", "mae", "perplexity"):
            better = "Higher is better." if higher_is_better(key) else "Lower is better."
        if key != "val/mse_standardized":  # which is the loss
            yield lines_chart(key, epochs, [Line(key, y, color)], "epoch", marks=marks, note=better, height=240)
    norms = [key for key in others if "norm" in key]
    if norms:
        curves = [
            Line(key, [record.get(key) for record in records], f"var({PALETTE[i % len(PALETTE)]})")
            for i, key in enumerate(norms)
        ]
        yield lines_chart("Norms while training", epochs, curves, "epoch", note="As recorded each epoch.", height=260)
    rates = [record.get("learning_rate") for record in records]
    yield lines_chart("Learning rate", epochs, [Line("learning rate", rates, "var(--five)")], "epoch", height=240)


def _epochs(found: Inspection) -> str:
    if not found.records:
        return ""
    keys = list(dict.fromkeys(key for record in found.records for key in record))
    rows = [[record.get(key) for key in keys] for record in found.records]
    inner = html.scrolled(html.table(keys, rows))
    return f"<details><summary>Every epoch: metrics.jsonl</summary>{inner}</details>"


# ---- predictions ------------------------------------------------------------------------------------------------


def _predictions(found: Inspection) -> Iterator[Chart]:
    if found.classes is not None:
        yield from _classification(found)
    if found.values is not None:
        yield from _regression(found)
    yield from _forecasts(found)
    if found.tokens is not None and len(found.tokens.loss_T):
        edges, counts = histogram(found.tokens.loss_T)
        note = f"{len(found.tokens.loss_T):,} tokens of evenly spaced windows; 0 nats: certain of what came."
        yield histogram_chart("How surprising each token was", edges, counts, "nats", note=note)
        names, means, often = zip(*found.tokens.hardest, strict=True) if found.tokens.hardest else ((), (), ())
        if names:
            shown = [f"{name!r} ({n})" for name, n in zip(names, often, strict=True)]
            yield bars("The hardest tokens", shown, means, "mean nats", color="var(--val)", note="How often in brackets.")


def _classification(found: Inspection) -> Iterator[Chart]:
    classes = found.classes
    assert classes is not None and found.logits_NK is not None
    if len(classes.labels) <= MAX_LABELS:
        note = f"{classes.confusion_KK.sum():,} rows, accuracy {classes.accuracy:.4g}; shade: share of the true class."
        yield heatmap("Confusion", classes.confusion_KK, classes.labels, "true class", "predicted", note)
    curves = rocs(found.logits_NK, classes.actual_N, classes.labels) if len(classes.labels) <= MAX_CURVES else []
    if curves:
        clouds = [
            {
                "type": "line",
                "name": f"{curve.label} ({curve.auroc:.4g})",
                "data": [[short(a), short(b)] for a, b in zip(curve.false_positive_P, curve.true_positive_P, strict=True)],
                "symbol": "none",
                "lineStyle": {"width": 2, "type": ("solid", "dashed")[i // len(PALETTE) % 2]},
                "itemStyle": {"color": f"var({PALETTE[i % len(PALETTE)]})"},
            }
            for i, curve in enumerate(curves)
        ]
        base = scatter("ROC", [Cloud("chance", [], [], "var(--soft)")], "false positive rate", "true positive rate")
        base.option["series"] = clouds + [
            {
                "type": "line",
                "name": "chance",
                "data": [[0, 0], [1, 1]],
                "symbol": "none",
                "silent": True,
                "lineStyle": {"type": "dotted", "color": "var(--soft)", "width": 1},
                "itemStyle": {"color": "var(--soft)"},
            }
        ]
        base.option["legend"] = {"top": 0, "data": [cloud["name"] for cloud in clouds]}
        base.option["tooltip"] = {"trigger": "axis", "valueFormatter": "fn:number"}
        what = "each class against the others" if len(curves) > 1 else f"class {curves[0].label}"
        rows = tuple((curve.label, short(curve.auroc)) for curve in curves)
        note = f"For {what}; in brackets the area under it."
        yield Chart("ROC", base.option, note, 380, False, ("class", "AUROC"), rows)
    found_calibration = calibration(classes.confidence_N, classes.predicted_N == classes.actual_N)
    note = (
        f"Rows in ten bins by the probability of the predicted class; on the diagonal it is what it says. Expected "
        f"calibration error {found_calibration.error:.3g}; the size of a point is the share of rows."
    )
    share = found_calibration.count_P / found_calibration.count_P.sum()
    dots = scatter(
        "Calibration",
        [Cloud("bin", found_calibration.confidence_P.tolist(), found_calibration.accuracy_P.tolist(), "var(--train)")],
        "probability told",
        "share that was right",
        diagonal=(0.0, 1.0),
        note=note,
        height=380,
    )
    dots.option["series"][0]["data"] = [
        {"value": value, "symbolSize": short(6 + 26 * np.sqrt(size))}
        for value, size in zip(dots.option["series"][0]["data"], share, strict=True)
    ]
    for side in ("xAxis", "yAxis"):
        dots.option[side] |= {"min": 0, "max": 1}
    yield dots


def _regression(found: Inspection) -> Iterator[Chart]:
    values = found.values
    assert values is not None
    chosen = spread(len(values.actual_N), CLOUD_POINTS)
    actual, predicted, residual = values.actual_N[chosen], values.predicted_N[chosen], values.residual_N[chosen]
    ends = float(min(actual.min(), predicted.min())), float(max(actual.max(), predicted.max()))
    some = f" {len(chosen):,} of {len(values.actual_N):,} rows." if len(chosen) < len(values.actual_N) else ""
    cloud = Cloud("rows", actual.tolist(), predicted.tolist(), "var(--train)", size=4)
    note = f"RMSE {values.rmse:.4g}, MAE {values.mae:.4g}, in the target's unit.{some}"
    yield scatter("Predicted against actual", [cloud], "actual", "predicted", diagonal=ends, note=note, height=340)
    cloud = Cloud("rows", predicted.tolist(), residual.tolist(), "var(--val)", size=4)
    note = "Predicted less actual: a slope or a funnel is something the network has not learned."
    yield scatter("Residuals", [cloud], "predicted", "residual", level=0.0, note=note, height=340)
    edges, counts = histogram(values.residual_N)
    yield histogram_chart("How large the residuals are", edges, counts, "residual", "var(--val)")


def _forecasts(found: Inspection) -> Iterator[Chart]:
    for forecast in found.forecasts[:MAX_TARGETS]:
        assert found.times_NH is not None
        horizon = forecast.actual_NH.shape[1]
        band_QH = forecast.band_QH
        times, first = np.unique(found.times_NH, return_index=True)
        known = forecast.actual_NH.reshape(-1)[first]  # one series; of several, one of the values of that time
        for n in _windows_to_show(forecast.rmse_N, found.times_NH[:, 0]):
            start = int(np.searchsorted(times, found.times_NH[n, 0]))
            past = slice(max(0, start - min(PAST_STEPS, max(24, 3 * horizon))), start)
            before = past.stop - past.start
            x = [*times[past].tolist(), *found.times_NH[n].tolist()]
            blank: list[float | None] = [None] * before
            low, high = (blank + (forecast.predicted_NH[n] + band_QH[q]).tolist() for q in (0, 2))
            lines = [
                Line("actual", [*known[past].tolist(), *forecast.actual_NH[n].tolist()], "var(--train)"),
                Line("forecast", blank + forecast.predicted_NH[n].tolist(), "var(--val)", symbol="circle"),
            ]
            yield lines_chart(
                f"{forecast.target} from {found.times_NH[n, 0]}",
                x,
                lines,
                "",
                forecast.target,
                gap=(low, high),
                gap_name="80 % of errors",
                category=True,
                note=f"RMSE of this window {forecast.rmse_N[n]:.4g}.",
                height=280,
            )
    if found.forecasts and found.forecasts[0].actual_NH.shape[1] > 1:
        steps = list(range(1, found.forecasts[0].actual_NH.shape[1] + 1))
        lines = [
            Line(forecast.target, forecast.rmse_H.tolist(), f"var({PALETTE[i % len(PALETTE)]})")
            for i, forecast in enumerate(found.forecasts)
        ]
        yield lines_chart("Error by step ahead", steps, lines, "steps ahead", "RMSE", wide=True)
    for forecast in found.forecasts[:MAX_TARGETS]:
        edges, counts = histogram((forecast.predicted_NH - forecast.actual_NH).reshape(-1))
        yield histogram_chart(f"Errors of {forecast.target}", edges, counts, "forecast less actual", "var(--val)")


def _windows_to_show(rmse_N: np.ndarray[Any, Any], start_N: np.ndarray[Any, Any]) -> list[int]:
    """Windows evenly spaced in time, and the worst."""
    order = np.argsort(start_N, kind="stable")
    inside = order[len(order) // 10 :] if len(order) > NUM_FORECASTS else order  # so that there is a past to show
    return [*inside[spread(len(inside), NUM_FORECASTS - 1)].tolist(), int(rmse_N.argmax())]


def _classes(found: Inspection) -> str:
    classes = found.classes
    if classes is None:
        return ""
    support = classes.confusion_KK.sum(1)
    rows = [
        (label, short(classes.precision_K[k]), short(classes.recall_K[k]), short(classes.f1_K[k]), int(support[k]))
        for k, label in enumerate(classes.labels)
    ]
    rows.append(("all: accuracy, macro F1", None, short(classes.accuracy), short(classes.f1_macro), int(support.sum())))
    inner = html.scrolled(html.table(("class", "precision", "recall", "F1", "rows"), rows))
    return f"<br>{html.card(inner, 'Class by class')}"


def _texts(found: Inspection) -> str:
    parts = []
    if found.texts:
        inner = "<hr>".join(f'<div class="text">{html.text(text)}</div>' for text in found.texts)
        parts.append(html.card(inner, "Written by the network, from beginnings that were held out (temperature 0.8)"))
    if found.tokens is not None:
        for title, excerpt in zip(("hardest", "median", "easiest"), found.tokens.excerpts, strict=False):
            words = "".join(_surprise(token, loss) for token, loss in excerpt)
            inner = f'<div class="text">{words}</div><figcaption>The stronger the mark, the more surprising.</figcaption>'
            parts.append(html.card(inner, f"The {title} window that was held out"))
    return f'<br><div class="grid">{"".join(parts)}</div>' if parts else ""


def _surprise(token: str, loss: float | None) -> str:
    if loss is None:
        return html.text(token)
    strength = min(1.0, loss / 8)
    style = f"background:color-mix(in srgb, var(--val) {70 * strength:.0f}%, transparent)"
    return f'<i style="{style}" title="{loss:.2f} nats">{html.text(token)}</i>'


def _pictures(found: Inspection) -> str:
    cards = [html.card(html.picture(image, title), title, wide=False) for title, image in found.pictures.items()]
    return f'<div class="grid">{"".join(cards)}</div>' if cards else ""


def _cases(found: Inspection) -> str:
    unit = "nats" if found.classes is not None else "off"
    cards = "".join(_case(case, unit) for case in found.worst)
    return f'<div class="cases">{cards}</div>' if cards else ""


def _case(case: Case, unit: str) -> str:
    image = html.picture(case.picture, f"the input of {case.row}", "") if case.picture else ""
    curve = html.sparkline(case.curve) if case.curve else ""
    inputs = "".join(f"<dt>{html.text(name)}</dt><dd>{html.text(value)}</dd>" for name, value in case.inputs)
    return (
        f'<div class="card case">{image}{curve}<div class="mark">is {html.text(case.actual)}</div>'
        f'<div class="miss">taken for {html.text(case.predicted)}</div>'
        f"<div>{case.error:.4g} {unit} &middot; {html.text(case.row)}</div>{f'<dl>{inputs}</dl>' if inputs else ''}</div>"
    )


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
    names = [layer.name for layer in found.layers][:40]
    size = bars("Parameters", names, [layer.parameters for layer in found.layers][:40], "parameters")
    rms = bars("Size of the weights", names, [layer.rms for layer in found.layers][:40], "root mean square of a weight")
    parts.append(page.figures([size, rms]))
    if found.filters is not None:
        name, image = found.filters
        caption = "<figcaption>Gray is zero, white the largest weight of its filter, black its negative.</figcaption>"
        parts.append(html.card(html.picture(image, f"filters of {name}") + caption, f"Filters of {name}"))
    return "<br>".join(parts)


def _data(page: Page, found: Inspection) -> str:
    parts = []
    if found.rows_of_splits:
        unit = {"forecasting": "windows", "language_modeling": "windows"}.get(found.task, "rows")
        parts.append(html.tiles({f"{name} {unit}": f"{n:,}" for name, n in found.rows_of_splits.items()}))
    if found.run is not None:
        preprocessing = found.run.preprocessing
        rows = [
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
    rows = tuple((label, *(found.class_counts[split][k] for split in found.class_counts)) for k, label in enumerate(labels))
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
        return f"vocabulary of {size:,} {type(encoding.tokenizer).__name__.removesuffix('Tokenizer').lower()}", spec.reason
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
    code = f"import raynn\n\nrun = raynn.open_run({run!r})\ntable = run.predict(rows)   # a pyarrow.Table, data frame or dict"
    python = "" if found.task == "image_generation" else f"<pre>{html.text(code)}</pre>"
    return f"<pre>{html.text(commands)}</pre>{python}"


def _environment(found: Inspection) -> str:
    if not found.environment:
        return ""
    rows = [(key, _plain(value)) for key, value in flat(found.environment).items()]
    return f"<br>{html.card(html.scrolled(html.table(('environment', ''), rows)))}"
