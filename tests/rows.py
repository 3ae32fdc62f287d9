"""Rows of a split in pieces: what the tests of shards and batches hold."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from raynn.ragged import Ragged
from raynn.shards import Arrays, Shard, build_shard

CPU = torch.device("cpu")


def arrays(num_rows: int) -> Arrays:
    """Numbers, images, sequences of 0 to 4 steps of 2 channels, and the row's number as target."""
    random = np.random.default_rng(0)
    length_N = random.integers(0, 5, num_rows)
    return {
        "numeric": random.normal(size=(num_rows, 3)).astype(np.float32),
        "image": random.integers(0, 256, (num_rows, 1, 2, 2), dtype=np.uint8),
        "sequence": Ragged.consecutive(random.normal(size=(length_N.sum(), 2)).astype(np.float32), length_N),
        "target": np.arange(num_rows),
    }


def part(whole: Arrays, start: int, stop: int) -> Arrays:
    return {name: array[start:stop] for name, array in whole.items()}


def pieces(whole: Arrays, *cuts: int) -> Iterator[Arrays]:
    for start, stop in pairwise([0, *cuts, len(whole["target"])]):
        yield part(whole, start, stop)


def shard_of(whole: Arrays, folder: Path, residence: str, first_row: int = 0) -> Shard:
    num_rows = len(whole["target"])
    return build_shard(
        pieces(whole, 1, 1, num_rows // 2), first_row, num_rows, folder=folder, device=CPU, residence=residence
    )


def steps_of(whole: Arrays, row: int) -> np.ndarray:
    """Steps [T, 2] of one row's sequence."""
    ragged = whole["sequence"]
    assert isinstance(ragged, Ragged)
    return ragged.values[ragged.start_N[row] : ragged.stop_N[row]]
