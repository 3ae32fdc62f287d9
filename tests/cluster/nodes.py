"""A Ray cluster of several nodes on this machine, commands that train on it, and what may go wrong with either."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from processes import HEARS_INTERRUPTIONS
from ray.cluster_utils import Cluster

from raynn.cluster import descendants

HEALTH = {  # as the files in clusters/ set it
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
MEMORY = 150_000_000  # bytes of each node's object store; Ray's least is 75 MiB
LOSSES = ("epoch", "step", "train/loss", "val/loss", "learning_rate")


@contextmanager
def nodes(count: int, **head: Any) -> Iterator[Cluster]:
    """A head without CPUs, on which the command runs, and `count` nodes of one CPU each."""
    folder = Path(tempfile.mkdtemp(prefix="raynn-"))  # a socket's path is short, and so pytest's folders are no place
    (folder / "ray").mkdir()
    ours = {"RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0", **HEALTH}
    kept = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    options = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": MEMORY, **head}
    cluster = Cluster(initialize_head=True, connect=False, head_node_args=options)
    try:
        for _ in range(count):
            add_node(cluster)
        yield cluster
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def add_node(cluster: Cluster, **options: Any) -> Any:
    """One more node of one CPU."""
    return cluster.add_node(num_cpus=1, object_store_memory=MEMORY, **options)


class Training:
    """`raynn train` as a process."""

    begun: ClassVar[list[Training]] = []

    def __init__(
        self,
        job: dict[str, Any],
        folder: Path,
        address: str | None,
        *overrides: str,
        at: Sequence[str] = (),
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`at` is a command that runs others elsewhere, `more` of the environment."""
        folder.mkdir(parents=True, exist_ok=True)
        job_file = folder / "job.yaml"
        job_file.write_text(json.dumps(job | {"storage": str(folder)}))
        self.run = folder / job["name"]
        self.metrics = self.run / "metrics.jsonl"
        environment = of_no_cluster()
        if address:
            environment |= {"RAY_ADDRESS": address}
        self.log = folder.with_name(f"{folder.name}.log")  # not in the folder, which may be full
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *HEARS_INTERRUPTIONS,
                    *at,
                    sys.executable,
                    "-m",
                    "raynn",
                    "train",
                    str(job_file),
                    "--quiet",
                    *overrides,
                ],
                env=environment | {"OMP_NUM_THREADS": "1"} | more,
                stdout=log,
                stderr=log,
            )

        self.begun.append(self)

    @classmethod
    def end_all(cls) -> None:
        """Whatever still trains."""
        for training in cls.begun:
            training.process.kill()
            training.process.wait()
        cls.begun.clear()

    def epochs(self) -> int:
        """So far."""
        return len(self.metrics.read_text().splitlines()) if self.metrics.exists() else 0

    def wait_for(self, epochs: int, timeout_s: float = 120.0) -> float:
        """Until so many epochs are trained; when that was, as time.monotonic does."""
        wait_until(lambda: self.epochs() >= epochs or self.process.poll() is not None, timeout_s)
        assert self.epochs() >= epochs, self.log.read_text()
        return time.monotonic()

    def ended(self, timeout_s: float = 150.0) -> int:
        """Its exit status."""
        return self.process.wait(timeout_s)

    def result(self) -> dict[str, Any]:
        """result.json."""
        return dict(json.loads((self.run / "result.json").read_text()))

    def losses(self) -> list[list[float]]:
        """Of each epoch."""
        return [[json.loads(line)[key] for key in LOSSES] for line in self.metrics.read_text().splitlines()]


def of_no_cluster() -> dict[str, str]:
    """This environment without what Ray keeps there, but for what lets a process into a cluster begun from it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_") or "AUTH" in name}


def wait_until(holds: Callable[[], bool], timeout_s: float) -> None:
    """Until something holds."""
    until = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(0.02)


def train_workers() -> list[int]:
    """Process ids of all Ray Train workers below this process, the oldest first."""
    return [pid for pid in descendants(os.getpid()) if "TrainWorker" in command_line(pid)]


def train_controllers() -> list[int]:
    """Of those that direct them."""
    return [pid for pid in descendants(os.getpid()) if "TrainController" in command_line(pid)]


def command_line(pid: int) -> str:
    """How a process is called; empty when it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def node_of(cluster: Cluster, pid: int) -> Any:
    """The node below whose raylet a process runs."""
    for node in cluster.worker_nodes:
        (raylet,) = node.all_processes["raylet"]
        if pid in descendants(raylet.process.pid):
            return node
    raise LookupError(pid)


def drain(cluster: Cluster, node: Any, seconds: int) -> None:
    """Tells a node that it will be taken away, as a cloud tells a spot machine."""
    command = [str(Path(sys.executable).parent / "ray"), "drain-node", "--address", cluster.address]
    command += ["--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken away"]
    environment = of_no_cluster()
    subprocess.run(
        [*command, "--deadline-remaining-seconds", str(seconds)], check=True, env=environment, capture_output=True
    )
