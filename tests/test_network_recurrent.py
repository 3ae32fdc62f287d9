"""Recurrent layers: equal to their equations, blind to padding, with one dropout mask for all steps.

Shapes: B rows, T steps, F features, H hidden units.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raynn.dropout import Dropout
from raynn.errors import JobError
from raynn.networks import NETWORKS
from raynn.networks.recurrent import Recurrent, RecurrentLanguageModel, _over_steps, segmented
from raynn.objectives import loss_per_row
from raynn.penalties import decayed_and_exempt
from raynn.preprocessing import InputSpec
from raynn.regularization import RegularizationSettings

INPUTS = InputSpec(sequence_TC=(0, 3), num_numeric=2, num_outputs=2, task="classification", classes=(0, 1))
CELLS: dict[str, dict[str, Any]] = {
    "tanh": {"kind": "rnn", "cell": "tanh"},
    "relu": {"kind": "rnn", "cell": "relu"},
    "gru": {"kind": "rnn", "cell": "gru"},
    "lstm": {"kind": "lstm"},
}
POOLINGS = ("last", "mean", "max", "attention")
LENGTHS = [4, 1, 7, 2, 7, 5]


def build(cell: str, regularization: dict[str, float] | None = None, **fields: Any) -> Recurrent:
    torch.manual_seed(0)
    network = NETWORKS[CELLS[cell]["kind"]]
    settings = network.settings(**{**CELLS[cell], "hidden": 5, **fields})
    model = network.build(settings, INPUTS, RegularizationSettings(**(regularization or {})))
    assert isinstance(model, Recurrent)
    return model


def batch_of(lengths: list[int], extra_steps: int = 0, padding: float = 0.0, seed: int = 0) -> dict[str, Tensor]:
    """Rows of these lengths, padded beyond the longest by `extra_steps` of the value `padding`."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(length, 3, generator=generator) for length in lengths]
    x_BTC = torch.full((len(rows), max(lengths) + extra_steps, 3), padding)
    for x_TC, row in zip(x_BTC, rows, strict=True):
        x_TC[: len(row)] = row
    numeric = torch.randn(len(rows), 2, generator=generator)
    return {"sequence": x_BTC, "length": torch.tensor(lengths), "numeric": numeric}


def gradients(model: nn.Module, *batches: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the sum of squared outputs of all rows of the batches."""
    model.zero_grad()
    for batch in batches:
        model(batch).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_row_does_not_see_its_batch(cell: str, pooling: str, bidirectional: bool) -> None:
    model = build(cell, pooling=pooling, bidirectional=bidirectional, layers=2)
    batch = batch_of(LENGTHS)
    alone = [
        {name: x[i : i + 1, :length] if name == "sequence" else x[i : i + 1] for name, x in batch.items()}
        for i, length in enumerate(LENGTHS)
    ]
    padded = batch_of(LENGTHS, extra_steps=4, padding=100.0)
    for training in (True, False):
        model.train(training)
        outputs_BK = torch.cat([model(row) for row in alone])
        assert outputs_BK.std(dim=0).min() > 0.01
        for other in (batch, padded):
            torch.testing.assert_close(model(other), outputs_BK, rtol=0, atol=1e-6)
        expected = gradients(model, *alone)
        assert len(expected) == len(list(model.parameters()))
        for other in (batch, padded):
            torch.testing.assert_close(gradients(model, other), expected, rtol=1e-5, atol=1e-5)


# References, step by step in float64. The weights of an nn layer are those of its gates, one above the other.


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lstm_step(x: np.ndarray, state: Any, weight: dict[str, np.ndarray]) -> tuple[Any, np.ndarray]:
    """Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000; gates in the order i, f, g, o."""
    h, c = state
    z = weight["weight_ih"] @ x + weight["bias_ih"] + weight["weight_hh"] @ h + weight["bias_hh"]
    i, f, g, o = np.split(z, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return (h, c), h


def gru_step(x: np.ndarray, state: Any, weight: dict[str, np.ndarray]) -> tuple[Any, np.ndarray]:
    """Cho et al. 2014, the reset gate after the recurrent product as cuDNN has it; gates in the order r, z, n."""
    h = state[0]
    from_x = np.split(weight["weight_ih"] @ x + weight["bias_ih"], 3)
    from_h = np.split(weight["weight_hh"] @ h + weight["bias_hh"], 3)
    r, z = sigmoid(from_x[0] + from_h[0]), sigmoid(from_x[1] + from_h[1])
    h = (1 - z) * np.tanh(from_x[2] + r * from_h[2]) + z * h
    return (h,), h


def elman_step(x: np.ndarray, state: Any, weight: dict[str, np.ndarray], activation: Any) -> tuple[Any, np.ndarray]:
    """Elman 1990."""
    h = activation(weight["weight_ih"] @ x + weight["bias_ih"] + weight["weight_hh"] @ state[0] + weight["bias_hh"])
    return (h,), h


STEPS: dict[str, Any] = {
    "lstm": lstm_step,
    "gru": gru_step,
    "tanh": lambda x, state, weight: elman_step(x, state, weight, np.tanh),
    "relu": lambda x, state, weight: elman_step(x, state, weight, lambda z: np.maximum(z, 0)),
}


def reference(model: Recurrent, cell: str, pooling: str, x_TC: np.ndarray) -> np.ndarray:
    """The vector that the head sees of one sequence, without the table."""
    for layer in model.layers:
        outputs, last = [], []
        for backward, way in enumerate(layer.ways):
            weight = {
                name.removesuffix("_l0"): parameter.detach().double().numpy()
                for name, parameter in way.named_parameters()
            }
            assert len(weight) == 4
            state: Any = (np.zeros(5), np.zeros(5))
            steps = []
            for x in x_TC[::-1] if backward else x_TC:
                state, h = STEPS[cell](x, state, weight)
                steps.append(h)
            last.append(steps[-1])
            outputs.append(np.stack(steps[::-1] if backward else steps))
        x_TC = np.concatenate(outputs, axis=1)
    if pooling == "last":
        return np.concatenate(last)
    if pooling == "mean":
        return x_TC.mean(axis=0)
    if pooling == "max":
        return x_TC.max(axis=0)
    assert model.score is not None
    score_T = x_TC @ model.score.weight[0].detach().double().numpy()  # a bias would move all alike
    weight_T = np.exp(score_T) / np.exp(score_T).sum()
    return weight_T @ x_TC


def test_segments_are_steps_side_by_side() -> None:
    x_BTF = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [[7.0, 8.0], [9.0, 9.0], [9.0, 9.0]]])
    segments, length_B = segmented(x_BTF, torch.tensor([3, 1]), 2)
    assert segments.tolist() == [[[1, 2, 3, 4], [5, 6, 0, 0]], [[7, 8, 0, 0], [0, 0, 0, 0]]]
    assert length_B.tolist() == [2, 1]


@pytest.mark.parametrize("bidirectional", [False, True])
def test_segments_do_not_see_the_padding(bidirectional: bool) -> None:
    model, batch = build("lstm", segment=3, bidirectional=bidirectional), batch_of(LENGTHS)
    outputs_BK = model(batch)
    torch.testing.assert_close(model(batch_of(LENGTHS, extra_steps=4, padding=100.0)), outputs_BK, rtol=0, atol=1e-6)
    for i, length in enumerate(LENGTHS):
        row = {name: x[i : i + 1, :length] if name == "sequence" else x[i : i + 1] for name, x in batch.items()}
        torch.testing.assert_close(model(row), outputs_BK[i : i + 1], rtol=0, atol=1e-6)


def test_a_text_has_no_segments() -> None:
    with pytest.raises(JobError, match=r"^network.segment = 3 is of sequences of numbers, and the features have none"):
        language_model("lstm", segment=3)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("cell", CELLS)
def test_outputs_are_those_of_the_equations(cell: str, pooling: str, bidirectional: bool) -> None:
    model = build(cell, pooling=pooling, bidirectional=bidirectional, layers=2)
    with torch.no_grad():  # biases of zero would hide whether they are there
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    batch = batch_of(LENGTHS)
    weight, bias = (p.detach().double().numpy() for p in (model.head.weight, model.head.bias))
    expected = []
    for x_TC, numeric, length in zip(*(batch[name] for name in ("sequence", "numeric", "length")), strict=True):
        pooled = reference(model, cell, pooling, x_TC[:length].double().numpy())
        expected.append(weight @ np.concatenate([pooled, numeric.double().numpy()]) + bias)
    torch.testing.assert_close(model(batch).double(), torch.tensor(np.stack(expected)), rtol=1e-5, atol=1e-5)


# Dropout


def keys(num: int) -> Tensor:
    return torch.arange(num, dtype=torch.int32) * 0x1234567


def test_a_feature_is_silent_at_all_steps_or_at_none() -> None:
    dropped = _over_steps(Dropout(0.5, 40, 0), torch.ones(30, 6, 40), keys(30))
    assert dropped.shape == (30, 6, 40)
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert 0.4 < float((dropped[:, 0] == 0).double().mean()) < 0.6
    assert len(dropped[:, 0].unique(dim=0)) == 30, "every row has its own mask"


@pytest.mark.parametrize("place", ["input_dropout", "dropout"])
def test_every_layer_drops_a_feature_at_all_steps_alike(place: str) -> None:
    model = build("lstm", {place: 0.5}, layers=2, pooling="mean")
    seen: list[Tensor] = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = batch_of([6] * 12)
    model(batch, keys(12))
    first_BTF, second_BTF = seen
    silenced_BTF = (first_BTF if place == "input_dropout" else second_BTF) == 0
    assert 0 < int(silenced_BTF.sum()) < silenced_BTF.numel()
    assert torch.equal(silenced_BTF, silenced_BTF[:, :1].expand_as(silenced_BTF))
    heard_B = (first_BTF != 0).any(dim=2).all(dim=1)  # a row whose inputs are all silent is silent throughout
    assert heard_B.sum() >= 8
    assert not ((second_BTF if place == "input_dropout" else first_BTF)[heard_B] == 0).any()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_head_sees_the_last_layer_dropped(pooling: str) -> None:
    model = build("gru", {"dropout": 0.5}, pooling=pooling)
    seen: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][:, :5]))
    batch = batch_of(LENGTHS)
    model(batch, keys(6))
    model.eval()(batch, keys(6))
    dropped_BH, whole_BH = seen
    keep_BH = model.dropouts[-1].train()(torch.ones(6, 5), keys(6))
    assert 0 < int((keep_BH == 0).sum()) < 30
    if pooling in ("last", "mean"):
        torch.testing.assert_close(dropped_BH, whole_BH * keep_BH)
    else:
        assert torch.equal(dropped_BH == 0, keep_BH == 0)


def test_masks_do_not_depend_on_the_padding() -> None:
    for pooling in POOLINGS:
        model = build("lstm", {"dropout": 0.5, "input_dropout": 0.3}, layers=2, pooling=pooling, bidirectional=True)
        outputs = [model(batch_of(LENGTHS, extra, 9.0), keys(6)) for extra in (0, 3)]
        torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-6)


# Initial weights, and what decays


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_initial_weights(cell: str, bidirectional: bool) -> None:
    model = build(cell, layers=2, bidirectional=bidirectional)
    gates = {"lstm": 4, "gru": 3}.get(cell, 1)
    names = [name for layer in model.layers for name, _ in layer.named_parameters()]
    assert len(names) == 2 * 4 * (2 if bidirectional else 1)
    ways = [way for layer in model.layers for way in layer.ways]
    for layer, (name, parameter) in ((each, pair) for each in ways for pair in each.named_parameters()):
        if name.startswith("weight_hh"):
            parts = parameter.detach().split(layer.hidden_size)
            assert len(parts) == gates
            for gate_HH in parts:
                torch.testing.assert_close(gate_HH @ gate_HH.T, torch.eye(5), rtol=0, atol=1e-5)
            assert all(not torch.equal(a, b) for a, b in itertools.combinations(parts, 2))
        elif name.startswith("bias"):
            forget = [1.0] * 5 if cell == "lstm" and "ih" in name else [0.0] * 5
            expected = [0.0] * 5 + forget + [0.0] * 10 if cell == "lstm" else [0.0] * 5 * gates
            assert parameter.tolist() == expected, "the forget gate's biases sum to 1, others are 0"
        else:
            assert parameter.abs().max() > 0.1


@pytest.mark.parametrize("build_network", [build, lambda cell, **fields: language_model(cell, **fields)])
@pytest.mark.parametrize("cell", CELLS)
def test_uniform_initial_weights_are_those_of_torch(cell: str, build_network: Any) -> None:
    model = build_network(cell, initialization="uniform", hidden=100)
    weights = [p for name, p in model.layers.named_parameters() if "weight_hh" in name or "bias" in name]
    for weight in weights:  # uniform within 1 / sqrt(hidden)
        assert 0.09 < float(weight.detach().abs().max()) <= 0.1
        assert float(weight.detach().std()) == pytest.approx(0.1 / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize("cell", CELLS)
def test_decay_shrinks_the_weights_and_spares_biases(cell: str) -> None:
    model = build(cell, layers=2, bidirectional=True, pooling="attention")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, exempt = ({names[id(p)] for p in group} for group in decayed_and_exempt(model))
    layers = [f"layers.{i}.ways.{way}.weight_{part}_l0" for i in (0, 1) for part in ("ih", "hh") for way in (0, 1)]
    assert decayed == {*layers, "score.weight", "head.weight"}
    assert exempt == set(names.values()) - decayed
    assert all("bias" in name for name in exempt)


def test_half_precision_keeps_the_steps_in_single() -> None:
    model, batch = build("lstm", pooling="mean", layers=2), batch_of([60] * 4)
    seen: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(batch).dtype == torch.bfloat16
    assert torch.equal(seen[0], seen[1])


# Language models

LANGUAGE = InputSpec(task="language_modeling", vocabulary_size=11, window=9)


def language_model(cell: str, regularization: dict[str, float] | None = None, **fields: Any) -> RecurrentLanguageModel:
    torch.manual_seed(0)
    network = NETWORKS[CELLS[cell]["kind"]]
    settings = network.settings(**{**CELLS[cell], "hidden": 5, "embedding": 4, "layers": 2, **fields})
    model = network.build(settings, LANGUAGE, RegularizationSettings(**(regularization or {})))
    assert isinstance(model, RecurrentLanguageModel)
    return model


def texts_of(lengths: list[int], padding: int = 0, seed: int = 0) -> dict[str, Tensor]:
    """Windows of so many tokens, the last of which is only predicted, padded with `padding`."""
    generator = torch.Generator().manual_seed(seed)
    length_B = torch.tensor(lengths)
    tokens_BT = torch.randint(11, (len(lengths), max(lengths)), generator=generator)
    tokens_BT[torch.arange(max(lengths)) >= length_B[:, None]] = padding
    return {"tokens": tokens_BT, "length": length_B, "skip": torch.zeros_like(length_B)}


@pytest.mark.parametrize("cell", CELLS)
def test_logits_are_those_of_the_equations(cell: str) -> None:
    model, batch = language_model(cell), texts_of([7] * 3)
    weight, bias = (p.detach().double().numpy() for p in (model.head.weight, model.head.bias))
    for logits_TV, tokens_T in zip(model(batch).detach().double().numpy(), batch["tokens"], strict=True):
        x_TC = model.embedding(tokens_T[:-1]).detach().double().numpy()
        for layer in model.layers:
            parameters = {name.removesuffix("_l0"): p.detach().double().numpy() for name, p in layer.named_parameters()}
            state: Any = (np.zeros(5), np.zeros(5))
            steps = []
            for x in x_TC:
                state, h = STEPS[cell](x, state, parameters)
                steps.append(h)
            x_TC = np.stack(steps)
        np.testing.assert_allclose(logits_TV, x_TC @ weight.T + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_no_token_sees_the_future(cell: str) -> None:
    model, batch = language_model(cell, {"dropout": 0.5, "input_dropout": 0.5}), texts_of([8] * 4)
    for place in range(1, 8):
        other = {**batch, "tokens": batch["tokens"].clone()}
        other["tokens"][:, place:] = (other["tokens"][:, place:] + 1) % 11
        before, after = model(batch, keys(4)), model(other, keys(4))
        torch.testing.assert_close(after[:, :place], before[:, :place], rtol=0, atol=1e-6)
        assert place == 7 or not torch.allclose(after[:, place], before[:, place], atol=1e-4)


@pytest.mark.parametrize("cell", CELLS)
def test_padding_changes_no_loss(cell: str) -> None:
    model, batch = language_model(cell), texts_of([4, 2, 8, 5])
    losses = loss_per_row(model(batch), batch, "language_modeling")
    padded = texts_of([4, 2, 8, 5], padding=7)
    torch.testing.assert_close(loss_per_row(model(padded), padded, "language_modeling"), losses, rtol=0, atol=1e-6)
    alone = [
        {name: x[i : i + 1, :length] if name == "tokens" else x[i : i + 1] for name, x in batch.items()}
        for i, length in enumerate([4, 2, 8, 5])
    ]
    single = torch.cat([loss_per_row(model(row), row, "language_modeling") for row in alone])
    torch.testing.assert_close(single, losses, rtol=0, atol=1e-6)
    assert losses.tolist() == pytest.approx([math.log(11)] * 4, abs=0.6), "the first loss is near that of a guess"


@pytest.mark.parametrize("cell", CELLS)
def test_steps_continue_a_text(cell: str) -> None:
    model, batch = language_model(cell).eval(), texts_of([9] * 2)
    state, logits = model.start(2), []
    for tokens_BT in batch["tokens"][:, :-1].split([3, 1, 4], dim=1):
        found, state = model.step(tokens_BT, state)
        logits.append(found)
    torch.testing.assert_close(torch.cat(logits, dim=1), model(batch), rtol=0, atol=1e-6)


def test_a_language_model_drops_a_feature_at_all_steps_alike() -> None:
    model = language_model("lstm", {"dropout": 0.5}, layers=1, hidden=40)
    seen: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(texts_of([9] * 6), keys(6))
    silenced_BTH = seen[0] == 0
    assert 0.3 < float(silenced_BTH[:, 0].double().mean()) < 0.7
    assert torch.equal(silenced_BTH, silenced_BTH[:, :1].expand_as(silenced_BTH))


def test_a_language_model_reads_in_one_direction() -> None:
    with pytest.raises(JobError, match=r"^network.bidirectional = true lets a language model read the tokens that it"):
        language_model("lstm", bidirectional=True)
