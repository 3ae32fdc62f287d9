"""A search on several nodes that loses one: its trials go on elsewhere from where they were; the end is the same."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nodes import command_line, wait_until
from test_tune_faults import JOB, summary

from raynn.cluster import descendants
from raynn.job import Job
from raynn.ledger import Ledger

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]


class Nodes:
    """Several Ray nodes on this machine, as clusters/local.sh starts them; each is one process with all of its own
    below it.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.port = 26379 + os.getpid() % 1000 * 20
        self.script = str(ROOT / "clusters/local.sh")
        plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = {"RAYNN_LOCAL": str(folder), "RAYNN_LOCAL_PORT": str(self.port), "PATH": path, "PYTHONPATH": str(ROOT)}
        self.environment = plain | own
        up = [self.script, "up", str(count), "1"]
        said = subprocess.run(up, env=self.environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        self.user = self.environment | dict(pair.split("=") for pair in re.findall(r"\w+=\S+", said.splitlines()[0]))
        self.searches: list[subprocess.Popen[str]] = []
        self.pids = [int(line) for line in (folder / "pids").read_text().split()]

    def down(self) -> None:
        for search in self.searches:
            search.kill()
            search.wait()
        subprocess.run([self.script, "down"], env=self.environment, check=True)

    def that_run(self, what: str) -> list[int]:
        """The nodes, but the first, on which there is a process called so."""
        return [pid for pid in self.pids[1:] if any(what in command_line(below) for below in descendants(pid))]

    def lose(self, pid: int) -> None:
        """All processes of a node at once, without a word, as when a machine loses its power."""
        below = descendants(pid)
        for each in (pid, *below):
            try:
                os.kill(each, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def left(self) -> str:
        """What is still held once a search has ended: placement groups, CPUs, processes of trials and workers."""
        script = """
import ray, time
ray.init(log_to_driver=False, logging_level="ERROR")
for _ in range(100):
    groups = [g["name"] for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"]
    held = ray.cluster_resources().get("CPU", 0) - ray.available_resources().get("CPU", 0)
    if not groups and not held:
        break
    time.sleep(0.1)
print(groups, held)
"""
        done = subprocess.run([sys.executable, "-c", script], env=self.user, stdout=subprocess.PIPE, text=True)
        lines = [command_line(below) for pid in self.pids for below in descendants(pid)]
        actors = [line for line in lines if re.search("Trainable|Gate|TrainWorker|TrainController", line)]
        answer = done.stdout.strip().rpartition("\n")[2]  # Ray may tell of a node that is gone before it
        return f"{answer} {actors}"


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """Three of one CPU; a short path, for sockets lie in it, and the name of one holds at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="raynn-", dir="/tmp"))
    running = Nodes(folder, 3)
    yield running
    running.down()
    shutil.rmtree(folder, ignore_errors=True)


def started(nodes: Nodes, folder: Path, job: dict[str, Any]) -> tuple[subprocess.Popen[str], Path]:
    """`raynn tune` in a process of its own, and its journal."""
    folder.mkdir()
    job_file = folder / "job.yaml"
    job_file.write_text(Job.from_dict(job | {"storage": str(folder)}).to_yaml())
    command = [sys.executable, "-m", "raynn", "tune", str(job_file), "--quiet"]
    process = subprocess.Popen(command, env=nodes.user, cwd=ROOT, stdout=subprocess.DEVNULL, text=True)
    nodes.searches.append(process)
    return process, folder / "digits" / "search.jsonl"


def epochs_told(journal: Path) -> int:
    """Over all trials, so far."""
    return journal.read_text().count('"event": "epoch"') if journal.exists() else 0


def lose_a_node(nodes: Nodes, process: subprocess.Popen[str], journal: Path, epochs: int, *what: str) -> None:
    """One that runs what is called so, the first of these that one does, once so many epochs are told."""
    while process.poll() is None and epochs_told(journal) < epochs:
        time.sleep(0.02)
    assert process.poll() is None, "the search ended before a node could be lost"
    running: list[int] = []

    def found() -> bool:  # between two calls a process may be called otherwise
        running.extend(node for name in what for node in nodes.that_run(name))
        return bool(running)

    wait_until(found, 10)
    nodes.lose(running[0])


def test_trials_of_a_lost_node_go_on_elsewhere(nodes: Nodes, tmp_path: Path) -> None:
    """Three trials at a time on three nodes, then on two. None fails, none is forgotten, no epoch is told twice."""
    search = JOB["search"] | {"algorithm": "random", "scheduler": "none", "concurrent_trials": 3, "trials": 6}
    search["max_failed_trials"] = 0
    job = JOB | {"search": search, "early_stopping": {"rule": "none"}}
    job["optimization"] = JOB["optimization"] | {"max_epochs": 15}
    process, journal = started(nodes, tmp_path / "undisturbed", job)
    assert process.wait(600) == 0
    undisturbed = Ledger(journal)
    process, journal = started(nodes, tmp_path / "disturbed", job)
    lose_a_node(nodes, process, journal, 12, "Trainable")
    assert process.wait(600) == 0
    assert summary(Ledger(journal)) == summary(undisturbed)
    assert nodes.left() == "[] 0.0 []"


def test_a_group_of_workers_that_loses_a_node_goes_on(nodes: Nodes, tmp_path: Path) -> None:
    """A trial of two workers on three nodes of one CPU: the node is lost on which its gate is or, where that is the
    first, one of its workers. The trial does not count as failed.
    """
    search = JOB["search"] | {"algorithm": "random", "scheduler": "none", "concurrent_trials": 1, "trials": 1}
    search["max_failed_trials"] = 0
    job = JOB | {"search": search, "early_stopping": {"rule": "none"}, "resources": {"workers": 2}}
    process, journal = started(nodes, tmp_path / "undisturbed", job)
    assert process.wait(600) == 0
    undisturbed = Ledger(journal)
    process, journal = started(nodes, tmp_path / "disturbed", job)
    lose_a_node(nodes, process, journal, 3, "ray::Gate", "TrainWorker")
    assert process.wait(600) == 0
    assert summary(Ledger(journal)) == summary(undisturbed)
    assert nodes.left() == "[] 0.0 []"
