"""Random numbers as a function of (seed, epoch, row, place): counter-based, so that they do not depend on how rows are
dealt to workers, need no state in a checkpoint, and are the same on resume.

Shapes: B rows of a batch, N random numbers a row, T positions of a row.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raynn.hashing import splitmix64
from raynn.sharding import first_component, own


def row_keys(seed: int, epoch: int, rows: NDArray[np.int64]) -> NDArray[np.int32]:
    """One 32-bit key a row and epoch, shape of `rows`."""
    counter = splitmix64(splitmix64(np.array([seed], np.uint64)) ^ np.array([epoch], np.uint64))
    return (splitmix64(rows.astype(np.uint64) ^ counter) >> np.uint64(32)).astype(np.uint32).view(np.int32)


def column_salts(place: int, num: int) -> Tensor:
    """One fixed 32-bit number a column [N] for the place (a layer) that draws."""
    counter = splitmix64(np.array([place + 1], np.uint64)) + np.arange(num).astype(np.uint64)
    return torch.from_numpy((splitmix64(counter) >> np.uint64(32)).astype(np.uint32).view(np.int32).copy())


@lru_cache(maxsize=1024)
def salts_on(device: torch.device, place: int, num: int) -> Tensor:
    """`column_salts` on a device, kept there: sent anew for each batch a GPU's host would wait for them. Only read."""
    return column_salts(place, num).to(device)


def random_bits(key_B: Tensor, salt_N: Tensor) -> Tensor:
    """Uniform 31-bit integers [B, N] (int32, 0 .. 2**31 - 1) from keys and salts, [N] or each row's own [B, N]."""
    return _mixed(key_B, salt_N) & 0x7FFFFFFF


def random_bytes(key_B: Tensor, salt_N: Tensor) -> Tensor:
    """Uniform bytes [B, 4 N] (uint8, 0 .. 255) from keys and salts: four for the price of one."""
    return _mixed(key_B, salt_N).view(torch.uint8)


def step_key(seed: int, epoch: int, step: int, device: torch.device) -> Tensor:
    """The key [1] of a step (0 is an epoch's first), for what all workers draw alike."""
    key = int(row_keys(seed, epoch, np.array([-1 - step]))[0])  # no row has a negative number
    return torch.full((1,), key, dtype=torch.int32, device=device)


def again(key_B: Tensor) -> Tensor:
    """Other keys [B] for the same rows, for a second pass over them."""
    return random_bits(key_B, salts_on(key_B.device, 1 << 22, 1))[:, 0]


def component_salts(place: int, parameter: Tensor) -> Tensor:
    """A number of its own [P] for each component of a parameter, and another for the same one of another place; of a
    parameter that is cut, for those of this worker's part.
    """
    first, mine = 1 + first_component(parameter), own(parameter)
    place_P = torch.arange(first, first + mine.numel(), dtype=torch.int32, device=mine.device)
    return random_bits(salts_on(mine.device, place, 1), place_P * -0x61C88647)[0]


def position_keys(key_B: Tensor, num_positions: int, first: int = 0) -> Tensor:
    """A key of its own (0 .. 2**31 - 1) for every row and position, from position `first` on [B, T]."""
    place_T = torch.arange(first, first + num_positions, dtype=torch.int32, device=key_B.device)
    return random_bits(key_B, place_T * -0x61C88647)  # 2**32 over the golden ratio, as a signed number


def _mixed(key_B: Tensor, salt_N: Tensor) -> Tensor:
    """32 bits [B, N] (int32): the `lowbias32` hash (C. Wellons, "Prospecting for hash functions", 2018) of key xor
    salt. int32 products wrap as unsigned ones do, and the masks make arithmetic shifts logical.
    """
    x = key_B[:, None] ^ salt_N
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * -0x7B935975  # 0x846CA68B as a signed number
    return x ^ ((x >> 16) & 0xFFFF)


def uniform(key_B: Tensor, salt_N: Tensor) -> Tensor:
    """Uniform numbers [B, N] (float32) strictly between 0 and 1: the middles of 2**23 equal intervals, all exact."""
    return ((random_bits(key_B, salt_N) >> 8).float() + 0.5) * 2.0**-23


def normal(key_B: Tensor, salt_N: Tensor) -> Tensor:
    """Standard normal numbers [B, N] (float32), by the inverse of the distribution function; none is beyond 5.3."""
    return (2.0 * uniform(key_B, salt_N) - 1.0).erfinv() * 2.0**0.5
