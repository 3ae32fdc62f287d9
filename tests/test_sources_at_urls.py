"""Data on a real S3 server, of every format: the rows of the local files, and the same training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from flowers import flowers, paint
from s3 import Bucket

from raynn.errors import DataError
from raynn.fragments import read_fragment
from raynn.job import Job
from raynn.run import evaluate
from raynn.sources import find_fragments
from raynn.trainer import train


def parquet(folder: Path) -> None:
    for number in range(3):
        pq.write_table(flowers().slice(50 * number, 50), folder / f"part-{number}.parquet")


def csv(folder: Path) -> None:
    pa.csv.write_csv(flowers(), folder / "part-0.csv")


def json_lines(folder: Path) -> None:
    lines = [json.dumps(row, default=str) + "\n" for row in flowers().select(["kind", "price"]).to_pylist()]
    (folder / "part-0.jsonl").write_text("".join(lines))


def texts(folder: Path) -> None:
    for number in range(3):
        (folder / f"part-{number}.txt").write_text(f"this is text {number}\n" * 20)


def images(folder: Path) -> None:
    paint(folder)


FORMATS: dict[str, tuple[Callable[[Path], None], str]] = {
    "parquet": (parquet, "*.parquet"),
    "csv": (csv, "part-*.csv"),
    "jsonl": (json_lines, "*.jsonl"),
    "text": (texts, "*.txt"),
    "image_folder": (images, "*/*.png"),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("way", ["folder", "glob", "list"])
def test_rows_are_those_of_the_local_files(bucket: Bucket, tmp_path: Path, kind: str, way: str) -> None:
    write, pattern = FORMATS[kind]
    (tmp_path / "data").mkdir()
    write(tmp_path / "data")
    bucket.upload(tmp_path / "data", "data")
    names = sorted(path.name for path in (tmp_path / "data").iterdir())
    ways: dict[str, Callable[[Callable[[str], str]], str | tuple[str, ...]]] = {
        "folder": lambda place: place("data"),
        "glob": lambda place: place(f"data/{pattern}"),
        "list": lambda place: tuple(place(f"data/{name}") for name in names),
    }
    if kind == "image_folder" and way == "list":
        pytest.skip("a folder of one class has no label")

    def rows(source: str | tuple[str, ...]) -> list[dict[str, object]]:
        tables = [read_fragment(fragment)[0] for fragment in find_fragments(source, tmp_path)]
        return pa.concat_tables(tables).to_pylist()

    assert rows(ways[way](bucket.url)) == rows(ways[way](lambda path: str(tmp_path / path)))


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_trained_on_a_url_as_on_files(bucket: Bucket, tmp_path: Path, kind: str) -> None:
    write, pattern = FORMATS[kind]
    (tmp_path / "data").mkdir()
    write(tmp_path / "data")
    bucket.upload(tmp_path / "data", "data")
    curves = []
    for number, place in enumerate((bucket.url(f"data/{pattern}"), str(tmp_path / "data" / pattern))):
        job = {
            "name": f"flowers-{number}",
            "data": {"train": place, "target": "kind", "test": 0.2},
            "network": {"kind": "feedforward", "hidden": [8]},
            "optimization": {"global_batch_size": 16, "max_epochs": 2},
            "storage": str(tmp_path / "runs"),
        }
        run = train(Job.from_dict(job))
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        curves.append([[record["train/loss"], record["val/loss"]] for record in records])
        assert evaluate(run)["test/loss"] > 0
    assert curves[0] == curves[1]


def test_what_is_not_there_is_named(bucket: Bucket, tmp_path: Path) -> None:
    url = bucket.url("nothing/*.parquet")
    with pytest.raises(DataError) as caught:
        find_fragments(url, tmp_path)
    assert str(caught.value) == f"{url}: nothing there; look at the address and at what its folder holds"
    missing = bucket.url("x.parquet").replace(bucket.name, "no-such-bucket")
    with pytest.raises(DataError, match="no-such-bucket"):
        find_fragments(missing, tmp_path)


def test_a_corrupt_file_is_named(bucket: Bucket, tmp_path: Path) -> None:
    bucket.write("data/t.parquet", b"PAR1 and nothing more")
    with pytest.raises(DataError, match=r"data/t\.parquet: cannot be read as parquet: .*; mend or replace it"):
        find_fragments(bucket.url("data/t.parquet"), tmp_path)
    shutil.rmtree(tmp_path, ignore_errors=True)
