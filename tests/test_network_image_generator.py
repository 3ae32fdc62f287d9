"""Contracts that both generators of images keep: losses are functions of keys, pictures of seed, number and class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raynn.errors import JobError
from raynn.networks import NETWORKS
from raynn.networks.drawing import ImageGenerator
from raynn.networks.image_generator import ImageGeneratorSettings, build
from raynn.penalties import decayed_and_exempt
from raynn.preprocessing import InputSpec
from raynn.randomness import row_keys
from raynn.regularization import RegularizationSettings

ARCHITECTURES = ("vae", "flow_matching")
CASES: dict[str, dict[str, Any]] = {
    "vae": {"architecture": "vae", "latent": 2, "mixture": 2},
    "vae, patches, blocks, beta": {
        "architecture": "vae",
        "patch": 2,
        "blocks_per_stage": 2,
        "latent": 1,
        "mixture": 1,
        "beta": 2.0,
    },
    "flow": {"architecture": "flow_matching", "condition_width": 8, "steps": 3},
    "flow, patches, blocks, uniform": {
        "architecture": "flow_matching",
        "condition_width": 8,
        "patch": 2,
        "blocks_per_stage": 2,
        "attention": False,
        "time": "uniform",
        "steps": 2,
    },
}
SHAPES = {"gray": (1, 6, 6), "color, odd": (3, 5, 7), "one pixel": (1, 1, 1), "thin": (2, 9, 1)}
each_case = pytest.mark.parametrize("case", CASES)
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def inputs_of(shape: tuple[int, int, int] = (1, 6, 5), num_classes: int = 3) -> InputSpec:
    return InputSpec(
        image_CHW=shape,
        image_mean=(120.0,) * shape[0],
        image_std=(74.0,) * shape[0],
        task="image_generation",
        classes=tuple(range(num_classes)) or None,
    )


def model_of(
    case: dict[str, Any], inputs: InputSpec, spread: float = 0.1, channels: tuple[int, ...] = (4, 6), **knobs: float
) -> ImageGenerator:
    """A small network whose layers that begin at zero have been moved."""
    torch.manual_seed(0)
    settings = ImageGeneratorSettings(kind="image_generator", channels=channels, **case)
    model = build(settings, inputs, RegularizationSettings(**knobs))
    assert isinstance(model, ImageGenerator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return model


def batch_of(inputs: InputSpec, num_rows: int) -> tuple[dict[str, Tensor], Tensor]:
    """A batch and its keys."""
    assert inputs.image_CHW is not None
    generator = torch.Generator().manual_seed(0)
    batch = {"image": torch.randint(256, (num_rows, *inputs.image_CHW), dtype=torch.uint8, generator=generator)}
    if inputs.classes:
        batch["target"] = torch.randint(len(inputs.classes), (num_rows,), generator=generator)
    return batch, torch.from_numpy(row_keys(0, 0, np.arange(num_rows)))


@each_case
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_classes", [0, 3])
def test_losses_and_pictures_of_every_shape(case: str, shape: str, num_classes: int) -> None:
    inputs = inputs_of(SHAPES[shape], num_classes)
    model = model_of(CASES[case], inputs, channels=(3, 4, 4))
    batch, key_B = batch_of(inputs, 5)
    losses = model(batch, key_B)
    assert losses.shape == (5, 2 if case.startswith("vae") else 1)
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()
    losses[:, 0].sum().backward()
    pictures = model.generate(3)
    assert pictures.shape == (3, *SHAPES[shape])
    assert pictures.dtype == torch.uint8


@each_case
def test_a_row_has_its_loss_wherever_it_sits(case: str) -> None:
    inputs = inputs_of()
    model, (batch, key_B) = model_of(CASES[case], inputs, dropout=0.3), batch_of(inputs, 8)
    whole = model(batch, key_B)
    torch.manual_seed(1)  # no noise may ask the generator
    assert torch.equal(model(batch, key_B), whole)
    order = torch.tensor([3, 6, 1])
    part = model({name: column[order] for name, column in batch.items()}, key_B[order])
    torch.testing.assert_close(part, whole[order])
    assert not torch.isclose(model(batch, key_B + 1), whole).any(), "other keys, other noise"


@each_case
def test_the_class_matters(case: str) -> None:
    inputs = inputs_of()
    model, (batch, key_B) = model_of(CASES[case], inputs).eval(), batch_of(inputs, 8)
    other = {**batch, "target": (batch["target"] + 1) % 3}
    assert not torch.isclose(model(batch, key_B), model(other, key_B)).any()


@each_case
def test_gradients_are_those_of_finite_differences(case: str) -> None:
    inputs = inputs_of((2, 5, 3))
    model = model_of(CASES[case], inputs, channels=(2, 3), dropout=0.2).double()
    batch, key_B = batch_of(inputs, 3)
    model(batch, key_B)[:, 0].sum().backward()
    parameters = [(parameter, torch.randn_like(parameter)) for parameter in model.parameters()]
    slope = sum((parameter.grad * way).sum().item() for parameter, way in parameters if parameter.grad is not None)
    ends = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            for parameter, way in parameters:
                parameter.add_(step * way)
            ends.append(model(batch, key_B)[:, 0].sum().item())
    assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(slope, rel=1e-6)


@each_case
def test_every_parameter_gets_a_gradient(case: str) -> None:
    inputs = inputs_of()
    model, (batch, key_B) = model_of(CASES[case], inputs), batch_of(inputs, 64)
    model(batch, key_B)[:, 0].mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@each_case
def test_bfloat16_changes_little(case: str) -> None:
    inputs = inputs_of()
    model, (batch, key_B) = model_of(CASES[case], inputs, channels=(16, 32)), batch_of(inputs, 32)
    exact = model(batch, key_B)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(batch, key_B)
        pictures = model.generate(2)
    assert rounded.dtype == torch.float32
    assert pictures.dtype == torch.uint8
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)
    rounded[:, 0].mean().backward()


@each_case
def test_embeddings_biases_and_norms_are_not_decayed(case: str) -> None:
    model = model_of(CASES[case], inputs_of())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(parameter)] for parameter in decayed_and_exempt(model)[0]}
    assert decayed == {
        name
        for name, parameter in model.named_parameters()
        if name.endswith("weight") and parameter.dim() > 1 and "label" not in name
    }


@each_case
def test_a_picture_is_a_function_of_seed_number_and_class(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(CASES[case], inputs_of()).train()
    whole = model.generate(7, seed=5).int()
    assert model.training, "left as it was"
    assert torch.equal(model.generate(7, torch.arange(7) % 3, seed=5), whole), "default: all classes in turn"
    monkeypatch.setattr("raynn.networks.drawing.BATCH_ROWS", 2)
    assert (model.generate(7, seed=5).int() - whole).abs().max() <= 1, "rounding alone may differ between batch sizes"
    assert (model.generate(3, seed=5).int() - whole[:3]).abs().max() <= 1
    assert len(whole.flatten(1).unique(dim=0)) == 7
    others = model.generate(7, seed=6), model.generate(7, torch.zeros(7, dtype=torch.int64), seed=5)
    assert not (others[0] == whole).flatten(1).all(1).any()
    assert (others[1] == whole).flatten(1).all(1).tolist() == [True, False, False, True, False, False, True]


@each_architecture
def test_it_learns_what_the_classes_look_like(architecture: str) -> None:
    inputs = inputs_of((1, 2, 2), num_classes=2)
    model = model_of({"architecture": architecture}, inputs, spread=0.0, channels=(16,))
    pictures = torch.tensor([[[[30, 200], [60, 90]]], [[[220, 10], [150, 250]]]], dtype=torch.uint8)
    target_B = torch.arange(32) % 2
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
    for epoch in range(60):
        key_B = torch.from_numpy(row_keys(0, epoch, np.arange(32)))
        model({"image": pictures[target_B], "target": target_B}, key_B)[:, 0].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    drawn = model.generate(20)
    error = (drawn.int() - pictures.int()[torch.arange(20) % 2]).abs().float().mean()
    assert error < 25


def test_the_table_names_it() -> None:
    entry = NETWORKS["image_generator"]
    assert (entry.tasks, entry.inputs, entry.needs) == (("image_generation",), ("image",), ("image",))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"latent": 4},
            "network.latent = 4 is a setting of architecture: vae, and network.architecture = 'flow_matching'; "
            "leave it out",
        ),
        (
            {"architecture": "vae", "guidance": 3.0},
            "network.guidance = 3.0 is a setting of architecture: flow_matching, and network.architecture = 'vae'; "
            "leave it out",
        ),
        (
            {"label_dropout": 0.0},
            "network.guidance = 2 needs images whose class is withheld in training, and network.label_dropout = 0; set "
            "guidance: 1, or label_dropout: 0.1",
        ),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError) as caught:
        model_of(fields, inputs_of())
    assert str(caught.value) == message


def test_guidance_is_no_matter_without_classes() -> None:
    assert model_of({"label_dropout": 0.0}, inputs_of(num_classes=0)).generate(1).shape == (1, 1, 6, 5)
    assert model_of({"label_dropout": 0.0, "guidance": 1.0}, inputs_of()).generate(1).shape == (1, 1, 6, 5)


@each_architecture
def test_wrong_inputs_are_refused(architecture: str) -> None:
    with pytest.raises(
        JobError, match=r"^network\.kind = 'image_generator' needs an image column, and the features have"
    ):
        model_of({"architecture": architecture}, InputSpec(num_numeric=3))
    with pytest.raises(JobError, match=r"^regularization\.input_dropout = 0\.1, and .* set it to 0, and use"):
        model_of({"architecture": architecture}, inputs_of(), input_dropout=0.1)


@each_architecture
def test_impossible_wishes_are_refused(architecture: str) -> None:
    model = model_of({"architecture": architecture}, inputs_of())
    with pytest.raises(JobError, match=r"^count = 0 must be at least 1, the pictures to draw$"):
        model.generate(0)
    with pytest.raises(JobError, match=r"^class 3 must be within 0 \.\. 2, the classes of the training images$"):
        model.generate(2, torch.tensor([0, 3]))
    with pytest.raises(JobError, match=r"^classes have the shape \(1,\), and count = 2: give one a picture$"):
        model.generate(2, torch.tensor([0]))
    plain = model_of({"architecture": architecture}, inputs_of(num_classes=0))
    with pytest.raises(JobError, match=r"^classes are asked for, and .* without data\.target: leave them out$"):
        plain.generate(1, torch.tensor([0]))
    if architecture == "vae":
        with pytest.raises(
            JobError, match=r"^steps = 5 is of flow matching, and a vae draws in one pass: leave it out$"
        ):
            model.generate(1, steps=5)
        with pytest.raises(JobError, match=r"^guidance = 1\.5 is of flow matching"):
            model.generate(1, guidance=1.5)
    else:
        with pytest.raises(JobError, match=r"^steps = 0 must be at least 1; 20 are the job's$"):
            model.generate(1, steps=0)
        for guidance in (-1.0, float("nan")):
            with pytest.raises(JobError, match=rf"^guidance = {guidance:g} must be at least 0; 2 is the job's$"):
                model.generate(1, guidance=guidance)
        with pytest.raises(JobError, match=r"^guidance = 1\.5 asks for classes, and .*: leave it out$"):
            plain.generate(1, guidance=1.5)


def modules_of(model: nn.Module) -> list[str]:
    return [type(module).__name__ for module in model.modules()]


def test_attention_can_be_left_out() -> None:
    assert "Attention" in modules_of(model_of({}, inputs_of()))
    assert "Attention" not in modules_of(model_of({"attention": False}, inputs_of()))
