"""Weights, outputs and states kept small: against closed forms and references in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raynn.penalties import (
    StatePenalty,
    add_weight_penalties,
    decayed_and_exempt,
    divergence,
    negative_entropy,
    project_weights,
    state_penalty,
)
from raynn.regularization import RegularizationSettings


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"dense": nn.Linear(5, 3), "kernel": nn.Conv2d(2, 4, 3), "tall": nn.Linear(3, 8)})


def with_gradients(model: nn.Module) -> dict[str, Tensor]:
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_l1_and_l2_add_the_gradient_of_what_they_say(model: nn.Module) -> None:
    before = with_gradients(model)
    add_weight_penalties(model, RegularizationSettings(l1=0.3, l2=0.7))
    for name, parameter in model.named_parameters():
        w = parameter.detach().double().requires_grad_()
        penalty = 0.3 * w.abs().sum() + 0.7 / 2 * w.square().sum()
        (expected,) = torch.autograd.grad(penalty if name.endswith("weight") else 0 * w.sum(), w)
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), before[name].double() + expected, rtol=1e-6, atol=1e-6)


def test_l1_leaves_a_weight_of_zero_alone(model: nn.Module) -> None:
    nn.init.zeros_(model["dense"].weight)  # type: ignore[index]
    before = with_gradients(model)
    add_weight_penalties(model, RegularizationSettings(l1=0.3))
    assert torch.equal(model["dense"].weight.grad, before["dense.weight"])  # type: ignore[index]


def test_max_norm_projects_each_unit_and_leaves_the_others(model: nn.Module) -> None:
    before = {name: weight.detach().double().numpy().copy() for name, weight in model.named_parameters()}
    project_weights(model, RegularizationSettings(max_norm=0.5))
    touched = 0
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            np.testing.assert_array_equal(weight.detach().numpy(), before[name])
            continue
        norm_U = np.linalg.norm(before[name].reshape(len(weight), -1), axis=1)
        scale_U = np.minimum(1.0, 0.5 / norm_U).reshape(-1, *[1] * (weight.dim() - 1))
        np.testing.assert_allclose(weight.detach().numpy(), before[name] * scale_U, rtol=1e-6, atol=1e-7)
        touched += int((norm_U > 0.5).sum())
    assert 0 < touched < 15


def test_spectral_norm_projects_the_largest_singular_value(model: nn.Module) -> None:
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    project_weights(model, RegularizationSettings(spectral_norm=0.8))
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            assert torch.equal(weight, before[name])
            continue
        sigma = np.linalg.svd(before[name].double().reshape(len(weight), -1).numpy(), compute_uv=False)[0]
        expected = before[name].double() * min(1.0, 0.8 / sigma)
        torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_embeddings_and_norms_are_left_alone() -> None:
    model = nn.ModuleDict({"tokens": nn.Embedding(4, 3), "norm": nn.LayerNorm(3)})
    assert decayed_and_exempt(model)[0] == []
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with_gradients(model)
    project_weights(model, RegularizationSettings(max_norm=0.01, spectral_norm=0.01))
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def softmax(x: Tensor) -> np.ndarray:
    e = np.exp(x.double().numpy() - x.double().numpy().max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_confidence_penalty_is_the_negative_entropy() -> None:
    logits_BK = torch.randn(6, 4)
    p = softmax(logits_BK)
    expected = (p * np.log(p)).sum(-1)
    np.testing.assert_allclose(negative_entropy(logits_BK, {}, "classification"), expected, rtol=1e-5)
    uniform = negative_entropy(torch.zeros(1, 4), {}, "classification")
    assert float(uniform) == pytest.approx(-np.log(4))


def test_divergence_is_the_mean_of_both() -> None:
    first, second = torch.randn(2, 6, 4)
    p, q = softmax(first), softmax(second)
    expected = ((p * np.log(p / q)).sum(-1) + (q * np.log(q / p)).sum(-1)) / 2
    np.testing.assert_allclose(divergence(first, second, {}, "classification"), expected, rtol=1e-4)
    assert float(divergence(first, first, {}, "classification").abs().max()) == 0.0
    squares = (first.double() - second.double()).square().mean(1)
    torch.testing.assert_close(divergence(first, second, {}, "regression").double(), squares)


def test_of_a_text_scored_tokens_count_alone() -> None:
    logits_BTV = torch.randn(2, 5, 7)
    batch = {"tokens": torch.zeros(2, 6).int(), "skip": torch.tensor([2, 0]), "length": torch.tensor([5, 3])}
    found_B = negative_entropy(logits_BTV, batch, "language_modeling")
    p = softmax(logits_BTV)
    entropy_BT = (p * np.log(p)).sum(-1)
    np.testing.assert_allclose(found_B, [entropy_BT[0, 2:4].mean(), entropy_BT[1, :2].mean()], rtol=1e-5)


def test_activation_penalties_are_means_over_the_steps_that_are_there() -> None:
    torch.manual_seed(0)
    states_BTH, mask_BH = torch.randn(3, 5, 2, dtype=torch.float64), torch.tensor([[0.0, 2.0]] * 3).double()
    length_B = torch.tensor([5, 3, 1])
    layer = StatePenalty(2.0, 3.0)
    layer(states_BTH, states_BTH * mask_BH[:, None], torch.arange(5) < length_B[:, None])
    expected = []
    for states_TH, length in zip(states_BTH, length_B.tolist(), strict=True):
        kept_TH = states_TH[:length] * mask_BH[0]
        change = (states_TH[1:length] - states_TH[: length - 1]).square()
        expected.append(2.0 * float(kept_TH.square().mean()) + (3.0 * float(change.mean()) if length > 1 else 0.0))
    assert state_penalty(layer, 3).tolist() == pytest.approx(expected)  # type: ignore[union-attr]
    assert not state_penalty(layer, 3).any(), "taken once"
    layer.eval()(states_BTH, states_BTH, torch.ones(3, 5).bool())
    assert not state_penalty(layer, 3).any(), "in training alone"


def test_channels_forecast_one_by_one_share_their_rows_penalty() -> None:
    layer = StatePenalty(1.0, 0.0)
    states_BTH = torch.arange(4.0)[:, None, None].expand(4, 2, 3)
    layer(states_BTH, states_BTH, torch.ones(4, 2).bool())
    assert state_penalty(layer, 2).tolist() == [0.5, 6.5]  # type: ignore[union-attr]  # means of 0, 1 and of 4, 9
