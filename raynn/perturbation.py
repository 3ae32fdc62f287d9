"""Weights that are elsewhere while a gradient is computed, and back in their place after it: some left out, noisy, or
where the loss is higher.

Each is a context around a forward and a backward pass. On the way out the weights have their old bits, and the gradient
is that of the weights themselves. All workers move them alike.

Shapes: P components of a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from raynn.penalties import decayed_and_exempt
from raynn.randomness import component_salts, normal, random_bits
from raynn.regularization import RegularizationSettings
from raynn.sharding import own, summed

StepKey = Callable[[], Tensor]  # gives the key [1] of a step, which most steps do without

ETA = 0.01  # added to the size of each weight, as in the code of Kwon et al. 2021
NOISE = 1 << 14  # places of noise, behind those of masks


@contextmanager
def perturbed_weights(model: nn.Module, knobs: RegularizationSettings, step_key_1: StepKey) -> Iterator[None]:
    """Leaves recurrent weights out with probability `weight_drop` and scales the others by 1 / (1 - p) (Merity et al.
    2018, section 2), and adds noise to the weights that decay. `step_key_1` gives the key of the
    step.
    """
    if not (knobs.weight_drop or knobs.weight_noise):
        yield
        return
    key_1, masks = step_key_1(), {}
    for place, (name, weight) in enumerate(model.named_parameters()) if knobs.weight_drop else ():
        if name.rpartition(".")[2].startswith("weight_hh"):
            kept_P = random_bits(key_1, component_salts(place, weight)) >= int(knobs.weight_drop * 2**31)
            masks[weight] = kept_P.reshape(own(weight).shape).to(weight.dtype) / (1.0 - knobs.weight_drop)
    noisy = decayed_and_exempt(model)[0] if knobs.weight_noise else []
    kept = _copies([*masks, *noisy])
    with torch.no_grad():
        for weight, mask in masks.items():
            own(weight).mul_(mask)
        for place, weight in enumerate(noisy):
            noise_P = normal(key_1, component_salts(NOISE + place, weight))
            own(weight).add_(noise_P.reshape(own(weight).shape), alpha=knobs.weight_noise)
    yield
    _put_back(kept)
    for weight, mask in masks.items():
        if weight.grad is not None:
            own(weight.grad).mul_(mask)


@contextmanager
def climbed(model: nn.Module, knobs: RegularizationSettings) -> Iterator[None]:
    """Moves the weights along the gradient that they have to where the loss is highest, to first order, within a
    distance of `sam`: rho * g / |g| (Foret et al. 2021, eq. 2), or of `asam` in units of each weight's size T = |w| +
    eta: rho * T**2 g / |T g| (Kwon et al. 2021, algorithm 1). Takes the gradient away, for the one at that place.

    Running statistics stay as the first pass left them.
    """
    weights = [parameter for parameter in model.parameters() if parameter.grad is not None]
    kept = _copies(weights)
    with torch.no_grad():
        sizes = [own(weight).abs() + ETA if knobs.asam else torch.ones_like(own(weight)) for weight in weights]
        gradients = [own(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
        scaled = [size * gradient for size, gradient in zip(sizes, gradients, strict=True)]
        norm = summed(torch.stack([step.double().square().sum() for step in scaled]).sum(), weights[0]).sqrt()
        distance = (knobs.asam or knobs.sam) / (norm + 1e-12)
        for weight, size, step in zip(weights, sizes, scaled, strict=True):
            own(weight).add_(size * step * distance.to(weight.dtype))
            weight.grad = None
    with statistics_kept(model):
        yield
    _put_back(kept)


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Running statistics stay as they are."""
    momenta = {module: module.momentum for module in model.modules() if hasattr(module, "running_mean")}
    for module in momenta:
        module.momentum = 0.0  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, momentum in momenta.items():
            module.momentum = momentum


def _copies(weights: list[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
    return {weight: own(weight).detach().clone() for weight in weights}


@torch.no_grad()
def _put_back(kept: dict[nn.Parameter, Tensor]) -> None:
    for weight, old in kept.items():
        own(weight).copy_(old)
