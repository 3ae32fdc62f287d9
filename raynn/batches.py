"""One worker's rows as contiguous tensors, and the batches gathered from them.

Where the rows live, device, memory or a memory-mapped file, changes the speed and never the batches.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raynn.collectives import Workers
from raynn.lanes import Lanes, contiguous_bounds
from raynn.randomness import row_keys

Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Shard:
    """`num_rows` rows of one split, from `first_row` of that split on: tensors by column, [N, ...] each."""

    tensors: dict[str, Tensor]
    first_row: int
    num_rows: int
    residence: str

    def gathered(self, rows: Tensor, device: torch.device) -> dict[str, Tensor]:
        """The batch of these rows (0 is the shard's first), on `device`."""
        batch = {name: tensor.index_select(0, rows) for name, tensor in self.tensors.items()}
        return batch if self.residence == "device" else _moved(batch, device)


def _moved(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The batch on `device`: to a GPU through pinned memory, without waiting."""
    if device.type != "cuda":
        return batch
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}


def choose_residence(size_bytes: int, budget_bytes: int, residence: str, device: torch.device) -> str:
    """Where a shard of `size_bytes` lives: "device" (a GPU with twice the room), "memory" or "disk"."""
    if residence == "disk" or (residence == "auto" and size_bytes > budget_bytes):
        return "disk"
    if device.type == "cuda" and 2 * size_bytes < torch.cuda.mem_get_info(device)[0]:
        return "device"
    return "memory"


def free_memory_bytes() -> int:
    """Memory that can be taken without swapping: the container's limit where there is one, else the machine's."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    else:  # macOS tells only how much there is
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


def build_shard(
    pieces: Iterable[Arrays],
    first_row: int,
    num_rows: int,
    *,
    folder: Path,
    device: torch.device,
    residence: str = "auto",
    budget_bytes: int | None = None,
) -> Shard:
    """Copies pieces [n, ...], in order, into one tensor a column; one piece is held beside them at a time.

    On "disk" the tensors are memory-mapped files in `folder`: random rows are read as batches need them, and the
    operating system keeps in memory what fits.
    """
    storage: Arrays = {}
    where, filled = "memory", 0
    for piece in pieces:
        if not storage:
            row_bytes = sum(a.dtype.itemsize * int(np.prod(a.shape[1:], dtype=np.int64)) for a in piece.values())
            budget = budget_bytes if budget_bytes is not None else free_memory_bytes() // 2
            where = choose_residence(row_bytes * num_rows, budget, residence, device)
            for name, array in piece.items():
                shape = (num_rows, *array.shape[1:])
                if where == "disk":
                    folder.mkdir(parents=True, exist_ok=True)
                    path = folder / f"{name}.bin"
                    storage[name] = np.memmap(path, dtype=array.dtype, mode="w+", shape=shape)
                else:
                    storage[name] = np.empty(shape, dtype=array.dtype)
        size = len(next(iter(piece.values())))
        for name, array in piece.items():
            storage[name][filled : filled + size] = array
        filled += size
    assert filled == num_rows, f"a shard of {num_rows} rows was given {filled}"
    tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in storage.items()}
    if where == "device":
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    return Shard(tensors, first_row, num_rows, where)


@dataclass(frozen=True)
class TrainingShard:
    """A worker's share of the training rows, dealt into batches by the lanes."""

    shard: Shard
    lanes: Lanes

    def batches(self, epoch: int, workers: Workers) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """This worker's share of every batch of an epoch, with the random keys [B] of its rows."""
        shares = self.lanes.batches(epoch, workers.rank, workers.count)
        sizes = [len(share) for share in shares]
        rows = np.concatenate(shares)
        keys = torch.from_numpy(row_keys(self.lanes.seed, epoch, rows)).to(workers.device)
        local = torch.from_numpy(rows - self.shard.first_row)
        if self.shard.residence == "device":
            local = local.to(workers.device)
        for rows_B, key_B in zip(local.split(sizes), keys.split(sizes), strict=True):
            yield self.shard.gathered(rows_B, workers.device), key_B


def evaluation_rows(num_rows: int, rank: int, num_workers: int) -> tuple[int, int]:
    """First and one past the last row that a worker evaluates: every row belongs to exactly one worker."""
    bounds = contiguous_bounds(num_rows, num_workers)
    return int(bounds[rank]), int(bounds[rank + 1])


def evaluation_batches(shard: Shard, rows_per_batch: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """The shard's rows in order, none left out."""
    for start in range(0, shard.num_rows, rows_per_batch):
        batch = {name: tensor[start : start + rows_per_batch] for name, tensor in shard.tensors.items()}
        yield batch if shard.residence == "device" else _moved(batch, device)
