"""Which rows train, which validate, which test: seeded or by time, exact, and pure.

Shapes: N rows of all sources, M rows to draw from, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import numpy.typing as npt

from raynn.errors import DataError, JobError, did_you_mean
from raynn.sources import ColumnSplit, DataSettings, TimeSplit
from raynn.times import shown_time, tick_of

TRAIN, VALIDATION, TEST, EXCLUDED = 0, 1, 2, 255
NAMES = {TRAIN: "train", VALIDATION: "validation", TEST: "test"}
SHOWN = 10
CHUNK_ROWS = 2**18  # worked on at a time, where whole columns of 8-byte numbers would take more than the rows

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.integer]
Flags = npt.NDArray[np.bool_]


def assign_splits(
    settings: DataSettings,
    sources: Bytes,
    bad: Flags,
    seed: int,
    classes: Integers | None = None,
    groups: Integers | None = None,
    column_values: Mapping[str, npt.NDArray[np.str_]] | None = None,
) -> Bytes:
    """The split of each row [N]: TRAIN, VALIDATION, TEST, or EXCLUDED where `bad`.

    `sources` [N] is 0 for rows of `data.train`, 1 of `data.validation`, 2 of `data.test`. Fractions are of
    the good rows of `data.train`, rounded half up; the test rows do not depend on the validation fraction.
    With `classes` [N] each drawn split has the classes' proportions (largest remainder) and leaves every
    class a training row. With `groups` [N] whole groups are drawn, as near the fraction as they allow; rows
    without a group (-1) are one group. `column_values` are the columns that `data.validation` and `data.test`
    name, as text.

    DataError when a split would be empty, a class or group cannot be divided as asked, or a group straddles.
    """
    splits = np.where(bad, EXCLUDED, sources).astype(np.uint8)
    in_train = ~bad & (sources == TRAIN)
    num_rows = int(in_train.sum())
    if num_rows == 0:
        raise DataError("data.train has no usable row; check the path, and the rows that were refused")
    rng = np.random.default_rng(seed)
    wanted = {TEST: settings.test, VALIDATION: settings.validation}
    for split, value in wanted.items():
        if isinstance(value, ColumnSplit):
            matches = _matches(value, (column_values or {})[value.column], in_train, NAMES[split])
            # a row that both name is a test row
            splits[matches & (splits == TRAIN)] = split
    fractions = {split: value for split, value in wanted.items() if isinstance(value, float)}
    if fractions and groups is not None:
        _check_enough_groups(settings, fractions, groups[splits == TRAIN])
    for place, (split, fraction) in enumerate(fractions.items()):
        free = splits == TRAIN
        num_free = int(free.sum())
        pool = slice(None) if num_free == len(free) else _places(free)
        count = _rounded(fraction, num_rows)
        _check_count(split, fraction, count, num_rows, num_free)
        pool_classes = np.zeros(num_free, np.uint8) if classes is None else classes[pool]
        if groups is None:
            chosen = _draw_rows(pool_classes, count, rng)
        else:
            num_kept = len(fractions) - place  # one for training, one for each split to come
            chosen = _draw_groups(groups[pool], pool_classes, count, num_kept, rng)
        if len(chosen) == 0 or (groups is None and len(chosen) < count):
            raise _undividable(settings, split, fraction, count, num_free, len(chosen))
        splits[chosen if isinstance(pool, slice) else pool[chosen]] = split
    _check_not_empty(wanted, splits)
    if groups is not None:
        _check_no_straddling(settings, groups, splits)
    return splits


def assign_splits_by_time(
    settings: DataSettings,
    sources: Bytes,
    bad: Flags,
    ticks: Integers,
    is_date: bool,
    column_values: Mapping[str, npt.NDArray[np.str_]],
) -> Bytes:
    """The split of each step [N] of series: TRAIN, VALIDATION, TEST, or EXCLUDED where `bad` or of no split.

    A fraction of the good rows of `data.train`, rounded half up, is their end. The cut is at one time for all series:
    what moves one of them moves others, so that rows of one that are later than another's evaluation would tell of it.
    Rows of that very time go together. A range {since, until} is taken as it is; the rows of `data.train` after its
    beginning that it does not hold belong to no split. The test rows are taken first, and validation from those before.

    Args:
        settings: what `data.validation` and `data.test` are.
        sources: 0 for rows of `data.train`, 1 of `data.validation`, 2 of `data.test` [N].
        bad: rows that cannot be used [N].
        ticks: the time of each row [N].
        is_date: whether ticks are dates (see `times`) or numbers.
        column_values: the columns that `data.validation` and `data.test` name, as text.

    Raises:
        JobError: a range that is none, or ranges that overlap.
        DataError: a split would be empty, or none would train.
    """
    splits = np.where(bad, EXCLUDED, sources).astype(np.uint8)
    in_train = ~bad & (sources == TRAIN)
    num_rows = int(in_train.sum())
    if num_rows == 0:
        raise DataError("data.train has no usable row; check the path, and the rows that were refused")
    wanted = {TEST: settings.test, VALIDATION: settings.validation}
    ranges = {split: _range(value, NAMES[split], is_date) for split, value in wanted.items() if _is_range(value)}
    if len(ranges) == 2 and max(since for since, _ in ranges.values()) < min(until for _, until in ranges.values()):
        raise JobError(
            f"data.validation = {_written(settings.validation)} and data.test = {_written(settings.test)} overlap; "
            "end the first where the second begins"
        )
    for split, value in wanted.items():
        free = in_train & (splits == TRAIN)
        if isinstance(value, ColumnSplit):
            splits[free & _matches(value, column_values[value.column], in_train, NAMES[split])] = split
        elif split in ranges:
            since, until = ranges[split]
            # a test range may have put these rows out of training
            free |= in_train & (splits == EXCLUDED)
            splits[in_train & (splits == TRAIN) & (ticks >= since)] = EXCLUDED
            held = free & (ticks >= since) & (ticks < until)
            if not held.any():
                first, last = (shown_time(int(end), is_date) for end in (ticks[in_train].min(), ticks[in_train].max()))
                raise DataError(
                    f"data.{NAMES[split]} = {_written(value)} holds no usable row: data.train goes from {first} "
                    f"to {last}; name a time within"
                )
            splits[held] = split
        elif isinstance(value, float):
            count = _rounded(value, num_rows)
            _check_count(split, value, count, num_rows, int(free.sum()))
            splits[free & (ticks >= np.sort(ticks[free])[-count])] = split
    _check_not_empty(wanted, splits)
    return splits


def _is_range(value: object) -> bool:
    return isinstance(value, TimeSplit)


def _range(value: object, name: str, is_date: bool) -> tuple[int, float]:
    """First tick of a range, and the first after it."""
    assert isinstance(value, TimeSplit)
    since = tick_of(value.since, is_date, f"data.{name}.since")
    until = np.inf if value.until is None else tick_of(value.until, is_date, f"data.{name}.until")
    if since >= until:
        raise JobError(
            f"data.{name} = {_written(value)} holds no time: `since` must be before `until`, the first time after it"
        )
    return since, until


def _rounded(fraction: float, num_rows: int) -> int:
    """The fraction as the user wrote it, times rows, rounded half up: .145 of 100 is 15; floats say 14."""
    return int((Decimal(repr(fraction)) * num_rows).quantize(Decimal(1), ROUND_HALF_UP))


def _places(flags: Flags) -> Integers:
    """Where `flags` [N] hold, in 4 bytes each where that is enough."""
    places: Integers = np.empty(np.count_nonzero(flags), np.int32 if len(flags) < 2**31 else np.int64)
    filled = 0
    for start in range(0, len(flags), CHUNK_ROWS):
        found = np.flatnonzero(flags[start : start + CHUNK_ROWS]) + start
        places[filled : filled + len(found)] = found
        filled += len(found)
    return places


def _ranked(values: Integers) -> tuple[Integers, Integers]:
    """For each value [M] its rank among the distinct ones, and how many are of each [K]: numpy's `unique`, which sorts,
    without sorting, in a byte or two a value where the values lie close together.
    """
    low, high = int(values.min()), int(values.max())
    if high - low >= 2**16:
        _, ranks, sizes = np.unique(values, return_inverse=True, return_counts=True)
        return ranks, sizes
    chunks = [values[start : start + CHUNK_ROWS] for start in range(0, len(values), CHUNK_ROWS)]
    counts = np.zeros(high - low + 1, np.int64)
    for chunk in chunks:
        counts += np.bincount(chunk.astype(np.int64) - low, minlength=len(counts))
    rank = np.cumsum(counts > 0) - 1
    codes: Integers = np.empty(len(values), np.min_scalar_type(rank[-1]))
    for place, chunk in enumerate(chunks):
        codes[place * CHUNK_ROWS : place * CHUNK_ROWS + len(chunk)] = rank[chunk.astype(np.int64) - low]
    return codes, counts[counts > 0]


def _draw_rows(classes: Integers, count: int, rng: np.random.Generator) -> Integers:
    """Places [<= count] in the pool [M]: each class its quota of `count` by largest remainder, less where it
    would leave a class nothing; fewer than `count` when no class can spare more."""
    codes, sizes = _ranked(classes)
    quotas, remainders = np.divmod(count * sizes, len(codes))
    order = np.lexsort((np.arange(len(sizes)), -sizes, -remainders))
    # each quota is below its class while `count` is below the pool; only remainders can meet a full class
    while quotas.sum() < count and (quotas < sizes - 1).any():
        open_classes = order[(quotas < sizes - 1)[order]]
        quotas[open_classes[: count - quotas.sum()]] += 1
    shuffled = np.arange(len(codes), dtype=np.int32 if len(codes) < 2**31 else np.int64)
    rng.shuffle(shuffled)  # as `permutation`, which takes 8 bytes a row
    # the first of each class in shuffled order, up to its quota
    left, chosen = quotas.copy(), []
    for start in range(0, len(shuffled), CHUNK_ROWS):
        places = shuffled[start : start + CHUNK_ROWS]
        by_class = np.argsort(codes[places], kind="stable")
        here = np.bincount(codes[places], minlength=len(sizes))
        rank = np.arange(len(places)) - np.repeat(np.cumsum(here) - here, here)
        chosen.append(places[by_class[rank < np.repeat(left, here)]])
        left -= np.minimum(left, here)
        if not left.any():
            break
    return np.sort(np.concatenate(chosen))


def _draw_groups(
    groups: Integers,
    classes: Integers,
    count: int,
    num_kept: int,
    rng: np.random.Generator,
) -> Integers:
    """Places in the pool [M] of whole groups with about `count` rows in all: groups in random order, each
    that still fits; then one more where that comes nearer. A group with the last rows of a class stays, and
    so do at least `num_kept` groups, for the splits to come."""
    _, codes, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    names, class_codes = np.unique(classes, return_inverse=True)
    # the distinct pairs of group and class, sorted: each group's classes are a run
    pair_groups, pair_classes = np.divmod(np.unique(codes * len(names) + class_codes), len(names))
    starts = np.searchsorted(pair_groups, np.arange(len(sizes) + 1))
    groups_with = np.bincount(pair_classes)  # [K]
    taken = np.zeros(len(sizes), bool)
    gap, num_left = count, len(sizes)
    order = rng.permutation(len(sizes))
    ascending = order[np.argsort(sizes[order], kind="stable")]
    for group, fits in [*((g, True) for g in order), *((g, False) for g in ascending)]:
        if gap <= 0 or num_left <= num_kept:
            break
        # overshooting by less than the gap comes nearer, and any group is nearer than none
        near = sizes[group] <= gap if fits else sizes[group] < 2 * gap or gap == count
        classes_of_group = pair_classes[starts[group] : starts[group + 1]]
        if near and not taken[group] and (groups_with[classes_of_group] > 1).all():
            groups_with[classes_of_group] -= 1
            taken[group] = True
            gap -= int(sizes[group])
            num_left -= 1
    return np.flatnonzero(taken[codes])


def _matches(split: ColumnSplit, values: npt.NDArray[np.str_], in_train: Flags, name: str) -> Flags:
    """Rows [N] of `data.train` whose value equals the setting's. DataError when none does."""
    matches = np.zeros(len(values), bool)
    for spelling in _spellings(split.equals):
        matches |= values == spelling
    matches &= in_train
    if not matches.any():
        there, counts = np.unique(values[in_train].astype(str), return_counts=True)
        listed = there[np.argsort(-counts, kind="stable")].tolist()
        more = f", ... ({len(listed) - SHOWN} more)" if len(listed) > SHOWN else ""
        hint = did_you_mean(str(split.equals), listed)
        raise DataError(
            f"data.{name}: no usable row of data.train has {split.column} = {split.equals!r}; its values are "
            f"{', '.join(repr(value) for value in listed[:SHOWN])}{more}.{hint} "
            "Set `equals` to one of them"
        )
    return matches


def _spellings(value: str | int | bool) -> tuple[str, ...]:
    """How a column may print the value: files keep what was written, and integers may have become real."""
    if isinstance(value, bool):
        text = str(value)
        return (text, text.lower(), text.upper())
    return (value,) if isinstance(value, str) else (str(value), f"{value}.0")


def _check_count(split: int, fraction: float, count: int, num_rows: int, num_left: int) -> None:
    name = NAMES[split]
    if count == 0:
        raise DataError(
            f"data.{name} = {fraction:g} of {num_rows} rows of data.train is no row at all; "
            f"give a larger fraction, more data, or a source of its own"
        )
    if count >= num_left:
        raise DataError(
            f"data.{name} = {fraction:g} of {num_rows} rows of data.train is {count} rows, and {num_left} "
            "are left: none would train; give smaller fractions, or more data"
        )


def _check_enough_groups(settings: DataSettings, fractions: Mapping[int, float], groups: Integers) -> None:
    found = len(np.unique(groups))
    names = ["train", *(NAMES[split] for split in sorted(fractions))]
    if found < len(names):
        raise DataError(
            f"data.group = {settings.group!r} has {found} {'group' if found == 1 else 'groups'} to divide, "
            f"and {' and '.join(names)} need {len(names)}; choose a column with more groups, or remove "
            "data.group"
        )


def _undividable(
    settings: DataSettings, split: int, fraction: float, count: int, num_left: int, possible: int
) -> DataError:
    name = NAMES[split]
    if possible:
        return DataError(
            f"data.{name} = {fraction:g} asks for {count} of {num_left} rows, and only {possible} can go: "
            f"every class of {settings.target!r} keeps a row for training; give a smaller fraction, or more "
            "rows of each class"
        )
    reason = f"every class of {settings.target!r}"
    if settings.group is not None:
        reason = f"each group of {settings.group!r} has a class of {settings.target!r} no other has, and it"
    return DataError(
        f"data.{name} = {fraction:g} asks for {count} of {num_left} rows, and none can go: {reason} keeps a "
        "row for training; give more rows of each class, or a source of its own"
    )


def _check_not_empty(wanted: Mapping[int, object], splits: Bytes) -> None:
    if not (splits == TRAIN).any():
        raise DataError(
            "data.train keeps no usable row to train on; check the rows that were refused, and what "
            "data.validation and data.test take"
        )
    for split, value in wanted.items():
        if value is not None and not (splits == split).any():
            raise DataError(
                f"data.{NAMES[split]} = {_written(value)} has no usable row; check the path, and the rows "
                "that were refused"
            )


def _written(value: object) -> str:
    if isinstance(value, TimeSplit):
        until = "" if value.until is None else f", until: {value.until}"
        return f"{{since: {value.since}{until}}}"
    return f"{value.column} = {value.equals!r}" if isinstance(value, ColumnSplit) else repr(value)


def _check_no_straddling(settings: DataSettings, groups: Integers, splits: Bytes) -> None:
    """Columns and sources may cut a group, where drawing never does."""
    good = splits != EXCLUDED
    _, codes = np.unique(groups[good], return_inverse=True)
    in_split = np.zeros((codes.max() + 1, 3), bool)
    in_split[codes, splits[good]] = True
    straddling = in_split.sum(axis=1) > 1
    if straddling.any():
        pairs = in_split[straddling][0]
        names = " and ".join(NAMES[split] for split in np.flatnonzero(pairs).tolist())
        raise DataError(
            f"data.group = {settings.group!r}: {straddling.sum()} of {len(in_split)} groups have rows in "
            f"more than one split ({names}, the first of them), and a group may be in one only; divide the "
            "sources or the split column by group, or remove data.group"
        )
