"""The Ray cluster a command works on: the one that RAY_ADDRESS names, or one of its own on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raynn.errors import ResourceError

# Set before Ray is imported; Ray hands them on to its workers. Measured with Ray 2.60: a worker's report blocks for the
# health check interval, by default 2 s.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # raynn asks for nodes that are to go at its checkpoints
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_prestart_worker_first_driver": "0",  # processes of which none is used, as those of actors have an environment
}
ANSWER_TIMEOUT_S = 5.0


@contextmanager
def cluster(num_cpus: int, object_store_gib: float | None = None) -> Iterator[None]:
    """Ray, ready for `num_cpus` workers of one CPU; shut down afterwards if it was started here, then with an object
    store of that size, by default Ray's own choice.

    There are logical CPUs for all workers even where cores are fewer: the same job runs on a small machine, slower.

    Raises:
        ResourceError: RAY_ADDRESS names a cluster that does not answer.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS")
    if address and address.startswith(("http://", "https://")):
        raise ResourceError(
            f"RAY_ADDRESS = {address!r} is a dashboard's, where jobs are submitted: raynn submit JOB.yaml --address "
            f"{address}; or unset RAY_ADDRESS to train here"
        )
    if address:
        _require_answer(address)
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if not address:
        cpus = max(os.cpu_count() or 1, num_cpus)
        options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        if object_store_gib is not None:
            options["object_store_memory"] = int(object_store_gib * 2**30)
    on_termination = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except ConnectionError as error:
        raise _no_answer(str(address), error) from None
    if callable(on_termination) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_termination)  # Ray has put its own there
    guard = _guard() if not address else None
    try:
        yield
    finally:
        ray.shutdown()
        if guard is not None:
            guard.communicate(b"done\n")


def _guard() -> subprocess.Popen[bytes] | None:
    """A shell that waits for this process to end. Should it be killed, the shell ends what Ray leaves behind then: its
    agents look whether their parent is there, and where process 1 buries no one, as in many containers, it seems to be.
    """
    if not Path("/proc/self/stat").exists():
        return None
    ours = [str(pid) for pid in descendants(os.getpid())]
    script = (
        'read word; [ "$word" = done ] && exit; sleep 2; '
        'for pid; do grep -aq ray "/proc/$pid/cmdline" && kill -9 "$pid"; done'
    )
    return subprocess.Popen(
        ["sh", "-c", script, "raynn-guard", *ours],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def descendants(pid: int) -> list[int]:
    """All processes below `pid`, from /proc."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        children.setdefault(int(fields[1]), []).append(int(status.parent.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return sorted(found)


def _require_answer(address: str) -> None:
    """Tries a connection first: Ray gives up only after minutes, and its messages name no variable."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():  # `auto`, `local`
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_TIMEOUT_S).close()
    except OSError as error:
        raise _no_answer(address, error) from None


def _no_answer(address: str, error: Exception) -> ResourceError:
    return ResourceError(
        f"RAY_ADDRESS = {address!r} names a cluster that does not answer ({error}); start it, or unset RAY_ADDRESS"
    )
