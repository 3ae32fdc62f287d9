from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raynn.errors import DataError, ResourceError
from raynn.lanes import Lanes, contiguous_bounds, lane_count

WORKERS = (1, 2, 3, 5, 8)


@st.composite
def plans(draw: st.DrawFn) -> Lanes:
    batch = draw(st.integers(1, 300))
    rows = batch + draw(st.integers(0, 4 * batch + 70))
    return Lanes(rows, batch, draw(st.integers(0, 2**31 - 1)))


@pytest.mark.parametrize(
    ("batch", "lanes"), [(1, 1), (8, 8), (64, 64), (67, 1), (96, 48), (128, 64), (250, 50), (256, 64), (1000, 50)]
)
def test_lanes_are_the_largest_divisor_up_to_64(batch: int, lanes: int) -> None:
    assert lane_count(batch) == lanes


@pytest.mark.parametrize(
    ("items", "parts", "bounds"), [(10, 3, [0, 3, 6, 10]), (2, 4, [0, 0, 1, 1, 2]), (0, 2, [0, 0, 0]), (5, 1, [0, 5])]
)
def test_contiguous_bounds(items: int, parts: int, bounds: list[int]) -> None:
    assert contiguous_bounds(items, parts).tolist() == bounds


@settings(max_examples=80, deadline=None)
@given(plans(), st.integers(0, 1000))
def test_every_row_is_seen_once_an_epoch(lanes: Lanes, epoch: int) -> None:
    batches = lanes.batches(epoch, 0, 1)
    assert sorted(np.concatenate(batches).tolist()) == list(range(lanes.num_rows))
    assert [len(batch) for batch in batches] == [lanes.batch_rows(k) for k in range(lanes.steps_per_epoch)]
    assert all(len(batch) == lanes.global_batch_size for batch in batches[:-1])


@settings(max_examples=80, deadline=None)
@given(plans(), st.integers(0, 1000))
def test_a_batch_is_the_same_for_any_number_of_workers(lanes: Lanes, epoch: int) -> None:
    alone = lanes.batches(epoch, 0, 1)
    for count in WORKERS:
        if count > lanes.count:
            continue
        shares = [lanes.batches(epoch, rank, count) for rank in range(count)]
        for k, whole in enumerate(alone):
            # workers' shares in rank order are the batch itself, order included
            np.testing.assert_array_equal(np.concatenate([share[k] for share in shares]), whole)
            assert all(len(share[k]) > 0 for share in shares), "a worker is idle"


@settings(max_examples=40, deadline=None)
@given(plans(), st.integers(0, 1000))
def test_a_worker_holds_the_rows_it_is_dealt_and_no_others(lanes: Lanes, epoch: int) -> None:
    for count in WORKERS:
        if count > lanes.count:
            continue
        held = [lanes.rows_of_worker(rank, count) for rank in range(count)]
        for rank, (start, stop) in enumerate(held):
            assert sorted(np.concatenate(lanes.batches(epoch, rank, count))) == list(range(start, stop))
        assert [start for start, _ in held] == [0, *[stop for _, stop in held[:-1]]]
        assert held[-1][1] == lanes.num_rows


def test_workers_weigh_about_the_same() -> None:
    lanes = Lanes(10_000, 250, 0)  # 50 lanes over 8 workers: 6 or 7 each
    sizes = [len(lanes.batches(0, rank, 8)[0]) for rank in range(8)]
    assert set(sizes) == {30, 35}
    assert sum(sizes) == 250


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(Lanes(1000, 100, seed).batches(epoch, 0, 1)).tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)
    assert order(1, 2) != order(2, 1)


def test_rows_are_shuffled_within_their_lane() -> None:
    lanes = Lanes(64 * 100, 64, 0)
    firsts = [lanes.batches(0, 0, 1)[k][0] for k in range(100)]  # lane 0 gives the first row of each batch
    assert sorted(firsts) == list(range(100))
    descents = sum(a > b for a, b in pairwise(firsts))
    assert 35 < descents < 64  # 49.5 +- 2.9 in a random order


def test_every_lane_has_an_order_of_its_own() -> None:
    lanes = Lanes(4 * 50, 4, 0)
    batches = np.array(lanes.batches(0, 0, 1))  # [50, 4]: a row of every lane
    orders = {tuple(batches[:, lane] - lanes.rows_of(lane)[0]) for lane in range(4)}
    assert len(orders) == 4


@settings(max_examples=80, deadline=None)
@given(plans())
def test_no_batch_is_tiny(lanes: Lanes) -> None:
    last = lanes.batch_rows(lanes.steps_per_epoch - 1)
    assert last >= lanes.global_batch_size / 2
    # a lane gives less than three halves of its share, and may be one row longer than the shortest
    assert last < 1.5 * lanes.global_batch_size + lanes.count


def test_a_batch_larger_than_the_data_is_refused() -> None:
    message = "optimization.global_batch_size = 101 is larger than the 100 training rows; set it to 100 or less"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        Lanes(100, 101, 0)
    assert Lanes(100, 100, 0).steps_per_epoch == 1


def test_more_workers_than_lanes_are_refused() -> None:
    message = (
        "resources.workers = 5 is more than the 4 lanes that optimization.global_batch_size = 4 allows; "
        "use at most 4 workers, or a global batch with a larger divisor up to 64"
    )
    with pytest.raises(ResourceError, match=f"^{re.escape(message)}$"):
        Lanes(100, 4, 0).batches(0, 0, 5)
    assert len(Lanes(100, 4, 0).batches(0, 3, 4)) == 25


def test_an_epochs_order_takes_four_bytes_a_row() -> None:
    batches = Lanes(100_003, 512, seed=1).batches(0, 0, 1)
    arrays = {id(base): base for base in (batch if batch.base is None else batch.base for batch in batches)}
    assert sum(map(len, batches)) == 100_003
    assert sum(array.nbytes for array in arrays.values()) == 4 * 100_003
