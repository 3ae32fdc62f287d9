"""Normalizations that agree between worker counts, also of sequences whose lengths differ.

Shapes: B rows, C channels, T steps, ... any number of spatial axes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Statistics(NamedTuple):
    """Over all workers' rows and steps, in float64."""

    mean_C: Tensor
    var_C: Tensor
    total: Tensor  # [1], how many rows and steps


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
        if within_B1T is not None and self.training and x.device.type != "cpu":
            return self._masked(x, within_B1T)
        if within_B1T is not None and self.training:
            # the steps that are there as rows of their own: the same bits whatever the padding, and on a CPU 0.75 times
            # the time of sums over masked maps (64 x 64 channels x 256 steps, half of them there: 31 and 41 ms)
            within_BT = within_B1T.squeeze(1)
            x_SC = self(x.transpose(1, 2)[within_BT])
            y_BTC = x_SC.new_zeros(*within_BT.shape, x.shape[1])
            y_BTC[within_BT] = x_SC
            return y_BTC.transpose(1, 2)
        if not self.training or not _several_workers():
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
            )
        normalized: Tensor = _Normalized.apply(x, self.weight, self.bias, self._statistics(x), self.eps)  # type: ignore[no-untyped-call]
        return normalized

    def pooled(self, x: Tensor, window: tuple[int, ...]) -> Tensor:
        """The largest of each window of the normalized `x` [B, C, ...]; windows do not overlap.

        On a CPU, while training, the largest are found first and they alone normalized: about half the time.
        """
        if not self.training or x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.max_pool1d(self(x), window) if len(window) == 1 else F.max_pool2d(self(x), window)
        x_BCHW, window_HW = (x, window) if len(window) == 2 else (x[:, :, None], (1, *window))
        largest: Tensor = _Normalized.apply(  # type: ignore[no-untyped-call]
            x_BCHW, self.weight, self.bias, self._statistics(x_BCHW), self.eps, window_HW
        )
        return largest if len(window) == 2 else largest[:, :, 0]

    def _masked(self, x_BCT: Tensor, within_B1T: Tensor) -> Tensor:
        """Normalized over the steps that are there, of which alone a gradient comes back. To pick those out, a device
        would have to tell its host how many there are, and the host to wait for it.
        """
        x_BCT = x_BCT.masked_fill(~within_B1T, 0.0)  # and so is the gradient
        statistics = self._statistics(x_BCT, within_B1T)
        y_BCT: Tensor = _Normalized.apply(x_BCT, self.weight, self.bias, statistics, self.eps)  # type: ignore[no-untyped-call]
        return y_BCT

    @torch.no_grad()
    def _statistics(self, x: Tensor, within_B1T: Tensor | None = None) -> Statistics:
        """Of `x` over all workers' rows and steps, of those there where that is told; the running ones follow."""
        if within_B1T is None:
            unused = torch.zeros_like(self.weight), torch.zeros_like(self.weight)  # else results have x's precision
            mean_C, var_C = torch.batch_norm_update_stats(x, *unused, 0.0)
            mean_C, var_C = mean_C.double(), var_C.double()
            total = torch.full_like(mean_C[:1], x.numel() // x.shape[1])
        else:
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            total = within_B1T.sum(dtype=torch.float64).reshape(1)
            mean_C = (x * within_B1T).sum((0, 2), dtype=torch.float64) / total
            centered_BCT = (x - mean_C.to(x.dtype)[:, None]) * within_B1T
            var_C = centered_BCT.square().sum((0, 2), dtype=torch.float64) / total
        if _several_workers():
            # in float64, so that E[x^2] - E[x]^2 of the workers' own statistics loses nothing that float32 could hold
            sums = torch.cat([total * mean_C, total * (var_C + mean_C**2), total])
            dist.all_reduce(sums)
            mean_C, square_C = (sums[:-1] / sums[-1]).chunk(2)
            var_C, total = square_C - mean_C**2, sums[-1:]
        self.running_mean.lerp_(mean_C.to(self.weight.dtype), self.momentum)
        self.running_var.lerp_((var_C * (total / (total - 1))).to(self.weight.dtype), self.momentum)
        return Statistics(mean_C, var_C, total)


def _several_workers() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


class _Normalized(torch.autograd.Function):
    """x normalized by statistics of all workers' rows; the gradient knows that these depend on x (Ioffe & Szegedy 2015,
    section 3), on every worker's. By torch's own kernels, which read x once: 2 to 3 times as fast as sums and products.

    With a window, the largest of each. A channel's normalization is one line for all its values, so the largest after
    it are the largest before it, or the smallest where its weight is negative; sums over the gradient of the normalized
    maps are sums over the largest, as it is zero elsewhere.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        statistics: Statistics,
        eps: float,
        window: tuple[int, int] | None = None,
    ) -> Tensor:
        """`x` [B, C, ...] of any floating type, with a window [B, C, H, W]."""
        mean_C, var_C = statistics.mean_C.to(weight_C.dtype), statistics.var_C.to(weight_C.dtype)
        largest, index = (x, None) if window is None else _largest(x, weight_C, window)
        ctx.save_for_backward(x, largest, index, weight_C, mean_C, var_C, statistics.total)
        ctx.eps, ctx.window = eps, window
        return F.batch_norm(largest, mean_C, var_C, weight_C, bias_C, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Of x, and this worker's part of the gradients of weight and bias.

        d x = scale (d y - mean of d y - normalized x * mean of d y * normalized x): torch knows the first term; the
        others are a line, slope * x + offset.
        """
        x, largest, index, weight_C, mean_C, var_C, total = ctx.saved_tensors
        grad_x, grad_weight_C, grad_bias_C = torch.ops.aten.native_batch_norm_backward(
            grads[0], largest, weight_C, mean_C, var_C, None, None, False, ctx.eps, [True, True, True]
        )
        if ctx.window is not None:
            grad_x = torch.ops.aten.max_pool2d_with_indices_backward(
                grad_x, x, ctx.window, ctx.window, [0, 0], [1, 1], False, index
            )
        sums = torch.stack([grad_bias_C, grad_weight_C]).double()
        if _several_workers():
            dist.all_reduce(sums)
        through_mean_C, through_deviation_C = (sums / total).to(weight_C.dtype)
        deviation_C = torch.rsqrt(var_C + ctx.eps)
        slope_C = -weight_C * deviation_C.square() * through_deviation_C
        offset_C = -weight_C * deviation_C * through_mean_C - mean_C * slope_C
        # in one pass, and rounded once
        line = F.batch_norm(x, torch.zeros_like(slope_C), torch.ones_like(slope_C), slope_C, offset_C, False, 0.0, 0.0)
        return grad_x.add_(line), grad_weight_C, grad_bias_C, None, None, None


def _largest(x_BCHW: Tensor, weight_C: Tensor, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Of each window the value that is the largest once normalized, and where it is in the map."""
    falls_C = weight_C < 0
    pool = torch.ops.aten.max_pool2d_with_indices
    if not falls_C.any():
        largest, index = pool(x_BCHW, window)
        return largest, index
    sign_C11 = torch.where(falls_C, -1.0, 1.0).to(x_BCHW.dtype)[:, None, None]
    largest, index = pool(x_BCHW * sign_C11, window)
    return largest * sign_C11, index


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
