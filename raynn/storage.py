"""WHERE run folders are: in a folder of this machine or one that it mounts, or at a URL.

Whoever trains, predicts or reports works on a local folder. For a URL that is its copy, which `remote` keeps the same;
this module says when: a run is claimed there, fetched before it is worked on, sent while it is trained, and once more
at the end, when the command waits for it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import uniform
from urllib.parse import urlsplit

from pyarrow.fs import FileSelector, FileType

from raynn import folder as local
from raynn.errors import JobError, RunError, TrainingError, did_you_mean
from raynn.fragments import open_file_system
from raynn.remote import AWAY, Remote, WrittenElsewhereError, aside, join_url, reason_of, split_url

SEND_EVERY_S = 2.0
RETRY_MOST_S = 30.0
PATIENCE_S = 60.0  # at the end of a run, while nothing gets through
PATIENCE_INTERRUPTED_S = 10.0
LOCK_TIMEOUT_S = 30.0  # a process that was killed may take a moment to be gone


def is_url(place: str | Path) -> bool:
    """Whether it is a URL; `file://` is a folder like any other."""
    return "://" in str(place) and not str(place).startswith("file://")


def as_path(place: str | Path) -> Path:
    """The path of what is no URL."""
    return Path(str(place).removeprefix("file://"))


def copies() -> Path:
    """The folder of this machine in which folders at URLs have their copies."""
    return (Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raynn" / "storage").resolve()


def copy_of(storage: str) -> Path:
    """The copy of a folder at a URL, made if need be."""
    address = storage.partition("?")[0].rstrip("/")
    name = re.sub(r"[^A-Za-z0-9]+", "-", address).strip("-")[-60:]
    copy = copies() / f"{name}-{hashlib.sha256(join_url(storage).encode()).hexdigest()[:8]}"
    copy.mkdir(parents=True, exist_ok=True)
    (copy / ".url").write_text(join_url(storage))
    return copy


def copy_of_run(url: str) -> Path:
    """The copy of a run folder at a URL."""
    storage, name = split_url(url)
    return copy_of(storage) / name


def url_of(folder: Path) -> str | None:
    """The URL that a local folder is a copy of, or lies in a copy of; None of any other."""
    if not folder.is_absolute() or not folder.is_relative_to(copies()):
        return None
    storage, *below = folder.relative_to(copies()).parts
    return join_url((copies() / storage / ".url").read_text(), *below)


def address_of(folder: Path) -> str:
    """A folder as the user knows it."""
    return url_of(folder) or str(folder)


def named(text: str) -> str:
    """A text that speaks of copies, speaking of the URLs instead."""
    return re.sub(re.escape(str(copies())) + r"(/[\w.-]+)+", lambda found: address_of(Path(found[0])), text)


def _is_run_at_url(folder: Path) -> bool:
    """Whether it is a whole run, not a trial within one."""
    return url_of(folder) is not None and len(folder.relative_to(copies()).parts) == 2


# Finding


def open_storage(storage: str) -> Path:
    """The folder that holds runs, made if need be: of a URL its copy.

    Raises:
        JobError: it cannot be written, or the URL holds a password.
    """
    if not is_url(storage):
        return local.check_storage(str(as_path(storage)))
    if urlsplit(storage).password is not None:
        raise JobError(
            "storage holds a password, and job.yaml of every run would hold it, too; take it from the URL and give it "
            "in the environment, as the server's own tools read it (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ...)"
        )
    try:
        files, path = open_file_system(storage)
        probe = f"{path.rstrip('/')}/.write-{uuid.uuid4().hex[:12]}"
        if files.type_name not in ("s3", "gcs"):
            files.create_dir(path, recursive=True)
        with files.open_output_stream(probe) as stream:
            stream.write(b"raynn\n")
        files.delete_file(probe)
    except ImportError as error:
        raise JobError(f"storage = {storage!r} needs a package that is not installed: {error}") from None
    except (*AWAY, ValueError) as error:
        raise JobError(
            f"storage = {storage!r} cannot be written: {reason_of(error)}; mend the address or the access to it, or "
            "choose a folder, for instance storage=runs"
        ) from None
    try:
        return copy_of(storage)
    except OSError as error:
        raise JobError(
            f"storage = {storage!r} needs room on this machine, and {copies()} cannot be written: {error.strerror}; "
            "name another place in XDG_CACHE_HOME"
        ) from None


def claim(storage: Path, name: str) -> Path:
    """A new run folder: `storage/name`, or `name-2`, `name-3`, ... where runs of that name are already.

    Raises:
        RunError: the server of a URL no longer answers.
    """
    url = url_of(storage)
    if url is None or len(storage.relative_to(copies()).parts) > 1:
        return local.claim(storage, name)
    number = 1
    while True:
        folder = storage / (name if number == 1 else f"{name}-{number}")
        remote = Remote(folder, join_url(url, folder.name))
        with _answering(remote.url):
            taken = remote.claim()
        if taken:
            if remote.unsent():  # of a run that is no longer there, or never arrived
                folder.rename(aside(folder))
            shutil.rmtree(folder, ignore_errors=True)
            (folder / "checkpoints").mkdir(parents=True)
            return folder
        if taken is None:
            time.sleep(uniform(0.0, 0.5))
        else:
            number += 1


def newest(storage: Path, name: str) -> Path:
    """The last run folder of that name; of a URL its copy, as new as the URL, and what was left to send is sent.

    Raises:
        RunError: there is none, or the server of a URL does not answer.
    """
    url = url_of(storage)
    if url is None or len(storage.relative_to(copies()).parts) > 1:
        return local.newest(storage, name)
    with _answering(url):
        files, path = open_file_system(url)
        selector = FileSelector(path.rstrip("/"), allow_not_found=True)
        names = {info.base_name for info in files.get_file_info(selector) if info.type == FileType.Directory}

        def job_name(run: str) -> str | None:
            try:
                with files.open_input_stream(f"{path.rstrip('/')}/{run}/job.yaml") as stream:
                    return local.job_name_in(stream.read())
            except FileNotFoundError:
                return None

        names |= {folder.name for folder in storage.iterdir() if (folder / "job.yaml").exists()}
        folder = storage / local.newest_name(names, name, job_name, url)
        with locked(folder):
            remote = Remote(folder, join_url(url, folder.name))
            _fetched(remote)
            remote.push()
    return folder


def local_run(run: str | Path) -> Path:
    """A run folder to read: one at a URL is fetched, checkpoints left out. What is trained on this machine is as new
    as can be, and stays as it is.

    Raises:
        RunError: there is none at the URL, or the server does not answer.
    """
    if not is_url(run):
        return as_path(run)
    storage, name = split_url(str(run))
    with _answering(str(run)):
        folder = copy_of_run(str(run))
        with _lock(folder) as free:
            if free:
                Remote(folder, str(run), whole=False).pull()
        if not folder.exists():
            files, path = open_file_system(storage)
            beside = files.get_file_info(FileSelector(path.rstrip("/"), allow_not_found=True))
            near = did_you_mean(name, [info.base_name for info in beside])
            raise RunError(f"there is no run folder {run}.{near} `raynn train JOB.yaml` makes one")
    return folder


def fetch_checkpoints(folder: Path) -> None:
    """What another node has sent of the run that a folder is the copy of, and no checkpoint that it has not.

    Raises:
        TrainingError: the server does not answer.
    """
    url = url_of(folder)
    assert url is not None
    remote = Remote(folder, url)
    with locked(folder):
        _retried(url, lambda: remote.pull(only_these=True))


@contextmanager
def brought(run: str | Path) -> Iterator[Path]:
    """A run folder to read, and what is written into it meanwhile is sent to the URL where it is at one.

    Raises:
        RunError: as `local_run`.
    """
    folder = local_run(run)
    if not is_url(run):
        yield folder
        return
    remote = Remote(folder, str(run), whole=False)
    before = remote.local()
    yield folder
    with _answering(str(run)):
        remote.send_files([path for path, stamp in remote.local().items() if before.get(path) != stamp])


# Keeping


class Kept:
    """A run that is trained here, or from here. In a folder of this machine there is nothing to do.

    At a URL, a thread sends what is new until the end, and tries again while the server is away; training never waits.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.url = url_of(run) if _is_run_at_url(run) else None
        self.remote = Remote(run, self.url) if self.url else None
        self.stop = threading.Event()
        self.thread: threading.Thread | None = None
        self.problem = ""
        self.taken_over = False

    def begin(self) -> None:
        """From now on it is sent."""
        if self.remote is not None:
            self.stop.clear()
            self.thread = threading.Thread(target=self._send, daemon=True)
            self.thread.start()

    def _send(self) -> None:
        failures = 0
        while not self.stop.wait(min(SEND_EVERY_S * 2**failures, RETRY_MOST_S)):
            if self._sent():
                if failures:
                    _say(f"{self.url} answers again: all is sent")
                failures = 0
            elif self.taken_over:
                return
            else:
                failures += 1
                if failures == 1:
                    _say(
                        f"{self.url} takes nothing ({self.problem}); the run goes on, and what could not be sent is "
                        f"kept in {self.run} and tried again"
                    )

    def _sent(self) -> bool:
        """Whether all that is new has arrived. No defect of a server or of its client may reach the training."""
        assert self.remote is not None
        try:
            self.remote.push()
        except WrittenElsewhereError:
            self.taken_over = True
            self.problem = "another process has written there since, and goes on with the run"
        except Exception as error:
            self.problem = reason_of(error)
        else:
            return True
        return False

    def send_now(self) -> None:
        """Sends all that is new before it returns.

        Raises:
            TrainingError: the server does not answer.
        """
        if self.remote is not None:
            _retried(str(self.url), self.remote.push)

    def end(self, patience_s: float) -> bool:
        """Sends the rest, and waits for it, so long while nothing gets through; whether all has arrived."""
        if self.remote is None:
            return True
        self.stop.set()
        deadline, wait_s = time.monotonic() + patience_s, 0.1
        if self.thread is not None:
            self.thread.join(patience_s)
            if self.thread.is_alive():  # a server that neither answers nor hangs up
                self.problem = self.problem or f"no answer within {patience_s:g} s"
                return False
        while not self._sent():
            if self.taken_over or time.monotonic() + wait_s > deadline:
                return False
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 5.0)
        return True

    @contextmanager
    def lent(self) -> Iterator[None]:
        """While workers, on whichever node, write the run and send it, this copy follows them."""
        if self.remote is None:
            yield
            return
        self.end(PATIENCE_INTERRUPTED_S)
        _unlock(self.run)
        done = threading.Event()
        follower = threading.Thread(target=self._follow, args=(done,), daemon=True)
        follower.start()
        try:
            yield
        finally:
            done.set()
            follower.join()
            _relock(self.run)
            _retried(str(self.url), self.remote.pull)
            self.begin()

    def _follow(self, done: threading.Event) -> None:
        assert self.remote is not None
        while not done.wait(SEND_EVERY_S):
            with _lock(self.run) as free:
                if free:  # else a worker of this machine has it: nothing is newer
                    try:
                        self.remote.pull()
                    except Exception as error:
                        self.problem = reason_of(error)


def _retried(url: str, action: Callable[[], object]) -> None:
    deadline, wait_s = time.monotonic() + PATIENCE_S, 0.1
    while True:
        try:
            action()
        except AWAY as error:
            if time.monotonic() + wait_s > deadline:
                raise TrainingError(
                    f"{url} does not answer ({reason_of(error)}): once it does, resume=true goes on"
                ) from None
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 5.0)
        else:
            return


@contextmanager
def kept(run: Path, *, begins: bool = True) -> Iterator[Kept]:
    """A run folder to train in: at a URL no one else of this machine trains there, and all has arrived at the end.

    Args:
        run: the folder.
        begins: whether it is sent from now on, or from `begin` on.

    Raises:
        RunError: another process trains there, or the server does not answer at the beginning.
        TrainingError: at the end not all could be sent; it says where it is.
    """
    keeping = Kept(run)
    if keeping.remote is None:
        yield keeping
        return
    with locked(run):
        with _answering(str(keeping.url)):
            _fetched(keeping.remote)
        if begins:
            keeping.begin()
        try:
            yield keeping
        except BaseException:
            if not keeping.end(PATIENCE_INTERRUPTED_S):
                _say(f"{keeping.url}: {keeping.problem}; what could not be sent is kept in {run}")
            raise
        if not keeping.end(PATIENCE_S):
            raise TrainingError(
                f"{keeping.url} did not take all of the run ({keeping.problem}). It is whole in {run}: once the server "
                "answers, the same command with resume=true sends the rest"
            )


def _fetched(remote: Remote) -> None:
    if moved := remote.pull(keep_both=True):
        _say(f"{remote.url} was written elsewhere since: what was here and had not been sent is kept in {moved}")


@contextmanager
def _answering(url: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise RunError(f"{url} needs a package that is not installed: {error}") from None
    except WrittenElsewhereError:
        raise RunError(f"{url} is being written by another process; try again once it ends") from None
    except (*AWAY, ValueError) as error:
        raise RunError(f"{url} cannot be read: {reason_of(error)}; mend the address or the access to it") from None


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


# Locking: of the processes of this machine only one writes into a copy. The lock goes with the process.

_HELD: dict[Path, int] = {}


def _try_lock(folder: Path) -> bool:
    handle = os.open(folder.with_name(f".{folder.name}.lock"), os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return False
    _HELD[folder] = handle
    return True


def _unlock(folder: Path) -> None:
    os.close(_HELD.pop(folder))


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Whether it could be had at once."""
    free = _try_lock(folder)
    try:
        yield free
    finally:
        if free:
            _unlock(folder)


def is_free(folder: Path) -> bool:
    """Whether no process of this machine trains in a copy."""
    with _lock(folder) as free:
        return free


def _relock(folder: Path) -> None:
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while not _try_lock(folder):
        if time.monotonic() > deadline:
            raise RunError(
                f"{address_of(folder)} is being trained by another process of this machine; wait until it ends"
            )
        time.sleep(0.1)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """This process has the folder.

    Raises:
        RunError: another one has it, for longer than a process takes to end.
    """
    _relock(folder)
    try:
        yield
    finally:
        if folder in _HELD:
            _unlock(folder)
