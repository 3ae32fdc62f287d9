"""Where the functions of preparation run, and what is kept of their tables: all of them, or none.

A driver maps pure functions from table to table over blocks, one a fragment, in order. Here are those of this process;
`cache` has one that finds tables of earlier runs again, `data` those of a cluster.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raynn.encoded import Blocks, Recipe, fetched, itself
from raynn.errors import DataError
from raynn.fragments import Fragment

BLOCK = "__block__"  # a column that reading adds: int32, the fragment's number

TableFunction = Callable[[pa.Table], pa.Table]
Parts = Sequence[NDArray[np.uint8]]  # the splits of every row of each block


class Driver(Protocol):
    """Maps functions over blocks: in this process, or over a cluster."""

    def read(self, fragments: Sequence[Fragment], read: Callable[[int, Fragment], pa.Table]) -> Blocks:
        """One block a fragment, in order."""

    def map(self, blocks: Blocks, function: Callable[..., pa.Table], parts: Parts | None = None) -> Blocks:
        """`function` of each block, in order; with `parts` of each block and its part. The blocks then have BLOCK."""

    def tables(self, blocks: Blocks) -> Iterator[pa.Table]:
        """The blocks' tables, brought here one at a time."""

    def put(self, tables: Sequence[pa.Table]) -> Blocks:
        """Tables of this process as blocks."""


class LocalDriver:
    """Everything in this process: blocks are tables."""

    def read(self, fragments: Sequence[Fragment], read: Callable[[int, Fragment], pa.Table]) -> Blocks:
        """One table a fragment."""
        return [read(index, fragment) for index, fragment in enumerate(fragments)]

    def map(self, blocks: Blocks, function: Callable[..., pa.Table], parts: Parts | None = None) -> Blocks:
        """`function` of each table."""
        if parts is not None:
            return [function(block, part) for block, part in zip(blocks, parts, strict=True)]
        return [function(block) for block in blocks]

    def tables(self, blocks: Blocks) -> Iterator[pa.Table]:
        """The tables themselves."""
        return iter(blocks)

    def put(self, tables: Sequence[pa.Table]) -> Blocks:
        """The tables themselves."""
        return tables


class StreamingDriver(LocalDriver):
    """In this process, and no block is kept: each is a recipe, and made again whenever it is asked for. Reading again
    is what rows that do not fit in memory cost; what is held is a block for each thread, and what the driver knows of
    every row.
    """

    def read(self, fragments: Sequence[Fragment], read: Callable[[int, Fragment], pa.Table]) -> Blocks:
        """One recipe a fragment."""
        return [Recipe(partial(read, index, fragment)) for index, fragment in enumerate(fragments)]

    def map(self, blocks: Blocks, function: Callable[..., pa.Table], parts: Parts | None = None) -> Blocks:
        """Each recipe with one step more."""
        if parts is None:
            return [block.then(function) for block in blocks]
        packed = (zlib.compress(part.tobytes(), 1) for part in parts)  # a bit or less a row: workers are told of all
        return [block.then(_WithPart(function, part)) for block, part in zip(blocks, packed, strict=True)]

    def tables(self, blocks: Blocks) -> Iterator[pa.Table]:
        """Each table in its turn."""
        return fetched(blocks, itself)


@dataclass(frozen=True)
class _WithPart:
    """A function of a block and its part, as one of the block."""

    function: Callable[[pa.Table, NDArray[np.uint8]], pa.Table]
    packed: bytes

    def __call__(self, table: pa.Table) -> pa.Table:
        part = np.frombuffer(zlib.decompress(self.packed), np.uint8)
        if len(part) != table.num_rows:
            raise DataError(
                f"a source has changed while it was prepared: a part of it had {len(part)} rows and now has "
                f"{table.num_rows}; start again when nothing writes to data.train, data.validation or data.test"
            )
        return self.function(table, part)


def index_of(table: pa.Table) -> int:
    """A block's number; 0 where it has no row."""
    return int(table[BLOCK][0].as_py()) if table.num_rows else 0
