"""A run's network for other programs: as ONNX, or as a torch.export program; checked against the run before it is kept.

What is exported takes encoded columns (the encoding is preprocessing.json, written beside it) and gives what `predict`
does: probabilities of the classes, or values in the target's own unit. Of a generator of texts it is the network that
tells the next token, of a generator of images the one that a sampler asks: flow matching's velocity, a VAE's decoder.

Shapes: B rows, T steps or tokens, H steps forecast, K classes or targets, C H W channels, height and width.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raynn.errors import RunError
from raynn.networks.drawing import ImageGenerator
from raynn.networks.flow_matching import FlowMatching
from raynn.networks.vae import LatentBlock, Vae
from raynn.preprocessing import InputSpec
from raynn.run import Run, open_run
from raynn.scan import scanned

Format = Literal["onnx", "torch_export"]
Batch = dict[str, Tensor]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch_export": ".pt2"}
NEEDED = ("onnx", "onnxscript", "onnxruntime")
EXAMPLE_ROWS, CHECKED_ROWS = 2, 5  # two numbers, so that a batch size that was baked in shows
# the same for sequences and texts of any length; so many that a CNN of 8 stages halves them without reaching one
EXAMPLE_STEPS, CHECKED_STEPS = 150, 203
TOLERANCE = 1e-4  # relative to the largest output: other kernels sum in another order


class Columns(nn.Module):
    """Some of a row's numbers."""

    def __init__(self, first: int, stop: int) -> None:
        super().__init__()
        self.first, self.stop = first, stop

    def forward(self, x_BN: Tensor) -> Tensor:
        """Those [B, stop - first]."""
        return x_BN[:, self.first : self.stop]


class Exported(nn.Module):
    """The network with its outputs decoded; columns by position, in the order of `names`."""

    def __init__(self, model: nn.Module, inputs: InputSpec, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names, self.task = scanned(model), names, inputs.task
        self.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        first = 0
        for block in _latent_blocks(self.model):  # noise is given, where the run makes it from a key
            block.noise = Columns(first, first := first + math.prod(block.shape_ZHW))  # type: ignore[assignment]
        self.register_buffer("mean_K", torch.tensor(inputs.target_mean))
        self.register_buffer("std_K", torch.tensor(inputs.target_std))

    mean_K: Tensor
    std_K: Tensor

    def forward(self, *columns: Tensor) -> Tensor:
        """Probabilities [B, K], values [B] or [B, H, K], of a language log-probabilities [B, T, V]; of images what a
        sampler asks for: velocities [B, C, H, W] of standardized pixels, or a VAE's pictures in 0 .. 255.
        """
        batch = dict(zip(self.names, columns, strict=True))
        if isinstance(self.model, FlowMatching):
            return self.model.velocity(batch["point"], batch["time"], batch.get("class"))
        if isinstance(self.model, Vae):
            return self.model.draw(batch["noise"], batch.get("class"), steps=None, guidance=None)
        if self.task == "language_modeling":  # the network reads all tokens but the last, its target while training
            batch["tokens"] = torch.cat([batch["tokens"], batch["tokens"][:, :1]], dim=1)
        outputs = self.model(batch).float()
        if self.task == "classification":
            return outputs.softmax(1)
        if self.task == "language_modeling":
            return outputs.log_softmax(2)
        values = outputs * self.std_K + self.mean_K
        return values[:, 0] if self.task == "regression" else values


def export(run: str | Path, format: Format, out: str | Path | None = None) -> dict[str, Any]:
    """Writes a run's network, and beside it its preprocessing and a description of inputs and outputs, as JSON.

    Args:
        run: the run folder.
        format: "onnx" (for any runtime) or "torch_export" (for `torch.export.load`).
        out: the file to write, whole or not at all; default: model.onnx or model.pt2 in the run's model folder.

    Returns:
        out: the file; inputs: name -> type and shape; outputs; difference: the largest to the run's own outputs.

    Raises:
        RunError: no run folder, a network that cannot be exported and why, packages that are missing.
    """
    opened = open_run(run)
    inputs, knobs = opened.preprocessing.input_spec, opened.job.regularization
    if knobs.zoneout or knobs.zoneout_cell:
        raise RunError(
            f"{run}: regularization.zoneout runs the network step by step, as many as there are, which is no graph for "
            "any length to export; train with zoneout: 0 and zoneout_cell: 0, or use `raynn predict`"
        )
    if format == "onnx" and (missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]):
        raise RunError(f"--format onnx needs {', '.join(missing)}: pip install 'raynn[onnx]', or --format torch_export")
    path = Path(out) if out else opened.folder / "model" / f"model{SUFFIXES[format]}"
    if path.suffix != SUFFIXES[format]:
        raise RunError(f"--out {path} must end in {SUFFIXES[format]} for --format {format}; rename it")
    path.parent.mkdir(parents=True, exist_ok=True)
    longest = max(3, min(CHECKED_STEPS, inputs.window)) if inputs.vocabulary_size and inputs.window else CHECKED_STEPS
    example = example_batch(opened.model, inputs, EXAMPLE_ROWS, min(EXAMPLE_STEPS, longest - 1))
    checked = example_batch(opened.model, inputs, CHECKED_ROWS, longest)
    model = Exported(opened.model.cpu(), inputs, tuple(example)).eval()
    partial = path.with_name(f".{path.name}")
    try:
        program = _traced(model, inputs, example)
        found = _onnx(program, checked, partial) if format == "onnx" else _torch(program, checked, partial)
        with torch.no_grad():
            expected = model(*checked.values())
        difference = _difference(found, expected)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    description = _described(opened, example, expected, _least_steps(program, inputs, example))
    path.with_suffix(".preprocessing.json").write_text(opened.preprocessing.to_json())
    path.with_suffix(".json").write_text(json.dumps(description, indent=2) + "\n")
    return {"out": str(path), **description, "difference": difference}


def example_batch(model: nn.Module, inputs: InputSpec, num_rows: int, num_steps: int, seed: int = 0) -> Batch:
    """Rows that a network takes, made up: sequences and texts of any length have `num_steps`."""
    generator = torch.Generator().manual_seed(seed)

    def codes(size: int, *shape: int) -> Tensor:
        return torch.randint(size, shape, generator=generator)

    if isinstance(model, ImageGenerator):
        return _example_of_generator(model, num_rows, generator)
    rows = (num_rows, inputs.window + inputs.horizon) if inputs.task == "forecasting" else (num_rows,)
    batch = {}
    if inputs.num_numeric:
        batch["numeric"] = torch.randn(*rows, inputs.num_numeric, generator=generator)
    if inputs.cardinalities:
        batch["categorical"] = torch.stack([codes(size, *rows) for size in inputs.cardinalities], dim=-1)
    if inputs.image_CHW:
        batch["image"] = codes(256, num_rows, *inputs.image_CHW).to(torch.uint8)
    if inputs.sequence_TC:
        length, channels = inputs.sequence_TC
        batch["sequence"] = torch.randn(num_rows, length or num_steps, channels, generator=generator)
    if inputs.vocabulary_size:
        batch["tokens"] = codes(inputs.vocabulary_size, num_rows, num_steps)
    if inputs.task == "forecasting":
        batch["target"] = torch.randn(num_rows, inputs.window, inputs.num_targets, generator=generator)
    if inputs.any_length and inputs.task != "language_modeling":
        batch["length"] = 1 + codes(num_steps, num_rows)
    return batch


def _example_of_generator(model: ImageGenerator, num_rows: int, generator: torch.Generator) -> Batch:
    """What a sampler gives, made up."""
    num_classes = model.num_classes
    if isinstance(model, FlowMatching):
        point_BCHW = torch.randn(num_rows, *model.image_CHW, generator=generator)
        batch = {"point": point_BCHW, "time": torch.rand(num_rows, generator=generator)}
        num_classes += num_classes > 0  # the last: none is told, for guidance
    else:
        width = sum(math.prod(block.shape_ZHW) for block in _latent_blocks(model))
        batch = {"noise": torch.randn(num_rows, width, generator=generator)}
    if num_classes:
        batch["class"] = torch.randint(num_classes, (num_rows,), generator=generator)
    return batch


def _latent_blocks(model: nn.Module) -> list[LatentBlock]:
    """In the order in which they are computed."""
    return [module for module in model.modules() if isinstance(module, LatentBlock)]


def _any_length(inputs: InputSpec, name: str) -> bool:
    """Whether the second axis of a column may vary."""
    return name == "tokens" or (name == "sequence" and inputs.sequence_TC is not None and inputs.sequence_TC[0] == 0)


def _traced(model: Exported, inputs: InputSpec, example: Batch) -> torch.export.ExportedProgram:
    """The network as a graph whose number of rows, and of steps where lengths differ, is left open."""
    rows, steps = torch.export.Dim("rows"), torch.export.Dim.AUTO  # AUTO: a CNN needs some steps to halve
    axes = tuple({0: rows, 1: steps} if _any_length(inputs, name) else {0: rows} for name in example)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, tuple(example.values()), dynamic_shapes=(axes,))
    except Exception as error:  # whatever the tracer meets in a network, a user's own among them
        raise _no_graph(error) from error
    if any(_any_length(inputs, name) for name in example) and _least_steps(program, inputs, example) is None:
        raise _constant("steps", "1")
    return program


def _least_steps(program: torch.export.ExportedProgram, inputs: InputSpec, example: Batch) -> int | None:
    """The smallest number of steps that the graph takes; None: they are one number, or there are none."""
    taken = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    for name, node in zip(example, taken, strict=True):
        size = node.meta["val"].shape[1] if _any_length(inputs, name) else None
        if isinstance(size, torch.SymInt) and (range_ := program.range_constraints.get(size.node.expr)):
            return max(1, int(range_.lower))
    return None


def _no_graph(error: Exception) -> RunError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    if reason.startswith("Constraints violated (rows"):
        return _constant("rows", "0")
    if isinstance(error, KeyError):
        return RunError(f"the network cannot be exported: it reads the column {reason}, which only training has")
    return RunError(f"the network cannot be exported: {reason}; its computation must not depend on its inputs' values")


def _constant(what: str, axis: str) -> RunError:
    return RunError(
        f"the network cannot be exported: its code takes the number of {what} as a constant; write x.shape[{axis}] "
        "where it has len(x) or a number"
    )


def _torch(program: torch.export.ExportedProgram, checked: Batch, path: Path) -> Tensor:
    """Writes the program; what the file gives when it is read again."""
    with path.open("wb") as file:
        torch.export.save(program, file)
    with path.open("rb") as file, torch.no_grad():
        return torch.export.load(file).module()(*checked.values())


def _onnx(program: torch.export.ExportedProgram, checked: Batch, path: Path) -> Tensor:
    """Writes the program as ONNX; what ONNX Runtime gives for the file."""
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names every package it could have used
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            translated = torch.onnx.export(
                program, dynamo=True, input_names=list(checked), output_names=["prediction"], verbose=False
            )
    except Exception as error:
        raise _no_graph(error) from error
    assert translated is not None
    translated.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = {node.name for node in session.get_inputs()}  # a column that the network does not use is not asked for
    (found,) = session.run(None, {name: x.numpy() for name, x in checked.items() if name in wanted})
    return torch.from_numpy(found)


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest output. RunError where it is more than rounding."""
    scale = max(1.0, float(expected.abs().max()))
    difference = float((found - expected).abs().max()) / scale if found.shape == expected.shape else float("inf")
    if not difference <= TOLERANCE:
        raise RunError(
            f"the exported network disagrees with the run by {difference:.2g} (allowed: {TOLERANCE:g}) and was not "
            "kept; try the other --format"
        )
    return difference


def _described(run: Run, example: Batch, expected: Tensor, least_steps: int | None) -> dict[str, Any]:
    """What a program that calls the exported network must know."""
    inputs = run.preprocessing.input_spec
    columns: dict[str, dict[str, Any]] = {}
    for name, x in example.items():
        sizes: list[int | str] = ["rows", *x.shape[1:]]
        if _any_length(inputs, name):
            sizes[1] = "steps"
        columns[name] = {"type": str(x.dtype).removeprefix("torch."), "shape": sizes}
    sizes = ["rows", *expected.shape[1:]]
    if inputs.task == "language_modeling":
        sizes[1] = "steps"
    outputs: dict[str, Any] = {"prediction": {"type": "float32", "shape": sizes}}
    if inputs.classes is not None:
        (columns["class"] if "class" in columns else outputs["prediction"])["classes"] = list(inputs.classes)
    # shorter ones are padded with zeros, which changes no output
    least = {} if least_steps is None else {"least_steps": least_steps}
    return {"task": inputs.task, "inputs": columns, "outputs": outputs, **least}
