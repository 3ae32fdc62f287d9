"""From a job's sources to encoded blocks, one a fragment: read, clean, split, fit, encode.

The steps are pure functions from Arrow table to Arrow table. Here they run over the fragments in this process; `data`
maps the same functions over Ray Data blocks. Either way a fragment is a block, in the same order, and whatever is
summed is summed in that order.
"""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from glob import glob
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raynn.catalog import CATALOG
from raynn.cleaning import ShapeError, clean
from raynn.columns import ColumnKind, ColumnSpec, infer_columns, require_features
from raynn.drivers import BLOCK, Driver, index_of
from raynn.encoded import Blocks, Encoded, EncodedBlocks
from raynn.errors import DataError
from raynn.footprint import Footprint, footprint_of
from raynn.fragments import BadRow, Fragment, read_fragment, sample_rows, schema_of
from raynn.metrics import Task
from raynn.preprocessing import Preprocessing, Summary, fit, summarize
from raynn.sources import ColumnSplit, DataSettings, find_sources
from raynn.splits import NAMES, TRAIN, assign_splits
from raynn.summaries import sample_limit, sampled
from raynn.tokens import TokenKind

# Columns that cleaning adds beside the data's own and BLOCK.
REASON = "__reason__"  # string, null for a good row: JSON of the row as bad_rows.jsonl names it
UNREAD = "__unread__"  # string, in a block's first row: JSON of the rows that could not even be read
SAMPLE_ROWS = 10_000
MAX_CLASSES_OF_INTEGERS = 50


@dataclass(frozen=True)
class ReadPlan:
    """How every fragment of a job is read and cleaned."""

    settings: DataSettings
    features: tuple[ColumnSpec, ...]
    targets: tuple[ColumnSpec, ...] = ()
    extra: tuple[str, ...] = ()  # group and split columns

    def read(self, index: int, fragment: Fragment) -> pa.Table:
        """Cleaned rows of one fragment, all of them in order, with the columns BLOCK, REASON, UNREAD."""
        wanted = [spec.name for spec in self.features if spec.kind != "ignore"]
        wanted += [spec.name for spec in self.targets]
        names = list(dict.fromkeys([*wanted, *self.extra]))
        table, unread = read_fragment(fragment, names)
        cleaned = self.cleaned(table, lambda row: fragment.locate(row, unread))
        if unread and not cleaned.num_rows:
            raise DataError(f"no row could be read; the first: {described(unread[0])}")
        notes: list[str | None] = [None] * cleaned.num_rows
        if unread:
            notes[0] = json.dumps([_bad_row_json(row) for row in unread])
        cleaned = cleaned.append_column(BLOCK, pa.array(np.full(cleaned.num_rows, index, np.int32)))
        return cleaned.append_column(UNREAD, pa.array(notes, pa.string()))

    def cleaned(self, table: pa.Table, locate: Callable[[int], tuple[str, int]]) -> pa.Table:
        """Raw rows cleaned, with the column REASON; `locate` says the file and the place in it of a row.

        Raises:
            DataError: a column that is missing or of another type, images or sequences of different sizes.
        """
        try:
            cleaned, bad = clean(table, self.features, self.targets, self.extra, self.settings)
        except ShapeError as error:
            raise error.located(*locate(error.row)) from None
        reasons: list[str | None] = [None] * cleaned.num_rows
        for row, column, reason in bad:
            reasons[row] = _bad_row_json(BadRow(*locate(row), column, reason))
        return self._extra_as_text(cleaned).append_column(REASON, pa.array(reasons, pa.string()))

    def _extra_as_text(self, cleaned: pa.Table) -> pa.Table:
        """The same table, its group and split columns as text: files may differ in their type.

        Raises:
            DataError: a column that cannot be written as text.
        """
        typed = {spec.name for spec in self.targets}
        for name in set(self.extra) - typed:
            try:
                column = cleaned[name].cast(pa.string())
            except pa.ArrowException:
                raise DataError(
                    f"column {name!r} holds {cleaned[name].type}, and groups and splits go by text or whole numbers; "
                    "name another column"
                ) from None
            cleaned = cleaned.set_column(cleaned.column_names.index(name), name, column)
        return cleaned


def _bad_row_json(row: BadRow) -> str:
    return json.dumps(row.to_json())


@dataclass(frozen=True)
class Prepared:
    """Data ready for training: how they were understood, and their encoded blocks."""

    task: Task
    task_reason: str
    preprocessing: Preprocessing
    encoded: Encoded
    splits: tuple[NDArray[np.uint8], ...]  # of every row of each fragment
    bad_rows: tuple[BadRow, ...]
    num_source_rows: int
    notes: tuple[str, ...] = ()  # what else is said before training
    cuts: tuple[
        NDArray[np.int64], ...
    ] = ()  # of a corpus: characters of every row in each split [rows, 3], by fragment
    refit: Encoded | None = None  # where asked: the same, validation rows among the training rows


@dataclass(frozen=True)
class Understood:
    """Sources found and columns inferred, before any row but a sample was read."""

    plan: ReadPlan
    fragments: tuple[Fragment, ...]
    roles: tuple[int, ...]  # of each fragment: 0 the training source, 1 validation, 2 test
    footprint: Footprint | None = None  # where the rows of each fragment can be prepared by themselves


def located(settings: DataSettings, folder: Path) -> DataSettings:
    """The settings with local sources as absolute paths, so that a run can be opened from any folder.

    Relative ones are looked for in the current folder, then in `folder`; what is in neither stays as it is.
    """

    def locate(entry: str) -> str:
        if entry in CATALOG or "://" in entry:
            return entry
        wanted = Path(entry).expanduser()
        paths = [str(wanted), str(folder / wanted)]
        return next((os.path.abspath(path) for path in paths if os.path.exists(path) or glob(path)), entry)

    found: dict[str, Any] = {}
    for name in ("train", "validation", "test"):
        source = getattr(settings, name)
        if isinstance(source, str):
            found[name] = locate(source)
        elif isinstance(source, tuple):
            found[name] = tuple(locate(entry) for entry in source)
    return settings.model_copy(update=found)


def understand(
    settings: DataSettings,
    folder: Path,
    *,
    kinds: tuple[ColumnKind, ...] | None = None,
    any_length: bool = False,
    extra: Sequence[str] = (),
    needs_features: bool = True,
) -> Understood:
    """Finds the sources and infers the columns from the training source's schema and first rows.

    With `kinds` only columns of these kinds are features by default. With `any_length` sequences are not held to one
    length even where those of the sample have one: the shape of such a column is (0, C). `extra` columns are read
    beside group and split columns.

    Raises:
        DataError: a source, a column or a target is not there, or of a kind that cannot be.
    """
    fragments, roles = find_sources(settings, folder)
    sample = sample_of(fragments, roles)
    features, targets = infer_columns(schema_of(fragments), sample, settings, kinds)
    if needs_features:
        require_features(features, settings)
    if any_length:
        features = tuple(replace(f, shape=(0, f.shape[1])) if f.kind == "sequence" else f for f in features)
    splits = [s.column for s in (settings.validation, settings.test) if isinstance(s, ColumnSplit)]
    beside = dict.fromkeys([*extra, *([settings.group] if settings.group else []), *splits])
    footprint = footprint_of(fragments, features, targets, tuple(beside), sample)
    return Understood(ReadPlan(settings, features, targets, tuple(beside)), fragments, roles, footprint)


def sample_of(fragments: Sequence[Fragment], roles: Sequence[int]) -> pa.Table:
    """The first rows of the training source, of the files that have its first file's format."""
    alike = [f for f, role in zip(fragments, roles, strict=True) if role == 0 and f.format == fragments[0].format]
    try:
        return sample_rows(alike, SAMPLE_ROWS)
    except pa.ArrowTypeError:  # files that differ in a column's type: each is read as the first says
        return sample_rows(alike[:1], SAMPLE_ROWS)


def prepare(
    understood: Understood,
    task: Task | None,
    seed: int,
    driver: Driver,
    preprocessing: Preprocessing | None = None,
    refit: bool = False,
) -> Prepared:
    """Reads, cleans, splits, fits on the training rows, and encodes: rows that stand for themselves.

    With `preprocessing` (a trained run's) nothing is fitted. With `refit` the rows are also given without validation.

    Raises:
        DataError: too many bad rows, a split or class that cannot be, labels that training never saw.
    """
    plan = understood.plan
    settings = plan.settings
    read = read_rows(understood, driver)
    facts, bad = read.facts, read.bad
    chosen: Task
    if task == "image_generation":
        chosen, reason = task, "the network generates images"
    else:
        target = plan.targets[0]
        chosen, reason = choose_task(task, facts[target.name].filter(pa.array(~bad)), target.name)
    classes = codes_of(facts[plan.targets[0].name]) if chosen != "regression" and plan.targets else None
    groups = codes_of(facts[settings.group]) if settings.group else None
    columns = [s.column for s in (settings.validation, settings.test) if isinstance(s, ColumnSplit)]
    named = {name: np.asarray(facts[name].cast(pa.string()).fill_null("").to_pylist(), np.str_) for name in columns}
    roles = np.repeat(np.array(understood.roles, np.uint8), read.counts)
    splits = assign_splits(settings, roles, bad, seed, classes, groups, named)
    del facts, classes, groups, named, roles
    offsets = np.concatenate([[0], np.cumsum(read.counts)])
    parts = [splits[a:b] for a, b in pairwise(offsets)]
    preprocessing = preprocessing or fitted_on(TRAIN, read.blocks, parts, plan, chosen, driver)
    blocks = driver.map(read.blocks, partial(_encoded_block, preprocessing=preprocessing), parts)
    table = np.array([[int((part == s).sum()) for s in range(3)] for part in parts], np.int64).reshape(-1, 3)
    encoded = EncodedBlocks(blocks, table, preprocessing.input_spec)
    # within a block validation rows follow the training rows: counted among them, they are some
    all_rows = EncodedBlocks(blocks, np.stack([table[:, :2].sum(1), 0 * table[:, 1], table[:, 2]], 1), encoded.inputs)
    return Prepared(
        chosen,
        reason,
        preprocessing,
        encoded,
        tuple(parts),
        read.bad_rows,
        read.num_source_rows,
        refit=all_rows if refit else None,
    )


@dataclass(frozen=True)
class ReadRows:
    """All rows of the sources, read and cleaned, and what the driver must know of them."""

    blocks: Blocks
    facts: pa.Table  # targets and extra columns of all rows
    counts: tuple[int, ...]  # rows of each block
    bad: NDArray[np.bool_]  # of every row
    bad_rows: tuple[BadRow, ...]
    num_source_rows: int


def read_rows(understood: Understood, driver: Driver) -> ReadRows:
    """Reads and cleans every fragment once.

    Raises:
        DataError: too many bad rows.
    """
    plan = understood.plan
    blocks = driver.read(understood.fragments, plan.read)
    keys = list(dict.fromkeys([*(spec.name for spec in plan.targets), *plan.extra, REASON, UNREAD]))
    facts = list(driver.tables(driver.map(blocks, partial(facts_of, names=keys))))
    whole = pa.concat_tables([table.unify_dictionaries() for table in facts], promote_options="permissive")
    bad_rows = bad_rows_of(whole)
    num_source_rows = whole.num_rows + _num_unread(whole)
    check_bad_rows(bad_rows, num_source_rows, plan.settings)
    bad = pc.is_valid(whole[REASON]).to_numpy()
    return ReadRows(blocks, whole, tuple(table.num_rows for table in facts), bad, bad_rows, num_source_rows)


def fitted_on(
    split: int, blocks: Blocks, parts: Sequence[NDArray[np.uint8]], plan: ReadPlan, task: Task, driver: Driver
) -> Preprocessing:
    """Preprocessing of a split's rows; `parts` are the splits of every row of each block."""
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    summary_of = partial(
        _summary_block,
        split=split,
        offsets=offsets,
        limit=sample_limit(
            (np.flatnonzero(part == split) + start for part, start in zip(parts, offsets[:-1], strict=True)),
            len(sampled(plan.features)),
        ),
        features=plan.features,
        targets=plan.targets,
        tokens=plan.settings.tokens or "words",
    )
    summaries = (_unpickled(table) for table in driver.tables(driver.map(blocks, summary_of, parts)))
    return fit((s for s in summaries if s is not None), plan.features, plan.targets, task, plan.settings)


def choose_task(task: Task | None, target: pa.ChunkedArray, name: str) -> tuple[Task, str]:
    """Classification or regression, as asked or as the target's values suggest, and why.

    Raises:
        DataError: a task that this target cannot have.
    """
    kind = target.type.value_type if pa.types.is_dictionary(target.type) else target.type
    is_number = pa.types.is_floating(kind) or pa.types.is_integer(kind)
    if task == "classification":
        return "classification", "as the job says"
    if task == "regression":
        if not is_number:
            raise DataError(
                f"task = 'regression' needs numbers, but target {name!r} holds {kind}; use task: classification, or "
                f"declare it with `columns: {{{name}: numeric}}`"
            )
        return "regression", "as the job says"
    if not is_number:
        return "classification", f"target {name!r} holds {kind}"
    distinct = pc.count_distinct(target).as_py()
    whole = pa.types.is_integer(kind) or bool(pc.all(pc.equal(target, pc.round(target))).as_py())
    if whole and distinct <= MAX_CLASSES_OF_INTEGERS and distinct * 3 <= len(target):
        return "classification", f"target {name!r} holds {distinct} different whole numbers"
    return "regression", f"target {name!r} holds {distinct} different numbers"


def facts_of(table: pa.Table, names: list[str]) -> pa.Table:
    """What the driver must know of a block's rows, small: it knows it of all rows of the data at once. A column of
    text as numbers and a dictionary, whole numbers in as few bytes as hold them, a column without any value in none.
    """
    columns = {}
    for name in names:
        column = table[name]
        if column.null_count == len(column):
            column = pa.nulls(len(column))
        elif pa.types.is_string(column.type):
            column = column.dictionary_encode()
        elif pa.types.is_integer(column.type):
            low, high = (bound.as_py() for bound in pc.min_max(column).values())
            small = (t for t in (np.int8, np.int16, np.int32) if np.iinfo(t).min <= low and high <= np.iinfo(t).max)
            column = column.cast(pa.from_numpy_dtype(next(small, np.int64)))
        columns[name] = column
    return pa.table(columns)


def _summary_block(
    table: pa.Table,
    splits: NDArray[np.uint8],
    split: int,
    offsets: NDArray[np.int64],
    limit: np.uint64,
    features: tuple[ColumnSpec, ...],
    targets: tuple[ColumnSpec, ...],
    tokens: TokenKind,
) -> pa.Table:
    """One row: the pickled summary of a block's rows of a split, or null where it has none."""
    rows = np.flatnonzero(splits == split)
    summary = None
    if len(rows):
        row_ids = rows + offsets[index_of(table)]
        summary = pickle.dumps(summarize(_taken(table, rows), features, targets, row_ids, tokens, limit))
    return pa.table({"summary": pa.array([summary], pa.large_binary())})


def _unpickled(table: pa.Table) -> Summary | None:
    """The inverse, within one run: these bytes never touch a file."""
    content = table["summary"][0].as_py()
    return None if content is None else pickle.loads(content)


def _encoded_block(table: pa.Table, splits: NDArray[np.uint8], preprocessing: Preprocessing) -> pa.Table:
    """A block's rows encoded, by split: training, validation, test; excluded rows are gone."""
    rows = np.concatenate([np.flatnonzero(splits == split) for split in range(3)])
    return preprocessing.encode(_taken(table, rows), with_target=True).combine_chunks()


def _taken(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """Those rows; the table itself where they are all of its rows, in order."""
    if len(rows) == table.num_rows and (np.diff(rows) == 1).all():
        return table
    return table.take(pa.array(rows))


def codes_of(column: pa.ChunkedArray) -> NDArray[np.integer[Any]]:
    """Whole numbers for values [N], equal for equal values; -1 for null. As small as hold them all."""
    if pa.types.is_dictionary(column.type):
        chunks = column.unify_dictionaries().chunks
        most = max((len(chunk.dictionary) for chunk in chunks), default=0)
        codes = (chunk.indices for chunk in chunks)
    else:
        values = pc.unique(column).drop_null()
        most = len(values)
        codes = (pc.index_in(chunk, value_set=values) for chunk in column.chunks)
    dtype = np.promote_types(np.min_scalar_type(most), np.int8)  # signed
    parts = [each.fill_null(-1).to_numpy(zero_copy_only=False).astype(dtype) for each in codes]
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


def bad_rows_of(facts: pa.Table) -> tuple[BadRow, ...]:
    """Every bad row of read tables: those that could not be read, and those that hold something wrong."""
    found = [json.loads(text) for text in facts[REASON].drop_null().to_pylist()]
    for text in facts[UNREAD].drop_null().to_pylist():
        found += [json.loads(row) for row in json.loads(text)]
    return tuple(BadRow(**row) for row in found)


def described(row: BadRow) -> str:
    """`data.csv, row 7, column price: missing target`; without the column where the whole row is bad."""
    column = "" if row.column is None else f", column {row.column}"
    return f"{row.file}, row {row.row}{column}: {row.reason}"


def _num_unread(facts: pa.Table) -> int:
    return sum(len(json.loads(text)) for text in facts[UNREAD].drop_null().to_pylist())


def check_bad_rows(bad_rows: Sequence[BadRow], total: int, settings: DataSettings) -> None:
    """Past `max_bad_rows` the job fails before training, naming the first rows."""
    if len(bad_rows) <= settings.max_bad_rows * total:
        return
    shown = "\n".join(f"  {described(row)}" for row in bad_rows[:5])
    more = f"\n  and {len(bad_rows) - 5} more" if len(bad_rows) > 5 else ""
    fraction = len(bad_rows) / total
    raise DataError(
        f"{len(bad_rows)} of {total} rows ({fraction:.2%}) are bad, and data.max_bad_rows = {settings.max_bad_rows:g} "
        f"allows fewer:\n{shown}{more}\nMend them, or quarantine them with data.max_bad_rows={_enough(fraction):g}"
    )


def _enough(fraction: float) -> float:
    """A round number just above the fraction."""
    unit = 10.0 ** math.floor(math.log10(fraction))
    return min(1.0, (math.floor(fraction / unit) + 1) * unit)


def split_summary(prepared: Prepared) -> str:
    """`1,437 train, 180 validation, 180 test rows`."""
    parts = [f"{prepared.encoded.num_rows(split):,} {name}" for split, name in NAMES.items()]
    return ", ".join(parts) + (" windows" if prepared.task in ("forecasting", "language_modeling") else " rows")
