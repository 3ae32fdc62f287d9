"""torch.compile, where a job asks for it."""

from __future__ import annotations

import os
import shutil

import torch
from torch import Tensor, nn

from raynn.errors import TrainingError


def compile_network(network: nn.Module, device: torch.device, asked: bool | str = True) -> None:
    """Has torch compile the network when it is next called, in place: its weights keep their names.

    `asked` is `optimization.compile`: `reduce-overhead` has a GPU repeat what it has once been told to do, as CUDA
    graphs, instead of being told each kernel (for small networks, whose steps are shorter than the telling). What the
    network gives is then overwritten at the next step or batch: `begin_step`, `kept`.

    Half a minute at the first steps, less where another run or trial of the machine has compiled the same (torch keeps
    what it makes in TORCHINDUCTOR_CACHE_DIR). Sums round in another way than without.

    Raises:
        TrainingError: on a CPU, there is no C++ compiler.
    """
    if device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise TrainingError(
            "optimization.compile needs a C++ compiler on every machine that trains, and here is none: install "
            "g++, name another in the environment as CXX, or set optimization.compile=false"
        )
    network.compile(mode=asked if isinstance(asked, str) else None)


def begin_step(asked: bool | str) -> None:
    """Before a training step, of one or more pieces, or a batch that is looked at: what the network gave is not needed
    any more.
    """
    if asked == "reduce-overhead":
        torch.compiler.cudagraph_mark_step_begin()


def kept(outputs: Tensor, asked: bool | str) -> Tensor:
    """Outputs that are still needed at a later step."""
    return outputs.clone() if asked == "reduce-overhead" else outputs
