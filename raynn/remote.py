"""A run folder at a URL: worked on as a folder of this machine, and kept the same there.

Nearly all of raynn sees a local folder, whatever the storage; what is at a URL has a copy below the user's cache
folder, always at the same place. Object stores know neither renaming nor appending, and a server may be away for a
while: so training writes files as ever, and a thread sends what has changed. The folder itself is the queue: whatever
is newest when the server has time is sent, and what was removed meanwhile never is. So a slow line costs checkpoints in
between, but neither memory nor a training step.

`manifest.json`, written last, names every file there with its size, the time of its change and its checksum: a reader
who follows it sees no half-written checkpoint and no result before its model. Its `id` tells whether anyone else has
written since, on this machine or another, which is how a resumed run knows whether the newest state is here or there.
Files remain plain: a folder that was copied there by hand has no manifest, and is read by its listing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow.fs import FileSelector, FileType

from raynn.folder import write_json
from raynn.fragments import open_file_system
from raynn.ledger import FILE as JOURNAL

MANIFEST = "manifest.json"
CLAIM = ".claim-"
SPARE = ".spare"
CHUNK_BYTES = 8 << 20
MANIFEST_TRIES = 10
TRIES = 3  # of a reader whose files are replaced while it reads
PROGRESS_EVERY_S = 10.0  # progress.json alone, which changes all the time
# of this machine alone: rows of a shard, what is being written, who has what locked
_LOCAL = re.compile(r"(^|/)(scratch|partial-[^/]*|manifest\.json|[^/]*\.partial(-\d+)?|[^/]*\.lock)(/|$)")
_CHECKPOINT = re.compile(r"(.*/)?checkpoints/(refit/)?epoch-\d+/")
_CHECKPOINTS = re.compile(r"(^|/)checkpoints/")

PUT_WHOLE = ("s3", "gcs")  # where a file is there whole or not at all; elsewhere it is emptied, and then written

AWAY = (OSError, pa.ArrowException)  # what pyarrow raises where a server does not answer, or says no

# size in bytes, and time of the last change in ns: of the file that was sent, and of a copy of it
Stamp = tuple[int, int]


class WrittenElsewhereError(Exception):
    """Another process has taken over the folder at the URL."""


@dataclass(frozen=True)
class Manifest:
    """What is at the URL."""

    id: str = ""  # the writer, and the how many-th of that writer's it is
    files: Mapping[str, Stamp] = field(default_factory=dict)
    sums: Mapping[str, str] = field(default_factory=dict)  # SHA-256 (hex) of each file
    before: str = ""  # the one that it took the place of
    ours: bool = False  # of a copy's: written from here, so that which of several has arrived makes no difference

    @classmethod
    def read(cls, text: bytes | str) -> Manifest:
        """From its JSON."""
        tree = json.loads(text)
        files = {path: (size, at) for path, (size, at) in tree["files"].items()}
        return cls(tree["id"], files, tree["sums"], tree["before"], tree["ours"])

    def to_json(self, *, ours: bool = False) -> dict[str, Any]:
        """Its JSON."""
        return {"id": self.id, "before": self.before, "ours": ours, "files": self.files, "sums": self.sums}

    def leads_to(self, there: Manifest) -> bool:
        """Whether a copy that has this one is as new as what is at the URL, or newer."""
        same_writer = self.id.rpartition("-")[0] == there.id.rpartition("-")[0]
        return there.id == self.id or (self.ours and (same_writer or there.id == self.before))


def join_url(url: str, *names: str) -> str:
    """The address of what is below a URL; what stands behind a question mark stays there."""
    address, mark, query = url.partition("?")
    return "/".join([address.rstrip("/"), *names]) + mark + query


def split_url(url: str) -> tuple[str, str]:
    """The URL of the folder above, and the name in it."""
    address, mark, query = url.partition("?")
    above, _, name = address.rstrip("/").rpartition("/")
    return above + mark + query, name


def reason_of(error: BaseException) -> str:
    """What a server or pyarrow says, in a line."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def aside(folder: Path) -> Path:
    """A name for a copy whose place is needed, and that holds what has arrived nowhere."""
    return folder.with_name(f"{folder.name}.unsent-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}")


class Remote:
    """A run folder at a URL and its copy on this machine.

    Args:
        folder: the copy.
        url: where it is kept.
        whole: with checkpoints; a reader needs none.
    """

    def __init__(self, folder: Path, url: str, *, whole: bool = True) -> None:
        self.folder, self.url, self.whole = folder, url, whole
        self.files, path = open_file_system(url)
        self.path = path.rstrip("/")
        self.sent: Manifest | None = None  # what is at the URL, once it was looked at
        self.arrived = ""  # id of the last manifest that is known to be there
        self.writer = uuid.uuid4().hex[:12]
        self.serial = 0
        self.progress_at = 0.0

    # Reading

    def manifest(self) -> Manifest | None:
        """What is at the URL; None where nothing is.

        Raises:
            OSError: the server does not answer.
        """
        for attempt in range(MANIFEST_TRIES):
            try:
                return self._manifest(MANIFEST)
            except FileNotFoundError:
                break
            except (ValueError, KeyError) as error:
                with suppress(FileNotFoundError, ValueError, KeyError):
                    return self._manifest(f"{MANIFEST}{SPARE}")
                # pyarrow asks for an object's size, then reads so much of it: of another one, if that was replaced
                if attempt == MANIFEST_TRIES - 1:
                    raise OSError(f"{MANIFEST} is damaged ({error})") from error
                time.sleep(0.1)
        found = {
            info.path[len(self.path) + 1 :]: (info.size, info.mtime_ns or 0)
            for info in self.files.get_file_info(FileSelector(self.path, allow_not_found=True, recursive=True))
            if info.type == FileType.File
        }
        listed = {p: stamp for p, stamp in sorted(found.items()) if not p.startswith(CLAIM) and not p.endswith(SPARE)}
        if not listed:
            return None
        return Manifest("listing-" + hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:12], listed)

    def _manifest(self, name: str) -> Manifest:
        with self.files.open_input_stream(f"{self.path}/{name}") as stream:
            return Manifest.read(stream.read())

    def pull(self, *, keep_both: bool = False, only_these: bool = False) -> Path | None:
        """Brings what has changed there since this copy last met it. Where nobody has written since, the copy may be
        ahead, and stays as it is.

        Args:
            keep_both: where a file has changed here and there, the copy is moved aside; else the file is replaced.
            only_these: checkpoints that are not there are removed here.

        Returns:
            where the copy was moved to, if it was.

        Raises:
            OSError: the server does not answer.
        """
        self.sent = None  # what was not fetched whole must not be taken for what is there
        moved, whole = None, False
        for attempt in range(TRIES):
            try:
                there = self.manifest()
                if there is None:
                    self.sent, self.arrived = Manifest(), ""
                    return moved
                known = self._known()
                if known.leads_to(there) and not only_these:
                    self.sent, self.arrived = there, there.id
                    return moved
                if keep_both and moved is None and self._changed_on_both_sides(known, there):
                    moved = self.folder.rename(aside(self.folder))
                    known = Manifest()
                whole = self._fetch(known, there, only_these)
            except OSError:  # also of a file that is replaced while it is read
                if attempt == TRIES - 1:
                    raise
                continue
            # where something is missing, checkpoints for a reader, whoever trains on has to fetch it
            kept = there if self.whole and whole else Manifest(f"{there.id}-read", there.files, there.sums)
            write_json(self.folder / MANIFEST, kept.to_json())
            if whole:
                break
        assert there is not None
        damaged = [path for path in there.files if not whole and self._differs(path, there)]
        if damaged:
            raise OSError(f"{damaged[0]} differs from its checksum: restore it there, or train again")
        self.sent, self.arrived = there, there.id
        return moved

    def _differs(self, path: str, there: Manifest) -> bool:
        """Whether a file is not what it should be, and nothing else will tell: weights of a model."""
        copy = self.folder / path
        if _CHECKPOINTS.search(path) or not path.endswith(".safetensors") or not copy.exists():
            return False
        status = copy.stat()
        return (status.st_size, status.st_mtime_ns) != there.files[path]

    def _fetch(self, known: Manifest, there: Manifest, only_these: bool) -> bool:
        """Makes the copy what the manifest says; whether every file was as it says."""
        self.folder.mkdir(parents=True, exist_ok=True)
        here, whole = self.local(), True
        for path, stamp in there.files.items():
            if here.get(path) != stamp and self._minds(path):
                whole &= self._download(path, stamp, there.sums.get(path))
        for path, stamp in here.items():
            left = known.files.get(path) == stamp or (only_these and _CHECKPOINTS.search(path))
            if left and path not in there.files:
                (self.folder / path).unlink(missing_ok=True)
                _remove_empty(self.folder / path, self.folder)
        (self.folder / "checkpoints").mkdir(exist_ok=True)
        return whole

    def _download(self, path: str, stamp: Stamp, expected: str | None) -> bool:
        """Fetches a file; whether it is the one that the manifest names. Another is fetched anew the next time."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.partial")
        try:
            found = self._fetched(path, partial)
        except FileNotFoundError:  # a checkpoint that was replaced meanwhile; its own checksums say the rest
            partial.unlink(missing_ok=True)
            return False
        if path == JOURNAL and found != expected:
            found = self._longer_journal(partial, found)
        as_said = found == expected if expected else partial.stat().st_size == stamp[0]
        if as_said:
            os.utime(partial, ns=(stamp[1], stamp[1]))
        partial.replace(target)
        return as_said

    def _longer_journal(self, fetched: Path, found: str) -> str:
        """Puts the spare one in the place of what was fetched if it is longer, as it only grows; the SHA-256 (hex)."""
        spare = fetched.with_name(f"{JOURNAL}{SPARE}.partial")
        with suppress(FileNotFoundError):
            of_spare = self._fetched(f"{JOURNAL}{SPARE}", spare)
            if spare.stat().st_size > fetched.stat().st_size:
                spare.replace(fetched)
                return of_spare
        spare.unlink(missing_ok=True)
        return found

    def _fetched(self, path: str, target: Path) -> str:
        """Copies a file from there; its SHA-256 (hex)."""
        with self.files.open_input_stream(f"{self.path}/{path}") as source, target.open("wb") as file:
            return _copied(source, file)

    def _changed_on_both_sides(self, known: Manifest, there: Manifest) -> bool:
        here = self.local()
        return any(
            path in here and here[path] not in (stamp, known.files.get(path)) and known.files.get(path) != stamp
            for path, stamp in there.files.items()
        )

    def _known(self) -> Manifest:
        """What was at the URL when this copy last met it."""
        try:
            return Manifest.read((self.folder / MANIFEST).read_text())
        except (OSError, ValueError):
            return Manifest()

    def _minds(self, path: str) -> bool:
        return not _LOCAL.search(path) and (self.whole or not _CHECKPOINTS.search(path))

    def unsent(self) -> bool:
        """Whether the copy holds something that has not been sent."""
        known = self._known()
        return any(known.files.get(path) != stamp for path, stamp in self.local().items())

    def local(self) -> dict[str, Stamp]:
        """The files of the copy that belong to the run."""
        return dict(_files_below(self.folder, "", self._minds))

    # Sending

    def push(self) -> bool:
        """Sends what has changed here; whether there was anything.

        The newest checkpoint is sent first, each whole before the manifest names it; what is gone here is removed
        there last.

        Raises:
            OSError: the server does not answer; what has arrived by then is not sent again.
            WrittenElsewhereError: someone else has written there.
        """
        if self.sent is None:
            self.pull()
        assert self.sent is not None
        journal = self._journal()
        before = self.local()
        here = self.local()
        # what says that others are there is no newer than the look at them: a result that has just come waits for them
        waits = {path for path in here if _concludes(path) and here[path] != before.get(path)}
        if journal is not None:
            here[JOURNAL] = journal[1]
            waits.discard(JOURNAL)
        changed = {p: stamp for p, stamp in here.items() if self.sent.files.get(p) != stamp and p not in waits}
        gone = [path for path in self.sent.files if path not in here and self._minds(path)]
        soon = time.monotonic() - self.progress_at < PROGRESS_EVERY_S
        if not gone and (not changed or (set(changed) == {"progress.json"} and soon)):
            return False
        there = self.manifest()
        found = there.id if there is not None else ""
        if found != self.arrived and not found.startswith((f"{self.writer}-", "listing-")):
            raise WrittenElsewhereError(self.url)
        if not found:  # so that it is known from the first file on whose they are
            self._publish({}, {})
        files, sums, lost = dict(self.sent.files), dict(self.sent.sums), list[str]()
        for unit in _units(changed):
            arrived = self._send(unit) if unit != [JOURNAL] or journal is None else self._send_journal(*journal)
            files |= {path: stamp for path, (stamp, _) in arrived.items()}
            sums |= {path: found for path, (_, found) in arrived.items()}
            lost += [path for path in unit if path not in files]
            if unit[0].endswith("/checksums.json") or len(unit) > 1:
                self._publish(files, sums)
        for path in gone:
            del files[path]
        self._publish(files, sums)
        for path in gone + lost:
            self._delete(path)
        self.progress_at = time.monotonic()
        return True

    def _send(self, unit: list[str]) -> dict[str, tuple[Stamp, str]]:
        """Uploads files that belong together, or none of them where one is gone: opened, they stay readable though
        their folder is removed.
        """
        with ExitStack() as stack:
            try:
                opened = [(path, stack.enter_context((self.folder / path).open("rb"))) for path in unit]
            except FileNotFoundError:
                return {}
            arrived = {}
            for path, file in opened:
                status = os.fstat(file.fileno())
                with self.files.open_output_stream(f"{self.path}/{path}") as target:
                    found = _copied(file, target)
                arrived[path] = ((status.st_size, status.st_mtime_ns), found)
        return arrived

    def _journal(self) -> tuple[bytes, Stamp] | None:
        """A search's journal at this moment, which grows all the time."""
        try:
            with (self.folder / JOURNAL).open("rb") as file:
                status = os.fstat(file.fileno())
                content = file.read(status.st_size)
        except FileNotFoundError:
            return None
        return content, (len(content), status.st_mtime_ns)

    def _send_journal(self, content: bytes, stamp: Stamp) -> dict[str, tuple[Stamp, str]]:
        return {JOURNAL: (stamp, self._overwrite(JOURNAL, content))}

    def _overwrite(self, path: str, content: bytes) -> str:
        """Writes a file that nothing else makes up for; its SHA-256 (hex). Where it would be emptied first, a spare one
        is written before: whoever is killed meanwhile leaves one of the two whole.
        """
        found = ""
        for name in (path,) if self.files.type_name in PUT_WHOLE else (f"{path}{SPARE}", path):
            with self.files.open_output_stream(f"{self.path}/{name}") as target:
                found = _copied(io.BytesIO(content), target)
        return found

    def _publish(self, files: dict[str, Stamp], sums: dict[str, str]) -> None:
        """Writes the manifest: here first, so that it is known whose it is, whichever arrives."""
        first = not self.arrived
        self.serial += 1
        kept = {path: found for path, found in sums.items() if path in files}
        manifest = Manifest(f"{self.writer}-{self.serial}", dict(files), kept, self.arrived)
        write_json(self.folder / MANIFEST, manifest.to_json(ours=True))
        self.sent = manifest
        self._overwrite(MANIFEST, json.dumps(manifest.to_json()).encode())
        self.arrived = manifest.id
        if first:
            for claim in self.claims():
                self._delete(claim)

    def _delete(self, path: str) -> None:
        try:
            self.files.delete_file(f"{self.path}/{path}")
        except FileNotFoundError:
            pass

    def send_files(self, paths: list[str]) -> None:
        """Uploads single files beside what the manifest names, which is the trainer's to write."""
        for path in paths:
            self._send([path])

    # Claiming

    def claims(self) -> list[str]:
        """Names of the marks of those who want this folder."""
        selector = FileSelector(self.path, allow_not_found=True)
        names = [info.base_name for info in self.files.get_file_info(selector)]
        return [name for name in names if name.startswith(CLAIM)]

    def claim(self) -> bool | None:
        """Takes the folder if nothing is there: True; False where something is; None where two tried at once.

        Each leaves a mark, then looks: who sees no other has it. Of two, the later one to leave a mark sees the
        earlier one's, as object stores list what was written before (S3 since December 2020, GCS, Azure).
        """
        if self.files.get_file_info(FileSelector(self.path, allow_not_found=True)):
            return False
        mark = f"{CLAIM}{self.writer}"
        with self.files.open_output_stream(f"{self.path}/{mark}") as stream:
            stream.write(b"raynn\n")
        found = {info.base_name for info in self.files.get_file_info(FileSelector(self.path))}
        if found - {mark, ""} == set():
            return True
        self._delete(mark)
        return False if any(not name.startswith(CLAIM) for name in found) else None


def _concludes(path: str) -> bool:
    """Whether a file says that others are there."""
    return path == JOURNAL or path.rpartition("/")[2] == "result.json"


def _units(changed: Mapping[str, Stamp]) -> Iterator[list[str]]:
    """Files in the order in which they are sent, those of a checkpoint together: figures, checkpoints from the newest
    on, then models, results, the journal that says which trials have ended, and the result of all.
    """
    checkpoints: dict[str, list[str]] = {}
    plain = []
    for path in sorted(changed):
        if found := _CHECKPOINT.match(path):
            checkpoints.setdefault(found[0], []).append(path)
        else:
            plain.append(path)
    last = sorted(
        (path for path in plain if _concludes(path)), key=lambda path: ("/" not in path, path == "result.json")
    )
    models = [path for path in plain if path.endswith(".safetensors")]
    yield from ([path] for path in plain if path not in last and path not in models)
    newest_first = sorted(checkpoints.values(), key=lambda unit: max(changed[path][1] for path in unit), reverse=True)
    for unit in newest_first:
        yield sorted(unit, key=lambda path: path.endswith("/checksums.json"))
    yield from ([path] for path in [*models, *last])


def _files_below(folder: Path, prefix: str, minds: Any) -> Iterator[tuple[str, Stamp]]:
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:  # removed meanwhile
        return
    for entry in entries:
        path = f"{prefix}{entry.name}"
        try:
            if entry.is_dir(follow_symlinks=False):
                if minds(f"{path}/"):
                    yield from _files_below(Path(entry.path), f"{path}/", minds)
            elif minds(path) and entry.is_file():
                status = entry.stat()
                yield path, (status.st_size, status.st_mtime_ns)
        except FileNotFoundError:
            continue


def _copied(source: Any, target: Any) -> str:
    """Copies a stream; the SHA-256 (hex) of what it held."""
    found = hashlib.sha256()
    while chunk := source.read(CHUNK_BYTES):
        found.update(chunk)
        target.write(chunk)
    return found.hexdigest()


def _remove_empty(path: Path, top: Path) -> None:
    """The folders above a file that was the last one in them."""
    for above in path.parents:
        if above == top or any(above.iterdir()):
            return
        above.rmdir()
