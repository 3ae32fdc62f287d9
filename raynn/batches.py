"""Batches: which rows of a worker's shard, in which order, with which random keys.

Shapes: B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raynn.ahead import made_ahead
from raynn.collectives import Workers
from raynn.lanes import Lanes, contiguous_bounds
from raynn.randomness import row_keys
from raynn.shards import Shard, sent

EVALUATION_SEED = 0
BATCHES_AHEAD = 2  # ready or in the making, beside the one that is worked on
ROWS_AT_ONCE = 2**16  # numbered and given keys by one call
STEP_ROWS = 4  # what a step costs beside its rows, in rows
WORTHWHILE = 1.2


@dataclass(frozen=True)
class TrainingShard:
    """A worker's share of the training rows, dealt into batches by the lanes."""

    shard: Shard
    lanes: Lanes

    def batches(self, epoch: int, workers: Workers) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """This worker's share of every batch of an epoch, with the random keys [B] of its rows."""
        shares = self.lanes.batches(epoch, workers.rank, workers.count)
        keys = partial(row_keys, self.lanes.seed, epoch)
        return _gathered(self.shard, shares, self.shard.first_row, keys, workers.device)


def _gathered(
    shard: Shard,
    batches: Iterable[NDArray[np.integer[Any]]],
    first_row: int,
    keys_of: Callable[[NDArray[np.int64]], NDArray[np.int32]],
    device: torch.device,
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """The batches of these rows, numbered as the split's are, with the keys [B] of each; ahead where each has to be
    fetched from a disk. Numbers and keys are made for many batches at a time: neither a call for each, which small
    batches would feel, nor 24 bytes for each row of the shard.
    """

    def dealt() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for some in _together(batches, ROWS_AT_ONCE):
            sizes = [len(rows) for rows in some]
            rows = np.concatenate(some).astype(np.int64)
            here, keys = torch.from_numpy(rows - first_row), sent(torch.from_numpy(keys_of(rows)), device)
            there = sent(here, device) if shard.residence == "device" else here
            yield from zip(there.split(sizes), here.split(sizes), keys.split(sizes), strict=True)

    def gathered(dealt: tuple[Tensor, Tensor, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        there_B, here_B, key_B = dealt
        return shard.gathered(there_B, device, here_B), key_B

    if shard.residence != "disk":
        return map(gathered, dealt())
    initializer = partial(torch.cuda.set_device, device) if device.type == "cuda" else None
    return made_ahead(gathered, dealt(), BATCHES_AHEAD, initializer=initializer)


def _together(batches: Iterable[NDArray[Any]], num_rows: int) -> Iterator[list[NDArray[Any]]]:
    """Batches in a row that have so many rows in all, or the few that are left."""
    some: list[NDArray[Any]] = []
    have = 0
    for batch in batches:
        some.append(batch)
        have += len(batch)
        if have >= num_rows:
            yield some
            some, have = [], 0
    if some:
        yield some


Piece = tuple[dict[str, Tensor], Tensor]  # rows of a batch and their keys


def pieces(batch: dict[str, Tensor], key_B: Tensor, at_least: int, ragged: Sequence[str] = ()) -> list[Piece]:
    """The rows of a batch in `at_least` pieces, as far as there are rows. Sequences of different lengths, the columns
    `ragged`, in as many as pay, each of rows whose lengths are alike, cut to the longest of them.
    """
    if ragged:
        order_B = batch["length"].argsort(stable=True)
        at_least = max(at_least, pieces_that_pay(batch["length"][order_B].tolist()))
        batch, key_B = {name: x[order_B] for name, x in batch.items()}, key_B[order_B]
    num_pieces = min(at_least, len(key_B))
    parts = zip(*(x.chunk(num_pieces) for x in batch.values()), strict=True)
    found = [dict(zip(batch, part, strict=True)) for part in parts]
    for piece in found if ragged else ():
        longest = max(1, int(piece["length"].max()))
        piece.update({name: piece[name][:, :longest] for name in ragged})
    return list(zip(found, key_B.chunk(num_pieces), strict=True))


def pieces_that_pay(lengths: list[int]) -> int:
    """Into how many pieces rows of these ascending lengths are best cut: a piece takes as many steps as its longest
    row has, and a step the time of its rows and of STEP_ROWS more.

    A training step over 64 sequences of 5 to 500 steps, in 1, 2, 4 and 8 pieces (2 cores, one thread): lstm of 128
    units 519, 396, 280, 200 ms; in both directions 1,067, 654, 418, 400 ms; cnn without normalization 108, 81, 74,
    80 ms; feedforward 15 ms each.
    """

    def cost(num_pieces: int) -> int:
        rows = -(-len(lengths) // num_pieces)
        parts = [lengths[start : start + rows] for start in range(0, len(lengths), rows)]
        return sum(part[-1] * (len(part) + STEP_ROWS) for part in parts)

    best = min((1, 2, 4, 8), key=cost)
    return best if cost(1) > WORTHWHILE * cost(best) else 1


def evaluation_rows(num_rows: int, rank: int, num_workers: int) -> tuple[int, int]:
    """First and one past the last row that a worker evaluates: every row belongs to exactly one worker."""
    bounds = contiguous_bounds(num_rows, num_workers)
    return int(bounds[rank]), int(bounds[rank + 1])


def evaluation_batches(
    shard: Shard, rows_per_batch: int, device: torch.device, order: Tensor | None = None
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """The shard's rows, none left out, in `order` or as they are, with keys [B] that depend on the row alone: a network
    that draws noise to be scored draws the same each time.
    """
    if order is None:
        starts = range(0, shard.num_rows, rows_per_batch)
        batches = (np.arange(start, min(start + rows_per_batch, shard.num_rows)) for start in starts)
    else:
        batches = (rows_B.numpy() for rows_B in order.cpu().split(rows_per_batch) if len(rows_B))
    numbered = (rows_B + shard.first_row for rows_B in batches)
    return _gathered(shard, numbered, shard.first_row, partial(row_keys, EVALUATION_SEED, 0), device)
