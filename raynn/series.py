"""Tables of series: steps sorted by series and time, split by time, and the windows of a forecast over them.

Steps are rows: a time that has no row is not seen. All steps are sorted in the driver and cut into blocks of equal
length, so that the result depends neither on files nor on who encodes.

Shapes: N rows as the sources hold them, S steps in order of series and time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raynn.columns import ColumnKind, ColumnSpec
from raynn.drivers import BLOCK, Driver
from raynn.errors import DataError, JobError, did_you_mean
from raynn.preparation import (
    REASON,
    UNREAD,
    Prepared,
    ReadPlan,
    ReadRows,
    Understood,
    described,
    fitted_on,
    read_rows,
    understand,
)
from raynn.preprocessing import ForecastSpec, Preprocessing
from raynn.sources import ColumnSplit, DataSettings
from raynn.splits import NAMES, TEST, TRAIN, VALIDATION, assign_splits_by_time
from raynn.times import calendar_column, parse_times, shown_step, shown_time, skips_weekends, usual_step
from raynn.windows import EncodedWindows, WindowPlan, run_lengths

STEPS_PER_BLOCK = 65_536
KINDS: tuple[ColumnKind, ...] = ("numeric", "categorical", "date")


def understand_series(settings: DataSettings, folder: Path) -> Understood:
    """Finds the sources and infers the columns; the fields of `data.calendar` are features made of the time.

    Raises:
        JobError: a key that a forecast needs is missing, or one that it cannot have is there.
        DataError: a source, a column or a target is not there, or of a kind that cannot be.
    """
    horizon = settings.horizon or 1
    for name, meaning, example in (
        ("time", "the column that orders the steps", "date"),
        ("target", "the column to predict, or several", "[load, price]"),
        ("horizon", "how many steps to predict", "24"),
        ("window", "how many past steps are read", str(5 * horizon)),
    ):
        if getattr(settings, name) is None:
            raise JobError(f"data.{name} is missing: forecasting needs {meaning}, for instance `{name}: {example}`")
    if settings.group is not None:
        raise JobError(
            f"data.group = {settings.group!r} is not for forecasting, whose splits are by time: remove it, or name the "
            "column that tells series apart in data.series"
        )
    beside = [name for name in (settings.time, settings.series) if name is not None]
    understood = understand(settings, folder, kinds=KINDS, extra=beside, needs_features=False)
    plan = understood.plan
    for spec in plan.targets:
        if spec.kind != "numeric":
            raise DataError(
                f"data.target names {spec.name!r}, which is {spec.kind} ({spec.reason}), and forecasts are numbers; "
                "choose another column, or task: classification"
            )
    _check_features(plan.features, settings)
    calendar = tuple(
        ColumnSpec(name, "categorical", (), f"{field} of {settings.time}: data.calendar")
        for name, field in calendar_of(settings).items()
    )
    taken = {spec.name for spec in (*plan.features, *plan.targets)} & {spec.name for spec in calendar}
    if taken:
        raise DataError(f"column {taken.pop()!r} is also what data.calendar makes of the time; rename the column")
    # all steps are sorted at once: there is no preparing a block by itself
    return replace(understood, plan=replace(plan, features=(*plan.features, *calendar)), footprint=None)


def _check_features(features: tuple[ColumnSpec, ...], settings: DataSettings) -> None:
    """Every feature is of a kind that a step can have, and what is known in the future is a feature."""
    used = [spec.name for spec in features if spec.kind != "ignore"]
    for spec in features:
        if spec.kind not in (*KINDS, "ignore"):
            raise DataError(
                f"column {spec.name!r} is {spec.kind}, and a forecast reads {', '.join(KINDS)} columns; "
                f"set `data.columns: {{{spec.name}: ignore}}`"
            )
    for name in settings.known:
        if name not in used:
            raise JobError(
                f"data.known names {name!r}, which is not a feature.{did_you_mean(name, used)} "
                f"The features: {', '.join(used) or 'none'}"
            )


@dataclass(frozen=True)
class Steps:
    """All rows of the sources, by series and time."""

    table: pa.Table  # cleaned columns [S], those of the calendar among them, and REASON
    order_S: NDArray[np.int64]  # the row of each step
    names: tuple[str, ...]  # of the series; one that is empty where there is no column of them
    series_S: NDArray[np.int64]  # which of them a step belongs to
    tick_S: NDArray[np.int64]  # see `times`
    is_date: bool

    @cached_property
    def bad_S(self) -> NDArray[np.bool_]:
        """Steps that cannot be used; no window holds one."""
        return np.asarray(self.table[REASON].is_valid().to_numpy(), bool)

    @cached_property
    def new_S(self) -> NDArray[np.bool_]:
        """Where a series begins."""
        return np.diff(self.series_S, prepend=-1) != 0

    def between(self) -> NDArray[np.int64]:
        """Differences in time from each step to the next of its series."""
        return np.diff(self.tick_S)[~self.new_S[1:]]

    def name_of(self, step: int) -> str:
        """` of series 'A'`, or nothing where there is one series only."""
        name = self.names[self.series_S[step]]
        return f" of series {name!r}" if name else ""


def read_steps(understood: Understood, driver: Driver) -> tuple[Steps, ReadRows]:
    """Reads and cleans all rows, and sorts them.

    Raises:
        DataError: too many bad rows, a row that has no time or no series, two rows of one time in a series.
    """
    plan = plan_of_data(understood.plan)
    read = read_rows(replace(understood, plan=plan), driver)
    if unread := [row for row in read.bad_rows if row.column is None]:
        raise DataError(
            f"{described(unread[0])}: a row that cannot be read has no place in a series, so that data.max_bad_rows "
            "cannot help; mend the row"
        )
    table = pa.concat_tables(driver.tables(read.blocks), promote_options="permissive").drop_columns([BLOCK, UNREAD])
    ends = np.cumsum(read.counts)

    def place_of(row: int) -> tuple[str, int]:
        fragment = int(np.searchsorted(ends, row, side="right"))
        return understood.fragments[fragment].locate(row - int(ends[fragment] - read.counts[fragment]))

    return sorted_steps(table, plan.settings, place_of), read


def plan_of_data(plan: ReadPlan) -> ReadPlan:
    """The plan less the features that the calendar makes, which no source holds."""
    made = calendar_of(plan.settings)
    return replace(plan, features=tuple(spec for spec in plan.features if spec.name not in made))


def calendar_of(settings: DataSettings) -> dict[str, str]:
    """Features that `data.calendar` makes of the time: the field of each."""
    return {f"{settings.time}.{field}": field for field in settings.calendar}


def sorted_steps(table: pa.Table, settings: DataSettings, place_of: Callable[[int], tuple[str, int]]) -> Steps:
    """The steps of cleaned rows; `place_of` says the file and the place in it of a row, for messages.

    Raises:
        DataError: a row that has no time or no series, two rows of one time in a series.
    """

    def place(row: int) -> str:
        return "{}, row {}".format(*place_of(row))

    tick_N, is_date = _times(table, settings, place)
    series_N, names = np.zeros(len(tick_N), np.int64), np.array([""])
    if settings.series is not None:
        column = table[settings.series]
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise DataError(
                f"data.series = {settings.series!r} is empty in {column.null_count} rows, the first {place(row)}; "
                "fill it in, or drop these rows"
            )
        names, series_N = np.unique(np.asarray(column.to_pylist(), np.str_), return_inverse=True)
    order_S = np.lexsort((tick_N, series_N))
    table, tick_S = table.take(pa.array(order_S)).combine_chunks(), tick_N[order_S]
    table = with_calendar(table, tick_S, settings, is_date)
    steps = Steps(table, order_S, tuple(names.tolist()), series_N[order_S], tick_S, is_date)
    _check_no_time_twice(steps, settings, place)
    return steps


def _times(table: pa.Table, settings: DataSettings, place: Callable[[int], str]) -> tuple[NDArray[np.int64], bool]:
    """The tick of every row [N], and whether they are dates."""
    name = settings.time
    column = table[name]
    tick_N, unread_N, is_date = parse_times(column)
    if unread_N.any():
        row = int(np.flatnonzero(unread_N)[0])
        value = column[row].as_py()
        raise DataError(
            f"data.time = {name!r}: {unread_N.sum()} of {len(unread_N)} rows hold no time, the first {place(row)}: "
            f"{'nothing' if value is None else repr(value)}; write dates as 2024-05-31 or 2024-05-31 12:00, or whole "
            "numbers, in every row"
        )
    return tick_N, is_date


def with_calendar(table: pa.Table, tick_S: NDArray[np.int64], settings: DataSettings, is_date: bool) -> pa.Table:
    """The table with the columns that `data.calendar` makes of the time.

    Raises:
        DataError: times that are whole numbers have none.
    """
    if settings.calendar and not is_date:
        raise DataError(
            f"data.calendar = {list(settings.calendar)} are fields of dates, and data.time = {settings.time!r} holds "
            "whole numbers; remove data.calendar"
        )
    for name, field in calendar_of(settings).items():
        table = table.append_column(name, calendar_column(tick_S, field))
    return table


def _check_no_time_twice(steps: Steps, settings: DataSettings, place: Callable[[int], str]) -> None:
    twice = np.flatnonzero((np.diff(steps.tick_S) == 0) & ~steps.new_S[1:])
    if not len(twice):
        return
    first, second = sorted(steps.order_S[twice[0] : twice[0] + 2].tolist())
    remedy = "drop one of them"
    if settings.series is None:
        remedy += ", or name the column that tells series apart in data.series"
    raise DataError(
        f"data.time = {settings.time!r}: {len(twice)} times{steps.name_of(int(twice[0]))} are there twice, the first "
        f"{shown_time(int(steps.tick_S[twice[0]]), steps.is_date)} in {place(first)}, and {place(second)}; "
        f"{remedy}"
    )


def prepare_series(
    understood: Understood, driver: Driver, preprocessing: Preprocessing | None = None, refit: bool = False
) -> Prepared:
    """Reads, sorts, splits by time, fits on the training steps, encodes and plans windows; with `preprocessing` (a
    trained run's) nothing is fitted.

    Training windows lie wholly in training steps. Of the others the predicted steps lie wholly in the split, and what
    is read may reach back into the steps before it, which are known by then. With `refit` the steps are also given
    without validation: training windows lie wholly in training and validation steps.

    Raises:
        JobError: ranges of time that cannot be.
        DataError: too many bad rows, times that cannot be, a split without a window.
    """
    steps, read = read_steps(understood, driver)
    split_S = split_steps(steps, understood, read)
    plan = understood.plan
    if preprocessing is None:
        tables = [table.append_column(BLOCK, _block_number(i, table)) for i, table in enumerate(_cut(steps.table))]
        parts = [split_S[a : a + STEPS_PER_BLOCK] for a in range(0, len(split_S), STEPS_PER_BLOCK)]
        fitted = fitted_on(TRAIN, driver.put(tables), parts, plan, "forecasting", driver)
        preprocessing = replace(fitted, forecast=_forecast_spec(steps, split_S, plan.settings))
    windows = plan_windows(steps, split_S, plan.settings)
    _check_windows(steps, split_S, windows, plan.settings)
    split_N = np.empty_like(split_S)
    split_N[steps.order_S] = split_S
    encoded_windows = encode_steps(steps, windows, preprocessing, driver)
    all_windows = None
    if refit:
        split_all_S = np.where(split_S == VALIDATION, TRAIN, split_S)
        all_windows = replace(encoded_windows, windows=plan_windows(steps, split_all_S, plan.settings))
    return Prepared(
        "forecasting",
        described_steps(steps, plan.settings),
        preprocessing,
        encoded_windows,
        tuple(np.split(split_N, np.cumsum(read.counts)[:-1])),
        read.bad_rows,
        read.num_source_rows,
        refit=all_windows,
    )


def _cut(table: pa.Table) -> list[pa.Table]:
    return [table.slice(start, STEPS_PER_BLOCK) for start in range(0, table.num_rows, STEPS_PER_BLOCK)]


def _block_number(index: int, table: pa.Table) -> pa.Array:
    return pa.array(np.full(table.num_rows, index, np.int32))


def _forecast_spec(steps: Steps, split_S: NDArray[np.uint8], settings: DataSettings) -> ForecastSpec:
    assert settings.window is not None
    assert settings.horizon is not None
    known = (*settings.known, *calendar_of(settings))
    tick_S = steps.tick_S[split_S == TRAIN]
    weekdays = steps.is_date and skips_weekends(tick_S, usual_step(steps.between()))
    return ForecastSpec(settings.window, settings.horizon, known, weekdays)


def split_steps(steps: Steps, understood: Understood, read: ReadRows) -> NDArray[np.uint8]:
    """The split of each step [S]: `splits.assign_splits_by_time`."""
    settings = understood.plan.settings
    roles = np.repeat(np.array(understood.roles, np.uint8), read.counts)[steps.order_S]
    named = [s.column for s in (settings.validation, settings.test) if isinstance(s, ColumnSplit)]
    texts = {name: steps.table[name].cast(pa.string()).fill_null("").to_pylist() for name in named}
    values = {name: np.asarray(text, np.str_) for name, text in texts.items()}
    return assign_splits_by_time(settings, roles, steps.bad_S, steps.tick_S, steps.is_date, values)


def plan_windows(
    steps: Steps, split_S: NDArray[np.uint8], settings: DataSettings
) -> tuple[WindowPlan, WindowPlan, WindowPlan]:
    """The windows of every split: training windows every `data.stride` steps, all of the others."""
    assert settings.window is not None
    assert settings.horizon is not None
    planned = partial(WindowPlan.over_steps, steps.new_S, window=settings.window, horizon=settings.horizon)
    train = planned(split_S == TRAIN, split_S == TRAIN).strided(settings.stride or 1)
    validation, test = (planned(~steps.bad_S, split_S == split) for split in (VALIDATION, TEST))
    return train, validation, test


def encode_steps(
    steps: Steps, windows: tuple[WindowPlan, WindowPlan, WindowPlan], preprocessing: Preprocessing, driver: Driver
) -> EncodedWindows:
    """The steps as numbers, in blocks, and the windows over them."""
    blocks = driver.map(driver.put(_cut(steps.table)), partial(encoded, preprocessing=preprocessing))
    num_steps = steps.table.num_rows
    first_step = np.append(np.arange(0, num_steps, STEPS_PER_BLOCK), num_steps)
    return EncodedWindows(blocks, first_step, windows, preprocessing.input_spec)


def encoded(table: pa.Table, preprocessing: Preprocessing) -> pa.Table:
    """Cleaned steps as numbers, with their targets."""
    return preprocessing.encode(table, with_target=True).combine_chunks()


def _check_windows(
    steps: Steps, split_S: NDArray[np.uint8], windows: tuple[WindowPlan, ...], settings: DataSettings
) -> None:
    """Every split that was asked for has a window, or what would give it one is said."""
    assert settings.window is not None
    assert settings.horizon is not None
    needed = settings.window + settings.horizon
    usable = int(run_lengths(steps.new_S, ~steps.bad_S).max())
    for split in (TRAIN, VALIDATION, *([TEST] if settings.test is not None else [])):
        if len(windows[split]):
            continue
        longest = int(run_lengths(steps.new_S, split_S == split).max())
        if split == TRAIN or usable < needed:
            kind, longest = ("training", longest) if split == TRAIN else ("usable", usable)
            remedy = "shorten both, or give longer series"
            if longest > settings.horizon:
                remedy = f"set data.window to at most {longest - settings.horizon}"
            raise DataError(
                f"data.window = {settings.window} and data.horizon = {settings.horizon} take {needed} steps in a row, "
                f"and the longest run of {kind} steps is {longest}; {remedy}"
            )
        raise DataError(
            f"data.{NAMES[split]} holds no window: data.horizon = {settings.horizon} of its steps in a row are "
            f"predicted, from the {settings.window} before them, and its longest run is {longest}; make it longer"
            + (f", or set data.horizon to at most {longest}" if longest < settings.horizon else "")
        )


def described_steps(steps: Steps, settings: DataSettings) -> str:
    """`1 series of 17,420 steps, 100 % of them 1:00:00 apart`."""
    length = np.bincount(steps.series_S)
    between = steps.between()
    count = f"{length.min():,} to {length.max():,}" if length.min() < length.max() else f"{length[0]:,}"
    text = f"{len(steps.names):,} series of {count} steps"
    if len(between):
        step = usual_step(between)
        text += f", {100 * (between == step).mean():.3g} % of them {shown_step(step, steps.is_date)} apart"
    return text
