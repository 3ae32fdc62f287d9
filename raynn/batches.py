"""Batches: which rows of a worker's shard, in which order, with which random keys.

Shapes: B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raynn.collectives import Workers
from raynn.lanes import Lanes, contiguous_bounds
from raynn.randomness import row_keys
from raynn.shards import Shard

EVALUATION_SEED = 0


@dataclass(frozen=True)
class TrainingShard:
    """A worker's share of the training rows, dealt into batches by the lanes."""

    shard: Shard
    lanes: Lanes

    def batches(self, epoch: int, workers: Workers) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """This worker's share of every batch of an epoch, with the random keys [B] of its rows."""
        shares = self.lanes.batches(epoch, workers.rank, workers.count)
        sizes = [len(share) for share in shares]
        rows = np.concatenate(shares)
        keys = torch.from_numpy(row_keys(self.lanes.seed, epoch, rows)).to(workers.device)
        local = torch.from_numpy(rows - self.shard.first_row)
        if self.shard.residence == "device":
            local = local.to(workers.device)
        for rows_B, key_B in zip(local.split(sizes), keys.split(sizes), strict=True):
            yield self.shard.gathered(rows_B, workers.device), key_B


def evaluation_rows(num_rows: int, rank: int, num_workers: int) -> tuple[int, int]:
    """First and one past the last row that a worker evaluates: every row belongs to exactly one worker."""
    bounds = contiguous_bounds(num_rows, num_workers)
    return int(bounds[rank]), int(bounds[rank + 1])


def evaluation_batches(
    shard: Shard, rows_per_batch: int, device: torch.device
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """The shard's rows in order, none left out, with keys [B] that depend on the row alone: a network that draws noise
    to be scored draws the same each time.
    """
    rows = torch.arange(shard.num_rows, device=device if shard.residence == "device" else None)
    numbers = np.arange(shard.first_row, shard.first_row + shard.num_rows)
    keys = torch.from_numpy(row_keys(EVALUATION_SEED, 0, numbers)).to(device)
    for rows_B, key_B in zip(rows.split(rows_per_batch), keys.split(rows_per_batch), strict=True):
        if len(rows_B):
            yield shard.gathered(rows_B, device), key_B
