"""Tables of series: steps sorted by series and time, split by time, and the windows of a forecast over them.

Steps are rows: a time that has no row is not seen. All steps are sorted in the driver and cut into blocks of equal
length, so that the result depends neither on files nor on who encodes.

Shapes: N rows as the sources hold them, S steps in order of series and time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raynn.columns import ColumnSpec
from raynn.errors import DataError, JobError, did_you_mean
from raynn.preparation import (
    BLOCK,
    REASON,
    UNREAD,
    Driver,
    Prepared,
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
KINDS = ("numeric", "categorical", "date")


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
                f"data.target names {spec.name!r}, which is {spec.kind} ({spec.reason}), and only numbers are forecast; "
                "choose another column, or task: classification"
            )
    _check_features(plan.features, settings)
    calendar = tuple(
        ColumnSpec(f"{settings.time}.{field}", "categorical", (), f"{field} of {settings.time}, in data.calendar")
        for field in settings.calendar
    )
    taken = {spec.name for spec in (*plan.features, *plan.targets)} & {spec.name for spec in calendar}
    if taken:
        raise DataError(f"column {taken.pop()!r} is also what data.calendar makes of the time; rename the column")
    return replace(understood, plan=replace(plan, features=(*plan.features, *calendar)))


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

    read: ReadRows  # the rows as they were read
    table: pa.Table  # cleaned columns [S], those of the calendar among them
    order_S: NDArray[np.int64]  # the row of each step
    names: tuple[str, ...]  # of the series; one that is empty where there is no column of them
    series_S: NDArray[np.int64]  # which of them a step belongs to
    tick_S: NDArray[np.int64]  # see `times`
    is_date: bool
    bad_S: NDArray[np.bool_]

    @property
    def new_S(self) -> NDArray[np.bool_]:
        """Where a series begins."""
        return np.diff(self.series_S, prepend=-1) != 0

    def between(self) -> NDArray[np.int64]:
        """Differences in time from each step to the next of its series."""
        return np.diff(self.tick_S)[~self.new_S[1:]]


def read_steps(understood: Understood, driver: Driver) -> Steps:
    """Reads and cleans all rows, and sorts them.

    Raises:
        DataError: too many bad rows, a row that has no time or no series, two rows of one time in a series.
    """
    plan = understood.plan
    settings = plan.settings
    made = {f"{settings.time}.{field}": field for field in settings.calendar}
    in_data = tuple(spec for spec in plan.features if spec.name not in made)
    read = read_rows(replace(understood, plan=replace(plan, features=in_data)), driver)
    table = pa.concat_tables(driver.tables(read.blocks), promote_options="permissive").combine_chunks()
    place_of = partial(_place, understood=understood, counts=read.counts)
    if unread := [row for row in read.bad_rows if row.column is None]:
        raise DataError(
            f"{described(unread[0])}: a row that cannot be read has no place in a series, so data.max_bad_rows does not "
            "help; mend the row"
        )
    tick_N, is_date = _times(table, settings, place_of)
    series_N, names = np.zeros(len(tick_N), np.int64), np.array([""])
    if settings.series is not None:
        column = table[settings.series]
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise DataError(
                f"data.series = {settings.series!r} is empty in {column.null_count} rows, the first {place_of(row)}; "
                "fill it in, or drop these rows"
            )
        names, series_N = np.unique(np.asarray(column.to_pylist(), np.str_), return_inverse=True)
    order_S = np.lexsort((tick_N, series_N))
    steps = Steps(
        read,
        _with_calendar(table.drop_columns([BLOCK, REASON, UNREAD]).take(order_S), tick_N[order_S], made, is_date),
        order_S,
        tuple(names.tolist()),
        series_N[order_S],
        tick_N[order_S],
        is_date,
        read.bad[order_S],
    )
    _check_no_time_twice(steps, settings, place_of)
    return steps


def _place(row: int, understood: Understood, counts: tuple[int, ...]) -> str:
    """`data.csv, row 7`, of a row of all sources."""
    ends = np.cumsum(counts)
    fragment = int(np.searchsorted(ends, row, side="right"))
    file, number = understood.fragments[fragment].locate(row - int(ends[fragment] - counts[fragment]))
    return f"{file}, row {number}"


def _times(table: pa.Table, settings: DataSettings, place_of: Callable[[int], str]) -> tuple[NDArray[np.int64], bool]:
    """The tick of every row [N], and whether they are dates."""
    name = settings.time
    column = table[name]
    tick_N, unread_N, is_date = parse_times(column)
    if unread_N.any():
        row = int(np.flatnonzero(unread_N)[0])
        value = column[row].as_py()
        raise DataError(
            f"data.time = {name!r}: {unread_N.sum()} of {len(unread_N)} rows hold no time, the first {place_of(row)}: "
            f"{'nothing' if value is None else repr(value)}; write dates as 2024-05-31 or 2024-05-31 12:00, or whole "
            "numbers, in every row"
        )
    return tick_N, is_date


def _with_calendar(table: pa.Table, tick_S: NDArray[np.int64], made: dict[str, str], is_date: bool) -> pa.Table:
    """The table with the columns that `data.calendar` makes of the time."""
    if made and not is_date:
        field = next(iter(made.values()))
        raise DataError(f"data.calendar names {field!r}, and data.time holds whole numbers, not dates; remove it")
    for name, field in made.items():
        table = table.append_column(name, calendar_column(tick_S, field))
    return table


def _check_no_time_twice(steps: Steps, settings: DataSettings, place_of: Callable[[int], str]) -> None:
    twice = np.flatnonzero((np.diff(steps.tick_S) == 0) & ~steps.new_S[1:])
    if not len(twice):
        return
    first, second = sorted(steps.order_S[twice[0] : twice[0] + 2].tolist())
    of, remedy = "", "name the column that tells series apart in data.series, or drop one of the rows"
    if settings.series is not None:
        of, remedy = f" of series {steps.names[steps.series_S[twice[0]]]!r}", "drop one of them"
    raise DataError(
        f"data.time = {settings.time!r}: {len(twice)} times are there twice, the first {place_of(first)} and "
        f"{place_of(second)}{of}: {shown_time(int(steps.tick_S[twice[0]]), steps.is_date)}; {remedy}"
    )


def prepare_series(understood: Understood, driver: Driver, preprocessing: Preprocessing | None = None) -> Prepared:
    """Reads, sorts, splits by time, fits on the training steps, encodes and plans windows; with `preprocessing` (a
    trained run's) nothing is fitted.

    Training windows lie wholly in training steps. Of the others the predicted steps lie wholly in the split, and what
    is read may reach back into the steps before it, which are known by then.

    Raises:
        JobError: ranges of time that cannot be.
        DataError: too many bad rows, times that cannot be, a split without a window.
    """
    steps = read_steps(understood, driver)
    split_S = split_steps(steps, understood)
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
    return Prepared(
        "forecasting",
        described_steps(steps, plan.settings),
        preprocessing,
        encode_steps(steps, windows, preprocessing, driver),
        tuple(np.split(split_N, np.cumsum(steps.read.counts)[:-1])),
        steps.read.bad_rows,
        steps.read.num_source_rows,
    )


def _cut(table: pa.Table) -> list[pa.Table]:
    return [table.slice(start, STEPS_PER_BLOCK) for start in range(0, table.num_rows, STEPS_PER_BLOCK)]


def _block_number(index: int, table: pa.Table) -> pa.Array:
    return pa.array(np.full(table.num_rows, index, np.int32))


def _forecast_spec(steps: Steps, split_S: NDArray[np.uint8], settings: DataSettings) -> ForecastSpec:
    assert settings.window is not None
    assert settings.horizon is not None
    known = (*settings.known, *(f"{settings.time}.{field}" for field in settings.calendar))
    tick_S = steps.tick_S[split_S == TRAIN]
    weekdays = steps.is_date and skips_weekends(tick_S, usual_step(steps.between()))
    return ForecastSpec(settings.window, settings.horizon, known, weekdays)


def split_steps(steps: Steps, understood: Understood) -> NDArray[np.uint8]:
    """The split of each step [S]: `splits.assign_splits_by_time`."""
    settings = understood.plan.settings
    roles = np.repeat(np.array(understood.roles, np.uint8), steps.read.counts)[steps.order_S]
    columns = [s.column for s in (settings.validation, settings.test) if isinstance(s, ColumnSplit)]
    values = {name: np.asarray(steps.table[name].cast(pa.string()).fill_null("").to_pylist(), np.str_) for name in columns}
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
    wanted = {TRAIN: True, VALIDATION: True, TEST: settings.test is not None}
    for split in (split for split, is_wanted in wanted.items() if is_wanted and not len(windows[split])):
        longest = int(run_lengths(steps.new_S, split_S == split).max())
        whole = int(run_lengths(steps.new_S, ~steps.bad_S).max())
        needed = settings.window + settings.horizon
        if split == TRAIN or whole < needed:
            longest = longest if split == TRAIN else whole
            what = f"data.window = {settings.window} and data.horizon = {settings.horizon} take {needed} steps in a row"
            remedy = f"set data.window to at most {longest - settings.horizon}"
            if longest <= settings.horizon:
                remedy = "shorten data.window and data.horizon, or give longer series"
            raise DataError(
                f"{what}, and the longest run of {'training' if split == TRAIN else 'usable'} steps is {longest}; {remedy}"
            )
        raise DataError(
            f"data.{NAMES[split]} holds no window: data.horizon = {settings.horizon} steps in a row are predicted, behind "
            f"data.window = {settings.window} that are read, and its longest run is {longest} steps; make it longer, or "
            f"set data.horizon to at most {longest}"
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
