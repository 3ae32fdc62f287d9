"""On Ray, of tables that do not fit: the same losses, nothing spilled, and what is wrong with a block is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raynn.errors import DataError
from raynn.generators import twonorm
from raynn.job import Job
from raynn.trainer import train

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(400)]

STORE_GIB = 0.08  # the smallest that Ray takes


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: Ray's sockets lie in it."""
    path = Path(tempfile.mkdtemp(prefix="raynn-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def tree_of(source: Path, storage: Path, **resources: Any) -> dict[str, Any]:
    return {
        "name": "twonorm",
        "data": {"train": str(source), "target": "label", "test": 0.1},
        "network": {"kind": "feedforward", "hidden": [16]},
        "optimization": {"global_batch_size": 2048, "max_epochs": 1, "learning_rate": 3e-3},
        "resources": {"workers": 2, "driver": "ray", "cpus_per_worker": 1, **resources},
        "report": False,
        "storage": str(storage),
    }


def history(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_million_rows_through_a_store_of_a_third_of_them(folder: Path) -> None:
    for part in range(2):
        pq.write_table(twonorm(500_000, seed=part), folder / f"{part}.parquet", row_group_size=65_536)
    tree = tree_of(folder / "*.parquet", folder / "runs", object_store_gib=STORE_GIB, memory_gib=0.02)
    (folder / "job.yaml").write_text(json.dumps(tree))
    (folder / "ray").mkdir()
    env = os.environ | {"RAY_TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "raynn", "train", str(folder / "job.yaml")]
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        spilled = 0
        while process.poll() is None:
            spilled = max(spilled, sum(p.stat().st_size for p in folder.glob("ray/session_2*/ray_spilled*/*")))
            time.sleep(0.2)
    told = (folder / "log").read_text()
    assert process.returncode == 0, told
    assert spilled == 0
    assert "more than half of Ray's object store" in told
    assert "read from a memory-mapped file" in told
    run = folder / "runs" / "twonorm"
    result = json.loads((run / "result.json").read_text())
    assert abs(result["metrics"]["test/accuracy"] - 0.97725) < 0.003
    (record,) = history(run)
    assert record["step"] == 800_000 // 2048 + (800_000 % 2048 >= 1024)
    assert not (run / "scratch").exists()


def test_no_table_is_kept_and_the_losses_are_the_same(folder: Path, ray_cluster: None) -> None:
    pq.write_table(twonorm(20_000, seed=0), folder / "rows.parquet", row_group_size=3000)
    runs = [
        train(Job.from_dict(tree_of(folder / "rows.parquet", folder / "runs", preparation=preparation)))
        for preparation in ("keep", "stream")
    ]
    kept, streamed = ([(r["train/loss"], r["val/loss"], r["step"]) for r in history(run)] for run in runs)
    assert streamed == kept
    tests = [json.loads((run / "result.json").read_text())["metrics"]["test/loss"] for run in runs]
    assert tests[0] == tests[1]


def test_a_block_that_one_worker_cannot_encode_ends_all(folder: Path, ray_cluster: None) -> None:
    """Only who validates the last rows meets the label that no training row has; the other would wait for it."""
    rows = twonorm(20_000, seed=0)
    pq.write_table(rows, folder / "rows.parquet", row_group_size=3000)
    odd = pa.table({**{name: rows[name] for name in rows.column_names[:-1]}, "label": pa.array([0] * 19_999 + [7])})
    pq.write_table(odd, folder / "odd.parquet", row_group_size=3000)
    tree = tree_of(folder / "rows.parquet", folder / "runs", preparation="stream")
    tree["data"] |= {"validation": str(folder / "odd.parquet"), "test": None}
    tree["task"] = "classification"
    started = time.monotonic()
    with pytest.raises(DataError, match="7"):
        train(Job.from_dict(tree))
    assert time.monotonic() - started < 100, "the workers waited for each other"


@pytest.mark.parametrize("preparation", ["keep", "stream"])
def test_an_error_of_the_user_in_a_late_block_is_said(preparation: str, folder: Path, ray_cluster: None) -> None:
    rows = twonorm(20_000, seed=0)
    pq.write_table(rows, folder / "a.parquet", row_group_size=3000)
    pq.write_table(rows.drop_columns(["x7"]), folder / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: no column 'x7'"):
        train(Job.from_dict(tree_of(folder / "*.parquet", folder / "runs", preparation=preparation)))
