"""Every few seconds a random process dies: of the workers, of what directs them, or the command itself, which is then
begun again. A training and a search end as undisturbed ones.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nodes import Training, command_line, nodes
from test_elastic import JOB as TRAINING
from test_tune_faults import JOB as SEARCH
from test_tune_faults import are_gone, searched, summary

from raynn.cluster import descendants
from raynn.job import Job
from raynn.ledger import Ledger

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]


class Killer:
    """While it is entered, kills one of the processes there are now and then, but never before there was progress."""

    def __init__(self, victims: Callable[[], list[int]], progress: Callable[[], int]) -> None:
        self.victims, self.progress = victims, progress
        self.killed: list[str] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._kill)

    def _kill(self) -> None:
        chance = random.Random(0)
        while not self.over.is_set():
            before, pause = self.progress(), chance.uniform(0.5, 5.0)
            while self.progress() == before and not self.over.wait(0.1):
                pass
            self.over.wait(pause)
            victims = self.victims()
            if victims and not self.over.is_set():
                victim = chance.choice(victims)
                self.killed.append(command_line(victim))
                try:
                    os.kill(victim, signal.SIGKILL)
                except ProcessLookupError:
                    self.killed.pop()

    def __enter__(self) -> Killer:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def below(pid: int, *names: str) -> list[int]:
    """Processes below one that are called so."""
    return [each for each in descendants(pid) if any(name in command_line(each) for name in names)]


def test_training(tmp_path: Path) -> None:
    with nodes(2) as cluster:
        straight = Training(TRAINING, tmp_path / "straight", cluster.address)
        assert straight.ended() == 0, straight.log.read_text()
        how = (tmp_path / "struck", cluster.address, "resources.max_failures=100")
        training = Training(TRAINING, *how)

        def victims() -> list[int]:
            return [training.process.pid, *below(os.getpid(), "TrainWorker", "TrainController")]

        with Killer(victims, training.epochs) as killer:
            for _ in range(100):
                if training.ended(900) == 0:
                    break
                training = Training(TRAINING, *how, "resume=true")
    assert len(killer.killed) >= 3, killer.killed
    assert training.losses() == straight.losses()


def test_search(tmp_path: Path) -> None:
    search: dict[str, Any] = SEARCH["search"] | {"trials": 40, "max_failed_trials": 0}
    job: dict[str, Any] = SEARCH | {"search": search, "resources": {"max_failures": 100}}
    undisturbed = searched(tmp_path / "undisturbed", 0, random.Random(0), job)
    folder = tmp_path / "struck"
    folder.mkdir()
    job_file, journal = folder / "job.yaml", folder / "digits" / "search.jsonl"
    job_file.write_text(Job.from_dict(job | {"storage": str(folder)}).to_yaml())
    command = [sys.executable, "-m", "raynn", "tune", str(job_file), "--quiet"]
    running: list[subprocess.Popen[bytes]] = []

    def victims() -> list[int]:
        pid = running[-1].pid
        return [pid, *below(pid, "Trainable")]

    def events() -> int:
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    with (tmp_path / "log").open("wb") as log, Killer(victims, events) as killer:
        for _ in range(100):
            running.append(subprocess.Popen(command, stdout=log, stderr=log))
            left = []
            while running[-1].poll() is None:
                left = descendants(running[-1].pid) or left
                killer.over.wait(0.1)
            if running[-1].returncode == 0:
                break
            assert are_gone(left)
            command = [*command[:5], "resume=true", "--quiet"]
    assert running[-1].returncode == 0, (tmp_path / "log").read_text()
    assert len(killer.killed) >= 3, killer.killed
    assert summary(Ledger(journal)) == summary(undisturbed)
