"""The gradient of a step: computed, here or where the knobs say, then changed before the optimizer sees it.

Shapes: B rows of this worker's share of a batch, U units (the first axis of a weight), P components of a parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raynn.batches import pieces
from raynn.collectives import Workers
from raynn.job import Job
from raynn.mixing import hidden_mixed
from raynn.objectives import loss_per_row
from raynn.penalties import divergence, negative_entropy, state_penalty
from raynn.perturbation import StepKey, climbed, perturbed_weights
from raynn.randomness import again, component_salts, normal
from raynn.regularization import RegularizationSettings
from raynn.sharding import average_gradients, bare, in_step, norms, own, unsummed

SMALLEST_NORM = 1e-3  # of a unit's weights, in adaptive clipping (Brock et al. 2021, section 4)
NOISE_DECAY = 0.55  # gamma of Neelakantan et al. 2015, eq. 1


@dataclass(frozen=True)
class Share:
    """This worker's share of a batch; `ragged` columns may be computed in pieces of rows whose lengths are alike."""

    batch: dict[str, Tensor]
    key_B: Tensor
    ragged: Sequence[str]
    global_rows: int


def add_gradient(
    job: Job, knobs: RegularizationSettings, network: nn.Module, share: Share, step_key_1: StepKey, workers: Workers
) -> Tensor:
    """Adds the gradient of the mean loss over the global batch: at the weights, at weights made noisy or left out in
    part, or where the loss is highest near them. Returns the sum of the losses of this worker's rows; of two passes, in
    the first. `step_key_1` gives the step's key, the same on every worker.
    """
    model = bare(network)
    with perturbed_weights(model, knobs, step_key_1):
        loss = _backward(job, knobs, network, share, workers)
    if knobs.sam or knobs.asam:
        with climbed(model, knobs), perturbed_weights(model, knobs, step_key_1):
            _backward(job, knobs, network, share, workers)
    return loss


def _backward(job: Job, knobs: RegularizationSettings, network: nn.Module, share: Share, workers: Workers) -> Tensor:
    """Adds the gradient of the mean loss over the global batch; returns the sum of the losses of this worker's rows.

    Workers' gradients are averaged, so each scales its sum by the number of workers over the rows of all of them: a
    worker with fewer rows weighs less.
    """
    parts = pieces(share.batch, share.key_B, job.optimization.accumulate, share.ragged)
    total = torch.zeros((), dtype=torch.float64, device=workers.device)
    if job.optimization.accumulate > 1 or share.ragged:  # else each worker has one
        steps = list(in_step(parts, len(parts), network, workers))
    else:
        steps = [(part, True) for part in parts]
    for i, ((piece, key), counts) in enumerate(steps):
        with unsummed(network) if i + 1 < len(steps) else nullcontext():
            loss = training_losses(job, knobs, network, piece, key).sum() * counts
            (loss * (workers.count / share.global_rows)).backward()
        total += loss.detach()
    average_gradients(network, workers)
    return total


def training_losses(
    job: Job, knobs: RegularizationSettings, network: nn.Module, batch: dict[str, Tensor], key_B: Tensor
) -> Tensor:
    """What each row [B] adds to the loss that is minimized, penalties on outputs and states among it."""
    assert job.task is not None
    num_rows = len(key_B)
    if knobs.r_drop:  # both passes at once (Wu et al. 2021, section 2.2)
        batch, key_B = {name: torch.cat([x, x]) for name, x in batch.items()}, torch.cat([key_B, again(key_B)])
    with precision(job, key_B.device):
        outputs = hidden_mixed(network, batch, key_B) if knobs.manifold_mixup else network(batch, key_B)
    loss_B = loss_per_row(outputs, batch, job.task, knobs.label_smoothing)
    if knobs.confidence_penalty:
        loss_B = loss_B + knobs.confidence_penalty * negative_entropy(outputs, batch, job.task)
    if knobs.activation_penalty or knobs.temporal_activation_penalty:
        loss_B = loss_B + state_penalty(network, len(key_B) * (2 if knobs.manifold_mixup else 1))[: len(loss_B)]
    if knobs.r_drop:
        first, second = outputs.split(num_rows)
        once = {name: x[:num_rows] for name, x in batch.items()}
        loss_B = loss_B.view(2, -1).mean(0) + knobs.r_drop * divergence(first, second, once, job.task)
    return loss_B


def precision(job: Job, device: torch.device) -> torch.autocast:
    """bfloat16 where asked: matrix products and convolutions in 16 bits, weights and sums in 32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=job.optimization.precision == "bf16")


@torch.no_grad()
def reshape_gradient(model: nn.Module, knobs: RegularizationSettings, step_key_1: StepKey, step: int) -> None:
    """Clips, unit by unit, by the whole gradient's norm and by value, in this order; then adds noise, so that it has
    the variance it should. `step_key_1` gives the step's key, the same on every worker.
    """
    if knobs.gradient_clip_adaptive is not None:
        clip_adaptively(model, knobs.gradient_clip_adaptive)
    clip_gradient_norm(model, knobs.gradient_clip_norm)
    if knobs.gradient_clip_value is not None:
        torch.nn.utils.clip_grad_value_(model.parameters(), knobs.gradient_clip_value)
    if knobs.gradient_noise:
        key_1, std = step_key_1(), (knobs.gradient_noise / (1 + step) ** NOISE_DECAY) ** 0.5
        for place, parameter in enumerate(model.parameters()):
            if parameter.grad is not None:
                noise_P, gradient = normal(key_1, component_salts(place, parameter)), own(parameter.grad)
                gradient.add_(noise_P.reshape(gradient.shape), alpha=std)


def clip_gradient_norm(model: nn.Module, max_norm: float | None) -> None:
    """Scales the whole gradient down to `max_norm` (Pascanu et al. 2013, algorithm 1); None leaves it alone."""
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)


def clip_adaptively(model: nn.Module, ratio: float) -> None:
    """Scales each unit's gradient down to `ratio` times the norm of its weights (Brock et al. 2021, eq. 3); a bias or a
    norm's scale is one unit as a whole. The layer that gives the outputs (`head`) is left alone, as theirs is.
    """
    heads = {p for name, module in model.named_modules() if name.endswith("head") for p in module.parameters()}
    pairs = [(p, p.grad) for p in model.parameters() if p.grad is not None and p not in heads]
    vectors = [x for pair in pairs if pair[0].dim() <= 1 for x in pair]
    norms_of_vectors = iter(norms(vectors) if vectors else ())
    for parameter, gradient in pairs:
        if parameter.dim() > 1:
            weight_norm_U, gradient_norm_U = (own(x).flatten(1).norm(dim=1) for x in (parameter, gradient))
        else:
            weight_norm_U, gradient_norm_U = (next(norms_of_vectors)[None] for _ in range(2))
        scale_U = ratio * weight_norm_U.clamp(min=SMALLEST_NORM) / gradient_norm_U.clamp(min=1e-12)
        own(gradient).mul_(scale_U.clamp(max=1.0).reshape(-1, *([1] * (parameter.dim() - 1))))
