"""A search of many trials: what is looked at again after an event does not grow with their number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from simulated_search import Simulation, outcome, spread

from raynn.bayesian import telling
from raynn.director import Director, Limits
from raynn.estimate import Further
from raynn.ledger import Ledger, Resume, Searched, Trial, Verdict
from raynn.outcome import repeated
from raynn.race import News, Race, Scheduler, Standings
from raynn.schedulers import SchedulerKind, scheduler_of
from raynn.search import Objective
from raynn.space import Enumerated

KINDS: tuple[SchedulerKind, ...] = ("asha", "asha_promote", "hyperband", "median")


def scheduler(kind: SchedulerKind) -> Scheduler:
    return scheduler_of(kind, Race("val/loss", "min", 9), num_trials=8, seed=0, space={})


class Following(Scheduler):
    """A scheduler that is given the ledger's own list, which says what has changed, in place of any other."""

    def __init__(self, inner: Scheduler, ledger: Ledger) -> None:
        self.inner, self.ledger = inner, ledger

    def decide(self, trial: Trial, trials: Sequence[Trial]) -> Verdict:
        return self.inner.decide(trial, self.ledger.searched)

    def resume(self, trials: Sequence[Trial], more: bool = True) -> Resume | None:
        return self.inner.resume(self.ledger.searched, more)

    def wants_new(self, trials: Sequence[Trial]) -> bool:
        return self.inner.wants_new(self.ledger.searched)

    def retire(self, trials: Sequence[Trial]) -> list[tuple[int, str]]:
        return self.inner.retire(self.ledger.searched)


def curve(trial: Trial) -> float:
    return spread(trial.number) + (1.5 + spread(trial.number, 7)) / (1 + trial.epochs) + spread(trial.epochs, 3) / 5


@pytest.mark.parametrize("kind", KINDS)
def test_who_looks_at_what_has_changed_decides_as_who_looks_at_all(kind: SchedulerKind) -> None:
    def search(follows: bool) -> list[tuple]:
        ledger, chosen = Ledger(), scheduler(kind)
        if follows:
            chosen = Following(chosen, ledger)
        settings: dict[str, Any] = {"slots": 5, "ends": lambda t: spread(t.number, 1) < 0.1 and t.epochs > 4}
        settings["fails"] = lambda trial: spread(trial.number, trial.epochs, 2) < 0.02
        return outcome(Simulation(ledger, chosen, 60, 9, curve, **settings).run())

    assert search(follows=True) == search(follows=False)


@pytest.mark.parametrize("kind", KINDS)
def test_looks_at_trials_an_event_do_not_grow_with_the_search(
    kind: SchedulerKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Counter[str]()
    look_at = Standings._look_at
    monkeypatch.setattr(Standings, "_look_at", lambda self, trial: (looks.update(["all"]), look_at(self, trial))[1])

    def looks_an_event(num_trials: int) -> float:
        looks.clear()
        limits = Limits(num_trials, failed_trials=0, concurrent=4)
        ledger, events = Ledger(), 0
        director = Director(ledger, lambda number, trials: ({}, {}), scheduler(kind), limits, "val/loss", "min")
        running: list[Trial] = []
        while True:
            while (trial := director.next()) is not None:
                running.append(trial)
            if not running:
                return looks["all"] / events
            trial, events = running.pop(0), events + 1
            epoch = trial.epochs + 1
            verdict = director.reported(trial, {"epoch": epoch, "val/loss": curve(trial)}, last=epoch == 9)
            if epoch == 9:
                director.ended(trial, "finished", "")
            elif verdict.kind == "go_on":
                running.append(trial)

    few, many = looks_an_event(30), looks_an_event(300)
    assert many < 1.5 * few < 15


def test_news_are_what_has_changed_since_they_were_read() -> None:
    trials = [Trial(number, {}, "search") for number in (0, 2, 3)]  # trial 1 is a repeat
    searched, news = Searched(trials), News()
    assert list(news.of(searched)) == [0, 1, 2]
    assert list(news.of(searched)) == []
    for trial in (trials[2], trials[0], trials[2], Trial(1, {}, "repeat")):
        searched.changed(trial)
    assert list(news.of(searched)) == [2, 0]
    searched.add(Trial(7, {}, "search"))
    assert list(news.of(searched)) == [3]
    assert list(news.of(trials)) == [0, 1, 2]  # who says nothing is looked at whole
    assert list(news.of(searched)) == [0, 1, 2, 3]  # and who was away, too


def test_the_ledger_counts_as_it_goes(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "search.jsonl")
    Simulation(ledger, scheduler("asha_promote"), 20, 9, curve, slots=3, max_events=40).run()
    ledger.become(ledger.add({}, "repeat"), "running")
    for each in (ledger, Ledger(ledger.path)):
        assert +each.counts == Counter(trial.status for trial in each.trials)
        assert [trial.number for trial in each.searched] == list(range(len(ledger.trials) - 1))
    assert ledger.counts["running"] == 4


def test_a_model_is_fitted_to_the_better_half_and_the_newest() -> None:
    losses = [3.0, 9.0, 1.0, 8.0, 2.0, 7.0, 6.0, 5.0]
    trials = [Trial(n, {}, "search", records=[{"epoch": 1, "val/loss": x}], status="cut") for n, x in enumerate(losses)]
    objectives = [Objective("val/loss", "min")]
    assert telling(trials, objectives, 8) is trials
    assert [trial.number for trial in telling(trials, objectives, 4)] == [2, 4, 6, 7]
    assert [trial.number for trial in telling(trials, objectives, 6)] == [0, 2, 4, 5, 6, 7]


def test_combinations_are_worked_out_once() -> None:
    asked = count()
    found = Enumerated({"x": next(asked)} for _ in range(5))
    assert next(found.since(2)) == {"x": 2}
    assert next(asked) == 3
    assert [values["x"] for values in found.since(1)] == [1, 2, 4, 5]
    assert list(found.since(5)) == []


def test_epochs_still_to_come_are_those_of_all_who_came_as_far() -> None:
    ended, further = [1, 1, 3, 9, 9, 4], Further([1, 1, 3, 9, 9, 4], max_epochs=9)
    for epochs in range(10):
        as_far = [other for other in ended if other > epochs]
        expected = sum(as_far) / len(as_far) - epochs if as_far else (9 - epochs) / 2
        assert further.of(epochs) == pytest.approx(expected)


def test_repeats_are_looked_for_once() -> None:
    class Counted(list[Trial]):
        passes = 0

        def __iter__(self):  # type: ignore[no-untyped-def]
            self.passes += 1
            return super().__iter__()

    trials = Counted(Trial(n, {}, "search", records=[{"epoch": 1, "val/loss": n}]) for n in range(50))
    trials.append(Trial(50, {}, "repeat", {"of": 3}, [{"epoch": 1, "val/loss": 5.0}]))
    [row] = repeated(trials, trials[:50], "val/loss", "min")
    assert (row["number"], row["values"], trials.passes) == (3, [3, 5.0], 1)
