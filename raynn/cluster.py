"""The Ray cluster a command works on: the one that RAY_ADDRESS names, or one of its own on this machine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raynn.errors import JobError, ResourceError
from raynn.head import Head
from raynn.jobfile import Document
from raynn.resources import ResourcesSettings

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
        ResourceError: RAY_ADDRESS names a cluster that does not answer or is of other versions, or Ray does not start.
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
    head = None if address else _head(num_cpus, object_store_gib)
    on_termination = signal.getsignal(signal.SIGTERM)
    try:
        try:
            ray.init(address if head is None else _address_of(head), log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError) as error:
            raise _not_there(address, error) from None
        if callable(on_termination) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_termination)  # Ray has put its own there
        yield
    finally:
        ray.shutdown()
        if head is not None:
            head.end()


# A Ray that was begun before it is needed, until `cluster` takes it
_early: list[Head] = []


@contextmanager
def begun(path: str, overrides: Sequence[str], verb: str) -> Iterator[None]:
    """While a command loads torch, to read its job, a Ray of its own starts beside it where the job file says that it
    will be needed. What is wrong with the file is said by whoever reads it.
    """
    if not os.environ.get("RAY_ADDRESS") and (asked := _asked(path, overrides, verb)) is not None:
        _early.append(Head(_options(*asked), ENVIRONMENT))
    try:
        yield
    finally:
        while _early:
            _early.pop().let_go()


def _asked(path: str, overrides: Sequence[str], verb: str) -> tuple[int, float | None] | None:
    """CPUs and size of the object store that a job file asks of a Ray of its own; None where it needs none."""
    try:
        document = Document.read(Path(path))
        for number, override in enumerate(overrides):
            document.override(override, number, lambda key: tuple(key.split(".")))
        tree: Any = document.root.plain()
        resources = ResourcesSettings.model_validate(tree.get("resources") or {})
        searching = {"tune": "search", "study": "study"}.get(verb)
        if searching is None:
            return (resources.logical_cpus, resources.object_store_gib) if resources.wants_ray(False) else None
        at_least = (tree.get(searching) or {}).get("concurrent_trials", "auto")
        return resources.logical_cpus * (at_least if isinstance(at_least, int) else 1), None
    except (JobError, ValueError, AttributeError, TypeError):
        return None


def _options(num_cpus: int, object_store_gib: float | None) -> dict[str, Any]:
    """Of a Ray that is started here."""
    options = {"num_cpus": max(os.cpu_count() or 1, num_cpus)}
    return options | ({} if object_store_gib is None else {"object_store_memory": int(object_store_gib * 2**30)})


def _head(num_cpus: int, object_store_gib: float | None) -> Head:
    """A Ray of that size: the one that was begun early, or another."""
    options = _options(num_cpus, object_store_gib)
    if _early and _early[-1].options == options:
        return _early.pop()
    return Head(options, ENVIRONMENT)


def _address_of(head: Head) -> str:
    """Once it is there, and this process knows that it asks for a token, as every Ray does that is started so."""
    from ray._private.authentication.authentication_token_setup import enable_token_auth_by_default

    address = head.address()
    logging.getLogger(enable_token_auth_by_default.__module__).setLevel("ERROR")  # it warns that it does what it is to
    enable_token_auth_by_default()
    return address


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


def _not_there(address: str | None, error: Exception) -> ResourceError:
    said = " ".join(str(error).split())
    if address is None:
        return ResourceError(f"Ray does not start on this machine: {said}")
    if isinstance(error, ConnectionError):
        return _no_answer(address, error)
    return ResourceError(f"the cluster that RAY_ADDRESS = {address!r} names cannot be used from here: {said}")


def _no_answer(address: str, error: Exception) -> ResourceError:
    return ResourceError(
        f"RAY_ADDRESS = {address!r} names a cluster that does not answer ({error}); start it, or unset RAY_ADDRESS"
    )
