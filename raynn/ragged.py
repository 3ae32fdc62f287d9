"""Sequences of different lengths, and windows that overlap: all steps one after the other, and where each begins and
ends. Nothing is cut out until a batch needs it.

Shapes: N sequences, S steps of all of them, ... what a step holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Ragged:
    """Sequence n holds steps start_N[n] .. stop_N[n] (int64) of `values` [S, ...]."""

    values: npt.NDArray[Any]
    start_N: npt.NDArray[np.int64]
    stop_N: npt.NDArray[np.int64]

    @classmethod
    def consecutive(cls, values: npt.NDArray[Any], length_N: npt.NDArray[np.integer[Any]]) -> Ragged:
        """Sequences of these lengths, one behind the other."""
        stop_N = np.cumsum(length_N, dtype=np.int64)
        return cls(values, stop_N - length_N, stop_N)

    def __len__(self) -> int:
        return len(self.start_N)

    def __getitem__(self, rows: slice) -> Ragged:
        """Sequences start .. stop, a view of the steps from the first that one of them holds to the last."""
        assert rows.step in (None, 1), "only sequences that follow one another are a view"
        start_N, stop_N = self.start_N[rows], self.stop_N[rows]
        if not len(start_N):
            return Ragged(self.values[:0], start_N, stop_N)
        first = int(start_N.min())
        return Ragged(self.values[first : int(stop_N.max())], start_N - first, stop_N - first)

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Ragged:
        """One after the other."""
        first_P = np.cumsum([0, *(len(part.values) for part in parts)])
        starts = [part.start_N + first for part, first in zip(parts, first_P[:-1], strict=True)]
        stops = [part.stop_N + first for part, first in zip(parts, first_P[:-1], strict=True)]
        values = np.concatenate([part.values for part in parts])
        return cls(values, np.concatenate(starts), np.concatenate(stops))
