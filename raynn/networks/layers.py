"""Layers that several network types share: activations, normalizations that agree between worker counts, and what it
takes to be blind to the padding behind a short sequence.

Shapes: B rows, C channels, H features, T steps, ... any number of spatial axes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from raynn.collectives import SumOverWorkers

Activation = Literal["relu", "gelu", "silu", "tanh", "selu"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "selu": nn.SELU,
}


class GlobalBatchNorm(nn.Module):
    """Batch normalization (Ioffe & Szegedy 2015, algorithm 1) over the global batch, whatever the number of workers.

    Mean and variance are those of all workers' rows, each worker counting as many rows as it has; on a CPU too, where
    torch's SyncBatchNorm does not run. Of sequences whose lengths differ only the steps that are there count.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))

    def forward(self, x: Tensor, within_B1T: Tensor | None = None) -> Tensor:
        """Normalized `x` [B, C, ...]; of steps outside `within_B1T` nothing is promised."""
        if within_B1T is not None and self.training:
            # the steps that are there as rows of their own: the same bits whatever the padding, and on a CPU 0.75 times
            # the time of sums over masked maps (64 x 64 channels x 256 steps, half of them there: 31 and 41 ms)
            within_BT = within_B1T.squeeze(1)
            x_SC = self(x.transpose(1, 2)[within_BT])
            y_BTC = x_SC.new_zeros(*within_BT.shape, x.shape[1])
            y_BTC[within_BT] = x_SC
            return y_BTC.transpose(1, 2)
        if not self.training or not (dist.is_initialized() and dist.get_world_size() > 1):
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
            )
        axes = [0, *range(2, x.dim())]
        var_C, mean_C = torch.var_mean(x.float(), dim=axes, correction=0)
        mean_C, var_C = mean_C.double(), var_C.double()
        count = torch.full_like(mean_C[:1], x.numel() // x.shape[1])
        # in float64, so that E[x^2] - E[x]^2 of the workers' own statistics loses nothing that float32 could hold
        sums: Tensor = SumOverWorkers.apply(torch.cat([count * mean_C, count * (var_C + mean_C**2), count]))  # type: ignore[no-untyped-call]
        total = sums[-1]
        global_mean_C, global_square_C = (sums[:-1] / total).chunk(2)
        global_var_C = global_square_C - global_mean_C**2
        with torch.no_grad():
            self.running_mean.lerp_(global_mean_C.float(), self.momentum)
            self.running_var.lerp_((global_var_C * (total / (total - 1))).float(), self.momentum)
        scale_C = self.weight * torch.rsqrt(global_var_C.float() + self.eps)
        shift_C = self.bias - global_mean_C.float() * scale_C
        shape = (1, -1, *([1] * (x.dim() - 2)))
        return (x * scale_C.reshape(shape) + shift_C.reshape(shape)).to(x.dtype)


class GroupNorm(nn.GroupNorm):
    """Group normalization (Wu & He 2018, eq. 1), of sequences whose lengths differ over the steps that are there."""

    def forward(self, x: Tensor, within_B1T: Tensor | None = None) -> Tensor:
        """Normalized `x` [B, C, ...]; of steps outside `within_B1T` nothing is promised."""
        if within_B1T is None:
            return super().forward(x)
        x_BGCT = x.to(self.weight.dtype).unflatten(1, (self.num_groups, -1))
        within_B11T = within_B1T[:, None]
        count_B1 = within_B1T.sum((1, 2))[:, None] * x_BGCT.shape[2]
        mean_BG = (x_BGCT * within_B11T).sum((2, 3)) / count_B1
        centered_BGCT = (x_BGCT - mean_BG[:, :, None, None]) * within_B11T
        var_BG = centered_BGCT.square().sum((2, 3)) / count_B1
        scaled_BCT = (centered_BGCT * torch.rsqrt(var_BG + self.eps)[:, :, None, None]).flatten(1, 2)
        return (scaled_BCT * self.weight[:, None] + self.bias[:, None]).to(x.dtype)


def group_norm(num_channels: int) -> GroupNorm:
    """Group normalization with the most groups, up to 8, of at least 4 channels each."""
    groups = max(g for g in range(1, 9) if num_channels % g == 0 and (g == 1 or num_channels // g >= 4))
    return GroupNorm(groups, num_channels)


def exactly(x: Tensor) -> AbstractContextManager[object]:
    """float32 whatever the precision asked for: where rounding errors add up over steps."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def steps_within(length_B: Tensor, num_steps: int) -> Tensor:
    """Which steps are there [B, T]: the first `length` of each row. A row without any counts as one step of zeros."""
    return torch.arange(num_steps, device=length_B.device) < length_B.clamp(min=1)[:, None]


def pooled_over_steps(x_BTH: Tensor, within_BT: Tensor, pooling: str) -> Tensor:
    """Mean or largest value (`max`) over the steps that are there [B, H]."""
    if pooling == "max":
        return x_BTH.masked_fill(~within_BT[:, :, None], -torch.inf).amax(1)
    return (x_BTH * within_BT[:, :, None]).sum(1) / within_BT.sum(1, keepdim=True)
