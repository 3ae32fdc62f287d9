"""WHEN steps are: a time column read, its calendar fields, the times that come after its last.

A time is a whole number, its tick: microseconds since 1970 of a date, or the number that the column holds.

Shapes: N times, H times to come.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raynn.columns import parse_dates
from raynn.errors import JobError

Ticks = NDArray[np.int64]

US_PER_HOUR = 3_600_000_000
US_PER_DAY = 24 * US_PER_HOUR
_WHOLE = r"^[+-]?\d{1,18}(\.0*)?$"


def parse_times(text: Any) -> tuple[Ticks, NDArray[np.bool_], bool]:
    """Ticks [N] of a string column, which of them [N] could not be read (their tick is 0), and whether they are dates:
    they are whole numbers where every value is one, else dates and times as ISO 8601 writes them, in UTC where a zone
    is given.
    """
    text = pc.utf8_trim_whitespace(text)
    if pc.all(pc.match_substring_regex(text, _WHOLE)).as_py():  # nulls are skipped
        ticks = pc.cast(pc.replace_substring_regex(text, r"(^\+|\.0*$)", ""), pa.int64())
        is_date = False
    else:
        ticks, is_date = pc.cast(parse_dates(text), pa.int64()), True
    unread = np.asarray(ticks.is_null().to_numpy(zero_copy_only=False), bool)
    return np.asarray(ticks.fill_null(0).to_numpy(zero_copy_only=False), np.int64), unread, is_date


def tick_of(value: str | int, is_date: bool, field: str) -> int:
    """The tick that a setting names.

    Raises:
        JobError: it is of another kind than the time column.
    """
    ticks, unread, found_date = parse_times(pa.array([str(value)]))
    if unread[0] or found_date != is_date:
        kind = "dates: write one, such as 2024-05-31 or '2024-05-31 12:00'" if is_date else "whole numbers: write one"
        raise JobError(f"{field} = {value!r} is no time of data.time, which holds {kind}")
    return int(ticks[0])


def time_column(tick_N: Ticks, is_date: bool) -> pa.Array:
    """Ticks as a column: timestamp[us], or int64."""
    return pa.array(tick_N, pa.int64()).cast(pa.timestamp("us")) if is_date else pa.array(tick_N, pa.int64())


def shown_time(tick: int, is_date: bool) -> str:
    """A tick as a message writes it: `2024-05-31`, `2024-05-31 12:00:00`, `17`."""
    if not is_date:
        return str(tick)
    text = str(np.datetime64(int(tick), "us")).replace("T", " ")
    return text.removesuffix(".000000").removesuffix(" 00:00:00")


def shown_step(step: int, is_date: bool) -> str:
    """A step as a message writes it: `1:00:00`, `1 day`, `2`."""
    return str(timedelta(microseconds=int(step))).removesuffix(", 0:00:00") if is_date else str(step)


def _months(tick_N: Ticks) -> Ticks:
    return np.asarray(tick_N.view("datetime64[us]").astype("datetime64[M]").astype(np.int64))


def _month_start(month_N: Ticks) -> Ticks:
    return np.asarray(month_N.astype("datetime64[M]").astype("datetime64[us]").astype(np.int64))


def _weekday(tick_N: Ticks) -> Ticks:
    return (tick_N // US_PER_DAY + 3) % 7  # 1970-01-01 was a Thursday, and 0 is Monday


CALENDAR: dict[str, Callable[[Ticks], Ticks]] = {
    "minute": lambda tick_N: tick_N // 60_000_000 % 60,
    "hour": lambda tick_N: tick_N // US_PER_HOUR % 24,
    "weekday": _weekday,
    "day": lambda tick_N: (tick_N - _month_start(_months(tick_N))) // US_PER_DAY + 1,
    "month": lambda tick_N: _months(tick_N) % 12 + 1,
}


def calendar_column(tick_N: Ticks, field: str) -> pa.Array:
    """A field of dates [N], as the text of a category: hour "0" .. "23", weekday "0" (Monday) .. "6", month "1" .."""
    return pa.array(CALENDAR[field](tick_N)).cast(pa.string())


def usual_step(difference_N: Ticks) -> int:
    """The difference that is there most often, the smallest of several; 0 where there is none."""
    values, counts = np.unique(difference_N, return_counts=True)
    return int(values[counts.argmax()]) if len(values) else 0


def skips_weekends(tick_N: Ticks, step: int) -> bool:
    """Whether daily dates [N] hold no Saturday and no Sunday, though they span some."""
    return bool(step == US_PER_DAY and np.ptp(tick_N) >= 7 * US_PER_DAY and (_weekday(tick_N) < 5).all())


def following(tick_N: Ticks, count: int, is_date: bool, weekdays: bool) -> Ticks:
    """The `count` times [H] that come after ascending times [N >= 2].

    They go on by the usual step; by months where all dates are the same day of their month, or all the last one; and
    daily dates leave Saturdays and Sundays out where `weekdays` says so.
    """
    last, step = int(tick_N[-1]), usual_step(np.diff(tick_N))
    ahead_H = np.arange(1, count + 1)
    if is_date and step >= 28 * US_PER_DAY:
        month_N = _months(tick_N)
        since_N, until_N = tick_N - _month_start(month_N), _month_start(month_N + 1) - tick_N
        month_H = month_N[-1] + usual_step(np.diff(month_N)) * ahead_H
        if (since_N == since_N[0]).all() and since_N[0] < 28 * US_PER_DAY:  # a day that every month has
            return _month_start(month_H) + since_N[0]
        if (until_N == until_N[0]).all():
            return _month_start(month_H + 1) - until_N[0]
    if is_date and weekdays and step == US_PER_DAY:
        day_H = np.busday_offset(np.datetime64(last // US_PER_DAY, "D"), ahead_H, roll="backward")
        return np.asarray(day_H.astype(np.int64) * US_PER_DAY + last % US_PER_DAY)
    return last + step * ahead_H
