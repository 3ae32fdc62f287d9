"""WHERE data come from: the `data` section of a job, and the fragments its files are cut into.

The cut depends on the files alone, never on the machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet
from pyarrow.fs import FileSelector, FileType
from pydantic import Field

from raynn.catalog import CATALOG, load_dataset
from raynn.errors import DataError, did_you_mean
from raynn.fragments import Format, Fragment, open_file_system, reading
from raynn.settings import Settings

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1)]


class ColumnSplit(Settings):
    """A split named by a column of the training source: the rows where `column` equals `equals`."""

    column: str
    equals: str | int | bool


class TimeSplit(Settings):
    """A split of series by time: steps from `since` on, and before `until`, as the time column writes them."""

    since: str | int
    until: str | int | None = None


Split = Fraction | str | tuple[str, ...] | ColumnSplit | TimeSplit


class DataSettings(Settings):
    """The `data` section. Fractions are of the rows of `train`; of series and of text they are its end."""

    train: str | tuple[str, ...]
    validation: Split = 0.1
    test: Split | None = None
    target: Annotated[
        str | Annotated[tuple[str, ...], Field(min_length=1)] | None, Field(description="several: forecasting alone")
    ] = None
    features: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    columns: dict[str, Literal["numeric", "categorical", "date", "image", "sequence", "text", "ignore"]] = Field(
        default_factory=dict
    )
    group: str | None = None
    time: Annotated[str | None, Field(description="forecasting: the time column; splits are then by time")] = None
    series: Annotated[str | None, Field(description="forecasting: the column that tells series apart")] = None
    window: Annotated[Count | None, Field(description="steps or tokens that are read at once")] = None
    horizon: Annotated[Count | None, Field(description="forecasting: steps predicted")] = None
    stride: Annotated[
        Count | None, Field(description="from one training window to the next; default: 1 step, a window of tokens")
    ] = None
    known: Annotated[tuple[str, ...], Field(description="forecasting: features known for the steps to predict")] = ()
    calendar: Annotated[
        tuple[Literal["minute", "hour", "weekday", "day", "month"], ...],
        Field(description="forecasting: features made of the time, known in the future"),
    ] = ()
    window_normalization: Annotated[
        Literal["none", "last", "revin"],
        Field(description="forecasting: each window less its last value, or reversible instance normalization"),
    ] = "none"
    channels: Annotated[
        Literal["joint", "independent"],
        Field(description="forecasting of several targets: together, or each from its own past by the same weights"),
    ] = "joint"
    tokens: Annotated[
        Literal["bytes", "characters", "words", "subwords"] | None,
        Field(description="what text is cut into; default: words, and characters for language modeling"),
    ] = None
    vocabulary: Annotated[int, Field(ge=2, description="different tokens at most")] = 8192
    max_tokens: Annotated[Count, Field(description="of a text column: what is longer is cut")] = 512
    any_length: Annotated[
        bool, Field(description="sequences of other lengths may come, though the first 10,000 rows have one")
    ] = False
    max_bad_rows: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    scaling: Literal["standard", "quantile"] = "standard"
    image_size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    image_mode: Literal["auto", "gray", "rgb"] = "auto"

    @property
    def targets(self) -> tuple[str, ...]:
        """The columns to predict."""
        return (self.target,) if isinstance(self.target, str) else self.target or ()


TABLE_FORMATS: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
SLICE_BYTES = 16 << 20  # of a Parquet row group, uncompressed, or of text
FILES_PER_FRAGMENT = 1024  # of a folder of images or texts
LINE_BYTES = 1 << 20  # of text: a longer line is cut within
ROWS_PER_FRAGMENT = 8192  # of a data set of the catalog


def find_fragments(source: str | tuple[str, ...], base: Path) -> tuple[Fragment, ...]:
    """The fragments of files, folders, globs, URLs or catalog names, in a fixed order.

    Relative paths are looked for in the current directory, then in `base`, the folder of the job file. A name
    in the catalog wins over a file of that name, which is then written `./name`.

    Raises:
        DataError: nothing found, files of an unknown format, a corrupt Parquet file, no rows.
    """
    entries = (source,) if isinstance(source, str) else source
    if not (fragments := tuple(fragment for entry in entries for fragment in _fragments(entry, base))):
        raise DataError(f"{', '.join(entries) or 'an empty list of sources'}: holds no rows; name a source that does")
    return fragments


def find_sources(settings: DataSettings, base: Path) -> tuple[tuple[Fragment, ...], tuple[int, ...]]:
    """The fragments of all sources, and the role of each: 0 of the training source, 1 of validation, 2 of test.

    Raises:
        DataError: a source that is not there, or holds no rows.
    """
    fragments = list(find_fragments(settings.train, base))
    roles = [0] * len(fragments)
    for role, source in ((1, settings.validation), (2, settings.test)):
        if isinstance(source, (str, tuple)):
            more = find_fragments(source, base)
            fragments += more
            roles += [role] * len(more)
    return tuple(fragments), tuple(roles)


_COMPRESSED = re.compile(r"\.(gz|bz2|zst|lz4)$")

# Finding: source -> groups of files -> fragments


def _fragments(entry: str, base: Path) -> Iterator[Fragment]:
    if entry in CATALOG:
        num_rows = load_dataset(entry).num_rows
        for start in range(0, num_rows, ROWS_PER_FRAGMENT):
            stop = min(start + ROWS_PER_FRAGMENT, num_rows)
            yield Fragment(entry, f"catalog:{entry}", "catalog", start=start, stop=stop, first_row=start)
        return
    url, groups = _find_files(entry, base)
    for folder, files in groups:
        images = [file for file in files if file.lower().endswith(IMAGE_SUFFIXES)]
        tables = [file for file in files if _table_format(file)]
        texts = [file for file in files if _suffix(file) in TEXT_SUFFIXES]
        if images and tables:
            raise DataError(
                f"{entry}: holds tables ({tables[0]}) and images ({images[0]}); name the tables with a glob "
                f"like {entry.rstrip('/')}/*{Path(tables[0]).suffix}, or a folder that holds images only"
            )
        if not images and not tables and not texts:
            raise DataError(
                f"{entry}: raynn does not read {_some(Path(file).name for file in files)}; convert to one of "
                f"{' '.join([*TABLE_FORMATS, *TEXT_SUFFIXES])} (but for Parquet also as .gz, .bz2, .zst), or name "
                "another file"
            )
        if images:
            yield from _image_fragments(entry, url, folder, images)
        with ThreadPoolExecutor(8) as pool:  # a remote footer costs a round trip or two
            for found in pool.map(lambda table: _table_fragments(entry, url, table), tables):
                yield from found
        if not images and not tables:  # beside those a text is a note to the reader
            yield from _text_fragments(entry, url, folder, texts)


def _find_files(entry: str, base: Path) -> tuple[str, list[tuple[str, list[str]]]]:
    """A URL of the file system ("" is the local one) and the files, in groups with their common folder."""
    if "://" in entry:
        address, mark, query = entry.partition("?")  # pyarrow takes region, endpoint_override, ... as a query
        folder, pattern = _split_glob(address, r"[*\[]")
        url = f"{folder}{mark}{query}"
        with reading(entry, "address"):
            file_system, path = open_file_system(url)
            groups = _expand(file_system, path.rstrip("/"), pattern)
        if groups:
            return url, groups
        raise DataError(f"{entry}: nothing there; look at the address and at what its folder holds")
    wanted = os.path.expanduser(entry)
    paths = list(dict.fromkeys(os.path.abspath(os.path.join(folder, wanted)) for folder in (os.getcwd(), base)))
    for path in paths:
        folder, pattern = (path, "") if os.path.exists(path) else _split_glob(path, r"[*?\[]")
        if groups := _expand(open_file_system("")[0], folder.rstrip("/"), pattern):
            return "", groups
    raise DataError(f"{entry}: {_why_nothing(entry, paths)}")


def _split_glob(path: str, magic: str) -> tuple[str, str]:
    """The folder before the first wildcard and the pattern from there on; without one the path and ""."""
    first = re.search(magic, path)
    if not first:
        return path, ""
    cut = path.rindex("/", 0, first.start()) + 1
    return path[:cut], path[cut:]


def _expand(file_system: Any, path: str, pattern: str) -> list[tuple[str, list[str]]]:
    """Groups (folder, files): of a file, of a folder and all below it, or of what a glob matches."""
    info = file_system.get_file_info(path)
    if info.type == FileType.NotFound:
        return []
    if info.type == FileType.File:
        return [(os.path.dirname(path), [path])]
    wanted = re.compile(_glob_regex(pattern or "**"))
    found = file_system.get_file_info(FileSelector(path, recursive=not pattern or "/" in pattern))
    below = {info.path[len(path) :].lstrip("/"): info for info in sorted(found, key=lambda info: info.path)}
    infos = [info for name, info in below.items() if wanted.fullmatch(name) and not re.search(r"(^|/)\.", name)]
    if files := [info.path for info in infos if info.type == FileType.File]:
        return [(path, files)]
    return [group for info in infos if pattern for group in _expand(file_system, info.path, "")]


def _glob_regex(pattern: str) -> str:
    """`**/` any folders, `*` and `?` within one name, `[abc]` and `[!abc]` as in the shell."""
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", pattern)
    classes = {part: part.replace("[!", "[^") for part in parts[1::2] if part[0] == "["}
    return "".join((tokens | classes).get(part) or re.escape(part) for part in parts)


def _why_nothing(entry: str, paths: Sequence[str]) -> str:
    if any(os.path.isdir(path) for path in paths):
        return "an empty folder; put data into it or name another"
    looked = f"looked for {' and '.join(paths)}"
    parent = os.path.dirname(entry)
    folders = [folder for path in paths if os.path.isdir(folder := os.path.dirname(path))]
    names = [os.path.join(parent, name) for folder in folders for name in sorted(os.listdir(folder))]
    if re.search(r"[*?\[]", entry):
        return f"no file matches; {looked}" + (f"; there are {_some(names)}" if names else "")
    hint = did_you_mean(entry, [*names, *CATALOG]) or f" Data sets of the catalog: {', '.join(CATALOG)}"
    return f"no such file, folder or data set; {looked}.{hint}"


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def _suffix(path: str) -> str:
    """Of a file's name, the compression left out."""
    return os.path.splitext(_COMPRESSED.sub("", path.partition("?")[0].lower()))[1]


def _table_format(path: str) -> Format | None:
    return TABLE_FORMATS.get(_suffix(path))


def _image_fragments(entry: str, url: str, folder: str, images: list[str]) -> Iterator[Fragment]:
    files = [image[len(folder) :].lstrip("/") for image in images]
    if bare := [file for file in files if "/" not in file]:
        raise DataError(
            f"{entry}: the image {bare[0]} lies in no class folder, whose name would be its label; arrange "
            "images as root/class_name/photo.png and name root"
        )
    for start in range(0, len(files), FILES_PER_FRAGMENT):
        part = tuple(files[start : start + FILES_PER_FRAGMENT])
        yield Fragment(entry, folder, "image_folder", url, files=part, first_row=start)


def _table_fragments(entry: str, url: str, path: str) -> list[Fragment]:
    """One for each CSV or JSON lines file; for each row group of Parquet one for every 16 MiB of it."""
    table_format = _table_format(path)
    assert table_format is not None
    if table_format != "parquet":
        return [Fragment(entry, path, table_format, url)]
    with reading(path, "parquet"):
        metadata = pa.parquet.read_metadata(path, filesystem=open_file_system(url)[0])
    fragments, first_row = [], 0
    for group in range(metadata.num_row_groups):
        num_rows = metadata.row_group(group).num_rows
        num_slices = min(num_rows, -(-metadata.row_group(group).total_byte_size // SLICE_BYTES))
        bounds = [num_rows * i // max(num_slices, 1) for i in range(num_slices + 1)]
        for start, stop in pairwise(bounds):
            fragments.append(Fragment(entry, path, "parquet", url, group, start, stop, (), first_row + start))
        first_row += num_rows
    return fragments


def _text_fragments(entry: str, url: str, folder: str, texts: list[str]) -> Iterator[Fragment]:
    """Up to 16 MiB each: whole files, or a part of one file; what is empty is left out."""
    file_system = open_file_system(url)[0]
    files: list[str] = []
    filled = 0
    for info in file_system.get_file_info(texts):
        name = info.path[len(folder) :].lstrip("/")
        large = info.size > SLICE_BYTES and not _COMPRESSED.search(name)
        if files and (large or filled + info.size > SLICE_BYTES or len(files) == FILES_PER_FRAGMENT):
            yield Fragment(entry, folder, "text", url, files=tuple(files))
            files, filled = [], 0
        if large:
            with reading(info.path, "text"), file_system.open_input_file(info.path) as file:
                cuts = _line_ends(file, info.size)
            for start, stop in pairwise(cuts):
                yield Fragment(entry, folder, "text", url, start=start, stop=stop, files=(name,))
        elif info.size:
            files.append(name)
            filled += info.size
    if files:
        yield Fragment(entry, folder, "text", url, files=tuple(files))


def _line_ends(file: Any, size: int) -> list[int]:
    """Where a text of `size` bytes is cut into parts of 16 MiB or a little more or less: behind the ends of lines."""
    num_parts = -(-size // SLICE_BYTES)
    cuts = [0]
    for part in range(1, num_parts):
        place = size * part // num_parts
        file.seek(place - 1)
        ahead = file.read(LINE_BYTES)
        within = ahead.find(b"\n")
        if within < 0:  # before a byte that begins a character
            within = next((i for i, byte in enumerate(ahead[1:5]) if byte & 0xC0 != 0x80), len(ahead) - 1)
        cuts.append(place + within)
    return list(dict.fromkeys([*cuts, size]))
