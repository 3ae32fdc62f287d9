"""Room for a job's workers: what the cluster has, what its autoscaler could add, and waiting for that."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raynn import probe
from raynn.errors import ResourceError
from raynn.resources import ResourcesSettings

Resources = Mapping[str, float]
POLL_S = 1.0
LOOK_S = 15.0  # between looks at what the autoscaler says it cannot do


@dataclass(frozen=True)
class Room:
    """What a number of workers takes, each on one node."""

    workers: int
    cpus: float
    gpus: float
    trials: int = 1  # that the workers are of, at a time

    @classmethod
    def of(cls, resources: ResourcesSettings, available: Resources, trials: int = 1) -> Room:
        """For a job's workers, of so many trials at a time. `gpus_per_worker: auto` is one where there are enough."""
        gpus = resources.gpus_per_worker
        if gpus == "auto":
            gpus = 1.0 if available.get("GPU", 0) >= resources.workers else 0.0
        return cls(resources.workers * trials, float(resources.cpus_per_worker or 1), float(gpus), trials)

    @property
    def wish(self) -> str:
        """What asks for it, in the job file's words."""
        if self.trials == 1:
            return f"resources.workers = {self.workers} asks for {self}"
        return f"{self.trials} trials at a time with resources.workers = {self.workers // self.trials} ask for {self}"

    @property
    def bundle(self) -> dict[str, float]:
        """One worker's, in Ray's words."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU{'s' if self.gpus != 1 else ''}" if self.gpus else ""
        each = " each" if self.workers > 1 else ""
        return (
            f"{self.workers} worker{'s' if self.workers > 1 else ''} of {self.cpus:g} CPU"
            f"{'s' if self.cpus != 1 else ''}{gpus}{each}"
        )

    def on(self, node: Resources) -> int:
        """How many workers one node holds."""
        return int(min(node.get(key, 0.0) / amount for key, amount in self.bundle.items()) + 1e-9)


def most_workers(room: Room, nodes: Sequence[Resources], autoscaler: Mapping[str, Any] | None) -> int | None:
    """How many of the workers there could ever be; None where the autoscaler does not say what it can add.

    `nodes`: those that are up; the autoscaler's groups count from nothing, as those that are up are of them.
    """
    now = sum(room.on(node) for node in nodes)
    if autoscaler is None:
        return now
    groups = autoscaler["groups"]
    if groups is None or not all(group["resources"] for group in groups):
        return None
    left = float("inf") if autoscaler["most"] is None else int(autoscaler["most"])
    could = sum(room.on(node) for node in nodes if probe.HEAD in node)
    for group in sorted(groups, key=lambda group: -room.on(group["resources"])):
        count = min(left, group["most"])
        left -= count
        could += int(count) * room.on(group["resources"])
    return max(now, could)


def shortage(room: Room, nodes: Sequence[Resources], autoscaler: Mapping[str, Any] | None) -> str | None:
    """Why the workers can never be had, or None where they can, or may."""
    most = most_workers(room, nodes, autoscaler)
    if most is None or most >= room.workers:
        return None
    held = ", ".join(f"{sum(node.get(key, 0) for node in nodes):g} {key}s" for key in ("CPU", "GPU"))
    limit = "it has no autoscaler"
    if autoscaler is not None:
        added = ", ".join(
            f"{group['most']} {group['name']} of "
            + " and ".join(f"{group['resources'].get(key, 0):g} {key}s" for key in ("CPU", "GPU"))
            for group in autoscaler["groups"]
        )
        limit = f"its autoscaler adds at most {added or 'nothing'}"
        limit += f", {autoscaler['most']} nodes in all" if autoscaler["most"] is not None else ""
    return (
        f"{room.wish}, and the cluster can hold {most}: it has {held} on "
        f"{len(nodes)} node{'s' if len(nodes) != 1 else ''}, and {limit}; use fewer workers, or a larger cluster"
    )


def await_room(room: Room, wait_s: float, say: Callable[[str], None] = lambda text: None) -> None:
    """Returns once the cluster that this process works on could hold the workers if it were idle. Where it cannot and
    an autoscaler may add nodes, they are asked for and waited for.

    The nodes are asked for by a placement group, as Ray Train does: `request_resources` would take the place of what
    another job asked for.

    Raises:
        ResourceError: they can never be had, or did not come in `wait_s` seconds.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    if sum(room.on(node) for node in _nodes()) >= room.workers:
        return
    autoscaler = probe.autoscaler()
    if (reason := shortage(room, _nodes(), autoscaler)) is not None:
        raise ResourceError(reason)
    say(
        f"waiting for {room}: the cluster holds {sum(room.on(node) for node in _nodes())}, its autoscaler is asked for "
        f"the others (for at most {wait_s:g} s: resources.wait_s)"
    )
    group = placement_group([room.bundle] * room.workers)
    ready = group.ready()
    started, looked = time.monotonic(), time.monotonic()
    try:
        while not ray.wait([ready], timeout=POLL_S)[0]:
            now = time.monotonic()
            if now - started > wait_s:
                raise ResourceError(
                    f"resources.wait_s = {wait_s:g} s have passed, and the cluster holds "
                    f"{sum(room.on(node) for node in _nodes())} of {room}; `ray status` on its head says what its "
                    "autoscaler waits for; use fewer workers, or raise resources.wait_s"
                )
            if now - looked > LOOK_S:
                looked = now
                if _infeasible(room):
                    raise ResourceError(
                        f"{room.wish}, and the cluster's autoscaler says that "
                        "none of its node types can hold them; use fewer workers, or a larger node type"
                    )
    finally:
        remove_placement_group(group)


def _nodes() -> list[Resources]:
    return [node["Resources"] for node in probe.alive_nodes()]


def _infeasible(room: Room) -> bool:
    """Whether Ray's newer autoscaler has said that it can never hold one of these workers; the older says nothing."""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    reply = GetClusterStatusReply()
    reply.ParseFromString(GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status(timeout_s=10))
    for gang in reply.autoscaling_state.infeasible_gang_resource_requests:
        for request in gang.requests:
            asked = {key: value for key, value in request.resources_bundle.items() if key in ("CPU", "GPU")}
            if asked == room.bundle:
                return True
    return False
