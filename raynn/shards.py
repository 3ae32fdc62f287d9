"""One worker's rows of a split as contiguous tensors: on the GPU, in memory, or in memory-mapped files.

Where the rows live changes the speed and never the batches.

Shapes: N rows, B rows of a batch, S steps of all sequences, T the longest of a batch, C channels.
"""

from __future__ import annotations

import math
import os
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raynn.errors import ResourceError
from raynn.footprint import in_words
from raynn.ragged import Ragged

Arrays = dict[str, NDArray[Any] | Ragged]


@dataclass(frozen=True)
class RaggedTensor:
    """Sequence n holds steps start_N[n] .. stop_N[n] of `values` [S, ...]. `length` where all have one, else None."""

    values: Tensor
    start_N: Tensor
    stop_N: Tensor
    length: int | None
    length_N: Tensor | None = None  # in memory, where lengths differ and the rest is on a device

    @classmethod
    def of(cls, values: Tensor, start_N: Tensor, stop_N: Tensor) -> RaggedTensor:
        """Looks whether all sequences are equally long, so that no batch has to."""
        lengths = (stop_N - start_N).unique()
        return cls(values, start_N, stop_N, int(lengths) if len(lengths) == 1 else None)

    def to(self, device: torch.device) -> RaggedTensor:
        """The same on a device."""
        length_N = None if self.length is not None else self.stop_N - self.start_N
        values, start_N, stop_N = (x.to(device) for x in (self.values, self.start_N, self.stop_N))
        return RaggedTensor(values, start_N, stop_N, self.length, length_N)

    def padded(self, rows_B: Tensor, here_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The sequences of these rows [B, T, ...], T the longest of them (1 where all are empty, as those of bad rows
        are), zeros after the end of each; lengths [B]. `here_B` are the rows in memory, where `rows_B` are on a device:
        with them nothing is asked of the device, which its host would wait for.
        """
        start_B = self.start_N[rows_B]
        length_B = self.stop_N[rows_B] - start_B
        if self.length is not None:
            longest = self.length
        elif self.length_N is not None and here_B is not None:
            longest = int(self.length_N[here_B].max())
        else:
            longest = int(length_B.max())
        step_T = torch.arange(max(1, longest), device=start_B.device)
        place_BT = start_B[:, None] + step_T
        if self.length:
            return self.values[place_BT], length_B
        within_BT = step_T < length_B[:, None]
        fill = _picked if self.values.device.type == "cpu" else _masked
        return fill(self.values, place_BT, within_BT), length_B


def _picked(values: Tensor, place_BT: Tensor, within_BT: Tensor) -> Tensor:
    """The values at the places that are within [B, T, ...], zeros elsewhere."""
    x = values.new_zeros((*within_BT.shape, *values.shape[1:]))
    x[within_BT] = values[place_BT[within_BT]]
    return x


def _masked(values: Tensor, place_BT: Tensor, within_BT: Tensor) -> Tensor:
    """The same, in another way: to pick places out a device would tell its host how many there are, which waits."""
    if not len(values):
        return _picked(values, place_BT, within_BT)
    x = values[place_BT.clamp(max=len(values) - 1)]
    return x.masked_fill(~within_BT.reshape(*within_BT.shape, *([1] * (x.dim() - 2))), 0)


@dataclass(frozen=True)
class Shard:
    """`num_rows` rows of one split, from `first_row` of that split on: tensors by column, [N, ...] each."""

    tensors: dict[str, Tensor | RaggedTensor]
    first_row: int
    num_rows: int
    residence: str

    @property
    def ragged(self) -> tuple[str, ...]:
        """The columns of sequences whose lengths differ."""
        return tuple(n for n, t in self.tensors.items() if isinstance(t, RaggedTensor) and t.length is None)

    def first(self, num_rows: int) -> Shard:
        """The first rows alone, in place."""
        tensors: dict[str, Tensor | RaggedTensor] = {}
        for name, tensor in self.tensors.items():
            if isinstance(tensor, RaggedTensor):
                bounds = tensor.start_N[:num_rows], tensor.stop_N[:num_rows]
                length_N = None if tensor.length_N is None else tensor.length_N[:num_rows]
                tensors[name] = RaggedTensor(tensor.values, *bounds, tensor.length, length_N)
            else:
                tensors[name] = tensor[:num_rows]
        return Shard(tensors, self.first_row, num_rows, self.residence)

    def by_length(self) -> Tensor | None:
        """All rows, those of the longest sequences first, so that neighbors need little padding. None where all lengths
        are alike.
        """
        if not self.ragged:
            return None
        column = self.tensors[self.ragged[0]]
        assert isinstance(column, RaggedTensor)
        return (column.stop_N - column.start_N).argsort(descending=True, stable=True)

    def gathered(self, rows: Tensor, device: torch.device, here: Tensor | None = None) -> dict[str, Tensor]:
        """The batch of these rows (0 is the shard's first), on `device`. Where that has the shard, `rows` are on it,
        and in memory `here`, if its host is not to wait for it.
        """
        batch: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            if isinstance(tensor, RaggedTensor):
                x, batch["length"] = tensor.padded(rows, here)
                batch[name] = x if x.is_floating_point() else x.long()  # tokens may be kept in bytes
            else:
                batch[name] = tensor.index_select(0, rows)
        return batch if self.residence == "device" else {name: sent(x, device) for name, x in batch.items()}


def sent(x: Tensor, device: torch.device) -> Tensor:
    """`x`, which is in memory, on the device: to a GPU through pinned memory, without waiting."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


PlainShard = tuple[dict[str, Any], int, int]  # arrays by column, first row, rows


def as_arrays(shard: Shard) -> PlainShard:
    """A shard in memory as plain arrays, without a copy: what Ray's object store keeps once per node."""
    plain: dict[str, Any] = {}
    for name, tensor in shard.tensors.items():
        if isinstance(tensor, RaggedTensor):
            plain[name] = (tensor.values.numpy(), tensor.start_N.numpy(), tensor.stop_N.numpy())
        else:
            plain[name] = tensor.numpy()
    return plain, shard.first_row, shard.num_rows


def from_arrays(plain: PlainShard, device: torch.device) -> Shard:
    """The shard that `as_arrays` took apart: read in place from memory that others read too, or on the GPU where it
    fits.
    """
    columns, first_row, num_rows = plain
    tensors: dict[str, Tensor | RaggedTensor] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # shared memory cannot be written, and a shard is only read
        for name, column in columns.items():
            if isinstance(column, tuple):
                tensors[name] = RaggedTensor.of(*(torch.from_numpy(array) for array in column))
            else:
                tensors[name] = torch.from_numpy(column)
    size = sum(x.nbytes for column in columns.values() for x in (column if isinstance(column, tuple) else (column,)))
    where = choose_residence(size, size, "auto", device)
    if where == "device":
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    return Shard(tensors, first_row, num_rows, where)


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


def free_bytes(folder: Path) -> int:
    """Of the disk that the folder, or what of it is there already, lies on."""
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free


def no_room(folder: Path, needed_bytes: int) -> ResourceError:
    """A disk that cannot hold what does not fit in memory."""
    return ResourceError(
        f"{folder} is on a disk with {in_words(free_bytes(folder))} free, and rows that do not fit in memory take "
        f"{in_words(needed_bytes)} there; name a folder on a larger disk (resources.scratch=FOLDER), raise "
        "resources.memory_gib, or use more workers on other nodes"
    )


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
    """Copies pieces [n, ...], in order, into one tensor a column; one piece is held beside them at a time (sequences of
    different lengths are held twice while they are joined in memory).

    On "disk" the tensors are memory-mapped files in `folder`: random rows are read as batches need them, and the
    operating system keeps in memory what fits.

    Raises:
        ResourceError: the disk cannot hold them.
    """
    columns: dict[str, _Rows | _Steps] = {}
    where, filled = "memory", 0
    for piece in pieces:
        if not columns:
            budget = budget_bytes if budget_bytes is not None else free_memory_bytes() // 2
            where = choose_residence(round(row_bytes(piece) * num_rows), budget, residence, device)
            if where == "disk":
                folder.mkdir(parents=True, exist_ok=True)
                needed = math.ceil(row_bytes(piece) * num_rows)
                if needed > free_bytes(folder):
                    raise no_room(folder, needed)
            for name, array in piece.items():
                path = folder / f"{name}.bin" if where == "disk" else None
                columns[name] = _Steps(path) if isinstance(array, Ragged) else _Rows(num_rows, array, path)
        for name, array in piece.items():
            columns[name].add(array)
        filled += len(next(iter(piece.values())))
    assert filled == num_rows, f"a shard of {num_rows} rows was given {filled}"
    tensors = {name: column.tensor() for name, column in columns.items()}
    if where == "device":
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    return Shard(tensors, first_row, num_rows, where)


def row_bytes(piece: Arrays) -> float:
    """Bytes a row, on average."""
    total = sum(array.values.nbytes if isinstance(array, Ragged) else array.nbytes for array in piece.values())
    return total / max(1, len(next(iter(piece.values()))))


def _allocate(file: int, num_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, num_bytes)
    else:  # macOS
        os.truncate(file, num_bytes)


class _Rows:
    """A column whose rows are alike: one array for all of them, filled piece by piece."""

    def __init__(self, num_rows: int, like: NDArray[Any], path: Path | None) -> None:
        shape = (num_rows, *like.shape[1:])
        self.filled = 0
        self.array: NDArray[Any]
        if path is None:
            self.array = np.empty(shape, dtype=like.dtype)
        else:
            # all of its blocks are taken now: a disk that is full later would end the process, not raise an error
            size = math.prod(shape) * like.dtype.itemsize
            with path.open("wb") as file:
                try:
                    _allocate(file.fileno(), size)
                except OSError as error:
                    raise no_room(path.parent, size) from error
            self.array = np.memmap(path, dtype=like.dtype, mode="r+", shape=shape)

    def add(self, array: Any) -> None:
        """The next rows."""
        self.array[self.filled : self.filled + len(array)] = array
        self.filled += len(array)

    def tensor(self) -> Tensor:
        """All rows, without a copy."""
        return torch.from_numpy(np.asarray(self.array))


class _Steps:
    """A column of sequences whose lengths differ: how many steps there will be is known at the end."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.parts: list[Ragged] = []
        self.filled = 0  # steps in the file

    def add(self, ragged: Any) -> None:
        """The next sequences; on disk only where they begin and end stays in memory."""
        if self.path is None:
            self.parts.append(ragged)
            return
        with self.path.open("ab" if self.parts else "wb") as file:
            np.ascontiguousarray(ragged.values).tofile(file)
        self.parts.append(Ragged(ragged.values[:0].copy(), ragged.start_N + self.filled, ragged.stop_N + self.filled))
        self.filled += len(ragged.values)

    def tensor(self) -> RaggedTensor:
        """All sequences."""
        whole = Ragged.joined(self.parts)
        values = whole.values
        if self.path is not None and self.filled:
            values = np.memmap(self.path, dtype=values.dtype, mode="r+", shape=(self.filled, *values.shape[1:]))
        bounds = torch.from_numpy(whole.start_N), torch.from_numpy(whole.stop_N)
        return RaggedTensor.of(torch.from_numpy(np.asarray(values)), *bounds)
