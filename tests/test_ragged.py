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
    return Ragged(np.stack([steps_S, -steps_S], axis=1)[:, :num_channels], np.cumsum([0, *lengths]))


def sequences(found: Ragged) -> list[list[list[float]]]:
    assert found.offset_N1[0] == 0
    assert found.offset_N1[-1] == len(found.values_SC)
    return [found.values_SC[a:b].tolist() for a, b in pairwise(found.offset_N1)]


@given(LENGTHS, st.none() | st.integers(-9, 9), st.none() | st.integers(-9, 9))
def test_a_slice_is_that_of_a_list(lengths: list[int], start: int | None, stop: int | None) -> None:
    whole = ragged(lengths)
    cut = whole[start:stop]
    assert sequences(cut) == sequences(whole)[start:stop]
    assert len(cut) == len(lengths[start:stop])
    assert np.shares_memory(cut.values_SC, whole.values_SC) or not cut.values_SC.size, "a view"


def test_a_slice_has_no_step() -> None:
    with pytest.raises(AssertionError, match="follow one another"):
        ragged([1, 2, 3])[::2]


@given(LENGTHS, st.lists(st.integers(0, 8), max_size=4))
def test_pieces_joined_are_the_whole(lengths: list[int], cuts: list[int]) -> None:
    whole = ragged(lengths)
    edges = [0, *sorted(min(cut, len(lengths)) for cut in cuts), len(lengths)]
    joined = Ragged.joined([whole[a:b] for a, b in pairwise(edges)])
    assert sequences(joined) == sequences(whole)
    assert joined.values_SC.dtype == np.float32
    assert joined.offset_N1.dtype == np.int64


def test_an_empty_one() -> None:
    for empty in (ragged([]), ragged([3, 1])[1:1], ragged([3, 1])[2:], ragged([3, 1])[2:1]):
        assert len(empty) == 0
        assert sequences(empty) == []
        assert empty.values_SC.shape == (0, 2)
    assert sequences(Ragged.joined([ragged([]), ragged([0, 0])])) == [[], []]
