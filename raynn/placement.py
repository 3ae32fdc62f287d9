"""Which rows a worker holds, and where: from encoded blocks to this worker's shards."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from raynn.batches import TrainingShard, evaluation_rows
from raynn.collectives import Workers
from raynn.encoded import Encoded, Fetch
from raynn.footprint import in_words
from raynn.job import Job
from raynn.lanes import Lanes
from raynn.memory import held_bytes
from raynn.shards import Arrays, Shard, build_shard, choose_residence, free_bytes, free_memory_bytes, no_room, row_bytes
from raynn.splits import TEST, TRAIN, VALIDATION
from raynn.training import Shards

SAMPLE_ROWS = 1024
SHARE_OF_FREE_MEMORY = 0.5  # the rest is the network's, its activations' and the system's


@dataclass(frozen=True)
class Residence:
    """Where a worker's rows will be, and what they take."""

    where: str  # memory, disk
    worker_bytes: int
    budget_bytes: int
    scratch_bytes: int = 0  # in files, of all workers
    free_bytes: int = 0  # where the files will be
    folder: str = "the run folder"

    def __str__(self) -> str:
        size, budget = (f"{number / 2**20:,.1f} MiB" for number in (self.worker_bytes, self.budget_bytes))
        share = f"{size} of rows a worker, of at most {budget} (resources.memory_gib)"
        if self.where == "memory":
            return f"{share}: held in memory, or on its GPU where they fit"
        return (
            f"{share}: read from a memory-mapped file in {self.folder}, which training waits for when it is slow; the "
            f"files of all workers take {in_words(self.scratch_bytes)} of {in_words(self.free_bytes)} that are free"
        )


def expected_residence(encoded: Encoded, fetch: Fetch, job: Job, storage: Path) -> Residence:
    """What `place_shards` will do on this machine, told from the first rows."""
    rows = [encoded.num_rows(split) for split in (TRAIN, VALIDATION, TEST)]
    first = next(iter(encoded.pieces(TRAIN, 0, min(rows[TRAIN], SAMPLE_ROWS), fetch)))
    size = math.ceil(row_bytes(first) * sum(rows) / job.resources.min_workers)
    budget = budget_bytes(job, job.resources.min_workers)
    where = choose_residence(size, budget, job.resources.residence, torch.device("cpu"))
    if where != "disk":
        return Residence(where, size, budget)
    folder = job.resources.scratch or "the run folder"
    return Residence(where, size, budget, math.ceil(row_bytes(first) * sum(rows)), free_bytes(storage), folder)


def require_scratch(encoded: Encoded, fetch: Fetch, job: Job, storage: Path) -> Residence:
    """Where the workers' rows will be, if the disk of the storage can hold what does not fit in memory.

    Raises:
        ResourceError: it cannot.
    """
    if job.resources.scratch is not None:
        storage = Path(job.resources.scratch).expanduser()
    residence = expected_residence(encoded, fetch, job, storage)
    if residence.scratch_bytes > residence.free_bytes:
        raise no_room(storage, residence.scratch_bytes)
    return residence


def scratch_of(job: Job, run: Path) -> Path:
    """The folder for rows of this run that do not fit in memory."""
    if job.resources.scratch is None:
        return run / "scratch"
    # runs of one name in different storages may share a node's disk
    return Path(job.resources.scratch).expanduser() / f"raynn-{run.name}-{zlib.crc32(str(run).encode()):08x}"


def budget_bytes(job: Job, workers_on_node: int) -> int:
    """How much memory one worker's rows may take."""
    resources = job.resources
    room = free_memory_bytes() / workers_on_node
    if resources.worker_memory_gib is not None:
        room = min(room, max(0.0, resources.worker_memory_gib * 2**30 - held_bytes()))
    budget = room * SHARE_OF_FREE_MEMORY
    if resources.memory_gib is not None:
        asked = resources.memory_gib * 2**30
        budget = asked if resources.worker_memory_gib is None else min(asked, budget)
    return int(budget)


def place_shards(
    encoded: Encoded,
    fetch: Fetch,
    job: Job,
    workers: Workers,
    workers_on_node: int,
    scratch: Path,
    tests: bool = True,
    meet: Callable[[], None] = lambda: None,
) -> Shards:
    """This worker's rows of each split, in memory where they fit, else in files under `scratch`; of the test set none
    where `tests` is false. `meet` is called after each block (`meeting`).

    Raises:
        DataError: a global batch larger than the training rows; a block that cannot be encoded.
        ResourceError: more workers than lanes; a disk that cannot hold the rows.
    """
    lanes = Lanes(encoded.num_rows(TRAIN), job.optimization.global_batch_size, job.optimization.seed)
    resources, budget = job.resources, budget_bytes(job, workers_on_node)
    total = sum(encoded.num_rows(split) for split in (TRAIN, VALIDATION, TEST))

    def shard(split: int, name: str, start: int, stop: int) -> Shard:
        return build_shard(
            _met(encoded.pieces(split, start, stop, fetch), meet),
            start,
            stop - start,
            folder=scratch / name,
            device=workers.device,
            residence=resources.residence,
            # each split gets its part of the budget
            budget_bytes=budget * encoded.num_rows(split) // total,
        )

    train = TrainingShard(shard(TRAIN, "train", *lanes.rows_of_worker(workers.rank, workers.count)), lanes)

    def evaluated(split: int, name: str) -> Shard:
        return shard(split, name, *evaluation_rows(encoded.num_rows(split), workers.rank, workers.count))

    test = evaluated(TEST, "test") if tests and encoded.num_rows(TEST) else None
    return Shards(train, evaluated(VALIDATION, "validation"), test)


def _met(pieces: Iterator[Arrays], meet: Callable[[], None]) -> Iterator[Arrays]:
    for piece in pieces:
        yield piece
        meet()
