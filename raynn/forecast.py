"""Forecasts as tables: which steps are to be predicted from which, after the end of data or within a split.

Shapes: S steps in order of series and time, N windows, W steps that are read, H steps to predict.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raynn.columns import ColumnSpec
from raynn.encoded import itself
from raynn.encodings import CategoricalEncoding, DateEncoding, Encoding, NumericEncoding
from raynn.errors import DataError
from raynn.fragments import BadRow
from raynn.preparation import REASON, ReadPlan, described
from raynn.preprocessing import ForecastSpec, Preprocessing, arrays
from raynn.ragged import Ragged
from raynn.series import Steps, calendar_of, encoded, with_calendar
from raynn.sources import DataSettings
from raynn.times import following, shown_time, time_column
from raynn.windows import EncodedWindows

ROWS_PER_TABLE = 1 << 18  # of the forecasts of a split, made one table after the other

Arrays = dict[str, NDArray[Any] | Ragged]


@dataclass(frozen=True)
class Horizons:
    """Windows to be continued, and what is known of the steps that come after each."""

    count: int
    windows: Iterator[Arrays]  # encoded, W + H steps each
    steps: pa.Table  # [N * H]: series and time, and what else there is


def reading_plan(preprocessing: Preprocessing, settings: DataSettings, *, targets_may_be_empty: bool) -> ReadPlan:
    """How a source is read for a trained run, however many bad rows it has."""
    beside = tuple(name for name in (settings.time, settings.series) if name is not None)
    settings = settings.model_copy(update={"max_bad_rows": 1.0})
    if not targets_may_be_empty:
        return ReadPlan(settings, preprocessing.features, preprocessing.targets, beside)
    targets = tuple(ColumnSpec(spec.name, "numeric") for spec in preprocessing.targets)
    return ReadPlan(settings, (*preprocessing.features, *targets), (), beside)


def after_the_end(steps: Steps, preprocessing: Preprocessing, settings: DataSettings) -> Horizons:
    """The H steps after the last one of every series that has a target.

    Rows at the end of a series whose targets are all empty are the first of these steps: they give their times and what
    is known of them. Where they end, time goes on by the series' own step (`times.following`).

    Raises:
        DataError: a series is too short, a step that is read is bad or has no target, a known feature has no row.
    """
    forecast = preprocessing.forecast
    assert forecast is not None
    targets = [steps.table[spec.name] for spec in preprocessing.targets]
    empty_S = np.all([column.is_null().to_numpy() for column in targets], axis=0) & ~steps.bad_S
    starts = np.flatnonzero(steps.new_S).tolist()
    rows: list[NDArray[np.int64]] = []
    ticks: list[NDArray[np.int64]] = []
    for start, stop in pairwise([*starts, len(steps.tick_S)]):
        full = np.flatnonzero(~empty_S[start:stop])
        end = start + int(full[-1]) + 1 if len(full) else start  # of the steps that have a target
        last = min(stop, end + forecast.horizon)
        if end - start < forecast.window:
            raise DataError(
                f"the data{steps.name_of(start)} hold {end - start} steps with a target, and data.window = "
                f"{forecast.window} are read; give more of its past, or leave the series out"
            )
        _check_usable(steps, slice(end - forecast.window, end), slice(end, last), targets)
        _check_known(steps, slice(end, last), preprocessing, settings)
        num_more = end + forecast.horizon - last
        rows.append(np.append(np.arange(end - forecast.window, last), np.full(num_more, -1)))
        ticks.append(steps.tick_S[end - forecast.window : last])
        if num_more:
            ticks.append(_more_times(steps, start, stop, num_more, forecast))
    row_S, tick_S = np.concatenate(rows), np.concatenate(ticks)
    table = steps.table.drop_columns(list(calendar_of(settings))).take(pa.array(row_S, mask=row_S < 0))
    table = with_calendar(table, tick_S, settings, steps.is_date)
    stop_N = np.arange(1, len(rows) + 1) * (forecast.window + forecast.horizon)
    windows: Arrays = {}
    for name, values in arrays(encoded(table, preprocessing)).items():
        assert isinstance(values, np.ndarray)
        windows[name] = Ragged(values, stop_N - forecast.window - forecast.horizon, stop_N)
    columns = {}
    if settings.series is not None:
        columns[settings.series] = pa.array(np.repeat(np.array(steps.names), forecast.horizon))
    future_NH = tick_S.reshape(len(rows), -1)[:, forecast.window :]
    columns[str(settings.time)] = time_column(future_NH.reshape(-1), steps.is_date)
    return Horizons(len(rows), iter([windows]), pa.table(columns))


def _more_times(steps: Steps, start: int, stop: int, count: int, forecast: ForecastSpec) -> NDArray[np.int64]:
    """The next times of the series at steps start .. stop."""
    if stop - start < 2:
        raise DataError(
            f"the data{steps.name_of(start)} hold one row, which tells no step in time; give two rows, or the rows to "
            "predict with their times and empty targets"
        )
    return following(steps.tick_S[start:stop], count, steps.is_date, forecast.weekdays)


def _check_usable(steps: Steps, past: slice, future: slice, targets: list[pa.ChunkedArray]) -> None:
    """Every step that is read is whole, and every past one has its targets."""
    bad = np.flatnonzero(steps.bad_S[past.start : future.stop])
    if len(bad):
        row = BadRow(**json.loads(steps.table[REASON][past.start + int(bad[0])].as_py()))
        raise DataError(f"{described(row)}; the forecast reads this row: mend it")
    num_rows = past.stop - past.start
    empty = np.any([column.slice(past.start, num_rows).is_null().to_numpy() for column in targets], axis=0)
    if empty.any():
        first = past.start + int(empty.argmax())
        raise DataError(
            f"a target{steps.name_of(first)} is empty at {shown_time(int(steps.tick_S[first]), steps.is_date)}, and "
            "the forecast reads it; fill it in, or leave out the rows from there on. Only rows at the end of a series "
            "may be empty, in every target: they are the future"
        )


def _check_known(steps: Steps, future: slice, preprocessing: Preprocessing, settings: DataSettings) -> None:
    """What the job says to be known of the future is there, in the rows `future`."""
    forecast = preprocessing.forecast
    assert forecast is not None
    num_rows = future.stop - future.start
    if settings.known and num_rows < forecast.horizon:
        raise DataError(
            f"data.known = {list(settings.known)} are read for the {forecast.horizon} steps to predict, and the data"
            f"{steps.name_of(future.start - 1)} hold {num_rows} of them: add {forecast.horizon - num_rows} rows behind "
            "the last, with their time, these columns and empty targets"
        )
    encodings = dict(zip((spec.name for spec in preprocessing.features), preprocessing.encodings, strict=True))
    for name in settings.known:
        empty = steps.table[name].slice(future.start, num_rows).is_null().to_numpy()
        if empty.any() and not _may_be_empty(encodings[name]):
            row = future.start + int(empty.argmax())
            time = shown_time(int(steps.tick_S[row]), steps.is_date)
            raise DataError(f"{name!r}{steps.name_of(row)} is in data.known, and empty at {time}; fill it in")


def _may_be_empty(encoding: Encoding) -> bool:
    """Whether training rows lacked it."""
    if isinstance(encoding, CategoricalEncoding):
        return None in encoding.categories
    return isinstance(encoding, NumericEncoding | DateEncoding) and encoding.indicator


def within(
    steps: Steps, windows: EncodedWindows, split: int, preprocessing: Preprocessing, settings: DataSettings
) -> Iterator[Horizons]:
    """All windows of a split, some at a time; their steps say series, `origin` (the time of the last step that is
    read), `step` (1 .. H), time, and every target's actual value.
    """
    horizon, plan = windows.inputs.horizon, windows.windows[split]
    own = [name for name in (settings.series, settings.time) if name is not None]
    num_windows = max(1, ROWS_PER_TABLE // horizon)
    for first in range(0, len(plan), num_windows):
        last = min(len(plan), first + num_windows)
        origin_N1 = plan.stop_N[first:last, None] - horizon - 1
        ahead_NH = np.arange(1, horizon + 1) + np.zeros_like(origin_N1)
        step_S = (origin_N1 + ahead_NH).reshape(-1)
        columns: dict[str, Any] = {}
        if settings.series is not None:
            columns[settings.series] = pa.array(np.array(steps.names)[steps.series_S[step_S]])
        columns[free_name("origin", own)] = time_column(np.repeat(steps.tick_S[origin_N1], horizon), steps.is_date)
        columns[free_name("step", own)] = pa.array(ahead_NH.reshape(-1))
        columns[str(settings.time)] = time_column(steps.tick_S[step_S], steps.is_date)
        for spec in preprocessing.targets:
            columns[named("actual", spec.name, preprocessing)] = steps.table[spec.name].take(pa.array(step_S))
        yield Horizons(last - first, windows.pieces(split, first, last, itself), pa.table(columns))


def named(what: str, target: str, preprocessing: Preprocessing) -> str:
    """`prediction`, or where there are several targets `prediction_load`."""
    return what if len(preprocessing.targets) == 1 else f"{what}_{target}"


def free_name(name: str, taken: Sequence[str]) -> str:
    """`name`, or with underscores added where there is a column of that name."""
    while name in taken:
        name += "_"
    return name
