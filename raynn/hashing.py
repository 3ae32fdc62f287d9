"""One hash of 64-bit numbers, from which row samples and random numbers are made."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio, odd


def splitmix64(x: NDArray[np.integer[Any]]) -> NDArray[np.uint64]:
    """The next output of SplitMix64 at state `x` (Steele, Lea and Flood 2014, fig. 17), element by element.

    A bijection of 64-bit numbers: no two collide. Signed numbers count modulo 2**64.
    """
    with np.errstate(over="ignore"):
        z = np.asarray(x).astype(np.uint64) + GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
