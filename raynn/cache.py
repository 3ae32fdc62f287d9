"""Prepared tables of earlier runs, found again by what they were made of; nothing else decides whether one is used.

Preparation is a chain of pure functions from table to table, so a table's key is a hash of the whole chain behind it:
the bytes of its source, the fragment of them, each function with its arguments, the code of raynn, and the versions of
the libraries that decode and compute. Whatever changes any of them changes the key. The tables lie as Arrow files that
are read in place, in RAYNN_CACHE (a folder, by default raynn's own in the user's cache folder; `off` for none), the
longest unused removed where there are more than RAYNN_CACHE_GIB (10).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO
from weakref import ReferenceType, ref

import pyarrow as pa

from raynn.drivers import LocalDriver, Parts, TableFunction
from raynn.encoded import Blocks
from raynn.fragments import Fragment
from raynn.settings import Settings

WORTHWHILE_S = 0.1  # what took less to make is made again
LIBRARIES = ("numpy", "pandas", "pillow", "pyarrow", "safetensors")

Stamp = tuple[tuple[str, int, int], ...]  # path, bytes, time of change [ns] of each file


class RememberingDriver(LocalDriver):
    """As the driver of this process, but that what took long is kept, and read where it was kept before."""

    def __init__(self) -> None:
        self.folder = cache_folder()
        self.saved = False  # since the last tidying
        self.hashes: dict[str, str] = {}  # of the files read so far, by path
        # of the tables it gave out, by identity: a table made from one of them is another table
        self.keys: dict[int, tuple[ReferenceType[pa.Table], str]] = {}

    def read(self, fragments: Sequence[Fragment], read: Callable[[int, Fragment], pa.Table]) -> Blocks:
        """One table a fragment; those of other machines and of the catalog are never kept."""
        how = _digest(read)
        tables = [self._read(index, fragment, read, how) for index, fragment in enumerate(fragments)]
        self._tidy()
        return tables

    def map(self, blocks: Blocks, function: Callable[..., pa.Table], parts: Parts | None = None) -> Blocks:
        """`function` of each table."""
        if parts is None:
            how = _digest(function)
            tables = [self._mapped(block, function, how) for block in blocks]
        else:
            how = _digest((function, [part.tobytes() for part in parts]))
            bound = [lambda table, part=part: function(table, part) for part in parts]
            tables = [self._mapped(block, apply, how) for block, apply in zip(blocks, bound, strict=True)]
        self._tidy()
        return tables

    def _read(
        self, index: int, fragment: Fragment, read: Callable[[int, Fragment], pa.Table], how: str | None
    ) -> pa.Table:
        stamp = _stamp(fragment)
        if self.folder is None or how is None or stamp is None:
            return read(index, fragment)
        contents = [self._hash(path) for path, _, _ in stamp]
        key = _joined(code_fingerprint(), how, str(index), repr(fragment), *contents)
        return self._kept(key, lambda: read(index, fragment), lambda: _stamp(fragment) == stamp)

    def _mapped(self, block: pa.Table, function: TableFunction, how: str | None) -> pa.Table:
        given, before = self.keys.get(id(block), (None, ""))
        if self.folder is None or how is None or given is None or given() is not block:
            return function(block)
        return self._kept(_joined(before, how), lambda: function(block), lambda: True)

    def _kept(self, key: str, make: Callable[[], pa.Table], unchanged: Callable[[], bool]) -> pa.Table:
        """The table of that key: the one that was kept, or made now, and kept if its source stayed what it was."""
        assert self.folder is not None
        path = self.folder / key[:2] / f"{key}.arrow"
        table = _load(path)
        if table is None:
            started = time.perf_counter()
            table = make()
            if not unchanged():
                return table
            if time.perf_counter() - started >= WORTHWHILE_S:
                _save(table, path)
                self.saved = True
        self.keys[id(table)] = (ref(table), key)
        return table

    def _tidy(self) -> None:
        """Once for all blocks: it looks at every table there is."""
        if self.saved and self.folder is not None:
            _remove_longest_unused(self.folder)
            self.saved = False

    def _hash(self, path: str) -> str:
        if path not in self.hashes:
            with open(path, "rb") as file:
                self.hashes[path] = hashlib.file_digest(file, "sha256").hexdigest()
        return self.hashes[path]


def cache_folder() -> Path | None:
    """Where prepared tables are kept; None for nowhere."""
    named = os.environ.get("RAYNN_CACHE", "")
    if named == "off":
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named) if named else home / "raynn" / "prepared"


@cache
def code_fingerprint() -> str:
    """Of raynn's own files as they are, and of the libraries' versions."""
    package = Path(__file__).parent
    files = [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in sorted(package.rglob("*.py"))]
    versions = []
    for name in LIBRARIES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} -")
    return _joined(*files, *versions)


def _stamp(fragment: Fragment) -> Stamp | None:
    """What the files of a fragment look like from outside; None where they are not files of this machine."""
    if fragment.file_system or fragment.format == "catalog":
        return None
    paths = [f"{fragment.path}/{file}" for file in fragment.files] or [fragment.path]
    try:
        stats = [os.stat(path) for path in paths]
    except OSError:
        return None
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in zip(paths, stats, strict=True))


def _digest(function: object) -> str | None:
    """Of a function and all that is bound to it; None where that cannot be written down."""
    written = io.BytesIO()
    try:
        _ByValue(written).dump(function)
    except (pickle.PicklingError, AttributeError, TypeError, ValueError, RecursionError):
        return None
    return hashlib.sha256(written.getvalue()).hexdigest()


class _ByValue(pickle.Pickler):
    """Writes equal objects equally, in every process."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.fast = True  # equal texts are written out, be they one object or two

    def reducer_override(self, written: Any) -> Any:
        """Settings by their values: pydantic also keeps which were given, a set, whose order differs from process to
        process.
        """
        return (type(written), (dict(vars(written)),)) if isinstance(written, Settings) else NotImplemented


def _joined(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _load(path: Path) -> pa.Table | None:
    try:
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        os.utime(path)  # used now: the last to be removed
    except (OSError, pa.ArrowException):  # not there, or not whole: made anew
        return None
    return table


def _save(table: pa.Table, path: Path) -> None:
    """Whole or not at all; that it cannot be kept is no reason for a run to fail."""
    partial: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        os.close(handle)
        with pa.OSFile(partial, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        os.replace(partial, path)
    except (OSError, pa.ArrowException):  # a disk that is full; dictionaries that differ from chunk to chunk
        if partial is not None:
            Path(partial).unlink(missing_ok=True)


def _remove_longest_unused(folder: Path) -> None:
    """Removes the longest unused until what is left is within the limit."""
    limit = float(os.environ.get("RAYNN_CACHE_GIB") or 10.0) * 2**30
    found = []
    for path in folder.glob("*/*.arrow"):
        try:
            stat = path.stat()
        except OSError:  # another run removed it
            continue
        found.append((stat.st_mtime_ns, stat.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            return
        path.unlink(missing_ok=True)
        total -= size
