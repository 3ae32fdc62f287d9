from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rows import CPU, arrays, part, pieces, shard_of, steps_of

from raynn import batches
from raynn.ahead import made_ahead
from raynn.batches import EVALUATION_SEED, TrainingShard, evaluation_batches, evaluation_rows, pieces_that_pay
from raynn.collectives import Workers
from raynn.lanes import Lanes
from raynn.randomness import row_keys
from raynn.shards import build_shard


def test_memory_and_disk_give_the_same_batches(tmp_path: Path) -> None:
    whole, lanes = arrays(100), Lanes(100, 12, seed=3)
    trained, evaluated = [], []
    for residence in ("memory", "disk"):
        shard = shard_of(whole, tmp_path, residence)
        train = TrainingShard(shard, lanes)
        trained.append([batch | {"key": key_B} for e in range(2) for batch, key_B in train.batches(e, Workers())])
        evaluated.append([batch | {"key": key_B} for batch, key_B in evaluation_batches(shard, 7, CPU)])
    for in_memory, on_disk in (trained, evaluated):
        assert len(in_memory) == len(on_disk) > 1
        for a, b in zip(in_memory, on_disk, strict=True):
            assert a.keys() == b.keys() >= {"sequence", "length"}
            assert all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def test_batches_are_those_of_the_lanes_with_the_keys_of_their_rows(tmp_path: Path) -> None:
    whole, lanes = arrays(50), Lanes(50, 8, seed=5)
    for count in (1, 3):
        for rank in range(count):
            start, stop = lanes.rows_of_worker(rank, count)
            train = TrainingShard(shard_of(part(whole, start, stop), tmp_path, "memory", first_row=start), lanes)
            found = list(train.batches(4, Workers(rank, count)))
            for (batch, key_B), rows in zip(found, lanes.batches(4, rank, count), strict=True):
                np.testing.assert_array_equal(batch["target"].numpy(), rows)
                np.testing.assert_array_equal(batch["numeric"].numpy(), whole["numeric"][rows])
                for row, x_TC, length in zip(rows, batch["sequence"], batch["length"], strict=True):
                    np.testing.assert_array_equal(x_TC[:length].numpy(), steps_of(whole, row))
                np.testing.assert_array_equal(key_B.numpy(), row_keys(5, 4, rows))


@pytest.mark.parametrize("num_workers", [1, 2, 3, 7])
@pytest.mark.parametrize("rows_per_batch", [1, 4, 100])
def test_evaluation_covers_every_row_once(tmp_path: Path, num_workers: int, rows_per_batch: int) -> None:
    whole, seen = arrays(17), []
    for rank in range(num_workers):
        start, stop = evaluation_rows(17, rank, num_workers)
        shard = shard_of(part(whole, start, stop), tmp_path, "memory", start)
        for batch, key_B in evaluation_batches(shard, rows_per_batch, CPU):
            np.testing.assert_array_equal(key_B.numpy(), row_keys(EVALUATION_SEED, 0, batch["target"].numpy()))
            assert 0 < len(batch["target"]) <= rows_per_batch
            assert batch["sequence"].shape[:2] == (len(batch["target"]), max(1, int(batch["length"].max())))
            seen += batch["target"].tolist()
    assert seen == list(range(17))


def test_a_worker_without_rows_to_evaluate_has_no_batch(tmp_path: Path) -> None:
    assert evaluation_rows(2, 0, 4) == (0, 0)
    empty = build_shard(iter([]), 0, 0, folder=tmp_path, device=CPU)
    assert list(evaluation_batches(empty, 4, CPU)) == []


def test_evaluation_in_the_order_of_length(tmp_path: Path) -> None:
    whole = arrays(17)
    shard = shard_of(whole, tmp_path, "memory", first_row=100)
    order = shard.by_length()
    assert order is not None
    lengths, seen = [], []
    for batch, key_B in evaluation_batches(shard, 4, CPU, order):
        np.testing.assert_array_equal(key_B.numpy(), row_keys(EVALUATION_SEED, 0, batch["target"].numpy() + 100))
        lengths += batch["length"].tolist()
        seen += batch["target"].tolist()
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]
    assert seen == order.tolist()
    assert sorted(seen) == list(range(17))
    on_disk = shard_of(whole, tmp_path, "disk").by_length()
    assert on_disk is not None
    assert torch.equal(on_disk, order)
    even = {name: x for name, x in whole.items() if name != "sequence"}
    assert shard_of(even, tmp_path, "memory").by_length() is None


def test_pieces_of_like_lengths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = arrays(17)
    batch = shard_of(whole, tmp_path, "memory").gathered(torch.arange(17), CPU)
    key_B = torch.arange(17) * 7
    assert [len(key) for _, key in batches.pieces(batch, key_B, 1)] == [17]
    monkeypatch.setattr(batches, "pieces_that_pay", lambda lengths: 4)
    for at_least, sizes in ((1, [5, 5, 5, 2]), (6, [3, 3, 3, 3, 3, 2])):
        found = batches.pieces(batch, key_B, at_least, ("sequence",))
        assert [len(key) for _, key in found] == sizes
        lengths = [length for piece, _ in found for length in piece["length"].tolist()]
        assert lengths == sorted(lengths)
        seen = []
        for piece, key in found:
            assert piece["sequence"].shape[1] == max(1, int(piece["length"].max()))
            for row, x_TC, length in zip(piece["target"].tolist(), piece["sequence"], piece["length"], strict=True):
                np.testing.assert_array_equal(x_TC[:length].numpy(), steps_of(whole, row))
            assert torch.equal(key, piece["target"] * 7)
            seen += piece["target"].tolist()
        assert sorted(seen) == list(range(17))


@pytest.mark.parametrize(
    ("lengths", "num_pieces"),
    [
        ([7] * 64, 1),
        (list(range(10, 26)), 1),
        ([5] * 60 + [500] * 4, 8),
        (list(range(5, 500, 8)), 4),
        ([0] * 3, 1),
        ([9], 1),
    ],
)
def test_rows_are_cut_where_it_pays(lengths: list[int], num_pieces: int) -> None:
    assert pieces_that_pay(lengths) == num_pieces


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


def test_batches_from_disk_are_gathered_ahead_by_a_thread_that_ends(tmp_path: Path) -> None:
    shard = shard_of(arrays(100), tmp_path, "disk")
    before = set(threading.enumerate())
    found = evaluation_batches(shard, 10, CPU)
    assert next(found)[0]["target"].tolist() == list(range(10))
    assert len(set(threading.enumerate()) - before) == 1
    found.close()  # type: ignore[attr-defined]
    assert set(threading.enumerate()) == before


def test_what_is_made_ahead_is_bounded_and_raises_in_its_turn() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(10):
            taken.append(item)
            yield item

    def make(item: int) -> int:
        if item == 4:
            raise ValueError("the fifth cannot be made")
        return -item

    made = made_ahead(make, items(), depth=2)
    for item in range(4):
        assert next(made) == -item
        assert len(taken) <= item + 1 + 2
    with pytest.raises(ValueError, match="the fifth"):
        next(made)
