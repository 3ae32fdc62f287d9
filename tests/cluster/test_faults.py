"""Killed in the middle and resumed: the losses of an undisturbed run, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from nodes import Training, command_line, train_controllers
from processes import HEARS_INTERRUPTIONS

from raynn.checkpoint import load_newest
from raynn.cluster import descendants
from raynn.job import Job
from raynn.trainer import train

JOB: dict[str, Any] = {
    "name": "digits",
    "data": {"train": "digits", "target": "label", "test": 0.1},
    "network": {"kind": "cnn", "channels": [16, 32], "head_hidden": [64]},
    "regularization": {"dropout": 0.2},
    "optimization": {"global_batch_size": 32, "max_epochs": 12, "learning_rate": 2e-3},
    "early_stopping": {"rule": "none"},
}
LOSSES = ("epoch", "step", "train/loss", "val/loss", "val/accuracy", "learning_rate")


def losses(run: Path) -> list[list[float]]:
    """What must not change, epoch by epoch."""
    return [[json.loads(line)[key] for key in LOSSES] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_driver_killed_and_resumed(tmp_path: Path) -> None:
    straight = train(Job.from_dict(JOB | {"storage": str(tmp_path / "straight")}))
    job_file = tmp_path / "job.yaml"
    job_file.write_text(Job.from_dict(JOB | {"storage": str(tmp_path / "killed")}).to_yaml())
    command = [sys.executable, "-m", "raynn", "train", str(job_file), "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    metrics = tmp_path / "killed" / "digits" / "metrics.jsonl"
    wait_for_epochs(metrics, 3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = len(metrics.read_text().splitlines())
    assert before < JOB["optimization"]["max_epochs"], "the run ended before it could be killed"
    subprocess.run([*command, "resume=true"], check=True, stdout=subprocess.DEVNULL)
    assert losses(tmp_path / "killed" / "digits") == losses(straight)
    results = [json.loads((run / "result.json").read_text()) for run in (straight, tmp_path / "killed" / "digits")]
    assert results[0]["metrics"] == results[1]["metrics"]


@pytest.mark.cluster
@pytest.mark.slow
def test_a_run_begun_here_is_resumed_by_two_workers(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The number of workers is no part of the state. A damaged checkpoint is passed over, and that is said."""
    job = Job.from_dict(JOB | {"storage": str(tmp_path)}, ["optimization.max_epochs=3"])
    straight = train(job)
    expected = losses(straight)
    (straight / "result.json").unlink()
    tensors = straight / "checkpoints" / "epoch-00003" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    resources = job.resources.model_copy(update={"workers": 2})
    run = train(job.model_copy(update={"resume": True, "resources": resources}))
    assert run == straight
    assert "epoch-00003: tensors.safetensors differs from its checksum" in capsys.readouterr().err
    found = losses(run)
    assert found[:2] == expected[:2]
    assert found[2] == pytest.approx(expected[2], rel=1e-5)


@pytest.mark.cluster
@pytest.mark.timeout(300)
@pytest.mark.slow
def test_worker_killed_and_restarted_by_ray_train(ray_cluster: None, tmp_path: Path) -> None:
    resources = {"workers": 2, "max_failures": 3}
    straight = train(Job.from_dict(JOB | {"storage": str(tmp_path / "straight"), "resources": resources}))
    metrics = tmp_path / "killed" / "digits" / "metrics.jsonl"
    killed: list[int] = []
    killer = threading.Thread(target=lambda: killed.append(kill_a_worker(metrics)))
    killer.start()
    run = train(Job.from_dict(JOB | {"storage": str(tmp_path / "killed"), "resources": resources}))
    killer.join()
    assert killed, "no worker was killed"
    assert losses(run) == losses(straight)


@pytest.mark.cluster
@pytest.mark.timeout(300)
@pytest.mark.slow
@pytest.mark.parametrize("allowed", [1, 0])
def test_controller_killed(tmp_path: Path, allowed: int) -> None:
    """Its workers end with it. A new group goes on from the newest checkpoint, as often as is allowed."""
    resources = {"workers": 2, "max_failures": allowed}
    tree = JOB | {"storage": str(tmp_path), "resources": resources}
    command = [sys.executable, "-m", "raynn", "train", str(tmp_path / "job.yaml"), "--quiet"]
    (tmp_path / "job.yaml").write_text(Job.from_dict(tree).to_yaml())
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for_epochs(tmp_path / "digits" / "metrics.jsonl", 3)
    [controller] = train_controllers()
    os.kill(controller, signal.SIGKILL)
    _, said = process.communicate(timeout=200)
    assert process.returncode == (0 if allowed else 1), said
    assert "Traceback" not in said
    if allowed:
        straight = train(Job.from_dict(tree | {"storage": str(tmp_path / "straight")}))
        assert losses(tmp_path / "digits") == losses(straight)
    else:
        assert "was killed 1 times" in said
        assert json.loads((tmp_path / "digits" / "result.json").read_text())["status"] == "failed"


def kill_a_worker(metrics: Path) -> int:
    """SIGKILL to one Ray Train worker below this process, in the middle of training."""
    wait_for_epochs(metrics, 3)
    workers = [pid for pid in descendants(os.getpid()) if "TrainWorker" in command_line(pid)]
    os.kill(workers[-1], signal.SIGKILL)
    return workers[-1]


def wait_for_epochs(metrics: Path, epochs: int) -> None:
    """Until metrics.jsonl holds so many lines."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= epochs:
            return
        time.sleep(0.01)
    raise TimeoutError(f"{metrics} did not reach {epochs} epochs")


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_interrupted_on_ray(tmp_path: Path) -> None:
    """Ctrl-C: what was trained is saved, the line to continue is printed, nothing is left running."""
    job_file = tmp_path / "job.yaml"
    overrides = ["optimization.max_epochs=500", "resources.workers=2"]
    job_file.write_text(Job.from_dict(JOB | {"storage": str(tmp_path)}, overrides).to_yaml())
    command = [*HEARS_INTERRUPTIONS, sys.executable, "-m", "raynn", "train", str(job_file)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for_epochs(tmp_path / "digits" / "metrics.jsonl", 3)
    below = descendants(process.pid)
    assert below, "no Ray process was started"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; what was trained is saved" in errors
    assert f"raynn train {job_file} resume=true" in errors
    assert list((tmp_path / "digits" / "checkpoints").glob("epoch-*"))
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(command_line(pid) for pid in below):
        time.sleep(0.2)
    assert [command_line(pid) for pid in below if command_line(pid)] == []


WORKERS = [1, pytest.param(2, marks=[pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(400)])]
LONG = JOB | {"optimization": JOB["optimization"] | {"max_epochs": 40}, "report": False}


@pytest.mark.parametrize("workers", WORKERS)
def test_terminated(tmp_path: Path, workers: int) -> None:
    """SIGTERM, as a cluster sends it before it takes the machine, is Ctrl-C."""
    training = Training(LONG, tmp_path, None, f"resources.workers={workers}")
    training.wait_for(3)
    training.process.send_signal(signal.SIGTERM)
    assert training.ended(60) == 130
    said = training.log.read_text()
    assert "interrupted; what was trained is saved" in said
    assert "resume=true" in said
    assert list((training.run / "checkpoints").glob("epoch-*"))
    assert not (training.run / "result.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system needs root")
@pytest.mark.parametrize("workers", WORKERS)
def test_disk_full(tmp_path: Path, workers: int) -> None:
    """One error, the earlier checkpoints are whole, and with room again the run goes on to the same end."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(small)], check=True)
    try:
        straight = Training(LONG, tmp_path / "straight", None, f"resources.workers={workers}")
        assert straight.ended() == 0
        training = Training(LONG, small, None, f"resources.workers={workers}")
        training.wait_for(3)
        ballast = small / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        assert training.ended(100) == 1
        said = training.log.read_text()
        ballast.unlink()
        whole, problems = load_newest(training.run / "checkpoints")
        assert whole
        assert len(whole["history"]) >= 3
        assert not problems
        assert not list((training.run / "checkpoints").glob("partial-*"))
        assert "No space left on device" in said or "cannot be written" in said
        assert "Traceback" not in said
        again = Training(LONG, small, None, f"resources.workers={workers}", "resume=true")
        assert again.ended() == 0, again.log.read_text()
        assert again.losses() == straight.losses()
        shutil.copytree(small / "digits", tmp_path / "digits")
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)
