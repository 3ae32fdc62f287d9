"""What a job's data will take, told from file sizes and a first look, before they are read; and what follows from it:
whether prepared tables are kept, or made again from the sources whenever they are needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from raynn.columns import ColumnSpec
from raynn.fragments import Fragment, open_file_system, reading

KEPT_SHARE = 0.5  # of the room for tables, that they may fill; the other half is of what is made meanwhile
DRIVER_ROW_BYTES = 16  # that the process which splits the rows takes at most while it does, classes and groups small
COMPRESSION = 4.0  # of text in a compressed file: a guess, whose error only changes what is kept
COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
SAMPLE_LINES = 100


@dataclass(frozen=True)
class Footprint:
    """Rows of all sources and bytes of each, once it is cleaned and once it is what a network reads."""

    rows: int
    counted: bool  # whether the sources say how many rows there are; else told from their size
    cleaned_bytes: float  # a row
    encoded_bytes: float  # a row

    @property
    def table_bytes(self) -> int:
        """Of both tables, which are there at one time."""
        return math.ceil(self.rows * (self.cleaned_bytes + self.encoded_bytes))

    def kept(self, room_bytes: float, choice: str) -> bool:
        """Whether the tables are kept where there is so much room for them."""
        return choice == "keep" or (choice == "auto" and self.table_bytes <= KEPT_SHARE * room_bytes)

    def size(self) -> str:
        """Rows and bytes, in words."""
        about = "" if self.counted else "about "
        return (
            f"{about}{self.rows:,} rows of {self.cleaned_bytes:,.0f} bytes cleaned and {self.encoded_bytes:,.0f} "
            f"encoded, {in_words(self.table_bytes)}"
        )

    def said(self, kept: bool, room: str, room_bytes: float) -> str:
        """What will be done with the tables, in a line; `room` says where they would be kept."""
        size, where = self.size(), f"{room} ({in_words(room_bytes)})"
        if kept:
            return f"{size}: kept in {where} until training begins"
        more = f", more than half of {where}" if self.table_bytes > KEPT_SHARE * room_bytes else ""
        return (
            f"{size}{more}: no table is kept, and the sources are read three times, a block at a time; the driver "
            f"takes up to {in_words(self.rows * DRIVER_ROW_BYTES)} to split the rows"
        )


def in_words(num_bytes: float) -> str:
    """`1.5 GiB`, `20 MiB`."""
    return f"{num_bytes / 2**30:,.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.0f} MiB"


def footprint_of(
    fragments: Sequence[Fragment],
    features: Sequence[ColumnSpec],
    targets: Sequence[ColumnSpec],
    extra: Sequence[str],
    sample: pa.Table,
) -> Footprint:
    """From the fragments, and some rows of the training source.

    Raises:
        DataError: a file that is not there any more.
    """
    used = [spec for spec in features if spec.kind != "ignore" and spec.name in sample.column_names]
    sizes = [row_bytes(spec, sample[spec.name]) for spec in used]
    sizes += [(row_bytes(s, sample[s.name])[0], 8) for s in targets if s.name in sample.column_names]
    beside = sum(_mean_text(sample[name]) + 4 for name in extra if name in sample.column_names)
    # beside the data's own: the block's number, and what is wrong with a row
    cleaned = sum(cleaned for cleaned, _ in sizes) + beside + 12
    rows, counted = num_rows_of(fragments, sample)
    return Footprint(rows, counted, round(cleaned, 1), round(sum(encoded for _, encoded in sizes), 1))


def row_bytes(spec: ColumnSpec, column: pa.ChunkedArray) -> tuple[float, float]:
    """Bytes of a column's row, cleaned and encoded; `column` holds some rows as the source has them."""
    if spec.kind == "numeric":
        return 8, 8 if column.null_count else 4  # its absence is a number too
    if spec.kind == "date":
        return 8, 28  # days, and sines and cosines of its cycles
    if spec.kind == "image":
        return math.prod(spec.shape), math.prod(spec.shape)
    if spec.kind == "sequence":
        steps = spec.shape[0] or _mean(pc.list_value_length(column))
        return 4 * steps * spec.shape[1] + 8, 4 * steps * spec.shape[1] + 8
    text = _mean_text(column)
    return (text + 4, 4 * text + 8) if spec.kind == "text" else (text + 4, 8)


def _mean_text(column: pa.ChunkedArray) -> float:
    """Bytes of a value as text, on average."""
    try:
        return _mean(pc.binary_length(column.cast(pa.string(), safe=False)))
    except pa.ArrowException:  # no text: who reads the column says so
        return float(column.nbytes / max(1, len(column)))


def _mean(lengths: pa.ChunkedArray) -> float:
    return float(pc.mean(lengths).as_py() or 0.0)


def num_rows_of(fragments: Sequence[Fragment], sample: pa.Table) -> tuple[int, bool]:
    """The rows of all fragments, and whether that is more than a guess."""
    known, unknown = 0, []
    for fragment in fragments:
        if fragment.format in ("csv", "jsonl"):
            unknown.append(fragment)
        elif fragment.files:
            known += len(fragment.files)
        else:
            assert fragment.stop is not None
            known += fragment.stop - fragment.start
    if not unknown:
        return known, True
    line = {kind: _line_bytes(sample, kind) for kind in {fragment.format for fragment in unknown}}
    guessed = sum(size / line[fragment.format] for fragment, size in zip(unknown, _sizes(unknown), strict=True))
    return known + round(guessed), False


def _sizes(fragments: Sequence[Fragment]) -> list[float]:
    """Bytes of text of each file."""
    paths: dict[str, list[str]] = {}
    for fragment in fragments:
        paths.setdefault(fragment.file_system, []).append(fragment.path)
    found: dict[tuple[str, str], float] = {}
    for url, names in paths.items():
        with reading(names[0], fragments[0].format):
            for name, info in zip(names, open_file_system(url)[0].get_file_info(names), strict=True):
                packed = name.lower().endswith(COMPRESSED)
                found[url, name] = (info.size or 0) * (COMPRESSION if packed else 1.0)
    return [found[fragment.file_system, fragment.path] for fragment in fragments]


def _line_bytes(sample: pa.Table, kind: str) -> float:
    """Bytes of a row as such a file writes it, on average."""
    rows = sample.slice(0, SAMPLE_LINES).to_pylist()
    if kind == "csv":
        sizes = [sum(len("" if value is None else str(value).encode()) + 1 for value in row.values()) for row in rows]
    else:
        sizes = [len(json.dumps(row, default=str)) + 1 for row in rows]
    return max(1.0, sum(sizes) / max(1, len(sizes)))
