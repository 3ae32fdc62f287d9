"""The promise of the house: the result does not depend on who trains, nor on how many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from walks import walks

from raynn.job import Job
from raynn.trainer import train

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

NETWORKS: dict[str, dict[str, Any]] = {
    "feedforward": {"kind": "feedforward", "hidden": [32, 32], "normalization": "batch"},
    "cnn": {"kind": "cnn", "channels": [8, 16], "head_hidden": [32]},
    "lstm": {"kind": "lstm", "hidden": 16, "bidirectional": True},
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,003 rows of numbers and categories, some missing, sorted by the target: nothing divides evenly. Beside it lies
    walks.parquet, sequences of different lengths.
    """
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(2, 1003))
    color = rng.choice(["red", "green", "blue"], size=1003)
    label = np.where(x + 0.5 * z + (color == "red") > 0.3, "yes", "no")
    order = np.argsort(label, kind="stable")
    columns = {"x": pa.array(x, mask=rng.random(1003) < 0.1), "z": pa.array(z), "color": pa.array(color)}
    path = tmp_path_factory.mktemp("data") / "table.parquet"
    pq.write_table(pa.table({**columns, "label": pa.array(label)}).take(pa.array(order)), path, row_group_size=300)
    pq.write_table(walks(503).sort_by("place"), path.with_name("walks.parquet"), row_group_size=150)
    return path


def job_of(kind: str, table: Path, storage: Path, **resources: Any) -> Job:
    """Three epochs with dropout, weight decay and batch normalization over workers, a batch of 48 in 48 lanes."""
    data: dict[str, Any] = {"train": str(table), "target": "label", "validation": 0.2, "test": 0.1}
    if kind == "cnn":
        data |= {"train": "digits"}
    if kind == "lstm":
        data |= {"train": str(table.with_name("walks.parquet")), "target": "place", "columns": {"distance": "ignore"}}
    return Job.from_dict(
        {
            "name": kind,
            "data": data,
            "network": NETWORKS[kind],
            "regularization": {"dropout": 0.2, "label_smoothing": 0.05},
            "optimization": {"global_batch_size": 48, "max_epochs": 3},
            "resources": resources,
            "storage": str(storage),
        }
    )


def history(run: Path) -> list[dict[str, float]]:
    """metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def local(table: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each network in this process, without Ray."""
    storage = tmp_path_factory.mktemp("local")
    return {kind: train(job_of(kind, table, storage)) for kind in NETWORKS}


# a run on Ray takes 10 to 20 s here: where what is particular to a network was seen with two workers, the rest is slow
QUICK = (("feedforward", 1), ("cnn", 3))
CASES = [
    pytest.param(kind, workers, marks=() if (kind, workers) in QUICK else pytest.mark.slow)
    for kind in NETWORKS
    for workers in (1, 2, 3)
]


@pytest.mark.parametrize(("kind", "workers"), CASES)
def test_losses_do_not_depend_on_driver_or_workers(
    kind: str, workers: int, table: Path, local: dict[str, Path], ray_cluster: None, tmp_path: Path
) -> None:
    preparation = "auto" if kind == "feedforward" else "keep"  # by the command's own process, or by Ray's tasks
    run = train(
        job_of(kind, table, tmp_path, workers=workers, driver="ray", cpus_per_worker=1, preparation=preparation)
    )
    expected, found = history(local[kind]), history(run)
    assert len(found) == len(expected) == 3
    for epoch, (one, many) in enumerate(zip(expected, found, strict=True), start=1):
        for key in ("train/loss", "val/loss"):
            assert many[key] == pytest.approx(one[key], rel=1e-5), f"epoch {epoch}, {key}"
    result = json.loads((run / "result.json").read_text())
    assert result["workers"] == workers
    one_result = json.loads((local[kind] / "result.json").read_text())
    assert result["metrics"]["test/loss"] == pytest.approx(one_result["metrics"]["test/loss"], rel=1e-5)


def test_streaming_from_disk_gives_the_same_bits(table: Path, local: dict[str, Path], tmp_path: Path) -> None:
    """A shard that does not fit its budget is memory-mapped; the batches are the same."""
    run = train(job_of("feedforward", table, tmp_path, memory_gib=1e-6))
    keys = ("train/loss", "val/loss")
    assert [[r[k] for k in keys] for r in history(run)] == [[r[k] for k in keys] for r in history(local["feedforward"])]


def test_prediction_through_ray_data_equals_prediction_here(
    table: Path, local: dict[str, Path], ray_cluster: None, tmp_path: Path
) -> None:
    from raynn.prediction import predict

    predict(local["feedforward"], str(table), tmp_path / "here.parquet")
    answer = predict(local["feedforward"], str(table), tmp_path / "ray.parquet", workers=2)
    assert answer["rows"] == 1003
    assert pq.read_table(tmp_path / "ray.parquet").equals(pq.read_table(tmp_path / "here.parquet"))


@pytest.mark.parametrize("preparation", ["auto", "keep"])
def test_an_error_of_the_user_on_ray_is_the_same_error(
    preparation: str, table: Path, ray_cluster: None, tmp_path: Path
) -> None:
    """Not tried again by Ray, not wrapped in a traceback."""
    from raynn.errors import DataError

    job = job_of("feedforward", table, tmp_path, workers=2, preparation=preparation)
    data = job.data.model_copy(update={"columns": {"color": "numeric"}})
    with pytest.raises(DataError, match=r"color"):
        train(job.model_copy(update={"data": data}))
