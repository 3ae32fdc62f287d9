"""Which rows a global batch holds: the same rows whatever the number of workers.

The training rows, in their order, are cut into V contiguous lanes; V depends on the job alone. Batch k of epoch e
takes rows k*b .. (k+1)*b of every lane, b = global_batch_size / V, in an order seeded by (seed, epoch, lane). The last
batch of an epoch takes what is left of every lane, from a half to one and a half times b: each row is seen once an
epoch, no batch is tiny, and every lane gives at least one row to every batch, so that no worker is ever idle. A worker
owns a contiguous run of lanes, hence a contiguous run of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raynn.errors import DataError, ResourceError

MAX_LANES = 64


def lane_count(global_batch_size: int) -> int:
    """The largest divisor of `global_batch_size` that is at most 64."""
    return max(v for v in range(1, min(MAX_LANES, global_batch_size) + 1) if global_batch_size % v == 0)


def contiguous_bounds(num_items: int, num_parts: int) -> NDArray[np.int64]:
    """Bounds [num_parts + 1] of contiguous parts whose sizes differ by at most one."""
    return np.arange(num_parts + 1, dtype=np.int64) * num_items // num_parts


@dataclass(frozen=True)
class Lanes:
    """The plan of all epochs over `num_rows` training rows.

    Raises:
        DataError: a global batch larger than the training rows.
    """

    num_rows: int
    global_batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.global_batch_size > self.num_rows:
            raise DataError(
                f"optimization.global_batch_size = {self.global_batch_size} is larger than the {self.num_rows} "
                f"training rows; set it to {self.num_rows} or less"
            )

    @property
    def count(self) -> int:
        """V, the number of lanes."""
        return lane_count(self.global_batch_size)

    @property
    def rows_per_batch(self) -> int:
        """b, the rows that every lane gives to a batch (the last of an epoch excepted)."""
        return self.global_batch_size // self.count

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch, the same on every worker."""
        shortest, b = self.num_rows // self.count, self.rows_per_batch
        return (2 * shortest + b) // (2 * b)

    def rows_of(self, lane: int) -> tuple[int, int]:
        """First and one past the last row of a lane."""
        bounds = contiguous_bounds(self.num_rows, self.count)
        return int(bounds[lane]), int(bounds[lane + 1])

    def lanes_of_worker(self, rank: int, num_workers: int) -> tuple[int, int]:
        """First and one past the last lane of a worker.

        Raises:
            ResourceError: more workers than lanes.
        """
        if num_workers > self.count:
            raise ResourceError(
                f"resources.workers = {num_workers} is more than the {self.count} lanes that "
                f"optimization.global_batch_size = {self.global_batch_size} allows; use at most {self.count} workers, "
                f"or a global batch with a larger divisor up to {MAX_LANES}"
            )
        bounds = contiguous_bounds(self.count, num_workers)
        return int(bounds[rank]), int(bounds[rank + 1])

    def rows_of_worker(self, rank: int, num_workers: int) -> tuple[int, int]:
        """First and one past the last training row of a worker."""
        first, last = self.lanes_of_worker(rank, num_workers)
        return self.rows_of(first)[0], self.rows_of(last - 1)[1]

    def batches(self, epoch: int, rank: int, num_workers: int) -> list[NDArray[np.integer]]:
        """Training rows (0 .. num_rows - 1) of this worker's share of every batch of an epoch, in order. All of them
        are views of one array that takes 4 bytes a row, 8 where rows are 2**31 or more.
        """
        first, last = self.lanes_of_worker(rank, num_workers)
        whole = self.steps_per_epoch - 1  # batches of full size; the last takes the rest
        b = self.rows_per_batch
        cut = whole * b
        dtype = np.int32 if self.num_rows < 2**31 else np.int64
        heads = np.empty((whole, (last - first) * b), dtype)
        tails = []
        for place, lane in enumerate(range(first, last)):
            start, stop = self.rows_of(lane)
            order = start + np.random.default_rng([self.seed, epoch, lane]).permutation(stop - start)
            heads[:, place * b : (place + 1) * b] = order[:cut].reshape(whole, b)
            tails.append(order[cut:].astype(dtype))
        return [*heads, np.concatenate(tails)]

    def batch_rows(self, step: int) -> int:
        """Rows of the whole global batch at `step` of an epoch."""
        if step < self.steps_per_epoch - 1:
            return self.global_batch_size
        return self.num_rows - (self.steps_per_epoch - 1) * self.global_batch_size
