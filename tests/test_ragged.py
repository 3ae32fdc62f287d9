from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynn.ragged import Ragged

LENGTHS = st.lists(st.integers(0, 4), max_size=8)


def ragged(lengths: list[int], num_channels: int = 2) -> Ragged:
    """Step s holds s and -s."""
    steps_S = np.arange(sum(lengths), dtype=np.float32)
    return Ragged.consecutive(np.stack([steps_S, -steps_S], axis=1)[:, :num_channels], np.array(lengths, np.int64))


def sequences(found: Ragged) -> list[list[list[float]]]:
    assert len(found.values) == max(found.stop_N, default=0)
    return [found.values[a:b].tolist() for a, b in zip(found.start_N, found.stop_N, strict=True)]


@given(LENGTHS, st.none() | st.integers(-9, 9), st.none() | st.integers(-9, 9))
def test_a_slice_is_that_of_a_list(lengths: list[int], start: int | None, stop: int | None) -> None:
    whole = ragged(lengths)
    cut = whole[start:stop]
    assert sequences(cut) == sequences(whole)[start:stop]
    assert len(cut) == len(lengths[start:stop])
    assert np.shares_memory(cut.values, whole.values) or not cut.values.size, "a view"


def test_a_slice_has_no_step() -> None:
    with pytest.raises(AssertionError, match="follow one another"):
        ragged([1, 2, 3])[::2]


@given(LENGTHS, st.lists(st.integers(0, 8), max_size=4))
def test_pieces_joined_are_the_whole(lengths: list[int], cuts: list[int]) -> None:
    whole = ragged(lengths)
    edges = [0, *sorted(min(cut, len(lengths)) for cut in cuts), len(lengths)]
    joined = Ragged.joined([whole[a:b] for a, b in pairwise(edges)])
    assert sequences(joined) == sequences(whole)
    assert joined.values.dtype == np.float32
    assert joined.start_N.dtype == joined.stop_N.dtype == np.int64


def test_an_empty_one() -> None:
    for empty in (ragged([]), ragged([3, 1])[1:1], ragged([3, 1])[2:], ragged([3, 1])[2:1]):
        assert len(empty) == 0
        assert sequences(empty) == []
        assert empty.values.shape == (0, 2)
    assert sequences(Ragged.joined([ragged([]), ragged([0, 0])])) == [[], []]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), min_size=1, max_size=6), st.integers(0, 5))
def test_windows_may_overlap(windows: list[tuple[int, int]], cut: int) -> None:
    start_N, length_N = np.array(windows, np.int64).T
    whole = Ragged(np.arange(30), start_N, start_N + length_N)
    expected = [list(range(start, start + length)) for start, length in windows]
    assert [whole.values[a:b].tolist() for a, b in zip(whole.start_N, whole.stop_N, strict=True)] == expected
    parts = [whole[:cut], whole[cut:]]
    assert sequences(parts[1]) == expected[cut:]
    joined = Ragged.joined(parts)
    assert [joined.values[a:b].tolist() for a, b in zip(joined.start_N, joined.stop_N, strict=True)] == expected
    assert np.shares_memory(parts[0].values, whole.values) or not parts[0].values.size
