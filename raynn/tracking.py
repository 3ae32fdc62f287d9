"""What a run measures: metrics.jsonl always; W&B, TensorBoard and MLflow, when asked, by a process beside the run.

Nothing that trains speaks to a server. The command starts one process, which reads what the run or search writes into
its folder and mirrors it; so a server that is slow or away, a full disk or a defect of a client cannot reach the
training, the key stays where the command runs, and a trial costs no start of a client: 1.3 s to import it and 1.2 s for
its first run, on 2 busy cores. What was not sent is in the folder all the same, and `raynn sync` sends it.
"""

from __future__ import annotations

import json
import netrc
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from raynn.errors import JobError
from raynn.folder import finite
from raynn.settings import Settings

STATE = "wandb.json"  # of a run or a search: what has been sent, and where it is seen
LOG = "mirrors.log"
LOCK = "mirrors.lock"  # held by the mirroring process, and touched while it is at work
FILES_WAIT_S = 60.0
GRACE_S = 15.0  # beyond its patience, for a mirroring process that does not end by itself
SERVER = "https://api.wandb.ai"

Mode = Literal["online", "offline", "disabled"]


class WandbSettings(Settings):
    """`mode: auto` is online where there is a key (WANDB_API_KEY, or `wandb login`), else offline: files in the run
    folder, which `raynn sync` uploads.
    """

    project: Annotated[str, Field(min_length=1, description="project that runs go to")] = "raynn"
    entity: Annotated[str | None, Field(description="user or team; null: the key's own")] = None
    tags: Annotated[tuple[str, ...], Field(description="tags of every run")] = ()
    mode: Annotated[
        Literal["auto", "online", "offline", "disabled"], Field(description="auto: online with a key, else offline")
    ] = "auto"
    log_model: Annotated[bool, Field(description="upload model/ as an artifact at the end")] = False
    wait_s: Annotated[
        float, Field(ge=0.0, description="seconds a command waits at its end for W&B while nothing arrives there")
    ] = 10.0


class MlflowSettings(Settings):
    """Runs are mirrored to an MLflow tracking server, a trial as a child of its search."""

    uri: Annotated[str, Field(min_length=1, description="of the tracking server, or sqlite:///FILE")]
    experiment: Annotated[str, Field(min_length=1, description="experiment that runs go to")] = "raynn"


class TrackingSettings(Settings):
    """The `tracking` section: where runs are mirrored to. metrics.jsonl is always written."""

    wandb: Annotated[WandbSettings | None, Field(description="Weights & Biases; null: not at all")] = None
    tensorboard: Annotated[bool, Field(description="event files in RUN/tensorboard")] = False
    mlflow: Annotated[MlflowSettings | None, Field(description="an MLflow server; null: not at all")] = None

    @property
    def wanted(self) -> bool:
        """Whether anything is mirrored."""
        wandb = self.wandb is not None and wandb_mode(self.wandb) != "disabled"
        return wandb or self.tensorboard or self.mlflow is not None

    @property
    def patience_s(self) -> float:
        """How long a command waits at its end while nothing gets through; files on this machine do get through."""
        wandb = self.wandb or WandbSettings()
        away = self.mlflow is not None or (self.wandb is not None and wandb_mode(wandb) == "online")
        return wandb.wait_s if away else max(wandb.wait_s, FILES_WAIT_S)


def wandb_mode(settings: WandbSettings) -> Mode:
    """The mode in force: WANDB_MODE says what `auto` is, and may forbid W&B altogether."""
    told = os.environ.get("WANDB_MODE", "")
    if "disabled" in (settings.mode, told):
        return "disabled"
    if settings.mode != "auto":
        return settings.mode
    if told in ("online", "offline"):
        return "online" if told == "online" else "offline"
    return "online" if has_key() else "offline"


def has_key() -> bool:
    """Whether there is a key for the W&B server: in the environment, or where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", SERVER)).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC", str(Path.home() / ".netrc"))).authenticators(host) is not None
    except (OSError, RuntimeError, netrc.NetrcParseError):
        return False


def check_tracking(settings: TrackingSettings) -> None:
    """Before anything is trained.

    Raises:
        JobError: a package that is asked for is missing, or W&B is to be online without a key.
    """
    asked = {"tensorboard": settings.tensorboard, "mlflow": settings.mlflow is not None}
    for package, wanted in asked.items():
        if wanted and find_spec(package) is None:
            raise JobError(
                f"tracking.{package} needs the package {package}, which is not installed: "
                f"pip install 'raynn[{package}]', or leave tracking.{package} out"
            )
    if settings.wandb is not None and wandb_mode(settings.wandb) == "online" and not has_key():
        raise JobError(
            "tracking.wandb.mode = 'online' needs a key: set WANDB_API_KEY in the environment or run `wandb login`, or "
            "set tracking.wandb.mode=offline and upload later with `raynn sync`"
        )


class Tracker:
    """Writes a run's records, one an epoch; on the first worker only.

    Args:
        folder: the run folder.
        records: epochs already trained, when resuming: the file starts with exactly these.
        file: the name of the file of records.
    """

    def __init__(self, folder: Path, records: Iterable[Mapping[str, Any]], file: str = "metrics.jsonl") -> None:
        self.path = folder / file
        self.path.write_text("".join(json.dumps(finite(dict(record))) + "\n" for record in records))

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds one epoch."""
        with self.path.open("a") as file:
            file.write(json.dumps(finite(dict(record))) + "\n")


class Mirroring:
    """While it is entered, a process of its own mirrors what is written into the folder of a run or a search; left, it
    sends what is there and ends, after `wait_s` without an answer at the latest.

    Args:
        folder: of a run or a search; it holds job.yaml.
        settings: the job's `tracking` section; where nothing is asked for there is no process.
        arguments: further ones of `raynn sync`.
    """

    def __init__(self, folder: Path, settings: TrackingSettings, arguments: Iterable[str] = ()) -> None:
        self.folder, self.settings, self.arguments = folder, settings, tuple(arguments)
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Mirroring:
        if not self.settings.wanted:
            return self
        house = str(Path(__file__).parents[1])  # the same code, however this process found it
        path = os.pathsep.join(filter(None, [house, os.environ.get("PYTHONPATH")]))
        # the key, if there is one, is in the environment already; training has the GPU
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "raynn", "sync", "--follow", *self.arguments, str(self.folder)]
        try:
            with (self.folder / LOG).open("wb") as log:
                self.process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
                )
        except OSError as error:  # no room for a file or a process: the run goes on without
            sys.stderr.write(f"nothing is mirrored: {error}; `raynn sync {self.folder}` does it later\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is None:
            return
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()  # the word that the run has ended
            # how long it takes while figures do arrive depends on how many there are
            while not self._ended(self.settings.patience_s + GRACE_S):
                pass
        finally:
            _end_group(self.process)
            if (self.folder / LOG).exists() and not (self.folder / LOG).stat().st_size:
                (self.folder / LOG).unlink()

    def _ended(self, seconds: float) -> bool:
        """Whether the process has ended, or has shown no sign of life for so long."""
        assert self.process is not None
        before = _touched(self.folder)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return _touched(self.folder) == before
        return True


def _touched(folder: Path) -> int:
    """When the mirroring process last gave a sign of life, ns."""
    lock = folder / LOCK
    return lock.stat().st_mtime_ns if lock.exists() else 0


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and what it has started; whoever is gone already is no matter."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def read_state(folder: Path) -> dict[str, Any]:
    """What has been sent of a run or a search: `mode`, `sent` and `runs` (numbers of runs), `url`, `problem`, ...;
    empty where W&B is not asked for.
    """
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text())
    except (OSError, ValueError):
        return {}
    return state


def told(folder: Path, settings: TrackingSettings) -> tuple[list[str], bool]:
    """What is to be said of mirrors at the end of a command, and whether `raynn sync` has something left to do."""
    lines, left = [], False
    if settings.mlflow is not None and (problem := _last_word(folder, "MLflow")):
        lines, left = [f"{problem}; all of it is kept"], True
    if settings.wandb is None or (mode := wandb_mode(settings.wandb)) == "disabled":
        return lines, left
    if mode == "offline":
        return lines, True
    state = read_state(folder)
    lines += [f"W&B: {state[key]}" for key in ("url", "view", "view_problem") if state.get(key)]
    runs, sent = state.get("runs"), state.get("sent", 0)
    if runs is None or sent < runs:
        what = "nothing was sent whole" if not sent else f"{runs - sent} of {runs} runs are not sent whole"
        reason = state.get("problem") or _last_word(folder, "W&B") or "the server did not answer in time"
        return [*lines, f"W&B: {what} ({reason}); all of it is kept"], True
    if reason := state.get("problem"):
        return [*lines, f"W&B: all runs are sent, but not that the search has ended ({reason})"], True
    return lines, left


def _last_word(folder: Path, name: str) -> str:
    """The last that the mirroring process said of a mirror; empty where that was nothing."""
    try:
        said = [line for line in (folder / LOG).read_text(errors="replace").splitlines() if line.startswith(name)]
    except OSError:
        return ""
    return said[-1] if said else ""
