"""Contracts that every network in the table keeps, for every task, input and option."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from torch import Tensor, nn

import raynn.networks
from raynn.columns import ColumnKind
from raynn.dropout import Dropout, TokenDropout
from raynn.errors import JobError
from raynn.metrics import Task
from raynn.networks import NETWORKS, NetworkSettings, defaults_for
from raynn.objectives import loss_per_row
from raynn.penalties import decayed_and_exempt
from raynn.preprocessing import InputSpec
from raynn.problems import members_of
from raynn.regularization import RegularizationSettings

PARTS = {  # files of the folder that hold no network
    *("__init__", "drawing", "flow_matching", "forecasting", "inputs", "layers", "pixels", "recurrent", "transformer"),
    *("unet", "vae", "zoneout"),
}
NUM_CLASSES = 5

TABLE: dict[str, Any] = {
    "num_numeric": 4,
    "cardinalities": (3, 11),
    "quantile_bins": ((-2.0, -0.5, 0.1, 2.0), (-1.0, 0.0, 1.0), (), ()),
}
IMAGE: dict[str, Any] = {"image_CHW": (2, 8, 6), "image_mean": (100.0, 120.0), "image_std": (50.0, 70.0)}
SEQUENCE: dict[str, Any] = {"sequence_TC": (9, 3)}
STEPS: dict[str, Any] = {"sequence_TC": (0, 3)}  # lengths differ
TEXT: dict[str, Any] = {"vocabulary_size": 13}
INPUTS: dict[str, dict[str, Any]] = {
    "table": TABLE,
    "image": IMAGE,
    "sequence": SEQUENCE,
    "image and table": IMAGE | TABLE,
    "sequence and table": SEQUENCE | TABLE,
    "steps": STEPS,
    "steps and table": STEPS | TABLE,
    "text": TEXT,
    "text and table": TEXT | TABLE,
}
# Small enough for tests; the shape of the network is its own.
SMALL: dict[str, dict[str, Any]] = {
    "feedforward": {"hidden": (24, 16)},
    "cnn": {"channels": (6, 8), "head_hidden": (16,)},
    "rnn": {"hidden": 20},
    "lstm": {"hidden": 20},
    "custom": {"target": "own_network:build", "settings": {"hidden": [24, 16]}},
}
NEEDED: dict[str, dict[str, Any]] = {"custom": {"target": "own_network:build"}}  # settings without a default
TINY: dict[str, dict[str, Any]] = {
    "feedforward": {"hidden": (3, 4), "number_embedding_width": 2, "number_embedding_frequencies": 3},
    "cnn": {"channels": (2, 3), "head_hidden": (3,)},
    "rnn": {"hidden": 3, "layers": 2},
    "lstm": {"hidden": 3, "layers": 2},
    "custom": {"target": "own_network:build", "settings": {"hidden": [3, 4]}},
}


def fits(kind: str, name: str) -> bool:
    """Whether the network takes these inputs, and has all it needs."""
    words = set(name.split(" and "))
    kinds = {{"table": "numeric", "steps": "sequence"}.get(word, word) for word in words}
    network = NETWORKS[kind]
    if "steps" in words and network.any_length:
        return False  # to it a sequence is always one of any length
    return kinds <= set(network.inputs) and (not network.needs or bool(kinds & set(network.needs)))


SIZES: dict[str, tuple[tuple[int, ...], ...]] = {
    "image_CHW": ((1, 1, 1), (2, 1, 9), (3, 7, 5), (4, 2, 2), (5, 33, 3), (6, 8, 8), (7, 3, 1)),
    "sequence_TC": ((1, 1), (2, 5), (17, 3), (64, 7)),
}


# Generators of images give losses, not outputs for a target: their contracts are in test_network_image_generator.py.
PREDICTORS = {kind: network for kind, network in NETWORKS.items() if "image_generation" not in network.tasks}
CASES = [
    pytest.param(kind, task, name, id=f"{kind}-{task}-{name}")
    for kind, network in PREDICTORS.items()
    for task in network.tasks
    if task in ("classification", "regression")
    for name in INPUTS
    if fits(kind, name) and name not in ("steps and table", "text and table")  # among OPTIONS
]


def options(kind: str) -> Iterator[dict[str, Any]]:
    """Each choice that the network's settings offer, one at a time."""
    for name, field in NETWORKS[kind].settings.model_fields.items():
        if name == "kind":
            continue
        for member in members_of(field.annotation):
            if get_origin(member) is Literal:
                yield from ({name: choice} for choice in get_args(member))
        if field.annotation is bool:
            yield from ({name: choice} for choice in (False, True))
    if kind == "feedforward":
        yield from ({"residual": True, "normalization": norm} for norm in ("batch", "layer"))
    if kind == "cnn":
        yield from ({"block": "residual", "pooling": pooling} for pooling in ("max", "mean", "stride"))
    if kind in ("rnn", "lstm"):
        pooled = ("last", "mean", "max", "attention")
        yield from ({"bidirectional": True, "layers": 2, "pooling": pooling} for pooling in pooled)


OPTIONS = [
    pytest.param(kind, option, name, id=f"{kind}-{option}-{name}")
    for kind in NETWORKS
    for option in options(kind)
    for name in ("image and table", "sequence and table", "steps and table")
    if fits(kind, name) and not ("steps" in name and option.get("head_pooling") == "flatten")
]
OPTIONS += [
    pytest.param(kind, {}, "text and table", id=f"{kind}-text and table")
    for kind in PREDICTORS
    if fits(kind, "text and table")
]


def inputs_of(task: str, fields: dict[str, Any]) -> InputSpec:
    if task == "classification":
        return InputSpec(**fields, num_outputs=NUM_CLASSES, task="classification", classes=tuple(range(NUM_CLASSES)))
    return InputSpec(**fields)


def build(kind: str, inputs: InputSpec, fields: dict[str, Any] | None = None, **regularization: float) -> nn.Module:
    torch.manual_seed(0)
    settings = NETWORKS[kind].settings(kind=kind, **(SMALL.get(kind, {}) if fields is None else fields))
    return NETWORKS[kind].build(settings, inputs, RegularizationSettings(**regularization))


def batch_of(kind: str, inputs: InputSpec, num_rows: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    batch = {"numeric": torch.randn(num_rows, inputs.num_numeric, generator=generator)} if inputs.num_numeric else {}
    if inputs.cardinalities:
        codes = [torch.randint(size, (num_rows,), generator=generator) for size in inputs.cardinalities]
        batch["categorical"] = torch.stack(codes, dim=1)
    if inputs.image_CHW:
        batch["image"] = torch.randint(256, (num_rows, *inputs.image_CHW), dtype=torch.uint8, generator=generator)
    if inputs.sequence_TC:
        num_steps = inputs.sequence_TC[0] or 9
        batch["sequence"] = torch.randn(num_rows, num_steps, inputs.sequence_TC[1], generator=generator)
    if inputs.sequence_TC and (inputs.any_length or NETWORKS[kind].any_length):
        batch["length"] = torch.randint(1, num_steps + 1, (num_rows,), generator=generator)
        batch["sequence"] *= (torch.arange(num_steps) < batch["length"][:, None])[:, :, None]
    if inputs.vocabulary_size:
        batch["length"] = torch.randint(1, 10, (num_rows,), generator=generator)
        batch["tokens"] = torch.randint(
            1, inputs.vocabulary_size, (num_rows, 9), dtype=torch.int32, generator=generator
        )
        batch["tokens"] *= torch.arange(9) < batch["length"][:, None]
    if inputs.task == "classification":
        batch["target"] = torch.randint(inputs.num_outputs, (num_rows,), generator=generator)
    else:
        batch["target"] = torch.randn(num_rows, generator=generator)
    return batch


def keys(num_rows: int) -> Tensor:
    return torch.arange(num_rows, dtype=torch.int32) * 0x1234567


def test_every_network_file_is_in_the_table() -> None:
    files = {path.stem for path in Path(raynn.networks.__file__).parent.glob("*.py")} - PARTS
    assert files == set(NETWORKS), "a network has a file and an entry in NETWORKS"


@pytest.mark.parametrize("kind", NETWORKS)
def test_an_entry_is_that_of_its_file(kind: str) -> None:
    network = NETWORKS[kind]
    assert network.build.__module__ == network.settings.__module__ == f"raynn.networks.{kind}"
    assert get_args(network.settings.model_fields["kind"].annotation) == (kind,)
    assert network.settings in get_args(get_args(NetworkSettings)[0])
    assert network.description
    assert set(network.tasks) <= set(get_args(Task))
    assert set(network.needs) <= set(network.inputs) <= set(get_args(ColumnKind)) - {"ignore"}
    if network.any_length:
        assert "sequence" in network.inputs
    RegularizationSettings(**defaults_for(kind).get("regularization", {}))


def test_an_unknown_kind_brings_no_defaults() -> None:
    assert defaults_for("nonsense") == {}


@pytest.mark.parametrize(("kind", "task", "name"), CASES)
def test_the_first_loss_is_that_of_knowing_nothing(kind: str, task: str, name: str) -> None:
    inputs = inputs_of(task, INPUTS[name])
    model, batch = build(kind, inputs, NEEDED.get(kind, {})), batch_of(kind, inputs, 64)
    for training in (True, False):
        outputs_BK = model.train(training)(batch, keys(64))
        assert outputs_BK.shape == (64, inputs.num_outputs)
        assert outputs_BK.dtype == torch.float32
        first = loss_per_row(outputs_BK, batch, task).mean().item()
        blind = math.log(NUM_CLASSES) if task == "classification" else float((batch["target"] ** 2).mean())
        assert abs(first - blind) < 0.3, "ln K, or the variance of the target"


@pytest.mark.parametrize(("kind", "task", "name"), CASES)
def test_one_batch_is_learned_by_heart(kind: str, task: str, name: str) -> None:
    inputs = inputs_of(task, INPUTS[name])
    model, batch = build(kind, inputs), batch_of(kind, inputs, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    for _ in range(120):
        loss = loss_per_row(model(batch, keys(16)), batch, task).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.02


@pytest.mark.parametrize(("kind", "task", "name"), CASES)
def test_the_state_is_all_there_is(kind: str, task: str, name: str) -> None:
    inputs = inputs_of(task, INPUTS[name])
    model, batch = build(kind, inputs), batch_of(kind, inputs, 8)
    with torch.no_grad():
        model(batch, keys(8))  # moves running statistics
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    other = NETWORKS[kind].build(NETWORKS[kind].settings(kind=kind, **SMALL[kind]), inputs, RegularizationSettings())
    assert not torch.equal(other.eval()(batch), model.eval()(batch))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(batch), model(batch))


@pytest.mark.parametrize(("kind", "task", "name"), CASES)
def test_a_seed_gives_the_same_bits(kind: str, task: str, name: str) -> None:
    inputs = inputs_of(task, INPUTS[name])
    batch = batch_of(kind, inputs, 8)
    first, second = (build(kind, inputs, dropout=0.5) for _ in range(2))
    torch.manual_seed(1)  # dropout must not ask the generator
    assert torch.equal(first(batch, keys(8)), second(batch, keys(8)))
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("kind", "task", "name"), CASES)
@pytest.mark.parametrize("knob", ["dropout", "input_dropout"])
def test_dropout_acts_in_training_alone(kind: str, task: str, name: str, knob: str) -> None:
    inputs = inputs_of(task, INPUTS[name])
    batch = batch_of(kind, inputs, 8)
    plain, dropped = build(kind, inputs), build(kind, inputs, **{knob: 0.5})
    assert not torch.equal(dropped(batch, keys(8)), plain(batch, keys(8)))
    assert not torch.equal(dropped(batch, keys(8)), dropped(batch, keys(8) + 1))
    dropped.load_state_dict(plain.state_dict())
    assert torch.equal(dropped.eval()(batch, keys(8)), plain.eval()(batch))


@pytest.mark.parametrize("kind", sorted({case.values[0] for case in CASES}))
def test_every_place_draws_its_own_masks(kind: str) -> None:
    for name in ("image and table", "sequence and table", "steps and table", "text and table"):
        if not fits(kind, name):
            continue
        model = build(kind, inputs_of("regression", INPUTS[name]), TINY[kind], dropout=0.5, input_dropout=0.5)
        drawing = [module for module in model.modules() if isinstance(module, Dropout | TokenDropout)]
        first_salts = [int(next(module.buffers())[0]) for module in drawing if len(next(module.buffers()))]
        assert len(set(first_salts)) == len(first_salts) >= 3


@pytest.mark.parametrize(("kind", "option", "name"), OPTIONS)
def test_every_option_passes_gradient_to_every_parameter(kind: str, option: dict[str, Any], name: str) -> None:
    inputs = inputs_of("classification", INPUTS[name])
    model, batch = build(kind, inputs, {**SMALL[kind], **option}), batch_of(kind, inputs, 32)
    loss_per_row(model(batch, keys(32)), batch, "classification").mean().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize(("kind", "option", "name"), OPTIONS)
def test_gradients_are_those_of_finite_differences(kind: str, option: dict[str, Any], name: str) -> None:
    inputs = inputs_of("classification", INPUTS[name])
    model = build(kind, inputs, {**TINY[kind], **option}, dropout=0.2, input_dropout=0.2).double()
    batch = {k: x.double() if x.is_floating_point() else x for k, x in batch_of(kind, inputs, 4).items()}
    names, parameters = zip(*model.named_parameters(), strict=True)
    with torch.no_grad():  # off the kinks: a bias of 0 before a ReLU is one
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn_like(parameter))

    def outputs(*values: Tensor) -> Tensor:
        found = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (batch, keys(4)))
        return found.log_softmax(1)

    assert torch.autograd.gradcheck(outputs, parameters, fast_mode=True)


@pytest.mark.parametrize(("kind", "option", "name"), OPTIONS)
def test_embeddings_biases_and_norms_are_not_decayed(kind: str, option: dict[str, Any], name: str) -> None:
    model = build(kind, inputs_of("regression", INPUTS[name]), {**SMALL[kind], **option})
    names = {id(parameter): each for each, parameter in model.named_parameters()}
    decayed = {names[id(parameter)] for parameter in decayed_and_exempt(model)[0]}
    assert "head.weight" in decayed
    assert not [
        each for each in decayed if "table." in each or "tokens." in each or "norm" in each or each.endswith("bias")
    ]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        pytest.param(kind, {field: size}, id=f"{kind}-{field}-{size}")
        for kind in PREDICTORS
        for field, sizes in SIZES.items()
        for size in sizes
        if fits(kind, field.partition("_")[0])
    ],
)
def test_every_size_and_number_of_channels(kind: str, fields: dict[str, Any]) -> None:
    if "image_CHW" in fields:
        channels = fields["image_CHW"][0]
        fields = {**fields, "image_mean": (127.0,) * channels, "image_std": (60.0,) * channels}
    inputs = inputs_of("regression", fields)
    batch = batch_of(kind, inputs, 4)
    deep = {"channels": (2, 3, 4, 4), "head_hidden": (4,)} if kind == "cnn" else SMALL[kind]
    for option in options(kind):
        model = build(kind, inputs, {**deep, **option}, dropout=0.2)
        model(batch, keys(4)).sum().backward()
        assert model.eval()(batch).isfinite().all(), option


@pytest.mark.parametrize("kind", [kind for kind, network in NETWORKS.items() if network.needs])
def test_a_network_says_what_it_needs(kind: str) -> None:
    with pytest.raises(JobError, match=rf"^network\.kind = '{kind}' needs an? .*; use network\.kind: feedforward"):
        build(kind, inputs_of("regression", TABLE))
