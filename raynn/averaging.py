"""Averages of a network's weights over training, which are scored and kept in place of the last ones.

One of three: exponential over steps (ema_decay), equal over the ends of epochs from one on (swa_start), equal over the
last few ends of epochs (average_last).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from raynn.regularization import RegularizationSettings
from raynn.sharding import cut, load_weights, own

Forward = Callable[[nn.Module], object]  # shows a network one training batch


class AveragedWeights:
    """An exponential moving average of a network's weights (Polyak & Juditsky 1992; as in Ho et al. 2020, appendix B).

    The decay grows from 1 / 11 to the one that was asked for as (1 + n) / (10 + n) over steps n, so that a short
    training is not dominated by the initial weights. Buffers, running statistics among them, are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay, self.num_steps = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """After a step of `model`."""
        self.num_steps += 1
        decay = min(self.decay, (1 + self.num_steps) / (10 + self.num_steps))
        mine, theirs = ([own(parameter) for parameter in each.parameters()] for each in (self.model, model))
        torch._foreach_lerp_(mine, theirs, 1.0 - decay)
        for buffer, other in zip(self.model.buffers(), model.buffers(), strict=True):
            buffer.copy_(other)

    def update_epoch(self, model: nn.Module, epoch: int, batches: Iterable[Forward]) -> None:
        """After an epoch of `model`: nothing."""

    def begin(self, model: nn.Module) -> None:
        """As if training began with this `model`."""
        self.model.load_state_dict(model.state_dict())
        self.num_steps = 0

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"weights": self.model.state_dict(), "num_steps": self.num_steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes the place of what `to_dict` wrote."""
        load_weights(self.model, state["weights"])
        self.num_steps = state["num_steps"]


class EpochAverage:
    """The mean of a network's weights at the ends of epochs: of all from the share `start` of `max_epochs` on (Izmailov
    et al. 2018, algorithm 1), or of the `last` few (Vaswani et al. 2017, section 6.1). Before the first, the network.

    Running statistics are those of the averaged network over the epoch's training batches, each counting alike
    (algorithm 1, last line). Sums are in float64.
    """

    def __init__(self, model: nn.Module, max_epochs: int, *, start: float = 0.0, last: int = 0) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.first_epoch, self.last = round(start * max_epochs), last
        self.ends: list[list[Tensor]] = []  # weights at the ends of the last epochs; of swa, one sum
        self.num_ends = 0

    def update(self, model: nn.Module) -> None:
        """After a step of `model`: nothing."""

    @torch.no_grad()
    def update_epoch(self, model: nn.Module, epoch: int, batches: Iterable[Forward]) -> None:
        """After epoch `epoch` (0 is the first) of `model`; `batches` show a network what it was trained on."""
        self.model.load_state_dict(model.state_dict())
        if epoch < self.first_epoch:
            return
        now = [parameter.detach().clone() for parameter in model.parameters()]
        if self.last:
            self.ends = [*self.ends, now][-self.last :]
            self.num_ends = len(self.ends)
        else:
            before = self.ends[0] if self.ends else [torch.zeros_like(x, dtype=torch.float64) for x in now]
            self.ends = [[total + x for total, x in zip(before, now, strict=True)]]
            self.num_ends += 1
        for mine, *ends in zip(self.model.parameters(), *self.ends, strict=True):
            own(mine).copy_(torch.stack([own(end) for end in ends]).sum(0, dtype=torch.float64) / self.num_ends)
        refresh_statistics(self.model, batches)

    @property
    def _kept(self) -> str:
        """What a checkpoint calls `ends`: another kind of average finds nothing of its own there."""
        return "ends" if self.last else "sum"

    def begin(self, model: nn.Module) -> None:
        """As if training began with this `model`."""
        self.model.load_state_dict(model.state_dict())
        self.ends, self.num_ends = [], 0

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"weights": self.model.state_dict(), self._kept: self.ends, "num_ends": self.num_ends}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes the place of what `to_dict` wrote."""
        load_weights(self.model, state["weights"])
        parameters = list(self.model.parameters())
        self.ends = [
            [cut(part, like).to(like.device) for part, like in zip(end, parameters, strict=True)]
            for end in state[self._kept]
        ]
        self.num_ends = state["num_ends"]


Average = AveragedWeights | EpochAverage


def average_of(model: nn.Module, knobs: RegularizationSettings, max_epochs: int) -> Average | None:
    """The average that the knobs ask for."""
    if knobs.ema_decay is not None:
        return AveragedWeights(model, knobs.ema_decay)
    if knobs.swa_start is not None:
        return EpochAverage(model, max_epochs, start=knobs.swa_start)
    if knobs.average_last is not None:
        return EpochAverage(model, max_epochs, last=knobs.average_last)
    return None


@torch.no_grad()
def refresh_statistics(model: nn.Module, batches: Iterable[Forward]) -> None:
    """Sets the running statistics of normalizations to their mean over `batches`; a network without any sees none."""
    norms: list[Any] = [module for module in model.modules() if hasattr(module, "running_mean")]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    model.train()
    for k, show in enumerate(batches):
        for norm in norms:
            norm.momentum = 1.0 / (k + 1)
        show(model)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
