"""What each Ray Train worker runs: takes its rows, trains, reports."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import ActorDiedError

from raynn import controller
from raynn.capacity import Room
from raynn.collectives import Workers
from raynn.data import fetch
from raynn.encoded import Encoded
from raynn.errors import RaynnError
from raynn.meeting import meeting
from raynn.placement import place_shards, scratch_of
from raynn.restarts import Left, nodes_of, reason_to_leave
from raynn.storage import copy_of_run, fetch_checkpoints, is_free, kept
from raynn.training import Assignment, Shards, run_training

REPORT_EVERY_S = 2.0  # a report is a barrier of all workers and costs 0.1 to 0.2 s


@ray.remote(num_cpus=0)
class Gate:
    """Where a group of workers that is one trial of a search waits after each epoch, until whoever searches opens it.

    Ray's own way, a callback that tells Tune, lets the workers run ahead and ends a trial by killing what holds its
    workers' resources. Here a trial that is to end is told so: its workers return, and Ray Train frees all by itself.
    """

    def __init__(self, told: int) -> None:
        self.records: asyncio.Queue[dict[str, float]] = asyncio.Queue()
        self.seen = self.open_until = told  # epochs
        self.closed = False
        self.group = ""
        self.changed = asyncio.Event()

    async def arrive(self, record: Mapping[str, float]) -> bool:
        """A worker group's next record; whether it is to train on. A group that was restarted may arrive again."""
        epoch = int(record["epoch"])
        if epoch > self.seen:
            self.seen = epoch
            self.records.put_nowait(dict(record))
        while epoch > self.open_until and not self.closed:
            await self.changed.wait()
        return not self.closed

    async def next(self) -> dict[str, float]:
        """The next record, once there is one."""
        return await self.records.get()

    async def open(self, epoch: int) -> None:
        """Lets those pass who have trained so many epochs."""
        self.open_until = max(self.open_until, epoch)
        self.changed.set()
        self.changed = asyncio.Event()

    async def hold(self, group: str) -> None:
        """The placement group, a hex id, that the workers are in."""
        self.group = group

    async def held(self) -> str:
        """The last one; empty before there is one."""
        return self.group

    async def close(self) -> None:
        """Sends everyone home."""
        self.closed = True
        self.changed.set()


def train_worker(told: dict[str, Any]) -> RaynnError | Left | None:
    """The train function of Ray Train; `config`, which Ray's store has, holds the assignment, the encoded blocks, those
    for a refit, a gate or none, what a worker takes of a node, and why the group before left. Left: another group is to
    go on.

    An error that is the user's to mend is returned: raised, it would be tried again `max_failures` times. Every worker
    meets it at the same place, because all decide on the same numbers.
    """
    config: dict[str, Any] = ray.get(told["config"])
    try:
        # times are told since the command began, which another machine's clock did not see
        begun_at = config["assignment"].started_at + controller.clock_ahead_s
        with _at_home(replace(config["assignment"], started_at=begun_at)) as assignment:
            scratch = scratch_of(assignment.job, Path(assignment.folder)) / f"worker-{_workers().rank}"
            try:
                return _train(**config | {"assignment": assignment}, scratch=scratch)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
                with suppress(OSError):  # others may still be there
                    scratch.parent.rmdir()
    except RaynnError as error:
        return error


@contextmanager
def _at_home(assignment: Assignment) -> Iterator[Assignment]:
    """The assignment on this node. A run that is kept at a URL is written, and sent, by the first worker's node; the
    others fetch from there what training resumes from, so that all begin with the same checkpoint.
    """
    if assignment.url is None:
        yield assignment
        return
    workers, folder = _workers(), copy_of_run(assignment.url)
    try:
        with kept(folder, begins=False) if workers.rank == 0 else nullcontext() as keeping:
            workers.max(0.0)  # all are here, and the first has locked its copy; whose is not locked has another
            apart = keeping is None and is_free(folder)
            if workers.max(float(apart)):
                if keeping is not None:
                    keeping.send_now()
                workers.max(0.0)
                if apart:
                    fetch_checkpoints(folder)
                workers.max(0.0)
            if keeping is not None:
                keeping.begin()
            yield replace(assignment, folder=str(folder))
    finally:
        shutil.rmtree(folder / "scratch" / f"worker-{workers.rank}", ignore_errors=True)


def _workers() -> Workers:
    context = ray.train.get_context()
    return Workers(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())


def _let_through(gate: Any, record: Mapping[str, float]) -> bool:
    """Whether the workers are to train on; not where the gate has died, which who searches learns there, too."""
    try:
        return bool(ray.get(gate.arrive.remote(record)))
    except ActorDiedError:
        return False


def _train(
    assignment: Assignment,
    encoded: Encoded,
    refit: Encoded | None,
    gate: Any,
    room: Room,
    left: Left | None,
    scratch: Path,
) -> Left | None:
    context = ray.train.get_context()
    # Ray sets one thread a worker; the node's cores are shared out instead
    threads = assignment.job.resources.cpus_per_worker or (os.cpu_count() or 1) // context.get_local_world_size()
    torch.set_num_threads(max(1, threads))
    workers = _workers()
    num_here = context.get_local_world_size()

    def shards(encoded: Encoded, name: str = "") -> Shards:
        with meeting(workers) as meet:
            return place_shards(
                encoded, fetch, assignment.job, workers, num_here, scratch / name, assignment.tests, meet
            )

    record: dict[str, float]
    if gate is not None:
        with suppress(ActorDiedError):
            ray.get(gate.hold.remote(ray.util.get_current_placement_group().id.hex()))
        for record in run_training(assignment, shards(encoded), workers):
            # the first worker waits at the gate, the others for its word
            may_go_on = _let_through(gate, record) if workers.rank == 0 else True
            if not workers.decided(float(may_go_on)):
                return None
        return None
    reported_at = time.monotonic()
    record, nodes = {}, nodes_of(workers)
    place_refit = None if refit is None else partial(shards, refit, "refit")
    for record in run_training(assignment, shards(encoded), workers, place_refit):
        # every rank must report equally often: the first rank's clock decides
        if workers.decided(time.monotonic() - reported_at) >= REPORT_EVERY_S:
            ray.train.report(dict(record))
            leave = None
            if workers.rank == 0:  # what Ray Train hears from the first worker counts
                leave = reason_to_leave(assignment.job.resources, room, workers.count, nodes, left)
            if workers.decided(float(leave is not None)):
                return leave
            reported_at = time.monotonic()
            record = {}
    if workers.decided(float(bool(record))):
        ray.train.report(dict(record))
    return None
