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
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from raynn.ledger import Direction, Resume, Searched, Trial, Verdict


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


class News:
    """Which trials are to be looked at again: of a search's own those that have changed since, of others all."""

    def __init__(self) -> None:
        self._of: Searched | None = None
        self._read = 0

    def of(self, trials: Sequence[Trial]) -> Collection[int]:
        """Places in `trials`, each once."""
        before, self._of = self._of, trials if isinstance(trials, Searched) else None
        if self._of is None:
            return range(len(trials))
        read, self._read = self._read, len(self._of.changes)
        return range(len(trials)) if before is not self._of else dict.fromkeys(self._of.changes[read:])


Entry = tuple[float, int]  # score and number of a trial


class Standings:
    """Score and number of all who stand at some epochs, the best first, and of those who are paused there. Only trials
    that have changed since they were last asked about are looked at again, and the answer is the same as without.

    Args:
        measure: what a trial stands at an epoch with; its best score up to there by default.
    """

    def __init__(
        self, race: Race, rungs: Sequence[int], measure: Callable[[Trial, int], float | None] | None = None
    ) -> None:
        self.race, self.measure = race, measure or race.score
        self.at: dict[int, list[Entry]] = {rung: [] for rung in rungs}
        self.waiting: dict[int, list[Entry]] = {rung: [] for rung in rungs}
        self.going: set[int] = set()  # the numbers of those that neither have ended nor are paused
        self._entries: dict[int, dict[int, Entry]] = {}  # by trial and rung
        self._waits: dict[int, int] = {}  # by trial that is paused, at which rung
        self._news = News()
        self._seen: dict[int, tuple[list[dict[str, float]], int, str, float | None]] = {}

    def of(self, trials: Sequence[Trial]) -> dict[int, list[Entry]]:
        """By epoch, score and number of all of `trials` who stand there, the best first."""
        if len(self._seen) > len(trials):
            self._forget()
        for place in self._news.of(trials):
            self._look_at(trials[place])
        if len(self._seen) > len(trials):  # these are others than before
            self._forget()
            return self.of(trials)
        return self.at

    def entry(self, number: int, rung: int) -> Entry | None:
        """What a trial stands at an epoch with, if it does."""
        return self._entries.get(number, {}).get(rung)

    def place(self, entry: Entry, rung: int) -> int:
        """The place, from 0, of who stands at an epoch."""
        return bisect_left(self.at[rung], entry)

    def _look_at(self, trial: Trial) -> None:
        number, records = trial.number, trial.records
        newest = records[-1].get(self.race.metric) if records else None
        before, now = self._seen.get(number), (records, len(records), trial.status, newest)
        if before is not None and before[0] is records and before[1:] == now[1:]:
            return
        self._seen[number] = now
        entries = self._entries.setdefault(number, {})
        if number in self._waits:
            rung = self._waits.pop(number)
            _take(self.waiting[rung], entries[rung])
        for rung, standing in self.at.items():
            score = self.measure(trial, rung) if stands(trial, rung) else None
            was, entry = entries.get(rung), None if score is None else (score, number)
            if entry == was:
                continue
            if was is not None:
                _take(standing, was)
                del entries[rung]
            if entry is not None:
                insort(standing, entry)
                entries[rung] = entry
        if trial.status == "paused" and trial.epochs in entries:
            self._waits[number] = trial.epochs
            insort(self.waiting[trial.epochs], entries[trial.epochs])
        if trial.ended or trial.status == "paused":
            self.going.discard(number)
        else:
            self.going.add(number)

    def _forget(self) -> None:
        self.__init__(self.race, tuple(self.at), self.measure)  # type: ignore[misc]


def _take(entries: list[Entry], entry: Entry) -> None:
    """Takes an entry out of a sorted list."""
    del entries[bisect_left(entries, entry)]


class Others:
    """The scores in a standing but for one entry's, in their order, without a copy of them."""

    def __init__(self, standing: Sequence[Entry], place: int | None) -> None:
        self.standing, self.place = standing, place

    def __len__(self) -> int:
        return len(self.standing) - (self.place is not None)

    def __getitem__(self, index: int) -> float:
        return self.standing[index + (self.place is not None and index >= self.place)][0]


def stands(trial: Trial, epochs: int) -> bool:
    """Whether a trial has come as far as an epoch, or as far as it wanted to."""
    if trial.status == "failed" or trial.origin == "repeat":
        return False
    return trial.epochs >= epochs or trial.status in ("finished", "stopped_early")


def competing(trials: Sequence[Trial]) -> Sequence[Trial]:
    """All but the repeats."""
    return trials if isinstance(trials, Searched) else [trial for trial in trials if trial.origin != "repeat"]


def place_of(trial: Trial, trials: Sequence[Trial]) -> int:
    """Where among trials one is, by its number."""
    if isinstance(trials, Searched):
        return trials.places[trial.number]
    return next(place for place, other in enumerate(trials) if other.number == trial.number)


def ordinal(place: int) -> str:
    """1st, 2nd, 3rd, 4th, ..."""
    ending = "th" if place % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{ending}"
