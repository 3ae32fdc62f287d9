"""The trials of a search, read from its folder: trials.parquet, or while it goes on its journal; result.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from raynn.errors import RunError
from raynn.ledger import FILE as JOURNAL
from raynn.ledger import Direction, Ledger, value_at
from raynn.metrics import QUANTITIES, higher_is_better

FILE = "trials.parquet"
FATES = ("finished", "stopped_early", "cut", "failed", "paused", "running", "waiting")
COLUMNS = ("number", "status", "reason", "origin", "epochs", "best_epoch", "value", "seconds", "run")
LOG_KINDS = ("loguniform", "lograndint", "qloguniform", "lognormal")
SEED = "optimization.seed"
SPLITS = ("train/", "val/", "test/")
LOG_SPAN = 100.0  # positive settings that span more are shown on a logarithmic axis, however they were drawn


@dataclass(frozen=True)
class Trial:
    """One row of trials.parquet."""

    number: int
    status: str
    reason: str
    origin: str
    epochs: int
    best_epoch: int | None
    value: float | None
    seconds: float | None
    run: str
    settings: dict[str, Any]
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class Search:
    """A search folder: its trials and what result.json says of them."""

    folder: Path
    trials: tuple[Trial, ...]
    result: dict[str, Any]
    job: dict[str, Any]
    settings: tuple[str, ...]
    logs: tuple[bool, ...]  # of each setting: whether its axis is logarithmic
    metric: str
    higher: bool  # is better
    curves: dict[int, list[tuple[float, float]]] = field(default_factory=dict)  # by trial: epoch and metric


def is_search(folder: Path) -> bool:
    """Whether the folder holds the trials of a search."""
    return (folder / FILE).exists() or (folder / JOURNAL).exists()


def read_search(folder: Path) -> Search:
    """Reads a search folder, ended or not.

    Raises:
        RunError: trials.parquet is damaged, or lacks a column.
    """
    job = _mapping(folder / "job.yaml", yaml.safe_load)
    result = _mapping(folder / "result.json", json.loads)
    if result or not (folder / JOURNAL).exists():
        try:
            rows = pq.read_table(folder / FILE).to_pylist()
        except (OSError, ValueError) as error:
            raise RunError(f"{folder / FILE} is damaged ({error}); continue the search, which writes it anew") from None
    else:
        rows = rows_of_journal((folder / JOURNAL).read_text(), job.get("search") or {})
    names = list(dict.fromkeys(name for row in rows for name in row)) or list(COLUMNS)
    if absent := [name for name in COLUMNS if name not in names]:
        raise RunError(f"{folder / FILE} lacks the column {absent[0]!r}; it was written by another version of raynn")
    metrics = [name for name in names if name.startswith(SPLITS)]
    settings = [name for name in names if name not in COLUMNS and name not in metrics]
    settings = [name for name in settings if any(row.get(name) is not None for row in rows)]
    search = job.get("search") or {}
    space = search.get("space") or {}
    if SEED not in space:  # what repeats of the best differ in; nobody searched it
        settings = [name for name in settings if name != SEED]
    trials = tuple(
        Trial(
            **{name: row[name] for name in COLUMNS},
            settings={name: row.get(name) for name in settings},
            metrics={name: row.get(name) for name in metrics},
        )
        for row in rows
    )
    metric = str(search.get("metric") or _metric_that_is_the_value(trials, metrics) or "value")
    higher = is_higher_better(metric, search)
    logs = tuple(_is_log(name, space.get(name), [trial.settings[name] for trial in trials]) for name in settings)
    curves = {trial.number: curve for trial in trials if (curve := _curve(folder / trial.run, metric))}
    return Search(folder, trials, result, job, tuple(settings), logs, metric, higher, curves)


def rows_of_journal(text: str, search: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that trials.parquet will have, from the journal of a search that goes on."""
    events = []
    for line in text.splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:  # a line that is being written
            break
    metric = str(search.get("metric", "val/loss"))
    direction: Direction = "max" if is_higher_better(metric, search) else "min"
    rows = []
    for trial in Ledger.replayed(events).trials:
        value = value_at(trial, trial.epochs, metric, direction)
        best = next((record for record in trial.records if record.get(metric) == value), {})
        row: dict[str, Any] = {
            "number": trial.number,
            "status": trial.status,
            "reason": trial.reason,
            "origin": trial.origin,
        }
        row |= {"epochs": trial.epochs, "best_epoch": best.get("epoch"), "value": value}
        row |= {"seconds": sum(record.get("seconds", 0.0) for record in trial.records)}
        row |= {"run": f"trials/{trial.number:04d}", **trial.settings_now}
        rows.append(row | {key: number for key, number in best.items() if key.startswith(SPLITS)})
    return rows


def _mapping(path: Path, parse: Any) -> dict[str, Any]:
    try:
        content = parse(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _metric_that_is_the_value(trials: Sequence[Trial], metrics: Sequence[str]) -> str | None:
    """The metric column that holds the trials' values."""
    told = [trial for trial in trials if trial.value is not None]
    return next((m for m in metrics if told and all(t.metrics[m] == t.value for t in told)), None)


def is_higher_better(metric: str, search: dict[str, Any]) -> bool:
    """Which way the metric of a `search` section is better."""
    if search.get("mode") in ("min", "max"):
        return bool(search["mode"] == "max")
    return metric.rpartition("/")[2] in QUANTITIES and higher_is_better(metric)


def _is_log(name: str, distribution: Any, values: Sequence[Any]) -> bool:
    if isinstance(distribution, dict):
        return any(kind in distribution for kind in LOG_KINDS)
    numbers = [x for x in values if isinstance(x, int | float) and not isinstance(x, bool)]
    known = [x for x in values if x is not None]
    return len(numbers) == len(known) > 0 and min(numbers) > 0 and max(numbers) / min(numbers) > LOG_SPAN


def _curve(run: Path, metric: str) -> list[tuple[float, float]]:
    """Epochs and the metric of a trial, as far as it got."""
    points = []
    path = run / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:  # a line that is being written
            break
        if record.get(metric) is not None:
            points.append((record["epoch"], record[metric]))
    return points
