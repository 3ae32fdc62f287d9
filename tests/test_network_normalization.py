from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from processes import run_on_workers
from torch import Tensor, nn

from raynn.collectives import Workers
from raynn.networks.layers import steps_within
from raynn.networks.normalization import GlobalBatchNorm, group_norm

SHAPES = ((8, 4), (8, 4, 6), (8, 4, 5, 3))


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Features away from zero, and what their outputs are weighed with."""
    generator = torch.Generator().manual_seed(len(shape))
    return 2 * torch.randn(shape, generator=generator) + 3, torch.randn(shape, generator=generator)


def normalize(norm: nn.Module, x: Tensor, weights: Tensor, through: Through) -> dict[str, Tensor]:
    """Two steps of training: outputs and gradients of the last, running statistics, and an evaluation."""
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        norm.weight[1] *= -1  # the largest of what it normalizes were the smallest
    for factor in (0.5, 1.0):
        norm.zero_grad()
        leaf = (factor * x).requires_grad_()
        y = through(norm, leaf)
        (y.square() * weights[tuple(map(slice, y.shape))]).sum().backward()
    found = {"outputs": y.detach(), "gradient": leaf.grad}
    found |= {f"gradient of {name}": parameter.grad for name, parameter in norm.named_parameters()}
    found |= {name: buffer.clone() for name, buffer in norm.named_buffers() if "running" in name}
    norm.eval()
    return found | {"evaluated": through(norm, x).detach()}


Through = Callable[[nn.Module, Tensor], Tensor]


def whole(norm: nn.Module, x: Tensor) -> Tensor:
    """Normalized, and no more."""
    return norm(x)


def pooled(norm: GlobalBatchNorm, x: Tensor) -> Tensor:
    """The largest of windows of 2 or 2 x 2."""
    return norm.pooled(x, (2,) * (x.dim() - 2))


def pooled_by_torch(norm: nn.Module, x: Tensor) -> Tensor:
    """Normalized, then pooled."""
    return F.max_pool1d(norm(x), 2) if x.dim() == 3 else F.max_pool2d(norm(x), 2)


# shapes, types and layouts, and what float32, float64 and bfloat16 are allowed
CASES = (
    *((shape, torch.float32, torch.contiguous_format, 1e-6) for shape in SHAPES),
    (SHAPES[-1], torch.float32, torch.channels_last, 1e-6),
    (SHAPES[-1], torch.float64, torch.contiguous_format, 1e-14),
    (SHAPES[-1], torch.bfloat16, torch.channels_last, 2e-2),
)


WAYS: dict[str, Through] = {"whole": whole, "pooled": pooled}
ALL = [(case, "whole") for case in range(len(CASES))] + [(case, "pooled") for case in range(1, len(CASES))]


def normalized(case: int, way: str, rows: slice) -> dict[str, Tensor]:
    shape, dtype, layout, _ = CASES[case]
    x, weights = (part[rows].to(dtype).contiguous(memory_format=layout) for part in inputs(shape))
    norm = GlobalBatchNorm(4).to(torch.float64 if dtype == torch.float64 else torch.float32)
    return normalize(norm, x, weights, WAYS[way])


def on_a_worker(workers: Workers) -> list[dict[str, Tensor]]:
    """The first three rows on the first worker, five on the second."""
    rows = slice(0, 3) if workers.rank == 0 else slice(3, 8)
    return [normalized(case, way, rows) for case, way in ALL]


def test_two_workers_normalize_as_one(tmp_path: Path) -> None:
    halves = run_on_workers(on_a_worker, 2, tmp_path)
    for (case, way), first, second in zip(ALL, *halves, strict=True):
        shape, dtype, _, allowed = CASES[case]
        alone = normalized(case, way, slice(0, 8))
        for name, expected in alone.items():
            if "running" in name:
                assert torch.equal(first[name], second[name])
                found = first[name]
            elif "gradient of" in name:  # each worker has its rows' part
                found = first[name] + second[name]
            else:
                found = torch.cat([first[name], second[name]])
            scale = float(expected.abs().max())
            told = f"{name} {way} {shape} {dtype}"
            assert found.dtype == expected.dtype, told
            torch.testing.assert_close(found / scale, expected / scale, rtol=0.0, atol=allowed, msg=told)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_worker_normalizes_as_torch(shape: tuple[int, ...]) -> None:
    theirs = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)](4)
    ours = normalize(GlobalBatchNorm(4), *inputs(shape), whole)
    for name, expected in normalize(theirs, *inputs(shape), whole).items():
        assert torch.equal(ours[name], expected), name


def masked(norm: GlobalBatchNorm, x: Tensor) -> Tensor:
    """The steps that are there, as devices have it."""
    return _there(norm._masked(x, THERE_B1T) if norm.training else norm(x, THERE_B1T))


def picked(norm: GlobalBatchNorm, x: Tensor) -> Tensor:
    """The same as CPUs have it."""
    return _there(norm(x, THERE_B1T))


def _there(x_BCT: Tensor) -> Tensor:
    return x_BCT.transpose(1, 2)[THERE_B1T.squeeze(1)]


THERE_B1T = steps_within(torch.tensor([6, 1, 3, 2, 6, 5, 4, 1]), 6)[:, None]


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-6), (torch.float64, 1e-14), (torch.bfloat16, 2e-2)])
def test_steps_that_are_there_normalize_alike_on_a_device(dtype: torch.dtype, allowed: float) -> None:
    x, _ = inputs((8, 4, 6))
    x = (100 * x.masked_fill(~THERE_B1T, torch.nan)).nan_to_num(1e6).to(dtype)  # whatever lies behind the last step
    weights = inputs((33, 4))[1][: int(THERE_B1T.sum())].to(dtype)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    ours = normalize(GlobalBatchNorm(4).to(kind), x, weights, masked)
    for name, expected in normalize(GlobalBatchNorm(4).to(kind), x, weights, picked).items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(ours[name] / scale, expected / scale, rtol=0.0, atol=allowed, msg=name)


@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_pooled_first_it_is_torch_pooled_last(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Outputs, gradients, running statistics, also where windows leave a last row or column out."""
    x, weights = (part.to(dtype) for part in inputs(shape))
    theirs = (nn.BatchNorm1d if len(shape) == 3 else nn.BatchNorm2d)(4).to(dtype)
    ours = normalize(GlobalBatchNorm(4).to(dtype), x, weights, pooled)
    allowed = 1e-6 if dtype == torch.float32 else 1e-14
    for name, expected in normalize(theirs, x, weights, pooled_by_torch).items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(ours[name] / scale, expected / scale, rtol=0.0, atol=allowed, msg=name)


def test_pooled_in_16_bits_it_is_as_near_to_the_truth_as_torch() -> None:
    x, weights = inputs((64, 4, 12, 12))
    x, weights = (part.bfloat16().contiguous(memory_format=torch.channels_last) for part in (x, weights))
    truth = normalize(nn.BatchNorm2d(4).double(), x.double(), weights.double(), pooled_by_torch)
    ours = normalize(GlobalBatchNorm(4), x, weights, pooled)
    theirs = normalize(nn.BatchNorm2d(4), x, weights, pooled_by_torch)
    for name, expected in truth.items():
        off = [float((found[name].double() - expected).norm()) for found in (ours, theirs)]
        assert off[0] <= 1.1 * off[1] + 1e-6 * float(expected.norm()), (name, off)


def test_gradcheck_of_what_is_pooled() -> None:
    x, _ = inputs((6, 4, 4, 4))
    norm = GlobalBatchNorm(4).double()
    with torch.no_grad():
        norm.weight[1] *= -1
    weight, bias = norm.weight, norm.bias

    def largest(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        norm._parameters["weight"], norm._parameters["bias"] = weight, bias
        return norm.pooled(x, (2, 2))

    assert torch.autograd.gradcheck(largest, (x.double().requires_grad_(), weight, bias))


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (3, 1), (4, 1), (6, 1), (8, 2), (12, 3), (20, 5), (32, 8), (64, 8), (7, 1)]
)
def test_group_norm_has_at_most_8_groups_of_at_least_4_channels(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups
