"""What a network is made of, layer by layer, and the filters of its first convolution.

Shapes: O output channels, I input channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raynn.norms import own_parameters

MAX_FILTERS = 64


@dataclass(frozen=True)
class Layer:
    """A module with parameters of its own."""

    name: str
    kind: str
    shape: str  # of its largest parameter
    output: str  # shape of its output, B the batch; empty where no batch was run through
    parameters: int
    norm: float  # Frobenius norm of all its parameters
    rms: float  # root mean square of a parameter


def layers_of(model: nn.Module, batch: Mapping[str, Tensor] | None = None, key_B: Tensor | None = None) -> list[Layer]:
    """The layers in the order of the module tree; with a batch, what each puts out."""
    outputs = _output_shapes(model, batch, key_B) if batch is not None else {}
    found: list[Layer] = []
    for name, module, own in own_parameters(model):
        count = sum(p.numel() for p in own)
        norm = float(sum(float(p.detach().double().square().sum()) for p in own) ** 0.5)
        largest = max(own, key=lambda p: p.numel())
        found.append(
            Layer(
                name,
                type(module).__name__,
                " x ".join(map(str, largest.shape)) or "1",
                outputs.get(name, ""),
                count,
                norm,
                norm / count**0.5,
            )
        )
    return found


@torch.no_grad()
def _output_shapes(model: nn.Module, batch: Mapping[str, Tensor], key_B: Tensor | None) -> dict[str, str]:
    rows = len(next(iter(batch.values())))
    shapes: dict[str, str] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor) and name not in shapes:
                sizes = ["B" if i == 0 and n == rows else str(n) for i, n in enumerate(first.shape)]
                shapes[name] = " x ".join(sizes)

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules()]
    try:
        model.eval()
        model(batch, key_B)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def first_filters(model: nn.Module) -> tuple[str, NDArray[np.uint8]] | None:
    """Name and filters [O, C, H, W] of the first convolution, at most MAX_FILTERS, each stretched to 0 .. 255 around
    gray for 0. C is 3 for filters over three channels, else 1: the input channels of an image one below the other,
    those of a sequence as rows. None without a convolution, or where a filter is a single weight.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv1d | nn.Conv2d) or module.weight[0, 0].numel() == 1:
            continue
        weight = module.weight.detach().cpu().float()[:MAX_FILTERS]
        if weight.dim() == 3:
            weight = weight[:, None]
        elif weight.shape[1] != 3:
            weight = weight.flatten(1, 2)[:, None]
        largest = weight.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
        pixels = (127.5 + 127.5 * weight / largest).round().to(torch.uint8)
        return name, pixels.numpy()
    return None
