"""README.md of a run, read as a model hub reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from raynn.card import card_text, write_card
from raynn.folder import read_result

TAGS = {
    "classifier": "tabular-classification",
    "regressor": "tabular-regression",
    "image_classifier": "image-classification",
    "forecaster": "time-series-forecasting",
    "writer": "text-generation",
    "painter": "unconditional-image-generation",
}


def parts(text: str) -> tuple[dict[str, Any], str]:
    """Front matter and body."""
    empty, front, body = text.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(front), body


@pytest.mark.parametrize("name", TAGS)
def test_a_card_of_each_task(name: str, request: pytest.FixtureRequest) -> None:
    run: Path = request.getfixturevalue(name)
    front, body = parts(card_text(run))
    assert front["library_name"] == "raynn"
    assert front["pipeline_tag"] == TAGS[name]
    metrics = read_result(run)["metrics"]
    (result,) = front["model-index"][0]["results"]
    prefix = "test/" if any(key.startswith("test/") for key in metrics) else "val/"
    assert {row["name"]: row["value"] for row in result["metrics"]} == {
        key: value for key, value in metrics.items() if key.startswith(prefix)
    }
    assert result["dataset"]["split"] == {"test/": "test", "val/": "validation"}[prefix]
    assert result["task"]["type"] == TAGS[name]
    for heading in ("Use", "Data", "Figures", "Settings", "Limits", "Repeat"):
        assert f"## {heading}\n" in body
    assert ("There was no test set" in body) == (prefix == "val/")
    assert f"raynn {'generate' if name in ('writer', 'painter') else 'predict'} {run.name}" in body


def test_a_card_tells_no_folder_of_this_machine(classifier: Path) -> None:
    assert str(classifier.parent) not in card_text(classifier)
    assert "`flowers.parquet`" in card_text(classifier)


def test_the_card_of_a_search_says_that_it_chose(classifier: Path, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    shutil.copytree(classifier, folder)
    result = read_result(folder) | {"trials": {"finished": 3, "cut": 5}}
    (folder / "result.json").write_text(json.dumps(result))
    body = parts(card_text(folder))[1]
    assert "It is the best of 8 trials of a search." in body
    assert "The validation figures chose among trials, too" in body


def test_a_column_does_not_end_its_cell(classifier: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(classifier, folder)
    path = folder / "model" / "preprocessing.json"
    content = json.loads(path.read_text())
    content["features"][0]["name"] = "a|b\nc"
    path.write_text(json.dumps(content))
    assert "| a\\|b c |" in card_text(folder)


def test_no_card_without_a_model(tmp_path: Path) -> None:
    assert write_card(tmp_path) is None
    assert not list(tmp_path.iterdir())
