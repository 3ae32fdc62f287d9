"""Which rows a worker holds, and where: from encoded blocks to this worker's shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from raynn.batches import TrainingShard, evaluation_rows
from raynn.collectives import Workers
from raynn.encoded import Encoded
from raynn.job import Job
from raynn.lanes import Lanes
from raynn.shards import Shard, build_shard, free_memory_bytes
from raynn.splits import TEST, TRAIN, VALIDATION
from raynn.training import Shards

SHARE_OF_FREE_MEMORY = 0.5  # the rest is the network's, its activations' and the system's


def place_shards(
    encoded: Encoded,
    fetch: Callable[[Any], pa.Table],
    job: Job,
    workers: Workers,
    workers_on_node: int,
    scratch: Path,
    tests: bool = True,
) -> Shards:
    """This worker's rows of each split, in memory where they fit, else in files under `scratch`; of the test set none
    where `tests` is false.

    Raises:
        DataError: a global batch larger than the training rows.
        ResourceError: more workers than lanes.
    """
    lanes = Lanes(encoded.num_rows(TRAIN), job.optimization.global_batch_size, job.optimization.seed)
    resources = job.resources
    if resources.memory_gib is not None:
        budget = int(resources.memory_gib * 2**30)
    else:
        budget = int(free_memory_bytes() * SHARE_OF_FREE_MEMORY / workers_on_node)
    total = sum(encoded.num_rows(split) for split in (TRAIN, VALIDATION, TEST))

    def shard(split: int, name: str, start: int, stop: int) -> Shard:
        return build_shard(
            encoded.pieces(split, start, stop, fetch),
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
