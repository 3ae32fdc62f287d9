"""What trials are compared by, and what a scheduler answers: pure functions of the trials.

A scheduler remembers nothing: what it decides follows from the trials, so a search that is killed and resumed decides
as if nothing had been. Resources are epochs. Where trials are compared at an epoch:

- A trial stands there with its best value so far, which is what its weights would be kept for.
- One that its own stopping rule has ended, or that has trained to the end, keeps its best value and stands with it at
  every later epoch as well: it has come as far as it wanted to, and is never cut.
- One that failed stands nowhere; nor do the repeats, which tell luck from merit and compete with no one.
- NaN is worse than any number; of equal values that of the lower number comes first.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from raynn.ledger import Direction, Resume, Trial, Verdict


class Scheduler(ABC):
    """Which trial goes on. All four answers are functions of the trials, in the order of their numbers.

    When a slot is free: first `resume`, then, if `wants_new`, another trial; when nothing runs, nothing is resumed and
    no other trial is to begin, `retire`. An epoch after which a trial's own stopping rule ends it, or the last one, is
    not put to the scheduler.
    """

    @abstractmethod
    def decide(self, trial: Trial, trials: Sequence[Trial]) -> Verdict:
        """What becomes of `trial`, which has just trained an epoch; its newest record is among its records."""

    def resume(self, trials: Sequence[Trial], more: bool = True) -> Resume | None:
        """The paused trial that goes on, if one may; `more` says whether other trials may still begin."""
        return None

    def wants_new(self, trials: Sequence[Trial]) -> bool:
        """Whether another trial may begin."""
        return True

    def retire(self, trials: Sequence[Trial]) -> list[tuple[int, str]]:
        """The paused trials that will never go on, each with the reason; none as long as one runs or may go on."""
        return []


@dataclass
class _Curve:
    """One trial's scores over its epochs, as far as they have been read."""

    records: list[dict[str, float]]
    newest: float | None = None  # the raw value last read
    best: list[float | None] = field(default_factory=list)
    total: list[float] = field(default_factory=list)  # of the scores up to an epoch

    def extends_to(self, trial: Trial, metric: str) -> bool:
        """Whether this is a beginning of the trial's curve: of the same list, whose records are only ever added to."""
        num = len(self.best)
        if self.records is not trial.records or num > len(trial.records):
            return False
        return num == 0 or trial.records[num - 1].get(metric) == self.newest


@dataclass(frozen=True)
class Race:
    """What trials are compared by. A score is a value turned so that lower is better, NaN turned to infinity."""

    metric: str
    direction: Direction
    max_epochs: int  # that a trial may train

    @cached_property
    def _curves(self) -> dict[int, _Curve]:
        # Remembers what it has read of each trial, and reads again where that is no longer what the trial says.
        return {}

    def score(self, trial: Trial, epochs: int) -> float | None:
        """The best score within the first `epochs` epochs; None before there is one."""
        best = self._curve(trial).best
        return best[min(epochs, len(best)) - 1] if best else None

    def average(self, trial: Trial, epochs: int) -> float:
        """The mean score of the first `epochs` epochs; of those that a trial has ended before, its best score."""
        curve = self._curve(trial)
        num = min(epochs, len(curve.total))
        best = curve.best[num - 1] if num else None
        if best is None:
            return math.inf
        missing = (epochs - num) * best if epochs > num else 0.0
        return (curve.total[num - 1] + missing) / epochs

    def latest(self, trial: Trial, epochs: int) -> float:
        """The score of epoch `epochs` (from 1) itself: that of the weights as they were, not of the best so far."""
        return self._score_of(trial.records[epochs - 1].get(self.metric, math.nan))

    def standing(self, trials: Sequence[Trial], epochs: int) -> list[tuple[float, int]]:
        """Score and number of all who stand at an epoch, the best first."""
        found = []
        for trial in trials:
            if stands(trial, epochs) and (score := self.score(trial, epochs)) is not None:
                found.append((score, trial.number))
        return sorted(found)

    def shown(self, score: float) -> str:
        """A score in words, as the value that it was."""
        if score == math.inf:
            return f"{self.metric} that is no number"
        return f"{self.metric} {score if self.direction == 'min' else -score:.4g}"

    def _score_of(self, value: float) -> float:
        return math.inf if math.isnan(value) else value if self.direction == "min" else -value

    def _curve(self, trial: Trial) -> _Curve:
        curve = self._curves.get(trial.number)
        if curve is not None and curve.extends_to(trial, self.metric):
            if len(curve.best) == len(trial.records):
                return curve
        else:
            curve = self._curves[trial.number] = _Curve(trial.records)
        for record in trial.records[len(curve.best) :]:
            curve.newest = record.get(self.metric)
            before = curve.best[-1] if curve.best else None
            total = curve.total[-1] if curve.total else 0.0
            if curve.newest is None:
                curve.best.append(before)
                curve.total.append(total)
            else:
                score = self._score_of(curve.newest)
                curve.best.append(score if before is None else min(before, score))
                curve.total.append(total + score)
        return curve


class Standings:
    """`Race.standing` at some epochs, kept sorted: only trials that have changed since they were last asked about are
    looked at again, and the answer is the same as without.
    """

    def __init__(self, race: Race, rungs: Sequence[int]) -> None:
        self.race = race
        self.at: dict[int, list[tuple[float, int]]] = {rung: [] for rung in rungs}
        self._seen: dict[int, tuple[list[dict[str, float]], int, str, float | None]] = {}

    def of(self, trials: Sequence[Trial]) -> dict[int, list[tuple[float, int]]]:
        """By epoch, score and number of all of `trials` who stand there, the best first."""
        if len(self._seen) > len(trials):
            self._forget()
        metric, seen = self.race.metric, self._seen
        for trial in trials:
            records, before = trial.records, seen.get(trial.number)
            newest = records[-1].get(metric) if records else None
            now = (records, len(records), trial.status, newest)
            if before is None or before[0] is not records or before[1:] != now[1:]:
                seen[trial.number] = now
                self._place(trial, known=before is not None)
        if len(seen) > len(trials):  # these are others than before
            self._forget()
            return self.of(trials)
        return self.at

    def _place(self, trial: Trial, known: bool) -> None:
        for rung, standing in self.at.items():
            if known:
                standing[:] = [entry for entry in standing if entry[1] != trial.number]
            if stands(trial, rung) and (score := self.race.score(trial, rung)) is not None:
                insort(standing, (score, trial.number))

    def _forget(self) -> None:
        self._seen.clear()
        for standing in self.at.values():
            standing.clear()


def stands(trial: Trial, epochs: int) -> bool:
    """Whether a trial has come as far as an epoch, or as far as it wanted to."""
    if trial.status == "failed" or trial.origin == "repeat":
        return False
    return trial.epochs >= epochs or trial.status in ("finished", "stopped_early")


def competing(trials: Sequence[Trial]) -> list[Trial]:
    """All but the repeats."""
    return [trial for trial in trials if trial.origin != "repeat"]


def ordinal(place: int) -> str:
    """1st, 2nd, 3rd, 4th, ..."""
    ending = "th" if place % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{ending}"
