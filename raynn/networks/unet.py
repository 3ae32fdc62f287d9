"""U-Net (Ronneberger et al. 2015) for generators of images, and the blocks it is made of: maps of any height and width.

Shapes: B rows, C channels, H height, W width, E width of the condition, N places of a map (H * W), A attention heads.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raynn.dropout import Dropout
from raynn.networks.layers import channels_last
from raynn.settings import Settings

Width = Annotated[int, Field(ge=1)]


class MapSettings(Settings):
    """Sizes of a network from images to images: `channels` gives one stage each; all but the first halve the map."""

    channels: Annotated[tuple[Width, ...], Field(min_length=1)] = (64, 128)
    blocks_per_stage: Annotated[Width, Field(description="residual blocks a stage, each way")] = 1
    patch: Annotated[
        Width, Field(description="side, in pixels, of the squares that are one place of the first stage's map")
    ] = 1


def to_patches(x_BCHW: Tensor, patch: int) -> Tensor:
    """Squares of `patch` pixels a side as channels [B, C * patch**2, H', W']; edges are repeated to fill them."""
    height, width = x_BCHW.shape[-2:]
    fill = (0, -width % patch, 0, -height % patch)
    return F.pixel_unshuffle(F.pad(x_BCHW, fill, mode="replicate") if any(fill) else x_BCHW, patch)


def from_patches(x_BCHW: Tensor, patch: int, size: tuple[int, int]) -> Tensor:
    """The inverse of `to_patches` for images of `size` pixels (height, width)."""
    return F.pixel_shuffle(x_BCHW, patch)[..., : size[0], : size[1]]


def group_norm(num_channels: int) -> nn.GroupNorm:
    """Group normalization (Wu & He 2018) with the most groups, up to 8, of at least 16 channels each: with fewer a CPU
    needs 8 times as long (bfloat16, channels last).
    """
    groups = max(g for g in range(1, 9) if num_channels % g == 0 and (g == 1 or num_channels // g >= 16))
    return nn.GroupNorm(groups, num_channels)


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with weights of zero: a block that ends in it starts as the identity (Goyal et al. 2017, 5.1)."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ResidualBlock(nn.Module):
    """x + conv(dropout(silu(norm(conv(silu(norm(x))))))), where a condition scales and shifts what the second norm
    gives (Dhariwal & Nichol 2021, section 3.1: adaptive group normalization). `width` 0: there is no condition.
    """

    def __init__(self, c_in: int, c_out: int, width: int, p: float, place: int) -> None:
        super().__init__()
        self.norm_in = group_norm(c_in)
        self.conv_in = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm_out = group_norm(c_out)
        self.condition = nn.Linear(width, 2 * c_out) if width else None
        self.dropout = Dropout(p, c_out, place)
        self.conv_out = zeroed(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x_BCHW: Tensor, condition_BE: Tensor | None, key_B: Tensor | None) -> Tensor:
        """Maps [B, C, H, W]."""
        h_BCHW = self.norm_out(self.conv_in(F.silu(self.norm_in(x_BCHW))))
        if self.condition is not None and condition_BE is not None:
            scale_BC11, shift_BC11 = self.condition(condition_BE)[:, :, None, None].chunk(2, dim=1)
            h_BCHW = torch.addcmul(shift_BC11, h_BCHW, 1 + scale_BC11)
        return self.shortcut(x_BCHW) + self.conv_out(self.dropout(F.silu(h_BCHW), key_B))


class Stage(nn.ModuleList):
    """Residual blocks over maps of one size, one after the other."""

    def forward(self, x_BCHW: Tensor, condition_BE: Tensor | None, key_B: Tensor | None) -> Tensor:
        """Maps [B, C, H, W]."""
        for block in self:
            x_BCHW = block(x_BCHW, condition_BE, key_B)
        return x_BCHW


class Attention(nn.Module):
    """x + the attention of every place of the map to every other (Vaswani et al. 2017, section 3.2), 32 or more
    channels a head.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(heads for heads in range(1, max(1, channels // 32) + 1) if channels % heads == 0)
        self.norm = group_norm(channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Maps [B, C, H, W]."""
        num_rows, channels, height, width = x_BCHW.shape
        joint = self.query_key_value(self.norm(x_BCHW)).flatten(2)
        query, key, value = joint.unflatten(1, (3, self.heads, -1)).transpose(-1, -2).unbind(1)  # each [B, A, N, C / A]
        # written out: torch's fused kernel needs 5 times as long for the gradient of so small a map on a CPU
        weight_BANN = (query @ key.transpose(-1, -2) * key.shape[-1] ** -0.5).softmax(dim=-1)
        mixed_BANC = weight_BANN @ value
        return x_BCHW + self.out(mixed_BANC.transpose(-1, -2).reshape(num_rows, channels, height, width))


class Downsample(nn.Conv2d):
    """Half the map, rounded up, by a convolution that also changes the number of channels."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 3, stride=2, padding=1)


def upsampled(x_BCHW: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
    """The map at `size` (height, width): each place repeated."""
    return F.interpolate(x_BCHW, size=tuple(size), mode="nearest")


class UNet(nn.Module):
    """From maps [B, C, H, W] and a condition [B, E] to maps of the same shape, zero before training.

    The last map of each stage on the way down joins the first on the way up.
    """

    def __init__(
        self, channels: int, settings: MapSettings, attention: bool, width: int, p: float, places: Iterator[int]
    ) -> None:
        super().__init__()
        self.patch = settings.patch
        stages = settings.channels
        num_blocks = settings.blocks_per_stage

        def block(c_in: int, c_out: int) -> ResidualBlock:
            return ResidualBlock(c_in, c_out, width, p, next(places))

        pixels = channels * settings.patch**2
        self.stem = nn.Conv2d(pixels, stages[0], 3, padding=1)
        self.down = nn.ModuleList(Stage(block(c, c) for _ in range(num_blocks)) for c in stages)
        self.halve = nn.ModuleList(Downsample(a, b) for a, b in itertools.pairwise(stages))
        self.attention = Attention(stages[-1]) if attention else nn.Identity()
        self.middle = block(stages[-1], stages[-1])
        self.narrow = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in itertools.pairwise(stages))
        self.up = nn.ModuleList(Stage(block(c if i else 2 * c, c) for i in range(num_blocks)) for c in stages[:-1])
        self.norm = group_norm(stages[0])
        self.head = zeroed(nn.Conv2d(stages[0], pixels, 3, padding=1))

    def forward(self, x_BCHW: Tensor, condition_BE: Tensor, key_B: Tensor | None = None) -> Tensor:
        """Maps [B, C, H, W]."""
        size = x_BCHW.shape[-2], x_BCHW.shape[-1]
        h_BCHW = self.stem(channels_last(to_patches(x_BCHW, self.patch)))
        condition_BE = F.silu(condition_BE)
        skips = []
        for stage, blocks in enumerate(self.down):
            h_BCHW = self.halve[stage - 1](h_BCHW) if stage else h_BCHW
            h_BCHW = blocks(h_BCHW, condition_BE, key_B)
            skips.append(h_BCHW)
        h_BCHW = self.middle(self.attention(skips.pop()), condition_BE, key_B)
        for blocks, narrow in zip(reversed(self.up), reversed(self.narrow), strict=True):
            skip = skips.pop()
            # the 1x1 convolution before the larger map: a quarter of the work of one after it, the same function
            h_BCHW = torch.cat([upsampled(narrow(h_BCHW), skip.shape[-2:]), skip], dim=1)
            h_BCHW = blocks(h_BCHW, condition_BE, key_B)
        return from_patches(self.head(F.silu(self.norm(h_BCHW))), self.patch, size)
