"""What each regularizer is worth: an ablation over seeds, run as trials on the cluster.

A study is a search whose algorithm is a fixed list, seed by seed, and whose scheduler lets every trial train to the end
that its own stopping rule finds. Every trial looks at the test set, as a study reports test figures. That is not
peeking: nothing is chosen by them, neither weights (the best epoch is by validation), nor a winner, of which there is
none. Whoever chooses an arm by its test figure needs other data to say how good it is.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from raynn import progress
from raynn.ablation import Arm, StudySettings, arms_of, findings
from raynn.cache import RememberingDriver
from raynn.cluster import cluster
from raynn.collectives import Workers, gpu_names
from raynn.data import RayDriver
from raynn.desk import Desk, Slots, refuse_nodes_apart, run_trials, slots_for
from raynn.director import Director, Limits, Suggestion
from raynn.drivers import Driver
from raynn.encoded import itself
from raynn.errors import JobError, RunError, TrainingError
from raynn.folder import STUDY, describe, read_result, write_json
from raynn.job import NOT_THE_RESULT, Job, refuse_changes
from raynn.ledger import FILE, Ledger, Trial
from raynn.metrics import QUANTITIES
from raynn.outcome import counts, write_trials
from raynn.placement import place_shards
from raynn.preparation import Prepared, located, split_summary
from raynn.progress import ProgressLine, ProgressWriter
from raynn.regularization import applicable, knob_specs
from raynn.report import conclude
from raynn.schedulers import Undisturbed
from raynn.splits import TEST
from raynn.storage import address_of, claim, kept, newest, open_storage
from raynn.tasks import checked, prepare_job, understand_job
from raynn.tracking import Mirroring, check_tracking
from raynn.trainer import require_cluster
from raynn.trial import SharedData

TABLE = "study.parquet"


def study(job: Job, folder: Path | None = None, *, quiet: bool = True, started_at: float | None = None) -> Path:
    """Runs the study of a job to its end and returns its folder: trials, study.parquet, study.json, the report.

    Args:
        job: its `study` section says how many seeds and which knobs; without one, three and those that are on. With
            `resume` the newest study of its name is continued, or extended by more seeds. `refit` is left out.
        folder: where relative sources are looked for besides the current folder; the job file's own.
        quiet: no progress line, no word on standard error.
        started_at: Unix time [s] that `seconds` counts from; now by default.

    Raises:
        UserError: the job, its data or its resources need mending.
        TrainingError: all trials failed.
    """
    started_at = started_at or time.time()
    settings = job.study or StudySettings()
    changed: dict[str, Any] = {"data": located(job.data, folder or Path()), "study": settings, "refit": False}
    if settings.epochs is not None:
        changed["optimization"] = job.optimization.model_copy(update={"max_epochs": settings.epochs})
    job = job.model_copy(update=changed)
    storage = open_storage(job.storage)
    check_tracking(job.tracking)
    resumed = _resumed(job, storage) if job.resume else None
    understood = understand_job(job, folder or Path())
    at_least = settings.concurrent_trials if settings.concurrent_trials != "auto" else 1
    with cluster(job.resources.logical_cpus * at_least):
        refuse_nodes_apart(storage)
        require_cluster(job, storage, understood, at_least, quiet=quiet)
        driver: Driver = RayDriver() if job.resources.max_workers > 1 else RememberingDriver()
        prepared = prepare_job(job, understood, driver)
        job = checked(job.model_copy(update={"task": prepared.task}), prepared)
        if not prepared.encoded.num_rows(TEST):
            raise JobError(
                "a study reports test figures, and the job has no test set: give data.test a source or share"
            )
        arms = _arms(job, settings, prepared)
        num_trials = settings.seeds * sum(arm.runs == arm.name for arm in arms)
        slots = slots_for(job.resources, settings.concurrent_trials, num_trials, by="study")
        path = resumed or claim(storage, job.name)
        if not quiet:
            _say(f"{split_summary(prepared)}; {prepared.task}: {prepared.task_reason}")
            what = f"{num_trials} trials of {len(arms)} arms, {slots.concurrent} trials at a time"
            _say(f"study folder {address_of(path)}; {what}")
        with kept(path):
            return _Study(job, settings, path, prepared, arms, slots, quiet).run()


def _arms(job: Job, settings: StudySettings, prepared: Prepared) -> tuple[Arm, ...]:
    """What is compared.

    Raises:
        JobError: a knob that is asked for means nothing in this job, or there is none.
    """
    columns = [spec.kind for spec in prepared.preprocessing.features]
    kind, any_length = job.network.kind, prepared.preprocessing.input_spec.any_length
    for name in settings.knobs if isinstance(settings.knobs, tuple) else ():
        if reason := knob_specs()[name].misuse(kind, job.network, prepared.task, columns, any_length):
            raise JobError(f"study.knobs: regularization.{name}{reason.rpartition('; ')[0]}; leave it out")
    able = [spec.name for spec in applicable(kind, prepared.task, columns, job.network, any_length)]
    arms = arms_of(settings, job.regularization, able)
    if not any(arm.kind == "alone" for arm in arms):
        raise JobError("no knob of regularization is on, so there is nothing to compare: set some, or study.knobs: all")
    return arms


@dataclass
class _Study:
    """One session's work on a study."""

    job: Job
    settings: StudySettings
    folder: Path
    prepared: Prepared
    arms: tuple[Arm, ...]
    slots: Slots
    quiet: bool

    def __post_init__(self) -> None:
        job = self.job
        here = describe(self.folder, job.to_yaml(), job.optimization.seed, gpu_names(), self.prepared.bad_rows)
        self.quantity = self.settings.quantity(self.prepared.task)
        self.seeds = range(job.optimization.seed, job.optimization.seed + self.settings.seeds)
        # seed by seed: trials of one seed share their data, and whole pairs are there early
        self.planned = [(arm, seed) for seed in self.seeds for arm in self.arms if arm.runs == arm.name]
        self.ledger = Ledger(self.folder / FILE)
        limits = Limits(len(self.planned), failed_trials=len(self.planned), concurrent=self.slots.concurrent)
        metric = f"val/{self.quantity}"
        self.director = Director(
            self.ledger, self._suggested, Undisturbed(), limits, metric, QUANTITIES[self.quantity][0]
        )
        self.desk = Desk(self.director, self.folder, job, here, measures_all=True)
        self._write({})

    def run(self) -> Path:
        """From wherever the study stands to its end."""
        (self.folder / "result.json").unlink(missing_ok=True)
        scratch = self.folder / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        shards = None
        if self.job.resources.max_workers == 1:
            shards = place_shards(self.prepared.encoded, itself, self.job, Workers(), 1, scratch / "shared")
        self.ledger.begin_session()
        with Mirroring(self.folder, self.job.tracking):
            try:
                with ProgressWriter(self.folder, self._progress), ProgressLine(self.folder, quiet=self.quiet):
                    run_trials(self.desk, SharedData.of(self.job, self.prepared, shards), self.slots)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
                (self.folder / progress.FILE).unlink(missing_ok=True)
            return self._concluded()

    def _suggested(self, number: int, trials: Sequence[Trial]) -> Suggestion | None:
        """The plan's next trial."""
        if number >= len(self.planned):
            return None
        arm, seed = self.planned[number]
        return {**arm.settings, "optimization.seed": seed}, {"arm": arm.name, "seed": seed}

    def _progress(self) -> dict[str, Any]:
        trials = list(self.ledger.trials)
        done = sum(trial.ended for trial in trials)
        left = self.ledger.seconds / done * (len(self.planned) - done) if done else None
        return {
            "search": counts(trials),
            "trials_done": done,
            "trials": len(self.planned),
            "metric": self.director.metric,
            "best": None,
            "best_trial": None,
            "seconds_left": left,
        }

    def _rows(self) -> list[dict[str, Any]]:
        """One of each trial that has ended: what it was, and its figures."""
        rows = []
        by_name = {arm.name: arm for arm in self.arms}
        for trial in self.ledger.trials:
            arm, run = by_name[str(trial.notes["arm"])], self.desk.run_folder(trial)
            row: dict[str, Any] = {"arm": arm.name, "kind": arm.kind, "knob": arm.knob, "seed": trial.notes["seed"]}
            row |= {"status": trial.status, "reason": trial.reason, "epochs": trial.epochs}
            row |= {"run": str(run.relative_to(self.folder))}
            if trial.status in ("finished", "stopped_early"):
                result = read_result(run)
                row |= {"best_epoch": result["best_epoch"], "examples_per_second": result["examples_per_second"]}
                # the loss recorded while training is of a network that changes, its regularizers at work
                row |= {key: value for key, value in result["metrics"].items() if not key.startswith("train/")}
                row |= {f"train/{key}": value for key, value in result["train"].items()}
            rows.append(row)
        return rows

    def _write(self, result: dict[str, Any]) -> None:
        """study.json and study.parquet as things stand."""
        rows = self._rows() if result else []
        found = findings(self.arms, rows, self.quantity)
        told = []
        for finding in found:
            arm: dict[str, Any] = {"arm": finding.arm.name, "kind": finding.arm.kind, "knob": finding.arm.knob}
            arm["settings"] = finding.arm.settings
            for key, value in vars(finding).items():
                if key != "arm":
                    arm[key] = None if value is None else asdict(value) | {"verdict": value.verdict}
            told.append(arm)
        failed = [{key: row[key] for key in ("arm", "seed", "reason")} for row in rows if row["status"] == "failed"]
        content = {
            "quantity": self.quantity,
            "seeds": len(self.seeds),
            "intervals": "Student's t at 95 % over seeds, of paired differences where two arms are compared",
            "arms": told,
            "failed": failed,
        }
        write_json(self.folder / STUDY, content)
        if rows:
            names = list(dict.fromkeys(name for row in rows for name in row))
            write_trials(self.folder / TABLE, pa.table({name: [row.get(name) for row in rows] for name in names}))
        if result:
            write_json(self.folder / "result.json", result)

    def _concluded(self) -> Path:
        trials = self.ledger.trials
        result: dict[str, Any] = {
            "name": self.folder.name,
            "status": "finished",
            "stop_reason": self.ledger.facts.get("stop_reason"),
            "trials": counts(trials),
            "metric": f"test/{self.quantity}",
            "seeds": len(self.seeds),
            "seconds": round(self.ledger.seconds, 3),
        }
        failed = [trial for trial in trials if trial.status == "failed"]
        if len(failed) == len(trials):
            problem = f"all {len(trials)} trials failed, the first: {failed[0].reason}"
            self._write(result | {"status": "failed", "stop_reason": problem})
            raise TrainingError(problem)
        self._write(result)
        if self.job.report:
            conclude(self.folder, (lambda text: None) if self.quiet else _say)
        return self.folder


def _resumed(job: Job, storage: Path) -> Path:
    """The study to continue.

    Raises:
        RunError: there is none, or the job has changed in more than the number of seeds.
    """
    path = newest(storage, job.name)
    if not (path / STUDY).exists():
        raise RunError(f"resume = true, but {address_of(path)} holds no study; run without resume=true to start one")
    may_differ = tuple(key for key in NOT_THE_RESULT if key != "study")
    may_differ = (*may_differ, "study.seeds", "study.concurrent_trials")
    refuse_changes(job, path, may_differ, "study")
    return path


def table_of(folder: Path) -> list[dict[str, Any]]:
    """The arms of a study that has ended, as study.json has them."""
    content: list[dict[str, Any]] = json.loads((folder / STUDY).read_text())["arms"]
    return content


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
