"""Run and search folders as training leaves them, written by hand: what mirrors read, without the training."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raynn.folder import NORMS, STUDY, write_json
from raynn.job import Job
from raynn.ledger import FILE, Ledger, Trial, Verdict

KEY = "0123456789abcdef" * 2 + "8badf00d"  # of the length that W&B wants
SPACE = {"regularization.dropout": {"uniform": [0.0, 0.5]}, "optimization.learning_rate": {"loguniform": [1e-4, 1e-1]}}


def job(**parts: Any) -> Job:
    """A job whose data need not exist."""
    content = {
        "data": {"train": "f.csv", "target": "kind"},
        "network": {"kind": "feedforward"},
        "task": "classification",
    }
    return Job.from_dict(content | parts)


def record(epoch: int, loss: float | None = None) -> dict[str, float]:
    """Of an epoch."""
    loss = 1.0 / epoch if loss is None else loss
    return {"epoch": epoch, "step": 10 * epoch, "train/loss": loss / 2, "val/loss": loss, "learning_rate": 0.1}


class RunFolder:
    """A run that goes on as the test says."""

    def __init__(self, folder: Path, tracking: dict[str, Any], **parts: Any) -> None:
        self.folder = folder
        self.job = job(tracking=tracking, **parts)
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "job.yaml").write_text(self.job.to_yaml())

    def train(self, first: int, last: int) -> None:
        """Epochs, of a network with one layer."""
        with (self.folder / NORMS).open("a") as file:
            file.writelines(
                json.dumps({"epoch": epoch, "step": 10 * epoch, "norms/weight/head": float(epoch)}) + "\n"
                for epoch in range(first, last + 1)
            )
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps(record(epoch)) + "\n" for epoch in range(first, last + 1))

    def end(self, status: str = "finished", **metrics: float) -> None:
        """Its result."""
        write_json(self.folder / "result.json", {"status": status, "best_epoch": 2, "metrics": metrics})


class SearchFolder:
    """A search that goes on as the test says."""

    def __init__(self, folder: Path, tracking: dict[str, Any]) -> None:
        self.folder = folder
        search = {"space": SPACE, "metric": "val/loss"}
        self.job = job(tracking=tracking, search=search, name=folder.name)
        folder.mkdir(parents=True)
        (folder / "job.yaml").write_text(self.job.to_yaml())
        self.ledger = Ledger(folder / FILE)
        self.ledger.begin_session()

    def begin(self, dropout: float, origin: Any = "search") -> Trial:
        """A trial and its run folder."""
        settings = {"regularization.dropout": dropout, "optimization.learning_rate": 0.01}
        trial = self.ledger.add(settings, origin)
        run = self.folder / "trials" / f"{trial.number:04d}"
        (run / "checkpoints").mkdir(parents=True)
        (run / "job.yaml").write_text(self.job.with_settings(settings).to_yaml())
        self.ledger.become(trial, "running")
        return trial

    def end(self, best: Trial, run: str = "", **metrics: float) -> None:
        """Its result, whose best is a trial, or that trial trained once more."""
        told = {"number": best.number, "metrics": metrics, "run": run or f"trials/{best.number:04d}"}
        trials = {"finished": len(self.ledger.trials)}
        write_json(self.folder / "result.json", {"status": "finished", "trials": trials, "best": told})

    def train(self, trial: Trial, first: int, last: int, verdict: Any = "go_on") -> None:
        """Epochs, and what is decided after the last."""
        for epoch in range(first, last + 1):
            kind = verdict if epoch == last else "go_on"
            self.ledger.report(trial, record(epoch, (trial.number + 1) / epoch), lambda _, kind=kind: Verdict(kind))


class StudyFolder(SearchFolder):
    """A study of dropout, which has arms in the place of trials."""

    def __init__(self, folder: Path, tracking: dict[str, Any]) -> None:
        super().__init__(folder, tracking)
        self.job = job(tracking=tracking, study={"knobs": ["dropout"]}, name=folder.name)
        (folder / "job.yaml").write_text(self.job.to_yaml())
        arms = [{"arm": "none", "knob": None}, {"arm": "dropout alone", "knob": "dropout"}]
        write_json(folder / STUDY, {"quantity": "accuracy", "arms": arms})

    def run(self, arm: str, seed: int, **result: Any) -> None:
        """One run of an arm, from its first epoch to its last, the second."""
        settings = {"regularization.dropout": 0.3 if "dropout" in arm else 0.0, "optimization.seed": seed}
        trial = self.ledger.add(settings, "search", {"arm": arm, "seed": seed})
        run = self.folder / "trials" / f"{trial.number:04d}"
        run.mkdir(parents=True)
        (run / "job.yaml").write_text(self.job.with_settings(settings).to_yaml())
        self.ledger.become(trial, "running")
        self.train(trial, 1, 2)
        write_json(run / "result.json", {"status": "finished", **result})
        self.ledger.become(trial, "finished", "max_epochs")


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits for what another process does."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, new = [], [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found
