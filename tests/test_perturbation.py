"""Weights that are elsewhere while a gradient is computed: steps by hand in float64, every bit back in its place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from knob_cases import BENCHES, batch_of, fresh, job_for, train
from torch import Tensor, nn

from raynn.averaging import AveragedWeights, EpochAverage
from raynn.gradients import NOISE_DECAY, reshape_gradient, training_losses
from raynn.perturbation import climbed, perturbed_weights
from raynn.randomness import again, step_key
from raynn.regularization import RegularizationSettings

CPU = torch.device("cpu")


def key_of(step: int) -> Callable[[], Tensor]:
    return partial(step_key, 0, 0, step, CPU)


KEY = key_of(0)
BENCH = BENCHES["numbers"]


def flat(model: nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()]).double()


def gradient_at(model: nn.Module, weights: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Of the mean squared error at these weights, in float64, by torch's functional call."""
    names = [(name, weight.shape) for name, weight in model.named_parameters()]
    weights = weights.clone().requires_grad_()
    parts = weights.split([shape.numel() for _, shape in names])
    values = {name: part.view(shape) for (name, shape), part in zip(names, parts, strict=True)}
    batch = {name: x.double() for name, x in batch.items()}
    loss = (torch.func.functional_call(model.double(), values, (batch,))[:, 0] - batch["target"]).square().mean()
    (gradient,) = torch.autograd.grad(loss, weights)
    return gradient


def one_step(**regularization: float) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Weights before and after a step of plain descent at rate 0.05 on all of 10 rows, and the gradient's function."""
    job = job_for(BENCH, 1, **regularization)
    job = job.model_copy(
        update={"optimization": job.optimization.model_copy(update={"momentum": 0.0, "schedule": "constant"})}
    )
    state = fresh(job, BENCH)
    before = flat(state.model)
    batch = batch_of(BENCH, 10)
    train(job, BENCH, state, num_rows=10)
    after = flat(state.model)
    return before, after, lambda weights: gradient_at(state.model, weights, batch)


def test_sam_steps_by_the_gradient_at_the_top_of_the_ball() -> None:
    before, after, gradient = one_step(sam=0.3)
    g = gradient(before)
    expected = before - 0.05 * gradient(before + 0.3 * g / g.norm())
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-6)
    plain = before - 0.05 * g
    assert (after - plain).abs().max() > 1e-4


def test_asam_measures_in_units_of_each_weight() -> None:
    before, after, gradient = one_step(asam=0.8)
    g, t = gradient(before), before.abs() + 0.01
    expected = before - 0.05 * gradient(before + 0.8 * t**2 * g / (t * g).norm())
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-6)


def test_l2_and_max_norm_in_a_step() -> None:
    before, after, gradient = one_step(l2=0.5)
    decays = torch.cat(
        [
            torch.full((weight.numel(),), float(weight.dim() == 2))
            for weight in fresh(job_for(BENCH), BENCH).model.parameters()
        ]
    )
    torch.testing.assert_close(after, before - 0.05 * (gradient(before) + 0.5 * decays * before), rtol=1e-5, atol=1e-6)


def test_climbing_puts_every_bit_back_and_freezes_statistics() -> None:
    bench = BENCHES["images"]
    model = fresh(job_for(bench), bench).model
    batch = batch_of(bench)
    model(batch).sum().backward()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with climbed(model, RegularizationSettings(sam=0.5)):
        assert all(weight.grad is None for weight in model.parameters())
        distance = (flat(model) - torch.cat([before[n].flatten() for n, _ in model.named_parameters()])).norm()
        assert float(distance) == pytest.approx(0.5, rel=1e-4)
        model(batch).sum().backward()
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    model(batch)
    assert not torch.equal(
        model.state_dict()["stages.0.conv.norm.running_mean"], before["stages.0.conv.norm.running_mean"]
    )


def test_weight_drop_is_the_gradient_through_the_mask() -> None:
    model = nn.ModuleDict({"cell": nn.LSTM(2, 3, batch_first=True)}).double()
    cell = model["cell"]
    x_BTF = torch.randn(4, 5, 2, dtype=torch.float64)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with perturbed_weights(model, RegularizationSettings(weight_drop=0.5), KEY):
        dropped = cell.weight_hh_l0.detach().clone()  # type: ignore[union-attr, operator]
        cell(x_BTF)[0].square().sum().backward()
    mask = dropped / before["cell.weight_hh_l0"]
    assert set(mask.round(decimals=9).unique().tolist()) == {0.0, 2.0}
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    w = before["cell.weight_hh_l0"].clone().requires_grad_()
    values = {name.removeprefix("cell."): weight for name, weight in before.items()} | {"weight_hh_l0": w * mask}
    torch.func.functional_call(cell, values, (x_BTF,))[0].square().sum().backward()
    assert w.grad is not None
    torch.testing.assert_close(cell.weight_hh_l0.grad, w.grad)  # type: ignore[union-attr]


def test_weights_drop_at_their_share_each_step_anew() -> None:
    model = nn.RNN(2, 100)
    kept = []
    for step in range(2):
        with perturbed_weights(model, RegularizationSettings(weight_drop=0.3), key_of(step)):
            kept.append(model.weight_hh_l0.detach() != 0)
    for each in kept:
        assert abs(int(each.sum()) - 7000) < 5 * (10_000 * 0.21) ** 0.5
    agree = float((kept[0] == kept[1]).double().mean())
    assert abs(agree - (0.7**2 + 0.3**2)) < 5 * (0.25 / 10_000) ** 0.5


def test_weight_noise_has_its_deviation_and_goes_away() -> None:
    model = nn.Sequential(nn.Linear(50, 60), nn.Linear(60, 50))
    before = [weight.detach().clone() for weight in model.parameters()]
    with perturbed_weights(model, RegularizationSettings(weight_noise=0.1), KEY):
        noise = [weight.detach() - old for weight, old in zip(model.parameters(), before, strict=True)]
    assert all(torch.equal(weight, old) for weight, old in zip(model.parameters(), before, strict=True))
    assert not noise[1].any(), "biases are left alone"
    for each in (noise[0], noise[2]):
        assert float(each.std()) == pytest.approx(0.1, rel=0.06)
        assert abs(float(each.mean())) < 5 * 0.1 / 3000**0.5
    correlation = float((noise[0].flatten() * noise[2].flatten()).mean()) / 0.01
    assert abs(correlation) < 5 / 3000**0.5


def model_with_gradient(gradient: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    model = nn.ModuleDict({"body": nn.Linear(4, 3), "head": nn.Linear(3, 2)})
    for parameter in model.parameters():
        parameter.grad = gradient * torch.randn_like(parameter)
    return model


def test_adaptive_clipping_is_unit_by_unit() -> None:
    model = model_with_gradient(0.08)
    body, head = model["body"], model["head"]  # type: ignore[index]
    old = {name: parameter.grad.double() for name, parameter in model.named_parameters() if parameter.grad is not None}
    reshape_gradient(model, RegularizationSettings(gradient_clip_adaptive=0.3), KEY, 0)
    w, g = body.weight.detach().double(), old["body.weight"]
    ratio = 0.3 * w.norm(dim=1) / g.norm(dim=1)
    assert (ratio < 1).any()
    assert (ratio > 1).any()
    torch.testing.assert_close(body.weight.grad.double(), g * ratio.clamp(max=1)[:, None], rtol=1e-5, atol=1e-7)
    bias, g = body.bias.detach().double(), old["body.bias"]
    expected = g * (0.3 * bias.norm() / g.norm()).clamp(max=1)
    torch.testing.assert_close(body.bias.grad.double(), expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(head.weight.grad.double(), old["head.weight"])


def test_clipping_by_value() -> None:
    model = model_with_gradient()
    old = model["body"].weight.grad.clone()  # type: ignore[index]
    reshape_gradient(model, RegularizationSettings(gradient_clip_value=0.5), KEY, 0)
    assert torch.equal(model["body"].weight.grad, old.clamp(-0.5, 0.5))  # type: ignore[index]


@pytest.mark.parametrize("step", [0, 99])
def test_gradient_noise_has_the_variance_of_its_step(step: int) -> None:
    model = nn.Linear(100, 100)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    reshape_gradient(model, RegularizationSettings(gradient_noise=0.04), key_of(step), step)
    assert model.weight.grad is not None
    expected = (0.04 / (1 + step) ** NOISE_DECAY) ** 0.5
    assert float(model.weight.grad.std()) == pytest.approx(expected, rel=0.05)


def test_the_average_over_steps_follows_its_recursion() -> None:
    model = nn.Linear(3, 2)
    average = AveragedWeights(model, 0.6)
    expected = model.weight.detach().double()
    for n in range(1, 9):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update(model)
        decay = min(0.6, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
    torch.testing.assert_close(average.model.weight.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "first"), [({"start": 0.4}, 4), ({"last": 3}, 7)])
def test_averages_over_epochs_are_means_of_their_ends(kind: dict[str, float], first: int) -> None:
    model = nn.Linear(3, 2)
    average = EpochAverage(model, 10, **kind)  # type: ignore[arg-type]
    ends = []
    for epoch in range(10):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        ends.append(model.weight.detach().double().clone())
        average.update_epoch(model, epoch, [])
        if epoch < 4 and "start" in kind:
            assert torch.equal(average.model.weight, model.weight), "before the first, the network"
    torch.testing.assert_close(average.model.weight.double(), torch.stack(ends[first:]).mean(0), rtol=1e-6, atol=1e-7)


def test_statistics_of_an_average_are_means_over_the_batches_shown() -> None:
    bench = BENCHES["images"]
    model = fresh(job_for(bench), bench).model
    average = EpochAverage(model, 2, last=2)
    batch = batch_of(bench)
    parts = [{name: x[i : i + 7] for name, x in batch.items()} for i in (0, 7, 14)]
    average.update_epoch(model, 0, [lambda network, part=part: network(part) for part in parts])  # type: ignore[misc]
    conv = model.stages[0].conv  # type: ignore[union-attr, index]
    means = []
    for part in parts:
        x_BCHW = conv.convolution(model.image(part["image"]))  # type: ignore[operator, union-attr]
        means.append(x_BCHW.double().mean((0, 2, 3)))
    found = average.model.stages[0].conv.norm.running_mean  # type: ignore[union-attr, index]
    torch.testing.assert_close(found.double(), torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)


def test_r_drop_is_two_passes_and_their_divergence() -> None:
    bench = BENCHES["table"]
    job = job_for(bench, dropout=0.4, r_drop=0.7)
    model = fresh(job, bench).model.train()
    batch, key_B = batch_of(bench), torch.arange(21, dtype=torch.int32) * 0x1234567
    found = training_losses(job, job.regularization, model, batch, key_B)
    first, second = model(batch, key_B), model(batch, again(key_B))
    assert not torch.equal(first, second)
    losses = [F.cross_entropy(outputs.double(), batch["target"], reduction="none") for outputs in (first, second)]
    p, q = (outputs.double().softmax(1) for outputs in (first, second))
    both = (p * (p / q).log()).sum(1) + (q * (q / p).log()).sum(1)
    torch.testing.assert_close(found.double(), sum(losses) / 2 + 0.7 * both / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("before", [{}, {"ema_decay": 0.5}, {"average_last": 2}], ids=["none", "ema", "last"])
def test_an_average_asked_for_by_a_change_begins_where_the_network_is(before: dict[str, float]) -> None:
    stopped = train(job_for(BENCH, 3, **before), BENCH, epochs=1)
    job = job_for(BENCH, 3, swa_start=0.1)
    changed = fresh(job, BENCH)
    changed.restore(copy.deepcopy(stopped.to_dict()))
    assert torch.equal(flat(changed.evaluated), flat(stopped.model))
    train(job, BENCH, changed)
    assert len(changed.history) == 3
