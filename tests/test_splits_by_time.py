"""Splits of series: by time, at one time for all of them, and nothing later than an evaluation trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynn.errors import DataError, JobError
from raynn.sources import DataSettings
from raynn.splits import EXCLUDED, TEST, TRAIN, VALIDATION, assign_splits_by_time
from raynn.times import parse_times


def split(
    ticks: Any, *, sources: Any = None, bad: Any = None, is_date: bool = False, values: Any = None, **settings: Any
) -> np.ndarray:
    ticks = np.asarray(ticks)
    return assign_splits_by_time(
        DataSettings(train="t.csv", **settings),
        np.zeros(len(ticks), np.uint8) if sources is None else np.asarray(sources, np.uint8),
        np.zeros(len(ticks), bool) if bad is None else np.asarray(bad),
        ticks,
        is_date,
        values or {},
    )


def test_fractions_are_the_end_the_test_rows_last() -> None:
    assert split(range(10), validation=0.2, test=0.3).tolist() == [TRAIN] * 5 + [VALIDATION] * 2 + [TEST] * 3
    assert split(range(10), validation=0.2).tolist() == [TRAIN] * 8 + [VALIDATION] * 2
    assert split([9, 0, 5, 1], validation=0.25).tolist() == [VALIDATION, TRAIN, TRAIN, TRAIN]


def test_all_series_are_cut_at_one_time() -> None:
    """Two series of different lengths, one after the other as they are sorted."""
    ticks = [*range(10), *range(6, 12)]
    splits = split(ticks, validation=0.25)
    assert splits.tolist() == [TRAIN] * 9 + [VALIDATION] + [TRAIN] * 3 + [VALIDATION] * 3
    # rows of the very time of the cut go together
    assert split([0, 1, 2, 2, 2, 3], validation=0.3).tolist() == [TRAIN] * 2 + [VALIDATION] * 4


@given(st.lists(st.integers(0, 30), min_size=10, max_size=60), st.floats(0.1, 0.4), st.floats(0.1, 0.4))
def test_nothing_trains_that_is_later_than_an_evaluation(ticks: list[int], validation: float, test: float) -> None:
    try:
        splits = split(ticks, validation=validation, test=test)
    except DataError as error:  # too many rows of one time
        assert "train" in str(error) or "no usable row" in str(error)
        return
    times = {name: np.array(ticks)[splits == name] for name in (TRAIN, VALIDATION, TEST)}
    assert times[TRAIN].max() < times[VALIDATION].min() <= times[VALIDATION].max() < times[TEST].min()
    assert len(times[TEST]) >= round(test * len(ticks)) - 1


def test_bad_rows_are_in_no_split_and_are_not_counted() -> None:
    bad = np.isin(np.arange(10), [0, 9])
    splits = split(range(10), bad=bad, validation=0.25)
    assert splits.tolist() == [EXCLUDED] + [TRAIN] * 6 + [VALIDATION] * 2 + [EXCLUDED]


def test_ranges_are_taken_as_they_are() -> None:
    splits = split(range(10), validation={"since": 4, "until": 6}, test={"since": 7, "until": 9})
    assert splits.tolist() == [TRAIN] * 4 + [VALIDATION] * 2 + [EXCLUDED] + [TEST] * 2 + [EXCLUDED]
    assert split(range(6), validation={"since": 4}).tolist() == [TRAIN] * 4 + [VALIDATION] * 2
    # a test in the middle: what comes after it belongs to no split, and validation is the end of what is before
    splits = split(range(10), validation=0.2, test={"since": "6", "until": "8"})
    assert splits.tolist() == [TRAIN] * 4 + [VALIDATION] * 2 + [TEST] * 2 + [EXCLUDED] * 2
    splits = split(range(10), validation={"since": 8}, test={"since": 2, "until": 4})
    assert splits.tolist() == [TRAIN] * 2 + [TEST] * 2 + [EXCLUDED] * 4 + [VALIDATION] * 2
    splits = split(range(10), validation={"since": 5, "until": 7}, test=0.2)
    assert splits.tolist() == [TRAIN] * 5 + [VALIDATION] * 2 + [EXCLUDED] + [TEST] * 2


def test_dates_name_ranges_of_dates() -> None:
    ticks, _, _ = parse_times(np.array([f"2024-01-{day:02d}" for day in range(1, 11)]))
    splits = split(ticks, is_date=True, validation=0.1, test={"since": "2024-01-08 12:00"})
    assert splits.tolist() == [TRAIN] * 7 + [VALIDATION] + [TEST] * 2


def test_columns_and_sources_are_taken_at_their_word() -> None:
    column = np.array(["a", "a", "b", "c", "a", "b"])
    splits = split(
        range(6),
        values={"part": column},
        validation={"column": "part", "equals": "b"},
        test={"column": "part", "equals": "c"},
    )
    assert splits.tolist() == [TRAIN, TRAIN, VALIDATION, TEST, TRAIN, VALIDATION]
    splits = split(range(6), values={"part": column}, validation=0.2, test={"column": "part", "equals": "b"})
    assert splits.tolist() == [TRAIN, TRAIN, TEST, TRAIN, VALIDATION, TEST]
    splits = split([0, 1, 2, 5, 3, 4], sources=[0, 0, 0, 1, 2, 2], validation="v.csv", test="t.csv")
    assert splits.tolist() == [TRAIN] * 3 + [VALIDATION] + [TEST] * 2


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        (
            {"validation": {"since": 3, "until": 6}, "test": {"since": 5}},
            JobError,
            "data.validation = {since: 3, until: 6} and data.test = {since: 5} overlap; end the first where the second "
            "begins",
        ),
        (
            {"validation": {"since": 6, "until": 6}},
            JobError,
            "data.validation = {since: 6, until: 6} holds no time: `since` must be before `until`, the first time after it",
        ),
        (
            {"validation": {"since": "soon"}},
            JobError,
            "data.validation.since = 'soon' is no time of data.time, which holds whole numbers: write one",
        ),
        (
            {"validation": 0.1, "test": {"since": 30}},
            DataError,
            "data.test = {since: 30} holds no usable row: data.train goes from 0 to 9; name a time within",
        ),
        (
            {"validation": {"since": 0}},
            DataError,
            "data.train keeps no usable row to train on; check the rows that were refused, and what data.validation and "
            "data.test take",
        ),
        (
            {"validation": 0.01},
            DataError,
            "data.validation = 0.01 of 10 rows of data.train is no row at all; give a larger fraction, more data, or a "
            "source of its own",
        ),
        (
            {"validation": 0.5, "test": 0.5},
            DataError,
            "data.validation = 0.5 of 10 rows of data.train is 5 rows, and 5 are left: none would train; give smaller "
            "fractions, or more data",
        ),
    ],
)
def test_what_cannot_be_is_said(settings: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as error:
        split(range(10), **settings)
    assert str(error.value) == message


def test_no_usable_row_is_said() -> None:
    with pytest.raises(DataError, match=r"^data\.train has no usable row; check the path"):
        split([1, 2], bad=[True, True])
