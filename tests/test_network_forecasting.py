"""Contracts of forecasts by every network of the table: shapes, no look ahead, levels taken away and given back.

Shapes: B windows, W steps that are read, H steps to predict, K targets.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raynn.networks import NETWORKS
from raynn.networks.forecasting import MAX_ONE_HOT, Forecaster, StepCodes, WindowNormalization
from raynn.penalties import decayed_and_exempt
from raynn.preprocessing import InputSpec
from raynn.regularization import RegularizationSettings

W, H, K = 6, 3, 2
BARE = InputSpec(window=W, horizon=H, num_targets=K, num_outputs=H * K, task="forecasting")
# three numbers and three categories a step, one of which is embedded; some are known for the steps to come
FULL = InputSpec(
    num_numeric=3,
    cardinalities=(4, MAX_ONE_HOT + 8, 3),
    window=W,
    horizon=H,
    num_targets=K,
    num_outputs=H * K,
    known_numeric=(1,),
    known_categorical=(1, 2),
    task="forecasting",
)
SMALL: dict[str, dict[str, Any]] = {
    "feedforward": {"hidden": (16,)},
    "cnn": {"channels": (6, 8), "head_hidden": (16,), "normalization": "group"},
    "rnn": {"hidden": 16},
    "lstm": {"hidden": 16},
    "custom": {"target": "own_network:build", "settings": {"size": 32}},
}
KINDS = [kind for kind, network in NETWORKS.items() if "forecasting" in network.tasks]
CASES = [
    pytest.param(kind, inputs, normalization, independent, id=f"{kind}-{name}-{normalization}-{independent}")
    for kind in KINDS
    for name, inputs, normalization, independent in (
        ("bare", BARE, "none", False),
        ("full", FULL, "none", True),
        ("full", FULL, "last", False),
        ("bare", BARE, "revin", True),
        ("full", FULL, "revin", True),
    )
]


def build(
    kind: str, inputs: InputSpec, normalization: Any = "none", independent: bool = False, **regularization: float
) -> Forecaster:
    torch.manual_seed(0)
    settings = NETWORKS[kind].settings(kind=kind, **SMALL[kind])
    network = partial(NETWORKS[kind].build, settings, regularization=RegularizationSettings(**regularization))
    return Forecaster(network, inputs, normalization, independent=independent)


def batch_of(inputs: InputSpec, num_rows: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    batch = {"target": torch.randn(num_rows, W + H, K, generator=generator), "length": torch.full((num_rows,), W + H)}
    if inputs.num_numeric:
        batch["numeric"] = torch.randn(num_rows, W + H, inputs.num_numeric, generator=generator)
    if inputs.cardinalities:
        codes = [torch.randint(n, (num_rows, W + H), generator=generator) for n in inputs.cardinalities]
        batch["categorical"] = torch.stack(codes, dim=2)
    return batch


def keys(num_rows: int) -> Tensor:
    return torch.arange(num_rows, dtype=torch.int32) * 0x1234567


@pytest.mark.parametrize(("kind", "inputs", "normalization", "independent"), CASES)
def test_no_forecast_sees_the_future(kind: str, inputs: InputSpec, normalization: str, independent: bool) -> None:
    """Other targets, and other values of what is not known, change no bit; other values of what is known do."""
    model, batch = build(kind, inputs, normalization, independent).eval(), batch_of(inputs, 8)
    before = model(batch)
    other = {name: values.clone() for name, values in batch_of(inputs, 8, seed=1).items()}
    for name, values in batch.items():
        if name != "length":
            other[name][:, :W] = values[:, :W]
    if inputs.known_numeric:
        known = list(inputs.known_numeric)
        other["numeric"][:, :, known] = batch["numeric"][:, :, known]
        known = list(inputs.known_categorical)
        other["categorical"][:, :, known] = batch["categorical"][:, :, known]
    assert not torch.equal(other["target"], batch["target"])
    assert torch.equal(model(other), before)
    if inputs.known_numeric:
        for name, column in (("numeric", 1), ("categorical", 1), ("categorical", 2)):
            changed = {key: values.clone() for key, values in batch.items()}
            changed[name][:, -1, column] = 1 - changed[name][:, -1, column].clamp(0, 1)
            assert not torch.equal(model(changed), before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("normalization", "independent"), [("none", True), ("last", False), ("revin", True)])
def test_gradients_are_those_of_finite_differences(kind: str, normalization: str, independent: bool) -> None:
    model = build(kind, FULL, normalization, independent, dropout=0.2).double()
    batch = {name: x.double() if x.is_floating_point() else x for name, x in batch_of(FULL, 3).items()}
    names, parameters = zip(*model.named_parameters(), strict=True)
    with torch.no_grad():  # off the kinks: a bias of 0 before a ReLU is one
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn_like(parameter))

    def outputs(*values: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (batch, keys(3)))

    assert torch.autograd.gradcheck(outputs, parameters, fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_independent_channels_read_their_own_past_by_the_same_weights(kind: str) -> None:
    model, batch = build(kind, FULL, "last", independent=True).eval(), batch_of(FULL, 8)
    before = model(batch)
    other = {**batch, "target": batch["target"].clone()}
    other["target"][:, :, 1] *= 2.0
    assert torch.equal(model(other)[:, :, 0], before[:, :, 0])
    swapped = model({**batch, "target": batch["target"].flip(2)})
    torch.testing.assert_close(swapped, before.flip(2))
    together = build(kind, FULL, "last").eval()
    assert not torch.equal(together(other)[:, :, 0], together(batch)[:, :, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_a_function_of_key_and_channel(kind: str) -> None:
    """Two channels that hold the same past draw different masks; with the same keys again the same."""
    model = build(kind, BARE, independent=True, dropout=0.5)
    batch = batch_of(BARE, 8)
    batch["target"] = batch["target"][:, :, :1].expand(-1, -1, K)
    first = model(batch, keys(8))
    assert not torch.equal(first[:, :, 0], first[:, :, 1])
    torch.manual_seed(1)
    assert torch.equal(model(batch, keys(8)), first)
    assert not torch.equal(model(batch, keys(8) + 1), first)
    alone = model({"target": batch["target"][3:4]}, keys(8)[3:4])
    torch.testing.assert_close(alone, first[3:4])
    evaluated = model.eval()(batch, keys(8))
    assert torch.equal(evaluated[:, :, 0], evaluated[:, :, 1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("independent", [False, True])
def test_a_forecast_moves_with_the_level_of_its_window(kind: str, independent: bool) -> None:
    """last: with a constant added; revin: with any scale too (Kim et al. 2022, section 3)."""
    batch = batch_of(BARE, 8)
    shift, scale = torch.tensor([3.0, -40.0]), torch.tensor([0.5, 20.0])
    for normalization, by in (("last", torch.ones(K)), ("revin", scale)):
        model = build(kind, BARE, normalization, independent).eval()
        with torch.no_grad():
            for parameter in model.normalization.parameters():
                parameter.add_(torch.tensor([0.3, -0.2]))
        moved = model({"target": batch["target"] * by + shift})
        torch.testing.assert_close(moved, model(batch) * by + shift, rtol=1e-3, atol=1e-3)


def test_normalizations_are_their_equations() -> None:
    x_BWK = torch.randn(5, W, K, dtype=torch.float64)
    for kind in ("none", "last", "revin"):
        layer = WindowNormalization(kind, K).double()  # type: ignore[arg-type]
        shift, scale = layer.level(x_BWK)
        z_BWK = layer.normalized(x_BWK, shift, scale)
        expected = {
            "none": x_BWK,
            "last": x_BWK - x_BWK[:, -1:],
            "revin": (x_BWK - x_BWK.mean(1, True)) / (x_BWK.var(1, correction=0, keepdim=True) + 1e-5).sqrt(),
        }[kind]
        torch.testing.assert_close(z_BWK, expected)
        torch.testing.assert_close(layer.restored(z_BWK, shift, scale), x_BWK)
    assert len(list(WindowNormalization("last", K).parameters())) == 0


def test_weights_that_shrink_are_those_of_the_network() -> None:
    model = build("lstm", FULL, "revin", independent=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(parameter)] for parameter in decayed_and_exempt(model)[0]}
    assert "network.head.weight" in decayed
    assert not [name for name in decayed if name.startswith(("normalization", "codes"))]


def test_categories_are_one_hot_or_embedded_and_the_unknown_one_adds_nothing() -> None:
    codes = StepCodes((3, MAX_ONE_HOT, MAX_ONE_HOT + 1))
    assert codes.widths == [2, MAX_ONE_HOT - 1, 11]
    code_BTC = torch.tensor([[[0, 0, 0], [1, 5, 7], [2, 31, 32]]])
    assert codes(code_BTC, 0).tolist() == [[[0, 0], [1, 0], [0, 1]]]
    assert codes(code_BTC, 1)[0, 1].nonzero().tolist() == [[4]]
    embedded = codes(code_BTC, 2)
    assert embedded.shape == (1, 3, 11)
    assert not embedded[0, 0].any()
    assert embedded[0, 1].any()


def test_nlinear_is_found_by_least_squares() -> None:
    """No hidden layer, last value, channels independent: the linear map of Zeng et al. 2023, section 4, whose best
    weights have a closed form.
    """
    settings = NETWORKS["feedforward"].settings(kind="feedforward", hidden=())
    network = partial(NETWORKS["feedforward"].build, settings, regularization=RegularizationSettings())
    model = Forecaster(network, BARE, "last", independent=True).double()
    assert sum(p.numel() for p in model.parameters()) == W * H + H
    torch.manual_seed(0)
    target = torch.randn(200, W + H, K, dtype=torch.float64).cumsum(1)
    batch = {"target": target}
    last_B1K = target[:, W - 1 : W]
    x_NW = (target[:, :W] - last_B1K).transpose(1, 2).reshape(-1, W)
    y_NH = (target[:, W:] - last_B1K).transpose(1, 2).reshape(-1, H)
    # the last input is always 0: least squares leaves its weight at 0
    design = torch.cat([x_NW, torch.ones(len(x_NW), 1, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(design, y_NH, driver="gelsd").solution
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        return loss

    optimizer.step(closure)
    best = (design @ solution - y_NH).square().mean()
    assert loss_of(model, batch).item() == pytest.approx(best.item(), rel=1e-9)
    weight = model.network.head.weight
    assert isinstance(weight, Tensor)
    torch.testing.assert_close(weight[:, : W - 1], solution.T[:, : W - 1], rtol=1e-4, atol=1e-5)


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return (model(batch) - batch["target"][:, W:]).square().mean()
