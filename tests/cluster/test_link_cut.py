"""A node that trains can no longer be reached: it is given up, and a spare takes its place."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from machines import Machines, machines, needs_root, run
from nodes import command_line, wait_until
from test_elastic import JOB

HEALTH = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}


def that_train(ours: Machines) -> set[int]:
    """Machines with a worker that trains."""
    found = set()
    for number in range(2, ours.count + 1):
        pids = subprocess.run(
            ["ip", "netns", "pids", f"raynn{number}"], capture_output=True, text=True, check=True
        ).stdout.split()
        if any("TrainWorker" in command_line(int(pid)) for pid in pids):
            found.add(number)
    return found


def losses(metrics: Path) -> list[float]:
    return [json.loads(line)["train/loss"] for line in metrics.read_text().splitlines()]


def train(ours: Machines, storage: Path, cut: bool) -> list[float]:
    """The losses of a training by two machines, one of which is cut off after some epochs."""
    storage.mkdir()
    job: dict[str, Any] = JOB | {"storage": str(storage)}
    (storage / "job.yaml").write_text(json.dumps(job))
    metrics = storage / job["name"] / "metrics.jsonl"
    address = {"RAY_ADDRESS": "10.78.0.1:6379", "GLOO_SOCKET_IFNAME": "eth0"}
    command = ours.within(1, sys.executable, "-m", "raynn", "train", str(storage / "job.yaml"), "--quiet")
    with (storage / "log").open("wb") as log:
        process = subprocess.Popen(command, env=ours.environment | address, stdout=log, stderr=log)
    try:
        if cut:
            wait_until(lambda: metrics.exists() and len(losses(metrics)) >= 3, 200)
            before, at_work = len(losses(metrics)), that_train(ours)
            run("ip", "link", "set", f"raynnv{max(at_work)}", "down")
            began = time.monotonic()
            # one epoch may have ended just then; the next needs the spare
            wait_until(lambda: len(losses(metrics)) > before + 1 or process.poll() is not None, 300)
            (storage / "seconds").write_text(f"{time.monotonic() - began:.1f}")  # for who measures
        assert process.wait(300) == 0, (storage / "log").read_text()
    finally:
        process.kill()
        process.wait()
    return losses(metrics)


@needs_root
@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_link_cut(tmp_path: Path) -> None:
    with machines(tmp_path, 4) as ours:
        ours.start(1, "--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false", more=HEALTH)
        for number in (2, 3, 4):
            ours.start(number, "--address=10.78.0.1:6379", "--num-cpus=1")
        struck = train(ours, tmp_path / "struck", cut=True)
        straight = train(ours, tmp_path / "straight", cut=False)
    assert struck == straight
