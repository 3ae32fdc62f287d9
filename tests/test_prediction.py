"""Sources predicted to a file: the rows in their order, the columns added, bad rows, and files written whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from flowers import KINDS, PROBABILITIES, flowers, paint, with_value

from raynn.errors import DataError
from raynn.folder import read_result
from raynn.job import Job
from raynn.prediction import predict
from raynn.trainer import train


def predicted(run: Path, data: str | Path, out: Path) -> pa.Table:
    """What `predict` writes."""
    answer = predict(run, str(data), out)
    table = pq.read_table(out)
    assert answer["rows"] == table.num_rows
    return table


def loss_and_accuracy(table: pa.Table) -> tuple[float, float]:
    """Cross-entropy and accuracy of predicted kinds, from the table alone."""
    truth = np.array(table["kind"])
    probability_NK = np.stack([np.array(table[name]) for name in PROBABILITIES], axis=1)
    of_truth = probability_NK[np.arange(len(truth)), np.searchsorted(KINDS, truth)]
    return float(-np.log(of_truth).mean()), float((np.array(table["prediction"]) == truth).mean())


def test_prediction_keeps_rows_and_adds_columns(classifier: Path, garden: Path, tmp_path: Path) -> None:
    table = predicted(classifier, garden / "flowers.parquet", tmp_path / "deep" / "out.parquet")
    assert table.column_names == [*flowers().column_names, "prediction", *PROBABILITIES]
    assert table.select(flowers().column_names).equals(flowers())
    probability_NK = np.stack([np.array(table[name]) for name in PROBABILITIES], axis=1)
    np.testing.assert_allclose(probability_NK.sum(axis=1), 1.0, atol=1e-12)
    assert np.array(table["prediction"]).tolist() == [KINDS[k] for k in probability_NK.argmax(axis=1)]
    assert set(table["prediction"].to_pylist()) == set(KINDS)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out.parquet"]


@pytest.mark.parametrize(("split", "key"), [("test", "test"), ("validation", "val")])
def test_predictions_of_a_split_give_its_metrics(split: str, key: str, classifier: Path, tmp_path: Path) -> None:
    loss, accuracy = loss_and_accuracy(predicted(classifier, split, tmp_path / "out.parquet"))
    said = read_result(classifier)["metrics"]
    assert accuracy == pytest.approx(said[f"{key}/accuracy"], abs=1e-12)
    assert loss == pytest.approx(said[f"{key}/loss"], rel=1e-5)
    assert accuracy > 0.6


def test_splits_are_parts_of_the_data(classifier: Path, tmp_path: Path) -> None:
    splits = ("train", "validation", "test")
    tables = [predicted(classifier, split, tmp_path / f"{split}.parquet") for split in splits]
    assert [table.num_rows for table in tables] == [156, 24, 60]
    together = pa.concat_tables(tables).select(flowers().column_names)
    order = [(name, "ascending") for name in ("width", "height")]
    assert together.sort_by(order).equals(flowers().sort_by(order))


def test_regression_is_in_the_unit_of_the_target(regressor: Path, tmp_path: Path) -> None:
    table = predicted(regressor, "validation", tmp_path / "out.parquet")
    assert table.column_names == [*flowers().column_names, "prediction"]
    price, prediction = np.array(table["price"]), np.array(table["prediction"])
    said = read_result(regressor)["metrics"]
    assert np.sqrt(np.mean((price - prediction) ** 2)) == pytest.approx(said["val/rmse"], rel=1e-5)
    assert np.abs(price - prediction).mean() == pytest.approx(said["val/mae"], rel=1e-5)
    assert said["val/rmse"] < 0.8 * price.std()
    assert 4000 < prediction.mean() < 6000


def test_csv_and_parquet_give_the_same(classifier: Path, garden: Path, tmp_path: Path) -> None:
    tables = [
        predicted(classifier, garden / f"flowers.{kind}", tmp_path / f"{kind}.parquet") for kind in ("csv", "parquet")
    ]
    assert tables[0]["prediction"].equals(tables[1]["prediction"])
    # batches of other sizes sum in another order
    np.testing.assert_allclose(tables[0]["probability_rose"], tables[1]["probability_rose"], rtol=1e-5)


def test_bad_rows_are_null_and_listed(classifier: Path, tmp_path: Path) -> None:
    pyarrow.csv.write_csv(with_value(flowers(), 5, "width", "wide"), tmp_path / "bad.csv")
    lines = (tmp_path / "bad.csv").read_text().splitlines()
    lines.insert(4, "1,2,3,4,5,6,7,8,9")  # row 3 cannot even be split into columns
    (tmp_path / "bad.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out.parquet"
    assert predict(classifier, str(tmp_path / "bad.csv"), out) == {"rows": 240, "bad_rows": 2, "out": str(out)}
    table = pq.read_table(out)
    for name in ("prediction", *PROBABILITIES):
        assert [i for i, value in enumerate(table[name].to_pylist()) if value is None] == [5]
    listed = [json.loads(line) for line in (tmp_path / "out.parquet.bad_rows.jsonl").read_text().splitlines()]
    assert [(row["file"], row["row"], row["column"]) for row in listed] == [
        (str(tmp_path / "bad.csv"), 3, None),
        (str(tmp_path / "bad.csv"), 6, "width"),
    ]
    assert listed[1]["reason"] == "'wide' is not a number"


def test_bad_rows_of_an_earlier_prediction_do_not_stay(classifier: Path, garden: Path, tmp_path: Path) -> None:
    (tmp_path / "out.parquet.bad_rows.jsonl").write_text("{}\n")
    predicted(classifier, garden / "flowers.csv", tmp_path / "out.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_bad_pictures_are_named_by_file(image_classifier: Path, tmp_path: Path) -> None:
    folder = paint(tmp_path / "new", num_images=3)
    (folder / "dog" / "001.png").write_bytes(b"no picture")
    table = predicted(image_classifier, folder, tmp_path / "out.parquet")
    assert table.column_names == ["image", "label", "prediction", "probability_cat", "probability_dog"]
    assert [value is None for value in table["prediction"].to_pylist()] == [False] * 4 + [True, False]
    (row,) = [json.loads(line) for line in (tmp_path / "out.parquet.bad_rows.jsonl").read_text().splitlines()]
    assert row["file"] == str(folder / "dog" / "001.png")
    assert row["reason"].startswith("not an image: 10 bytes")


def test_quarantined_rows_are_in_no_split(tmp_path: Path) -> None:
    pq.write_table(with_value(flowers(), 7, "price", float("nan")), tmp_path / "flowers.parquet", row_group_size=50)
    tree = {
        "data": {"train": str(tmp_path / "flowers.parquet"), "test": 0.5, "target": "price", "max_bad_rows": 0.01},
        "network": {"kind": "feedforward", "hidden": [4]},
        "optimization": {"max_epochs": 1, "global_batch_size": 16},
        "storage": str(tmp_path),
    }
    run = train(Job.from_dict(tree))
    tables = [predicted(run, split, tmp_path / "out.parquet") for split in ("train", "validation", "test")]
    widths = [width for table in tables for width in table["width"].to_pylist()]
    assert sorted(widths) == sorted(width for i, width in enumerate(flowers()["width"].to_pylist()) if i != 7)
    price, prediction = np.array(tables[2]["price"]), np.array(tables[2]["prediction"])
    assert np.sqrt(np.mean((price - prediction) ** 2)) == pytest.approx(
        read_result(run)["metrics"]["test/rmse"], rel=1e-5
    )


def test_pictures_of_another_size(image_classifier: Path, tmp_path: Path) -> None:
    folder = paint(tmp_path / "new", num_images=1, size=(9, 7))
    said = rf"holds 9 x 7 in {folder}/cat/000\.png, row 0, and others are 8 x 8; set data\.image_size"
    with pytest.raises(DataError, match=said):
        predict(image_classifier, str(folder), tmp_path / "out.parquet")


def test_a_prediction_that_fails_leaves_the_file_as_it_was(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "out.parquet").write_text("precious")
    (tmp_path / "many").mkdir()
    pq.write_table(flowers(), tmp_path / "many" / "a.parquet")
    pq.write_table(flowers().drop_columns("width"), tmp_path / "many" / "b.parquet")
    with pytest.raises(DataError, match="column 'width'"):
        predict(classifier, str(tmp_path / "many"), tmp_path / "out.parquet")
    assert (tmp_path / "out.parquet").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "out.parquet"]


def test_a_run_trained_anew_is_opened_anew(regressor: Path, classifier: Path, garden: Path, tmp_path: Path) -> None:
    shutil.copytree(regressor, tmp_path / "run")
    first = predicted(tmp_path / "run", garden / "flowers.csv", tmp_path / "out.parquet")
    assert pa.types.is_floating(first["prediction"].type)
    shutil.rmtree(tmp_path / "run")
    shutil.copytree(classifier, tmp_path / "run")
    second = predicted(tmp_path / "run", garden / "flowers.csv", tmp_path / "out.parquet")
    assert set(second["prediction"].to_pylist()) == set(KINDS)
