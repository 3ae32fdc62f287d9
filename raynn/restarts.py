"""How a group of workers starts anew: soon after a fault, elsewhere when its node is to go, larger when there is room.

Ray Train restarts a group whose worker or node has died, from the newest checkpoint. By default it may look for a
minute at the cluster as it was before, and for ever at one that has become too small; here it does neither. A group
whose node is announced to go, or that could be larger, ends at a checkpoint by itself: nothing is trained twice.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

import ray
import ray.train
import torch
from ray._raylet import PlacementGroupID
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import PlacementGroup

from raynn.capacity import Room
from raynn.collectives import Workers
from raynn.probe import alive_nodes, listens
from raynn.resources import ResourcesSettings

# An elastic group that finds less room than Ray believed tries again after so long, with as many as there are then.
ELASTIC_START_TIMEOUT_S = 8.0
ANSWER_S = 2.0  # for the head to take a connection
ABORT_S = 5.0  # for the controller to end its workers
LOOK_EVERY_S = 5.0


def held(room: Room, going: bool = False) -> int:
    """Such workers that the nodes could hold, whoever is on them now; nodes that are to go count only if `going`."""
    return sum(_held_by_node(room, going).values())


def _held_by_node(room: Room, going: bool = False) -> dict[str, int]:
    nodes = alive_nodes()  # first, for Ray to be ready to answer the other question
    draining: Set[str] = set() if going else _draining()
    return {node["NodeID"]: room.on(node["Resources"]) for node in nodes if node["NodeID"] not in draining}


def _draining() -> Set[str]:
    """The ids of nodes that were announced to go."""
    return set(ray._private.state.state.get_draining_nodes())


@dataclass(frozen=True)
class Left:
    """A group has ended at a checkpoint, for another to go on from there."""

    workers: int  # that it had
    nodes: frozenset[str]  # that had room for workers and were to stay
    going: frozenset[str] = frozenset()  # of its nodes, those that were announced to go


def nodes_of(workers: Workers) -> frozenset[str]:
    """The ids of the nodes that a group's workers are on. All of them ask together."""
    mine = bytes.fromhex(ray.get_runtime_context().get_node_id())
    ids = workers.gathered(torch.tensor([list(mine)], dtype=torch.uint8, device=workers.device))
    return frozenset(bytes(row).hex() for row in ids.tolist())


def reason_to_leave(
    resources: ResourcesSettings, room: Room, workers: int, nodes: Set[str], before: Left | None
) -> Left | None:
    """Whether a group does better to start anew now.

    Args:
        resources: the job's.
        room: what a worker takes.
        workers: of the group.
        nodes: that they are on.
        before: why the group before this one left; what has led nowhere is not tried again.
    """
    by_node = _held_by_node(room)
    left = Left(workers, frozenset(node for node, count in by_node.items() if count), frozenset(nodes & _draining()))
    if left == before:
        return None
    num_held = sum(by_node.values())
    if left.going:
        return left if num_held >= resources.min_workers else None
    return left if min(num_held, resources.max_workers) > workers else None


@dataclass(frozen=True)
class Leaderless:
    """The controller of a group was killed, and its workers ended with it; the cluster is still there."""

    reason: str


def cluster_answers() -> bool:
    """Whether the head of the cluster can be reached."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    return listens(host, int(port), ANSWER_S)


def free_room(name: str | None) -> None:
    """Gives back what a group held whose controller was killed: Ray would at the command's end. `name` is the hex id of
    its placement group; without one all of this command's are given back. (Ray's own process for it asks the dashboard
    whether the controller lives, and so does nothing where there is none.)
    """
    job = ray.get_runtime_context().get_job_id()  # with which an id ends
    held = ray.util.placement_group_table()
    names = [other for other in held if other.endswith(job)] if name is None else [name]
    for other in names:
        if other in held and held[other]["state"] != "REMOVED":
            ray.util.remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(other))))


class Group(DataParallelTrainer):  # type: ignore[misc]
    """Ray's trainer without what raynn does not use and each start of a group would wait for: torch in the controller,
    which would load it with its own trainer's settings or with the workers' (2 s), a process that deals out data sets,
    of which there are none, as the workers take their own rows (3 to 5 s), and one that frees the workers' room should
    the controller be killed (`free_room`). And it can be interrupted at any time: Ray asks the controller to end, which
    hears nothing while it waits for nodes.
    """

    def __init__(self, work: Any, config: dict[str, Any], **more: Any) -> None:
        super().__init__(work, train_loop_config={"config": ray.put(config)}, **more)

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        unused = {"DatasetsCallback", "PlacementGroupCleanerCallback"}
        return [callback for callback in callbacks if type(callback).__name__ not in unused]

    def _register_sigint_handler(self, controller: Any) -> None:
        def end(*_: object) -> None:
            with suppress(RayActorError, GetTimeoutError):  # the former when it has ended
                ray.get(controller.abort.remote(), timeout=ABORT_S)
            ray.kill(controller)  # and with it, as it owns them, the workers
            sys.exit(0)

        signal.signal(signal.SIGINT, end)


@contextmanager
def timeouts(resources: ResourcesSettings) -> Iterator[None]:
    """Ray Train's timeouts, which it reads from the environment; what is set there already stays."""
    elastic = resources.min_workers < resources.max_workers
    ours = {
        # of a worker that does not answer at all, and of one that does not come where the others wait for it
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": resources.timeout_s,
        "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": resources.timeout_s,
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": ELASTIC_START_TIMEOUT_S if elastic else resources.wait_s + 60,
    }
    added = [name for name in ours if name not in os.environ]
    os.environ.update({name: str(ours[name]) for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


class Patience:
    """While it is entered, by the main thread, looks whether there is the room; without any for
    `wait_s` it interrupts the main thread, as Ctrl-C would, and `found` is the room there was.
    """

    def __init__(self, room: Room, wait_s: float) -> None:
        self.room, self.wait_s = room, wait_s
        self.found: int | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        enough_at = time.monotonic()
        while not self._done.wait(min(LOOK_EVERY_S, max(self.wait_s / 4, 0.1))):
            try:
                found = held(self.room, going=True)
            except Exception:  # the head does not answer: Ray ends this process when it stays so
                continue
            if found >= self.room.workers:
                enough_at = time.monotonic()
            elif time.monotonic() - enough_at > self.wait_s:
                self.found = found
                _thread.interrupt_main()
                return

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
