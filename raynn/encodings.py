"""How one column becomes numbers: fitted values, frozen, and the pure function that applies them.

Each is elementwise, so that a table encodes to the same bits whole or in pieces.
Shapes: N rows, F numbers, C channels, T time steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raynn.columns import ColumnSpec
from raynn.errors import DataError, did_you_mean
from raynn.summaries import (
    MAX_CLASSES,
    US_PER_DAY,
    CategoricalSummary,
    Floats,
    ImageSummary,
    Integers,
    Moments,
    NumericSummary,
    SequenceSummary,
    TargetSummary,
    days,
    labels_of,
    microseconds,
    numbers,
    steps,
)
from raynn.tokens import TextSummary, Tokenizer, fit_tokenizer

Scaling = Literal["standard", "quantile"]
Label = bool | int | float | str

# No value of n training rows lies beyond sqrt(n - 1) standard deviations (Samuelson 1968), so a bound of 1e6
# touches none of 1e12 rows; it keeps a wild value met later from becoming an infinity in float32.
MAX_DEVIATIONS = 1e6
MAX_NORMAL = 5.2  # the normal quantile of 1 - 1e-7, as in scikit-learn's QuantileTransformer
NUM_QUANTILES = 1001
NUM_BINS = 48  # as `compute_bins` of Gorishniy et al. 2022, "On embeddings for numerical features"
RARE_CATEGORIES = 50
SHOWN = 5


@dataclass(frozen=True)
class StandardScale:
    """(x - mean) / std, in float64."""

    mean: float
    std: float

    def __call__(self, x: Floats) -> Floats:
        """Of values [N]; NaN stays NaN."""
        with np.errstate(over="ignore"):
            z = x - self.mean
            z /= self.std
        return np.clip(z, -MAX_DEVIATIONS, MAX_DEVIATIONS, out=z)


@dataclass(frozen=True)
class QuantileScale:
    """Piecewise linear through training quantiles to a standard normal; constant beyond the first and the
    last.

    Repeated values have one knot at the middle of their probabilities, so that a column that is half zeros
    does not send its zeros to an end.
    """

    values: tuple[float, ...]
    normals: tuple[float, ...]

    def __call__(self, x: Floats) -> Floats:
        """Of values [N]; NaN stays NaN."""
        z = np.interp(x, self.values, self.normals)
        z[np.isnan(x)] = np.nan  # of a single knot, np.interp makes numbers of NaN
        return z

    @classmethod
    def through(cls, quantiles: Floats) -> QuantileScale:
        """Of ascending quantiles at evenly spaced probabilities from 0 to 1."""
        values, starts, counts = np.unique(quantiles, return_index=True, return_counts=True)
        last = max(len(quantiles) - 1, 1)
        middles = (starts + (counts - 1) / 2) / last if len(quantiles) > 1 else np.array([0.5])
        tail = NormalDist().cdf(-MAX_NORMAL)
        normals = [NormalDist().inv_cdf(min(max(p, tail), 1 - tail)) for p in middles.tolist()]
        return cls(tuple(values.tolist()), tuple(normals))


Scale = StandardScale | QuantileScale


@dataclass(frozen=True)
class NumericEncoding:
    """One number, and one indicator of its absence where training rows lacked it. `bins` are edges in its
    own, scaled unit: up to 48 bins of equal mass."""

    scale: Scale
    indicator: bool
    bins: tuple[float, ...]
    kind: Literal["numeric"] = "numeric"

    num_cycles = 0

    def __call__(self, column: pa.ChunkedArray) -> Iterator[Floats]:
        """The scaled value [N], NaN where missing."""
        yield self.scale(numbers(column))


@dataclass(frozen=True)
class DateEncoding:
    """Days, scaled, then sine and cosine of month, day of week, and hour if training dates have a time of
    day."""

    scale: Scale
    indicator: bool
    bins: tuple[float, ...]
    hour: bool
    kind: Literal["date"] = "date"

    @property
    def num_cycles(self) -> int:
        """Sines and cosines."""
        return 6 if self.hour else 4

    def __call__(self, column: pa.ChunkedArray) -> Iterator[Floats]:
        """Each [N], NaN where missing."""
        yield self.scale(days(column))
        ticks, missing = microseconds(column)
        months = ticks.view("datetime64[us]").astype("datetime64[M]").astype(np.int64)
        weekdays = ticks // US_PER_DAY + 3  # 1970-01-01 was a Thursday, and weeks begin on Monday
        cycles = [(months, 12), (weekdays, 7)]
        if self.hour:
            cycles.append((ticks // (US_PER_DAY // 24), 24))
        for count, period in cycles:
            for function in (math.sin, math.cos):
                # a table, so that no bit depends on how numpy vectorizes sines
                table = np.array([function(2 * math.pi * k / period) for k in range(period)])
                yield np.where(missing, np.nan, table[count % period])


@dataclass(frozen=True)
class CategoricalEncoding:
    """1 + place among `categories`; 0 for a value that is not among them. None is the missing value."""

    categories: tuple[str | None, ...]
    kind: Literal["categorical"] = "categorical"

    def __call__(self, column: pa.ChunkedArray) -> Integers:
        """Codes [N]."""
        codes = pc.index_in(column.cast(pa.string()), value_set=pa.array(self.categories, pa.string()))
        return np.asarray(codes.fill_null(-1).to_numpy(), np.int64) + 1


@dataclass(frozen=True)
class ImageEncoding:
    """Pixels stay bytes; the network standardizes them, by mean and std per channel in 0..255."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    kind: Literal["image"] = "image"


@dataclass(frozen=True)
class SequenceEncoding:
    """Standardized per channel."""

    channels: tuple[StandardScale, ...]
    kind: Literal["sequence"] = "sequence"

    def __call__(self, column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
        """Values [N, T * C]."""
        return self._standardized(column).reshape(len(column), column.type.list_size)

    def ragged(self, column: pa.ChunkedArray) -> pa.LargeListArray:
        """Lists of steps * C values, where lengths differ."""
        lengths_N = column.combine_chunks().value_lengths().fill_null(0).to_numpy()
        offsets = np.concatenate([[0], np.cumsum(lengths_N)])
        return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(self._standardized(column).reshape(-1)))

    def _standardized(self, column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
        x_SC = steps(column, len(self.channels))
        z_SC = np.empty(x_SC.shape, np.float32)
        for channel, scale in enumerate(self.channels):
            z_SC[:, channel] = scale(x_SC[:, channel].astype(np.float64))
        return z_SC


@dataclass(frozen=True)
class TextEncoding:
    """The first `max_tokens` tokens of a text, all of them where that is None."""

    tokenizer: Tokenizer
    max_tokens: int | None = None
    kind: Literal["text"] = "text"

    def __call__(self, column: pa.ChunkedArray) -> pa.LargeListArray:
        """Lists of int32 tokens [N]; a missing text has none."""
        lists = self.tokenizer.encode_column(column)
        return lists if self.max_tokens is None else pc.list_slice(lists, 0, self.max_tokens)


Encoding = NumericEncoding | DateEncoding | CategoricalEncoding | ImageEncoding | SequenceEncoding | TextEncoding


@dataclass(frozen=True)
class ClassEncoding:
    """A label's place among the sorted training labels."""

    labels: tuple[Label, ...]
    kind: Literal["class"] = "class"

    def __call__(self, column: pa.ChunkedArray, name: str) -> Integers:
        """Class indices [N]. DataError for a label that no training row has."""
        column = labels_of(column)
        distinct = column.unique()
        places = {label: place for place, label in enumerate(self.labels)}  # Python's 1 is 1.0 and True
        codes = np.array([places.get(value, -1) for value in distinct.to_pylist()], np.int64)
        indices: Integers = codes[pc.index_in(column, value_set=distinct).to_numpy()]
        if len(codes) and codes.min() < 0:
            unknown = [value for value, code in zip(distinct.to_pylist(), codes, strict=True) if code < 0]
            hint = did_you_mean(str(unknown[0]), [str(label) for label in self.labels])
            raise DataError(
                f"target {name!r}: {shown(unknown)} in {np.sum(indices < 0)} rows is none of the "
                f"{len(self.labels)} classes of the training rows ({shown(self.labels)}).{hint} Mend or drop "
                "these rows, or train on rows of every class"
            )
        return indices

    def decode(self, values: npt.NDArray[Any]) -> pa.Array:
        """Labels [N] of class indices [N]."""
        return pa.array(self.labels).take(pa.array(np.asarray(values, np.int64)))


@dataclass(frozen=True)
class ValueEncoding:
    """A standardized number."""

    mean: float
    std: float
    kind: Literal["value"] = "value"

    def __call__(self, column: pa.ChunkedArray, name: str) -> npt.NDArray[np.float32]:
        """Values [N]. DataError when the column holds no numbers."""
        try:
            x = numbers(column)
        except pa.ArrowInvalid as error:
            raise DataError(f"target {name!r} must be a number, as in training: {error}") from None
        return ((x - self.mean) / self.std).astype(np.float32)

    def decode(self, values: npt.NDArray[Any]) -> pa.Array:
        """Values [N] in the target's own unit."""
        return pa.array(np.asarray(values, np.float64) * self.std + self.mean)


TargetEncoding = ClassEncoding | ValueEncoding


def fit_number(summary: NumericSummary, spec: ColumnSpec, sample: Floats, scaling: Scaling) -> Encoding:
    """Encoding of a numeric or date column; `sample` [N] are training values, NaN where missing."""
    moments = summary.moments
    scale: Scale
    if scaling == "quantile":
        scale = QuantileScale.through(_quantiles(sample, moments, NUM_QUANTILES))
    else:
        remedy = f"; set `data.scaling: quantile`, or `data.columns: {{{spec.name}: ignore}}`"
        scale = standard_scale(moments, f"column {spec.name!r}", remedy)
    indicator = summary.missing > 0
    # edges as float32, the unit of the encoded column, so that no two of them coincide there
    edges = np.unique(scale(_quantiles(sample, moments, NUM_BINS + 1)).astype(np.float32)).tolist()
    bins = tuple(edges) if len(edges) > 1 else ()
    if spec.kind == "date":
        return DateEncoding(scale, indicator, bins, hour=summary.time_of_day)
    return NumericEncoding(scale, indicator, bins)


def fit_categories(summary: CategoricalSummary) -> CategoricalEncoding:
    """By descending frequency, then name; of more than 50, those seen once are unknown."""
    counts = summary.counts
    kept: list[str | None] = list(counts)
    if len(kept) > RARE_CATEGORIES:
        kept = [name for name in kept if counts[name] > 1]
    kept.sort(key=lambda name: (-counts[name], name is None, name or ""))
    return CategoricalEncoding(tuple(kept))


def fit_images(summary: ImageSummary) -> ImageEncoding:
    """Encoding of an image column."""
    return ImageEncoding(summary.mean, summary.std)


def fit_sequences(summary: SequenceSummary, spec: ColumnSpec) -> SequenceEncoding:
    """Encoding of a sequence column."""
    remedy = f"; rescale it, or set `data.columns: {{{spec.name}: ignore}}`"
    scales = [
        standard_scale(moments, f"column {spec.name!r}, channel {channel},", remedy)
        for channel, moments in enumerate(summary.channels)
    ]
    return SequenceEncoding(tuple(scales))


def fit_text(summary: TextSummary, spec: ColumnSpec, vocabulary: int, max_tokens: int | None = None) -> TextEncoding:
    """Encoding of a text column; DataError where the training rows hold none."""
    if not summary.counts and summary.kind != "bytes":
        raise DataError(
            f"column {spec.name!r} holds no text in any training row; fill it in, or set `data.columns: "
            f"{{{spec.name}: ignore}}`"
        )
    return TextEncoding(fit_tokenizer(summary, vocabulary), max_tokens)


def fit_classes(summary: TargetSummary, name: str) -> ClassEncoding:
    """Encoding of a classification target; labels sorted, whole real numbers as integers."""
    if summary.counts is None:
        raise DataError(
            f"target {name!r} has more than {MAX_CLASSES} distinct values, too many for classes; "
            "set `task: regression`, or choose another `data.target`"
        )
    if len(summary.counts) < 2:
        raise DataError(
            f"target {name!r} is {shown(summary.counts)} in every training row, and a classifier needs two "
            "classes or more; choose another `data.target`, or train on rows of every class"
        )
    kinds = summary.kinds
    if "string" in kinds and len(kinds) > 1:
        raise DataError(
            f"target {name!r} is text in some files and a number in others; "
            f"set `data.columns: {{{name}: categorical}}` to read it as text everywhere"
        )
    labels: list[Label] = sorted(summary.counts)
    if kinds == {"float"} or kinds == {"float", "int"}:
        whole = all(float(label).is_integer() for label in labels)
        labels = [int(label) if whole else float(label) for label in labels]
    elif kinds != {"bool"} and "string" not in kinds:
        labels = [int(label) for label in labels]
    return ClassEncoding(tuple(labels))


def fit_value(summary: TargetSummary, name: str) -> ValueEncoding:
    """Encoding of a regression target."""
    if summary.kinds & {"string", "bool"}:
        raise DataError(
            f"target {name!r} is {'text' if 'string' in summary.kinds else 'true or false'}, and regression "
            "needs a number; set `task: classification`, or choose another `data.target`"
        )
    scale = standard_scale(summary.moments, f"target {name!r}", "; rescale it, or take its logarithm")
    return ValueEncoding(scale.mean, scale.std)


def standard_scale(moments: Moments, field: str, remedy: str) -> StandardScale:
    """Mean and standard deviation; DataError where they exceed float64."""
    if not (math.isfinite(moments.mean) and math.isfinite(moments.std)):
        raise DataError(
            f"{field} ranges from {moments.minimum:g} to {moments.maximum:g}, and its variance exceeds the "
            f"largest real number{remedy}"
        )
    return StandardScale(moments.mean, moments.std)


def shown(values: Iterable[object]) -> str:
    """The first values, quoted, and how many more there are."""
    values = list(values)
    more = f", ... ({len(values) - SHOWN} more)" if len(values) > SHOWN else ""
    return ", ".join(repr(value) for value in values[:SHOWN]) + more


def _quantiles(sample: Floats, moments: Moments, count: int) -> Floats:
    """Evenly spaced order statistics of the sample, no more than it has; the ends are those of all rows."""
    if moments.minimum >= moments.maximum:
        return np.array([moments.mean])
    known = np.sort(sample[~np.isnan(sample)])
    steps = max(min(count, known.size) - 1, 1)
    # integers: the nearest rank, with no rounding of a product of fractions
    places = (2 * np.arange(1, steps) * (known.size - 1) + steps) // (2 * steps)
    return np.concatenate([[moments.minimum], known[places], [moments.maximum]])
