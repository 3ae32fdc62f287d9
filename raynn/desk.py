"""Where Ray Tune meets the director: Tune runs trials in actors that it reuses, the director says which and when."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import ray
from ray import tune
from ray.air.execution.resources.fixed import FixedResourceManager
from ray.tune.execution import tune_controller as controllers
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from raynn.capacity import Room
from raynn.director import Director
from raynn.errors import JobError, ResourceError
from raynn.folder import write_json
from raynn.job import ChangeSettings, Job
from raynn.ledger import Trial
from raynn.resources import ResourcesSettings
from raynn.storage import url_of
from raynn.trial import SharedData, TrialActor

TRIALS = "trials"

# Tune's own loggers and snapshots: the ledger and the run folders hold all that there is to know
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class Slots:
    """What each trial takes of the cluster, and how many run at a time."""

    cpus: float
    gpus: float
    concurrent: int
    threads: int  # of one-worker trials


def slots_for(
    resources: ResourcesSettings,
    asked: int | Literal["auto"],
    trials: int,
    by: str = "search",
    available: Mapping[str, float] | None = None,
) -> Slots:
    """As many of the trials at a time as the cluster holds, or as `concurrent_trials`, in the section `by`, asks for.

    Args:
        available: CPUs and GPUs of the cluster; by default those of the one that this process works on.

    Raises:
        ResourceError: not even one fits, or fewer than asked for.
    """
    available = ray.cluster_resources() if available is None else available
    one = Room.of(resources, available)
    cpus, gpus = one.cpus, one.gpus
    room = available.get("CPU", 0) / (cpus * resources.max_workers)
    if gpus:
        # a GPU is shared by whole trials: of 0.4 of one, two fit
        shares = available.get("GPU", 0) * (int(1 / gpus) if gpus < 1 else 1 / gpus)
        room = min(room, shares / resources.max_workers)
    most = int(room + 1e-9)
    if most < 1 or (asked != "auto" and asked > most):
        wanted = 1 if asked == "auto" else asked
        raise ResourceError(
            f"{wanted} trial{'s' if wanted > 1 else ''} at a time with resources.workers = {resources.max_workers}, "
            f"cpus_per_worker = {cpus:g} and {gpus:g} GPUs a worker need more than the cluster's "
            f"{available.get('CPU', 0):g} CPUs and {available.get('GPU', 0):g} GPUs; use fewer workers, fewer "
            f"{by}.concurrent_trials, or a larger cluster"
        )
    concurrent = most if asked == "auto" else asked
    concurrent = min(concurrent, trials)
    threads = int(resources.cpus_per_worker or max(1, (os.cpu_count() or 1) // concurrent))
    return Slots(cpus, gpus, concurrent, threads)


def refuse_nodes_apart(storage: Path) -> None:
    """That trials of several nodes write where all of them are: each copy of a URL is one machine's.

    Raises:
        ResourceError: they would not.
    """
    nodes = sum(node["Alive"] for node in ray.nodes())
    if nodes > 1 and (url := url_of(storage)) is not None:
        raise ResourceError(
            f"storage = {url!r} holds the trials of one machine, and the cluster has {nodes} nodes: set storage to a "
            "folder that all of them mount, or search on one node"
        )


@dataclass
class Desk:
    """Where Tune's two questions, for a new trial and for a paused one, meet the director's one answer."""

    director: Director
    folder: Path  # of the search
    job: Job
    environment: dict[str, Any]  # of this machine, as each run folder has it
    measures_all: bool = False  # each trial in the end on the training rows and on the test set, too
    waiting: Trial | None = None  # to be run next
    of_tune: dict[int, Any] = field(default_factory=dict)  # Tune's trials by number

    def run_folder(self, trial: Trial) -> Path:
        """Of a trial."""
        return self.folder / TRIALS / f"{trial.number:04d}"

    def job_of(self, trial: Trial) -> Job:
        """The job that a trial is: the search's own with the trial's settings.

        Raises:
            JobError: settings that do not fit together.
        """
        job = self.job.with_settings(trial.settings)
        changes = tuple(ChangeSettings(after_epoch=c.after_epoch, settings=c.settings) for c in trial.changes)
        return job.model_copy(update={"name": f"{self.job.name}-{trial.number:04d}", "changes": changes})

    def next(self) -> Trial | None:
        """The trial to run, kept until one of Tune's questions can be answered with it; its run folder is there."""
        while self.waiting is None:
            trial = self.director.next()
            if trial is None:
                return None
            try:
                self._prepare(trial)
            except JobError as error:
                self.director.ended(trial, "failed", str(error))
                continue
            self.waiting = trial
        return self.waiting

    def config(self, trial: Trial) -> dict[str, Any]:
        """What the trial's actor is told."""
        job = self.job_of(trial).model_dump_json()
        counts = False
        if self.job.search is not None:
            counts = any(each.metric == "parameters" for each in self.job.search.all_objectives)
        told = {"folder": str(self.run_folder(trial)), "told": trial.epochs, "counts": counts}
        return {"number": trial.number, "job": job, "all": self.measures_all, **told}

    def _prepare(self, trial: Trial) -> None:
        run, job = self.run_folder(trial), self.job_of(trial)
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run / "job.yaml").write_text(job.to_yaml())
        write_json(run / "environment.json", self.environment | {"seed": job.optimization.seed})
        if trial.changes and trial.changes[-1].after_epoch == trial.epochs:
            self._take_over(run, trial)

    def _take_over(self, run: Path, trial: Trial) -> None:
        """The donor's newest checkpoint in place of the trial's own; linked, as checkpoints are never written to."""
        donor = self.run_folder(self.director.trials[int(str(trial.notes["donor"]))])
        source = donor / "checkpoints" / f"epoch-{trial.epochs:05d}"
        taken = run / "checkpoints" / source.name
        mark = f"{donor.name} {trial.epochs}"
        if (taken / "donor").exists() and (taken / "donor").read_text() == mark:
            return
        partial = run / "checkpoints" / "partial-donor"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial, copy_function=_link)
        (partial / "donor").unlink(missing_ok=True)
        (partial / "donor").write_text(mark)
        for old in (run / "checkpoints").glob("epoch-*"):
            shutil.rmtree(old)
        partial.rename(taken)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


class NewTrials(Searcher):  # type: ignore[misc]
    """Tune asks for a new trial."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self.desk, self.numbers = desk, dict[str, int]()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The director's next trial, if Tune does not hold it yet."""
        trial = self.desk.next()
        if self.desk.director.over:
            return str(Searcher.FINISHED)
        if trial is None or trial.number in self.desk.of_tune:
            return None
        self.desk.waiting = None
        self.numbers[trial_id] = trial.number
        return self.desk.config(trial)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tune gave up on a trial whose process died again and again."""
        trial = self.desk.director.trials[self.numbers[trial_id]]
        if error and not trial.ended:
            limit = self.desk.job.resources.max_failures
            self.desk.director.ended(
                trial, "failed", f"its process died more than resources.max_failures = {limit} times"
            )

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is what is restored from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""


class Decisions(TrialScheduler):  # type: ignore[misc]
    """Tune asks what becomes of a trial, and whether a paused one goes on."""

    def __init__(self, desk: Desk, slots: Slots) -> None:
        super().__init__()
        self.desk, self.slots = desk, slots
        self.keeps_actors = False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A new one, or one whose process died and that begins again from its checkpoint."""
        number = trial.config["number"]
        self.desk.of_tune[number] = trial
        ours = self.desk.director.trials[number]
        trial.config["told"] = ours.epochs
        controller = getattr(tune_controller, "_tune_controller", tune_controller)
        if ours.status != "running":  # it was to end or to pause, but its process died before it could
            controller._set_trial_status(trial, tune.experiment.trial.Trial.PAUSED)
        if not self.keeps_actors:
            # Tune ends an actor that no waiting trial is known for, and starting another costs seconds: as many are
            # kept as run at a time
            controller._actor_cache.increase_max(trial.placement_group_factory, self.slots.concurrent)
            self.keeps_actors = True

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Its process died; whether it begins again is Tune's to count."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """An epoch."""
        ours = self.desk.director.trials[trial.config["number"]]
        verdict = self.desk.director.reported(ours, json.loads(result["record"]), result["last"])
        if verdict.kind == "cut" and not result["last"]:
            return str(TrialScheduler.STOP)
        if verdict.kind == "pause":
            tune_controller.pause_trial(trial, should_checkpoint=False)
            return str(TrialScheduler.NOOP)
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """It came to its own end, if it was not ended here."""
        ours = self.desk.director.trials[trial.config["number"]]
        if not ours.ended:
            self.desk.director.ended(ours, result["status"], result["reason"])

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """It was paused, and the search is over."""

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The director's next trial, if it is one that Tune holds paused."""
        trial = self.desk.next()
        if self.desk.director.over:
            for held in self.desk.of_tune.values():
                if held.status == tune.experiment.trial.Trial.PAUSED:
                    tune_controller.stop_trial(held)
        if trial is None or trial.number not in self.desk.of_tune:
            return None
        self.desk.waiting = None
        held = self.desk.of_tune[trial.number]
        held.set_config(self.desk.config(trial))
        return held

    def debug_string(self) -> str:
        """Nothing: raynn says how the search goes."""
        return ""


def run_trials(desk: Desk, shared: SharedData, slots: Slots) -> None:
    """Runs the search to its end, on the Ray that is there.

    Raises:
        KeyboardInterrupt: Ctrl-C; everything is saved.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # By default Tune waits for one actor to be there before it asks for the next trial: seconds for each slot
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots.concurrent)
    for name in ("ray.tune", "ray.train", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # several workers hold their own resources; what drives them takes next to nothing
    many = desk.job.resources.max_workers > 1
    resources = {"CPU": 0, "memory": 1} if many else {"CPU": slots.cpus, "GPU": slots.gpus}
    room = FixedResourceManager({name: amount * slots.concurrent for name, amount in resources.items()})
    trainable = tune.with_parameters(TrialActor, shared=shared, threads=slots.threads)
    scratch = desk.folder / "scratch"
    on_interrupt = signal.getsignal(signal.SIGINT)
    tuner = tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory([resources])),
        tune_config=tune.TuneConfig(
            search_alg=NewTrials(desk),
            scheduler=Decisions(desk, slots),
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=lambda trial: f"{trial.config['number']:04d}",
            trial_dirname_creator=lambda trial: f"{trial.config['number']:04d}",
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=desk.job.resources.max_failures),
        ),
    )
    try:
        # An actor asks for its own room. By default Tune asks for a placement group first, also for trials that it then
        # runs in an actor that has become free, and removes it at once: where Ray 2.60 is just placing it, its room
        # stays taken for as long as the cluster lives.
        with patch.object(controllers, "PlacementGroupResourceManager", lambda: room):
            tuner.fit()
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, on_interrupt)
    if not desk.director.over:
        raise KeyboardInterrupt
