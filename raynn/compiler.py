"""torch.compile, where a job asks for it."""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from raynn.errors import TrainingError


def compile_network(network: nn.Module, device: torch.device) -> None:
    """Has torch compile the network when it is next called, in place: its weights keep their names.

    Half a minute at the first steps, less where another run or trial of the machine has compiled the same (torch keeps
    what it makes in TORCHINDUCTOR_CACHE_DIR). Sums round in another way than without.

    Raises:
        TrainingError: on a CPU, there is no C++ compiler.
    """
    if device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise TrainingError(
            "optimization.compile = true needs a C++ compiler on every machine that trains, and here is none: install "
            "g++, name another in the environment as CXX, or set optimization.compile=false"
        )
    network.compile()
