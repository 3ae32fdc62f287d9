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

from raynn.encoded import Blocks
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

    @classmethod
    def over_steps(
        cls,
        new_S: NDArray[np.bool_],
        usable_S: NDArray[np.bool_],
        scored_S: NDArray[np.bool_],
        window: int,
        horizon: int,
    ) -> WindowPlan:
        """Every window of `window` steps to read and `horizon` steps to predict that lies in one run of usable steps,
        and its predicted ones in one run of scored steps.

        Args:
            new_S: where a series begins.
            usable_S: steps that may be read.
            scored_S: steps that may be predicted.
        """
        whole_S = run_lengths(new_S, usable_S) >= window + horizon
        stop_N = np.flatnonzero(whole_S & (run_lengths(new_S, scored_S) >= horizon)) + 1
        return cls(stop_N - window - horizon, stop_N)

    def strided(self, stride: int) -> WindowPlan:
        """The first of each run of windows that begin one step apart, and every `stride`-th after it."""
        first_N = np.diff(self.start_N, prepend=-2) != 1
        run_N = np.cumsum(first_N) - 1
        kept_N = (self.start_N - self.start_N[first_N][run_N]) % stride == 0
        columns = {name: values[kept_N] for name, values in self.columns.items()}
        return WindowPlan(self.start_N[kept_N], self.stop_N[kept_N], columns)


def run_lengths(new_S: NDArray[np.bool_], good_S: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many good steps in a row end at each step [S], itself counted; 0 at a bad one. A run ends where `new_S`."""
    step_S = np.arange(len(new_S))
    last_bad_S = np.maximum.accumulate(np.where(good_S, np.where(new_S, step_S - 1, -1), step_S))
    return step_S - last_bad_S


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
            begin = int(self.first_step[block])
            table = fetch(self.blocks[block])
            low = max(first - begin, 0)
            tables.append(table.slice(low, min(last - begin, table.num_rows) - low))
            block += 1
        return pa.concat_tables(tables).combine_chunks()
