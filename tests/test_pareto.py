"""The Pareto front: against every pair looked at, and what a trial counts as."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raynn.ledger import Trial
from raynn.pareto import front, pareto_front, scores
from raynn.search import Objective

LOSS, ACCURACY, SIZE = Objective("val/loss", "min"), Objective("val/accuracy", "max"), Objective("parameters", "min")


def beats(a: np.ndarray, b: np.ndarray) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
def test_the_front_against_brute_force(dim: int) -> None:
    random = np.random.default_rng(dim)
    for _ in range(30):
        points = random.integers(0, 5, size=(random.integers(1, 30), dim)).astype(float)
        expected = [i for i, a in enumerate(points) if not any(beats(b, a) for b in points)]
        assert front(points.tolist()) == expected
    assert front([]) == []


def trial(number: int, *records: dict[str, float], status: str = "finished") -> Trial:
    epochs = [{"epoch": i + 1.0, **record} for i, record in enumerate(records)]
    return Trial(number, {}, "search", records=epochs, status=status)  # type: ignore[arg-type]


def test_all_values_are_those_of_the_best_epoch_of_the_first_objective() -> None:
    one = trial(
        0,
        {"val/loss": 2.0, "val/accuracy": 0.9, "seconds": 1.0, "parameters": 7.0},
        {"val/loss": 1.0, "val/accuracy": 0.8, "seconds": 2.0, "parameters": 7.0},
        {"val/loss": 3.0, "val/accuracy": 0.7, "seconds": 4.0, "parameters": 7.0},
    )
    assert scores(one, [LOSS, ACCURACY, SIZE]) == (1.0, -0.8, 7.0)
    assert scores(one, [ACCURACY, LOSS]) == (-0.9, 2.0)
    assert scores(one, [LOSS, Objective("seconds", "min"), Objective("epochs", "min")]) == (1.0, 7.0, 3.0)
    assert scores(trial(1), [LOSS]) is None


def test_nan_is_the_worst_whichever_way_is_better() -> None:
    one = trial(0, {"val/loss": math.nan, "val/accuracy": math.nan})
    assert scores(one, [LOSS, ACCURACY]) == (math.inf, math.inf)
    assert scores(one, [ACCURACY, LOSS]) == (math.inf, math.inf)
    assert scores(trial(0, {"val/loss": 1.0}), [LOSS, SIZE]) == (1.0, math.inf)


def test_trials_that_nothing_beats() -> None:
    trials = [
        trial(0, {"val/loss": 1.0, "val/accuracy": 0.5}),
        trial(1, {"val/loss": 2.0, "val/accuracy": 0.9}),
        trial(2, {"val/loss": 2.0, "val/accuracy": 0.4}),
        trial(3, {"val/loss": 0.1, "val/accuracy": 0.99}, status="failed"),
        trial(4, {"val/loss": math.nan, "val/accuracy": 0.99}),
        trial(5, {"val/loss": 1.5, "val/accuracy": 0.7}, status="cut"),
    ]
    assert [each.number for each in pareto_front(trials, [LOSS, ACCURACY])] == [0, 1, 5]
