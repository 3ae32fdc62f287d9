"""What several network types share: activations, the layout of images, and what it takes to be blind to the padding
behind a short sequence.

Shapes: B rows, C channels, H features, T steps, ... any number of spatial axes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

Activation = Literal["relu", "gelu", "silu", "tanh", "selu"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "selu": nn.SELU,
}


def channels_last(x_BCHW: Tensor) -> Tensor:
    """The same maps, a pixel's channels side by side: the layout that tensor cores want and, on a CPU, the quicker one.

    Of one channel, too, whose memory is the same in both layouts: a convolution tells by its strides which one is
    meant, and all that follows has the layout of its output.
    """
    if x_BCHW.shape[1] == 1:
        return x_BCHW.contiguous().squeeze(1)[..., None].movedim(-1, 1)
    return x_BCHW.contiguous(memory_format=torch.channels_last)


def flattened(x: Tensor) -> Tensor:
    """A row's values [B, C * ...] of maps [B, C, ...], one channel after the other.

    The gradient of images comes back in their layout: on a CPU, what reads it beside them would otherwise take several
    times as long.
    """
    if x.dim() == 4 and x.requires_grad and not torch.compiler.is_compiling():
        flat: Tensor = _Flattened.apply(x)  # type: ignore[no-untyped-call]
        return flat
    return x.flatten(1)


class _Flattened(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor) -> Tensor:
        ctx.shape = x_BCHW.shape
        return x_BCHW.flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].reshape(ctx.shape).contiguous(memory_format=torch.channels_last)


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
