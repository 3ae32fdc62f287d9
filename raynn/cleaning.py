"""Raw rows to typed rows, and the reasons of those that cannot be used. Row by row: needs no fit.

Shapes: N rows, C channels, H height, W width, T time steps, S steps of all sequences.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from raynn.columns import (
    ColumnKind,
    ColumnSpec,
    family_of,
    image_bytes,
    parse_dates,
    parse_numbers,
    plain_text,
    require_family,
)
from raynn.errors import DataError, did_you_mean
from raynn.sources import DataSettings

Reason = tuple[int, str]  # row of the table, and why it is bad
Cleaned = tuple[Any, list[Reason]]  # an Arrow array of all rows, and the bad ones

# Mean size of an encoded image from which threads decode. Below it, waiting for the interpreter's lock costs more
# than a second core brings: PNG of 28 x 28 (1.8 KB), 10,000 of them: 0.40 s by one thread, 0.73 s by two; of 64 x 64
# (9 KB), 1,000 of them: 0.15 s and 0.09 s (Pillow 13, 2 cores of a cloud CPU, one run).
THREADED_IMAGE_BYTES = 4096
ROWS_PER_THREAD_TASK = 64


def clean(
    table: pa.Table,
    features: Sequence[ColumnSpec],
    targets: Sequence[ColumnSpec],
    extra: Sequence[str],
    settings: DataSettings,
) -> tuple[pa.Table, list[tuple[int, str, str]]]:
    """All rows of a raw table in their order, typed, and (row, column, reason) of the bad ones, by row.

    Columns: the features that are not ignored, the targets, then `extra` as they are.
        numeric      float64; missing, NaN and infinite values are null
        categorical  string, written alike whatever the file format: 3, 3.0 and "3.0" are "3", True is "true"
        date         timestamp[us], UTC where a zone was given
        image        fixed_size_list<uint8>[C * H * W], channels first; bad rows are zeros
        sequence     fixed_size_list<float32>[T * C], bad rows are zeros; where T is 0, that is lengths may differ,
                     list<float32> of steps * C values, bad rows are empty
        text         string; missing text is null, and no bad row
        target       float64, int64 or string; missing, NaN and infinite targets make a bad row

    Raises:
        DataError: a column that is missing or of another type, images or sequences of different sizes.
    """
    columns: dict[str, Any] = {}
    reasons: list[tuple[int, str, str]] = []
    for spec in features:
        if spec.kind == "ignore":
            continue
        column = _column(table, spec.name)
        require_family(spec.name, spec.kind, column.type)
        columns[spec.name], bad = _CLEANERS[spec.kind](column, spec, settings)
        reasons += [(row, spec.name, reason) for row, reason in bad]
    for target in targets:
        column = _column(table, target.name)
        require_family(target.name, target.kind, column.type)
        columns[target.name], bad = _clean_target(column, target, settings)
        reasons += [(row, target.name, reason) for row, reason in bad]
    for name in extra:
        columns.setdefault(name, _column(table, name))
    return pa.table(columns), sorted(reasons, key=lambda reason: reason[0])


def _column(table: pa.Table, name: str) -> Any:
    if name not in table.column_names:
        raise DataError(
            f"the data have no column {name!r}.{did_you_mean(name, table.column_names)} "
            f"Their columns: {', '.join(table.column_names)}"
        )
    column = table[name]
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _clean_numbers(column: Any, spec: ColumnSpec, settings: DataSettings) -> Cleaned:
    if family_of(column.type) != "text":
        values, bad = pc.cast(column, pa.float64(), safe=False), []
    else:
        text = plain_text(column)
        values = parse_numbers(text)
        bad = _unparsed(text, values, "a number")
    return pc.if_else(pc.is_finite(values), values, None), bad


def _clean_dates(column: Any, spec: ColumnSpec, settings: DataSettings) -> Cleaned:
    if family_of(column.type) != "text":
        return pc.cast(column, pa.timestamp("us"), safe=False), []
    text = plain_text(column)
    values = parse_dates(text)
    return values, _unparsed(text, values, "an ISO date such as 2024-05-31 or 2024-05-31T12:00:00")


def _unparsed(text: Any, values: Any, what: str) -> list[Reason]:
    rows = np.flatnonzero(pc.and_(text.is_valid(), values.is_null()).to_numpy(zero_copy_only=False))
    return [(int(row), f"{text[row].as_py()!r} is not {what}") for row in rows]


def _clean_categories(column: Any, spec: ColumnSpec, settings: DataSettings) -> Cleaned:
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    encoded = pc.dictionary_encode(pc.cast(column, pa.string()))  # each distinct value is rewritten once
    names = pc.replace_substring_regex(pc.utf8_trim_whitespace(encoded.dictionary), r"^([+-]?\d+)\.0*$", r"\1")
    names = pc.if_else(pc.match_substring_regex(names, "^(?i:true|false)$"), pc.utf8_lower(names), names)
    names = pc.if_else(pc.not_equal(names, ""), names, None)
    return pc.take(names, encoded.indices), []


def _clean_images(column: Any, spec: ColumnSpec, settings: DataSettings) -> Cleaned:
    values = image_bytes(column)
    pixels_NCHW = np.zeros((len(values), *spec.shape), np.uint8)
    resize = settings.image_size is not None

    def decode_rows(start: int) -> list[Reason]:
        bad = []
        for row, value in enumerate(values.slice(start, ROWS_PER_THREAD_TASK).to_pylist(), start):
            try:
                if value is None:
                    bad.append((row, "missing image"))
                else:
                    _decode(value, pixels_NCHW[row], resize)
            except _SizeError as error:
                raise ShapeError(
                    f"images of different sizes: column {spec.name!r} holds {error}",
                    row,
                    f"are {spec.shape[1]} x {spec.shape[2]}; set data.image_size: [H, W] to resize them",
                ) from None
            except UnidentifiedImageError:  # its message holds a memory address
                bad.append((row, f"not an image: {len(value)} bytes that begin with {value[:8]!r}"))
            except Exception as error:  # Pillow raises whatever its decoders do
                bad.append((row, f"undecodable image: {error}"))
        return bad

    starts = range(0, len(values), ROWS_PER_THREAD_TASK)
    num_threads = min(8, os.cpu_count() or 1)
    if values.nbytes < THREADED_IMAGE_BYTES * len(values) or num_threads == 1:
        found = list(map(decode_rows, starts))
    else:
        with ThreadPoolExecutor(num_threads) as pool:
            found = list(pool.map(decode_rows, starts))
    return _fixed_size_lists(pixels_NCHW), [reason for bad in found for reason in bad]


class ShapeError(DataError):
    """An image or a sequence of another size than the others, in `row` of the table."""

    def __init__(self, found: str, row: int, others: str) -> None:
        super().__init__(f"{found} in row {row}, and others {others}")
        self.found, self.row, self.others = found, row, others

    def located(self, file: str, row: int) -> DataError:
        """The same, with the file and the row's place in it."""
        return DataError(f"{self.found} in {file}, row {row}, and others {self.others}")


class _SizeError(Exception):
    """`H x W` of an image that is not the size of the others."""


def _decode(value: bytes, pixels_CHW: NDArray[np.uint8], resize: bool) -> None:
    """Writes one image, as gray or RGB and resized where asked, into `pixels_CHW`."""
    channels, height, width = pixels_CHW.shape
    with Image.open(io.BytesIO(value)) as image:
        if image.size != (width, height) and not resize:
            raise _SizeError(f"{image.height} x {image.width}")
        mode = "L" if channels == 1 else "RGB"
        picture: Image.Image = image
        if image.mode[0] == "I":  # 16 bits a pixel; Pillow would clip them
            picture = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if picture.mode != mode:
            picture = picture.convert(mode)
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        array = np.asarray(picture)
        pixels_CHW[:] = array if channels == 1 else array.transpose(2, 0, 1)


def _clean_sequences(column: Any, spec: ColumnSpec, settings: DataSettings) -> Cleaned:
    num_steps, num_channels = spec.shape
    values_SC, steps_N = _steps_of(column, spec)
    row_S = np.repeat(np.arange(len(steps_N)), steps_N)
    first_N = np.cumsum(steps_N) - steps_N
    bad = [(int(row), "missing sequence") for row in np.flatnonzero(steps_N == 0)]
    steps, channels = np.nonzero(~np.isfinite(values_SC))
    unusable, firsts = np.unique(row_S[steps], return_index=True)
    for row, step, channel in zip(unusable, steps[firsts], channels[firsts], strict=True):
        bad.append((int(row), f"{values_SC[step, channel]} in channel {channel} of step {step - first_N[row]}"))
    steps_N[unusable] = 0
    kept_SC = values_SC[steps_N[row_S] > 0]
    if num_steps:
        values_NTC = np.zeros((len(column), num_steps, num_channels), np.float32)
        values_NTC[steps_N > 0] = kept_SC.reshape(-1, num_steps, num_channels)
        return _fixed_size_lists(values_NTC), bad
    offsets = np.concatenate([[0], np.cumsum(steps_N * num_channels)])
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(kept_SC.reshape(-1))), bad


def _steps_of(column: Any, spec: ColumnSpec) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Steps [S, C] of all sequences, one after the other, and how many each has [N]; a missing one has none."""
    num_steps, num_channels = spec.shape
    if pa.types.is_null(column.type):
        column = pc.cast(column, pa.list_(pa.list_(pa.float32())))
    there = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    steps_N = np.zeros(len(column), np.int64)
    steps_N[there] = pc.list_value_length(column.drop_null()).to_numpy(zero_copy_only=False)
    if num_steps and (other := there[steps_N[there] != num_steps]).size:
        raise ShapeError(
            f"sequences of different lengths: column {spec.name!r} has {steps_N[other[0]]} steps",
            int(other[0]),
            f"have {num_steps}; set data.any_length: true, or cut or pad them to one length",
        )
    values = column.flatten()
    if family_of(values.type) == "sequence":
        width_S = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
        if (wrong := np.flatnonzero(width_S != num_channels)).size:
            raise ShapeError(
                f"steps of different widths: column {spec.name!r} has {width_S[wrong[0]]} channels",
                int(np.repeat(np.arange(len(column)), steps_N)[wrong[0]]),
                f"have {num_channels}; give every step as many",
            )
        values = values.flatten()
    elif num_channels != 1:
        raise DataError(
            f"column {spec.name!r} holds one number a step where the others have {num_channels} channels; "
            "write every sequence as a list of lists"
        )
    numbers = pc.cast(values, pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    return numbers.reshape(-1, num_channels), steps_N


def _fixed_size_lists(values: NDArray[Any]) -> Any:
    """[N, ...] as one list a row, without a copy."""
    size = int(np.prod(values.shape[1:]))
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), size)


def _clean_texts(column: Any, spec: ColumnSpec, settings: DataSettings) -> Cleaned:
    return pc.cast(column, pa.string()), []


def _clean_target(column: Any, spec: ColumnSpec, settings: DataSettings) -> Cleaned:
    if spec.kind == "categorical":
        values, bad = _clean_categories(column, spec, settings)
    elif pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        values, bad = pc.cast(column, pa.int64()), []
    else:
        values, bad = _clean_numbers(column, spec, settings)
    named = {row for row, _ in bad}
    rows = [int(row) for row in np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))]
    for row in rows:
        if row not in named:
            value = column[row].as_py()  # None, NaN, infinite or blank
            bad.append((row, "missing target" + ("" if value is None or not str(value).strip() else f": {value}")))
    return values, bad


_CLEANERS: dict[ColumnKind, Callable[[Any, ColumnSpec, DataSettings], Cleaned]] = {
    "numeric": _clean_numbers,
    "categorical": _clean_categories,
    "date": _clean_dates,
    "image": _clean_images,
    "sequence": _clean_sequences,
    "text": _clean_texts,
}
