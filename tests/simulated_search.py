"""A search without training: trials report made-up values, and slots come free in virtual time.

It acts as a search does that asks a scheduler: through the ledger, one event at a time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from raynn.ledger import Ledger, Trial, Values, Verdict
from raynn.race import Scheduler


def spread(*place: int) -> float:
    """A number in [0, 1) that looks random, as a function of some whole numbers."""
    return Random(" ".join(map(str, place))).random()


@dataclass
class Simulation:
    """A search of `num_trials` trials on `slots` slots.

    `curve(trial)` is the value of the epoch that the trial trains next; `ends(trial)` says after an epoch whether
    its own stopping rule ends it; `fails(trial)`, before one, whether it fails in it.
    """

    ledger: Ledger
    scheduler: Scheduler
    num_trials: int
    max_epochs: int
    curve: Callable[[Trial], float]
    settings: Callable[[int], Values] = lambda number: {"regularization.dropout": 0.0}
    slots: int = 1
    ends: Callable[[Trial], bool] = lambda trial: False
    fails: Callable[[Trial], bool] = lambda trial: False
    duration: Callable[[Trial], float] = lambda trial: 0.5 + spread(trial.number, trial.epochs)
    max_events: int | None = None

    def run(self) -> list[Trial]:
        """All trials, in the end."""
        clock, num_events = 0.0, 0
        events: list[tuple[float, int]] = []
        trials = self.ledger.trials
        # After a crash: what ran, runs on, from its last whole epoch.
        for trial in trials:
            if trial.status in ("running", "waiting") and not self._ended(trial):
                self._begin(trial)
                heapq.heappush(events, (self.duration(trial), trial.number))
        while True:
            while len(events) < self.slots and (number := self._next()) is not None:
                heapq.heappush(events, (clock + self.duration(trials[number]), number))
            if not events or num_events == self.max_events:
                break
            num_events += 1
            clock, number = heapq.heappop(events)
            if self._epoch(trials[number]):
                heapq.heappush(events, (clock + self.duration(trials[number]), number))
        if not events:
            for number, reason in self.scheduler.retire(trials):
                self.ledger.become(trials[number], "cut", reason)
        return trials

    def _next(self) -> int | None:
        """The number of the trial that takes a free slot."""
        trials = self.ledger.trials
        more = len(trials) < self.num_trials
        resume = self.scheduler.resume(trials, more)
        if resume is not None:
            trial = trials[resume.number]
            assert trial.status == "paused"
            if resume.donor is not None:
                assert resume.settings is not None
                self.ledger.exploit(trial, trials[resume.donor], resume.settings)
            self.ledger.become(trial, "running", resume.reason)
            return trial.number
        if more and self.scheduler.wants_new(trials):
            trial = self.ledger.add(self.settings(len(trials)), "search")
            self._begin(trial)
            return trial.number
        return None

    def _begin(self, trial: Trial) -> None:
        if trial.status != "running":
            self.ledger.become(trial, "running")

    def _epoch(self, trial: Trial) -> bool:
        """Trains an epoch; whether the trial goes on in its slot."""
        if self.fails(trial):
            self.ledger.become(trial, "failed", "made to")
            return False
        record = {"epoch": trial.epochs + 1, "val/loss": self.curve(trial)}

        def decide(trial: Trial) -> Verdict:
            own = self.ends(trial) or trial.epochs >= self.max_epochs
            return Verdict("go_on") if own else self.scheduler.decide(trial, self.ledger.trials)

        verdict = self.ledger.report(trial, record, decide)
        return not self._ended(trial) and verdict.kind == "go_on"

    def _ended(self, trial: Trial) -> bool:
        """Whether the trial is at its own end, which is then written down."""
        if trial.epochs and self.ends(trial):
            self.ledger.become(trial, "stopped_early", "own rule")
        elif trial.epochs >= self.max_epochs:
            self.ledger.become(trial, "finished")
        return trial.ended


def outcome(trials: list[Trial]) -> list[tuple]:
    """What was decided of each trial, to compare searches by."""
    return [(t.number, t.status, t.epochs, t.reason, t.settings, t.changes) for t in trials]


def interrupted(path: Path, at: int, whole: bytes) -> Ledger:
    """The ledger of a search that was killed after `at` lines of its journal; what follows is kept in memory alone,
    as the disk would take most of a test's time.
    """
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:at]))
    ledger = Ledger(path)
    ledger.path = None
    return ledger
