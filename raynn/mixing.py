"""Rows mixed in pairs: mixup, cutmix, and manifold mixup, which mixes what a network makes of them.

The rows of the whole global batch, over all workers, are put in a ring in the order of their keys' hashes, and each is
mixed with the next: the pairs are a function of the batch's rows, not of who holds them.

Shapes: B rows of this worker's share, G rows of the global batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raynn.collectives import Workers
from raynn.randomness import random_bits, salts_on, uniform
from raynn.regularization import RegularizationSettings

PLACE = 1 << 17  # dropout layers count theirs from 0
OTHER = "other_"  # before the name of a column of the row that one is mixed with
MIXED = ("numeric", "image", "sequence")


def mixed(
    batch: dict[str, Tensor], key_B: Tensor, knobs: RegularizationSettings, task: str, workers: Workers
) -> dict[str, Tensor]:
    """The batch, each row mixed with another: by mixup all its columns (Zhang et al. 2018, eq. 1: x = share * x_i
    + (1 - share) * x_j), by cutmix a box of its image (Yun et al. 2019, eq. 1 and 2), where both are on by one of them,
    as likely. Targets of classes are in `target` and `other_target`, and `share` says how much the first counts; a
    target value is mixed like the columns. For manifold mixup, which a network does (`hidden_mixed`), the other row's
    columns stand beside.
    """
    if not (knobs.mixup or knobs.cutmix or knobs.manifold_mixup):
        return batch
    other = _next_rows(batch | {"key": key_B}, key_B, workers)
    draw_B5 = uniform(key_B, salts_on(key_B.device, PLACE, 5))
    if knobs.manifold_mixup:
        share_B = symmetric_beta(knobs.manifold_mixup, draw_B5[:, 1], draw_B5[:, 2])
        beside = {OTHER + name: x for name, x in other.items()} | {"share": share_B, "depth": draw_B5[:, 0]}
        if task == "classification":
            return batch | beside
        return batch | beside | {"target": _lerp(other["target"], batch["target"], share_B)}
    cuts_B = draw_B5[:, 0] < (0.5 if knobs.mixup else 1.0) if knobs.cutmix else torch.zeros_like(key_B).bool()
    found = dict(batch)
    share_B = torch.ones(len(key_B), device=key_B.device)
    if knobs.mixup:
        share_B = torch.where(cuts_B, 1.0, symmetric_beta(knobs.mixup, draw_B5[:, 1], draw_B5[:, 2]))
        for name in MIXED:
            if name in batch:
                found[name] = _lerp(other[name], batch[name], share_B)
    if knobs.cutmix:
        area_B = symmetric_beta(knobs.cutmix, draw_B5[:, 1], draw_B5[:, 2])
        box_BHW = boxes(1.0 - area_B, draw_B5[:, 3:], batch["image"].shape[-2:]) & cuts_B[:, None, None]
        found["image"] = torch.where(box_BHW[:, None], other["image"].to(found["image"].dtype), found["image"])
        share_B = share_B - box_BHW.float().mean((1, 2))  # of mixed images, whose box is empty, nothing
    if task == "classification":
        return found | {"other_target": other["target"], "share": share_B}
    return found | {"target": _lerp(other["target"], batch["target"], share_B)}


class MixingPoint(nn.Module):
    """A place in a network at which rows may be mixed with their partners, which stand behind them in the batch.

    Elsewhere than under `hidden_mixed` the identity. A point that is `last` mixes every row: it stands where what
    passes the others by joins them.
    """

    def __init__(self, last: bool = False) -> None:
        super().__init__()
        self.last = last
        self.share_B: Tensor | None = None  # of the row itself; 1 where it is mixed at another point

    def forward(self, x: Tensor) -> Tensor:
        """Rows and their partners [2 B, ...]; a partner of a row that is mixed here becomes what the row does, so that
        the statistics of a batch, which a normalization takes, are those of the mixed rows.
        """
        if self.share_B is None:
            return x
        own, other = x.chunk(2)
        share_B = self.share_B.to(x.dtype)
        mixed_rows = _lerp(other, own, share_B)
        return torch.cat([mixed_rows, torch.where(_beside(share_B < 1.0, x), mixed_rows, other)])


def hidden_mixed(network: nn.Module, batch: dict[str, Tensor], key_B: Tensor) -> Tensor:
    """Outputs [B, ...] of rows that `mixed` put their partners beside: both pass the network as far as a point drawn
    for the row, and go on from there as their mixture (Verma et al. 2019, section 2, with a point a row instead of one
    a batch). Partners are computed here, whichever worker they are of; that is twice the work.
    """
    points = [module for module in network.modules() if isinstance(module, MixingPoint)]
    drawn = [point for point in points if not point.last]
    number_B = (batch["depth"] * len(drawn)).long()
    for number, point in enumerate(drawn):
        point.share_B = torch.where(number_B == number, batch["share"], 1.0)
    for point in points:
        point.share_B = batch["share"] if point.last else point.share_B
    try:
        both = {name: torch.cat([x, batch[OTHER + name]]) for name, x in batch.items() if OTHER + name in batch}
        outputs: Tensor = network(both, torch.cat([key_B, batch[OTHER + "key"]]))
        return outputs[: len(key_B)]
    finally:
        for point in points:
            point.share_B = None


def symmetric_beta(alpha: float, first_B: Tensor, second_B: Tensor) -> Tensor:
    """Draws of Beta(alpha, alpha) [B] from two uniform numbers each: 1/2 + 1/2 s with s**2 = t**2 / (1 + t**2) and t**2
    = (u**(-1 / alpha) - 1) cos(2 pi v)**2, of the sign of the cosine (Devroye 1996, from Bailey's Student t).
    """
    cosine_B = (2.0 * torch.pi * second_B.double()).cos()
    square_B = torch.expm1(-first_B.double().log() / alpha) * cosine_B**2
    draw_B = 0.5 + 0.5 * cosine_B.sign() * (1.0 + 1.0 / square_B.clamp(min=1e-300)).rsqrt()
    return draw_B.float()


def boxes(area_B: Tensor, center_B2: Tensor, size: torch.Size) -> Tensor:
    """Which pixels [B, H, W] lie in boxes of these shares of the area, of the image's own proportions, around centers
    that are uniform over it (0 .. 1, of height and width); what stands over the border is cut off.
    """
    side_B = area_B.sqrt()
    inside = []
    for axis, pixels in enumerate(size):
        half_B = (side_B * pixels).floor() / 2
        center_B = (center_B2[:, axis] * pixels).floor()
        place_P = torch.arange(pixels, device=area_B.device) + 0.5
        inside.append((place_P - center_B[:, None]).abs() < half_B[:, None])
    return inside[0][:, :, None] & inside[1][:, None, :]


def _next_rows(batch: dict[str, Tensor], key_B: Tensor, workers: Workers) -> dict[str, Tensor]:
    """The row behind each of this worker's in the ring over all workers' rows."""
    key_G = workers.gathered(key_B)
    first = 0
    if workers.count > 1:
        first = int(workers.gathered(key_B.new_tensor([len(key_B)]))[: workers.rank].sum())
    order_G = random_bits(key_G, salts_on(key_B.device, PLACE, 6)[5:])[:, 0].argsort(stable=True)
    next_G = torch.empty_like(order_G)
    next_G[order_G] = order_G.roll(-1)
    next_B = next_G[first : first + len(key_B)]
    return {name: workers.gathered(x)[next_B] for name, x in batch.items()}


def _lerp(other: Tensor, own: Tensor, share_B: Tensor) -> Tensor:
    share = _beside(share_B, own)
    return share * own + (1.0 - share) * other


def _beside(x_B: Tensor, x: Tensor) -> Tensor:
    """One number a row, to go with `x` [B, ...]."""
    return x_B.reshape(-1, *([1] * (x.dim() - 1)))
