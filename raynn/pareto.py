"""Trials under several objectives: what each is worth, and which are not beaten."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from raynn.ledger import Trial, value_at
from raynn.search import Objective


def scores(trial: Trial, objectives: Sequence[Objective]) -> tuple[float, ...] | None:
    """A trial's value in each objective, turned so that less is better; None before it has one.

    The first objective's is its best so far. The others are those of the same epoch, whose weights would be kept.
    NaN is infinite.
    """
    first = objectives[0]
    best = value_at(trial, trial.epochs, first.metric, first.direction)
    if best is None:
        return None
    measured = (record for record in trial.records if first.metric in record)
    kept = next((record for record in measured if record[first.metric] == best), trial.records[-1])
    found = [best, *(_value(trial, kept, each.metric) for each in objectives[1:])]
    signs = (1.0 if each.direction == "min" else -1.0 for each in objectives)
    return tuple(math.inf if math.isnan(value) else sign * value for sign, value in zip(signs, found, strict=True))


def _value(trial: Trial, record: dict[str, float], metric: str) -> float:
    """NaN of what was not recorded."""
    if metric == "epochs":
        return float(trial.epochs)
    if metric == "seconds":
        return sum(each.get("seconds", 0.0) for each in trial.records)
    return record.get(metric, math.nan)


def front(points: Sequence[Sequence[float]]) -> list[int]:
    """The indices, in order, of points that no other is at least as good as everywhere and better somewhere; less is
    better. Of equal points all are in it. O(n^2 d) in n points of d values.
    """
    if not points:
        return []
    values = np.asarray(points, dtype=np.float64)
    kept = []
    for index, point in enumerate(values):
        dominates = np.all(values <= point, axis=1) & np.any(values < point, axis=1)
        if not dominates.any():
            kept.append(index)
    return kept


def pareto_front(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """The trials that no other beats, in their order; those that failed or have no finite value stand aside."""
    valued = [(trial, scores(trial, objectives)) for trial in trials if trial.status != "failed"]
    finite = [(trial, point) for trial, point in valued if point is not None and all(map(math.isfinite, point))]
    return [finite[index][0] for index in front([point for _, point in finite])]
