"""Sequences of different lengths: all steps one after the other, and where each sequence begins.

Shapes: N sequences, S steps of all of them, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Ragged:
    """`values_SC` holds sequence n in rows offset_N1[n] .. offset_N1[n + 1] (int64 [N + 1], from 0 to S)."""

    values_SC: npt.NDArray[Any]
    offset_N1: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offset_N1) - 1

    def __getitem__(self, rows: slice) -> Ragged:
        """Sequences start .. stop, a view of their steps."""
        start, stop, step = rows.indices(len(self))
        assert step == 1, "only sequences that follow one another are a view"
        offset_N1 = self.offset_N1[start : max(start, stop) + 1]
        return Ragged(self.values_SC[offset_N1[0] : offset_N1[-1]], offset_N1 - offset_N1[0])

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Ragged:
        """One after the other."""
        lengths_N = np.concatenate([np.diff(part.offset_N1) for part in parts])
        values_SC = np.concatenate([part.values_SC for part in parts])
        return cls(values_SC, np.concatenate([[0], np.cumsum(lengths_N)]))
