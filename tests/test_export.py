from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import raynn.export
from raynn.encoded import shaped_arrays
from raynn.errors import RunError
from raynn.export import Exported, export
from raynn.preprocessing import InputSpec, Preprocessing
from raynn.run import open_run


def predicted_by(path: Path, columns: dict[str, Any]) -> Any:
    """What another program gets from the exported file."""
    if path.suffix == ".onnx":
        return onnxruntime.InferenceSession(str(path)).run(None, columns)[0]
    tensors = [torch.tensor(column) for column in columns.values()]
    return torch.export.load(path).module()(*tensors).detach().numpy()


@pytest.mark.parametrize("format", ["onnx", "torch_export"])
def test_an_exported_classifier_predicts_what_the_run_does(
    garden: Path, classifier: Path, tmp_path: Path, format: Any
) -> None:
    out = tmp_path / "new" / f"net{raynn.export.SUFFIXES[format]}"  # type: ignore[index]
    answer = export(classifier, format, out)
    assert answer["difference"] <= 1e-6
    assert sorted(path.name for path in out.parent.iterdir()) == sorted(
        [out.name, "net.json", "net.preprocessing.json"]
    ), "and nothing half written"
    described = json.loads((out.parent / "net.json").read_text())
    assert described["outputs"] == {
        "prediction": {"type": "float32", "shape": ["rows", 2], "classes": ["iris", "rose"]}
    }
    preprocessing = Preprocessing.from_json((out.parent / "net.preprocessing.json").read_text())
    rows = pq.read_table(garden / "flowers.parquet").slice(0, 40)
    run = open_run(classifier)
    wanted = run.predict(rows)
    cleaned = raynn.run.clean(rows, preprocessing.features, (), (), run.job.data)[0]
    columns = shaped_arrays(preprocessing.encode(cleaned), preprocessing.input_spec)
    assert list(columns) == list(described["inputs"])
    found = predicted_by(out, columns)
    for k, name in enumerate(["probability_iris", "probability_rose"]):
        np.testing.assert_allclose(found[:, k], wanted[name].to_numpy(), atol=1e-6)


def test_an_exported_regressor_answers_in_the_unit_of_the_target(garden: Path, regressor: Path) -> None:
    answer = export(regressor, "torch_export")
    path = Path(answer["out"])
    assert path == regressor / "model" / "model.pt2"
    assert answer["outputs"]["prediction"]["shape"] == ["rows"]
    run = open_run(regressor)
    rows = pq.read_table(garden / "flowers.parquet").slice(0, 9)
    cleaned = raynn.run.clean(rows, run.preprocessing.features, (), (), run.job.data)[0]
    columns = shaped_arrays(run.preprocessing.encode(cleaned), run.preprocessing.input_spec)
    np.testing.assert_allclose(predicted_by(path, columns), run.predict(rows)["prediction"].to_numpy(), rtol=1e-5)


def test_an_exported_cnn_takes_pixels(image_classifier: Path, tmp_path: Path) -> None:
    answer = export(image_classifier, "onnx", tmp_path / "pets.onnx")
    assert answer["inputs"] == {"image": {"type": "uint8", "shape": ["rows", 3, 8, 8]}}
    assert predicted_by(tmp_path / "pets.onnx", {"image": np.zeros((3, 3, 8, 8), np.uint8)}).shape == (3, 2)


class Deciding(nn.Module):
    """Its computation depends on its inputs' values."""

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return batch["numeric"] if batch["numeric"].sum() > 0 else -batch["numeric"]


def test_what_cannot_be_exported_says_why(classifier: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inputs = InputSpec(num_numeric=2)
    example = raynn.export.example_batch(inputs, 2, 3)
    with pytest.raises(RunError, match=r"^the network cannot be exported: .*depend on its inputs' values$"):
        raynn.export._traced(Exported(Deciding(), inputs, tuple(example)), inputs, example)
    monkeypatch.setattr(raynn.export, "TOLERANCE", -1.0)
    with pytest.raises(RunError, match=r"disagrees with the run by 0 .* was not kept; try the other --format"):
        export(classifier, "torch_export", tmp_path / "x.pt2")
    assert not list(tmp_path.iterdir())


def test_refusals(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match=re.escape("--out x.pt must end in .pt2 for --format torch_export; rename it")):
        export(classifier, "torch_export", "x.pt")
    monkeypatch.setattr(raynn.export, "NEEDED", ("onnx", "onnxnowhere"))
    with pytest.raises(RunError, match=r"^--format onnx needs onnxnowhere: pip install 'raynn\[onnx\]'"):
        export(classifier, "onnx")
