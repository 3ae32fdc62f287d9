"""Importance of settings whose worth is known, and Pareto fronts."""

from __future__ import annotations

import numpy as np
import pytest

from raynn.importance import columns_of, importance, pareto_front


def test_settings_share_what_they_explain() -> None:
    """y = 3 a + b with a, b uniform: shuffling a loses 9 times what shuffling b does, c and d lose nothing."""
    rng = np.random.default_rng(0)
    x_NS = rng.uniform(size=(600, 4))
    found = importance(["a", "b", "c", "d"], x_NS, 3 * x_NS[:, 0] + x_NS[:, 1])
    assert found is not None
    assert found.r2 > 0.95
    assert found.mean_S[:2] == pytest.approx([0.9, 0.1], abs=0.03)
    assert (found.mean_S[2:] < 0.01).all()
    assert (found.low_S <= found.mean_S).all()
    assert (found.mean_S <= found.high_S + 1e-9).all()
    assert found.mean_S.sum() == pytest.approx(1.0)


def test_the_fewer_the_trials_the_less_sure() -> None:
    rng = np.random.default_rng(1)

    def width(num_trials: int) -> float:
        x_NS = rng.uniform(size=(num_trials, 3))
        found = importance(["a", "b", "c"], x_NS, x_NS[:, 0] + x_NS[:, 1] + rng.normal(0, 0.2, num_trials))
        assert found is not None
        return float((found.high_S - found.low_S).mean())

    assert width(20) > 2 * width(400)


def test_noise_is_said_to_be_unexplained() -> None:
    rng = np.random.default_rng(2)
    found = importance(["a", "b"], rng.uniform(size=(200, 2)), rng.normal(size=200))
    assert found is not None
    assert found.r2 < 0.1


def test_what_is_known_besides_is_not_ranked() -> None:
    """y is mostly how long a trial was trained; among the settings all of the rest is a's."""
    rng = np.random.default_rng(3)
    x_NS, epochs_N = rng.uniform(size=(500, 2)), rng.uniform(size=500)
    found = importance(["a", "b"], x_NS, x_NS[:, 0] + 10 * epochs_N, beside_N=epochs_N)
    assert found is not None
    assert len(found.mean_S) == 2
    assert found.mean_S[0] > 0.85
    without = importance(["a", "b"], x_NS, x_NS[:, 0] + 10 * epochs_N)
    assert without is not None
    assert without.r2 < 0.1 < found.r2


def test_too_few_trials_and_equal_ones_say_nothing() -> None:
    x_NS = np.arange(9.0)[:, None]
    assert importance(["a"], x_NS, np.arange(9.0)) is None
    assert importance(["a"], np.arange(50.0)[:, None], np.ones(50)) is None


def test_settings_as_numbers() -> None:
    rows = [[0.1, "relu", True, 3], [10.0, "tanh", False, None]]
    x_NS = columns_of(rows, [True, False, False, False])
    assert x_NS[:, 0] == pytest.approx(np.log([0.1, 10.0]))
    assert x_NS[:, 1:3].tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert x_NS[0, 3] == 3.0
    assert np.isnan(x_NS[1, 3])


def test_a_front_is_what_no_trial_beats() -> None:
    #            best a      best b      between     beaten      as good as the first, and no better   unknown
    values_NM = np.array([[0.9, 50.0], [0.5, 10.0], [0.8, 20.0], [0.7, 30.0], [0.9, 50.0], [np.nan, 1.0]])
    assert pareto_front(values_NM, [True, False]).tolist() == [True, True, True, False, True, False]
    assert pareto_front(values_NM, [False, False]).tolist() == [False, True, False, False, False, False]


def test_of_very_many_trials_some_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raynn.importance.MAX_TRIALS", 40)
    x_NS = np.random.default_rng(0).uniform(size=(90, 2))
    found = importance(["a", "b"], x_NS, x_NS[:, 0])
    assert found is not None
    assert found.num_trials == 40
    assert found.mean_S[0] > 0.9
