"""How large each layer's weights and gradient are, once an epoch: what vanishes, explodes or drifts is seen.

They stand in norms.jsonl beside metrics.jsonl and not in it: metrics.jsonl, Tune and result.json have the same few keys
for every network, which scripts and stopping rules rely on; these are as many as the network has layers, and named
after them. W&B and the other mirrors have them under the same keys.

Shapes: L layers, E epochs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from raynn.sharding import norms

KINDS = ("weight", "gradient")


def own_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, list[nn.Parameter]]]:
    """The layers: modules with parameters of their own, by name, in the order of the module tree. A parameter that two
    modules share is the first one's.
    """
    seen: set[int] = set()
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen.update(map(id, own))
        if own:
            yield name or "(itself)", module, own


@torch.no_grad()
def norms_of(model: nn.Module) -> Tensor:
    """Frobenius norms [2, L] of each layer's weights and of its gradient as it stands, which is 0 where there is none;
    on the model's device, which nobody waits for.
    """
    layers: list[list[Tensor]] = [list(own) for _, _, own in own_parameters(model)]
    groups = [*layers, *([p.grad for p in own if p.grad is not None] for own in layers)]
    norm_of_each = norms([x for group in groups for x in group]).split([len(group) for group in groups])
    return torch.stack([_norm(norms_of_group) for norms_of_group in norm_of_each]).view(2, -1)


def _norm(norm_N: Tensor) -> Tensor:
    """Of all of them as one vector; the norm of their norms, so that no square overflows that need not."""
    return norm_N[0] if len(norm_N) == 1 else vector_norm(norm_N)


def with_epoch(norms_E2L: Tensor, model: nn.Module) -> Tensor:
    """The norms so far and those of this moment, on the model's device."""
    now_12L = norms_of(model)[None]
    return torch.cat([norms_E2L.to(now_12L.device), now_12L]) if len(norms_E2L) else now_12L


def norm_records(model: nn.Module, history: Sequence[Mapping[str, Any]], norms_E2L: Tensor) -> list[dict[str, float]]:
    """Lines of norms.jsonl, one an epoch; those of the last of `history`, should it be longer: a checkpoint that was
    written before there were norms has none.
    """
    names = [name for name, _, _ in own_parameters(model)]
    keys = [f"norms/{kind}/{name}" for kind in KINDS for name in names]
    records = history[len(history) - len(norms_E2L) :]
    return [
        {"epoch": record["epoch"], "step": record["step"]} | dict(zip(keys, values, strict=True))
        for record, values in zip(records, norms_E2L.flatten(1).tolist(), strict=True)
    ]
