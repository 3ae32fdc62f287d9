from __future__ import annotations

import copy
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from raynn.checkpoint import restore_optimizer
from raynn.errors import JobError
from raynn.optimization import OptimizationSettings, build_optimizer, learning_rate, plateau_reductions


def rates(total_steps: int, **fields: Any) -> list[float]:
    settings = OptimizationSettings(**{"learning_rate": 0.1, **fields})
    return [learning_rate(settings, step, total_steps) for step in range(total_steps)]


def test_constant() -> None:
    assert rates(4, schedule="constant") == [0.1] * 4


def test_cosine_at_hand_computed_points() -> None:
    # cos 0, 60, 90, 120 degrees at 0, 1/3, 1/2, 2/3 of the steps
    rate = rates(6, schedule="cosine")
    assert [rate[0], rate[2], rate[3], rate[4]] == pytest.approx([0.1, 0.075, 0.05, 0.025], abs=1e-12)
    assert learning_rate(OptimizationSettings(), 6, 6) == pytest.approx(0.0, abs=1e-18)


def test_one_cycle_at_hand_computed_points() -> None:
    rate = rates(100, schedule="one_cycle")
    low, end = 0.1 / 25, 0.1 / 250_000
    assert rate[0] == pytest.approx(low)
    assert rate[15] == pytest.approx((low + 0.1) / 2)  # halfway up
    assert rate[30] == pytest.approx(0.1)
    assert rate[65] == pytest.approx((0.1 + end) / 2)  # halfway down
    assert rate[99] == pytest.approx(end + (0.1 - end) * 0.5 * (1 - math.cos(math.pi / 70)))
    assert max(rate) == rate[30]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle"])
def test_warmup_rises_linearly_before_the_schedule(schedule: str) -> None:
    rate = rates(40, schedule=schedule, warmup_fraction=0.1)
    assert rate[:4] == pytest.approx([0.02, 0.04, 0.06, 0.08])
    assert rate[4:] == rates(36, schedule=schedule)


def test_no_schedule_exceeds_the_rate_or_reaches_zero() -> None:
    for schedule in ("constant", "cosine", "one_cycle", "plateau"):
        for total in (1, 2, 3, 97):
            rate = rates(total, schedule=schedule, warmup_fraction=0.3)
            assert all(0 < r <= 0.1 for r in rate), (schedule, total)


@pytest.mark.parametrize(
    ("losses", "reductions"),
    [
        ([], 0),
        ([3, 2, 1], 0),
        ([1, 2], 0),
        ([1, 2, 2], 1),
        ([1, 1, 1], 1),  # equal is not better
        ([1, 2, 2, 2, 2], 2),
        ([1, 2, 2, 0.5, 2, 2], 2),
        ([1, 2, 0.5, 2, 0.4, 2], 0),  # never two in a row
        ([1, math.nan, math.nan], 1),
    ],
)
def test_plateau_reductions(losses: list[float], reductions: int) -> None:
    settings = OptimizationSettings(schedule="plateau", plateau_patience=2, plateau_factor=0.1, learning_rate=1.0)
    assert plateau_reductions(settings, losses) == reductions
    assert learning_rate(settings, 0, 10, reductions) == pytest.approx(0.1**reductions)


class EveryKind(nn.Module):
    """One parameter of each kind: matrix, kernel, bias, norm, embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Linear(3, 2)
        self.kernel = nn.Conv2d(2, 3, 3)
        self.norm = nn.LayerNorm(4)
        self.embedding = nn.Embedding(5, 2)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5)


DECAYED = {"matrix.weight", "kernel.weight"}


def step(settings: OptimizationSettings, model: nn.Module, weight_decay: float, steps: int) -> None:
    optimizer = build_optimizer(settings, model, weight_decay)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()


def test_adamw_shrinks_matrices_and_kernels_alone() -> None:
    model = EveryKind()
    before = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    step(OptimizationSettings(learning_rate=0.1), model, weight_decay=0.2, steps=5)
    for name, parameter in model.named_parameters():
        # with a gradient of zero, w (1 - rate * decay) each step: Loshchilov & Hutter 2019, algorithm 2
        factor = (1 - 0.1 * 0.2) ** 5 if name in DECAYED else 1.0
        torch.testing.assert_close(parameter.double(), before[name] * factor, rtol=1e-6, atol=0.0)


def test_adamw_is_algorithm_2() -> None:
    # float64, by hand, with gradients g_t = 1, -2, 3
    weight = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(weight.weight, 2.0)
    optimizer = build_optimizer(OptimizationSettings(learning_rate=0.1), weight, weight_decay=0.3)
    w, m, v = 2.0, 0.0, 0.0
    for t, g in enumerate([1.0, -2.0, 3.0], start=1):
        weight.weight.grad = torch.tensor([[g]], dtype=torch.float64)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w -= 0.1 * (m / (1 - 0.9**t) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8) + 0.3 * w)
        assert weight.weight.item() == pytest.approx(w, rel=1e-12)


def test_sgd_adds_decay_to_the_gradient_and_uses_nesterov_momentum() -> None:
    weight = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(weight.weight, 2.0)
    settings = OptimizationSettings(optimizer="sgd", learning_rate=0.1, momentum=0.5)
    optimizer = build_optimizer(settings, weight, weight_decay=0.3)
    w, velocity = 2.0, 0.0
    for g in [1.0, -2.0, 3.0]:
        weight.weight.grad = torch.tensor([[g]], dtype=torch.float64)
        optimizer.step()
        decayed = g + 0.3 * w
        velocity = 0.5 * velocity + decayed
        w -= 0.1 * (decayed + 0.5 * velocity)
        assert weight.weight.item() == pytest.approx(w, rel=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon"])
def test_every_optimizer_exempts_biases_norms_and_embeddings(optimizer: str) -> None:
    model = EveryKind()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    step(OptimizationSettings(optimizer=optimizer, learning_rate=0.1), model, weight_decay=0.2, steps=1)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == DECAYED


def test_a_model_without_a_matrix_has_an_optimizer() -> None:
    assert len(build_optimizer(OptimizationSettings(), nn.LayerNorm(3), 0.1).param_groups) == 1
    assert build_optimizer(OptimizationSettings(optimizer="sgd", momentum=0.0), nn.Linear(1, 1), 0.0)


class Small(nn.Module):
    """A matrix between hidden features, one that reads tokens, one that writes outputs, a kernel, a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 8)
        self.hidden = nn.Linear(8, 12)
        self.kernel = nn.Conv1d(3, 4, 3)
        self.head = nn.Linear(12, 2)


def gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_muon_orthogonalizes_hidden_matrices_and_leaves_the_rest_to_adamw() -> None:
    torch.manual_seed(0)
    model, plain = Small(), Small()
    plain.load_state_dict(model.state_dict())
    before = model.hidden.weight.detach().clone()
    gradients(model, 1)
    gradients(plain, 1)
    build_optimizer(OptimizationSettings(optimizer="muon", learning_rate=0.1), model, weight_decay=0.0).step()
    build_optimizer(OptimizationSettings(learning_rate=0.1), plain, weight_decay=0.0).step()
    for name, parameter in plain.named_parameters():
        same = torch.equal(parameter, dict(model.named_parameters())[name])
        assert same == (name not in ("hidden.weight", "kernel.weight")), name
    # the step's singular values: 0.1 * 0.2 * sqrt(12), each to the accuracy of five iterations (Jordan et al. 2024)
    values = torch.linalg.svdvals((model.hidden.weight - before).detach()) / (0.1 * 0.2 * math.sqrt(12))
    assert values.min() > 0.6
    assert values.max() < 1.25
    assert (
        torch.linalg.svdvals(plain.hidden.weight - before).max()
        > 2 * torch.linalg.svdvals(plain.hidden.weight - before).min()
    ), "which AdamW's are not"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("gradients_layout", [torch.contiguous_format, torch.channels_last])
def test_a_kernel_is_a_matrix_to_muon(layout: torch.memory_format, gradients_layout: torch.memory_format) -> None:
    """Whatever the layout, two steps are those of torch's optimizer on the matrix, to the rounding of 16 bits."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(6, 4, 3, 3, generator=generator)
    kernel, matrix = nn.Conv2d(4, 6, 3, bias=False).to(memory_format=layout), nn.Parameter(start.flatten(1).clone())
    with torch.no_grad():
        kernel.weight.copy_(start)
    ours = build_optimizer(OptimizationSettings(optimizer="muon", learning_rate=0.1), kernel, 0.3)
    theirs = torch.optim.Muon([matrix], lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    for _ in range(2):
        gradient = torch.randn(6, 4, 3, 3, generator=generator)
        kernel.weight.grad = gradient.contiguous(memory_format=gradients_layout)
        matrix.grad = gradient.flatten(1)
        ours.step()
        theirs.step()
    moved = (matrix.detach() - start.flatten(1)).norm()
    assert (kernel.weight.detach().flatten(1) - matrix.detach()).norm() < 0.02 * moved
    restored = build_optimizer(OptimizationSettings(optimizer="muon", learning_rate=0.1), kernel, 0.3)
    plain = copy.deepcopy(ours.state_dict())
    for state in plain["parts"][0]["state"].values():
        state["momentum_buffer"] = state["momentum_buffer"].contiguous()  # as a checkpoint has it
    restore_optimizer(restored, plain)
    before = kernel.weight.detach().clone()
    ours.step()
    after = kernel.weight.detach().clone()
    with torch.no_grad():
        kernel.weight.copy_(before)
    restored.step()
    assert torch.equal(kernel.weight, after)


def test_muon_goes_on_from_its_state() -> None:
    torch.manual_seed(0)
    straight = Small()
    optimizer = build_optimizer(OptimizationSettings(optimizer="muon", learning_rate=0.1), straight, 0.1)
    resumed = Small()
    for k in range(4):
        if k == 2:
            resumed.load_state_dict(straight.state_dict())
            other = build_optimizer(OptimizationSettings(optimizer="muon", learning_rate=0.1), resumed, 0.1)
            restore_optimizer(other, copy.deepcopy(optimizer.state_dict()))
        for model, stepped in ((straight, optimizer), (resumed, other if k >= 2 else None)):
            if stepped is not None:
                for group in stepped.param_groups:
                    group["lr"] = 0.1 / (k + 1)  # as the loop sets it
                gradients(model, k)
                stepped.step()
                stepped.zero_grad()
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.grad is None


def test_muon_needs_a_torch_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(JobError, match=r"^optimization.optimizer = 'muon' needs torch 2.9 or newer, and this is 2\."):
        build_optimizer(OptimizationSettings(optimizer="muon"), Small(), 0.0)


def test_steps_are_taken_outside_of_the_compiler() -> None:
    """Which is not even loaded, in a process of its own; the weights are those of torch's optimizer as it is."""
    script = """
import sys, torch
from torch import nn
from raynn.optimization import OptimizationSettings, build_optimizer

def trained(kind, plain):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1))
    optimizer = build_optimizer(OptimizationSettings(optimizer=kind), net, 0.1)
    for part in getattr(optimizer, "parts", [optimizer]) if plain else ():
        del part.step  # as torch has it
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(5, 3)).square().mean().backward()
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    return [p.detach().clone() for p in net.parameters()]

kinds = ("sgd", "adam", "adamw", "muon")
found = {kind: trained(kind, plain=False) for kind in kinds}
assert "torch._dynamo" not in sys.modules
for kind in kinds:
    assert all(torch.equal(a, b) for a, b in zip(found[kind], trained(kind, plain=True), strict=True)), kind
assert "torch._dynamo" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
