"""The Ray of a command's own: begun beside the loading of torch where a job asks for it, ended with the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from nodes import command_line, wait_until

from raynn.cluster import begun, descendants
from raynn.errors import JobError
from raynn.head import Head
from raynn.job import Job

JOB: dict[str, Any] = {
    "name": "digits",
    "data": {"train": "digits", "target": "label"},
    "network": {"kind": "feedforward", "hidden": [32]},
    "optimization": {"max_epochs": 500},
    "resources": {"workers": 2},
}


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.dump(JOB | {"storage": str(tmp_path)}))
    return path


@pytest.fixture
def heads(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of those that would be started."""
    asked: list[dict[str, Any]] = []

    class Asked(Head):
        def __init__(self, options: Any, environment: Any) -> None:
            asked.append(dict(options))

        def let_go(self) -> None:
            asked.append({})

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("raynn.cluster.Head", Asked)
    return asked


SEARCH = {"search": {"concurrent_trials": 3, "trials": 3}}


@pytest.mark.parametrize(
    ("verb", "sections", "overrides", "cpus"),
    [
        ("train", {}, [], 2),
        ("train", {}, ["resources.cpus_per_worker=200"], 400),
        ("train", {}, ["resources.workers={min: 1, max: 300}"], 300),
        ("train", {"resources": {}}, [], None),
        ("train", {"resources": {"driver": "ray"}}, [], 1),
        ("train", {"resources": {"workers": 2, "driver": "local"}}, [], None),
        ("train", {}, ["resources.workers=two"], None),
        ("train", {"resources": [2]}, [], None),
        ("tune", SEARCH, [], 6),
        ("tune", SEARCH, ["search.concurrent_trials=auto"], 2),
        ("tune", {"search": None, "resources": None}, [], 1),
        ("study", {"study": {"concurrent_trials": 400}}, [], 800),
    ],
)
def test_it_is_begun_as_large_as_the_command_will_ask_for(
    verb: str, sections: dict[str, Any], overrides: list[str], cpus: int | None, tmp_path: Path, heads: list[Any]
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.dump(JOB | sections))
    with begun(str(path), overrides, verb):
        assert [options["num_cpus"] for options in heads] == ([] if cpus is None else [max(os.cpu_count() or 1, cpus)])
    assert heads[1:] == ([] if cpus is None else [{}]), "what nobody has taken is let go"


def test_none_is_begun_for_a_cluster_or_no_file(
    job_file: Path, tmp_path: Path, heads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with begun(str(tmp_path / "other.yaml"), [], "train"):
        assert not heads
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with begun(str(job_file), [], "train"):
        assert not heads


def heads_below(pid: int) -> list[int]:
    return [each for each in descendants(pid) if "head.py" in command_line(each)]


def started(job_file: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "raynn", "train", str(job_file), "--quiet", *overrides]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.cluster
def test_one_that_cannot_start_is_one_clear_error(job_file: Path) -> None:
    process = started(job_file, "resources.object_store_gib=50000")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.startswith("raynn train: Ray does not start on this machine: ValueError: After taking into account")
    assert len(said.splitlines()) == 1


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_of_another_version_is_one_clear_error(
    job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    (tmp_path / "sitecustomize.py").write_text("import ray\nray.__version__ = '2.0.0'\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    process = started(job_file)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2, said
    assert "names cannot be used from here: Version mismatch: The cluster was started with: Ray: 2.6" in said
    assert "Traceback" not in said


@pytest.mark.cluster
def test_a_job_that_is_wrong_leaves_none(job_file: Path) -> None:
    wrong = yaml.dump(JOB | {"network": {"kind": "feedforward", "hiden": [32]}})
    job_file.write_text(wrong)
    with pytest.raises(JobError):
        Job.load(job_file)
    process = started(job_file)
    wait_until(lambda: heads_below(process.pid), 20)
    below = heads_below(process.pid)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "network.hiden" in said
    wait_until(lambda: not any(map(command_line, below)), 30)


@pytest.mark.cluster
def test_it_ends_with_a_command_that_is_killed(job_file: Path, tmp_path: Path) -> None:
    process = started(job_file)
    wait_until((tmp_path / "digits" / "metrics.jsonl").exists, 90)
    below = descendants(process.pid)
    lines = " ".join(map(command_line, below))
    assert all(name in lines for name in ("head.py", "gcs_server", "raylet", "TrainWorker"))
    assert not any(name in lines for name in ("dashboard.py", "monitor.py")), "they would be waited for"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    wait_until(lambda: not any(map(command_line, below)), 30)
