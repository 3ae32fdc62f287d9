"""A job on a cluster of no CPUs whose autoscaler adds nodes: it asks, waits, and trains; or is told that it never can.

Ray's own provider of pretended nodes, in a network namespace, as it wants port 6379.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from machines import NETWORK, Machines, machines, needs_root
from nodes import Training, train_workers, wait_until
from test_apart import JOB, ROOT
from test_elastic import with_resources

URL = f"http://{NETWORK}.1:8265"
HEAD_ID = f"{'f' * 51}00000"
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900), needs_root]
LISTS = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
LISTS += (
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
)


@contextmanager
def autoscaled(fewest: int, most: int) -> Iterator[Machines]:
    """A head of no CPUs, and so many nodes of one; clone/job.yaml and cluster.yaml are in its folder."""
    folder = Path(tempfile.mkdtemp(prefix="raynn-", dir="/tmp"))
    write_config(folder, fewest, most)
    more = {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    more |= {"RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID}
    more["PYTHONPATH"] = str(folder / "clone")
    try:
        with machines(folder, 1) as ours:
            shutil.copytree(ROOT / "raynn", folder / "clone/raynn", ignore=shutil.ignore_patterns("__pycache__"))
            (folder / "clone/job.yaml").write_text(JOB)
            start = ("--head", "--num-cpus=0", "--port=6379", f"--dashboard-host={NETWORK}.1")
            ours.start(1, *start, f"--autoscaling-config={folder}/cluster.yaml", more=more)
            yield ours
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_config(folder: Path, fewest: int, most: int) -> None:
    """What the autoscaler may do, which it reads again and again."""
    module = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    small = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": fewest, "max_workers": most}
    config = {
        "cluster_name": "growing",
        "max_workers": most,
        "idle_timeout_minutes": 1,
        "upscaling_speed": 1.0,
        "provider": {"type": "external", "module": module, "launch_multiple": True, "head_node_id": HEAD_ID},
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "small": small,
        },
    } | {name: [] for name in LISTS}
    partial = folder / "cluster.yaml.partial"
    partial.write_text(json.dumps(config))
    partial.replace(folder / "cluster.yaml")


@pytest.fixture(scope="module")
def growing() -> Iterator[Machines]:
    with autoscaled(0, 2) as ours:
        yield ours


def test_more_than_the_autoscaler_can_add_is_refused(growing: Machines) -> None:
    how = (f"storage={growing.folder}/runs", "resources.workers=3", "tracking={}")
    done = growing.raynn("submit", "job.yaml", "--address", URL, *how, cwd=growing.folder / "clone")
    assert done.returncode == 2, done.stderr
    assert (
        "resources.workers = 3 asks for 3 workers of 1 CPU each, and the cluster can hold 2: it has 0 CPUs, 0 GPUs on "
        "1 node, and its autoscaler adds at most 2 small of 1 CPUs and 0 GPUs, 2 nodes in all; use fewer workers"
    ) in done.stderr


def test_from_none_to_two_nodes(growing: Machines) -> None:
    clone = growing.folder / "clone"
    how = (f"storage={growing.folder}/runs", "resources.workers=2", "optimization.max_epochs=1", "tracking={}")
    looked = growing.raynn("check", "job.yaml", "--address", URL, *how, cwd=clone)
    assert "2 workers of 1 CPU each: the cluster holds 0 such, its autoscaler adds the others" in looked.stdout
    # on the head, not submitted: the pretended nodes share its folders, and end the job's own when they go
    done = growing.raynn("train", "job.yaml", *how, cwd=clone, on=1, RAY_ADDRESS=f"{NETWORK}.1:6379")
    assert done.returncode == 0, done.stdout + done.stderr
    waits = [line for line in done.stderr.splitlines() if line.startswith("waiting for")]
    assert waits == [
        "waiting for 2 workers of 1 CPU each: the cluster holds 0, its autoscaler is asked for the others (for at most "
        "900 s: resources.wait_s)"
    ]
    result = json.loads((growing.folder / "runs/apart/result.json").read_text())
    assert (result["status"], result["workers"]) == ("finished", 2)


def test_nodes_that_do_not_come_in_time(growing: Machines) -> None:
    how = (f"storage={growing.folder}/runs", "resources.workers=2", "resources.cpus_per_worker=1", "resources.wait_s=0")
    clone = growing.folder / "clone"
    wait_until_idle(growing)
    done = growing.raynn("train", "job.yaml", *how, cwd=clone, on=1, RAY_ADDRESS=f"{NETWORK}.1:6379")
    assert done.returncode == 2, done.stderr
    assert "resources.wait_s = 0 s have passed, and the cluster holds 0 of 2 workers of 1 CPU each" in done.stderr


def wait_until_idle(growing: Machines, timeout_s: float = 240.0) -> None:
    """Until the autoscaler has taken its nodes away again."""
    until = time.monotonic() + timeout_s
    while True:
        looked = growing.raynn("check", "--address", URL, "--json", cwd=growing.folder / "clone")
        if len(json.loads(looked.stdout)["nodes"]) == 1:
            return
        assert time.monotonic() < until, looked.stdout
        time.sleep(5)


def test_an_elastic_job_trains_while_nodes_come_and_go(tmp_path: Path) -> None:
    """One node, three, one again, and an epoch after another throughout; the losses are those of one worker here."""
    straight = Training(with_resources(workers=1), tmp_path / "straight", None)
    with autoscaled(1, 3) as ours:
        how: dict[str, Any] = {
            "at": ours.within(1),
            "more": ours.environment | {"PYTHONPATH": str(ours.folder / "clone")},
        }
        job = with_resources(workers={"min": 1, "max": 3}, max_failures=10)
        training = Training(job, ours.folder / "runs", f"{NETWORK}.1:6379", **how)
        seen = []
        for workers in (1, 3):
            wait_until(lambda n=workers: len(train_workers()) == n or training.process.poll() is not None, 300)
            seen.append(training.epochs())
            training.wait_for(training.epochs() + 2)
        write_config(ours.folder, 1, 1)
        wait_until(lambda: len(train_workers()) == 1 or training.process.poll() is not None, 300)
        seen.append(training.epochs())
        assert training.ended(300) == 0, training.log.read_text()
        assert sorted(set(seen)) == seen
        assert training.result()["workers"] == 1
        losses = training.losses()
    assert straight.ended(300) == 0
    for mine, theirs in zip(losses, straight.losses(), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
