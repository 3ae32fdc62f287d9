"""The process that mirrors a run folder while it is written, and the command that sends what is left.

Both are the same: `raynn sync RUN` follows a folder that nobody writes into.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from raynn.errors import RunError, TrainingError
from raynn.feeds import Media, Tracked, feed_of, read_job
from raynn.folder import STUDY, check_run
from raynn.mirrors import Mirror, Mlflow, TensorBoard
from raynn.tracking import LOCK, Mirroring, TrackingSettings, WandbSettings, has_key, read_state, wandb_mode

POLL_S = 0.5
RETRY_S = 5.0
RUNS_AT_A_TIME = 8
LOCK_TIMEOUT_S = 20.0  # a process that was left alone by a killed command ends by itself
NICENESS = 10  # training has the processors first

Errand = tuple[int, Path]  # a mirror by its place, and a run


def sync(
    run: str | Path, *, project: str | None = None, entity: str | None = None, wait_s: float = 60.0
) -> dict[str, Any]:
    """Sends a run, or a search as a sweep with its trials, to W&B; what is there already is not sent again.

    Args:
        run: the folder of a run or a search; one whose job says nothing of W&B goes to the project raynn.
        project: another one than the job's.
        entity: another one than the job's.
        wait_s: how long to go on while nothing arrives there.

    Returns:
        what `wandb.json` of the folder says: url, sent, runs, of a search sweep and view.

    Raises:
        RunError: it is no run folder, or there is no key.
        TrainingError: the server did not take it all; what has arrived stays, and it may be tried again.
    """
    folder = check_run(Path(run)).resolve()
    settings = _to_sync(read_tracking(folder), wait_s)
    if settings.wandb is not None and not has_key():
        raise RunError(
            "there is no key for W&B: set WANDB_API_KEY in the environment, or run `wandb login`, and try again"
        )
    chosen = [f"--{key}={value}" for key, value in (("project", project), ("entity", entity)) if value]
    with Mirroring(folder, settings, [f"--wait={wait_s}", "--online", *chosen]):
        pass
    state = read_state(folder)
    if settings.wandb is None:
        return state
    if state.get("mode") != "online" or state.get("sent", 0) < state.get("runs", 1):
        reason = state.get("problem") or "the server did not answer in time"
        raise TrainingError(
            f"{state.get('runs', 1) - state.get('sent', 0)} of {state.get('runs', 1)} runs are not sent whole: "
            f"{reason}; all of it is kept: try `raynn sync {run}` again"
        )
    if problem := state.get("problem"):
        raise TrainingError(f"all runs are sent, but not that the search has ended: {problem}; try again")
    return state


def follow(folder: Path, *, online: bool, project: str | None, entity: str | None, wait_s: float) -> None:
    """What the process does: mirrors until its standard input ends and nothing is left, or nothing gets through.

    Args:
        folder: of a run or a search.
        online: W&B alone, whatever the job says.
        project: another one than the job's.
        entity: another one than the job's.
        wait_s: how long to go on while nothing arrives, where that is not for the job to say.
    """
    os.nice(NICENESS)
    # W&B's own reports of its own defects, and its word on the terminal
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ["WANDB_SILENT"] = "true"
    settings = read_tracking(folder)
    settings = _to_sync(settings, wait_s) if online else settings
    if settings.wandb is not None:
        chosen = {key: value for key, value in (("project", project), ("entity", entity)) if value}
        settings = settings.model_copy(update={"wandb": settings.wandb.model_copy(update=chosen)})
    stop = threading.Event()
    threading.Thread(target=_wait_for_end, args=(sys.stdin.buffer, stop), daemon=True).start()
    threading.Thread(target=_warm_up, args=(folder, settings), daemon=True).start()
    status = 1
    try:
        with _alone(folder):
            status = 0 if Follower(folder, mirrors_of(folder, settings), settings.patience_s).run(stop) else 1
    except Exception:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)  # without waiting for threads that wait for a server


def read_tracking(folder: Path) -> TrackingSettings:
    """The `tracking` section of a run folder's job."""
    section = json.dumps(read_job(folder).get("tracking") or {})
    return TrackingSettings.model_validate_json(section)


def _to_sync(settings: TrackingSettings, wait_s: float) -> TrackingSettings:
    """W&B online, unless the job wants MLflow alone; event files are as they were left."""
    wandb = settings.wandb
    if wandb is not None or settings.mlflow is None:
        wandb = wandb or WandbSettings()
        wandb = wandb.model_copy(update={"mode": "online", "wait_s": wait_s})
    return settings.model_copy(update={"wandb": wandb, "tensorboard": False})


def mirrors_of(folder: Path, settings: TrackingSettings) -> list[Mirror]:
    """All that are asked for."""
    mirrors: list[Mirror] = []
    if settings.wandb is not None and (mode := wandb_mode(settings.wandb)) != "disabled":
        from raynn.dashboard import Dashboard

        mirrors.append(Dashboard(folder, settings.wandb, mode))
    if settings.tensorboard:
        mirrors.append(TensorBoard())
    if settings.mlflow is not None:
        mirrors.append(Mlflow(settings.mlflow))
    return mirrors


def _wait_for_end(stream: BinaryIO, stop: threading.Event) -> None:
    """Until the command closes the pipe, or is gone."""
    while stream.read(1):
        pass
    stop.set()


def _warm_up(folder: Path, settings: TrackingSettings) -> None:
    """Loads, while training goes on, what takes seconds to load when it has ended."""
    if settings.wandb is not None and wandb_mode(settings.wandb) != "disabled":
        from raynn.dashboard import warm_up

        warm_up()
    if not (folder / STUDY).exists():
        import raynn.gallery  # noqa: F401


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time mirrors a folder.

    Raises:
        RunError: another one does not end.
    """
    with (folder / LOCK).open("w") as file:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RunError(f"{folder} is being mirrored by another process; try again once it ends") from None
                time.sleep(POLL_S)
        yield
        (folder / LOCK).unlink(missing_ok=True)


class Follower:
    """Brings every mirror up to date with a folder, again and again.

    Args:
        folder: of a run or a search.
        mirrors: where to.
        patience_s: once nobody writes any more, how long to go on while nothing gets through.
    """

    def __init__(self, folder: Path, mirrors: Sequence[Mirror], patience_s: float) -> None:
        self.folder, self.feed = folder, feed_of(folder)
        self.mirrors, self.patience_s = mirrors, patience_s
        self.waiting: dict[Errand, Tracked | None] = {}  # None: the end of it all
        self.busy: dict[Errand, tuple[Future[None], Tracked | None]] = {}
        self.not_before: dict[Errand, float] = {}  # what failed
        self.pool = ThreadPoolExecutor(RUNS_AT_A_TIME)
        self.seen = Seen()

    def run(self, stop: threading.Event) -> bool:
        """Until `stop` is set and nothing is left; whether all has got through."""
        heard, closing, concluding = time.monotonic(), False, False
        while True:
            if stop.is_set() and not closing:
                self.not_before.clear()  # the last try does not wait for its turn
            closing = stop.is_set()  # asked before reading: what was written before it is read
            for run in self.feed.read(closing):
                self.waiting |= {(place, run.folder): run for place in range(len(self.mirrors))}
            # to look at a model is this machine's work, and no sign of a server that is away
            if self._collect() or self.seen.looking or not closing:
                heard = time.monotonic()
            (self.folder / LOCK).touch()
            if closing and not self.waiting and not self.busy:
                if concluding:
                    return True
                concluding = True
                self.waiting |= {(place, self.folder): None for place in range(len(self.mirrors))}
            self._begin()
            if closing and time.monotonic() - heard > self.patience_s:
                return False
            if closing:
                time.sleep(POLL_S / 10)
            else:
                stop.wait(POLL_S)

    def _begin(self) -> None:
        for key, run in list(self.waiting.items()):
            if key not in self.busy and time.monotonic() >= self.not_before.get(key, 0.0):
                del self.waiting[key]
                mirror = self.mirrors[key[0]]
                if run is None:
                    self.busy[key] = self.pool.submit(mirror.conclude), None
                else:
                    self.busy[key] = self.pool.submit(mirror.update, run, self.seen.of(run)), run

    def _collect(self) -> bool:
        """Looks at what is done; whether anything got through."""
        through = False
        for key, (future, run) in list(self.busy.items()):
            if not future.done():
                continue
            del self.busy[key]
            if (error := future.exception()) is None:
                through = True
                continue
            self.waiting.setdefault(key, run)
            self.not_before[key] = time.monotonic() + RETRY_S
            mirror, reason = self.mirrors[key[0]], f"{type(error).__name__}: {error}".partition("\n")[0]
            sys.stdout.write(f"{mirror.name}: {self.folder.name if run is None else run.name}: {reason}\n")
            sys.stdout.flush()
            mirror.problem(reason)
        return through


class Seen:
    """What is seen of the models of runs that have ended, looked at once for all mirrors."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.media: dict[Path, Media] = {}

    @property
    def looking(self) -> bool:
        """Whether it is being looked at now."""
        return self.lock.locked()

    def of(self, run: Tracked) -> Callable[[], Media]:
        """Of a run, when it is called."""
        return lambda: self._looked_at(run)

    def _looked_at(self, run: Tracked) -> Media:
        if not run.shown or not (run.folder / "model").exists():
            return Media()
        with self.lock:
            if run.folder not in self.media:
                from raynn.gallery import media_of

                self.media[run.folder] = media_of(run.folder)
            return self.media[run.folder]
