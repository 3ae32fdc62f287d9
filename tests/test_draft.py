"""`raynn init`: what it says of each kind of data, and that the job file it writes trains as it is."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flowers import flowers, paint

from raynn.cli import main
from raynn.draft import draft_job
from raynn.errors import DataError
from raynn.folder import read_result
from raynn.job import Job
from raynn.trainer import train

DAY = datetime.date(2024, 1, 1)


def series(num_days: int = 120, num_series: int = 2) -> pa.Table:
    """Daily values of some series, one after the other, weekends left out."""
    days = [day for i in range(num_days) if (day := DAY + datetime.timedelta(i)).weekday() < 5]
    rng = np.random.default_rng(0)
    columns = {
        "shop": [f"shop {s}" for s in range(num_series) for _ in days],
        "day": days * num_series,
        "sales": rng.normal(size=len(days) * num_series).cumsum().round(3),
    }
    return pa.table(columns)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pq.write_table(flowers(120), "flowers.parquet")
    pq.write_table(series(), "shops.parquet")
    rng = np.random.default_rng(0)
    for name, lengths in (("steady", [6] * 60), ("walks", rng.integers(3, 9, 60))):
        walks = [rng.normal(size=length).tolist() for length in lengths]
        pq.write_table(pa.table({"walk": walks, "kind": ["up", "down"] * 30}), f"{name}.parquet")
    paint(tmp_path / "pets", 30)
    return tmp_path


SOURCES: dict[str, tuple[str, str | None, str, str, list[str]]] = {
    # source, target, task, network, what the file says of it
    "classes": (
        "flowers.parquet",
        "kind",
        "classification",
        "feedforward",
        [
            "120 rows of flowers.parquet",
            "target 'kind' holds string; a table",
            "#   planted  date",
            "monitor: val/accuracy",
        ],
    ),
    "numbers": ("flowers.parquet", "price", "regression", "feedforward", ["monitor: val/loss", "target: price"]),
    "images": ("pets", "label", "classification", "cnn", ["60 rows of pets", "#   image  image", "8 x 8 color"]),
    "sequences": ("steady.parquet", "kind", "classification", "cnn", ["sequences of one length: a cnn"]),
    "sequences of any length": ("walks.parquet", "kind", "classification", "lstm", ["sequences: an lstm"]),
    "catalog": ("breast_cancer", None, "classification", "feedforward", ["569 rows", "target: diagnosis"]),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_drafted_job_says_what_was_seen_and_trains_as_it_is(data: Path, name: str) -> None:
    source, target, task, kind, said = SOURCES[name]
    draft = draft_job(source, target)
    assert (draft.task, draft.kind) == (task, kind)
    for text in said:
        assert text in draft.text
    Path("drafted.yaml").write_text(draft.text)
    job = Job.load("drafted.yaml", ["optimization.max_epochs=1", "tracking.wandb.mode=disabled"])
    result = read_result(train(job, data))
    assert result["epochs"] == 1
    assert f"val/{'accuracy' if task == 'classification' else 'loss'}" in result["metrics"]


def test_series_are_seen_by_their_even_steps(data: Path) -> None:
    draft = draft_job("shops.parquet", "sales")
    assert (draft.task, draft.kind) == ("forecasting", "lstm")
    assert "  time: day\n  series: shop\n" in draft.text
    pq.write_table(series(num_series=1).drop_columns("shop"), "shop.parquet")
    assert "series:" not in draft_job("shop.parquet", "sales").text
    uneven = series(num_series=1).set_column(
        1, "day", pa.array([DAY + datetime.timedelta(int(i) ** 2) for i in range(series(num_series=1).num_rows)])
    )
    pq.write_table(uneven, "uneven.parquet")
    assert draft_job("uneven.parquet", "sales").task == "regression"


def test_a_group_is_proposed(data: Path) -> None:
    table = flowers(100).rename_columns([{"garden": "subject_id"}.get(name, name) for name in flowers(1).column_names])
    pq.write_table(table, "grouped.parquet")
    assert "  # group: subject_id" in draft_job("grouped.parquet", "kind").text


def test_a_table_needs_a_target(data: Path) -> None:
    with pytest.raises(DataError) as caught:
        draft_job("flowers.parquet")
    assert str(caught.value) == (
        "flowers.parquet is a table: name the column to predict, for instance `--target price`. Its columns: width, "
        "height, color, planted, garden, part, kind, price"
    )


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = main(list(arguments))
    return code, capsys.readouterr()


def test_the_command(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = answered(capsys, "init", "flowers.parquet", "--target", "kind")
    assert code == 0
    assert said.out.splitlines()[-1] == (
        "flowers.yaml: classification with network.kind feedforward; next: raynn train flowers.yaml"
    )
    assert Path("flowers.yaml").read_text() in said.out
    code, said = answered(capsys, "init", "flowers.parquet", "--target", "price")
    assert (code, said.err) == (
        2,
        "raynn init: flowers.yaml exists already, and is not written over; name another with --out\n",
    )
    code, _ = answered(capsys, "init", "flowers.parquet", "--target", "price", "--out", "new/prices.yaml", "--json")
    assert code == 0
    assert Job.load("new/prices.yaml").name == "prices"
