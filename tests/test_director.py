"""What a search does next, driven here as Ray Tune drives it, without processes: one event after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from raynn.director import Director, Limits, Repeats, Suggestion
from raynn.ledger import Ledger, Resume, Trial, Verdict
from raynn.race import Scheduler

DROPOUT = "regularization.dropout"


class Halving(Scheduler):
    """A scheduler in miniature: after epoch 2 a trial pauses, and goes on if it is better than the median of those that
    came as far; worse ones are retired.
    """

    def decide(self, trial: Trial, trials: Sequence[Trial]) -> Verdict:
        return Verdict("pause", "at 2") if trial.epochs == 2 else Verdict("go_on")

    def resume(self, trials: Sequence[Trial], more: bool = True) -> Resume | None:
        values = sorted(t.records[1]["val/loss"] for t in trials if t.epochs >= 2)
        for trial in trials:
            if trial.status == "paused" and len(values) > 2 and trial.records[1]["val/loss"] < values[len(values) // 2]:
                return Resume(trial.number, "better than the median")
        return None

    def wants_new(self, trials: Sequence[Trial]) -> bool:
        return True

    def retire(self, trials: Sequence[Trial]) -> list[tuple[int, str]]:
        return [(t.number, "not better than the median") for t in trials if t.status == "paused"]


def suggest(number: int, trials: Sequence[Trial]) -> Suggestion | None:
    return ({DROPOUT: [0.5, 0.1, 0.4, 0.2, 0.3, 0.6][number]}, {}) if number < 6 else None


NO_REPEATS = Repeats()


def director(ledger: Ledger, repeats: Repeats = NO_REPEATS, **limits: float) -> Director:
    some = {"trials": 6, "failed_trials": 0, "concurrent": 1, **limits}
    return Director(ledger, suggest, Halving(), Limits(**some), "val/loss", "min", repeats)  # type: ignore[arg-type]


def loss(trial: Trial, epoch: int) -> float:
    return float(str(trial.settings[DROPOUT])) / epoch


def events(director: Director, max_epochs: int = 4) -> Iterator[str]:
    """Runs a search, one epoch of each running trial in turn; yields what has just happened."""
    running: list[Trial] = []
    while True:
        while (trial := director.next()) is not None:
            running.append(trial)
            yield f"{trial.number} runs"
        if not running:
            assert director.over
            return
        trial = running.pop(0)
        epoch = trial.epochs + 1
        if epoch > max_epochs:  # it was killed between its last epoch and its end
            director.ended(trial, "finished", "max_epochs reached")
            yield f"{trial.number} finished"
            continue
        last = epoch == max_epochs
        verdict = director.reported(trial, {"epoch": epoch, "val/loss": loss(trial, epoch)}, last)
        yield f"{trial.number} at {epoch}: {verdict.kind}"
        if verdict.kind == "go_on":
            running.append(trial)


def summary(ledger: Ledger) -> list[tuple[object, ...]]:
    return [(t.settings, t.origin, t.status, t.reason, t.records) for t in ledger.trials]


def test_a_search_runs_to_its_end(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "search.jsonl")
    for _ in events(director(ledger)):
        pass
    assert [trial.status for trial in ledger.trials] == ["cut", "finished", "cut", "finished", "finished", "cut"]
    assert ledger.trials[0].reason == "not better than the median"
    assert [trial.number for trial in director(ledger).ranked()][:2] == [1, 3]


@pytest.mark.parametrize("repeats", [Repeats(), Repeats(top=2, seeds=(1, 2))])
def test_killed_after_any_event_it_ends_as_if_nothing_had_been(tmp_path: Path, repeats: Repeats) -> None:
    undisturbed = Ledger(tmp_path / "undisturbed.jsonl")
    num_events = sum(1 for _ in events(director(undisturbed, repeats)))
    for killed_after in range(num_events):
        path = tmp_path / f"{killed_after}.jsonl"
        going = events(director(Ledger(path), repeats))
        for _ in range(killed_after):
            next(going)
        going.close()
        again = Ledger(path)
        for _ in events(director(again, repeats)):
            pass
        assert summary(again) == summary(undisturbed), f"killed after event {killed_after}"


def test_the_best_are_repeated_with_other_seeds_once_the_search_has_ended() -> None:
    ledger = Ledger()
    happened = list(events(director(ledger, Repeats(top=2, seeds=(7, 8)))))
    again = [trial for trial in ledger.trials if trial.origin == "repeat"]
    assert [(t.notes["of"], t.settings["optimization.seed"]) for t in again] == [(1, 7), (1, 8), (3, 7), (3, 8)]
    assert all(trial.epochs == 4 for trial in again)  # the scheduler does not judge them
    assert happened.index("6 runs") > happened.index("4 finished")


def test_what_runs_at_a_time_is_bounded() -> None:
    ledger = Ledger()
    for _ in events(director(ledger, concurrent=3)):
        assert sum(trial.status == "running" for trial in ledger.trials) <= 3


def test_a_target_ends_the_search() -> None:
    ledger = Ledger()
    for _ in events(director(ledger, target=0.06)):
        pass
    assert ledger.facts["stop_reason"] == "val/loss = 0.05 reached the target 0.06 in trial 1"
    assert [trial.status for trial in ledger.trials][:2] == ["cut", "cut"]
    assert len(ledger.trials) == 2


def test_a_budget_of_time_ends_the_search_at_the_next_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr("raynn.ledger.time.time", lambda: float(next(clock)))
    ledger = Ledger()
    ledger.begin_session()
    for _ in events(director(ledger, time_s=10, concurrent=2)):
        pass
    assert ledger.facts["stop_reason"] == "the time budget of 10 s is used up"
    assert 10 <= ledger.seconds <= 20
    assert all(trial.ended for trial in ledger.trials)


def test_failures_beyond_the_limit_end_the_search() -> None:
    ledger = Ledger()
    failing = director(ledger, failed_trials=1)
    for _ in range(2):
        trial = failing.next()
        assert trial is not None
        failing.ended(trial, "failed", "no luck")
    assert failing.over
    assert failing.next() is None
    assert ledger.facts["stop_reason"] == "2 trials failed, and search.max_failed_trials = 1"


def test_a_failed_trial_is_not_the_best_and_the_search_goes_on() -> None:
    ledger = Ledger()
    search = director(ledger, failed_trials=6)
    trial = search.next()
    assert trial is not None
    search.reported(trial, {"epoch": 1, "val/loss": -1.0})
    search.ended(trial, "failed", "no luck")
    for _ in events(search):
        pass
    assert len(ledger.trials) == 6
    assert search.ranked()[0].number == 1


def test_more_trials_extend_a_search_that_has_ended(tmp_path: Path) -> None:
    for trials in (2, 6):
        ledger = Ledger(tmp_path / "search.jsonl")
        for _ in events(director(ledger, trials=trials)):
            pass
        assert len(ledger.trials) == trials
    assert [trial.status for trial in ledger.trials[:2]] == ["cut", "cut"]
