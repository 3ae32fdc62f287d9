"""What every network of the table promises, for every task and input: outputs, losses, gradients, state, dropout."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from contracts import (
    CASES,
    DATA,
    NUM_CLASSES,
    SETTINGS,
    VOCABULARY,
    Case,
    batch_of,
    build,
    doubled,
    keys,
    loss_of,
    over,
    parameters_of,
    shaken,
    taken,
    takes,
)

import raynn.networks
from raynn.metrics import Task
from raynn.networks import NETWORKS
from raynn.networks.normalization import GlobalBatchNorm
from raynn.penalties import decayed_and_exempt

PARTS = {  # files of the folder that hold no network
    *(
        "__init__",
        "drawing",
        "flow_matching",
        "forecasting",
        "inputs",
        "layers",
        "normalization",
        "pixels",
        "recurrent",
        "transformer",
    ),
    *("unet", "vae", "zoneout"),
}
# With settings that are not made small for tests: what the defaults start from.
DEFAULTS = {"custom": {"target": "own_network:build"}, "text_generator": {"layers": 2}, "image_generator": {}}
# Of the first loss, what may be left of a batch learned by heart. Pictures keep the noise they are seen through.
LEFT = {"image_generation": 0.6, "forecasting": 0.1}


def test_every_network_file_is_in_the_table() -> None:
    files = {path.stem for path in Path(raynn.networks.__file__).parent.glob("*.py")} - PARTS
    assert files == set(NETWORKS), "a network has a file and an entry in NETWORKS"


def test_every_network_has_cases_for_each_of_its_tasks_and_inputs() -> None:
    assert set(SETTINGS) == set(NETWORKS), "a network needs an entry in tests/contracts.py, SETTINGS"
    assert set(DATA) == set(get_args(Task))
    wanted = {
        (kind, variant, task, data)
        for kind, network in NETWORKS.items()
        for variant in SETTINGS[kind]
        for task in network.tasks
        for data in DATA[task]
        if takes(kind, data)
    }
    assert {(case.kind, case.variant, case.task, case.data) for case in CASES} == wanted
    for kind, network in NETWORKS.items():
        assert {case.task for case in CASES if case.kind == kind} == set(network.tasks)
        if network.tasks[0] == "classification":
            seen = {name for case in CASES if case.kind == kind for name in case.data.split(" and ")}
            assert len(seen) >= len(set(network.inputs) & {"image", "sequence", "text"})


@over(CASES)
def test_outputs_are_finite_and_of_the_shape_that_is_owed(case: Case) -> None:
    model, batch = build(case), batch_of(case.inputs, 8)
    shapes = {
        "classification": (8, NUM_CLASSES),
        "regression": (8, 1),
        "forecasting": (8, case.inputs.horizon, case.inputs.num_targets),
        "image_generation": (8, 2 if case.variant == "vae" else 1),
    }
    for training in (True, False):
        outputs = model.train(training)(batch, keys(8))
        if case.task == "language_modeling":
            assert outputs.shape == (8, batch["tokens"].shape[1] - 1, VOCABULARY)
        else:
            assert outputs.shape == shapes[case.task]
        assert outputs.dtype == torch.float32
        assert outputs.isfinite().all()


@over(CASES)
def test_the_first_loss_is_that_of_knowing_nothing(case: Case) -> None:
    """ln K, ln V, the variance of the target; of flow matching the mean square of the way from noise to image; of the
    variational autoencoder 8 bits for one of 256 values.
    """
    inputs, num_rows = case.inputs, 128
    settings = {**case.settings, **DEFAULTS[case.kind]} if case.kind in DEFAULTS else {}
    model = build(case, {name: value for name, value in settings.items() if name != "kind"})
    batch = batch_of(inputs, num_rows)
    found = loss_of(model, batch, keys(num_rows), case.task).item()
    if case.task == "classification":
        expected = math.log(NUM_CLASSES)
    elif case.task == "language_modeling":
        expected = math.log(VOCABULARY)
    elif case.task == "image_generation":
        image = (batch["image"].double() - inputs.image_mean[0]) / inputs.image_std[0]
        expected = 8.0 if case.variant == "vae" else 1.0 + image.square().mean().item()
    else:
        horizon = batch["target"][:, -inputs.horizon :] if inputs.horizon else batch["target"]
        expected = horizon.square().mean().item()
        if "covariates" in case.data:  # normalized by RevIN: the level of the window, 1 / W more
            expected *= 1 + 1 / inputs.window
    assert abs(found - expected) < 0.3


@over(CASES)
def test_one_batch_is_learned_by_heart(case: Case) -> None:
    num_rows = 6
    model, batch = build(case), batch_of(case.inputs, num_rows)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    losses = []
    for _ in range(120):
        loss = loss_of(model, batch, keys(num_rows), case.task)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < LEFT.get(case.task, 0.05) * losses[0]


@over(CASES)
def test_gradients_are_those_of_finite_differences_in_float64(case: Case) -> None:
    """Along a random direction in float64; and in float32 the same gradient of every parameter, none of them zero."""
    inputs, num_rows = case.inputs, 8
    knobs = {"dropout": 0.2} | ({} if case.task == "image_generation" else {"input_dropout": 0.2})
    model, batch, key_B = shaken(build(case, **knobs)), batch_of(inputs, num_rows), keys(num_rows)
    loss_of(model, batch, key_B, case.task).backward()
    single = {name: p.grad.clone() for name, p in parameters_of(model) if p.grad is not None}
    assert set(single) == {name for name, _ in parameters_of(model)}
    model, batch = model.double(), doubled(batch)
    model.zero_grad()
    loss_of(model, batch, key_B, case.task).backward()
    ways, slope = {}, 0.0
    generator = torch.Generator().manual_seed(2)
    for name, parameter in parameters_of(model):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
        ways[name] = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        slope += float((parameter.grad * ways[name]).sum())
        error = (single[name].double() - parameter.grad).norm()
        assert error <= 1e-3 * parameter.grad.norm() + 1e-6, name
    ends = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for name, parameter in parameters_of(model):
                parameter.add_(step * ways[name])
            ends.append(loss_of(model, batch, key_B, case.task).item())
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=1e-5, abs=1e-7)


@over(CASES)
def test_the_state_is_all_there_is(case: Case) -> None:
    batch, key_B = batch_of(case.inputs, 8), keys(8)
    model = shaken(build(case))
    with torch.no_grad():
        model(batch, key_B)  # moves running statistics
    other = build(case)
    assert not torch.equal(other.eval()(batch, key_B), model.eval()(batch, key_B))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(batch, key_B), model(batch, key_B))


@over(CASES)
def test_a_seed_and_keys_give_the_same_bits(case: Case) -> None:
    batch = batch_of(case.inputs, 8)
    first, second = (shaken(build(case, dropout=0.5)) for _ in range(2))
    torch.manual_seed(1)  # nothing may ask the generator
    outputs = first(batch, keys(8))
    assert torch.equal(outputs, second(batch, keys(8)))
    assert not torch.equal(outputs, second(batch, keys(8, epoch=1)))


@over(CASES)
def test_a_row_has_its_outputs_wherever_it_sits(case: Case) -> None:
    """In training too, but for batch normalization: a mask is the row's own."""
    model, batch = shaken(build(case, dropout=0.3)), batch_of(case.inputs, 8)
    model(batch, keys(8))
    order = torch.tensor([5, 2, 7])
    for training in (True, False):
        if training and any(isinstance(module, GlobalBatchNorm) for module in model.modules()):
            continue
        whole = model.train(training)(batch, keys(8))
        part = model(taken(batch, order), keys(8)[order])
        torch.testing.assert_close(part, whole[order], rtol=1e-4, atol=1e-5)


@over(CASES)
@pytest.mark.parametrize("knob", ["dropout", "input_dropout"])
def test_dropout_acts_in_training_alone(case: Case, knob: str) -> None:
    if case.task == "image_generation" and knob == "input_dropout":
        return  # refused, as test_network_image_generator holds
    batch = batch_of(case.inputs, 8)
    plain, dropped = shaken(build(case)), shaken(build(case, **{knob: 0.5}))
    assert not torch.equal(dropped(batch, keys(8)), plain(batch, keys(8)))
    dropped.load_state_dict(plain.state_dict())
    assert torch.equal(dropped.eval()(batch, keys(8)), plain.eval()(batch, keys(8)))


@over(CASES)
def test_embeddings_biases_and_norms_are_not_decayed(case: Case) -> None:
    model = build(case)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, exempt = ([names[id(p)] for p in group] for group in decayed_and_exempt(model))
    assert sorted(decayed + exempt) == sorted(names.values())
    assert [name for name in decayed if name.endswith("head.weight")]
    spared = ("table.", "tokens.", "norm", "label", "codes.", "embedding")
    assert not [name for name in decayed if name.endswith("bias") or any(part in name for part in spared)]
