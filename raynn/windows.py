"""Windows of steps, cut lazily: each is where it begins and ends among the encoded steps of all series or texts.

Shapes: S steps of all series, N windows of a split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raynn.preparation import Blocks
from raynn.preprocessing import InputSpec, arrays
from raynn.ragged import Ragged


@dataclass(frozen=True)
class WindowPlan:
    """Windows of one split: steps start_N[n] .. stop_N[n], in ascending order of their start, and what else is known of
    each (`columns`, [N] by name).
    """

    start_N: NDArray[np.int64]
    stop_N: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert (np.diff(self.start_N) >= 0).all(), "lanes are contiguous runs of windows, and so are their steps"

    def __len__(self) -> int:
        return len(self.start_N)


@dataclass(frozen=True)
class EncodedWindows:
    """Encoded steps, in blocks one behind the other, and the windows of every split over them.

    `first_step` [blocks + 1] is the first step of each block, and the number of all steps.
    """

    blocks: Blocks
    first_step: NDArray[np.int64]
    windows: tuple[WindowPlan, WindowPlan, WindowPlan]
    inputs: InputSpec

    def num_rows(self, split: int) -> int:
        """Windows of a split (0 train, 1 validation, 2 test)."""
        return len(self.windows[split])

    def pieces(
        self, split: int, start: int, stop: int, fetch: Callable[[Any], pa.Table]
    ) -> Iterator[dict[str, NDArray[Any] | Ragged]]:
        """Windows start .. stop of a split: those that begin in one block at a time, over its steps and as many of the
        next blocks' as they reach.
        """
        plan = self.windows[split]
        block_N = np.searchsorted(self.first_step, plan.start_N[start:stop], side="right") - 1
        for block in np.unique(block_N):
            rows = slice(
                start + int(np.searchsorted(block_N, block)), start + int(np.searchsorted(block_N, block, "right"))
            )
            first, last = int(plan.start_N[rows.start]), int(plan.stop_N[rows].max())
            steps = self._steps(first, last, int(block), fetch)
            columns: dict[str, NDArray[Any] | Ragged] = {name: values[rows] for name, values in plan.columns.items()}
            for name, values in arrays(steps).items():
                assert isinstance(values, np.ndarray)
                columns[name] = Ragged(values, plan.start_N[rows] - first, plan.stop_N[rows] - first)
            yield columns

    def _steps(self, first: int, last: int, block: int, fetch: Callable[[Any], pa.Table]) -> pa.Table:
        """Steps first .. last, the first of which lies in `block`."""
        tables = []
        while block < len(self.blocks) and self.first_step[block] < last:
            begin, end = int(self.first_step[block]), int(self.first_step[block + 1])
            if begin < end:
                low = max(first - begin, 0)
                tables.append(fetch(self.blocks[block]).slice(low, min(last, end) - begin - low))
            block += 1
        return pa.concat_tables(tables).combine_chunks()
