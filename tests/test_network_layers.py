from __future__ import annotations

from pathlib import Path

import pytest
import torch
from processes import run_on_workers
from torch import Tensor, nn

from raynn.collectives import Workers
from raynn.networks.layers import GlobalBatchNorm, group_norm

SHAPES = ((8, 4), (8, 4, 6), (8, 4, 5, 3))


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Features away from zero, and what their outputs are weighed with."""
    generator = torch.Generator().manual_seed(len(shape))
    return 2 * torch.randn(shape, generator=generator) + 3, torch.randn(shape, generator=generator)


def normalize(norm: nn.Module, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Two steps of training: outputs and gradients of the last, running statistics, and an evaluation."""
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5, generator=torch.Generator().manual_seed(0))
    for factor in (0.5, 1.0):
        norm.zero_grad()
        leaf = (factor * x).requires_grad_()
        y = norm(leaf)
        (y.square() * weights).sum().backward()
    found = {"outputs": y.detach(), "gradient": leaf.grad}
    found |= {f"gradient of {name}": parameter.grad for name, parameter in norm.named_parameters()}
    found |= {name: buffer.clone() for name, buffer in norm.named_buffers() if "running" in name}
    norm.eval()
    return found | {"evaluated": norm(x).detach()}


# shapes, types and layouts, and what float32, float64 and bfloat16 are allowed
CASES = (
    *((shape, torch.float32, torch.contiguous_format, 1e-6) for shape in SHAPES),
    (SHAPES[-1], torch.float32, torch.channels_last, 1e-6),
    (SHAPES[-1], torch.float64, torch.contiguous_format, 1e-14),
    (SHAPES[-1], torch.bfloat16, torch.channels_last, 2e-2),
)


def normalized(case: int, rows: slice) -> dict[str, Tensor]:
    shape, dtype, layout, _ = CASES[case]
    x, weights = (part[rows].to(dtype).contiguous(memory_format=layout) for part in inputs(shape))
    return normalize(GlobalBatchNorm(4).to(torch.float64 if dtype == torch.float64 else torch.float32), x, weights)


def on_a_worker(workers: Workers) -> list[dict[str, Tensor]]:
    """The first three rows on the first worker, five on the second."""
    rows = slice(0, 3) if workers.rank == 0 else slice(3, 8)
    return [normalized(case, rows) for case in range(len(CASES))]


def test_two_workers_normalize_as_one(tmp_path: Path) -> None:
    halves = run_on_workers(on_a_worker, 2, tmp_path)
    for case, (first, second) in enumerate(zip(*halves, strict=True)):
        shape, dtype, _, allowed = CASES[case]
        alone = normalized(case, slice(0, 8))
        for name, expected in alone.items():
            if "running" in name:
                assert torch.equal(first[name], second[name])
                found = first[name]
            elif "gradient of" in name:  # each worker has its rows' part
                found = first[name] + second[name]
            else:
                found = torch.cat([first[name], second[name]])
            scale = float(expected.abs().max())
            told = f"{name} {shape} {dtype}"
            assert found.dtype == expected.dtype, told
            torch.testing.assert_close(found / scale, expected / scale, rtol=0.0, atol=allowed, msg=told)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_worker_normalizes_as_torch(shape: tuple[int, ...]) -> None:
    theirs = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)](4)
    ours = normalize(GlobalBatchNorm(4), *inputs(shape))
    for name, expected in normalize(theirs, *inputs(shape)).items():
        assert torch.equal(ours[name], expected), name


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (3, 1), (4, 1), (6, 1), (8, 2), (12, 3), (20, 5), (32, 8), (64, 8), (7, 1)]
)
def test_group_norm_has_at_most_8_groups_of_at_least_4_channels(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups
