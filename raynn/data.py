"""Ray Data: the same preparation mapped over a cluster. Its blocks stay in the object store and workers take theirs;
or, where they would not fit, none is kept, and each worker makes its own from the sources.
"""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from raynn import errors
from raynn.cluster import cluster
from raynn.drivers import Parts, StreamingDriver, TableFunction, index_of
from raynn.encoded import Blocks, Recipe, itself
from raynn.errors import DataError, RaynnError
from raynn.fragments import Fragment

TOLD = "raynn says "


class RayDriver:
    """Blocks are references to Arrow tables in Ray's object store, one a fragment, in order."""

    def __init__(self) -> None:
        _set_context()

    def read(self, fragments: Sequence[Fragment], read: Callable[[int, Fragment], pa.Table]) -> Blocks:
        """Reads and cleans every fragment once, on whatever nodes have room."""
        items = [{"index": index, "fragment": pickle.dumps(fragment)} for index, fragment in enumerate(fragments)]
        source = ray.data.from_items(items, override_num_blocks=len(items))

        def read_one(item: pa.Table) -> pa.Table:
            return read(item["index"][0].as_py(), pickle.loads(item["fragment"][0].as_py()))

        return self._materialized(source.map_batches(_telling(read_one), batch_size=1, batch_format="pyarrow"))

    def map(self, blocks: Blocks, function: Callable[..., pa.Table], parts: Parts | None = None) -> Blocks:
        """Maps a function over the blocks where they are."""
        dataset = ray.data.from_arrow_refs(list(blocks))
        if parts is None:
            return self._materialized(dataset.map_batches(_telling(function), batch_size=None, batch_format="pyarrow"))
        starts = np.cumsum([0, *map(len, parts)])
        whole = ray.put(np.concatenate(parts))  # once a node, and read in place there

        def with_part(table: pa.Table) -> pa.Table:
            start = starts[index_of(table)]
            return function(table, ray.get(whole)[start : start + table.num_rows])

        return self._materialized(dataset.map_batches(_telling(with_part), batch_size=None, batch_format="pyarrow"))

    def tables(self, blocks: Blocks) -> Iterator[pa.Table]:
        """Brings one block at a time here."""
        return (ray.get(block) for block in blocks)

    def put(self, tables: Sequence[pa.Table]) -> Blocks:
        """Tables of this process, into the object store."""
        return tuple(ray.put(table) for table in tables)

    @staticmethod
    def _materialized(dataset: ray.data.Dataset) -> Blocks:
        try:
            return tuple(dataset.materialize().to_arrow_refs())
        except Exception as error:
            raise our_own(error) or error from None


class RayStreamingDriver(StreamingDriver):
    """Blocks are recipes, which Ray Data makes on whatever nodes have room. What it gives the driver streams: a block
    is dropped where it was made, and there is one for each CPU at a time, so that the object store holds next to none.
    """

    def __init__(self) -> None:
        _set_context()

    def tables(self, blocks: Blocks) -> Iterator[pa.Table]:
        """Makes the blocks and brings one at a time here; when that is slow, Ray Data makes no more meanwhile."""
        items = [{"recipe": pickle.dumps(block)} for block in blocks]
        source = ray.data.from_items(items, override_num_blocks=len(items))
        dataset = source.map_batches(_telling(_made), batch_size=1, batch_format="pyarrow")
        try:
            for bundle in dataset.iter_internal_ref_bundles():
                for reference in bundle.block_refs:
                    yield ray.get(reference)
        except Exception as error:
            raise our_own(error) or error from None


def _made(item: pa.Table) -> pa.Table:
    return pickle.loads(item["recipe"][0].as_py())()


def _set_context() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False
    context.target_max_block_size = None  # a fragment stays one block
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _telling(function: TableFunction) -> TableFunction:
    """The function of a task, whose errors of raynn's are told as text: of an error in another process Ray Data hands
    on the text, and not the error itself.
    """

    def told(table: pa.Table) -> pa.Table:
        try:
            return function(table)
        except RaynnError as error:
            raise RuntimeError(f"{TOLD}{json.dumps([type(error).__name__, str(error)])}") from None

    return told


def our_own(error: BaseException | None) -> RaynnError | None:
    """The error of raynn's that lies behind one of Ray's, if there is one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, RaynnError):
            # Ray's wrapper is an instance of both classes: take the bare message
            cause = getattr(error, "cause", None)
            return cause if isinstance(cause, RaynnError) else error
        if TOLD in (text := str(error)):
            (name, message), _ = json.JSONDecoder().raw_decode(text, text.index(TOLD) + len(TOLD))
            found: RaynnError = getattr(errors, name, DataError)(message)
            return found
        seen.add(id(error))
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None


def fetch(block: Any) -> pa.Table:
    """One block, into this process."""
    return itself(block) if isinstance(block, Recipe) else ray.get(block)


def mapped_over_cluster(
    fragments: Sequence[Fragment], function: Callable[[int, Fragment], pa.Table], workers: int
) -> Iterator[pa.Table]:
    """`function` of every fragment, in order, as Ray Data tasks on the cluster, or on one of this machine's own."""
    with cluster(workers):
        driver = RayDriver()
        yield from driver.tables(driver.read(fragments, function))
