"""What runs in Ray Train's controller, the process that starts a group of workers and watches it.

No torch is loaded there: it would take 2 s of the time until the workers' first step.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import ray.train
from ray.exceptions import GetTimeoutError
from ray.train.backend import Backend, BackendConfig

from raynn.probe import alive_nodes, listens

PROCESS_GROUP_END_S = 2.0  # for workers to leave it: one that hangs never does
GIVEN_UP_S = 60.0  # a node that does not answer is given up long before
CONNECTION_TIMEOUT_S = 1.0
LOOKS_AGAIN = 20  # one a second: Ray's own look at the cluster comes every 20 s


@dataclass
class ProcessGroup(BackendConfig):  # type: ignore[misc]
    """torch's process group of the workers: NCCL between GPUs, gloo between CPUs. As Ray's TorchConfig, which loads
    torch wherever it is.
    """

    on_gpus: bool
    timeout_s: float  # of each of its operations

    @property
    def backend_cls(self) -> type[Backend]:
        """What makes and ends it."""
        return Meeting

    @property
    def train_func_context(self) -> Any:
        """What a worker trains in: torch takes the worker's GPU for its own."""
        from ray.train.torch.config import TorchConfigContextManager

        return TorchConfigContextManager

    def to_dict(self) -> dict[str, Any]:
        """For Ray's own records."""
        return {"backend": _backend(self.on_gpus), "timeout_s": self.timeout_s}


class Meeting(Backend):  # type: ignore[misc]
    """Workers meet at a port of the first one, and part before they end."""

    share_cuda_visible_devices = True  # a worker sees its node's GPUs, and takes its own by number

    def on_start(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        """All workers are there."""
        address, port = worker_group.execute_single(0, _address_and_port)
        asked_at = time.time()
        ahead_s = worker_group.execute_single(0, time.time) - (asked_at + time.time()) / 2
        count = len(worker_group)
        meet = (_backend(backend_config.on_gpus), f"tcp://{address}:{port}", count, backend_config.timeout_s, ahead_s)
        ray.get([worker_group.execute_single_async(rank, _join, rank, *meet) for rank in range(count)])

    def on_shutdown(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        """Some may have died, or hang."""
        with suppress(GetTimeoutError):
            ray.get(worker_group.execute_async(_leave), timeout=PROCESS_GROUP_END_S)


def _backend(on_gpus: bool) -> str:
    return "nccl" if on_gpus else "gloo"


def _address_and_port() -> tuple[str, int]:
    """Of this node, and a port of it that is free."""
    address = ray.util.get_node_ip_address()
    version_6 = ":" in address
    with socket.socket(socket.AF_INET6 if version_6 else socket.AF_INET) as probe:
        probe.bind(("", 0))
        return f"[{address}]" if version_6 else address, int(probe.getsockname()[1])


# In a worker: how far the first one's clock is ahead of the command's, s. The controller is where the command is.
clock_ahead_s = 0.0


def _join(rank: int, backend: str, place: str, count: int, timeout_s: float, ahead_s: float) -> None:
    """In a worker."""
    global clock_ahead_s
    clock_ahead_s = ahead_s
    import torch.distributed as dist

    dist.init_process_group(backend, place, timedelta(seconds=timeout_s), count, rank)


def _leave() -> None:
    """In a worker."""
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class FreshLook(ray.train.UserCallback):  # type: ignore[misc]
    """Has Ray count the cluster's room anew once a worker has failed: it would count on a dead node for up to 20 s."""

    def __init__(self, elastic: bool) -> None:
        self.elastic = elastic

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """In Ray Train's controller, at each failure. Where a node does not answer, an elastic group waits until the
        cluster has given it up: before, it would be told to be as large as it was.
        """
        with suppress(Exception):
            until = time.monotonic() + GIVEN_UP_S
            while self.elastic and time.monotonic() < until and not all(map(_answers, alive_nodes())):
                time.sleep(0.2)
        look_anew()
        threading.Thread(target=_look_again, daemon=True).start()  # a node that was killed slowly


def _answers(node: dict[str, Any]) -> bool:
    return listens(node["NodeManagerAddress"], node["NodeManagerPort"], CONNECTION_TIMEOUT_S)


def begin_view() -> None:
    """Has Ray begin its view of the cluster's room, a process, beside the one that would begin it and wait for it."""
    with suppress(Exception):  # of a later Ray: then it takes longer
        from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator

        default_autoscaling_coordinator.get_or_create_autoscaling_coordinator()


def look_anew() -> None:
    """Has Ray Train's view of the cluster's room brought up to date, which it does by itself every 20 s."""
    with suppress(Exception):  # not there yet, or of a later Ray: then it takes longer
        coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
        ray.get(coordinator.get_reserved_resources.remote("raynn", recompute=True), timeout=5)


def _look_again() -> None:
    for _ in range(LOOKS_AGAIN):
        time.sleep(1.0)
        look_anew()
