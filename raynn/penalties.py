"""Weights, outputs and states kept small: what is added to the gradient or the loss, and weights scaled back.

Shapes: B rows, T steps, H features, K classes, V vocabulary, N outputs of a row, U units, I inputs of a unit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raynn.objectives import Batch, is_scored
from raynn.regularization import RegularizationSettings
from raynn.sharding import own, whole


def decayed_and_exempt(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that weight decay shrinks (matrices, kernels), and the rest (biases, norms, embeddings)."""
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            named_so = name == "weight" or name.startswith(("weight_ih", "weight_hh"))  # recurrent layers' own names
            shrinks = parameter.dim() >= 2 and named_so and not isinstance(module, nn.Embedding)
            (decayed if shrinks else exempt).append(parameter)
    return decayed, exempt


@torch.no_grad()
def add_weight_penalties(model: nn.Module, knobs: RegularizationSettings) -> None:
    """Adds the gradient of l1 * |w| + l2 / 2 * w**2, of every component of the weights that decay, to theirs. At w = 0
    the first is 0.
    """
    for weight in decayed_and_exempt(model)[0] if knobs.l1 or knobs.l2 else ():
        assert weight.grad is not None
        if knobs.l1:
            own(weight.grad).add_(own(weight).sign(), alpha=knobs.l1)
        if knobs.l2:
            own(weight.grad).add_(own(weight), alpha=knobs.l2)


@torch.no_grad()
def project_weights(model: nn.Module, knobs: RegularizationSettings) -> None:
    """Scales weights that decay back to the limits: of the norm of those into each unit (max_norm), then of the largest
    singular value of the matrix [U, I] (spectral_norm), found by the eigenvalues of the smaller of its two products.
    Where weights are cut a unit is one worker's, and the second needs them whole, one at a time.
    """
    for weight in decayed_and_exempt(model)[0] if knobs.max_norm or knobs.spectral_norm else ():
        if knobs.max_norm:
            weight_UI = own(weight).flatten(1)
            norm_U1 = weight_UI.norm(dim=1, keepdim=True)
            scaled_UI = weight_UI * (knobs.max_norm / norm_U1.clamp(min=knobs.max_norm))
            own(weight).copy_(scaled_UI.view_as(own(weight)))
        if knobs.spectral_norm:
            weight_UI = whole(weight).flatten(1)
            tall = weight_UI.shape[0] > weight_UI.shape[1]
            product = weight_UI.T @ weight_UI if tall else weight_UI @ weight_UI.T
            largest = torch.linalg.eigvalsh(product)[-1].clamp(min=0.0).sqrt()
            own(weight).mul_(knobs.spectral_norm / largest.clamp(min=knobs.spectral_norm))


def negative_entropy(outputs: Tensor, batch: Batch, task: str) -> Tensor:
    """sum p log p of each row's predicted distribution [B], in nats; the mean over the scored tokens of a text."""
    log_p = outputs.float().log_softmax(-1)
    return _over_tokens((log_p.exp() * log_p).sum(-1), batch, task)


def divergence(first: Tensor, second: Tensor, batch: Batch, task: str) -> Tensor:
    """How far apart two passes over each row are [B]: the mean of both Kullback-Leibler divergences of the predicted
    distributions, in nats (Wu et al. 2021, eq. 2); of values, the mean squared difference.
    """
    if task in ("classification", "language_modeling"):
        log_p, log_q = first.float().log_softmax(-1), second.float().log_softmax(-1)
        return _over_tokens(0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1), batch, task)
    return (first.float() - second.float()).square().flatten(1).mean(1)


def _over_tokens(x: Tensor, batch: Batch, task: str) -> Tensor:
    if task != "language_modeling":
        return x
    scored_BT = is_scored(batch)
    return (x * scored_BT).sum(1) / scored_BT.sum(1).clamp(min=1)


class StatePenalty(nn.Module):
    """Keeps the penalty on a recurrent layer's states for whoever computes the loss: alpha * mean of h**2 after
    dropout, and beta * mean of (h_t - h_t-1)**2 before it, over the steps that are there (Merity et al. 2018,
    section 4.6, means as in their code).

    A network returns its outputs alone; the loss of this pass over it takes the penalty from here, once.
    """

    def __init__(self, alpha: float, beta: float) -> None:
        super().__init__()
        strengths = {"activation_penalty": alpha, "temporal_activation_penalty": beta}
        self.parts = nn.ModuleList(_Strength(strength, knob) for knob, strength in strengths.items())
        self.penalty_B: Tensor | None = None

    def forward(self, states_BTH: Tensor, dropped_BTH: Tensor, within_BT: Tensor) -> None:
        """Takes note; outside of training, of nothing."""
        alpha, beta = (float(part.p) for part in self.parts)  # type: ignore[arg-type]
        self.penalty_B = None
        if not self.training or not (alpha or beta):
            return
        size = dropped_BTH.shape[2]
        square_BT = dropped_BTH.square().sum(2) * within_BT
        change_BT = states_BTH.diff(dim=1).square().sum(2) * within_BT[:, 1:]
        count_B = within_BT.sum(1)
        self.penalty_B = alpha * square_BT.sum(1) / (count_B * size)
        self.penalty_B = self.penalty_B + beta * change_BT.sum(1) / ((count_B - 1).clamp(min=1) * size)

    def taken(self) -> Tensor | None:
        """The penalty of each row [B] in the last pass."""
        penalty_B, self.penalty_B = self.penalty_B, None
        return penalty_B


class _Strength(nn.Module):
    """A number that a ramp can move."""

    def __init__(self, p: float, knob: str) -> None:
        super().__init__()
        self.p, self.knob = p, knob


def state_penalty(model: nn.Module, num_rows: int) -> Tensor:
    """The penalty of each row [num_rows] that the layers of a network took note of; of a row with several channels
    forecast one by one, the mean of theirs.
    """
    taken = [module.taken() for module in model.modules() if isinstance(module, StatePenalty)]
    penalties = [penalty_B.reshape(num_rows, -1).mean(1) for penalty_B in taken if penalty_B is not None]
    return torch.stack(penalties).sum(0) if penalties else torch.zeros(num_rows)
