"""One job, trained: in this process, or by Ray Train's workers."""

from __future__ import annotations

import math
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from raynn import progress
from raynn.capacity import Room, await_room
from raynn.checkpoint import load_newest
from raynn.cluster import cluster
from raynn.collectives import gpu_names
from raynn.encoded import Encoded, itself
from raynn.errors import ResourceError, RunError, TrainingError
from raynn.folder import describe, write_json
from raynn.fragments import open_file_system
from raynn.hosts import (
    Preparing,
    asked_workers,
    begun_early,
    into_store,
    preparing_here,
    preparing_on_ray,
    uses_ray,
)
from raynn.job import NOT_THE_RESULT, Job, refuse_changes
from raynn.nodes import require_shared
from raynn.preparation import Prepared, Understood, located, split_summary
from raynn.progress import ProgressLine
from raynn.remote import join_url
from raynn.report import conclude
from raynn.storage import Kept, address_of, claim, kept, newest, open_storage, url_of
from raynn.tasks import checked, prepare_job, understand_job
from raynn.tracking import Mirroring, check_tracking
from raynn.training import Assignment, Shards, run_training

CONTROLLER_FAILURE_LIMIT = 3


def train(job: Job, folder: Path | None = None, *, quiet: bool = True, started_at: float | None = None) -> Path:
    """Trains a job to the end and returns its run folder.

    Args:
        job: what to train. With `resume` the newest run of its name is continued.
        folder: where relative sources are looked for besides the current folder; the job file's own.
        quiet: no progress line, no word on standard error.
        started_at: Unix time [s] that `seconds_to_first_step` counts from; now by default.

    Raises:
        UserError: the job, its data or its resources need mending.
        TrainingError: training failed; result.json of the run says how.
    """
    started_at = started_at or time.time()
    storage = open_storage(job.storage)
    check_tracking(job.tracking)
    job = job.model_copy(update={"data": located(job.data, folder or Path())})
    resumed = _resumed_run(job, storage) if job.resume else None
    understood = understand_job(job, folder or Path())
    place = resumed or storage
    if not uses_ray(job):
        return _train(job, understood, preparing_here(job, understood), _run_here, place, started_at, quiet)
    with begun_early(job, understood) as early, cluster(job.resources.logical_cpus, job.resources.object_store_gib):
        require_cluster(job, storage, understood, quiet=quiet)
        preparing = early or preparing_on_ray(job, understood)
        return _train(job, understood, preparing, _run_on_ray, place, started_at, quiet)


def require_cluster(job: Job, storage: Path, understood: Understood, trials: int = 1, *, quiet: bool = True) -> None:
    """Before data are prepared on a cluster: there is room for the workers of so many trials at a time, which an
    autoscaler may first have to make, and all nodes see the data and the storage.

    Raises:
        ResourceError: no such room, or a node that does not see them.
    """
    import ray

    room = Room.of(job.resources, ray.cluster_resources(), trials)
    await_room(room, job.resources.wait_s, (lambda text: None) if quiet else _say)
    files: dict[str, list[str]] = {}
    for fragment, role in zip(understood.fragments, understood.roles, strict=True):
        if not fragment.file_system and fragment.format != "catalog":
            files.setdefault(("train", "validation", "test")[role], []).append(fragment.path)
    # what is at a URL is where every node is
    require_shared(None if url_of(storage) else storage, {key: sorted(set(paths)) for key, paths in files.items()})


def _train(
    job: Job,
    understood: Understood,
    preparing: Preparing,
    run_training_on: Callable[[Assignment, Prepared, Kept], None],
    place: Path,
    started_at: float,
    quiet: bool,
) -> Path:
    """Prepares the data, claims the run folder (or continues in `place`, if that is one) and trains."""
    from raynn.placement import require_scratch

    if preparing.told and not quiet:
        _say(preparing.told)
    prepared = preparing.prepared() if preparing.prepared else prepare_job(job, understood, preparing.driver)
    job = checked(job.model_copy(update={"task": prepared.task}), prepared)
    residence = require_scratch(prepared.encoded, preparing.fetch, job, place)
    run = place if job.resume else claim(place, job.name)
    if not quiet:
        _say(f"{split_summary(prepared)}; {prepared.task}: {prepared.task_reason}")
        _say(str(residence))
        for note in prepared.notes:
            _say(note)
        _say(f"run folder {address_of(run)}")
    with kept(run) as keeping:
        _train_in(run, job, prepared, run_training_on, keeping, started_at, quiet)
    return run


def _train_in(
    run: Path,
    job: Job,
    prepared: Prepared,
    run_training_on: Callable[[Assignment, Prepared, Kept], None],
    keeping: Kept,
    started_at: float,
    quiet: bool,
) -> None:
    """Trains in a run folder, from whatever is there."""
    for checkpoints in (run / "checkpoints", run / "checkpoints" / "refit"):
        for problem in load_newest(checkpoints)[1]:
            _say(f"damaged, so the checkpoint before it is taken: {problem}")
    shutil.rmtree(run / "scratch", ignore_errors=True)  # of a driver that was killed
    (run / "result.json").unlink(missing_ok=True)  # of an attempt that failed
    describe(run, job.to_yaml(), job.optimization.seed, gpu_names(), prepared.bad_rows)
    assignment = Assignment(job.model_dump_json(), prepared.preprocessing.to_json(), str(run), started_at)
    with Mirroring(run, job.tracking):
        try:
            with ProgressLine(run, quiet=quiet):
                run_training_on(assignment, prepared, keeping)
        except Exception as error:
            with suppress(OSError):  # where the disk is full, the error above says so
                write_json(run / "result.json", _failed(run, str(error)))
                _leave_report(job, run, quiet)
            raise
        finally:
            shutil.rmtree(run / "scratch", ignore_errors=True)
            (run / progress.FILE).unlink(missing_ok=True)
        _leave_report(job, run, quiet)


def _leave_report(job: Job, run: Path, quiet: bool) -> None:
    """After result.json, so that a run is whole without it."""
    if job.report:
        conclude(run, (lambda text: None) if quiet else _say)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _resumed_run(job: Job, storage: Path) -> Path:
    """The run folder to continue.

    Raises:
        RunError: there is none, it has ended, or the job has changed in what decides the result.
    """
    run = newest(storage, job.name)
    if not (run / "job.yaml").exists():
        return run
    refuse_changes(job, run, NOT_THE_RESULT)
    ended = run / "result.json"
    if ended.exists() and '"failed"' not in ended.read_text():
        name = address_of(run)
        raise RunError(f"{name} has ended: nothing to resume; `raynn predict {name} DATA --out FILE.parquet` uses it")
    return run


def _failed(run: Path, reason: str) -> dict[str, Any]:
    saved, _ = load_newest(run / "checkpoints")
    history = saved["history"] if saved else []
    metrics = {key: value for key, value in history[-1].items() if "/" in key} if history else {}
    return {"name": run.name, "status": "failed", "stop_reason": reason, "epochs": len(history), "metrics": metrics}


def _run_here(assignment: Assignment, prepared: Prepared, keeping: Kept) -> None:
    """Local single-node mode: one worker in this process, Ray is not even imported."""
    import torch

    from raynn.collectives import Workers
    from raynn.placement import place_shards, scratch_of

    wants_gpu = assignment.job.resources.gpus_per_worker != 0
    device = torch.device("cuda" if wants_gpu and torch.cuda.is_available() else "cpu")
    if assignment.job.resources.cpus_per_worker:
        torch.set_num_threads(assignment.job.resources.cpus_per_worker)
    workers = Workers(device=device)
    scratch = scratch_of(assignment.job, Path(assignment.folder))

    def place(encoded: Encoded, name: str = "") -> Shards:
        return place_shards(encoded, itself, assignment.job, workers, 1, scratch / name)

    again = prepared.refit
    place_refit = None if again is None else partial(place, again, "refit")
    try:
        for _ in run_training(assignment, place(prepared.encoded), workers, place_refit):
            pass
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run_on_ray(assignment: Assignment, prepared: Prepared, keeping: Kept) -> None:
    prepared = into_store(prepared)
    with keeping.lent():
        fit_workers(replace(assignment, url=keeping.url), prepared.encoded, refit=prepared.refit)


def fit_workers(assignment: Assignment, encoded: Encoded, gate: Any = None, refit: Encoded | None = None) -> None:
    """Ray Train: a group of workers, restarted from the newest checkpoint up to `max_failures` times. With a `gate` (a
    handle of `worker.Gate`) they wait there after each epoch; `refit` are the rows of a second training.

    Raises:
        ResourceError: the cluster is too small.
        TrainingError: training failed.
    """
    import ray

    from raynn.restarts import Leaderless, Left, free_room, timeouts

    resources = assignment.job.resources
    room = Room.of(resources, ray.cluster_resources())
    await_room(room, resources.wait_s)  # nodes may have gone while the data were prepared
    config = {"assignment": assignment, "encoded": encoded, "refit": refit, "gate": gate, "room": room}
    outcome: Any = None
    left: Left | None = None
    killed = 0
    with timeouts(resources), _ray_storage(assignment) as where:
        for attempt in count():
            outcome = _fit(config | {"left": left}, where, attempt)
            left = outcome if isinstance(outcome, Left) else None
            if isinstance(outcome, Leaderless):
                killed += 1
                if killed > resources.max_failures:
                    raise TrainingError(
                        f"the process that directs the workers was killed {killed} times, more often than "
                        f"resources.max_failures = {resources.max_failures} allows ({outcome.reason}); "
                        "what was trained is saved: resume=true"
                    )
                free_room(None if gate is None else ray.get(gate.held.remote()))
            elif left is None:
                break
    if outcome is not None:
        raise outcome


def _fit(config: dict[str, Any], where: dict[str, Any], attempt: int) -> Any:
    """One call of Ray Train, which keeps its own files at `where`: what the first worker returns, or `Leaderless`.

    Raises:
        ResourceError: the cluster has become too small.
        TrainingError: training failed.
    """
    import ray.train
    from ray.train import FailureConfig, RunConfig

    from raynn.controller import FreshLook, ProcessGroup, begin_view, look_anew
    from raynn.data import our_own
    from raynn.restarts import ELASTIC_START_TIMEOUT_S, Group, Leaderless, Patience, cluster_answers, held
    from raynn.worker import train_worker

    room, resources = config["room"], config["assignment"].job.resources
    fewest, most = resources.min_workers, resources.max_workers
    elastic = fewest < most
    if config["left"] is not None and held(room) < held(room, going=True):
        # Ray would wait for the nodes that are to go; the next group grows when others have come
        most = max(fewest, min(most, held(room)))
    if attempt:
        look_anew()  # nodes have come or gone
    else:
        begin_view()
    tries = int(resources.wait_s / ELASTIC_START_TIMEOUT_S) if elastic else 0  # each may find less room than thought
    trainer = Group(
        train_worker,
        config,
        backend_config=ProcessGroup(room.gpus > 0, resources.timeout_s),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(fewest, most) if elastic else most,
            use_gpu=room.gpus > 0,
            resources_per_worker={"CPU": room.cpus, "GPU": room.gpus},
            elastic_resize_monitor_interval_s=math.inf,  # it would end a group anywhere; ours leaves at a checkpoint
        ),
        run_config=RunConfig(
            name=f"ray-{attempt}",
            **where,
            failure_config=FailureConfig(
                max_failures=resources.max_failures, controller_failure_limit=CONTROLLER_FAILURE_LIMIT + tries
            ),
            callbacks=[FreshLook(elastic)],
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    on_interrupt = signal.getsignal(signal.SIGINT)
    patience = Patience(room, resources.wait_s)
    try:
        with patience:
            return trainer.fit().return_value
    except ray.train.TrainingFailedError as failure:
        raise our_own(failure) or TrainingError(f"the workers failed: {failure}") from failure
    except ray.exceptions.RayError as error:  # of the controller, which runs where this command does
        text = str(error).splitlines()[0]
        if isinstance(error, ray.exceptions.ActorDiedError) and cluster_answers():
            return Leaderless(text)
        raise our_own(error) or TrainingError(
            f"the cluster does not answer any more ({text}); what was trained is saved: on one that does, resume=true"
        ) from error
    except (SystemExit, KeyboardInterrupt):  # SystemExit: Ray's way to answer Ctrl-C, once the workers are stopped
        if patience.found is None:
            raise KeyboardInterrupt from None
        raise ResourceError(
            f"the cluster has had room for {patience.found} workers for {resources.wait_s:g} s and resources.workers = "
            f"{asked_workers(resources)}; what was trained is saved: add nodes or ask for fewer workers, "
            "then resume=true"
        ) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, on_interrupt)


@contextmanager
def _ray_storage(assignment: Assignment) -> Iterator[dict[str, Any]]:
    """Where Ray Train keeps its own few files while it trains: on several nodes at the run's URL, which all reach."""
    import ray

    if assignment.url is None or sum(node["Alive"] for node in ray.nodes()) == 1:
        yield {"storage_path": str(Path(assignment.folder) / "scratch")}
        return
    file_system, path = open_file_system(join_url(assignment.url, "scratch"))
    _clear(file_system, path)  # of a driver that was killed
    try:
        yield {"storage_path": path, "storage_filesystem": file_system}
    finally:
        _clear(file_system, path)


def _clear(file_system: Any, path: str) -> None:
    try:
        file_system.delete_dir(path)
    except OSError:  # there is none, or the server is away: no one reads it
        pass
