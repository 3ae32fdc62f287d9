"""Data of which no table is kept: the same rows, batches and losses as of those that are, and errors that are said."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from flowers import flowers, with_value

from raynn import shards
from raynn.drivers import LocalDriver, StreamingDriver
from raynn.encoded import Recipe, fetched, itself
from raynn.errors import DataError, ResourceError
from raynn.job import Job
from raynn.preparation import Prepared, facts_of, prepare, understand
from raynn.sources import DataSettings
from raynn.splits import TEST, TRAIN, VALIDATION
from raynn.trainer import train

DRIVERS = (LocalDriver, StreamingDriver)


def prepared_by(driver: LocalDriver, folder: Path, **data: Any) -> Prepared:
    settings = DataSettings(**{"target": "kind", "train": "flowers.parquet", **data})
    return prepare(understand(settings, folder), None, 3, driver)


@pytest.mark.parametrize(
    "data",
    [
        {"test": 0.2, "max_bad_rows": 0.1},
        {"target": "price", "group": "garden", "max_bad_rows": 0.1},
        {"test": {"column": "part", "equals": "north"}, "max_bad_rows": 0.1},
        {"validation": "more.csv", "max_bad_rows": 0.1},
    ],
)
def test_the_rows_are_those_of_kept_tables(data: dict[str, Any], tmp_path: Path) -> None:
    bad = with_value(with_value(flowers(), 5, "kind", None), 77, "price", float("nan"))
    pq.write_table(bad, tmp_path / "flowers.parquet", row_group_size=33)
    pyarrow.csv.write_csv(flowers(30, seed=2), tmp_path / "more.csv")
    kept, streamed = (prepared_by(driver(), tmp_path, **data) for driver in DRIVERS)
    assert all(isinstance(block, Recipe) for block in streamed.encoded.blocks)  # type: ignore[attr-defined]
    assert streamed.preprocessing == kept.preprocessing
    assert streamed.bad_rows == kept.bad_rows
    assert len(kept.bad_rows) == 1
    for ours, theirs in zip(streamed.splits, kept.splits, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for split in (TRAIN, VALIDATION, TEST):
        num_rows = kept.encoded.num_rows(split)
        both = [list(each.encoded.pieces(split, 0, num_rows, itself)) for each in (kept, streamed)]
        assert sum(len(piece["target"]) for piece in both[1]) == num_rows
        for one, other in zip(*both, strict=True):
            assert one.keys() == other.keys()
            for name, values in one.items():
                np.testing.assert_array_equal(np.asarray(values), np.asarray(other[name]))


def job_of(folder: Path, **sections: Any) -> Job:
    tree: dict[str, Any] = {
        "data": {"train": str(folder / "flowers.parquet"), "target": "kind", "test": 0.2},
        "network": {"kind": "feedforward", "hidden": [8]},
        "regularization": {"dropout": 0.2},
        "optimization": {"max_epochs": 2, "global_batch_size": 16},
        "storage": str(folder / "runs"),
        "report": False,
    }
    return Job.from_dict(
        {name: {**tree.get(name, {}), **value} for name, value in sections.items()}
        | {name: value for name, value in tree.items() if name not in sections}
    )


def losses(run: Path) -> list[list[float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [[line[key] for key in ("train/loss", "val/loss")] for line in lines]


def test_the_losses_are_those_of_kept_tables_in_memory(tmp_path: Path) -> None:
    pq.write_table(flowers(), tmp_path / "flowers.parquet", row_group_size=33)
    ways: tuple[dict[str, Any], ...] = (
        {"preparation": "keep"},
        {"preparation": "stream"},
        {"preparation": "stream", "residence": "disk"},
    )
    runs = [train(job_of(tmp_path, resources=way)) for way in ways]
    expected = losses(runs[0])
    assert len(expected) == 2
    assert [losses(run) for run in runs[1:]] == [expected] * 2
    results = [json.loads((run / "result.json").read_text())["metrics"] for run in runs]
    assert results[0]["test/loss"] == results[1]["test/loss"] == results[2]["test/loss"]


def test_files_of_rows_are_in_the_folder_that_is_named_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(flowers(), tmp_path / "flowers.parquet")
    made = []

    def allocate(file: int, num_bytes: int) -> None:
        made.append(os.readlink(f"/proc/self/fd/{file}"))
        os.truncate(file, num_bytes)

    monkeypatch.setattr(shards, "_allocate", allocate)
    job = job_of(tmp_path, resources={"residence": "disk", "scratch": str(tmp_path / "fast")})
    run = train(job)
    assert len(made) == 9  # numbers, categories and target of three splits
    assert all(path.startswith(f"{tmp_path}/fast/raynn-") for path in made)
    assert not list((tmp_path / "fast").iterdir())
    assert not (run / "scratch").exists()


def test_a_disk_that_is_too_small_is_refused_before_there_is_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(flowers(), tmp_path / "flowers.parquet")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(ResourceError, match=r"on a disk with 0 MiB free.*resources.scratch=FOLDER"):
        train(job_of(tmp_path, resources={"residence": "disk"}))
    assert not list((tmp_path / "runs").iterdir())


def test_small_data_are_kept_and_large_are_not(tmp_path: Path) -> None:
    pq.write_table(flowers(), tmp_path / "flowers.parquet")
    settings = DataSettings(train="flowers.parquet", target="kind")
    footprint = understand(settings, tmp_path).footprint
    assert footprint is not None
    assert (footprint.rows, footprint.counted) == (240, True)
    room = 2 * footprint.table_bytes
    assert footprint.kept(room, "auto")
    assert not footprint.kept(room - 2, "auto")
    assert footprint.kept(1, "keep")
    assert not footprint.kept(room, "stream")
    assert "kept in the store" in footprint.said(True, "the store", room)
    told = footprint.said(False, "the store", room)
    assert told.startswith("240 rows of ")
    assert "MiB: no table is kept, and the sources are read three times, a block at a time" in told
    assert "more than half of the store" in footprint.said(False, "the store", room - 2)


@pytest.mark.parametrize("name", ["flowers.parquet", "flowers.csv", "flowers.jsonl"])
def test_the_estimate_is_near_what_tables_take(name: str, tmp_path: Path) -> None:
    table = flowers(2000)
    if name.endswith("parquet"):
        pq.write_table(table, tmp_path / name, row_group_size=500)
    elif name.endswith("csv"):
        pyarrow.csv.write_csv(table, tmp_path / name)
    else:
        (tmp_path / name).write_text("".join(json.dumps(row, default=str) + "\n" for row in table.to_pylist()))
    understood = understand(DataSettings(train=name, target="kind"), tmp_path)
    ready = prepare(understood, None, 0, LocalDriver())
    cleaned = [understood.plan.read(index, fragment) for index, fragment in enumerate(understood.fragments)]
    footprint = understood.footprint
    assert footprint is not None
    assert footprint.rows == pytest.approx(2000, rel=0.2)
    assert footprint.counted == name.endswith("parquet")
    assert footprint.cleaned_bytes == pytest.approx(sum(table.nbytes for table in cleaned) / 2000, rel=0.2)
    encoded = sum(block.nbytes for block in ready.encoded.blocks) / 2000  # type: ignore[attr-defined]
    assert footprint.encoded_bytes == pytest.approx(encoded, rel=0.2)


def test_what_the_driver_knows_of_a_row_is_small() -> None:
    table = pa.table(
        {
            "few": pa.array(np.arange(10_000) % 100),
            "many": pa.array(np.arange(10_000) + 2**40),
            "name": pa.array([f"name {row % 7}" for row in range(10_000)]),
            "reason": pa.nulls(10_000, pa.string()),
        }
    )
    found = facts_of(table, table.column_names)
    assert [str(found[name].type) for name in ("few", "many", "reason")] == ["int8", "int64", "null"]
    assert found["name"].cast(pa.string()).to_pylist() == table["name"].to_pylist()
    assert found.select(["few", "name", "reason"]).nbytes < 6 * 10_000


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    pq.write_table(flowers(), tmp_path / "flowers.parquet", row_group_size=80)
    ready = prepared_by(StreamingDriver(), tmp_path)
    pq.write_table(flowers(230), tmp_path / "flowers.parquet", row_group_size=70)
    with pytest.raises(DataError, match=r"a source has changed while it was prepared: a part of it had 80 rows"):
        list(ready.encoded.pieces(TRAIN, 0, ready.encoded.num_rows(TRAIN), itself))


@pytest.mark.parametrize("preparation", ["keep", "stream"])
@pytest.mark.parametrize("label", [None, "a flower of its own"])
def test_what_is_wrong_in_a_late_block_ends_the_run(label: str | None, preparation: str, tmp_path: Path) -> None:
    pq.write_table(flowers(), tmp_path / "flowers.parquet", row_group_size=50)
    pq.write_table(with_value(flowers(60, seed=1), 55, "kind", label), tmp_path / "late.parquet", row_group_size=20)
    data = {"train": str(tmp_path / "flowers.parquet"), "target": "kind", "validation": str(tmp_path / "late.parquet")}
    job = job_of(tmp_path, resources={"preparation": preparation}, data={**data, "test": None})
    expected = r"late.parquet, row 55, column kind: missing target" if label is None else r"a flower of its own"
    with pytest.raises(DataError, match=expected):
        train(job)


def test_blocks_are_made_no_further_ahead_than_threads_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    made, lock = [], threading.Lock()

    def make(number: int) -> Any:
        def read() -> pa.Table:
            with lock:
                made.append(number)
            return pa.table({"number": [number]})

        return Recipe(read)

    tables = fetched([make(number) for number in range(20)], itself)
    for number in range(20):
        assert next(tables)["number"].to_pylist() == [number]
        assert max(made) <= number + 2
    assert sorted(made) == list(range(20))
