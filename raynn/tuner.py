"""Many jobs: a search, from its job file to the model it ends with."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from raynn import progress
from raynn.batches import TrainingShard
from raynn.cache import RememberingDriver
from raynn.checkpoint import load_newest
from raynn.cluster import cluster
from raynn.collectives import Workers, gpu_names
from raynn.data import RayDriver, fetch
from raynn.desk import Desk, Slots, refuse_nodes_apart, run_trials, slots_for
from raynn.director import Director, Limits, Repeats
from raynn.drivers import Driver
from raynn.encoded import itself
from raynn.errors import JobError, RunError, TrainingError
from raynn.estimate import Pace, estimate, expected_epochs, seconds_left
from raynn.folder import WINNER, describe, read_result, write_json
from raynn.job import NOT_THE_RESULT, Job, refuse_changes
from raynn.lanes import Lanes
from raynn.ledger import FILE, Ledger, Trial, Values, value_at
from raynn.loop import TrainingState, evaluate_shard, train_epochs
from raynn.objectives import with_split
from raynn.outcome import best_epoch, best_job_text, counts, metrics_of, repeated, trials_table, winner, write_trials
from raynn.pareto import pareto_front
from raynn.placement import place_shards
from raynn.preparation import Prepared, located, split_summary
from raynn.preprocessing import Preprocessing
from raynn.progress import ProgressLine, ProgressWriter
from raynn.race import Race
from raynn.report import conclude
from raynn.schedulers import scheduler_of, written_out
from raynn.shards import build_shard
from raynn.splits import TEST
from raynn.storage import address_of, claim, kept, local_run, newest, open_storage
from raynn.suggestions import suggest
from raynn.tasks import build_model, checked, prepare_job, understand_job
from raynn.tracking import Mirroring, TrackingSettings, check_tracking
from raynn.trainer import require_cluster, train
from raynn.training import Shards, save_model
from raynn.trial import SharedData, preparation_key
from raynn.warm_start import earlier_trials

PROBE_STEPS = 8


def tune(job: Job, folder: Path | None = None, *, quiet: bool = True, started_at: float | None = None) -> Path:
    """Runs the search of a job to its end and returns its folder: trials, the winner's model, its test metrics.

    Args:
        job: with a `search`. With `resume` the newest search of its name is continued, or extended by more trials.
        folder: where relative sources are looked for besides the current folder; the job file's own.
        quiet: no progress line, no word on standard error.
        started_at: Unix time [s] that `seconds` counts from; now by default.

    Raises:
        UserError: the job, its data or its resources need mending.
        TrainingError: more trials failed than `search.max_failed_trials`, or all of them.
    """
    started_at = started_at or time.time()
    if job.search is None:
        raise JobError(
            "the job has no `search` section: say what to vary, for instance search: {space: regularization}"
        )
    storage = open_storage(job.storage)
    check_tracking(job.tracking)
    job = job.model_copy(update={"data": located(job.data, folder or Path())})
    assert job.search is not None
    resumed = _resumed(job, storage) if job.resume else None
    understood = understand_job(job, folder or Path())
    concurrent, num_trials = job.search.concurrent_trials, job.search.trials
    at_least = concurrent if concurrent != "auto" else 1
    with cluster(job.resources.logical_cpus * at_least):
        refuse_nodes_apart(storage)
        require_cluster(job, storage, understood, at_least, quiet=quiet)
        driver: Driver = RayDriver() if job.resources.max_workers > 1 else RememberingDriver()
        prepared = prepare_job(job, understood, driver)
        job = checked(job.model_copy(update={"task": prepared.task}), prepared)
        slots = slots_for(job.resources, concurrent, num_trials)
        search = resumed or claim(storage, job.name)
        if not quiet:
            _say(f"{split_summary(prepared)}; {prepared.task}: {prepared.task_reason}")
            _say(f"search folder {address_of(search)}; {slots.concurrent} trials at a time")
        with kept(search):
            return _Search(job, search, prepared, slots, started_at, quiet).run()


@dataclass
class _Search:
    """One session's work on a search."""

    job: Job
    folder: Path
    prepared: Prepared
    slots: Slots
    started_at: float
    quiet: bool

    def __post_init__(self) -> None:
        here = describe(
            self.folder, self.job.to_yaml(), self.job.optimization.seed, gpu_names(), self.prepared.bad_rows
        )
        assert self.job.search is not None
        self.settings = self.job.search
        self.ledger = Ledger(self.folder / FILE)
        self.shards = self._shards()
        kinds = {spec.kind for spec in self.prepared.preprocessing.features}
        any_length = self.prepared.preprocessing.input_spec.any_length
        self.director = director_of(self.job, self.ledger, self.slots, kinds, any_length)
        self.desk = Desk(self.director, self.folder, self.job, here)

    def run(self) -> Path:
        """From wherever the search stands to its end."""
        (self.folder / "result.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder / "scratch", ignore_errors=True)
        self.ledger.begin_session()
        with Mirroring(self.folder, self.job.tracking):
            self.pace = self._probed()
            try:
                with ProgressWriter(self.folder, self._progress), ProgressLine(self.folder, quiet=self.quiet):
                    run_trials(self.desk, self._shared(), self.slots)
            finally:
                shutil.rmtree(self.folder / "scratch", ignore_errors=True)
                (self.folder / progress.FILE).unlink(missing_ok=True)
                self._write_trials()
            return self._concluded()

    def _shards(self) -> Shards | None:
        """Training and validation rows for trials of one worker, placed once for all of them."""
        if self.job.resources.max_workers > 1:
            return None
        scratch = self.folder / "scratch" / "shared"
        return place_shards(self.prepared.encoded, itself, self.job, Workers(), 1, scratch, tests=False)

    def _shared(self) -> SharedData:
        """The prepared data, in Ray's object store: a node that runs trials holds them once."""
        return SharedData.of(self.job, self.prepared, self.shards)

    def _probed(self) -> Pace:
        """What an epoch takes, tried for a few steps here with the job's own settings; how long that makes the search
        is said, and noted in the ledger.
        """
        scheduler, max_epochs = written_out(self.settings.scheduler), self.job.optimization.max_epochs
        grace = getattr(scheduler, "grace_period", 1)
        epochs = expected_epochs(max_epochs, scheduler.kind, grace, getattr(scheduler, "reduction_factor", 3))
        noted = self.ledger.facts.get("epoch_s")
        if isinstance(noted, float):
            return Pace(noted, epochs)
        if self.shards is None:
            return Pace(math.nan, epochs)  # groups of workers: known once the first has trained an epoch
        torch.set_num_threads(self.slots.threads)
        pace = Pace(probe(self.job, self.prepared.preprocessing, self.shards), epochs)
        devices = self.director.limits.devices_per_trial
        found = estimate(pace, self.settings.trials, self.slots.concurrent, devices, self._num_repeats, max_epochs)
        self.ledger.note(epoch_s=pace.epoch_s, estimate_s=found.total_s, estimate_device_hours=found.device_hours)
        if not self.quiet:
            _say(f"estimate for {self.settings.trials} trials, {self.slots.concurrent} at a time: {found}")
        return pace

    @property
    def _num_repeats(self) -> int:
        return self.director.repeats.top * len(self.director.repeats.seeds)

    def _progress(self) -> dict[str, Any]:
        """What the progress line shows."""
        trials = list(self.ledger.trials)
        best = self.director.ranked(trials)[:1]
        max_epochs, concurrent = self.job.optimization.max_epochs, self.slots.concurrent
        left = seconds_left(self.ledger, self.pace, self.settings.trials, concurrent, max_epochs, self._num_repeats)
        if self.director.limits.time_s is not None:
            left = min(left, max(0.0, self.director.limits.time_s - self.ledger.seconds))
        return {
            "search": counts(trials),
            "trials_done": sum(trial.ended for trial in trials),
            "trials": max(self.settings.trials + self._num_repeats, len(trials)),
            "metric": self.director.metric,
            "best": value_at(best[0], best[0].epochs, self.director.metric, self.director.direction) if best else None,
            "best_trial": best[0].number if best else None,
            "seconds_left": None if math.isnan(left) else left,
        }

    def _write_trials(self) -> None:
        director = self.director
        folders = {t.number: str(self.desk.run_folder(t).relative_to(self.folder)) for t in self.ledger.trials}
        if self.ledger.trials:
            table = trials_table(self.ledger.trials, director.metric, director.direction, folders)
            write_trials(self.folder / "trials.parquet", table)

    def _concluded(self) -> Path:
        """The winner's model, looked at once on the test set; result.json."""
        director, trials = self.director, self.ledger.trials
        for trial in trials:
            self._leave_model(trial)
        ranked = director.ranked()
        repeats = repeated(trials, ranked, director.metric, director.direction)
        best = winner(ranked, repeats)
        result: dict[str, Any] = {
            "name": self.folder.name,
            "status": "finished",
            "stop_reason": self.ledger.facts.get("stop_reason"),
            "trials": counts(trials),
            "metric": director.metric,
            "seconds": round(self.ledger.seconds, 3),
            "device_hours": round(self.ledger.busy_seconds * director.limits.devices_per_trial / 3600, 6),
            "estimate": {
                "seconds_at_start": self.ledger.facts.get("estimate_s"),
                "device_hours_at_start": self.ledger.facts.get("estimate_device_hours"),
                "seconds_true": round(self.ledger.seconds, 3),
            },
            "repeats": repeats,
        }
        num_failed = sum(trial.status == "failed" for trial in trials)
        if best is None or num_failed > director.limits.failed_trials:
            reason = next((trial.reason for trial in trials if trial.status == "failed"), "no trial has a value")
            problem = f"{num_failed} of {len(trials)} trials failed, the first: {reason}"
            write_json(self.folder / "result.json", result | {"status": "failed", "stop_reason": problem})
            raise TrainingError(f"{problem}; {self.folder / 'trials.parquet'} holds them all")
        objectives = self.settings.all_objectives
        if len(objectives) > 1:
            result["objectives"] = [{"metric": each.metric, "direction": each.direction} for each in objectives]
            result["pareto_front"] = [trial.number for trial in pareto_front(director.searched, objectives)]
        run = self.desk.run_folder(best)
        metrics = metrics_of(best, director.metric, director.direction)
        if self.settings.winner == "retrained":
            run, tested = self._retrained(best)
        else:
            tested = self._tested(best, run)
        result["best"] = {
            "number": best.number,
            "settings": best.settings_now,
            "changes": [{"after_epoch": c.after_epoch, "settings": c.settings} for c in best.changes],
            "metrics": metrics | tested,
            "run": str(run.relative_to(self.folder)),
        }
        result |= {"metrics": metrics | tested, "model": "model"}
        shutil.rmtree(self.folder / "model", ignore_errors=True)
        shutil.copytree(run / "model", self.folder / "model")
        job = self.desk.job_of(best).model_copy(update={"storage": self.job.storage})
        about = self._about(best, result)
        (self.folder / "job.best.yaml").write_text(best_job_text(job, about))
        write_json(self.folder / "result.json", result)
        if self.job.report:
            conclude(self.folder, (lambda text: None) if self.quiet else _say)
        return self.folder

    def _retrained(self, best: Trial) -> tuple[Path, dict[str, float]]:
        """The winner trained once more, on training and validation rows together for the length that it has found."""
        job = self.desk.job_of(best).model_copy(
            update={"name": WINNER, "storage": str(self.folder), "refit": True, "resume": False}
            | {"tracking": TrackingSettings()}  # the search's own mirrors show it, in the search's group
        )
        if (self.folder / WINNER).exists():
            shutil.rmtree(self.folder / WINNER)
        run = train(job, quiet=self.quiet)
        metrics = read_result(run)["metrics"]
        return run, {key: value for key, value in metrics.items() if key.startswith("test/")}

    def _about(self, best: Trial, result: dict[str, Any]) -> str:
        shown = ", ".join(f"{key} {value:.6g}" for key, value in result["metrics"].items())
        found = "\n".join(f"  {name}: {value}" for name, value in best.settings_now.items())
        return f"Found by {self.folder.name}, trial {best.number} of {len(self.ledger.trials)}: {shown}\n{found}"

    def _leave_model(self, trial: Trial) -> None:
        """Model and result.json of a trial ended from outside: its best weights so far are in its checkpoint."""
        run, director = self.desk.run_folder(trial), self.director
        if not trial.ended or (trial.status in ("finished", "stopped_early") and (run / "result.json").exists()):
            return
        if not (run / "job.yaml").exists():  # its settings did not fit together
            return
        epoch = best_epoch(trial, director.metric, director.direction)
        saved, _ = load_newest(run / "checkpoints") if epoch else (None, [])
        if saved is not None and not (run / "model" / "weights.safetensors").exists():
            preprocessing = self._prepared_for(trial).preprocessing
            save_model(run / "model", self.desk.job_of(trial), preprocessing.to_json(), saved["best_weights"])
        result = {
            "name": run.name,
            "status": trial.status,
            "stop_reason": trial.reason,
            "best_epoch": epoch,
            "epochs": trial.epochs,
            "metrics": metrics_of(trial, director.metric, director.direction),
            "model": "model" if saved is not None else None,
        }
        write_json(run / "result.json", result)

    def _prepared_for(self, trial: Trial) -> Prepared:
        """The data as the trial saw them."""
        job = self.desk.job_of(trial)
        if preparation_key(job) == preparation_key(self.job):
            return self.prepared
        return prepare_job(job, understand_job(job, Path()), RememberingDriver())

    def _tested(self, best: Trial, run: Path) -> dict[str, float]:
        """The winner's metrics on the test set; none where the job has no test set."""
        prepared, job = self._prepared_for(best), self.desk.job_of(best)
        rows = prepared.encoded.num_rows(TEST)
        if not rows:
            return {}
        model = build_model(job, prepared.preprocessing)
        model.load_state_dict(load_file(run / "model" / "weights.safetensors"))
        fetch_block = fetch if self.shards is None and prepared is self.prepared else itself
        shard = build_shard(
            prepared.encoded.pieces(TEST, 0, rows, fetch_block),
            0,
            rows,
            folder=self.folder / "scratch" / "test",
            device=torch.device("cpu"),
        )
        test = with_split("test", evaluate_shard(job, prepared.preprocessing.input_spec, model, shard, Workers()))
        shutil.rmtree(self.folder / "scratch", ignore_errors=True)
        result = read_result(run)
        write_json(run / "result.json", result | {"metrics": result["metrics"] | test})
        return test


def director_of(
    job: Job, ledger: Ledger, slots: Slots, columns: Collection[str] | None = None, any_length: bool = False
) -> Director:
    """Who decides: the algorithm and the scheduler that the job asks for, within its budget.

    Args:
        columns: kinds of the features.
        any_length: sequences among them differ in length.

    Raises:
        JobError: a scheduler that would never act.
        RunError: `search.warm_start` names no search that says something.
    """
    settings = job.search
    assert settings is not None
    space = job.space(columns, any_length)
    earlier = earlier_trials(local_run(settings.warm_start), space, settings) if settings.warm_start else []
    race = Race(settings.metric, settings.direction, job.optimization.max_epochs)
    devices = (slots.gpus or slots.cpus) * job.resources.max_workers
    budget, first = settings.budget, job.optimization.seed + 1

    def allowed(values: Values) -> bool:
        return space.broken(space.settled(values)) is None

    return Director(
        ledger,
        lambda number, trials: suggest(space, settings, number, trials, earlier),
        scheduler_of(settings.scheduler, race, settings.trials, settings.seed, space.axes, allowed),
        Limits(
            trials=settings.trials,
            failed_trials=settings.max_failed_trials,
            concurrent=slots.concurrent,
            time_s=budget.time_s,
            device_seconds=None if budget.device_hours is None else 3600 * budget.device_hours,
            devices_per_trial=devices,
            target=budget.target,
        ),
        settings.metric,
        settings.direction,
        Repeats(settings.repeats.top, tuple(range(first, first + settings.repeats.seeds))),
        space.settled,
    )


def probe(job: Job, preprocessing: Preprocessing, shards: Shards) -> float:
    """Seconds of one epoch, from a few steps: training, and a validation that computes forward alone.

    The first of two short epochs warms up and is not counted.
    """
    optimization, whole = job.optimization, shards.train.shard
    rows = min(whole.num_rows, optimization.global_batch_size * PROBE_STEPS)
    part = TrainingShard(whole.first(rows), Lanes(rows, optimization.global_batch_size, optimization.seed))
    looked_at = shards.validation.first(min(shards.validation.num_rows, rows))
    job = job.model_copy(update={"optimization": optimization.model_copy(update={"max_epochs": 2}), "changes": ()})
    state = TrainingState.fresh(job, build_model(job, preprocessing))
    inputs, marks = preprocessing.input_spec, [time.perf_counter()]
    for _ in train_epochs(job, inputs, state, part, looked_at, Workers()):
        marks.append(time.perf_counter())
    training = state.history[-1]["seconds"]
    validation = marks[-1] - marks[-2] - training
    return training * whole.num_rows / rows + validation * shards.validation.num_rows / looked_at.num_rows


def _resumed(job: Job, storage: Path) -> Path:
    """The search to continue.

    Raises:
        RunError: there is none, or the job has changed in more than the number of trials and the budget.
    """
    search = newest(storage, job.name)
    if not (search / FILE).exists():
        raise RunError(f"resume = true, but {address_of(search)} holds no search; run without resume=true to start one")
    may_differ = tuple(f"search.{key}" for key in ("trials", "budget", "max_failed_trials", "concurrent_trials"))
    may_differ = (*(key for key in NOT_THE_RESULT if key != "search"), *may_differ, "search.repeats", "search.winner")
    refuse_changes(job, search, may_differ, "search")
    return search


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
