"""A fragment, what one task reads of a source, and the tables that fragments of each format are read as."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from pyarrow.fs import FileSystem, FSSpecHandler, LocalFileSystem, PyFileSystem

from raynn.azure import open_azure
from raynn.catalog import load_dataset
from raynn.errors import DataError, did_you_mean

Format = Literal["parquet", "csv", "jsonl", "text", "image_folder", "catalog"]

PYARROW_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file")
MISSING = ("", *"? NA N/A n/a #N/A <NA> NaN nan NULL null None none".split())  # CSV cells that are nulls
LINE_BYTES = 16 << 20  # of JSON lines, the longest line
HEAD_BYTES = 4 << 20  # of a text file, read to see what its columns are


@dataclass(frozen=True)
class Fragment:
    """A run of rows of one file, up to 1,024 files of a folder of images or texts, or a part of one text. Small and
    picklable.
    """

    source: str  # what the user wrote
    path: str  # file, or folder of images or texts, within its file system; or "catalog:digits"
    format: Format
    file_system: str = ""  # a URL of the file system; "" is the local one
    row_group: int = 0  # Parquet
    start: int = 0  # rows of the row group or data set, or bytes of the one text, start .. stop; None: to the end
    stop: int | None = None
    files: tuple[str, ...] = ()  # images and texts: paths below `path`, "class_name/photo.png"
    first_row: int = 0  # number of the first row within the file, from 0

    def locate(self, index: int, dropped: Sequence[BadRow] = ()) -> tuple[str, int]:
        """File and row, from 0, of row `index` of the table read; `dropped` are the bad rows read with it."""
        if self.files:
            gone = {bad.file for bad in dropped}
            return [path for file in self.files if (path := f"{self.path}/{file}") not in gone][index], 0
        row = self.first_row + index
        for bad in dropped:  # in the order of the file
            row += bad.row <= row
        return self.path, row


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used and why; rows count from 0, the header of a CSV file not counted. A text is one row."""

    file: str
    row: int
    column: str | None
    reason: str

    def to_json(self) -> dict[str, str | int | None]:
        """One record of bad_rows.jsonl."""
        return asdict(self)


def read_fragment(fragment: Fragment, columns: Sequence[str] | None = None) -> tuple[pa.Table, list[BadRow]]:
    """The raw table of a fragment (all columns, or `columns` in that order) and the rows that are not in it.

    CSV columns are strings, trimmed; the usual words for a missing value (empty, NA, NaN, null, ?) are nulls.

    Raises:
        DataError: a corrupt file, a column that is not in it.
    """
    return _read(fragment, columns, None)


def sample_rows(fragments: Sequence[Fragment], num_rows: int) -> pa.Table:
    """The first rows, at most `num_rows`, to infer columns from; of a text file, rows of its first 4 MiB.

    Raises:
        DataError: no row in any fragment.
    """
    tables: list[pa.Table] = []
    missing = num_rows
    for fragment in fragments:
        tables.append(_read(fragment, None, missing)[0])
        missing -= tables[-1].num_rows
        if missing <= 0:
            break
    if missing == num_rows:
        raise DataError(f"{fragments[0].source}: holds no rows; name a source that does")
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="permissive")


def schema_of(fragments: Sequence[Fragment]) -> pa.Schema:
    """The columns of the first fragment; those of CSV are all strings.

    Raises:
        DataError: as `read_fragment`.
    """
    return _read(fragments[0], None, 1)[0].schema


@lru_cache(maxsize=32)
def open_file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, pyarrow's (s3, gs, abfs, file, ...) or else fsspec's, and the path in it."""
    if not url:
        return LocalFileSystem(), ""
    if (azure := open_azure(url)) is not None:
        return azure
    try:
        file_system, path = FileSystem.from_uri(url)
    except pa.ArrowInvalid:
        if url.partition("://")[0] in PYARROW_SCHEMES:  # something else about it is wrong
            raise
        import fsspec

        remote, path = fsspec.core.url_to_fs(url)
        file_system = PyFileSystem(FSSpecHandler(remote))
    return file_system, path


@contextmanager
def reading(path: str, what: str) -> Iterator[None]:
    """Says which file could not be read, and as what."""
    try:
        yield
    except ImportError as error:
        raise DataError(f"{path}: install the package that reads such addresses: {error}") from error
    except (pa.ArrowException, OSError, EOFError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise DataError(f"{path}: cannot be read as {what}: {reason}; mend or replace it") from error


# Readers: each takes the columns and how many rows are enough; None for all.

_Rows = tuple[pa.Table, list[BadRow]]


def _read(fragment: Fragment, columns: Sequence[str] | None, limit: int | None) -> _Rows:
    with reading(fragment.path, fragment.format.replace("_", " ")):
        table, bad_rows = _READERS[fragment.format](fragment, columns, limit)
    _require(fragment, table.column_names, columns)
    return (table if columns is None else table.select(list(columns))), bad_rows


def _require(fragment: Fragment, names: Sequence[str], columns: Sequence[str] | None) -> None:
    for column in columns or ():
        if column not in names:
            raise DataError(
                f"{fragment.path}: no column {column!r}.{did_you_mean(column, names)} Its columns: {', '.join(names)}"
            )


def _read_parquet(fragment: Fragment, columns: Sequence[str] | None, limit: int | None) -> _Rows:
    file_system, _ = open_file_system(fragment.file_system)
    with pa.parquet.ParquetFile(fragment.path, filesystem=file_system) as file:
        _require(fragment, file.schema_arrow.names, columns)
        num_rows = file.metadata.row_group(fragment.row_group).num_rows
        start, stop = fragment.start, num_rows if fragment.stop is None else fragment.stop
        stop = stop if limit is None else min(stop, start + limit)
        if (start, stop) == (0, num_rows):
            return file.read_row_group(fragment.row_group, columns), []
        # a slice: the rows before it are decoded and dropped, those behind it are not read
        taken, first = [], 0
        for batch in file.iter_batches(min(stop, 65536), [fragment.row_group], columns):
            if first + batch.num_rows > start:
                taken.append(batch.slice(max(0, start - first), stop - max(first, start)))
            first += batch.num_rows
            if first >= stop:
                break
        return pa.Table.from_batches(taken), []


def _open_text(fragment: Fragment, limit: int | None) -> Any:
    """The uncompressed text of a file; only its first whole lines when `limit` asks for a few rows."""
    stream = open_file_system(fragment.file_system)[0].open_input_stream(fragment.path)
    if limit is None:
        return stream
    with stream:
        head = stream.read(HEAD_BYTES)
    return pa.BufferReader(head if len(head) < HEAD_BYTES else head[: head.rfind(b"\n") + 1])


def _read_csv(fragment: Fragment, columns: Sequence[str] | None, limit: int | None) -> _Rows:
    raw_names, delimiter = _read_header(fragment)
    names = [name.strip() for name in raw_names]
    _require(fragment, names, columns)
    wanted = names if columns is None else columns
    bad_rows: list[BadRow] = []

    def drop(row: Any) -> str:
        reason = f"{row.actual_columns} fields, the header has {row.expected_columns}: {_excerpt(row.text)}"
        bad_rows.append(BadRow(fragment.path, row.number - 2, None, reason))  # from 1, the header counted
        return "skip"

    read = pa.csv.ReadOptions(use_threads=False)  # only then are invalid rows numbered
    parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=drop)
    convert = pa.csv.ConvertOptions(
        column_types={name: pa.string() for name in raw_names},
        include_columns=[raw_names[names.index(name)] for name in wanted],
    )
    with _open_text(fragment, limit) as stream:
        table = pa.csv.read_csv(stream, read, parse, convert).slice(0, limit)
    missing = pa.array(MISSING)
    cells = [pc.utf8_trim_whitespace(column) for column in table.columns]
    cells = [pc.if_else(pc.is_in(cell, missing), None, cell) for cell in cells]
    return pa.table(cells, names=wanted), bad_rows


def _read_header(fragment: Fragment) -> tuple[list[str], str]:
    """The names as written, and the delimiter: whichever of , ; tab | the first line holds most often."""
    with open_file_system(fragment.file_system)[0].open_input_stream(fragment.path) as stream:
        head = stream.read(1 << 20).decode("utf-8-sig", errors="replace").lstrip("\r\n")
    if not head:
        raise DataError(f"{fragment.path}: an empty file; a CSV file begins with a line of column names")
    delimiter = max(",;\t|", key=head.partition("\n")[0].count)
    names = next(csv.reader(io.StringIO(head), delimiter=delimiter))
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{fragment.path}: column {twice[0]!r} is there twice; rename one in the first line")
    return names, delimiter


def _read_json_lines(fragment: Fragment, columns: Sequence[str] | None, limit: int | None) -> _Rows:
    with _open_text(fragment, limit) as stream:
        data = stream.read()
    bad_rows: list[BadRow] = []
    options = pa.json.ReadOptions(block_size=LINE_BYTES)  # a line may be as long as a block
    try:
        table = pa.json.read_json(pa.BufferReader(data), options)
    except pa.ArrowInvalid:  # a broken line, or a column of several types
        table, bad_rows = _parse_json_lines(fragment, data)
    return table.slice(0, limit), bad_rows


def _parse_json_lines(fragment: Fragment, data: bytes) -> _Rows:
    rows: list[dict[str, Any]] = []
    bad_rows = []
    for number, line in enumerate(line for line in data.splitlines() if line.strip()):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            reason = f"not a JSON object: {_excerpt(line.decode(errors='replace'))}"
            bad_rows.append(BadRow(fragment.path, number, None, reason))
    if not rows:
        raise DataError(f"{fragment.path}: no line is a JSON object; write one {{...}} a line, without [ ]")
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: _json_column([row.get(name) for row in rows]) for name in names}), bad_rows


def _json_column(values: list[Any]) -> pa.Array:
    """Values of one type as that type; of several types as text."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array([v if v is None or isinstance(v, str) else json.dumps(v) for v in values])


def _read_texts(fragment: Fragment, columns: Sequence[str] | None, limit: int | None) -> _Rows:
    """One row a file, or one of a part of a file; only those of the first 4 MiB when `limit` asks for a few."""
    file_system, _ = open_file_system(fragment.file_system)
    rows: dict[str, str] = {}
    bad_rows: list[BadRow] = []
    left = None if limit is None else HEAD_BYTES
    for file in fragment.files[:limit]:
        path = f"{fragment.path}/{file}"
        length = left if fragment.stop is None else min(fragment.stop - fragment.start, left or fragment.stop)
        # only a stream decompresses, and only a file can be read from the middle; what is compressed is never cut
        opened = file_system.open_input_file if fragment.stop else file_system.open_input_stream
        with reading(path, "text"), opened(path) as stream:
            if fragment.start:
                stream.seek(fragment.start)
            data = stream.read(length)
        cut = len(data) == left
        try:
            rows[file] = data.decode("utf-8" if fragment.start else "utf-8-sig", "ignore" if cut else "strict")
        except UnicodeDecodeError as error:
            place = fragment.start + len(data) - len(error.object) + error.start  # a byte order mark is not in it
            reason = f"byte {place} (0x{error.object[error.start]:02x}) is not UTF-8"
            bad_rows.append(BadRow(path, 0, "text", reason))
        if left is not None and (left := left - len(data)) <= 0:
            break
    return pa.table({"document": pa.array(rows, pa.string()), "text": pa.array(rows.values(), pa.string())}), bad_rows


def _read_image_folder(fragment: Fragment, columns: Sequence[str] | None, limit: int | None) -> _Rows:
    file_system, _ = open_file_system(fragment.file_system)

    def read(file: str) -> bytes:
        with file_system.open_input_file(f"{fragment.path}/{file}") as stream:
            return bytes(stream.read())

    files = fragment.files[:limit]
    with ThreadPoolExecutor(8) as pool:  # remote files take a round trip each
        images = pa.array(pool.map(read, files), pa.binary())
    return pa.table({"image": images, "label": pa.array([file.partition("/")[0] for file in files])}), []


def _read_catalog(fragment: Fragment, columns: Sequence[str] | None, limit: int | None) -> _Rows:
    stop = fragment.stop if limit is None else fragment.start + limit
    table = load_dataset(fragment.path.removeprefix("catalog:")).slice(0, fragment.stop)
    return table.slice(0, stop).slice(fragment.start), []


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


_READERS: dict[Format, Callable[[Fragment, Sequence[str] | None, int | None], _Rows]] = {
    "parquet": _read_parquet,
    "csv": _read_csv,
    "jsonl": _read_json_lines,
    "text": _read_texts,
    "image_folder": _read_image_folder,
    "catalog": _read_catalog,
}
