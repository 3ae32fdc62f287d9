"""A search killed at any moment and resumed ends with the trials of an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from nodes import train_controllers
from processes import HEARS_INTERRUPTIONS
from test_faults import command_line

from raynn.cluster import descendants
from raynn.job import Job
from raynn.ledger import Ledger

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

JOB: dict[str, Any] = {
    "name": "digits",
    "data": {"train": "digits", "target": "label", "test": 0.2},
    "network": {"kind": "feedforward", "hidden": [16]},
    "optimization": {"global_batch_size": 64, "max_epochs": 8, "learning_rate": 3e-3},
    "early_stopping": {"patience": 3},
    "search": {
        "trials": 7,
        "algorithm": "optuna",
        "scheduler": {"kind": "asha", "grace_period": 2, "reduction_factor": 2},
        "concurrent_trials": 1,
        "space": {
            "regularization.dropout": {"uniform": [0.0, 0.6]},
            "optimization.learning_rate": {"loguniform": [1e-4, 3e-2]},
        },
    },
}


def searched(folder: Path, kills: int, random: random.Random, job: dict[str, Any] | None = None) -> Ledger:
    """Runs `raynn tune` in a process of its own, killing it `kills` times at random moments of its work."""
    folder.mkdir()
    job_file = folder / "job.yaml"
    job_file.write_text(Job.from_dict((job or JOB) | {"storage": str(folder)}).to_yaml())
    command = [sys.executable, "-m", "raynn", "tune", str(job_file), "--quiet"]
    journal = folder / "digits" / "search.jsonl"
    for _ in range(kills):
        before = len(journal.read_bytes().splitlines()) if journal.exists() else 0
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wait_for_lines(journal, before + random.randint(2, 12), process)
        time.sleep(random.random() * 0.2)
        below = descendants(process.pid)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors  # it did not even start
        assert are_gone(below), "processes were left behind"
        command = [*command[:5], "resume=true", "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return Ledger(journal)


def wait_for_lines(journal: Path, lines: int, process: subprocess.Popen[str]) -> None:
    """Until the journal holds so many events, or the search has ended."""
    while process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.01)


def are_gone(pids: list[int]) -> bool:
    """Whether all of these processes end, but for what process 1 has yet to bury."""
    deadline = time.monotonic() + 60  # two or three seconds on a quiet machine
    while time.monotonic() < deadline:
        if not any(command_line(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def summary(ledger: Ledger) -> list[Any]:
    """All that is decided, and every epoch."""
    return [
        (
            trial.settings,
            trial.origin,
            trial.status,
            trial.reason,
            [{k: v for k, v in record.items() if "/" in k or k == "epoch"} for record in trial.records],
        )
        for trial in ledger.trials
    ]


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_trials(tmp_path: Path) -> None:
    undisturbed = searched(tmp_path / "undisturbed", 0, random.Random(0))
    assert {trial.status for trial in undisturbed.trials} >= {"cut"}
    killed = searched(tmp_path / "killed", 1, random.Random(int(time.time())))
    assert summary(killed) == summary(undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("scheduler", "concurrent"),
    [
        ({"kind": "asha_promote", "grace_period": 2, "reduction_factor": 2}, 1),
        ({"kind": "pbt", "interval": 2, "quantile_fraction": 0.3}, 2),
        ({"kind": "pb2", "interval": 3, "quantile_fraction": 0.3}, 1),
    ],
    ids=["asha_promote", "pbt", "pb2"],
)
def test_trials_that_pause_are_killed_and_resumed(tmp_path: Path, scheduler: dict[str, Any], concurrent: int) -> None:
    """Those that wait when the search is killed go on in another process, and populations from the donor's weights;
    generations do not depend on how many run at a time.
    """
    search = JOB["search"] | {"scheduler": scheduler, "algorithm": "random", "concurrent_trials": concurrent}
    job = JOB | {"search": search, "early_stopping": {"rule": "none"}}
    undisturbed = searched(tmp_path / "undisturbed", 0, random.Random(0), job)
    for attempt in range(2):
        killed = searched(tmp_path / f"killed-{attempt}", 2, random.Random(attempt), job)
        assert summary(killed) == summary(undisturbed), f"attempt {attempt}"


@pytest.mark.slow
def test_a_trial_whose_controller_is_killed_goes_on(tmp_path: Path) -> None:
    """Its group's room is free again, and it trains on from its newest checkpoint."""
    search = JOB["search"] | {"scheduler": "none", "algorithm": "random", "trials": 2}
    job = JOB | {"search": search, "early_stopping": {"rule": "none"}, "resources": {"workers": 2, "driver": "ray"}}
    job = Job.from_dict(job | {"storage": str(tmp_path)}, ["optimization.max_epochs=60"])
    (tmp_path / "job.yaml").write_text(job.to_yaml())
    command = [sys.executable, "-m", "raynn", "tune", str(tmp_path / "job.yaml"), "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "digits" / "search.jsonl"
    wait_for_lines(journal, 6, process)
    [controller] = train_controllers()
    os.kill(controller, signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    ledger = Ledger(journal)
    assert [trial.status for trial in ledger.trials] == ["finished", "finished"]
    assert [len(trial.records) for trial in ledger.trials] == [60, 60]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_three_times_ten_times_in_a_row(tmp_path: Path) -> None:
    undisturbed = searched(tmp_path / "undisturbed", 0, random.Random(0))
    for attempt in range(10):
        killed = searched(tmp_path / f"killed-{attempt}", 3, random.Random(attempt))
        assert summary(killed) == summary(undisturbed), f"attempt {attempt}"


@pytest.mark.slow
def test_ctrl_c_saves_everything_and_says_how_to_go_on(tmp_path: Path) -> None:
    job_file = tmp_path / "job.yaml"
    job_file.write_text(Job.from_dict(JOB | {"storage": str(tmp_path)}, ["search.trials=500"]).to_yaml())
    command = [*HEARS_INTERRUPTIONS, sys.executable, "-m", "raynn", "tune", str(job_file)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for_lines(tmp_path / "digits" / "search.jsonl", 12, process)
    below = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 130, errors
    assert f"raynn tune {job_file} resume=true" in errors
    assert (tmp_path / "digits" / "trials.parquet").exists()
    assert are_gone(below)
