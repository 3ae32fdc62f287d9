"""How long a search will take: closed forms before it starts, and while it runs against the truth."""

from __future__ import annotations

import math

import pytest
from pydantic import TypeAdapter
from simulated_search import spread

from raynn.director import Director, Limits, Repeats
from raynn.estimate import Pace, estimate, expected_epochs, seconds_left
from raynn.ledger import Ledger, Trial
from raynn.race import Race
from raynn.schedulers import SchedulerSettings, scheduler_of

EPOCH_S = 2.0


@pytest.mark.parametrize(
    ("kind", "grace_period", "reduction_factor", "expected"),
    [
        ("none", 1, 3, 9.0),
        ("asha", 1, 3, 1 + 2 / 3 + 6 / 9),  # rungs at 1 and 3: all, a third, a ninth
        ("asha", 3, 3, 3 + 6 / 3),
        ("asha_promote", 9, 3, 9.0),
        ("median", 1, 3, 6.75),
    ],
)
def test_epochs_that_a_scheduler_lets_a_trial_train(
    kind: str, grace_period: int, reduction_factor: float, expected: float
) -> None:
    assert expected_epochs(9, kind, grace_period, reduction_factor) == pytest.approx(expected)


def test_rows_of_trials_and_then_the_repetitions() -> None:
    found = estimate(Pace(epoch_s=2.0, epochs=5.0), num_trials=7, concurrent=2, devices=4, repeats=3, max_epochs=10)
    assert found.trial_s == 10.0
    assert found.total_s == 4 * 10.0 + 2 * 20.0
    assert found.device_hours == pytest.approx((7 * 10.0 + 3 * 20.0) * 4 / 3600)
    assert str(found) == "about 0:10 a trial, 1:20 in all, 0.14 device-hours"


@pytest.mark.parametrize("concurrent", [1, 3])
@pytest.mark.parametrize(
    ("scheduler", "within"), [("none", 0.1), ({"kind": "asha", "reduction_factor": 3}, 0.35), ("median", 0.35)]
)
def test_the_time_left_against_the_truth(
    monkeypatch: pytest.MonkeyPatch, scheduler: SchedulerSettings, within: float, concurrent: int
) -> None:
    """A search in virtual time, an epoch in EPOCH_S seconds: from a third on the time left is about right, and at the
    start it is known from the probe.
    """
    clock = [1000.0]
    monkeypatch.setattr("raynn.ledger.time.time", lambda: clock[0])
    num_trials, max_epochs = 40, 9
    ledger = Ledger()
    race = Race("val/loss", "min", max_epochs)
    settings = TypeAdapter[SchedulerSettings](SchedulerSettings).validate_python(scheduler)
    director = Director(
        ledger,
        lambda number, trials: ({"x": number}, {}),
        scheduler_of(settings, race, num_trials, 0, {}),
        Limits(num_trials, 0, concurrent),
        "val/loss",
        "min",
        Repeats(top=2, seeds=(1,)),
    )
    ledger.begin_session()
    kind = settings if isinstance(settings, str) else settings.kind
    pace = Pace(EPOCH_S, expected_epochs(max_epochs, str(kind), 1, 3))
    told: list[tuple[float, float]] = []  # when, and the time left as it is told
    running: list[tuple[float, int, Trial]] = []
    while True:
        while (trial := director.next()) is not None:
            running.append((clock[0] + EPOCH_S, trial.number, trial))
        if not running:
            break
        told.append((clock[0], seconds_left(ledger, pace, num_trials, concurrent, max_epochs, repeats=2)))
        running.sort()
        clock[0], _, trial = running.pop(0)
        epoch = trial.epochs + 1
        value = spread(trial.number) + 1 / epoch
        verdict = director.reported(trial, {"epoch": epoch, "val/loss": value}, last=epoch == max_epochs)
        if epoch == max_epochs:
            director.ended(trial, "finished", "")
        elif verdict.kind == "go_on":
            running.append((clock[0] + EPOCH_S, trial.number, trial))
    total = clock[0] - 1000.0
    for when, left in told:
        done = (when - 1000.0) / total
        if done > 1 / 3 or done == 0.0:
            slack = within * total if done else 0.6 * total
            assert left == pytest.approx(total * (1 - done), abs=slack), f"at {done:.0%} of {total} s"


def test_without_a_probe_nothing_is_said_until_an_epoch_was_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raynn.ledger.time.time", lambda: 0.0)
    ledger = Ledger()
    ledger.begin_session()
    assert math.isnan(seconds_left(ledger, Pace(math.nan, 3.0), 4, 1, 9))
