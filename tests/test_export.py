from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch
from contracts import CASES, Case, build, keys, over, shaken
from torch import nn

import raynn.export
from raynn.cleaning import clean
from raynn.encoded import shaped_arrays
from raynn.errors import RunError
from raynn.export import EXAMPLE_ROWS, EXAMPLE_STEPS, Exported, example_batch, export
from raynn.job import Job
from raynn.networks.flow_matching import FlowMatching, integrate
from raynn.preprocessing import InputSpec, Preprocessing
from raynn.run import open_run
from raynn.scan import ScannedLayer, scanned
from raynn.trainer import train


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
    cleaned = clean(rows, preprocessing.features, (), (), run.job.data)[0]
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
    cleaned = clean(rows, run.preprocessing.features, (), (), run.job.data)[0]
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


class Counting(nn.Module):
    """Takes the size of an axis as a number."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        x = batch["numeric" if "numeric" in batch else "sequence"]
        return x.flatten(1)[:, :1] * int(x.shape[self.axis])


class Smoothing(nn.Module):
    """Reads what it is to predict."""

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return batch["numeric"] + batch["target"][:, None]


def graph_of(network: nn.Module, inputs: InputSpec) -> tuple[torch.export.ExportedProgram, Exported]:
    """Of an example's rows and steps."""
    example = example_batch(network, inputs, EXAMPLE_ROWS, EXAMPLE_STEPS)
    model = Exported(network, inputs, tuple(example)).eval()
    return raynn.export._traced(model, inputs, example), model


def assert_exported(case: Case, path: Path, numbers: Sequence[tuple[int, int]]) -> None:
    """Written, read again and run on other numbers of rows and of steps."""
    network = shaken(build(case)).eval()
    program, model = graph_of(network, case.inputs)
    write = raynn.export._onnx if path.suffix == ".onnx" else raynn.export._torch
    for num_rows, num_steps in numbers:
        checked = example_batch(network, case.inputs, num_rows, num_steps, seed=num_rows)
        found = write(program, checked, path)
        with torch.no_grad():
            expected = model(*checked.values())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# A network of each sort, in the task whose graph asks most of it; the rest are in the slow tier.
SORTS = (
    "feedforward-classification-steps and table",
    "cnn-classification-image",
    "cnn-classification-text",
    "rnn-gru-classification-steps",
    "rnn-language_modeling-tokens",
    "lstm-forecasting-series",
    "image_generator-vae-image_generation-pictures",
    "text_generator-transformer-language_modeling-tokens",
    "text_generator-lstm-language_modeling-tokens",
    "custom-forecasting-series and covariates",
)


@pytest.mark.parametrize("case", [case for case in CASES if str(case) in SORTS], ids=str)
def test_a_network_of_each_sort_is_a_graph_of_any_number_of_rows_and_steps(case: Case, tmp_path: Path) -> None:
    assert_exported(case, tmp_path / "network.pt2", [(1, 203)])


def test_a_recurrent_network_is_onnx(tmp_path: Path) -> None:
    assert set(SORTS) <= {str(case) for case in CASES}
    (case,) = [case for case in CASES if str(case) == "rnn-gru-classification-steps"]
    assert_exported(case, tmp_path / "network.onnx", [(1, 203)])


@pytest.mark.slow
@over(CASES)
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_every_network_in_every_format(case: Case, suffix: str, tmp_path: Path) -> None:
    assert_exported(case, tmp_path / f"network{suffix}", [(1, 203), (5, 40)])


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(3, 4, batch_first=True),
        nn.GRU(3, 4, batch_first=True),
        nn.RNN(3, 4, batch_first=True),
        nn.RNN(3, 4, nonlinearity="relu", batch_first=True),
    ],
    ids=lambda layer: layer.mode,
)
def test_a_scanned_layer_is_the_layer(layer: nn.RNNBase) -> None:
    layer, x_BTF = shaken(layer, 0.5).double(), torch.randn(5, 7, 3, dtype=torch.float64)
    (found,) = [module for module in scanned(nn.Sequential(layer)).modules() if isinstance(module, ScannedLayer)]
    with torch.no_grad():
        torch.testing.assert_close(found(x_BTF)[0], layer(x_BTF)[0], rtol=0, atol=1e-12)


def test_layers_that_a_scan_does_not_know_stay() -> None:
    for layer in (nn.LSTM(3, 4, 2), nn.GRU(3, 4, bidirectional=True), nn.LSTM(3, 4, proj_size=2), nn.RNN(3, 4)):
        assert not [m for m in scanned(nn.Sequential(layer)).modules() if isinstance(m, ScannedLayer)]


def guided(graph: nn.Module, class_N: torch.Tensor, strength: float, x: torch.Tensor, time: float) -> torch.Tensor:
    told, untold = (graph(x, x.new_full((4,), time), c) for c in (class_N, torch.full_like(class_N, 3)))
    return torch.lerp(untold, told, strength)


def test_a_sampler_of_another_program_draws_the_pictures_of_the_run() -> None:
    """Flow matching by its exported velocity, a VAE by its exported decoder, from the run's own noise."""
    for case in CASES:
        if case.kind != "image_generator" or case.data != "pictures by class":
            continue
        network, class_N = shaken(build(case)).eval(), torch.tensor([0, 1, 2, 0])
        program, _ = graph_of(network, case.inputs)
        graph = program.module()
        with torch.no_grad():
            if isinstance(network, FlowMatching):
                strength = network.settings.guidance
                drawn = integrate(partial(guided, graph, class_N, strength), network._noise(keys(4)), 2)
                drawn = drawn * network.image.std_C11 + network.image.mean_C11
            else:
                blocks = raynn.export._latent_blocks(network)
                drawn = graph(torch.cat([block.noise(keys(4)) for block in blocks], dim=1), class_N)
            expected = network.draw(keys(4), class_N, None, None)
        torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-2)


def test_what_cannot_be_exported_says_why(classifier: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for network, inputs, says in (
        (Deciding(), InputSpec(num_numeric=2), "Could not guard on data-dependent .* depend on its inputs' values"),
        (
            Counting(0),
            InputSpec(num_numeric=2),
            r"its code takes the number of rows as a constant; write x\.shape\[0\] ",
        ),
        (Counting(1), InputSpec(sequence_TC=(0, 2)), r"its code takes the number of steps as a constant; write x\.s"),
        (Smoothing(), InputSpec(num_numeric=2), "it reads the column 'target', which only training has$"),
    ):
        with pytest.raises(RunError, match=f"^the network cannot be exported: {says}"):
            graph_of(network, inputs)
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


def test_a_network_that_runs_step_by_step_is_refused_with_the_way_out(tmp_path: Path) -> None:
    job = {
        "data": {"train": "digits_sequence", "target": "label"},
        "network": {"kind": "rnn", "hidden": 4},
        "regularization": {"zoneout": 0.1},
        "optimization": {"max_epochs": 1},
        "storage": str(tmp_path),
    }
    run = train(Job.from_dict(job))
    says = (
        "regularization.zoneout runs the network step by step, as many as there are, which is no graph for any length"
    )
    with pytest.raises(RunError, match=f"{says} to export; train with zoneout: 0 and zoneout_cell: 0, or use"):
        export(run, "torch_export")
    assert not list((run / "model").glob("*.pt2"))
