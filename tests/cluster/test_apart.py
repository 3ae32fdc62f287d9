"""One head and two workers that share a network and little else: a folder that each has of its own is refused."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from machines import NETWORK, Machines, machines, needs_root

ROOT = Path(__file__).parents[2]
URL = f"http://{NETWORK}.1:8265"
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900), needs_root]
JOB = "name: apart\ndata: {train: digits, target: label}\nnetwork: {kind: feedforward}\nreport: false\n"


@pytest.fixture(scope="module")
def three() -> Iterator[Machines]:
    folder = Path(tempfile.mkdtemp(prefix="raynn-", dir="/tmp"))  # short: sockets lie in it
    try:
        with machines(folder, 3) as ours:
            ours.start(1, "--head", "--num-cpus=1", f"--dashboard-host={NETWORK}.1")
            for number in (2, 3):
                ours.start(number, "--num-cpus=1", f"--address={NETWORK}.1:6379")
            yield ours
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def clone(three: Machines) -> Path:
    clone = three.folder / "clone"
    if not clone.exists():
        shutil.copytree(ROOT / "raynn", clone / "raynn", ignore=shutil.ignore_patterns("__pycache__"))
        (clone / "job.yaml").write_text(JOB)
    return clone


def test_a_folder_of_each_node_s_own_is_refused_before_anything_is_sent(three: Machines, clone: Path) -> None:
    overrides = (f"storage={three.local}/runs", f"data.train={three.local}/x.csv", "resources.workers=2")
    done = three.raynn("submit", "job.yaml", "--address", URL, *overrides, cwd=clone)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = {line.split()[1]: line for line in done.stderr.splitlines() if line.startswith(("ok", "wrong", "note"))}
    assert lines["nodes"].startswith("ok")
    assert lines["storage"].startswith("wrong")
    assert f"storage = '{three.local}/runs' is not one folder for all nodes: what is written there on" in done.stderr
    assert "is not seen on nodes 10.78.0.2" in done.stderr
    assert "10.78.0.3" in lines["storage"]
    assert f"{three.local}/x.csv: no such file or folder" in lines["data"]
    listed = three.raynn("check", "--address", URL, "--json", cwd=clone)
    assert [node["address"] for node in json.loads(listed.stdout)["nodes"]] == [f"{NETWORK}.{i}" for i in (1, 2, 3)]


@pytest.mark.parametrize("verb", ["train", "tune"])
def test_so_it_is_by_whatever_way_a_training_starts(three: Machines, clone: Path, verb: str) -> None:
    how = (f"storage={three.local}/runs", "resources.workers=2", "search={space: regularization, trials: 1}")
    done = three.raynn(verb, "job.yaml", *how, cwd=clone, on=1, RAY_ADDRESS=f"{NETWORK}.1:6379")
    assert done.returncode == 2, done.stderr
    assert "is not one folder for all nodes" in done.stderr
    assert "resources.workers=1 resources.driver=local" in done.stderr
    assert "run folder" not in done.stderr


def test_a_shared_folder_trains_over_the_bridge(three: Machines, clone: Path) -> None:
    how = (f"storage={three.folder}/runs", "resources.workers=2", "optimization.max_epochs=1", "tracking={}")
    done = three.raynn("submit", "job.yaml", "--address", URL, "--json", *how, cwd=clone)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["status"] == "succeeded"
    assert {check["state"] for check in answer["checks"]} == {"ok"}
    result = json.loads((three.folder / "runs/apart/result.json").read_text())
    assert (result["status"], result["workers"]) == ("finished", 2)
