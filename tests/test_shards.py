from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rows import CPU, arrays, pieces, shard_of, steps_of

from raynn.ragged import Ragged
from raynn.shards import (
    Arrays,
    RaggedTensor,
    _masked,
    _picked,
    as_arrays,
    build_shard,
    choose_residence,
    free_memory_bytes,
    from_arrays,
)


@pytest.mark.parametrize("residence", ["memory", "disk", "auto"])
def test_a_shard_holds_its_pieces_in_order(tmp_path: Path, residence: str) -> None:
    whole = arrays(20)
    shard = shard_of(whole, tmp_path / "scratch", residence)
    assert shard.residence == ("disk" if residence == "disk" else "memory")
    assert (tmp_path / "scratch").exists() == (residence == "disk")
    assert shard.tensors.keys() == whole.keys()
    for name, array in whole.items():
        found = shard.tensors[name]
        if isinstance(array, Ragged):
            assert isinstance(found, RaggedTensor)
            pairs = [(found.values, array.values), (found.start_N, array.start_N), (found.stop_N, array.stop_N)]
        else:
            pairs = [(found, array)]
        for tensor, expected in pairs:
            assert tensor.numpy().dtype == expected.dtype
            np.testing.assert_array_equal(tensor.numpy(), expected)


@pytest.mark.parametrize("residence", ["memory", "disk"])
def test_a_shard_of_empty_sequences(tmp_path: Path, residence: str) -> None:
    empty: Arrays = {"sequence": Ragged.consecutive(np.zeros((0, 3), np.float32), np.zeros(4, np.int64))}
    shard = build_shard(iter([empty, empty]), 0, 8, folder=tmp_path, device=CPU, residence=residence)
    batch = shard.gathered(torch.tensor([7, 0]), CPU)
    assert torch.equal(batch["sequence"], torch.zeros(2, 1, 3))
    assert batch["length"].tolist() == [0, 0]


def test_files_of_an_earlier_shard_are_written_over(tmp_path: Path) -> None:
    shard_of(arrays(30), tmp_path, "disk")
    whole = arrays(10)
    assert torch.equal(
        shard_of(whole, tmp_path, "disk").gathered(torch.arange(10), CPU)["sequence"],
        shard_of(whole, tmp_path, "memory").gathered(torch.arange(10), CPU)["sequence"],
    )


@pytest.mark.parametrize("num_rows", [19, 21])
def test_a_shard_is_given_all_its_rows(tmp_path: Path, num_rows: int) -> None:
    with pytest.raises((AssertionError, ValueError), match=r"given 20|broadcast"):
        build_shard(pieces(arrays(20)), 0, num_rows, folder=tmp_path, device=CPU)


@pytest.mark.parametrize("rows", [[0], [3, 1, 1, 0], [2], list(range(12)), [11, 2]])
def test_sequences_are_padded_to_the_longest_of_the_batch(tmp_path: Path, rows: list[int]) -> None:
    whole = arrays(12)
    tensor = shard_of(whole, tmp_path, "memory").tensors["sequence"]
    assert isinstance(tensor, RaggedTensor)
    x_BTC, length_B = tensor.padded(torch.tensor(rows))
    lengths = [len(steps_of(whole, row)) for row in rows]
    assert length_B.tolist() == lengths
    assert x_BTC.shape == (len(rows), max(1, *lengths), 2)
    assert x_BTC.dtype == torch.float32
    for row, x_TC in zip(rows, x_BTC.numpy(), strict=True):
        steps_TC = steps_of(whole, row)
        np.testing.assert_array_equal(x_TC[: len(steps_TC)], steps_TC)
        assert not x_TC[len(steps_TC) :].any()


@pytest.mark.parametrize("fill", [_picked, _masked])
@pytest.mark.parametrize("rows", [[0], [3, 1, 1, 0], [2], list(range(12)), [11, 2]])
def test_both_ways_to_pad_give_the_same(
    tmp_path: Path, rows: list[int], fill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one for devices, too, where the longest of a batch is told from lengths in memory."""
    tensor = shard_of(arrays(12), tmp_path, "memory").tensors["sequence"]
    assert isinstance(tensor, RaggedTensor)
    expected = tensor.padded(torch.tensor(rows))
    monkeypatch.setattr("raynn.shards._picked", fill)
    found = tensor.to(CPU).padded(torch.tensor(rows), torch.tensor(rows))
    assert all(map(torch.equal, found, expected))


def test_nothing_but_empty_sequences_is_padding() -> None:
    nothing = RaggedTensor.of(torch.zeros(0, 2), torch.tensor([0, 0]), torch.tensor([0, 0]))
    x_BTC, length_B = nothing.padded(torch.tensor([1]))
    assert torch.equal(_masked(nothing.values, torch.zeros(1, 1).long(), torch.zeros(1, 1).bool()), x_BTC)
    assert length_B.tolist() == [0]


@pytest.mark.parametrize("fill", [_picked, _masked])
def test_padding_is_zero_whatever_lies_beyond(fill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raynn.shards._picked", fill)
    values_SC = torch.tensor([[1.0], [2.0], [torch.nan], [torch.inf]])
    x_BTC, length_B = RaggedTensor.of(values_SC, torch.tensor([0, 1, 2]), torch.tensor([1, 2, 4])).padded(
        torch.tensor([1, 0, 2])
    )
    assert length_B.tolist() == [1, 1, 2]
    assert x_BTC[:2].squeeze(2).tolist() == [[2.0, 0.0], [1.0, 0.0]]


def test_windows_of_one_length_are_cut_from_one_series(tmp_path: Path) -> None:
    values_SC = np.arange(20, dtype=np.float32).reshape(10, 2)
    start_N = np.arange(7)
    windows = Ragged(values_SC, start_N, start_N + 4)
    for residence in ("memory", "disk"):
        shard = build_shard(
            iter([{"numeric": windows[:3]}, {"numeric": windows[3:]}]),
            0,
            7,
            folder=tmp_path,
            device=CPU,
            residence=residence,
        )
        batch = shard.gathered(torch.tensor([6, 0, 3]), CPU)
        assert batch["numeric"].tolist() == [values_SC[i : i + 4].tolist() for i in (6, 0, 3)]
        assert batch["length"].tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    ("size", "budget", "residence", "chosen"),
    [
        (10, 10, "auto", "memory"),
        (11, 10, "auto", "disk"),
        (11, 10, "memory", "memory"),
        (1, 10, "disk", "disk"),
    ],
)
def test_residence(size: int, budget: int, residence: str, chosen: str) -> None:
    assert choose_residence(size, budget, residence, CPU) == chosen


@pytest.mark.parametrize(
    ("name", "num_bytes"),
    [
        ("numeric", 20 * 12),
        ("image", 20 * 4),
        ("target", 20 * 8),
        ("sequence", len(arrays(20)["sequence"].values) * 8),
    ],  # type: ignore[union-attr]
)
def test_a_shard_is_measured_before_it_is_filled(tmp_path: Path, name: str, num_bytes: int) -> None:
    whole: Arrays = {name: arrays(20)[name]}
    for budget, residence in ((num_bytes, "memory"), (num_bytes - 1, "disk")):
        shard = build_shard(iter([whole]), 0, 20, folder=tmp_path, device=CPU, budget_bytes=budget)
        assert shard.residence == residence


def test_free_memory_is_less_than_the_machine_has() -> None:
    meminfo = Path("/proc/meminfo").read_text()
    total = int(re.search(r"MemTotal: +(\d+) kB", meminfo)[1]) * 1024  # type: ignore[index]
    assert 0 < free_memory_bytes() < total


def test_what_is_shared_is_read_in_place() -> None:
    """A shard taken apart and put together again has the same rows, in the same memory."""
    ragged = Ragged(np.arange(12.0).reshape(6, 2), np.array([0, 2, 2]), np.array([2, 2, 6]))
    piece: Arrays = {"numeric": np.arange(6, dtype=np.float32).reshape(3, 2), "sequence": ragged}
    whole = build_shard([piece], 5, 3, folder=Path(), device=CPU, residence="memory")
    plain = as_arrays(whole)
    for column in plain[0].values():
        for array in column if isinstance(column, tuple) else (column,):
            array.flags.writeable = False  # as in Ray's object store
    again = from_arrays(plain, CPU)
    assert (again.first_row, again.num_rows, again.residence) == (5, 3, "memory")
    rows = torch.tensor([2, 0])
    for name, x in whole.gathered(rows, CPU).items():
        assert torch.equal(again.gathered(rows, CPU)[name], x)
    numeric = again.tensors["numeric"]
    assert isinstance(numeric, torch.Tensor)
    assert numeric.data_ptr() == plain[0]["numeric"].ctypes.data
