"""A run that has ended: how it is opened and evaluated, and what it predicts in memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from flowers import KINDS, PROBABILITIES, flowers
from safetensors.torch import load_file

from raynn.errors import DataError
from raynn.prediction import predict
from raynn.run import evaluate, open_run


def metrics_of(run: Path, split: str) -> dict[str, Any]:
    """Metrics of one split in result.json."""
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    return {key: value for key, value in metrics.items() if key.startswith(f"{split}/")}


def test_evaluation_is_that_of_the_training(classifier: Path) -> None:
    said = metrics_of(classifier, "test")
    assert set(said) == {"test/loss", "test/accuracy", "test/f1_macro", "test/auroc"}
    assert evaluate(classifier) == pytest.approx(said, rel=1e-6)
    assert evaluate(classifier, "validation") == pytest.approx(metrics_of(classifier, "val"), rel=1e-6)


def test_evaluation_of_data(classifier: Path, tmp_path: Path) -> None:
    predict(classifier, "test", tmp_path / "test.parquet")
    rows = pq.read_table(tmp_path / "test.parquet").select(flowers().column_names)
    pyarrow.csv.write_csv(rows, tmp_path / "rows.csv")
    assert evaluate(classifier, str(tmp_path / "rows.csv")) == pytest.approx(metrics_of(classifier, "test"), rel=1e-6)


def test_tables_in_memory(classifier: Path, garden: Path, tmp_path: Path) -> None:
    run = open_run(classifier)
    predict(classifier, str(garden / "flowers.parquet"), tmp_path / "out.parquet")
    expected = pq.read_table(tmp_path / "out.parquet")
    table = flowers().drop_columns("kind")  # the target is not needed
    for data in (
        table,
        table.to_pandas(),
        table.to_pydict(),
        {name: np.array(table[name]) for name in table.schema.names},
    ):
        answer = run.predict(data)
        assert answer.column_names == [*table.column_names, "prediction", *PROBABILITIES]
        assert answer["prediction"].equals(expected["prediction"])
        np.testing.assert_allclose(answer["probability_rose"], expected["probability_rose"], rtol=1e-5)
    assert run.predict(table.slice(0, 0)).num_rows == 0


@pytest.mark.parametrize("data", [[1, 2], {"width": [1.0], "height": [1.0, 2.0]}, "flowers.csv"])
def test_what_is_not_a_table(data: Any, classifier: Path) -> None:
    with pytest.raises(
        DataError, match=f"the data, a {type(data).__name__}, cannot be read as a table .* give a pyarrow"
    ):
        open_run(classifier).predict(data)


def test_a_feature_is_missing_in_memory(classifier: Path) -> None:
    with pytest.raises(DataError, match="column 'width', on which the model was trained, is missing"):
        open_run(classifier).predict(flowers().drop_columns("width"))


def test_columns_of_the_same_name_stay(classifier: Path) -> None:
    table = flowers().append_column("prediction", pa.array(["mine"] * 240))
    answer = open_run(classifier).predict(table)
    assert answer.column_names[-4:] == ["prediction", "prediction_", *PROBABILITIES]
    assert set(answer["prediction"].to_pylist()) == {"mine"}
    assert set(answer["prediction_"].to_pylist()) == set(KINDS)


def test_the_model_is_plain_files_without_pickle(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {path.name for path in (classifier / "model").iterdir()} == {
        "weights.safetensors",
        "preprocessing.json",
        "job.yaml",
    }
    assert not [path for path in classifier.rglob("*") if path.suffix in (".pt", ".pth", ".pkl", ".pickle", ".bin")]

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a pickle was opened")

    for module, name in ((torch, "load"), (torch.serialization, "load")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    monkeypatch.setattr("pickle.load", refuse)
    state = open_run(classifier).model.state_dict()
    weights = load_file(classifier / "model" / "weights.safetensors")
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name].cpu(), weights[name]) for name in weights)


def test_a_run_may_be_moved(classifier: Path, garden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(classifier, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert evaluate("moved") == evaluate(classifier)
    predict("moved", str(garden / "flowers.csv"), tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["prediction"].null_count == 0
