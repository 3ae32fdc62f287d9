"""What mirrors are told: the runs in a folder, as they grow. Read from the run folder alone, by whoever likes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import yaml

from raynn.folder import NORMS, STUDY, WINNER
from raynn.ledger import FILE, Direction, Ledger, Trial, Values
from raynn.metrics import QUANTITIES

# paused: may go on later; interrupted: not ended, and nobody works on it now
State = Literal["running", "paused", "interrupted", "ended", "failed"]
Kind = Literal["train", "trial", "repeat", "winner", "arm"]
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """Settings in force after an epoch, and the trial whose weights were taken over with them."""

    after_epoch: int
    donor: int
    settings: Values


@dataclass(frozen=True)
class Tracked:
    """A run as it is now.

    A trial of a population-based search that takes over another's weights keeps the records that it reported before:
    they were measured, and W&B can only append. `changes` say where the curve goes on from elsewhere.
    """

    folder: Path
    name: str
    kind: Kind
    settings: Values  # by dotted path
    records: tuple[Record, ...] = ()  # one an epoch, as they were reported
    changes: tuple[Change, ...] = ()
    state: State = "running"
    summary: Mapping[str, Any] = field(default_factory=dict)  # once it has ended: metrics of its best epoch, and why
    group: str | None = None  # the search or study that it is of
    job_type: str = ""  # of an arm of a study, its name; else its kind
    tags: tuple[str, ...] = ()
    winner_of: int | None = None  # the number of trials that it was the best of, once its search has ended

    @property
    def over(self) -> bool:
        """Whether nobody works on it now."""
        return self.state != "running"

    @property
    def shown(self) -> bool:
        """Whether its model is what was asked for, and worth a look at what it predicts.

        Of a search only the winner's is. The others were tried for their figures; a look at one takes as long as its
        data take to be read once more, and would be at rows of the test set that they are not to be chosen by.
        """
        return self.state == "ended" and (self.kind in ("train", "winner") or self.winner_of is not None)


@dataclass(frozen=True)
class Media:
    """What is seen of a model at its end."""

    images: Mapping[str, bytes] = field(default_factory=dict)  # PNG by title
    classes: tuple[tuple[str, ...], Sequence[int], Sequence[int]] | None = None  # labels, actual and predicted index
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)  # actual, forecast
    texts: Sequence[str] = ()


class Feed(Protocol):
    """The runs in a folder."""

    def read(self, closing: bool) -> list[Tracked]:
        """Those that have changed since the last reading; `closing` where nobody will write any more."""


def feed_of(folder: Path) -> RunFeed | SearchFeed:
    """Of a run, of a search with its trials, or of a study with its arms."""
    if (folder / STUDY).exists():
        return StudyFeed(folder)
    return SearchFeed(folder) if is_search(folder) else RunFeed(folder)


def is_search(folder: Path) -> bool:
    """Whether the folder holds a search; a study, which has a journal too, is none."""
    return (folder / FILE).exists() and not (folder / STUDY).exists()


def has_ended(folder: Path) -> bool:
    """Whether the run, search or study has its result."""
    return (folder / "result.json").exists()


def dotted(section: Mapping[str, Any], prefix: str = "") -> Values:
    """Nested settings by their dotted paths."""
    flat: Values = {}
    for name, value in section.items():
        if isinstance(value, dict):  # an empty one sets nothing
            flat |= dotted(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def read_job(folder: Path) -> dict[str, Any]:
    """job.yaml as it is written; empty where there is none yet."""
    path = folder / "job.yaml"
    try:
        return _parsed(path, path.stat().st_mtime_ns)
    except (OSError, yaml.YAMLError):
        return {}


@lru_cache(maxsize=64)
def _parsed(path: Path, written_ns: int) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text())
    return content if isinstance(content, dict) else {}


def settings_of(folder: Path) -> Values:
    """All that a run was trained with; the space of a search is no setting of a run."""
    return dotted({name: value for name, value in read_job(folder).items() if name != "search"})


class RunFeed:
    """One run: metrics.jsonl with norms.jsonl, and result.json once it has ended. Of a search it may be the winner,
    trained once more.
    """

    def __init__(self, folder: Path, search: str | None = None) -> None:
        self.folder, self.search = folder, search
        self.last: Tracked | None = None

    def read(self, closing: bool) -> list[Tracked]:
        """The run, if it has changed."""
        result = _object(self.folder / "result.json")
        # the result first: a run that has one has all its records
        records = _lines(self.folder / "metrics.jsonl")
        # written first, so all that belong to these are there
        norms = {each["epoch"]: each for each in _lines(self.folder / NORMS)}
        state: State = "interrupted" if closing else "running"
        if result:
            state = "failed" if result.get("status") == "failed" else "ended"
        now = Tracked(
            self.folder,
            f"{self.search}-{self.folder.name}" if self.search else self.folder.name,
            "winner" if self.search else "train",
            settings_of(self.folder),
            tuple({**norms.get(record["epoch"], {}), **record} for record in records),
            state=state,
            summary=_summary(result),
            group=self.search,
        )
        changed = now != self.last
        self.last = now
        return [now] if changed and now.settings else []


def _summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """What result.json says, metrics by their names."""
    shown = ("status", "stop_reason", "best_epoch", "parameters", "workers", "examples_per_second")
    return {key: result[key] for key in shown if key in result} | dict(result.get("metrics", {}))


class SearchFeed:
    """The trials of a search, from its journal, which holds every record in the order of their arrival; and who won.

    A trial's norms.jsonl stays where it is: trials are compared by their metrics, and the layers of hundreds of them
    would bury those.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.ledger = folder, Ledger()
        self.reported: list[list[Record]] = []  # by trial
        self.changes: list[list[Change]] = []
        self.offset, self.closed = 0, False
        self.retrained = RunFeed(folder / WINNER, folder.name)
        self.winner: tuple[int, int, dict[str, Any]] | None = None  # its number, of how many trials, its metrics
        self.metric, self.direction = self._compared()

    def _compared(self) -> tuple[str, Direction]:
        """By what, and which way is better."""
        search = read_job(self.folder)["search"]
        metric, mode = str(search.get("metric", "val/loss")), search.get("mode", "auto")
        direction: Direction = QUANTITIES[metric.partition("/")[2]][0] if mode == "auto" else mode
        return metric, direction

    def read(self, closing: bool) -> list[Tracked]:
        """The trials that have changed; a trial whose run folder was never made is none."""
        won = self._won()  # before the journal: a search that has a winner has all its trials
        changed = dict.fromkeys(self._follow())
        if won != self.winner and won is not None:
            self.winner = won
            changed |= {won[0]: None}
        if closing and not self.closed:
            self.closed = True
            changed |= dict.fromkeys(trial.number for trial in self.ledger.trials if not trial.ended)
        trials = [self._tracked(self.ledger.trials[number], closing) for number in changed]
        return [trial for trial in [*trials, *self.retrained.read(closing)] if trial.settings]

    def _won(self) -> tuple[int, int, dict[str, Any]] | None:
        """The trial whose model the search ends with, if it is the trial's own."""
        result = _object(self.folder / "result.json")
        best = result.get("best")
        if not best or best["run"] == WINNER:
            return None
        return best["number"], sum(result["trials"].values()), best["metrics"]

    def _follow(self) -> list[int]:
        """Reads on in the journal; numbers of the trials that it tells of."""
        told = []
        with (self.folder / FILE).open("rb") if (self.folder / FILE).exists() else open("/dev/null", "rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):  # still being written
                    break
                self.offset += len(line)
                event = json.loads(line)
                self.ledger.follow(event)
                if event["event"] == "trial":
                    self.reported.append([])
                    self.changes.append([])
                number = len(self.reported) - 1 if event["event"] == "trial" else event.get("trial")
                if number is None:
                    continue
                told.append(number)
                if event["event"] == "epoch":
                    self.reported[number].append(event["record"])
                elif event["event"] == "exploit":
                    epoch = self.ledger.trials[event["donor"]].epochs
                    self.changes[number].append(Change(epoch, event["donor"], event["settings"]))
        return told

    def _tracked(self, trial: Trial, closing: bool) -> Tracked:
        folder = self.folder / "trials" / f"{trial.number:04d}"
        states: dict[str, State] = {"paused": "paused", "failed": "failed", "waiting": "running", "running": "running"}
        state = states.get(trial.status, "ended")
        if closing and state == "running":
            state = "interrupted"
        records = tuple(self.reported[trial.number])
        summary: dict[str, Any] = {"status": trial.status, "stop_reason": trial.reason}
        best = best_record(records, self.metric, self.direction)
        summary |= {} if best is None else {"best_epoch": int(best["epoch"])} | _quantities(best)
        winner_of = None
        if self.winner is not None and trial.number == self.winner[0]:
            winner_of = self.winner[1]
            summary |= self.winner[2] | {"winner_of": winner_of}
        return Tracked(
            folder,
            f"{self.folder.name}-{trial.number:04d}",
            "repeat" if trial.origin == "repeat" else "trial",
            settings_of(folder),
            records,
            tuple(self.changes[trial.number]),
            state,
            summary,
            self.folder.name,
            winner_of=winner_of,
        )


class StudyFeed(SearchFeed):
    """The runs of a study: of each arm, one a seed. It has no winner: nothing is chosen by test figures."""

    def __init__(self, folder: Path) -> None:
        self.content = _object(folder / STUDY)
        super().__init__(folder)

    def _compared(self) -> tuple[str, Direction]:
        quantity = str(self.content["quantity"])
        return f"val/{quantity}", QUANTITIES[quantity][0]

    def _won(self) -> None:
        return None

    def _tracked(self, trial: Trial, closing: bool) -> Tracked:
        run = super()._tracked(trial, closing)
        arm, seed = str(trial.notes["arm"]), trial.notes["seed"]
        knobs = (each["knob"] for each in self.content["arms"] if each["arm"] == arm)
        result = _object(run.folder / "result.json") if run.state == "ended" else {}
        return replace(
            run,
            name=f"{self.folder.name}: {arm}, seed {seed}",
            kind="arm",
            job_type=arm,
            tags=tuple(knob for knob in knobs if knob),
            # the training rows measured as others are, no regularizer at work
            summary={**run.summary, **result.get("metrics", {}), **_measured(result.get("train", {}))},
        )


def _measured(train: Mapping[str, Any]) -> dict[str, Any]:
    return {f"train/{quantity}": value for quantity, value in train.items()}


def best_record(records: Sequence[Record], metric: str, direction: Direction) -> Record | None:
    """The first of those with the best value; None where none has a number."""
    known = [r for r in records if isinstance(r.get(metric), float | int) and math.isfinite(r[metric])]
    sign = 1.0 if direction == "min" else -1.0
    return min(known, key=lambda record: sign * record[metric]) if known else None


def _quantities(record: Record) -> dict[str, Any]:
    return {key: value for key, value in record.items() if "/" in key}


def _lines(path: Path) -> list[Record]:
    """JSON lines; a last one that is still being written is left out."""
    try:
        text = path.read_text()
    except OSError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
