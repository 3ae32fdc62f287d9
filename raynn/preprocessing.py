"""Preprocessing: fitted on the training split, saved as JSON with the model, and applied as a pure function
from a cleaned Arrow table to a table of numbers.

Shapes: N rows, F numbers (columns, dates, indicators), C categorical columns or channels, H W image, T time
steps.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter, ValidationError

from raynn.columns import ColumnSpec
from raynn.encodings import (
    CategoricalEncoding,
    ClassEncoding,
    DateEncoding,
    Encoding,
    ImageEncoding,
    Label,
    NumericEncoding,
    SequenceEncoding,
    TargetEncoding,
    TextEncoding,
    ValueEncoding,
    fit_categories,
    fit_classes,
    fit_images,
    fit_number,
    fit_sequences,
    fit_text,
    fit_value,
    shown,
)
from raynn.errors import DataError, RunError, did_you_mean
from raynn.metrics import Task
from raynn.ragged import Ragged
from raynn.sources import DataSettings
from raynn.summaries import (
    CategoricalSummary,
    ImageSummary,
    NumericSummary,
    SequenceSummary,
    Summary,
    matrix,
    merge,
    summarize,
)

__all__ = ["ForecastSpec", "InputSpec", "Preprocessing", "Summary", "arrays", "fit", "summarize"]

BLOCK_ROWS = 2**14  # a block's columns and its rows stay in the processor's cache: a third of the time


@dataclass(frozen=True)
class InputSpec:
    """What a network receives and what it owes: sizes, and the fitted values that a network uses itself."""

    num_numeric: int = 0
    cardinalities: tuple[int, ...] = ()  # codes per categorical column, the unknown bucket 0 included
    image_CHW: tuple[int, int, int] | None = None
    image_mean: tuple[float, ...] = ()  # per channel, in 0..255
    image_std: tuple[float, ...] = ()
    sequence_TC: tuple[int, int] | None = None
    # per number: ascending edges of up to 48 bins of equal mass; none for indicators, date cycles, constants
    quantile_bins: tuple[tuple[float, ...], ...] = ()
    num_outputs: int = 1
    task: Task = "regression"
    classes: tuple[Label, ...] | None = None
    target_mean: tuple[float, ...] = (0.0,)  # of each number to predict, in its own unit
    target_std: tuple[float, ...] = (1.0,)
    vocabulary_size: int = 0  # token ids are 0 .. vocabulary_size - 1; 0: there is no text
    window: int = 0  # steps (forecasting) or tokens (language modeling) that are read at most
    horizon: int = 0  # steps forecast
    num_targets: int = 1  # series forecast together
    known_numeric: tuple[int, ...] = ()  # columns of `numeric` that are known in the future
    known_categorical: tuple[int, ...] = ()

    @property
    def any_length(self) -> bool:
        """Whether rows are text, or sequences of different lengths: a batch then holds `length` [B], and zeros behind
        it.
        """
        return self.vocabulary_size > 0 or (self.sequence_TC is not None and self.sequence_TC[0] == 0)


@dataclass(frozen=True)
class ForecastSpec:
    """What a forecast reads and tells: steps of each, and what is known of the steps to come."""

    window: int
    horizon: int
    known: tuple[str, ...] = ()  # features whose values are known for the steps to predict
    weekdays: bool = False  # training times are days without Saturdays and Sundays


@dataclass(frozen=True)
class Preprocessing:
    """One encoding per feature and per target, in their order. A generator of images may have no target, a language
    has none.
    """

    task: Task
    features: tuple[ColumnSpec, ...]
    encodings: tuple[Encoding, ...]
    targets: tuple[ColumnSpec, ...]
    target_encodings: tuple[TargetEncoding, ...]
    forecast: ForecastSpec | None = None
    window: int = 0  # language modeling: tokens that are read at once

    def to_json(self) -> str:
        """All of it; floats are written so that they read back to the same bits."""
        return json.dumps(dataclasses.asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Preprocessing:
        """What `to_json` wrote. RunError when it is something else."""
        try:
            return TypeAdapter(cls).validate_python(json.loads(text))
        except ValidationError as error:
            first = error.errors()[0]
            reason = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        except json.JSONDecodeError as error:
            reason = str(error)
        raise RunError(
            f"preprocessing.json of the model is damaged or of another version of raynn ({reason}); "
            "restore the file, or train again"
        )

    def encode(self, table: pa.Table, with_target: bool = False) -> pa.Table:
        """Cleaned rows as numbers: columns `numeric` float32[F], `categorical` int64[C],
        `image` uint8[C*H*W], `sequence` float32[T*C] (a list of any length where T is 0), `tokens` (a list of int32),
        `target` (int64 class index, or float32 standardized; of a forecast float32[K], 0 where missing): those that
        there are. Equal bits whether a table is encoded whole or in pieces.

        DataError when a column is missing, or a target's label was not among the training rows.
        """
        self._check_columns(table, with_target)
        columns: dict[str, pa.Array | pa.ChunkedArray] = {}
        if self._num_numeric:
            columns["numeric"] = _fixed_size_list(self._encode_numbers(table))
        codes = [e(table[s.name]) for s, e in self._pairs() if isinstance(e, CategoricalEncoding)]
        if codes:
            columns["categorical"] = _fixed_size_list(np.stack(codes, axis=1))
        for spec, encoding in self._pairs():
            if isinstance(encoding, ImageEncoding):
                column = table[spec.name]
                columns["image"] = _fixed_size_list(matrix(column)) if column.null_count else column
            if isinstance(encoding, SequenceEncoding):
                column = table[spec.name]
                ragged = spec.shape[0] == 0
                columns["sequence"] = encoding.ragged(column) if ragged else _fixed_size_list(encoding(column))
            if isinstance(encoding, TextEncoding):
                columns["tokens"] = encoding(table[spec.name])
        if with_target and self.task == "forecasting":
            columns["target"] = _fixed_size_list(self._encode_series(table))
        elif with_target and self.targets:
            columns["target"] = pa.array(self._encode_target(table[self.targets[0].name]))
        return pa.table(columns)

    def decode_target(self, values: npt.NDArray[Any], target: int = 0) -> pa.Array:
        """Class indices [N] as the original labels, or standardized values [N] in the target's own unit."""
        return self.target_encodings[target].decode(values)

    @property
    def input_spec(self) -> InputSpec:
        """What the network must know."""
        fields: dict[str, Any] = {"window": self.window}
        bins: list[tuple[float, ...]] = []
        cardinalities = []
        for spec, encoding in self._pairs():
            if isinstance(encoding, NumericEncoding | DateEncoding):
                bins += [encoding.bins, *[()] * encoding.num_cycles]
            elif isinstance(encoding, CategoricalEncoding):
                cardinalities.append(len(encoding.categories) + 1)
            elif isinstance(encoding, ImageEncoding):
                fields |= {"image_CHW": spec.shape, "image_mean": encoding.mean, "image_std": encoding.std}
            elif isinstance(encoding, TextEncoding):
                fields["vocabulary_size"] = encoding.tokenizer.vocabulary_size
            else:
                fields["sequence_TC"] = spec.shape
        values = [e for e in self.target_encodings if isinstance(e, ValueEncoding)]
        if values:
            fields |= {"target_mean": tuple(e.mean for e in values), "target_std": tuple(e.std for e in values)}
        for target in self.target_encodings:
            if isinstance(target, ClassEncoding):
                fields |= {"num_outputs": len(target.labels), "classes": target.labels}
        if self.forecast is not None:
            fields |= self._forecast_fields(self.forecast)
        return InputSpec(
            num_numeric=self._num_numeric,
            cardinalities=tuple(cardinalities),
            quantile_bins=(*bins, *[()] * (self._num_numeric - len(bins))),
            task=self.task,
            **fields,
        )

    def _forecast_fields(self, forecast: ForecastSpec) -> dict[str, Any]:
        """Fields of InputSpec: sizes, and the places of known columns in `numeric` and `categorical`."""
        numbers, codes, num_codes, place = [], [], 0, 0
        indicator_place = self._num_numeric - sum(e.indicator for e in self._number_encodings())
        for spec, encoding in self._pairs():
            known = spec.name in forecast.known
            if isinstance(encoding, NumericEncoding | DateEncoding):
                width = 1 + encoding.num_cycles
                numbers += [*range(place, place + width), *[indicator_place] * encoding.indicator] if known else []
                place, indicator_place = place + width, indicator_place + encoding.indicator
            elif isinstance(encoding, CategoricalEncoding):
                codes += [num_codes] if known else []
                num_codes += 1
        return {
            "window": forecast.window,
            "horizon": forecast.horizon,
            "num_targets": len(self.targets),
            "num_outputs": forecast.horizon * len(self.targets),
            "known_numeric": tuple(sorted(numbers)),
            "known_categorical": tuple(codes),
        }

    def _pairs(self) -> list[tuple[ColumnSpec, Encoding]]:
        return list(zip(self.features, self.encodings, strict=True))

    def _number_encodings(self) -> list[NumericEncoding | DateEncoding]:
        return [e for e in self.encodings if isinstance(e, NumericEncoding | DateEncoding)]

    @property
    def _num_numeric(self) -> int:
        return sum(1 + e.num_cycles + e.indicator for e in self._number_encodings())

    def _encode_numbers(self, table: pa.Table) -> npt.NDArray[np.float32]:
        """[N, F]: values and date cycles in the order of the features, then the indicators in the same
        order."""
        out_NF = np.empty((table.num_rows, self._num_numeric), np.float32)
        first_indicator = self._num_numeric - sum(e.indicator for e in self._number_encodings())
        for start in range(0, table.num_rows, BLOCK_ROWS):
            block = table.slice(start, BLOCK_ROWS)
            out_BF = out_NF[start : start + BLOCK_ROWS]
            place, indicator_place = 0, first_indicator
            for spec, encoding in self._pairs():
                if not isinstance(encoding, NumericEncoding | DateEncoding):
                    continue
                for values in encoding(block[spec.name]):
                    missing = np.isnan(values)
                    values[missing] = 0.0
                    out_BF[:, place] = values
                    place += 1
                if encoding.indicator:
                    out_BF[:, indicator_place] = missing
                    indicator_place += 1
        return out_NF

    def _encode_series(self, table: pa.Table) -> npt.NDArray[np.float32]:
        """[N, K]; where a value is missing, as in the future, its mean, which nothing reads."""
        values = []
        for spec, encoding in zip(self.targets, self.target_encodings, strict=True):
            assert isinstance(encoding, ValueEncoding)
            values.append(encoding(pc.fill_null(table[spec.name].cast(pa.float64()), encoding.mean), spec.name))
        return np.stack(values, axis=1)

    def _encode_target(self, column: pa.ChunkedArray) -> npt.NDArray[Any]:
        if column.null_count:
            raise DataError(
                f"target {self.targets[0].name!r} is missing in {column.null_count} of {len(column)} rows; "
                "fill it in, or drop these rows"
            )
        return self.target_encodings[0](column, self.targets[0].name)

    def _check_columns(self, table: pa.Table, with_target: bool) -> None:
        present = table.column_names
        missing = [spec.name for spec in self.features if spec.name not in present]
        if missing:
            noun = "column" if len(missing) == 1 else "columns"
            verb = "is" if len(missing) == 1 else "are"
            raise DataError(
                f"{noun} {shown(missing)}, on which the model was trained, {verb} missing from the data, "
                f"which have {shown(present)}.{did_you_mean(missing[0], present)} Add or rename the {noun}; "
                "a value that is not known may be left empty"
            )
        for target in self.targets if with_target else ():
            if target.name not in present:
                raise DataError(
                    f"target {target.name!r} is missing from the data, which have {shown(present)}."
                    f"{did_you_mean(target.name, present)} Metrics need it; `raynn predict` does not"
                )


def fit(
    summaries: Iterable[Summary],
    features: Sequence[ColumnSpec],
    targets: Sequence[ColumnSpec],
    task: Task,
    settings: DataSettings,
) -> Preprocessing:
    """Preprocessing of the training rows that `summaries` describe, in the order of their fragments.

    DataError when there are no rows, no features, two image, sequence or text columns, one class, or a target or column
    that cannot be scaled.
    """
    used = tuple(spec for spec in features if spec.kind != "ignore")
    if task != "forecasting":  # which reads the target's own past
        _check_features(used)
    whole = merge(summaries)
    if not whole.rows:
        raise DataError("data.train has no rows to train on; check the path, and the files' contents")
    fit_target = fit_value if task in ("regression", "forecasting") else fit_classes
    pairs = zip(whole.targets, targets, strict=True)
    target_encodings = tuple(fit_target(summary, spec.name) for summary, spec in pairs)
    encodings: list[Encoding] = []
    sampled = iter(whole.sample.values_NQ.T)
    for spec, summary in zip(used, whole.columns, strict=True):
        if isinstance(summary, NumericSummary):
            encodings.append(fit_number(summary, spec, next(sampled), settings.scaling))
        elif isinstance(summary, CategoricalSummary):
            encodings.append(fit_categories(summary))
        elif isinstance(summary, ImageSummary):
            encodings.append(fit_images(summary))
        elif isinstance(summary, SequenceSummary):
            encodings.append(fit_sequences(summary, spec))
        else:
            encodings.append(fit_text(summary, spec, settings.vocabulary, settings.max_tokens))
    return Preprocessing(task, used, tuple(encodings), tuple(targets), target_encodings)


def arrays(table: pa.Table) -> dict[str, npt.NDArray[Any] | Ragged]:
    """An encoded table as arrays [N, width] and [N], views where a column has one chunk; lists of any length as one
    `Ragged` of single values.
    """
    return {name: _array(table[name]) for name in table.column_names}


def _array(column: pa.ChunkedArray) -> npt.NDArray[Any] | Ragged:
    if pa.types.is_fixed_size_list(column.type):
        return matrix(column)
    if pa.types.is_large_list(column.type):
        lists = column.combine_chunks()
        return Ragged.consecutive(lists.flatten().to_numpy(), lists.value_lengths().to_numpy())
    values: npt.NDArray[Any] = column.to_numpy()
    return values


def _check_features(features: Sequence[ColumnSpec]) -> None:
    if not features:
        raise DataError(
            "data.features leaves no column to learn from: all are ignored, or there is only the target; "
            "name some in `data.features`, or override their kind in `data.columns`"
        )
    for kinds in (("image",), ("sequence", "text")):  # a batch has one `length`
        found = [spec for spec in features if spec.kind in kinds]
        if len(found) > 1:
            which = " and ".join(dict.fromkeys(spec.kind for spec in found))
            names = shown(spec.name for spec in found)
            raise DataError(
                f"columns {names} are {len(found)} {which} columns, and networks take one; "
                f"set `data.columns: {{{found[1].name}: ignore}}`"
            )


def _fixed_size_list(x_NV: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(x_NV).reshape(-1)), x_NV.shape[1])
