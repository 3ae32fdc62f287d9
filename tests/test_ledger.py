"""The journal of a search: what is read back is what was written, whole, whenever the writer was killed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from raynn.ledger import Change, Ledger, Trial, Verdict, alive, value_at


def go_on(trial: Trial) -> Verdict:
    return Verdict("go_on")


def searched(path: Path) -> Ledger:
    """Three trials: one cut, one paused, one that goes on from the paused one."""
    ledger = Ledger(path)
    ledger.note(seed=3)
    first, second, third = (ledger.add({"regularization.dropout": p}, "search") for p in (0.1, 0.2, 0.3))
    for trial in (first, second, third):
        ledger.become(trial, "running")
        ledger.report(trial, {"epoch": 1, "val/loss": 1.0 - trial.number / 10}, go_on)
    ledger.report(first, {"epoch": 2, "val/loss": 2.0}, lambda trial: Verdict("cut", f"{trial.epochs} epochs"))
    ledger.report(second, {"epoch": 2, "val/loss": 0.5}, lambda trial: Verdict("pause"))
    ledger.report(third, {"epoch": 2, "val/loss": math.nan}, go_on)
    ledger.exploit(third, second, {"regularization.dropout": 0.4})
    return ledger


def test_what_is_read_back_is_what_was_written(tmp_path: Path) -> None:
    ledger = searched(tmp_path / "search.jsonl")
    again = Ledger(tmp_path / "search.jsonl")
    assert repr(again.trials) == repr(ledger.trials)  # repr: NaN is not equal to itself
    assert again.facts == {"seed": 3}
    assert [trial.status for trial in again.trials] == ["cut", "paused", "running"]
    assert again.trials[0].reason == "2 epochs"
    assert [trial.number for trial in alive(again.trials)] == [1, 2]


def test_a_trial_that_took_over_has_the_donors_past_and_its_own_settings(tmp_path: Path) -> None:
    _, donor, trial = searched(tmp_path / "search.jsonl").trials
    assert trial.records == donor.records
    assert trial.settings == donor.settings == {"regularization.dropout": 0.2}
    assert trial.changes == [Change(2, {"regularization.dropout": 0.4})]
    assert trial.settings_now == {"regularization.dropout": 0.4}
    [left] = trial.left
    assert (left.epochs, left.records[0], left.settings) == (
        2,
        {"epoch": 1, "val/loss": 0.8},
        {"regularization.dropout": 0.3},
    )


def test_a_journal_cut_anywhere_gives_the_trials_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    searched(path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        again = Ledger(path)
        again.note(went="on")
        whole = content[:length].count(b"\n")
        assert path.read_bytes().count(b"\n") == whole + 1
        assert Ledger(path).trials == again.trials


def test_an_epoch_told_twice_counts_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "search.jsonl")
    trial = ledger.add({}, "job")
    ledger.report(trial, {"epoch": 1, "val/loss": 1.0}, go_on)
    ledger.report(trial, {"epoch": 1, "val/loss": 9.0}, lambda trial: Verdict("cut"))
    assert (trial.epochs, trial.status, trial.records[0]["val/loss"]) == (1, "running", 1.0)


@pytest.mark.parametrize(
    ("values", "epochs", "direction", "expected"),
    [
        ([3.0, 1.0, 2.0], 3, "min", 1.0),
        ([3.0, 1.0, 2.0], 1, "min", 3.0),
        ([3.0, 1.0, 4.0], 3, "max", 4.0),
        ([math.nan, 2.0], 2, "max", 2.0),
        ([math.nan], 1, "min", math.inf),
        ([], 1, "min", None),
    ],
)
def test_the_best_so_far(values: list[float], epochs: int, direction: str, expected: float | None) -> None:
    trial = Trial(0, {}, "search", records=[{"epoch": i + 1, "val/loss": v} for i, v in enumerate(values)])
    assert value_at(trial, epochs, "val/loss", direction) == expected  # type: ignore[arg-type]
