"""Runs at a URL trained by Ray: by two workers, by workers of two machines that share no disk, and searches."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from flowers import flowers
from s3 import CREDENTIALS, Bucket, environment

from raynn.job import Job
from raynn.run import evaluate
from raynn.trainer import train

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

JOB: dict[str, Any] = {
    "name": "digits",
    "data": {"train": "digits", "target": "label", "test": 0.1},
    "network": {"kind": "feedforward", "hidden": [32]},
    "optimization": {"global_batch_size": 64, "max_epochs": 4, "learning_rate": 2e-3},
    "early_stopping": {"rule": "none"},
    "report": False,
}
SEARCH = {
    "trials": 4,
    "algorithm": "random",
    "metric": "val/loss",
    "concurrent_trials": 2,
    "space": {"regularization.dropout": {"uniform": [0.0, 0.6]}},
}


def raynn(*arguments: str, cache: Path, **more: str) -> dict[str, Any]:
    """A command on a machine whose copies are in `cache`; what it answers."""
    command = [sys.executable, "-m", "raynn", *arguments, "--json"]
    done = subprocess.run(
        command, env=environment(cache) | {"RAY_AUTH_MODE": "disabled"} | more, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def losses(metrics: bytes | None) -> list[float]:
    return [json.loads(line)[key] for line in (metrics or b"").splitlines() for key in ("train/loss", "val/loss")]


@pytest.mark.slow
def test_two_workers_at_a_url(bucket: Bucket, tmp_path: Path) -> None:
    """Data read there by Ray Data, the run kept there: what one worker gives with files of this machine."""
    pq.write_table(flowers(), tmp_path / "flowers.parquet", row_group_size=50)
    bucket.write("data/flowers.parquet", (tmp_path / "flowers.parquet").read_bytes())
    job = JOB | {"name": "flowers", "data": {"target": "kind", "test": 0.2}}
    job["optimization"] = JOB["optimization"] | {"global_batch_size": 16}

    def placed(data: str, storage: str) -> Job:
        return Job.from_dict(job | {"data": job["data"] | {"train": data}, "storage": storage})

    local = train(placed(str(tmp_path / "flowers.parquet"), str(tmp_path / "runs")))
    (tmp_path / "job.yaml").write_text(placed(bucket.url("data/*.parquet"), bucket.url("runs")).to_yaml())
    answer = raynn("train", str(tmp_path / "job.yaml"), "resources.workers=2", cache=tmp_path / "a")
    assert answer["run"] == bucket.url("runs/flowers")
    assert answer["workers"] == 2
    found = losses(bucket.read("runs/flowers/metrics.jsonl"))
    assert found == pytest.approx(losses((local / "metrics.jsonl").read_bytes()), rel=1e-5)
    assert not [name for name in bucket.names("runs") if "scratch" in name]
    out = str(tmp_path / "p.parquet")
    predicted = raynn(
        "predict", answer["run"], bucket.url("data/*.parquet"), "--out", out, "--workers=2", cache=tmp_path / "b"
    )
    assert predicted["rows"] == pq.read_table(out).num_rows == flowers().num_rows


@contextmanager
def machines(*caches: Path) -> Iterator[str]:
    """The address of a cluster of a head without CPUs and of machines with one, each with a cache folder of its own."""
    script = (
        "import sys, time, ray.cluster_utils as c\n"
        "cluster = c.Cluster()\n"
        "cluster.add_node(num_cpus=0, include_dashboard=False)\n"
        "for cache in sys.argv[1:]: cluster.add_node(num_cpus=1, env_vars={'XDG_CACHE_HOME': cache})\n"
        "print(cluster.address, flush=True)\n"
        "sys.stdin.read()\n"
        "cluster.shutdown()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, caches)],
        env={**os.environ, **CREDENTIALS, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield next(line.strip() for line in process.stdout if ":" in line)
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


@pytest.mark.slow
def test_machines_that_share_no_disk(bucket: Bucket, tmp_path: Path) -> None:
    """Two workers on two machines, the driver on a third: trained, stopped, and resumed from what is at the URL."""
    (tmp_path / "job.yaml").write_text(Job.from_dict(JOB | {"storage": bucket.url("runs")}).to_yaml())
    straight = train(Job.from_dict(JOB | {"storage": str(tmp_path / "straight")}))
    with machines(tmp_path / "one", tmp_path / "two") as address:
        answer = raynn(
            "train", str(tmp_path / "job.yaml"), "resources.workers=2", cache=tmp_path / "driver", RAY_ADDRESS=address
        )
        assert answer["workers"] == 2
        expected = losses((straight / "metrics.jsonl").read_bytes())
        assert losses(bucket.read("runs/digits/metrics.jsonl")) == pytest.approx(expected, rel=1e-5)
        written = [cache for cache in ("one", "two", "driver") if list((tmp_path / cache).rglob("metrics.jsonl"))]
        assert "driver" in written, "the driver follows"
        # from the checkpoint of epoch 3, on machines whose copies are gone
        bucket.files.delete_file(f"{bucket.name}/runs/digits/result.json")
        for path in ("state.json", "tensors.safetensors", "checksums.json"):
            bucket.files.delete_file(f"{bucket.name}/runs/digits/checkpoints/epoch-00004/{path}")
        for cache in ("one", "two", "driver"):
            shutil.rmtree(tmp_path / cache)
        raynn(
            "train",
            str(tmp_path / "job.yaml"),
            "resources.workers=2",
            "resume=true",
            cache=tmp_path / "driver",
            RAY_ADDRESS=address,
        )
        assert losses(bucket.read("runs/digits/metrics.jsonl")) == pytest.approx(expected, rel=1e-5)
        refused = subprocess.run(
            [sys.executable, "-m", "raynn", "tune", str(tmp_path / "job.yaml"), f"search={json.dumps(SEARCH)}"],
            env=environment(tmp_path / "driver") | {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"},
            capture_output=True,
            text=True,
        )
        assert refused.returncode == 2
        assert "holds the trials of one machine, and the cluster has 3 nodes" in refused.stderr


@pytest.mark.slow
def test_a_search_killed_here_and_resumed_elsewhere(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same trials as undisturbed, and the winner's model, read from the URL."""
    search = SEARCH | {"trials": 6}
    for name, place in (("straight", str(tmp_path / "straight")), ("killed", bucket.url("runs"))):
        job = Job.from_dict(JOB | {"storage": place, "search": search})
        (tmp_path / f"{name}.yaml").write_text(job.to_yaml())
    straight = raynn("tune", str(tmp_path / "straight.yaml"), cache=tmp_path / "a")
    command = [sys.executable, "-m", "raynn", "tune", str(tmp_path / "killed.yaml"), "--quiet"]
    process = subprocess.Popen(command, env=environment(tmp_path / "a"), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while sum(name.endswith("metrics.jsonl") for name in bucket.names("runs")) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(3.0)  # what Ray leaves behind ends
    shutil.rmtree(tmp_path / "a", ignore_errors=True)
    resumed = raynn("tune", str(tmp_path / "killed.yaml"), "resume=true", cache=tmp_path / "b")
    assert resumed["run"] == bucket.url("runs/digits")
    assert resumed["best"]["settings"] == straight["best"]["settings"]
    assert resumed["best"]["metrics"] == straight["best"]["metrics"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert evaluate(bucket.url("runs/digits")) == {
        key: value for key, value in straight["metrics"].items() if key.startswith("test/")
    }
    trial = resumed["best"]["run"]
    assert set(evaluate(bucket.url(f"runs/digits/{trial}"))) >= {"test/loss"}
