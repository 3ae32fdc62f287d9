"""The lines that say whether a cluster is ready for a job, each of them."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from raynn.errors import ResourceError
from raynn.job import Job
from raynn.readiness import Finding, asked_of, cluster_lines, findings_here, findings_there, packages
from raynn.submit import require_right
from raynn.upload import Upload, measured

JOB = """\
name: flowers
data: {train: digits, target: label}
network: {kind: feedforward}
storage: /shared/runs
tracking: {wandb: null}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/job.yaml").write_text(JOB)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.csv").write_text("a,b\n")
    (tmp_path / "small.csv").write_text("a,b\n")
    (tmp_path / ".rayignore").write_text("/data/\n")
    return tmp_path


def job_of(folder: Path, *overrides: str) -> Job:
    return Job.load(str(folder / "jobs/job.yaml"), list(overrides))


def here(folder: Path, *overrides: str, upload: Upload | None = None) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    job = job_of(folder, *overrides)
    for finding in findings_here(job, folder / "jobs/job.yaml", folder, upload or measured(folder)):
        found.setdefault(finding.about, []).append(finding)
    return found


def node(number: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "id": f"{number}" * 56,
        "address": f"10.0.0.{number}",
        "cpus": 2.0,
        "gpus": 0.0,
        "head": number == 1,
        "object_store_bytes": 4 << 30,
        "shm_bytes": 8 << 30,
        "memory_bytes": 16 << 30,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages()},
        "error": None,
        "storage": "shared",
        "data": {},
        "wandb_key": False,
    } | more


def seen(*nodes: dict[str, Any], **more: Any) -> dict[str, Any]:
    found = {"ray": version("ray"), "nodes": nodes or (node(1), node(2)), "wandb_key": False, "autoscaler": None}
    return found | {"run": None} | more


def there(folder: Path, told: dict[str, Any], *overrides: str, tune: bool = False, **how: bool) -> dict[str, Finding]:
    how = {"carries_raynn": True, "passes_key": False} | how
    return {f.about: f for f in findings_there(job_of(folder, *overrides), told, tune=tune, **how)}


def test_a_job_that_can_go(folder: Path) -> None:
    found = here(folder)
    assert set(found) == {"upload"}
    assert found["upload"][0].state == "ok"
    assert found["upload"][0].text.startswith(f"3 files, 0.0 MiB of {folder}; the most of it: jobs/ 0.0 MiB")


def test_an_upload_that_is_too_large_names_what_makes_it_so(folder: Path) -> None:
    with (folder / "jobs/weights.bin").open("wb") as file:
        file.truncate(600 * 10**6)  # a sparse file: no space is taken
    finding = here(folder)["upload"][0]
    assert finding.state == "wrong"
    assert finding.text == (
        f"4 files, 572.2 MiB of {folder}; the most of it: jobs/ 572.2 MiB, .rayignore 0.0 MiB, small.csv 0.0 MiB: more "
        "than the 500 MB that Ray takes; list in .rayignore what the job does not need"
    )


def test_a_job_file_that_stays_behind(folder: Path) -> None:
    (folder / ".rayignore").write_text("jobs/\n")
    assert here(folder)["job file"][0].text == (
        "jobs/job.yaml is left out of the upload by .rayignore or .gitignore; take it out there, or move the job file"
    )


def test_relative_data_that_stay_behind(folder: Path) -> None:
    assert "data" not in here(folder, "data.train=small.csv")
    assert "data" not in here(folder, "data.train=/shared/data/x.csv")
    assert "data" not in here(folder, "data.train=s3://bucket/x.csv")
    assert here(folder, "data.train=data/*.csv")["data"][0].state == "wrong"
    assert here(folder, "data.train=data/train.csv")["data"][0].text == (
        "data.train = 'data/train.csv' is relative, and not in the upload; give the path that the cluster's nodes have "
        "(data.train=/shared/data/train.csv), a URL, or let it go along: .rayignore"
    )


def test_relative_storage_would_go_with_the_job(folder: Path) -> None:
    assert here(folder, "storage=runs")["storage"][0].text == (
        "storage = 'runs' is relative: on the cluster it would lie in the job's upload, which goes away; give a folder "
        "that all its nodes mount, for instance storage=/shared/runs"
    )


def test_nodes_are_asked_for_what_is_theirs(folder: Path) -> None:
    asked = asked_of(job_of(folder, "data.train=[small.csv, /shared/a.csv]", "data.test=s3://bucket/b.csv"))
    assert asked["data"] == {"train": ["/shared/a.csv"], "test": ["s3://bucket/b.csv"]}
    assert (asked["storage"], asked["name"], asked["wandb_host"]) == ("/shared/runs", "flowers", "api.wandb.ai")
    assert {"raynn", "ray", "torch", "pyarrow"} <= set(asked["packages"])
    assert "onnx" not in asked["packages"], "extras are not needed"


def test_a_cluster_that_is_ready(folder: Path) -> None:
    found = there(folder, seen(), "data.train=/shared/a.csv")
    assert {finding.state for finding in found.values()} == {"ok"}
    assert found["nodes"].text == "all 2 answer"
    assert found["data"].text == "data.train: read on every node"
    assert found["storage"].text == "/shared/runs: written on every node, seen from every other"
    assert found["resources"].text == "1 worker of 1 CPU: the cluster holds 4 such"
    assert found["versions"].text.endswith(f"raynn {version('raynn')} (raynn goes along)")


def test_what_nodes_do_not_see_is_wrong(folder: Path) -> None:
    blind = node(2, storage="hidden", data={"train": "/shared/a.csv: no such file or folder"})
    found = there(folder, seen(node(), blind), "data.train=/shared/a.csv")
    assert (found["storage"].state, found["data"].state) == ("wrong", "wrong")
    assert "is not one folder for all nodes" in found["storage"].text
    assert "data.train cannot be read on node 10.0.0.2" in found["data"].text


def test_a_node_that_does_not_answer_is_wrong(folder: Path) -> None:
    silent = {key: value for key, value in node(2).items() if key not in ("python", "packages", "wandb_key")}
    found = there(folder, seen(node(), silent | {"error": "gave no answer in 60 s", "storage": None}))
    assert (found["nodes"].state, found["storage"].state) == ("wrong", "ok")


def test_packages_that_nodes_lack(folder: Path) -> None:
    bare = node(2, packages=dict(node()["packages"], torch=None, raynn=None))
    assert there(folder, seen(node(), bare))["versions"].text == (
        "torch not installed on node 10.0.0.2 (222222); install it in the nodes' image, or for this job with "
        "--pip requirements.txt (docs/clusters.md, Dependencies)"
    )
    found = there(folder, seen(node(), bare), carries_raynn=False)["versions"]
    assert found.state == "wrong"
    assert found.text.startswith("raynn, torch not installed on node 10.0.0.2")


def test_nodes_of_different_versions(folder: Path) -> None:
    other = node(2, packages=dict(node()["packages"], torch="1.0"))
    finding = there(folder, seen(node(), other))["versions"]
    assert finding.state == "wrong"
    assert finding.text == f"torch is 1.0 and {version('torch')} on different nodes; install one everywhere"


def test_a_cluster_of_other_versions_than_here_is_worth_a_note(folder: Path) -> None:
    other = node(packages=dict(node()["packages"], torch="1.0"))
    finding = there(folder, seen(other))["versions"]
    assert finding.state == "note"
    assert finding.text.endswith(f"; here torch {version('torch')}: figures may differ in the last digits")


def test_room(folder: Path) -> None:
    groups = {"groups": [{"name": "gpu", "resources": {"CPU": 4.0, "GPU": 1.0}, "most": 2}], "most": 2}
    wanted = ("resources.workers=2", "resources.gpus_per_worker=1")
    assert there(folder, seen(), *wanted)["resources"].state == "wrong"
    finding = there(folder, seen(autoscaler=groups), *wanted)["resources"]
    assert (finding.state, finding.text) == (
        "ok",
        "2 workers of 1 CPU and 1 GPU each: the cluster holds 0 such, its autoscaler adds the others",
    )
    finding = there(folder, seen(autoscaler={"groups": None, "most": None}), *wanted)["resources"]
    assert finding.state == "note"
    assert finding.text.endswith(
        "its autoscaler does not say what it can add; the job waits for 900 s (resources.wait_s)"
    )


def test_room_for_trials_at_a_time(folder: Path) -> None:
    search = "search={space: regularization, concurrent_trials: 5}"
    assert there(folder, seen(), search)["resources"].state == "ok"
    assert there(folder, seen(), search, tune=True)["resources"].text.startswith("5 trials at a time")


def test_the_key_of_wandb(folder: Path) -> None:
    online, auto = "tracking={wandb: {mode: online}}", "tracking={wandb: {mode: auto}}"
    assert "W&B" not in there(folder, seen())
    assert there(folder, seen(wandb_key=True), online)["W&B"].text == "the driver's node has a key"
    assert there(folder, seen(), auto)["W&B"].state == "note"
    assert there(folder, seen(), auto)["W&B"].text == (
        "no key on the driver's node: the run is written offline; set WANDB_API_KEY in the environment of the "
        "cluster's nodes, or pass it from yours with --pass-wandb-key"
    )
    assert there(folder, seen(), online)["W&B"].state == "wrong"
    assert there(folder, seen(), online)["W&B"].text.startswith(
        "tracking.wandb.mode = 'online' and the driver's node has no"
    )
    passed = there(folder, seen(), online, passes_key=True)["W&B"]
    assert (passed.state, "whoever holds the cluster's token can read" in passed.text) == ("note", True)


def test_all_that_is_wrong_is_said_at_once() -> None:
    found = [Finding("a", "ok", "fine"), Finding("b", "wrong", "one"), Finding("c", "wrong", "two")]
    with pytest.raises(ResourceError, match=r"^2 of 3 checks failed:\n  one\n  two$"):
        require_right(found)
    require_right(found[:1])
    assert str(found[1]) == "wrong  b          one"


def test_a_cluster_in_words() -> None:
    small = node(2, shm_bytes=64 << 20)
    lines = cluster_lines(seen(node(gpus=1.0), small, node(3, error="gave no answer in 60 s")))
    assert lines[0] == f"3 nodes, 6 CPUs, 1 GPUs; Ray {version('ray')}"
    assert lines[1].startswith(
        "  10.0.0.1 (111111) (head): 2 CPUs, 1 GPUs, 16.0 GiB of memory, object store 4.0 GiB, /dev/shm 8.0 GiB; "
    )
    assert "/dev/shm is smaller than the object store" in lines[3]
    assert lines[4] == "  10.0.0.3 (333333): gave no answer in 60 s"
    assert lines[5] == "no autoscaler"
