"""What a search leaves: its trials as a table, the best settings as a job file, and whether the best was luck."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import JsonValue

from raynn.job import Job
from raynn.jobfile import dump
from raynn.ledger import Direction, Trial, value_at

STATUSES = ("finished", "stopped_early", "cut", "failed", "paused", "running", "waiting")


def best_epoch(trial: Trial, metric: str, direction: Direction) -> int | None:
    """The first epoch (from 1) with the trial's best value; None before there is one."""
    best = value_at(trial, trial.epochs, metric, direction)
    for record in trial.records:
        if metric in record and (record[metric] == best or (math.isnan(record[metric]) and best is None)):
            return int(record["epoch"])
    return None


def metrics_of(trial: Trial, metric: str, direction: Direction) -> dict[str, float]:
    """All quantities of the trial's best epoch."""
    epoch = best_epoch(trial, metric, direction)
    return {key: value for key, value in trial.records[epoch - 1].items() if "/" in key} if epoch else {}


def trials_table(trials: Sequence[Trial], metric: str, direction: Direction, folders: Mapping[int, str]) -> pa.Table:
    """One row a trial: number, status, reason, origin, epochs, best_epoch, value, seconds (of training), run folder, a
    column a searched setting by its dotted key, a column a metric of the best epoch.

    Settings whose values are of several types, or lists, are written as text.
    """
    rows: list[dict[str, Any]] = []
    for trial in trials:
        row: dict[str, Any] = {
            "number": trial.number,
            "status": trial.status,
            "reason": trial.reason,
            "origin": trial.origin,
            "epochs": trial.epochs,
            "best_epoch": best_epoch(trial, metric, direction),
            "value": value_at(trial, trial.epochs, metric, direction),
            "seconds": sum(record.get("seconds", 0.0) for record in trial.records),
            "run": folders[trial.number],
        }
        rows.append(row | trial.settings_now | metrics_of(trial, metric, direction))
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _column(values: list[JsonValue]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values])


def write_trials(path: Path, table: pa.Table) -> None:
    """trials.parquet, whole or not at all."""
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial)
    partial.replace(path)


def counts(trials: Sequence[Trial]) -> dict[str, int]:
    """Trials by status, those that there are none of left out, but for the four that a trial can end with."""
    found = {status: sum(trial.status == status for trial in trials) for status in STATUSES}
    return {status: count for status, count in found.items() if count or status in STATUSES[:4]}


def repeated(
    trials: Sequence[Trial], ranked: Sequence[Trial], metric: str, direction: Direction
) -> list[dict[str, Any]]:
    """The best trials with their values over seeds: number, values, mean, standard deviation; the best mean first."""
    found, repeats = [], dict[Any, list[Trial]]()
    for repeat in (trial for trial in trials if trial.origin == "repeat"):
        repeats.setdefault(repeat.notes.get("of"), []).append(repeat)
    for trial in ranked:
        again = repeats.get(trial.number, [])
        values = [value_at(t, t.epochs, metric, direction) for t in [trial, *again] if t.status != "failed"]
        known = [value for value in values if value is not None and math.isfinite(value)]
        if again and known:
            sd = statistics.stdev(known) if len(known) > 1 else 0.0
            found.append({"number": trial.number, "values": known, "mean": statistics.fmean(known), "sd": sd})
    sign = 1 if direction == "min" else -1
    return sorted(found, key=lambda row: sign * float(row["mean"]))


def winner(ranked: Sequence[Trial], repeats: Sequence[Mapping[str, Any]]) -> Trial | None:
    """The trial whose settings are best: by the mean over seeds where the best were repeated."""
    if repeats:
        return next(trial for trial in ranked if trial.number == repeats[0]["number"])
    return ranked[0] if ranked else None


def best_job_text(job: Job, about: str) -> str:
    """A job file that trains a job with the found settings: what differs from the defaults, and no search. `about` goes
    into its first lines.
    """
    left_out = {"search", "study", "resume", "name"}
    plain = job.model_dump(mode="json", exclude=left_out)
    start = {"data": plain["data"], "network": {"kind": plain["network"]["kind"]}}
    bare = Job.from_dict(start).model_dump(mode="json", exclude=left_out)
    tree = _differing(plain, bare)
    tree["network"] = {"kind": plain["network"]["kind"]} | tree.get("network", {})
    data_bare = type(job.data).model_construct(train=()).model_dump(mode="json")
    tree["data"] = {key: value for key, value in plain["data"].items() if value != data_bare.get(key)}
    lines = [f"# {line}" if line else "#" for line in about.splitlines()]
    order = [key for key in plain if key in tree]
    return "\n".join([*lines, dump({key: tree[key] for key in order})])


def _differing(tree: Any, bare: Any) -> dict[str, Any]:
    """The keys of `tree` that `bare` has otherwise."""
    kept: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and isinstance(bare.get(key), dict):
            if inner := _differing(value, bare[key]):
                kept[key] = inner
        elif key not in bare or bare[key] != value:
            kept[key] = value
    return kept
