from __future__ import annotations

import math
import re
from typing import Any

import pytest

from raynn.errors import JobError
from raynn.stopping import Decision, EarlyStoppingSettings, decide


def decision(curve: list[float], **fields: Any) -> Decision:
    history = [{"epoch": float(i), "val/loss": value} for i, value in enumerate(curve, start=1)]
    return decide(EarlyStoppingSettings(**fields), history)


def stops_at(curve: list[float], **fields: Any) -> int | None:
    """The first epoch after which the rule stops."""
    return next((n for n in range(1, len(curve) + 1) if decision(curve[:n], **fields).stop), None)


@pytest.mark.parametrize(
    ("curve", "fields", "stop", "best"),
    [
        pytest.param([5, 4, 3, 2, 1], {"patience": 1}, None, 5, id="always better"),
        pytest.param([1, 2, 3, 4, 5], {"patience": 3}, 4, 1, id="always worse"),
        pytest.param([3, 2, 4, 4, 1, 4], {"patience": 2}, 4, 5, id="stops before a later best"),
        pytest.param([3, 2, 4, 1, 4, 4], {"patience": 2}, 6, 4, id="a best in time renews patience"),
        pytest.param([2, 2, 2], {"patience": 2}, 3, 1, id="equal is not better; the first is the best"),
        pytest.param([1.0, 0.95, 0.9, 0.85], {"patience": 2, "min_delta": 0.2}, 3, 4, id="too little each time"),
        pytest.param([1.0, 0.9, 0.75, 0.5], {"patience": 2, "min_delta": 0.2}, None, 4, id="enough over two epochs"),
        pytest.param([1, 2, 3, 4], {"rule": "none", "patience": 1}, None, 1, id="no rule"),
        pytest.param([math.nan, 1.0, math.nan, math.nan], {"patience": 2}, 4, 2, id="NaN is never better"),
        pytest.param([math.nan, math.nan], {"patience": 1}, 2, 1, id="only NaN"),
        pytest.param([math.inf, 3.0, math.inf], {"patience": 2}, None, 2, id="infinite at first"),
    ],
)
def test_curves_with_known_answers(curve: list[float], fields: dict[str, Any], stop: int | None, best: int) -> None:
    assert stops_at(curve, **fields) == stop
    assert decision(curve, **fields).best_epoch == best


@pytest.mark.parametrize(("higher_is_better", "best"), [(True, 2), (False, 3)])
def test_the_direction_of_the_metric(higher_is_better: bool, best: int) -> None:
    assert decision([0.5, 0.9, 0.1], higher_is_better).best_epoch == best


def test_an_epoch_better_by_less_than_min_delta_gives_the_weights_but_no_patience() -> None:
    last = decision([1.0, 0.99, 0.98], patience=2, min_delta=0.05)
    assert last == Decision(
        True, "val/loss has not improved by more than 0.05 for 2 epochs (best 0.98 at epoch 3)", best_epoch=3
    )


def test_a_decision_to_go_on_has_no_reason() -> None:
    assert decision([1.0]) == Decision(False, "", 1)


def test_the_metric_must_be_recorded() -> None:
    message = (
        "early_stopping.monitor = 'val/los' is not recorded by this job. Did you mean 'val/loss'? Recorded: val/loss"
    )
    with pytest.raises(JobError, match=f"^{re.escape(message)}$"):
        decision([1.0], monitor="val/los")
