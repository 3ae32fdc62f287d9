"""What a search knows: its trials, what each reported, and what became of it; kept as a journal, one event a line.

The journal is all that a search remembers. What suggests settings and what decides which trial goes on are functions of
the trials below alone, so a search that is killed and resumed decides as if nothing had been.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue

Values = dict[str, JsonValue]  # of settings, by dotted path
Direction = Literal["min", "max"]

FILE = "search.jsonl"

# waiting: suggested, not begun; paused: may go on when the scheduler says so; cut: ended by the scheduler or the budget
Status = Literal["waiting", "running", "paused", "finished", "stopped_early", "cut", "failed"]
ENDED: tuple[Status, ...] = ("finished", "stopped_early", "cut", "failed")
Origin = Literal["job", "warm_start", "search", "repeat"]


@dataclass(frozen=True)
class Verdict:
    """What becomes of a trial after an epoch: it goes on, waits (its actor is free for another), or is cut."""

    kind: Literal["go_on", "pause", "cut"]
    reason: str = ""


@dataclass(frozen=True)
class Resume:
    """A paused trial that is to go on; with a donor, from that trial's weights and with these settings."""

    number: int
    reason: str = ""
    donor: int | None = None
    settings: Values | None = None


@dataclass(frozen=True)
class Change:
    """Settings that took the place of others after an epoch: what a population-based search does to a trial."""

    after_epoch: int
    settings: Values


@dataclass
class Trial:
    """One trial: what was tried, and one record an epoch, as in metrics.jsonl."""

    number: int
    settings: Values
    origin: Origin
    notes: Values = field(default_factory=dict)  # what the algorithm that suggested it has to remember
    records: list[dict[str, float]] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    status: Status = "waiting"
    reason: str = ""
    left: list[Trial] = field(default_factory=list)  # what it was, each time that it took over another's weights

    @property
    def epochs(self) -> int:
        """Epochs trained so far."""
        return len(self.records)

    @property
    def ended(self) -> bool:
        """Whether it will report nothing more."""
        return self.status in ENDED

    @property
    def settings_now(self) -> Values:
        """The settings in force: those of the last change, else those that it began with."""
        return self.changes[-1].settings if self.changes else self.settings


def value_at(trial: Trial, epochs: int, metric: str, direction: Direction) -> float | None:
    """The best value within the first `epochs` epochs, which is what the trial's weights would be kept for; None before
    there is one. NaN is worse than any number.
    """
    values = [record[metric] for record in trial.records[:epochs] if metric in record]
    if not values:
        return None
    worst = math.inf if direction == "min" else -math.inf
    known = [worst if math.isnan(value) else value for value in values]
    return min(known) if direction == "min" else max(known)


class Searched(list[Trial]):
    """The trials of the search itself, without repeats, in their order; and which of them have changed, so that who
    looks again need not look at all of them.
    """

    def __init__(self, trials: Iterable[Trial] = ()) -> None:
        super().__init__(trials)
        self.changes = list(range(len(self)))  # places of those that changed, one after another
        self.places = {trial.number: place for place, trial in enumerate(self)}

    def add(self, trial: Trial) -> None:
        """One more."""
        self.places[trial.number] = len(self)
        self.append(trial)
        self.changed(trial)

    def changed(self, trial: Trial) -> None:
        """A trial is not what it was; nothing of one that is not among these."""
        if trial.number in self.places:
            self.changes.append(self.places[trial.number])


class Ledger:
    """The trials of a search by number, and the journal that every change to them is written to first.

    Args:
        path: the journal; None keeps nothing, for tests and simulations.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.trials: list[Trial] = []
        self.searched = Searched()
        self.counts: Counter[Status] = Counter()  # trials by status
        self.facts: Values = {}  # of the search itself: what was estimated, ...
        self.seconds = 0.0  # of work on this search, over all its sessions
        self.busy_seconds = 0.0  # the same, counted once for each trial that ran
        self._last_at: float | None = None  # Unix time of the event before
        for event in _read(path) if path is not None else ():
            self._apply(event)

    @classmethod
    def replayed(cls, events: Iterable[dict[str, Any]]) -> Ledger:
        """As events that were read elsewhere tell it; it keeps no journal, so who watches a search changes nothing."""
        ledger = cls()
        for event in events:
            ledger._apply(event)
        return ledger

    def add(self, settings: Values, origin: Origin, notes: Values | None = None) -> Trial:
        """A new trial, which waits to be begun."""
        self._write({"event": "trial", "settings": settings, "origin": origin, "notes": notes or {}})
        return self.trials[-1]

    def report(self, trial: Trial, record: Mapping[str, float], decide: Callable[[Trial], Verdict]) -> Verdict:
        """One epoch's record, and what is decided after it: one event, so that a decision is never made twice.

        The same epoch again, after a crash, changes nothing.
        """
        if int(record["epoch"]) <= trial.epochs:
            return Verdict("go_on")
        trial.records.append(dict(record))
        self.searched.changed(trial)
        try:
            verdict = decide(trial)
        finally:
            trial.records.pop()
            self.searched.changed(trial)
        self._write({"event": "epoch", "trial": trial.number, "record": dict(record), "verdict": asdict(verdict)})
        return verdict

    def become(self, trial: Trial, status: Status, reason: str = "") -> None:
        """A change of status, with its reason."""
        self._write({"event": "status", "trial": trial.number, "status": status, "reason": reason})

    def exploit(self, trial: Trial, donor: Trial, settings: Values) -> None:
        """The trial goes on from where the donor is, with other settings; both have trained as many epochs."""
        assert trial.epochs == donor.epochs, f"{trial.epochs} epochs against {donor.epochs}"
        self._write({"event": "exploit", "trial": trial.number, "donor": donor.number, "settings": settings})

    def note(self, **facts: JsonValue) -> None:
        """Facts of the search itself."""
        self._write({"event": "search", "facts": facts})

    def follow(self, event: dict[str, Any]) -> None:
        """An event that another process has written to its journal; nothing is written here."""
        self._apply(event)

    def begin_session(self) -> None:
        """Work begins, for the first time or again: what lies between two sessions counts for nothing."""
        self._write({"event": "session"})

    def _write(self, event: dict[str, Any]) -> None:
        event["at"] = round(time.time(), 3)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(event) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self._apply(event)

    def _apply(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind != "session" and self._last_at is not None:
            passed = max(0.0, event["at"] - self._last_at)
            self.seconds += passed
            self.busy_seconds += passed * self.counts["running"]
        self._last_at = event["at"]
        if kind == "session":
            return
        if kind == "search":
            self.facts |= event["facts"]
            return
        if kind == "trial":
            trial = Trial(len(self.trials), event["settings"], event["origin"], event["notes"])
            self.trials.append(trial)
            self.counts[trial.status] += 1
            if trial.origin != "repeat":
                self.searched.add(trial)
            return
        trial = self.trials[event["trial"]]
        if kind == "epoch":
            trial.records.append(event["record"])
            after: dict[str, Status] = {"go_on": "running", "pause": "paused", "cut": "cut"}
            self._become(trial, after[event["verdict"]["kind"]], event["verdict"]["reason"])
        elif kind == "status":
            self._become(trial, event["status"], event["reason"])
        elif kind == "exploit":
            donor = self.trials[event["donor"]]
            trial.left.append(replace(trial, left=[]))
            trial.records = list(donor.records)
            trial.changes = [*donor.changes, Change(donor.epochs, event["settings"])]
            trial.settings = donor.settings
            trial.notes = trial.notes | {"donor": donor.number}
        self.searched.changed(trial)

    def _become(self, trial: Trial, status: Status, reason: str) -> None:
        self.counts[trial.status] -= 1
        self.counts[status] += 1
        trial.status, trial.reason = status, reason


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a journal; a last line that was cut short by a crash is left out, and cut off."""
    if not path.exists():
        return
    whole = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            yield json.loads(line)
    if path.stat().st_size > whole:
        os.truncate(path, whole)


def alive(trials: Sequence[Trial]) -> list[Trial]:
    """Those that have not ended."""
    return [trial for trial in trials if not trial.ended]
