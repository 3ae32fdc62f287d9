"""Times: read from text of any kind, their calendar fields, and what comes after the last."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynn.errors import JobError
from raynn.times import (
    CALENDAR,
    US_PER_DAY,
    calendar_column,
    following,
    parse_times,
    shown_step,
    shown_time,
    skips_weekends,
    tick_of,
    time_column,
    usual_step,
)

MOMENTS = st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1))


def ticks(*texts: str) -> np.ndarray:
    found, unread, is_date = parse_times(pa.array(texts))
    assert is_date
    assert not unread.any()
    return found


def test_dates_are_microseconds_and_numbers_are_themselves() -> None:
    dates, unread, is_date = parse_times(pa.array(["1970-01-02", "1970-01-01 00:00:01", "1969-12-31T23:00:00Z", "1.5"]))
    assert is_date
    assert dates.tolist() == [US_PER_DAY, 1_000_000, -3_600_000_000, 0]
    assert unread.tolist() == [False, False, False, True]
    numbers, unread, is_date = parse_times(pa.array([" 7", "-3", "2001.0", "+4", None]))
    assert not is_date
    assert numbers.tolist() == [7, -3, 2001, 4, 0]
    assert unread.tolist() == [False] * 4 + [True]


def test_a_time_is_written_as_it_is_read() -> None:
    (tick,) = ticks("2024-05-31 12:00")
    assert time_column(np.array([tick]), True).to_pylist() == [datetime(2024, 5, 31, 12)]
    assert time_column(np.array([3]), False).to_pylist() == [3]
    assert [shown_time(t, True) for t in ticks("2024-05-31", "2024-05-31 12:00:00", "2024-05-31 12:00:00.25")] == [
        "2024-05-31",
        "2024-05-31 12:00:00",
        "2024-05-31 12:00:00.250000",
    ]
    assert shown_time(12, False) == "12"
    assert shown_step(US_PER_DAY, True) == "1 day"
    assert shown_step(US_PER_DAY // 24, True) == "1:00:00"
    assert shown_step(5, False) == "5"


@given(MOMENTS)
def test_calendar_fields_are_those_of_datetime(moment: datetime) -> None:
    tick = ticks(moment.isoformat(sep=" "))
    expected = {
        "minute": moment.minute,
        "hour": moment.hour,
        "weekday": moment.weekday(),
        "day": moment.day,
        "month": moment.month,
    }
    assert {field: calendar_column(tick, field).to_pylist() for field in CALENDAR} == {
        field: [str(value)] for field, value in expected.items()
    }


def test_a_setting_names_a_time_of_the_column() -> None:
    assert tick_of("1970-01-02", True, "data.test.since") == US_PER_DAY
    assert tick_of(12, False, "data.test.since") == tick_of("12", False, "data.test.since") == 12
    for value, is_date, kind in (
        ("soon", True, "dates: write one, such as 2024-05-31 or '2024-05-31 12:00'"),
        (2024, True, "dates: write one, such as 2024-05-31 or '2024-05-31 12:00'"),
        ("2024-05-31", False, "whole numbers: write one"),
    ):
        with pytest.raises(JobError) as error:
            tick_of(value, is_date, "data.test.since")
        assert str(error.value) == f"data.test.since = {value!r} is no time of data.time, which holds {kind}"


def test_the_usual_step_is_the_most_frequent_the_smallest_of_several() -> None:
    assert usual_step(np.array([3, 1, 3, 2])) == 3
    assert usual_step(np.array([3, 1])) == 1
    assert usual_step(np.zeros(0, np.int64)) == 0


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 30))
def test_numbers_go_on_by_their_usual_step(differences: list[int], count: int) -> None:
    found = following(np.cumsum([5, *differences]), count, False, False)
    assert np.diff(found).tolist() == [usual_step(np.array(differences))] * (count - 1)
    assert found[0] == 5 + sum(differences) + usual_step(np.array(differences))


@pytest.mark.parametrize(
    ("past", "weekdays", "future"),
    [
        (["2024-01-01 22:00", "2024-01-01 23:00"], False, ["2024-01-02", "2024-01-02 01:00:00"]),
        (["2024-01-01", "2024-02-01", "2024-03-01"], False, ["2024-04-01", "2024-05-01"]),
        (["2023-12-31", "2024-01-31", "2024-02-29"], False, ["2024-03-31", "2024-04-30"]),
        (["2023-11-15 06:00", "2023-12-15 06:00"], False, ["2024-01-15 06:00:00", "2024-02-15 06:00:00"]),
        (["2023-01-01", "2023-04-01", "2023-07-01"], False, ["2023-10-01", "2024-01-01"]),
        (["2020-02-28", "2021-02-28", "2022-02-28"], False, ["2023-02-28", "2024-02-28"]),
        (["2019-12-31", "2020-12-31"], False, ["2021-12-31", "2022-12-31"]),
        (["2024-05-30", "2024-05-31"], True, ["2024-06-03", "2024-06-04"]),  # a Friday, then a Monday
        (["2024-05-30", "2024-05-31"], False, ["2024-06-01", "2024-06-02"]),
        (["2024-05-24", "2024-05-31"], True, ["2024-06-07", "2024-06-14"]),
    ],
)
def test_dates_go_on(past: list[str], weekdays: bool, future: list[str]) -> None:
    assert [shown_time(t, True) for t in following(ticks(*past), 2, True, weekdays)] == future


@given(MOMENTS, st.integers(1, 20))
def test_weekdays_are_the_next_ones(moment: datetime, count: int) -> None:
    start = datetime(moment.year, moment.month, moment.day)
    past = [start + timedelta(days=day) for day in range(14)]
    past = [day for day in past if day.weekday() < 5]
    tick_N = ticks(*map(str, past))
    assert skips_weekends(tick_N, US_PER_DAY)
    future = [datetime.fromisoformat(shown_time(t, True)) for t in following(tick_N, count, True, True)]
    assert all(day.weekday() < 5 for day in future)
    assert all((b - a).days == (3 if b.weekday() == 0 else 1) for a, b in pairwise([past[-1], *future]))


def test_weekends_are_skipped_by_days_that_span_some_and_hold_none() -> None:
    friday_to_monday = ticks("2024-05-31", "2024-06-03")
    assert not skips_weekends(friday_to_monday, US_PER_DAY), "less than a week"
    week = ticks(*[f"2024-06-{day:02d}" for day in (3, 4, 5, 6, 7, 10, 11)])
    assert skips_weekends(week, US_PER_DAY)
    assert not skips_weekends(week, 2 * US_PER_DAY)
    assert not skips_weekends(ticks(*[f"2024-06-{day:02d}" for day in range(3, 12)]), US_PER_DAY)
