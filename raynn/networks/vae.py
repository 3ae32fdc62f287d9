"""Variational autoencoder (Kingma & Welling 2014) with latent maps at every size, and 8-bit pixels as discrete values.

The decoder goes from the smallest map to the largest, and each of its blocks adds standard normal noise u_l to what it
has so far; the encoder says, after a look at the image, which noise: q(u_l | u_<l, image). That is the ladder of
Sonderby et al. 2016 and Child 2021 with the relative posterior of Vahdat & Kautz 2020, section 3.2, where the
decoder's own layers do what a learned mean of the prior would.

Shapes: B rows, C channels, H height, W width, Z latent channels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raynn.errors import JobError
from raynn.networks.drawing import ImageGenerator
from raynn.networks.inputs import ImageNormalization
from raynn.networks.layers import channels_last
from raynn.networks.pixels import DiscretizedLogistics
from raynn.networks.unet import (
    Downsample,
    MapSettings,
    ResidualBlock,
    Stage,
    Width,
    from_patches,
    group_norm,
    to_patches,
    upsampled,
    zeroed,
)
from raynn.preprocessing import InputSpec
from raynn.randomness import column_salts, normal
from raynn.regularization import RegularizationSettings


class VaeSettings(MapSettings):
    """Settings of the variational autoencoder. Stages as wide as the last follow `channels`, to a map of one place."""

    latent: Annotated[Width, Field(description="latent channels a place of the map, for each block of the decoder")] = 8
    mixture: Annotated[Width, Field(description="logistic components of a pixel's distribution")] = 5
    beta: Annotated[
        float, Field(gt=0.0, description="weight of the divergence in what is minimized (Higgins et al. 2017)")
    ] = 1.0


class Noise(nn.Module):
    """Standard normal numbers, a function of a row's key and of the place."""

    salt_N: Tensor

    def __init__(self, num: int, place: int) -> None:
        super().__init__()
        self.register_buffer("salt_N", column_salts(place, num), persistent=False)

    def forward(self, key_B: Tensor) -> Tensor:
        """Numbers [B, N]."""
        return normal(key_B, self.salt_N)


class LatentBlock(nn.Module):
    """One step of the decoder: noise added, where the image says or at random, then a residual block."""

    def __init__(self, channels: int, size: tuple[int, int], latent: int, p: float, places: Iterator[int]) -> None:
        super().__init__()
        self.shape_ZHW = (latent, *size)
        self.look = ResidualBlock(2 * channels, channels, 0, p, next(places))
        self.norm = group_norm(channels)
        self.posterior = zeroed(nn.Conv2d(channels, 2 * latent, 1))
        self.inject = nn.Conv2d(latent, channels, 1)
        self.block = ResidualBlock(channels, channels, 0, p, next(places))
        self.noise = Noise(math.prod(self.shape_ZHW), next(places))

    def forward(self, x_BCHW: Tensor, seen_BCHW: Tensor | None, key_B: Tensor) -> tuple[Tensor, Tensor]:
        """The map with noise in it [B, C, H, W], and the divergence of its posterior from N(0, 1) in nats [B].

        Args:
            x_BCHW: the decoder's map.
            seen_BCHW: the encoder's map of the same shape; None draws from the prior.
            key_B: of the noise.
        """
        noise_BZHW = self.noise(key_B).reshape(-1, *self.shape_ZHW)
        if seen_BCHW is None:
            divergence_B = noise_BZHW.new_zeros(key_B.shape[0])
        else:
            look_BCHW = self.look(torch.cat([x_BCHW, seen_BCHW], dim=1), None, key_B)
            moments = self.posterior(F.silu(self.norm(look_BCHW)))
            mean_BZHW, log_std_BZHW = moments.to(self.posterior.weight.dtype).chunk(2, dim=1)
            divergence_BZHW = 0.5 * (mean_BZHW**2 + (2 * log_std_BZHW).exp() - 1) - log_std_BZHW
            divergence_B = divergence_BZHW.flatten(1).sum(1)
            noise_BZHW = mean_BZHW + log_std_BZHW.exp() * noise_BZHW
        noise_BZHW = channels_last(noise_BZHW.to(x_BCHW.dtype))
        return self.block(x_BCHW + self.inject(noise_BZHW), None, key_B), divergence_B


class LatentStage(nn.Module):
    """Latent blocks over maps of one size, which the map of the stage before is brought to."""

    def __init__(
        self,
        c_in: int,
        channels: int,
        size: tuple[int, int],
        num_blocks: int,
        latent: int,
        p: float,
        places: Iterator[int],
    ) -> None:
        super().__init__()
        self.size = size
        self.arrive = nn.Conv2d(c_in, channels, 1)
        self.blocks = nn.ModuleList(LatentBlock(channels, size, latent, p, places) for _ in range(num_blocks))

    def forward(self, x_BCHW: Tensor, seen_BCHW: Tensor | None, key_B: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The map [B, C, H, W], and the divergence of each block [B]; arguments as of a block."""
        x_BCHW = upsampled(self.arrive(x_BCHW), self.size)
        divergences = []
        for block in self.blocks:
            x_BCHW, divergence_B = block(x_BCHW, seen_BCHW, key_B)
            divergences.append(divergence_B)
        return x_BCHW, divergences


def stages_of(channels: Sequence[int], height: int, width: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Channels and size of the map of every stage, from the largest to one place.

    Noise of one place shapes the whole picture. Fashion-MNIST drawn from maps of 7 x 7 and 14 x 14 alone has good
    textures and no outline: 42 % are of the class asked for, 64 % with the smaller maps.
    """
    stages, sizes = list(channels), [(height, width)]
    while len(sizes) < len(stages) or max(sizes[-1]) > 1:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return stages + stages[-1:] * (len(sizes) - len(stages)), sizes


class Vae(ImageGenerator):
    """Encoder, decoder with noise, and the distribution of pixels."""

    def __init__(self, settings: VaeSettings, inputs: InputSpec, regularization: RegularizationSettings) -> None:
        super().__init__(inputs)
        self.patch, self.beta = settings.patch, settings.beta
        channels, height, width = self.image_CHW
        num_blocks, p = settings.blocks_per_stage, regularization.dropout
        places = itertools.count()
        stages, sizes = stages_of(settings.channels, -(-height // self.patch), -(-width // self.patch))
        self.image = ImageNormalization(inputs)
        self.stem = nn.Conv2d(channels * self.patch**2, stages[0], 3, padding=1)
        self.encoder = nn.ModuleList(
            Stage(ResidualBlock(c, c, 0, p, next(places)) for _ in range(num_blocks)) for c in stages
        )
        self.halve = nn.ModuleList(Downsample(a, b) for a, b in itertools.pairwise(stages))
        self.start_CHW = nn.Parameter(torch.zeros(stages[-1], *sizes[-1]))
        self.label = nn.Embedding(self.num_classes, stages[-1]) if self.num_classes else None
        self.decoder = nn.ModuleList(
            LatentStage(c_in, c, size, num_blocks, settings.latent, p, places)
            for c_in, c, size in zip([stages[-1], *stages[:0:-1]], stages[::-1], sizes[::-1], strict=True)
        )
        self.norm = group_norm(stages[0])
        self.pixels = DiscretizedLogistics(channels, settings.mixture)
        self.head = zeroed(nn.Conv2d(stages[0], self.pixels.num_maps * self.patch**2, 3, padding=1))

    def forward(self, batch: dict[str, Tensor], key_B: Tensor) -> Tensor:
        """Losses [B, 2] in bits per dimension (pixel and channel): what is minimized, and the bound, which is at least
        -log2 p(image | class) / (C * H * W) on average over the noise; the two are one with beta = 1.
        """
        image_BCHW = batch["image"]
        maps, divergence_B = self.decode(key_B, batch.get("target"), self.encode(image_BCHW, key_B))
        missing_B = -self.pixels.log_probability(maps, image_BCHW)
        bits = 1 / (math.prod(self.image_CHW) * math.log(2))
        return torch.stack([missing_B + self.beta * divergence_B, missing_B + divergence_B], dim=1) * bits

    def encode(self, image_BCHW: Tensor, key_B: Tensor | None = None) -> list[Tensor]:
        """The encoder's last map of each stage [B, C, H, W], the largest first."""
        patches_BCHW = to_patches(self.image(image_BCHW), self.patch)
        x_BCHW = self.stem(channels_last(patches_BCHW))
        seen = []
        for stage, blocks in enumerate(self.encoder):
            x_BCHW = self.halve[stage - 1](x_BCHW) if stage else x_BCHW
            x_BCHW = blocks(x_BCHW, None, key_B)
            seen.append(x_BCHW)
        return seen

    def decode(self, key_B: Tensor, class_B: Tensor | None, seen: list[Tensor] | None) -> tuple[Tensor, Tensor]:
        """Maps of the pixels' distribution [B, num_maps, H, W], and the divergence of the posterior from the prior in
        nats [B]; noise is drawn from the prior where nothing was seen.
        """
        x_BCHW = self.start_CHW.expand(key_B.shape[0], -1, -1, -1)
        if self.label is not None:
            x_BCHW = x_BCHW + self.label(class_B)[:, :, None, None]
        x_BCHW = channels_last(x_BCHW)
        divergences: list[Tensor] = []
        nothing: list[Tensor | None] = [None] * len(self.decoder)
        for stage, seen_BCHW in zip(self.decoder, seen[::-1] if seen else nothing, strict=True):
            x_BCHW, more = stage(x_BCHW, seen_BCHW, key_B)
            divergences += more
        maps = self.head(F.silu(self.norm(x_BCHW))).to(self.head.weight.dtype)
        return from_patches(maps, self.patch, self.image_CHW[1:]), torch.stack(divergences).sum(0)

    def draw(self, key_B: Tensor, class_B: Tensor | None, steps: int | None, guidance: float | None) -> Tensor:
        """Pictures [B, C, H, W] in 0..255, not yet rounded: means of the pixels, given noise from the prior."""
        for name, value in (("steps", steps), ("guidance", guidance)):
            if value is not None:
                raise JobError(f"{name} = {value:g} is of flow matching, and a vae draws in one pass: leave it out")
        return self.pixels.mean(self.decode(key_B, class_B, None)[0])
