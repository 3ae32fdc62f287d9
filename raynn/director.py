"""What a search does next: which trial begins, goes on or ends; a function of its ledger.

Whoever runs trials asks here. Nothing knows of Ray: a test or a simulation drives a search as Ray Tune does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from raynn.ledger import Direction, Ledger, Searched, Status, Trial, Values, Verdict, alive, value_at
from raynn.race import News, Scheduler

Suggestion = tuple[Values, Values]  # settings by dotted path, and what the algorithm notes with them
Suggest = Callable[[int, Sequence[Trial]], Suggestion | None]


@dataclass(frozen=True)
class Limits:
    """What ends a search; None: nothing of the kind."""

    trials: int
    failed_trials: int
    concurrent: int
    time_s: float | None = None
    device_seconds: float | None = None
    devices_per_trial: float = 1.0
    target: float | None = None


@dataclass(frozen=True)
class Repeats:
    """The best trials once more, with other seeds: whether the winner is luck."""

    top: int = 0
    seeds: tuple[int, ...] = ()


class Director:
    """Decides, and writes each decision to the ledger before it is acted upon.

    Args:
        metric: what trials are compared by, and which way it is better.
        settle: what becomes of settings that a scheduler has changed, before a trial goes on with them.
    """

    def __init__(
        self,
        ledger: Ledger,
        suggest: Suggest,
        scheduler: Scheduler,
        limits: Limits,
        metric: str,
        direction: Direction,
        repeats: Repeats | None = None,
        settle: Callable[[Values], Values] = dict,
    ) -> None:
        self.ledger, self.suggest, self.scheduler, self.limits = ledger, suggest, scheduler, limits
        self.metric, self.direction, self.repeats = metric, direction, repeats or Repeats()
        self.settle = settle
        self.exhausted = False  # the algorithm has nothing left to suggest
        self.over = False
        # begun in an earlier session, which ended without a word: they go first, in their order
        self._values: dict[int, tuple[list[dict[str, float]], int, float | None]] = {}
        self._news = News()  # of those that have not been held against the target yet
        self._left = [trial.number for trial in ledger.trials if trial.status in ("waiting", "running")]

    def next(self) -> Trial | None:
        """The trial that is to run now, marked as running; None where none is to, for now or, if `over`, at all."""
        if self.over or self.num_running >= self.limits.concurrent:
            return None
        trial = self._next()
        if trial is not None and trial.status != "running":
            self.ledger.become(trial, "running")
        if trial is None and not self.num_running:
            self.end("every trial has ended")
        return trial

    @property
    def num_running(self) -> int:
        """Trials that are being run now."""
        return self.ledger.counts["running"] - len(self._left_running)

    @property
    def trials(self) -> list[Trial]:
        """All trials."""
        return self.ledger.trials

    @property
    def searched(self) -> Searched:
        """The trials of the search itself, without repeats."""
        return self.ledger.searched

    def reported(self, trial: Trial, record: Mapping[str, float], last: bool = False) -> Verdict:
        """A trial's next epoch, after which it goes on, pauses or is cut; not so its `last`, after which it has come to
        its own end.
        """
        return self.ledger.report(trial, record, lambda now: Verdict("go_on") if last else self._verdict(now))

    def ended(self, trial: Trial, status: Status, reason: str) -> None:
        """A trial came to its own end, or failed."""
        self.ledger.become(trial, status, reason)
        failed = self.ledger.counts["failed"]
        if failed > self.limits.failed_trials:
            self.end(f"{failed} trials failed, and search.max_failed_trials = {self.limits.failed_trials}")
        self._stop_where_enough()

    def end(self, reason: str) -> None:
        """The search is over: what waits or is paused is cut, nothing begins, what runs is cut at its next epoch."""
        if self.over:
            return
        self.over = True
        retired = dict(self.scheduler.retire(self.searched))
        for trial in alive(self.trials):
            if trial.status != "running" or trial.number in self._left:
                self.ledger.become(trial, "cut", retired.get(trial.number, reason))
        self._left = []
        self.ledger.note(stop_reason=reason)

    def ranked(self, trials: Sequence[Trial] | None = None) -> list[Trial]:
        """Trials with a finite value that did not fail, the best first; of equals the one that began first."""
        valued = []
        for trial in self.searched if trials is None else trials:
            value = self._value(trial)
            if value is not None and math.isfinite(value) and trial.status != "failed":
                valued.append((value if self.direction == "min" else -value, trial.number, trial))
        return [trial for _, _, trial in sorted(valued, key=lambda item: item[:2])]

    def _value(self, trial: Trial) -> float | None:
        """A trial's best value so far, worked out once for each epoch."""
        records, num = trial.records, trial.epochs
        known = self._values.get(trial.number)
        if known is None or known[0] is not records or known[1] != num:
            known = records, num, value_at(trial, num, self.metric, self.direction)
            self._values[trial.number] = known
        return known[2]

    @property
    def _left_running(self) -> list[int]:
        return [number for number in self._left if self.trials[number].status == "running"]

    def _next(self) -> Trial | None:
        if self._left:
            return self.trials[self._left.pop(0)]
        more = not self.exhausted and len(self.searched) < self.limits.trials
        resume = self.scheduler.resume(self.searched, more)
        if resume is not None:
            trial = self.trials[resume.number]
            if resume.donor is not None:
                self.ledger.exploit(trial, self.trials[resume.donor], self.settle(resume.settings or {}))
            self.ledger.become(trial, "running", resume.reason)
            return trial
        if more and self.scheduler.wants_new(self.searched):
            suggestion = self.suggest(len(self.searched), self.searched)
            if suggestion is not None:
                settings, notes = suggestion
                return self.ledger.add(settings, "job" if notes.pop("origin", None) == "job" else "search", notes)
            self.exhausted = True
        return self._next_repeat()

    def _next_repeat(self) -> Trial | None:
        """One more repetition, once the search itself has ended."""
        if not self.repeats.top or any(trial.status in ("running", "waiting") for trial in self.searched):
            return None
        begun = [trial.settings for trial in self.trials if trial.origin == "repeat"]
        for best in self.ranked()[: self.repeats.top]:
            for seed in self.repeats.seeds:
                settings = best.settings | {"optimization.seed": seed}
                if settings not in begun:
                    return self.ledger.add(settings, "repeat", {"of": best.number})
        return None

    def _verdict(self, trial: Trial) -> Verdict:
        self._stop_where_enough()
        if self.over:
            return Verdict("cut", str(self.ledger.facts.get("stop_reason", "the search has ended")))
        return Verdict("go_on") if trial.origin == "repeat" else self.scheduler.decide(trial, self.searched)

    def _stop_where_enough(self) -> None:
        """Ends the search whose budget is used up, or whose target is reached."""
        limits, ledger = self.limits, self.ledger
        if limits.time_s is not None and ledger.seconds >= limits.time_s:
            self.end(f"the time budget of {limits.time_s:g} s is used up")
        used = ledger.busy_seconds * limits.devices_per_trial
        if limits.device_seconds is not None and used >= limits.device_seconds:
            self.end(f"the budget of {limits.device_seconds / 3600:g} device-hours is used up")
        if limits.target is None:
            return
        changed = [self.searched[place] for place in self._news.of(self.searched)]
        for best in self.ranked(changed)[:1]:
            value = value_at(best, best.epochs, self.metric, self.direction)
            assert value is not None
            if (value <= limits.target) if self.direction == "min" else (value >= limits.target):
                self.end(f"{self.metric} = {value:.6g} reached the target {limits.target:g} in trial {best.number}")
