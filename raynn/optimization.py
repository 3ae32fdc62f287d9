"""Optimizer, and the learning rate as a pure function of the step: the `optimization` section."""

from __future__ import annotations

import inspect
import math
from collections import ChainMap
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raynn.errors import JobError
from raynn.penalties import decayed_and_exempt
from raynn.settings import Settings
from raynn.sharding import is_cut, step_whole


class OptimizationSettings(Settings):
    """How the weights move."""

    optimizer: Annotated[
        Literal["sgd", "adam", "adamw", "muon"],
        Field(description="muon: of hidden matrices and kernels; adamw of all else"),
    ] = "adamw"
    learning_rate: Annotated[float, Field(gt=0.0, description="the highest the schedule reaches")] = 1e-3
    momentum: Annotated[float, Field(ge=0.0, lt=1.0, description="sgd's, of Nesterov's form")] = 0.9
    schedule: Literal["constant", "cosine", "one_cycle", "plateau"] = "cosine"
    warmup_fraction: Annotated[
        float, Field(ge=0.0, lt=1.0, description="share of all steps in which the rate rises linearly")
    ] = 0.0
    plateau_factor: Annotated[float, Field(gt=0.0, lt=1.0, description="each reduction of `plateau`")] = 0.5
    plateau_patience: Annotated[int, Field(ge=1, description="epochs without a better val/loss")] = 3
    global_batch_size: Annotated[int, Field(ge=1, description="rows of one step, over all workers")] = 256
    accumulate: Annotated[int, Field(ge=1, description="pieces a step's batch is computed in, to save memory")] = 1
    max_epochs: Annotated[int, Field(ge=1)] = 20
    precision: Literal["float32", "bf16"] = "float32"
    compile: Annotated[
        bool | Literal["reduce-overhead"],
        Field(description="torch.compile: pays back in long trainings; reduce-overhead: on a GPU as CUDA graphs"),
    ] = False
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


def build_optimizer(settings: OptimizationSettings, model: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
    """The optimizer, fused: one pass over all parameters. Biases, norms and embeddings are not decayed.

    `adamw` decays weights by learning_rate * weight_decay a step (Loshchilov & Hutter 2019, algorithm 2), and so does
    `muon`; `sgd` and `adam` add weight_decay * w to the gradient.

    Raises:
        JobError: a version of torch without Muon.
    """
    decayed, exempt = decayed_and_exempt(model)
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "decays": True},
        {"params": exempt, "weight_decay": 0.0, "decays": False},
    ]
    rate = settings.learning_rate
    if settings.optimizer == "muon":
        hidden = _hidden_matrices(model)
        groups[0]["params"] = [p for p in decayed if p not in hidden]
        return MuonAndAdamW([p for p in decayed if p in hidden], _filled(groups), rate, weight_decay)
    if settings.optimizer == "sgd":
        nesterov = settings.momentum > 0
        way = "foreach" if is_cut(model) else "fused"  # torch 2.13 has no fused SGD for parts
        options: dict[str, Any] = {"momentum": settings.momentum, "nesterov": nesterov, way: True}
        return uncompiled(torch.optim.SGD, _filled(groups), lr=rate, **options)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return uncompiled(kind, _filled(groups), lr=rate, fused=True)


def moments_of(optimizer: torch.optim.Optimizer) -> list[tuple[list[nn.Parameter], int]]:
    """Parameters, and how many numbers it remembers of each of theirs."""
    if isinstance(optimizer, MuonAndAdamW):
        return [pair for part in optimizer.parts for pair in moments_of(part)]
    moments = {"SGD": int(optimizer.defaults.get("momentum", 0.0) > 0), "Muon": 1}.get(type(optimizer).__name__, 2)
    return [(group["params"], moments) for group in optimizer.param_groups]


def scratch_bytes(optimizer: torch.optim.Optimizer) -> int:
    """What a step holds for itself: Muon's of the largest matrix, its update in 32 bits and five matrices in 16."""
    if not isinstance(optimizer, MuonAndAdamW):
        return 0
    matrices = [p for part in optimizer.parts if isinstance(part, Muon) for p in part.param_groups[0]["params"]]
    return max(((4 + 5 * 2) * p.numel() for p in matrices), default=0)


def uncompiled(kind: Callable[..., torch.optim.Optimizer], *args: Any, **options: Any) -> torch.optim.Optimizer:
    """An optimizer of torch that takes its steps outside of torch's compiler, without loading that to be told so: each
    process would take 1.5 s for it.
    """
    mark = "__dynamo_disable"  # torch 2.13, _compile.py: what is called instead of a method, once that is known
    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        plain = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if plain is not None and not hasattr(plain, mark):
            setattr(plain, mark, plain)
    optimizer = kind(*args, **options)
    step = torch.no_grad()(inspect.unwrap(type(optimizer).step))
    # with torch's hooks and its profiler's name
    optimizer.step = partial(torch.optim.Optimizer.profile_hook_step(step), optimizer)  # type: ignore[method-assign]
    return optimizer


def _filled(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [group for group in groups if group["params"]]


def _hidden_matrices(model: nn.Module) -> set[nn.Parameter]:
    """Matrices and kernels between hidden features: not those that read tokens or write outputs (`head`)."""
    heads = {p for name, module in model.named_modules() if name.endswith("head") for p in module.parameters()}
    return set(decayed_and_exempt(model)[0]) - heads


class _States(ChainMap[Any, Any]):
    """The states of several optimizers as one. To look for a parameter's must not make one, as a defaultdict does."""

    def __getitem__(self, key: Any) -> Any:
        for states in self.maps:
            if key in states:
                return states[key]
        return self.__missing__(key)


class Muon(getattr(torch.optim, "Muon", torch.optim.Optimizer)):  # type: ignore[misc]
    """torch's, which takes matrices only, for kernels [U, C, ...], too: as the matrices [U, C * ...] that they are."""

    def __init__(self, groups: Sequence[dict[str, Any]], **options: Any) -> None:
        super().__init__([{**group, "params": [nn.Parameter(torch.empty(0, 0))]} for group in groups], **options)
        for mine, group in zip(self.param_groups, groups, strict=True):
            mine["params"] = list(group["params"])

    def _init_group(self, group: Any, weights: list[Tensor], gradients: list[Tensor], momenta: list[Tensor]) -> bool:
        """Fills the lists of what a step changes and reads: matrices that are views, the order of their columns that in
        which a kernel lies in memory.
        """
        for weight in group["params"]:
            if "momentum_buffer" not in self.state[weight]:  # in the weight's layout; torch takes the gradient's
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        has_complex: bool = super()._init_group(group, weights, gradients, momenta)
        for i, (weight, gradient, momentum) in enumerate(zip(weights, gradients, momenta, strict=True)):
            axes = sorted(range(1, weight.dim()), key=weight.stride().__getitem__, reverse=True)
            weights[i], momenta[i] = (x.permute(0, *axes).view(len(x), -1) for x in (weight, momentum))
            gradients[i] = gradient.permute(0, *axes).reshape(len(gradient), -1)
        return has_complex


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for matrices and kernels between hidden features, AdamW for everything else, as one
    optimizer.

    A matrix moves by its momentum's gradient orthogonalized, scaled to the root mean square of an AdamW step (Liu et
    al. 2025, eq. 4), so that one learning rate serves both. Orthogonalizing is done in 16 bits: numbers of workers
    agree to some thousandths of a step, not to rounding in 32.

    Raises:
        JobError: a version of torch without Muon.
    """

    def __init__(
        self, matrices: list[nn.Parameter], rest: list[dict[str, Any]], lr: float, weight_decay: float
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise JobError(
                f"optimization.optimizer = 'muon' needs torch 2.9 or newer, and this is {torch.__version__}; "
                "install it, or use adamw"
            )
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            scale = "match_rms_adamw"
            group = {"params": matrices, "decays": True}
            options = {"lr": lr, "weight_decay": weight_decay, "adjust_lr_fn": scale}
            self.parts.append(uncompiled(Muon, [group], **options))
        if rest:
            self.parts.append(uncompiled(torch.optim.AdamW, rest, lr=lr, fused=True))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        # the parts' own groups and states: what is set here is set there
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self.state = _States(*(part.state for part in self.parts))  # type: ignore[assignment]

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of both."""
        for part in self.parts:
            matrices = part.param_groups[0]["params"] if isinstance(part, Muon) else ()
            if any(map(is_cut, matrices)):
                step_whole(part)
            else:
                part.step()

    def state_dict(self) -> dict[str, Any]:
        """Both states."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the place of what `state_dict` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self.state = _States(*(part.state for part in self.parts))  # type: ignore[assignment]


def set_rates(optimizer: torch.optim.Optimizer, rate: float, weight_decay: float) -> None:
    """The learning rate of all parameters, and the decay of those that decay."""
    for group in optimizer.param_groups:
        group["lr"] = rate
        if group.get("decays"):
            group["weight_decay"] = weight_decay


def learning_rate(settings: OptimizationSettings, step: int, total_steps: int, num_reductions: int = 0) -> float:
    """The rate of `step` (0 is the first) out of `total_steps`; `num_reductions` of the plateau schedule so far.

    cosine: half a cosine from the rate to 0 (Loshchilov & Hutter 2017, eq. 5, one cycle). one_cycle: a rise from 1/25
    of the rate over the first 30 % of steps, then down to nearly 0, both along cosines (Smith & Topin 2018).
    """
    peak = settings.learning_rate
    warmup = round(settings.warmup_fraction * total_steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total_steps - warmup)
    if settings.schedule == "cosine":
        return peak * 0.5 * (1.0 + math.cos(math.pi * done))
    if settings.schedule == "one_cycle":
        low, rise = (peak / 25, done / 0.3) if done < 0.3 else (peak / 250_000, 1.0 - (done - 0.3) / 0.7)
        return low + (peak - low) * 0.5 * (1.0 - math.cos(math.pi * rise))
    if settings.schedule == "plateau":
        return peak * settings.plateau_factor**num_reductions
    return peak


def plateau_reductions(settings: OptimizationSettings, losses: Sequence[float]) -> int:
    """How often `plateau` has reduced the rate: once for `plateau_patience` epochs in a row without a better loss."""
    best, waited, reductions = math.inf, 0, 0
    for loss in losses:
        if loss < best:
            best, waited = loss, 0
            continue
        waited += 1
        if waited == settings.plateau_patience:
            waited, reductions = 0, reductions + 1
    return reductions
