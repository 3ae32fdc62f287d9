"""Windows: planned as brute force would, and cut from blocks without a copy of more than they reach."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynn.preprocessing import InputSpec
from raynn.ragged import Ragged
from raynn.windows import EncodedWindows, WindowPlan, run_lengths

STEPS = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=40)


def flags(steps: list[tuple[bool, bool, bool]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    new_S, usable_S, scored_S = (np.array(column) for column in zip(*steps, strict=True))
    new_S[0] = True
    return new_S, usable_S, scored_S


@given(STEPS, st.integers(1, 5), st.integers(1, 4))
def test_windows_are_those_of_brute_force(steps: list[tuple[bool, bool, bool]], window: int, horizon: int) -> None:
    new_S, usable_S, scored_S = flags(steps)
    plan = WindowPlan.over_steps(new_S, usable_S, scored_S, window, horizon)
    expected = [
        start
        for start in range(len(new_S) - window - horizon + 1)
        if usable_S[start : start + window + horizon].all()
        and scored_S[start + window : start + window + horizon].all()
        and not new_S[start + 1 : start + window + horizon].any()
    ]
    assert plan.start_N.tolist() == expected
    assert (plan.stop_N - plan.start_N).tolist() == [window + horizon] * len(expected)


@given(STEPS, st.integers(2, 5), st.integers(1, 4))
def test_strides_begin_anew_in_every_run(steps: list[tuple[bool, bool, bool]], length: int, stride: int) -> None:
    new_S, usable_S, _ = flags(steps)
    whole = WindowPlan.over_steps(new_S, usable_S, usable_S, length - 1, 1)
    starts, expected, run = set(whole.start_N.tolist()), [], 0
    for start in range(len(new_S)):
        run = run + 1 if start in starts else 0
        if run and (run - 1) % stride == 0:
            expected.append(start)
    kept = whole.strided(stride)
    assert kept.start_N.tolist() == expected
    assert (kept.stop_N - kept.start_N == length).all()


def test_strides_keep_what_is_known_of_each_window() -> None:
    plan = WindowPlan(np.arange(5), np.arange(5) + 3, {"skip": np.arange(5) * 10})
    assert plan.strided(2).columns["skip"].tolist() == [0, 20, 40]


@given(STEPS)
def test_run_lengths_count_from_the_last_break(steps: list[tuple[bool, bool, bool]]) -> None:
    new_S, good_S, _ = flags(steps)
    expected, run = [], 0
    for new, good in zip(new_S, good_S, strict=True):
        run = (1 if new else run + 1) if good else 0
        expected.append(run)
    assert run_lengths(new_S, good_S).tolist() == expected


def encoded_windows(cuts: list[int]) -> tuple[EncodedWindows, np.ndarray]:
    """Twenty steps of two numbers, in blocks cut there, and windows of 4 that begin at every step but the seventh."""
    values_S2 = np.arange(40, dtype=np.float32).reshape(20, 2)
    bounds = [0, *cuts, 20]
    parts = [values_S2[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    blocks = [pa.table({"target": pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), 2)}) for part in parts]
    start_N = np.array([start for start in range(17) if start != 7])
    plan = WindowPlan(start_N, start_N + 4, {"number": start_N * 100})
    none = WindowPlan(start_N[:0], start_N[:0])
    return EncodedWindows(blocks, np.array(bounds), (plan, none, none), InputSpec()), values_S2


@pytest.mark.parametrize("cuts", [[], [10], [3, 4, 5, 6, 19], [9, 18]])
@pytest.mark.parametrize(("start", "stop"), [(0, 16), (0, 1), (5, 9), (15, 16)])
def test_pieces_hold_the_windows_however_blocks_are_cut(cuts: list[int], start: int, stop: int) -> None:
    windows, values_S2 = encoded_windows(cuts)
    found: list[Any] = []
    for piece in windows.pieces(0, start, stop, lambda block: block):
        ragged = piece["target"]
        assert isinstance(ragged, Ragged)
        for first, last, number in zip(ragged.start_N, ragged.stop_N, piece["number"], strict=True):
            found.append((int(number) // 100, ragged.values[first:last]))
    starts = windows.windows[0].start_N[start:stop].tolist()
    assert [number for number, _ in found] == starts
    for first, values in found:
        np.testing.assert_array_equal(values, values_S2[first : first + 4])


def test_only_the_blocks_that_are_reached_are_fetched() -> None:
    windows, _ = encoded_windows([5, 10, 15])
    fetched = []

    def fetch(block: Any) -> pa.Table:
        fetched.append([block is each for each in windows.blocks].index(True))
        return block

    list(windows.pieces(0, 6, 9, fetch))  # windows 6, 8, 9: steps 6 .. 12
    assert fetched == [1, 2]
    assert windows.num_rows(0) == 16
    assert windows.num_rows(1) == 0
