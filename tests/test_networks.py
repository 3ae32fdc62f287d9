"""Entries of the table of networks, and every option and size that a network's settings offer; what they promise by
default is in test_contracts.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from contracts import SETTINGS, TINY, Case, batch_of, build, doubled, inputs_of, keys, shaken, takes
from torch import Tensor

from raynn.columns import ColumnKind
from raynn.dropout import Dropout, TokenDropout
from raynn.errors import JobError
from raynn.metrics import Task
from raynn.networks import NETWORKS, NetworkSettings, defaults_for
from raynn.objectives import loss_per_row
from raynn.penalties import decayed_and_exempt
from raynn.problems import members_of
from raynn.regularization import RegularizationSettings

SIZES: dict[str, tuple[tuple[int, ...], ...]] = {
    "image_CHW": ((1, 1, 1), (2, 1, 9), (3, 7, 5), (4, 2, 2), (5, 33, 3), (6, 8, 8), (7, 3, 1)),
    "sequence_TC": ((1, 1), (2, 5), (17, 3), (64, 7)),
}
BESIDE = ("image and table", "sequence and table", "steps and table", "text and table")
PREDICTORS = [kind for kind, network in NETWORKS.items() if "classification" in network.tasks]


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


def case_of(kind: str, data: str, task: str = "classification") -> Case:
    return Case(kind, "", task, data)


OPTIONS = [
    pytest.param(case_of(kind, data), option, id=f"{kind}-{option}-{data}")
    for kind in PREDICTORS
    for data in BESIDE
    for option in ([{}] if data == "text and table" else options(kind))
    if takes(kind, data) and not ("steps" in data and option.get("head_pooling") == "flatten")
]
every_option = pytest.mark.parametrize(("case", "option"), OPTIONS)


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


@pytest.mark.parametrize("kind", PREDICTORS)
def test_every_place_draws_its_own_masks(kind: str) -> None:
    for data in filter(lambda data: takes(kind, data), BESIDE):
        model = build(case_of(kind, data), TINY[kind], dropout=0.5, input_dropout=0.5)
        drawing = [module for module in model.modules() if isinstance(module, Dropout | TokenDropout)]
        first_salts = [int(next(module.buffers())[0]) for module in drawing if len(next(module.buffers()))]
        assert len(set(first_salts)) == len(first_salts) >= 3


@every_option
def test_every_option_passes_gradient_to_every_parameter(case: Case, option: dict[str, Any]) -> None:
    model, batch = build(case, {**SETTINGS[case.kind][""], **option}), batch_of(case.inputs, 32)
    loss_per_row(model(batch, keys(32)), batch, case.task).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@every_option
def test_gradients_are_those_of_finite_differences(case: Case, option: dict[str, Any]) -> None:
    model = shaken(build(case, {**TINY[case.kind], **option}, dropout=0.2, input_dropout=0.2)).double()
    batch = doubled(batch_of(case.inputs, 4))
    names, parameters = zip(*model.named_parameters(), strict=True)

    def outputs(*values: Tensor) -> Tensor:
        found = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (batch, keys(4)))
        return found.log_softmax(1)

    assert torch.autograd.gradcheck(outputs, parameters, fast_mode=True)


@every_option
def test_embeddings_biases_and_norms_are_not_decayed(case: Case, option: dict[str, Any]) -> None:
    model = build(case, {**SETTINGS[case.kind][""], **option})
    names = {id(parameter): each for each, parameter in model.named_parameters()}
    decayed = {names[id(parameter)] for parameter in decayed_and_exempt(model)[0]}
    assert "head.weight" in decayed
    spared = ("table.", "tokens.", "norm")
    assert not [each for each in decayed if each.endswith("bias") or any(part in each for part in spared)]


@pytest.mark.parametrize(
    ("kind", "field", "size"),
    [
        pytest.param(kind, field, size, id=f"{kind}-{field}-{size}")
        for kind in PREDICTORS
        for field, sizes in SIZES.items()
        for size in sizes
        if field.partition("_")[0] in NETWORKS[kind].inputs
    ],
)
def test_every_size_and_number_of_channels(kind: str, field: str, size: tuple[int, ...]) -> None:
    if field == "image_CHW":
        case = case_of(kind, "image", "regression")
        inputs = replace(case.inputs, image_CHW=size, image_mean=(127.0,) * size[0], image_std=(60.0,) * size[0])
    elif NETWORKS[kind].any_length:
        case = case_of(kind, "steps", "regression")
        inputs = replace(case.inputs, sequence_TC=(0, size[1]))
    else:
        case = case_of(kind, "sequence", "regression")
        inputs = replace(case.inputs, sequence_TC=size)
    batch = batch_of(inputs, 4)
    if NETWORKS[kind].any_length:  # all of that very length
        batch = {**batch, "sequence": torch.randn(4, *size), "length": torch.full((4,), size[0])}
    deep = {"channels": [2, 3, 4, 4], "head_hidden": [4]} if kind == "cnn" else SETTINGS[kind][""]
    for option in options(kind):
        model = build(case, {**deep, **option}, inputs, dropout=0.2)
        model(batch, keys(4)).sum().backward()
        assert model.eval()(batch).isfinite().all(), option


@pytest.mark.parametrize("kind", [kind for kind, network in NETWORKS.items() if network.needs])
def test_a_network_says_what_it_needs(kind: str) -> None:
    network, table = NETWORKS[kind], inputs_of("regression", "table")
    with pytest.raises(JobError, match=rf"^network\.kind = '{kind}' needs an? .*; use network\.kind: feedforward"):
        network.build(network.settings(kind=kind), table, RegularizationSettings())
