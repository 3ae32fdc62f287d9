"""What the training rows say, fragment by fragment: statistics that merge into those of the whole.

Every number is computed where its fragment lies and merged in the order of the fragments, so it depends
neither on the number of workers nor, beyond rounding, on where the rows were cut.
Shapes: N rows, Q quantile columns, C channels, T time steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raynn.columns import ColumnSpec
from raynn.errors import DataError
from raynn.hashing import splitmix64
from raynn.tokens import TextSummary, TokenKind, summarize_text

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

SAMPLE_ROWS = 100_000  # each quantile within half a percentile of the whole's, 98 times in 100 (Massart 1990)
SAMPLE_VALUES = 2**24  # no sample takes more than 128 MiB, however many columns
NO_LIMIT = np.uint64(2**64 - 1)
MAX_CLASSES = 2**16
CHUNK_VALUES = 2**22  # 32 MiB of float64
US_PER_DAY = 86_400_000_000


def numbers(column: pa.ChunkedArray) -> Floats:
    """A cleaned numeric column as float64 [N], missing as NaN."""
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy())


def microseconds(column: pa.ChunkedArray) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """A cleaned date column as microseconds since 1970 [N] (0 where missing), and where it is missing [N]."""
    ticks = column.cast(pa.timestamp("us")).cast(pa.int64())
    return ticks.fill_null(0).to_numpy(), ticks.is_null().to_numpy()


def days(column: pa.ChunkedArray) -> Floats:
    """A cleaned date column as days since 1970 [N], missing as NaN."""
    ticks, missing = microseconds(column)
    return np.where(missing, np.nan, ticks / US_PER_DAY)


def labels_of(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A cleaned target column as booleans, numbers, or else text."""
    return column.cast(pa.string()) if _target_kind(column.type) == "string" else column


def matrix(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """A fixed_size_list column as [N, values]: a view where it has one chunk and no null; null lists are
    zeros."""
    chunks = [_chunk_matrix(chunk) for chunk in column.chunks if len(chunk)]
    if not chunks:
        return np.zeros((0, column.type.list_size), column.type.value_type.to_pandas_dtype())
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def steps(column: pa.ChunkedArray, num_channels: int) -> npt.NDArray[Any]:
    """All steps [S, C] of a sequence column, one after the other; equal lengths or not."""
    if pa.types.is_fixed_size_list(column.type):
        return matrix(column).reshape(-1, num_channels)
    return np.asarray(column.combine_chunks().flatten().to_numpy(zero_copy_only=False)).reshape(-1, num_channels)


def _chunk_matrix(chunk: pa.FixedSizeListArray) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = chunk.flatten().to_numpy()
    flat = values.reshape(-1, chunk.type.list_size)  # flatten leaves null lists out
    if not chunk.null_count:
        return flat
    whole = np.zeros((len(chunk), chunk.type.list_size), flat.dtype)
    whole[chunk.is_valid().to_numpy(zero_copy_only=False)] = flat
    return whole


@dataclass(frozen=True)
class Moments:
    """Count, mean, sum of squared deviations and range. The mean is `high + low`, an unevaluated sum of two
    float64, so that merging keeps the variance of values that lie far from zero."""

    count: int = 0
    high: float = 0.0
    low: float = 0.0
    m2: float = 0.0
    minimum: float = np.inf
    maximum: float = -np.inf

    @classmethod
    def of(cls, x: Floats) -> Moments:
        """Of the values [N], none of them NaN."""
        if not x.size:
            return cls()
        with np.errstate(over="ignore", invalid="ignore"):  # `std` says when the squares overflow
            high = x.mean()
            deviations = x - high
            low = deviations.mean()
            # np.sum adds in one order on every machine; a BLAS dot follows the number of threads
            m2 = np.square(deviations - low).sum()
        return cls(x.size, float(high), float(low), float(m2), float(x.min()), float(x.max()))

    def merge(self, other: Moments) -> Moments:
        """Of both sets of values (Chan, Golub and LeVeque 1979, eq. 2.1)."""
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        delta = (other.high - self.high) + (other.low - self.low)
        step = self.low + delta * (other.count / count)
        high = self.high + step
        carried = high - self.high
        low = (self.high - (high - carried)) + (step - carried)  # Knuth's two-sum: what rounding `high` lost
        m2 = self.m2 + other.m2 + delta * delta * (self.count * (other.count / count))
        return Moments(
            count,
            high,
            low,
            m2,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
        )

    @property
    def mean(self) -> float:
        """0 of no values; exact where all are equal."""
        return self.minimum if self.minimum == self.maximum else self.high + self.low

    @property
    def std(self) -> float:
        """Population standard deviation; 1 where there is no spread; not finite where the squares
        overflow."""
        if self.count == 0 or self.minimum == self.maximum:
            return 1.0
        return float(np.sqrt(self.m2 / self.count)) or 1.0


@dataclass(frozen=True)
class NumericSummary:
    """A numeric column, or the days of a date column."""

    moments: Moments
    missing: int
    time_of_day: bool = False

    def merge(self, other: NumericSummary) -> NumericSummary:
        """Of both sets of rows."""
        return NumericSummary(
            self.moments.merge(other.moments),
            self.missing + other.missing,
            self.time_of_day or other.time_of_day,
        )


@dataclass(frozen=True)
class CategoricalSummary:
    """How often each value occurs; missing is None."""

    counts: Counter[str | None]

    def merge(self, other: CategoricalSummary) -> CategoricalSummary:
        """Of both sets of rows."""
        return CategoricalSummary(_sum_counts(self.counts, other.counts))


@dataclass(frozen=True)
class ImageSummary:
    """Sums per channel [C] in Python integers: exact, so the same wherever the rows are cut."""

    pixels: int
    sums: tuple[int, ...]
    squares: tuple[int, ...]

    def merge(self, other: ImageSummary) -> ImageSummary:
        """Of both sets of rows."""
        return ImageSummary(
            self.pixels + other.pixels,
            tuple(a + b for a, b in zip(self.sums, other.sums, strict=True)),
            tuple(a + b for a, b in zip(self.squares, other.squares, strict=True)),
        )

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, in 0..255."""
        return tuple(s / max(self.pixels, 1) for s in self.sums)

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, in 0..255; 1 where all pixels are equal."""
        n = max(self.pixels, 1)
        # n * squares - sums**2 is exact in integers, where float64 would cancel
        spreads = (n * q - s * s for s, q in zip(self.sums, self.squares, strict=True))
        return tuple((spread**0.5) / n or 1.0 for spread in spreads)


@dataclass(frozen=True)
class SequenceSummary:
    """Moments per channel [C]."""

    channels: tuple[Moments, ...]

    def merge(self, other: SequenceSummary) -> SequenceSummary:
        """Of both sets of rows."""
        return SequenceSummary(tuple(a.merge(b) for a, b in zip(self.channels, other.channels, strict=True)))


@dataclass(frozen=True)
class TargetSummary:
    """Moments of a number, and how often each label occurs: None beyond MAX_CLASSES, as in most regressions.
    `kinds` are the Arrow types seen, of "bool", "int", "float", "string"."""

    moments: Moments
    counts: Counter[Any] | None
    kinds: frozenset[str]

    def merge(self, other: TargetSummary) -> TargetSummary:
        """Of both sets of rows."""
        counts = None
        if self.counts is not None and other.counts is not None:
            counts = _few(_sum_counts(self.counts, other.counts))
        return TargetSummary(self.moments.merge(other.moments), counts, self.kinds | other.kinds)


@dataclass(frozen=True)
class QuantileSample:
    """The rows whose hashed id is smallest, in the order of the hash: a uniform sample without replacement
    that does not depend on how rows are cut into fragments, or on their order. NaN is missing."""

    hashes: npt.NDArray[np.uint64]
    values_NQ: Floats

    def merge(self, other: QuantileSample) -> QuantileSample:
        """Of both sets of rows."""
        hashes = np.concatenate([self.hashes, other.hashes])
        order = np.argsort(hashes)[: sample_rows(self.values_NQ.shape[1])]
        return QuantileSample(hashes[order], np.concatenate([self.values_NQ, other.values_NQ])[order])


ColumnSummary = NumericSummary | CategoricalSummary | ImageSummary | SequenceSummary | TextSummary


@dataclass(frozen=True)
class Summary:
    """Of some training rows: one summary per feature and per target, and a sample for quantiles."""

    rows: int
    columns: tuple[ColumnSummary, ...]
    targets: tuple[TargetSummary, ...]
    sample: QuantileSample

    def merge(self, other: Summary) -> Summary:
        """Of both sets of rows."""
        pairs: Iterable[tuple[Any, Any]] = zip(self.columns, other.columns, strict=True)
        return Summary(
            self.rows + other.rows,
            tuple(a.merge(b) for a, b in pairs),
            tuple(a.merge(b) for a, b in zip(self.targets, other.targets, strict=True)),
            self.sample.merge(other.sample),
        )


def merge(summaries: Iterable[Summary]) -> Summary:
    """The summary of all rows; the order is that of the fragments. DataError when there is none."""
    iterator = iter(summaries)
    first = next(iterator, None)
    if first is None:
        raise DataError("data.train has no rows to train on; check the path, and the files' contents")
    return reduce(Summary.merge, iterator, first)


def summarize(
    table: pa.Table,
    features: Sequence[ColumnSpec],
    targets: Sequence[ColumnSpec],
    row_ids: Integers,
    tokens: TokenKind = "words",
    limit: np.uint64 = NO_LIMIT,
) -> Summary:
    """Summary of cleaned training rows; `row_ids` [N] are their ids in the whole data, each used once. `tokens` says
    what is counted of text, `limit` the largest hash of a sampled row where that is known (`sample_limit`).
    """
    used = [spec for spec in features if spec.kind != "ignore"]
    hashes = splitmix64(row_ids)
    quantile_columns = sampled(features)
    within = np.flatnonzero(hashes <= limit)
    order = within[np.argsort(hashes[within])][: sample_rows(len(quantile_columns))]
    sample_NQ = np.empty((len(order), len(quantile_columns)))
    for place, spec in enumerate(quantile_columns):
        read = numbers if spec.kind == "numeric" else days
        sample_NQ[:, place] = read(table[spec.name])[order]
    return Summary(
        table.num_rows,
        tuple(_summarize_column(table[spec.name], spec, tokens) for spec in used),
        tuple(_summarize_target(table[spec.name]) for spec in targets),
        QuantileSample(hashes[order], sample_NQ),
    )


def sampled(features: Sequence[ColumnSpec]) -> list[ColumnSpec]:
    """The columns that quantiles are taken of."""
    return [spec for spec in features if spec.kind in ("numeric", "date")]


def sample_limit(row_ids: Iterable[Integers], num_columns: int) -> np.uint64:
    """The largest hash of a row in the sample of all these rows, which come in parts: with it a block sends its rows of
    the sample and no others, of which it would have to send up to a whole sample.
    """
    most = sample_rows(num_columns)
    if not most:
        return NO_LIMIT
    smallest, limit = np.empty(0, np.uint64), NO_LIMIT
    for ids in row_ids:
        hashes = splitmix64(ids)
        smallest = np.concatenate([smallest, hashes[hashes <= limit]])
        if len(smallest) > most:
            smallest = np.partition(smallest, most - 1)[:most]
            limit = smallest.max()
    return limit


def sample_rows(num_columns: int) -> int:
    """Rows a quantile sample of so many columns keeps."""
    return min(SAMPLE_ROWS, SAMPLE_VALUES // max(num_columns, 1)) if num_columns else 0


def _summarize_column(column: pa.ChunkedArray, spec: ColumnSpec, tokens: TokenKind) -> ColumnSummary:
    if spec.kind in ("numeric", "date"):
        x = numbers(column) if spec.kind == "numeric" else days(column)
        known = x[~np.isnan(x)]
        time_of_day = spec.kind == "date" and bool((microseconds(column)[0] % US_PER_DAY).any())
        return NumericSummary(Moments.of(known), x.size - known.size, time_of_day)
    if spec.kind == "categorical":
        return CategoricalSummary(_value_counts(column))
    if spec.kind == "image":
        return _summarize_images(matrix(column), spec.shape[0])
    if spec.kind == "sequence":
        x_NC = steps(column, spec.shape[1])
        return SequenceSummary(tuple(Moments.of(x.astype(np.float64)) for x in x_NC.T))
    assert spec.kind == "text"
    return summarize_text(column, tokens)


def _summarize_images(pixels: npt.NDArray[np.uint8], channels: int) -> ImageSummary:
    pixels_NCS = pixels.reshape(len(pixels), channels, -1)
    sums, squares = [0] * channels, [0] * channels
    rows = max(1, CHUNK_VALUES // max(pixels_NCS[:1].size, 1))
    for start in range(0, len(pixels_NCS), rows):
        # integers in float64, exact below 2**53: a chunk's squares sum to 2**22 * 2**16 at most
        chunk_CM = pixels_NCS[start : start + rows].astype(np.float64).swapaxes(0, 1).reshape(channels, -1)
        for channel, values in enumerate(chunk_CM):
            sums[channel] += int(values.sum())
            squares[channel] += int(values @ values)
    return ImageSummary(pixels_NCS.size // channels, tuple(sums), tuple(squares))


def _summarize_target(column: pa.ChunkedArray) -> TargetSummary:
    column = labels_of(column.drop_null())
    kind = _target_kind(column.type)
    counts = _few(_value_counts(column))
    moments = Moments() if kind == "string" else Moments.of(numbers(column))
    return TargetSummary(moments, counts, frozenset([kind]))


def _target_kind(dtype: pa.DataType) -> str:
    if pa.types.is_boolean(dtype):
        return "bool"
    if pa.types.is_integer(dtype):
        return "int"
    return "float" if pa.types.is_floating(dtype) else "string"


def _value_counts(column: pa.ChunkedArray) -> Counter[Any]:
    pairs = pc.value_counts(column)
    return Counter(dict(zip(pairs.field(0).to_pylist(), pairs.field(1).to_pylist(), strict=True)))


def _sum_counts(a: Counter[Any], b: Counter[Any]) -> Counter[Any]:
    total = Counter(a)
    total.update(b)
    return total


def _few(counts: Counter[Any]) -> Counter[Any] | None:
    return counts if len(counts) <= MAX_CLASSES else None
