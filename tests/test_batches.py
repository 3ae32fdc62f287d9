from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from raynn.batches import (
    Arrays,
    Shard,
    TrainingShard,
    build_shard,
    choose_residence,
    evaluation_batches,
    evaluation_rows,
    free_memory_bytes,
)
from raynn.collectives import Workers
from raynn.lanes import Lanes
from raynn.randomness import row_keys

CPU = torch.device("cpu")


def arrays(num_rows: int) -> Arrays:
    random = np.random.default_rng(0)
    return {
        "numeric": random.normal(size=(num_rows, 3)).astype(np.float32),
        "image": random.integers(0, 256, (num_rows, 1, 2, 2), dtype=np.uint8),
        "target": np.arange(num_rows),
    }


def pieces(whole: Arrays, *cuts: int) -> Iterator[Arrays]:
    bounds = [0, *cuts, len(whole["target"])]
    for start, stop in pairwise(bounds):
        yield {name: array[start:stop] for name, array in whole.items()}


def shard_of(whole: Arrays, folder: Path, residence: str, first_row: int = 0) -> Shard:
    num_rows = len(whole["target"])
    return build_shard(
        pieces(whole, 1, 1, num_rows // 2), first_row, num_rows, folder=folder, device=CPU, residence=residence
    )


@pytest.mark.parametrize("residence", ["memory", "disk", "auto"])
def test_a_shard_holds_its_pieces_in_order(tmp_path: Path, residence: str) -> None:
    whole = arrays(20)
    shard = shard_of(whole, tmp_path / "scratch", residence)
    assert shard.residence == ("disk" if residence == "disk" else "memory")
    assert (tmp_path / "scratch").exists() == (residence == "disk")
    for name, array in whole.items():
        assert shard.tensors[name].numpy().dtype == array.dtype
        np.testing.assert_array_equal(shard.tensors[name].numpy(), array)


@pytest.mark.parametrize("num_rows", [19, 21])
def test_a_shard_is_given_all_its_rows(tmp_path: Path, num_rows: int) -> None:
    with pytest.raises((AssertionError, ValueError), match=r"given 20|broadcast"):
        build_shard(pieces(arrays(20)), 0, num_rows, folder=tmp_path, device=CPU)


def test_memory_and_disk_give_the_same_batches(tmp_path: Path) -> None:
    whole, lanes = arrays(100), Lanes(100, 12, seed=3)
    trained, evaluated = [], []
    for residence in ("memory", "disk"):
        shard = shard_of(whole, tmp_path, residence)
        train = TrainingShard(shard, lanes)
        trained.append([batch | {"key": key_B} for e in range(2) for batch, key_B in train.batches(e, Workers())])
        evaluated.append(list(evaluation_batches(shard, 7, CPU)))
    for in_memory, on_disk in (trained, evaluated):
        assert len(in_memory) == len(on_disk) > 1
        for a, b in zip(in_memory, on_disk, strict=True):
            assert a.keys() == b.keys()
            assert all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def test_batches_are_those_of_the_lanes_with_the_keys_of_their_rows(tmp_path: Path) -> None:
    whole, lanes = arrays(50), Lanes(50, 8, seed=5)
    for count in (1, 3):
        for rank in range(count):
            start, stop = lanes.rows_of_worker(rank, count)
            part = {name: array[start:stop] for name, array in whole.items()}
            train = TrainingShard(shard_of(part, tmp_path, "memory", first_row=start), lanes)
            found = list(train.batches(4, Workers(rank, count)))
            for (batch, key_B), rows in zip(found, lanes.batches(4, rank, count), strict=True):
                np.testing.assert_array_equal(batch["target"].numpy(), rows)
                np.testing.assert_array_equal(batch["numeric"].numpy(), whole["numeric"][rows])
                np.testing.assert_array_equal(key_B.numpy(), row_keys(5, 4, rows))


@pytest.mark.parametrize("num_workers", [1, 2, 3, 7])
@pytest.mark.parametrize("rows_per_batch", [1, 4, 100])
def test_evaluation_covers_every_row_once(tmp_path: Path, num_workers: int, rows_per_batch: int) -> None:
    whole, seen = arrays(17), []
    for rank in range(num_workers):
        start, stop = evaluation_rows(17, rank, num_workers)
        part = {name: array[start:stop] for name, array in whole.items()}
        for batch in evaluation_batches(shard_of(part, tmp_path, "memory", start), rows_per_batch, CPU):
            assert 0 < len(batch["target"]) <= rows_per_batch
            seen += batch["target"].tolist()
    assert seen == list(range(17))


def test_a_worker_without_rows_to_evaluate_has_no_batch(tmp_path: Path) -> None:
    assert evaluation_rows(2, 0, 4) == (0, 0)
    empty = build_shard(iter([]), 0, 0, folder=tmp_path, device=CPU)
    assert list(evaluation_batches(empty, 4, CPU)) == []


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


def test_a_shard_is_measured_before_it_is_filled(tmp_path: Path) -> None:
    # a row: 3 float32, 4 bytes of pixels, 1 int64
    for budget, residence in ((20 * 24, "memory"), (20 * 24 - 1, "disk")):
        shard = build_shard(pieces(arrays(20), 5), 0, 20, folder=tmp_path, device=CPU, budget_bytes=budget)
        assert shard.residence == residence


def test_free_memory_is_less_than_the_machine_has() -> None:
    meminfo = Path("/proc/meminfo").read_text()
    total = int(re.search(r"MemTotal: +(\d+) kB", meminfo)[1]) * 1024  # type: ignore[index]
    assert 0 < free_memory_bytes() < total


@pytest.mark.gpu
def test_a_gpu_gives_the_same_batches(tmp_path: Path) -> None:
    whole, lanes, gpu = arrays(100), Lanes(100, 12, seed=3), torch.device("cuda", 0)
    found = {}
    for residence in ("auto", "disk"):
        shard = build_shard(pieces(whole, 30), 0, 100, folder=tmp_path, device=gpu, residence=residence)
        assert shard.residence == {"auto": "device", "disk": "disk"}[residence]
        found[residence] = list(TrainingShard(shard, lanes).batches(1, Workers(device=gpu)))
    expected = TrainingShard(shard_of(whole, tmp_path / "cpu", "memory"), lanes).batches(1, Workers())
    for (batch, key_B), a, b in zip(expected, found["auto"], found["disk"], strict=True):
        for on_gpu, gpu_key_B in (a, b):
            assert torch.equal(gpu_key_B.cpu(), key_B)
            assert all(t.device == gpu and torch.equal(t.cpu(), batch[name]) for name, t in on_gpu.items())
