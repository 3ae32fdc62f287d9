"""Encoded examples: columns of numbers in blocks, wherever a driver keeps them, and the pieces that a worker takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raynn.ahead import made_ahead
from raynn.preprocessing import InputSpec, arrays
from raynn.ragged import Ragged

Blocks = Sequence[Any]
Fetch = Callable[[Any], pa.Table]  # brings a block into this process
MOST_AHEAD = 8


@dataclass(frozen=True)
class Recipe:
    """A block that nobody keeps: made from its source, the same, whenever it is asked for."""

    read: Callable[[], pa.Table]
    steps: tuple[Callable[[pa.Table], pa.Table], ...] = ()

    def __call__(self) -> pa.Table:
        """The table."""
        table = self.read()
        for step in self.steps:
            table = step(table)
        return table

    def then(self, step: Callable[[pa.Table], pa.Table]) -> Recipe:
        """The block that a function makes of this one."""
        return Recipe(self.read, (*self.steps, step))


def fetched(blocks: Iterable[Any], fetch: Fetch) -> Iterator[pa.Table]:
    """The tables of blocks, in order. Recipes are made by as many threads as this process is to use (OMP_NUM_THREADS,
    which Ray sets to a worker's CPUs), each at work on one block, and one block more is ready at most.
    """
    found = list(blocks)
    if not all(isinstance(block, Recipe) for block in found):
        return map(fetch, found)
    threads = min(MOST_AHEAD, int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    return made_ahead(Recipe.__call__, found, depth=threads, threads=threads)


class Encoded(Protocol):
    """Encoded examples of all splits (0 train, 1 validation, 2 test), in a fixed order."""

    @property
    def inputs(self) -> InputSpec:
        """What a network is told of them."""

    def num_rows(self, split: int) -> int:
        """Examples of a split."""

    def pieces(
        self, split: int, start: int, stop: int, fetch: Callable[[Any], pa.Table]
    ) -> Iterator[dict[str, NDArray[Any] | Ragged]]:
        """Examples start .. stop of a split, a few blocks at a time: arrays [n, ...] by column."""


@dataclass(frozen=True)
class EncodedBlocks:
    """Encoded rows of all splits: within each block the training rows come first, then validation, then test.

    `counts` [blocks, 3] says how many of each.
    """

    blocks: Blocks
    counts: NDArray[np.int64]
    inputs: InputSpec

    def num_rows(self, split: int) -> int:
        """Rows of a split (0 train, 1 validation, 2 test)."""
        return int(self.counts[:, split].sum())

    def pieces(
        self, split: int, start: int, stop: int, fetch: Callable[[Any], pa.Table]
    ) -> Iterator[dict[str, NDArray[Any] | Ragged]]:
        """Rows start .. stop of a split as arrays [n, ...], a block at a time; only blocks with some are fetched."""
        ends = np.cumsum(self.counts[:, split])
        wanted: list[tuple[int, int, int]] = []  # block, first row in it, rows
        for index in range(int(np.searchsorted(ends, start, side="right")), len(self.blocks)):
            first = int(ends[index] - self.counts[index, split])
            if first >= stop:
                break
            low, high = max(start, first) - first, min(stop, int(ends[index])) - first
            if low < high:
                wanted.append((index, int(self.counts[index, :split].sum()) + low, high - low))
        tables = fetched((self.blocks[index] for index, _, _ in wanted), fetch)
        for (_, offset, num_rows), table in zip(wanted, tables, strict=True):
            yield shaped_arrays(table.slice(offset, num_rows), self.inputs)


def itself(block: Any) -> Any:
    """How a block that is a table of this process is fetched."""
    return block() if isinstance(block, Recipe) else block


def shaped_arrays(table: pa.Table, inputs: InputSpec) -> dict[str, NDArray[Any] | Ragged]:
    """An encoded table as arrays: `image` [N, C, H, W], `sequence` [N, T, C] (ragged where lengths differ), others
    [N, width] or [N].
    """
    columns = arrays(table)
    for name, shape in (("image", inputs.image_CHW), ("sequence", inputs.sequence_TC)):
        column = columns.get(name)
        if shape is None or column is None:
            continue
        if isinstance(column, Ragged):
            num_channels = shape[-1]
            values_SC = column.values.reshape(-1, num_channels)
            columns[name] = Ragged(values_SC, column.start_N // num_channels, column.stop_N // num_channels)
        else:
            columns[name] = column.reshape(-1, *shape)
    return columns
