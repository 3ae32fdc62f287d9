"""From a file of sequences of different lengths to a trained network and its predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from walks import walks

from raynn import batches
from raynn.job import Job
from raynn.prediction import predict
from raynn.run import evaluate, open_run
from raynn.trainer import train

CLOCK = ("seconds", "examples_per_second")


def write(table: pa.Table, path: Path) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        pq.write_table(table, path, row_group_size=60)
    return path


def trained(data: Path, folder: Path, network: dict[str, Any], target: str = "place", **resources: Any) -> Path:
    ignored = dict.fromkeys({"distance", "place"} - {target}, "ignore")
    return train(
        Job.from_dict(
            {
                "name": "walk",
                "data": {
                    "train": str(data),
                    "target": target,
                    "test": 0.2,
                    "columns": ignored,
                },
                "network": {**({"hidden": 16} if network["kind"] in ("rnn", "lstm") else {}), **network},
                "optimization": {"global_batch_size": 16, "max_epochs": 12, "learning_rate": 0.02},
                "resources": {"gpus_per_worker": 0, **resources},
                "storage": str(folder),
            }
        )
    )


def result(run: Path) -> dict[str, float]:
    return json.loads((run / "result.json").read_text())["metrics"]


def history(run: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in CLOCK} for record in records]


GRU = {"kind": "rnn", "cell": "gru", "bidirectional": True, "pooling": "attention"}


@pytest.mark.parametrize(
    ("network", "num_channels"),
    [
        ({"kind": "lstm"}, 1),
        (GRU, 1),
        (GRU, 2),
        ({"kind": "cnn", "channels": [16, 16], "head_pooling": "mean"}, 2),
        ({"kind": "feedforward", "hidden": [16]}, 2),
    ],
)
def test_from_file_to_prediction(network: dict[str, Any], num_channels: int, tmp_path: Path) -> None:
    table = walks(240, num_channels)
    assert str(table["steps"].type) == ["list<item: double>", "list<item: list<item: double>>"][num_channels - 1]
    data = write(table, tmp_path / "walks.parquet")
    run = trained(data, tmp_path / "runs", network)
    losses = [record["train/loss"] for record in history(run)]
    assert losses[-1] < 0.5 * losses[0]
    assert result(run)["test/accuracy"] > 0.8
    assert evaluate(run) == pytest.approx({k: v for k, v in result(run).items() if k.startswith("test/")}, abs=1e-6)
    # what predict says of the test rows, evaluate counts
    predict(run, "test", tmp_path / "out.parquet")
    predicted = pq.read_table(tmp_path / "out.parquet")
    right = np.mean(np.array(predicted["prediction"]) == np.array(predicted["place"]))
    assert right == pytest.approx(evaluate(run)["test/accuracy"], abs=1e-9)


def test_regression_repeats_bit_for_bit_from_every_format_and_place(tmp_path: Path) -> None:
    parquet = write(walks(), tmp_path / "walks.parquet")
    lines = write(walks(), tmp_path / "walks.jsonl")
    network = {"kind": "lstm", "pooling": "mean"}
    ways = {
        "parquet": trained(parquet, tmp_path / "a", network, "distance"),
        "again": trained(parquet, tmp_path / "b", network, "distance"),
        "disk": trained(parquet, tmp_path / "c", network, "distance", residence="disk"),
    }
    for way, run in ways.items():
        assert history(run) == history(ways["parquet"]), way
        assert (run / "model" / "weights.safetensors").read_bytes() == (
            ways["parquet"] / "model" / "weights.safetensors"
        ).read_bytes(), way
    from_lines = trained(lines, tmp_path / "d", network, "distance")
    for one, other in zip(history(ways["parquet"]), history(from_lines), strict=True):
        assert other == pytest.approx(one, rel=1e-4)  # means are summed block by block, so last bits may differ
    assert result(from_lines)["test/r2"] > 0.8
    assert evaluate(ways["parquet"], str(lines)) == pytest.approx(evaluate(ways["parquet"], str(parquet)), rel=1e-6)


def test_predictions_of_rows_in_memory_do_not_depend_on_their_company(tmp_path: Path) -> None:
    data = write(walks(), tmp_path / "walks.parquet")
    run = open_run(trained(data, tmp_path / "runs", {"kind": "lstm", "layers": 2}))
    table = walks(20, seed=3)
    together = np.array(run.predict(table)["probability_east"])
    alone = [run.predict(table.slice(i, 1))["probability_east"][0].as_py() for i in range(20)]
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-6)
    assert together.std() > 0.1


def test_rows_without_steps_are_predicted_as_nothing(tmp_path: Path) -> None:
    run = open_run(trained(write(walks(), tmp_path / "walks.parquet"), tmp_path / "runs", {"kind": "rnn"}))
    good, steps = walks(3), walks(3)["steps"].type
    for empty in ([], None):
        rows = {"steps": pa.array([empty, empty], steps), "weather": ["sun", "rain"]}
        assert run.predict(rows)["prediction"].to_pylist() == [None, None]
        first, _, last = good["steps"].to_pylist()
        mixed = good.set_column(0, "steps", pa.array([first, empty, last], steps))
        predicted = run.predict(mixed)["prediction"].to_pylist()
        expected = run.predict(good)["prediction"].to_pylist()
        assert predicted == [expected[0], None, expected[2]]
    assert run.predict(good.slice(0, 0)).num_rows == 0


@pytest.mark.parametrize("network", [{"kind": "lstm", "hidden": 8}, {"kind": "cnn", "normalization": "group"}])
def test_pieces_of_a_ragged_batch_add_up(
    network: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(walks(), tmp_path / "walks.parquet")
    job = {
        "data": {"train": str(data), "target": "distance", "columns": {"place": "ignore"}},
        "network": network,
        "optimization": {"global_batch_size": 32, "max_epochs": 2},
        "resources": {"gpus_per_worker": 0},
        "storage": str(tmp_path / "runs"),
    }
    whole = train(Job.from_dict(job))
    pieces = train(Job.from_dict({**job, "optimization": {**job["optimization"], "accumulate": 4}}))  # type: ignore[dict-item]
    monkeypatch.setattr(batches, "pieces_that_pay", lambda lengths: 3)
    by_length = train(Job.from_dict(job))
    assert history(by_length) != history(whole), "sums in another order"
    for other in (pieces, by_length):
        for a, b in zip(history(whole), history(other), strict=True):
            assert b == pytest.approx(a, rel=1e-4)


def test_networks_that_normalize_batches_see_them_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(walks(), tmp_path / "walks.parquet")
    network = {"kind": "cnn", "channels": [4], "normalization": "batch"}
    whole = trained(data, tmp_path / "a", network)
    monkeypatch.setattr(batches, "pieces_that_pay", lambda lengths: 3)
    assert history(trained(data, tmp_path / "b", network)) == history(whole)
