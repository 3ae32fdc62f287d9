"""RUN/README.md: the card of a model, with the front matter that model hubs read.

Front matter as the Hugging Face Hub's model cards have it (Mitchell et al. 2019, "Model Cards for Model Reporting", for
what a card is to say; the hub's `model-index` for results). Local paths are cut to their last part: a card is shown.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from raynn.errors import RunError
from raynn.folder import read_result
from raynn.job import Job
from raynn.preprocessing import Preprocessing
from raynn.run_report import flat, settings_against_defaults

FILE = "README.md"
WORDS = {
    "classification": "tells the class of a row",
    "regression": "tells a number",
    "forecasting": "forecasts the steps to come of a series",
    "language_modeling": "continues texts",
    "image_generation": "draws images",
}
NAMES = {"auroc": "roc_auc", "f1_macro": "f1"}  # as the hub calls them


def write_card(run: str | Path) -> Path | None:
    """Writes RUN/README.md, whole or not at all; nothing where there is no model.

    Raises:
        RunError: it is no run folder, or has not ended.
    """
    folder = Path(run)
    if not (folder / "model" / "preprocessing.json").exists():
        return None
    partial = folder / f"{FILE}.partial-{os.getpid()}"
    partial.write_text(card_text(folder), encoding="utf-8")
    partial.replace(folder / FILE)
    return folder / FILE


def card_text(folder: Path) -> str:
    """The card of a run or search folder.

    Raises:
        RunError: it has no result or no model.
    """
    result = read_result(folder)
    try:
        job = Job.load(folder / "model" / "job.yaml")
        preprocessing = Preprocessing.from_json((folder / "model" / "preprocessing.json").read_text())
    except OSError as error:
        raise RunError(f"{folder / 'model'} is damaged: {error}; restore its files, or train again") from None
    front = yaml.safe_dump(_front_matter(job, preprocessing, result), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{front}---\n\n# {result['name']}\n"]
    parts.append(_what_it_is(job, preprocessing, result))
    parts.append(f"## Use\n\n{_use(folder, preprocessing)}")
    parts.append(f"## Data\n\n{_data(folder, job, preprocessing)}")
    parts.append(f"## Figures\n\n{_figures(result)}")
    parts.append(f"## Settings\n\n{_settings(job)}")
    parts.append(f"## Limits\n\n{_limits(folder, job, result)}")
    parts.append(f"## Repeat\n\n{_repeat(folder, job)}")
    return "\n".join(part.rstrip() + "\n" for part in parts)


def pipeline_tag(preprocessing: Preprocessing) -> str:
    """The hub's word for the task on these inputs."""
    kinds = {spec.kind for spec in preprocessing.features}
    if preprocessing.task == "language_modeling":
        return "text-generation"
    if preprocessing.task == "forecasting":
        return "time-series-forecasting"
    if preprocessing.task == "image_generation":
        return "unconditional-image-generation"
    if preprocessing.task == "classification":
        return next((f"{kind}-classification" for kind in ("image", "text") if kind in kinds), "tabular-classification")
    return "tabular-regression"


def _front_matter(job: Job, preprocessing: Preprocessing, result: dict[str, Any]) -> dict[str, Any]:
    metrics = _measured(result)
    task = {"type": pipeline_tag(preprocessing)}
    split = "test" if any(key.startswith("test/") for key in metrics) else "validation"
    prefix = "test/" if split == "test" else "val/"
    rows = [
        {"type": NAMES.get(quantity, quantity), "name": key, "value": value}
        for key, value in metrics.items()
        if key.startswith(prefix) and (quantity := key.rpartition("/")[2])
    ]
    dataset = {"name": _sources(job)[0], "type": _sources(job)[0], "split": split}
    front: dict[str, Any] = {
        "library_name": "raynn",
        "pipeline_tag": pipeline_tag(preprocessing),
        "tags": ["raynn", "pytorch", str(job.network.kind), preprocessing.task],
        "metrics": list(dict.fromkeys(row["type"] for row in rows)),
    }
    if rows:
        front["model-index"] = [
            {"name": result["name"], "results": [{"task": task, "dataset": dataset, "metrics": rows}]}
        ]
    return front


def _measured(result: dict[str, Any]) -> dict[str, float]:
    """The metrics that are numbers."""
    return {key: value for key, value in (result.get("metrics") or {}).items() if isinstance(value, int | float)}


def _sources(job: Job) -> list[str]:
    """Names of the training sources, without the folders they lie in."""
    train = (job.data.train,) if isinstance(job.data.train, str) else job.data.train
    return [entry.rstrip("/").rpartition("/")[2] or entry for entry in train]


def _what_it_is(job: Job, preprocessing: Preprocessing, result: dict[str, Any]) -> str:
    parameters = f" of {result['parameters']:,} parameters" if result.get("parameters") else ""
    text = f"A {job.network.kind} network{parameters} that {WORDS[preprocessing.task]}, trained by raynn"
    if result.get("best_epoch"):
        text += f". It has the weights of epoch {result['best_epoch']} of {result['epochs']}: {result['stop_reason']}"
    if "trials" in result:
        text += f". It is the best of {sum(result['trials'].values())} trials of a search"
    return text + ".\n"


def _use(folder: Path, preprocessing: Preprocessing) -> str:
    run = folder.name
    if preprocessing.task in ("language_modeling", "image_generation"):
        return f"```sh\nraynn generate {run} --seed 1\n```\n"
    features = [spec.name for spec in preprocessing.features] or [spec.name for spec in preprocessing.targets]
    rows = "{" + ", ".join(f"{name!r}: [...]" for name in features[:4]) + (", ...}" if len(features) > 4 else "}")
    return (
        f"```sh\nraynn predict {run} DATA --out predictions.parquet\n```\n\n"
        f"```python\nimport raynn\n\ntable = raynn.open_run({run!r}).predict({rows})\n```\n"
    )


def _data(folder: Path, job: Job, preprocessing: Preprocessing) -> str:
    lines = [f"Trained on {', '.join(f'`{name}`' for name in _sources(job))}.", "", "| column | kind |", "|---|---|"]
    lines += [f"| {_cell(spec.name)} | {spec.kind} |" for spec in preprocessing.features[:50]]
    if len(preprocessing.features) > 50:
        lines.append(f"| and {len(preprocessing.features) - 50} more | |")
    for spec, encoding in zip(preprocessing.targets, preprocessing.target_encodings, strict=True):
        held = f"one of {len(encoding.labels)} classes" if encoding.kind == "class" else "a number"
        lines.append(f"| **{_cell(spec.name)}** | target: {held} |")
    bad = folder / "bad_rows.jsonl"
    count = len(bad.read_text().splitlines()) if bad.exists() else 0
    lines += ["", f"{count:,} rows could not be used." if count else "Every row could be used."]
    return "\n".join(lines) + "\n"


def _cell(name: str) -> str:
    """A name that does not end its cell, or its row."""
    return name.replace("|", "\\|").replace("\n", " ")


def _figures(result: dict[str, Any]) -> str:
    rows = [f"| {key} | {value:.5g} |" for key, value in _measured(result).items()]
    return "\n".join(["| metric | value |", "|---|---|", *rows]) + "\n\n`report.html` beside this file shows them.\n"


def _settings(job: Job) -> str:
    kept = ("network.", "regularization.", "optimization.", "early_stopping.", "task")
    rows = [
        f"| {key} | {json.dumps(value)} | {json.dumps(default) if default != value else ''} |"
        for key, value, default in settings_against_defaults(job)
        if key.startswith(kept) and (default != value or key in ("network.kind", "optimization.seed"))
    ]
    return "\n".join(["Otherwise the defaults.", "", "| setting | value | default |", "|---|---|---|", *rows]) + "\n"


def _limits(folder: Path, job: Job, result: dict[str, Any]) -> str:
    metrics = _measured(result)
    lines = ["- It knows what its training rows held. On rows of another kind its figures say nothing."]
    if not any(key.startswith("test/") for key in metrics):
        lines.append(
            "- There was no test set. The validation figures chose the epoch, so they are somewhat too good: measure "
            "it on rows that it has not seen with `raynn evaluate`."
        )
    if "trials" in result:
        lines.append("- The validation figures chose among trials, too; only test figures are without that choice.")
    train, val = metrics.get("train/loss"), metrics.get("val/loss")
    if train is not None and val is not None:
        lines.append(f"- Its loss was {train:.4g} on training rows and {val:.4g} on validation rows.")
    lines.append(f"- One seed ({job.optimization.seed}); another gives other figures.")
    return "\n".join(lines) + "\n"


def _repeat(folder: Path, job: Job) -> str:
    path = folder / "environment.json"
    known = flat(json.loads(path.read_text())) if path.exists() else {}
    versions = ", ".join(
        f"{key.rpartition('.')[2]} {value}" for key, value in known.items() if "packages." in key and value
    )
    with_it = f"\n\nTrained with {versions}." if versions else ""
    return f"```sh\nraynn train {folder.name}/model/job.yaml\n```{with_it}\n"
