"""One run on one worker, whoever started it: build, resume, train, keep checkpoints, test once, leave the model.

In this process, in a Ray Train worker and in a Tune trial it is the same generator.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from raynn.allocator import keep_freed_memory
from raynn.batches import TrainingShard
from raynn.checkpoint import load_newest, save_checkpoint, save_tensors
from raynn.collectives import Workers
from raynn.errors import TrainingError
from raynn.folder import NORMS, write_json
from raynn.job import Job
from raynn.loop import Record, TrainingState, evaluate_shard, train_epochs
from raynn.memory import require_within
from raynn.norms import norm_records
from raynn.objectives import with_split
from raynn.preprocessing import Preprocessing
from raynn.progress import ProgressWriter
from raynn.refit import Refit
from raynn.sharding import gathered
from raynn.shards import Shard
from raynn.tasks import build_model
from raynn.tracking import Tracker


@dataclass(frozen=True)
class Assignment:
    """What every worker of a run is told: plain values, sent from the driver."""

    job_json: str
    preprocessing_json: str
    folder: str
    started_at: float  # Unix time of the command, s
    told: int | None = None  # epochs that whoever asked has seen of this run; those trained beyond are yielded again
    tests: bool = True  # whether the test set is looked at in the end
    url: str | None = None  # where the run folder is kept, if that is at a URL; `folder` is then its copy on the driver
    measures_train: bool = False  # whether the training rows are, as others are: all of them, no regularizer at work

    @property
    def job(self) -> Job:
        """The job, its task resolved."""
        return Job.model_validate_json(self.job_json)

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing, fitted."""
        return Preprocessing.from_json(self.preprocessing_json)


@dataclass(frozen=True)
class Shards:
    """A worker's rows of each split; `test` is None where the job has no test set."""

    train: TrainingShard
    validation: Shard
    test: Shard | None


def run_training(
    assignment: Assignment, shards: Shards, workers: Workers, place_refit: Callable[[], Shards] | None = None
) -> Iterator[Record]:
    """Trains to the end, from the newest whole checkpoint if there is one; yields each epoch's record once it is saved.

    The first worker alone writes into the run folder. At the end: best weights, test metrics, model/, result.json.

    With `place_refit`, which gives this worker's rows of training and validation together, a second training follows
    for the length that the first has found, from the initial weights (`refit`). Its weights are those of model/: they
    have seen the most rows, and the test metrics, looked at once, are theirs. model-validated/ keeps the first's, whose
    the validation metrics are.

    Raises:
        TrainingError: a loss that is not finite; the message names the last good checkpoint.
        ResourceError: it would hold more than `resources.worker_memory_gib`.
    """
    if workers.device.type == "cpu":
        keep_freed_memory()
    job, folder = assignment.job, Path(assignment.folder)
    checkpoints = folder / "checkpoints"
    state = _resumed(job, assignment.preprocessing, workers, checkpoints)
    require_within(job, state, shards.train, workers)
    yield from state.history[assignment.told :] if assignment.told is not None else ()
    writes = workers.rank == 0
    tracker = Tracker(folder, state.history) if writes else None
    state = yield from _trained(assignment, job, state, shards, workers, tracker, checkpoints)
    state.model.load_state_dict(state.best_weights)
    best = gathered(state.model.state_dict(), workers)
    result = _result(assignment, state, workers)
    if assignment.measures_train:
        inputs = assignment.preprocessing.input_spec
        result["train"] = evaluate_shard(job, inputs, state.model, shards.train.shard, workers)
    if place_refit is not None:
        if tracker:
            save_model(folder / "model-validated", assignment.job, assignment.preprocessing_json, best)
        assert state.decision is not None
        refit = Refit.found(job, state.history, state.decision)
        del shards, state, best  # their memory is needed
        shards, checkpoints = place_refit(), folder / "checkpoints" / "refit"
        job = refit.job(job, shards.train.lanes.steps_per_epoch)
        state = _resumed(job, assignment.preprocessing, workers, checkpoints)
        figures = Tracker(folder, state.history, "refit.jsonl") if writes else None
        state = yield from _trained(assignment, job, state, shards, workers, figures, checkpoints, refit)
        state.model.load_state_dict(state.evaluated.state_dict())
        best = gathered(state.model.state_dict(), workers)
        result["refit"] = _refit_result(state)
    if shards.test is not None:
        test = evaluate_shard(job, assignment.preprocessing.input_spec, state.model, shards.test, workers)
        result["metrics"] |= with_split("test", test)
    if tracker:
        result["seconds"] = round(time.time() - assignment.started_at, 3)
        if "refit" in result:
            result["refit"]["metrics"] |= {k: v for k, v in result["metrics"].items() if k.startswith("test/")}
        try:
            save_model(folder / "model", assignment.job, assignment.preprocessing_json, best)
            write_json(folder / "result.json", result)
        except OSError as error:
            raise _not_saved(folder, error) from error


def _resumed(job: Job, preprocessing: Preprocessing, workers: Workers, checkpoints: Path) -> TrainingState:
    """The state in the newest whole checkpoint, or the one before the first step."""
    saved, _ = load_newest(checkpoints)
    return _state(job.after(len(saved["history"]) if saved else 0), preprocessing, workers, saved)


def _state(
    job: Job,
    preprocessing: Preprocessing,
    workers: Workers,
    saved: dict[str, Any] | None,
    first_step_at: float | None = None,
) -> TrainingState:
    """The state to train on from: what was saved, under the settings in force now."""
    state = TrainingState.fresh(job, build_model(job, preprocessing), workers)
    state.first_step_at = first_step_at
    if saved is not None:
        state.restore(saved)
    return state


def _trained(
    assignment: Assignment,
    job: Job,
    state: TrainingState,
    shards: Shards,
    workers: Workers,
    tracker: Tracker | None,
    checkpoints: Path,
    refit: Refit | None = None,
) -> Generator[Record, None, TrainingState]:
    """Trains to the end, under the settings in force at each epoch; yields each record once it is saved, by the worker
    that has a tracker. Returns the state at the end.
    """
    preprocessing = assignment.preprocessing
    inputs = preprocessing.input_spec
    clock = _Clock(time.perf_counter(), len(state.history))
    norms = None
    if tracker and refit is None:
        norms = Tracker(Path(assignment.folder), norm_records(state.model, state.history, state.norms_E2L), NORMS)

    def progress() -> dict[str, Any]:
        return _progress(job, state, shards.train, clock, refit)

    try:
        with ProgressWriter(Path(assignment.folder), progress) if tracker else nullcontext():
            for until in [*(change.after_epoch for change in job.changes), job.optimization.max_epochs]:
                now = job.after(len(state.history))
                for record in train_epochs(now, inputs, state, shards.train, shards.validation, workers, until, refit):
                    kept = gathered(state.to_dict(), workers)
                    problem = _saved(job, state, kept, record, checkpoints, tracker, norms) if tracker else None
                    del kept
                    if workers.any(problem is not None):  # all end, or the others would wait for the first
                        raise _not_saved(Path(assignment.folder), problem)
                    yield record
                if len(state.history) == until < job.optimization.max_epochs:
                    state = _state(job.after(until), preprocessing, workers, state.to_dict(), state.first_step_at)
    except TrainingError as error:
        good = sorted(checkpoints.glob("epoch-*"))
        hint = f"; the last good checkpoint is {good[-1]}" if good else ""
        raise TrainingError(f"{error}{hint}") from None
    return state


def _saved(
    job: Job,
    state: TrainingState,
    kept: dict[str, Any],
    record: Record,
    checkpoints: Path,
    tracker: Tracker,
    norms: Tracker | None,
) -> OSError | None:
    """Saves an epoch, `kept` as its checkpoint; what was wrong, if anything."""
    try:
        monitor = job.early_stopping.monitor
        save_checkpoint(checkpoints, len(state.history), kept, job.checkpoints, monitor)
        if norms:  # before the metrics, so that who reads both finds both
            norms.write(norm_records(state.model, [record], state.norms_E2L[-1:])[0])
        tracker.write(record)
    except OSError as error:
        return error
    return None


def _not_saved(folder: Path, problem: OSError | None) -> TrainingError:
    """A disk that is full stays full: training on without checkpoints would lose more than it gains."""
    return TrainingError(f"{folder} cannot be written ({problem}); make room there, then train on with resume=true")


@dataclass(frozen=True)
class _Clock:
    started: float  # perf_counter, s
    epochs_before: int


def _progress(
    job: Job, state: TrainingState, train: TrainingShard, clock: _Clock, refit: Refit | None
) -> dict[str, Any]:
    """What the progress line shows."""
    steps = train.lanes.steps_per_epoch
    last = state.history[-1] if state.history else {}
    monitor = job.early_stopping.monitor
    within = state.step_of_epoch
    shown = {
        key: last[key] for key in dict.fromkeys(["train/loss", "val/loss", "val/accuracy", monitor]) if key in last
    }
    rate = last.get("examples_per_second")
    if within:
        share = within / steps
        shown = {"loss": float(state.losses[:within].sum()) / (train.shard.num_rows * share)} | shown
        rate = train.lanes.num_rows * share / (time.perf_counter() - state.epoch_started)
    return {
        "epochs_done": len(state.history),
        "max_epochs": -(-refit.num_steps // steps) if refit else job.optimization.max_epochs,
        "refit": refit is not None,
        "step": within,
        "steps_per_epoch": steps,
        "steps_before": clock.epochs_before * steps,
        "training_s": time.perf_counter() - clock.started,
        "metrics": shown,
        "examples_per_second": rate,
    }


def _result(assignment: Assignment, state: TrainingState, workers: Workers) -> dict[str, Any]:
    """result.json of the contract, but for the test metrics and the time at the end."""
    decision = state.decision
    assert decision is not None
    best = state.history[decision.best_epoch - 1]
    speeds = [record["examples_per_second"] for record in state.history]
    # the first epoch holds the first step, which pays for warming up; with one epoch there is no other
    steady = speeds[1:] or speeds
    first_step = state.first_step_at - assignment.started_at if state.first_step_at else None
    # only where the job asks for reductions: why each was made
    reactions = [f"{reaction.reason}: the learning rate reduced" for reaction in decision.reactions]
    return {
        "name": Path(assignment.folder).name,
        "status": "stopped_early" if decision.stop else "finished",
        "stop_reason": decision.reason or f"max_epochs = {assignment.job.optimization.max_epochs} reached",
        "best_epoch": decision.best_epoch,
        "epochs": len(state.history),
        "metrics": {key: value for key, value in best.items() if "/" in key},
        "parameters": sum(p.numel() for p in state.model.parameters()),
        "workers": workers.count,
        "seconds": 0.0,
        "seconds_to_first_step": round(first_step, 3) if first_step else None,
        "examples_per_second": round(len(steady) / sum(1 / speed for speed in steady), 1),
        "model": "model",
        **({"reactions": reactions} if assignment.job.early_stopping.reductions else {}),
    }


def _refit_result(state: TrainingState) -> dict[str, Any]:
    """What result.json says of the second training; its validated sibling is beside it."""
    last = state.history[-1]
    return {
        "steps": int(last["step"]),
        "epochs": len(state.history),
        "metrics": {key: value for key, value in last.items() if "/" in key},
        "model": "model",
        "validated": "model-validated",
    }


def save_model(folder: Path, job: Job, preprocessing_json: str, weights: dict[str, Tensor]) -> None:
    """All that predict needs: weights, preprocessing, job. No pickle."""
    folder.mkdir(exist_ok=True)
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_tensors(kept, folder / "weights.safetensors")
    (folder / "preprocessing.json").write_text(preprocessing_json)
    (folder / "job.yaml").write_text(job.to_yaml())
