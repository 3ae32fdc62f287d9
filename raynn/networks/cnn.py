"""Convolutional network: over images (2D), sequences or text (1D), of any size and number of channels.

Where the lengths of sequences differ, every layer reads only the steps that are there: a convolution sees zeros behind
the last of them, as it does at the end of an image, a normalization and a pooling do not see the padding at all.

Shapes: B rows, C channels, S the spatial axes (H, W or T), H head features, K outputs.
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from raynn.dropout import LATER, Dropout, StochasticDepth
from raynn.errors import JobError
from raynn.mixing import MixingPoint
from raynn.networks.inputs import Batch, ImageNormalization, TableEmbedding, TokenEmbedding
from raynn.networks.layers import (
    ACTIVATIONS,
    Activation,
    channels_last,
    flattened,
    pooled_over_steps,
    steps_within,
)
from raynn.networks.normalization import GlobalBatchNorm, group_norm
from raynn.preprocessing import InputSpec
from raynn.regularization import RegularizationSettings
from raynn.settings import Settings

Width = Annotated[int, Field(ge=1)]
# Values [B, C, S] and, where lengths differ, which of the steps are there [B, 1, T]. What the values of other steps are
# is up to who made them: whoever reads a map leaves them out.
Map = tuple[Tensor, Tensor | None]
NEVER_FALL: tuple[Activation, ...] = ("relu", "tanh", "selu")
ANY = 0  # a spatial axis whose size differs between rows


def odd(number: int) -> int:
    """`number` itself, if it is odd: only odd kernels have a middle, so that maps keep their size."""
    if number % 2 == 0:
        raise ValueError(f"must be odd; use {number - 1} or {number + 1}")
    return number


class CnnSettings(Settings):
    """`channels` gives one stage each; every stage but the first halves the map (as long as it is larger than 1)."""

    kind: Literal["cnn"]
    channels: Annotated[tuple[Width, ...], Field(min_length=1)] = (32, 64, 64)
    block: Annotated[
        Literal["plain", "residual"], Field(description="convolution, norm, activation; or He et al. 2016, fig. 2")
    ] = "plain"
    blocks_per_stage: Width = 1
    kernel_size: Annotated[Width, AfterValidator(odd)] = 3
    normalization: Literal["none", "batch", "group"] = "batch"
    activation: Activation = "relu"
    pooling: Annotated[Literal["max", "mean", "stride"], Field(description="how a stage halves the map")] = "max"
    head_pooling: Annotated[
        Literal["mean", "max", "flatten"] | None,
        Field(description="from the last map to one vector; default: flatten, max where lengths differ"),
    ] = None
    embedding: Annotated[Width, Field(description="width of a token's vector")] = 64
    head_hidden: Annotated[tuple[Width, ...], Field(description="dense layers before the outputs")] = (128,)


class Pool(nn.Module):
    """Max or mean over windows that do not overlap, of two steps or pixels an axis. Where lengths differ the last step
    of an odd number stands alone, so that the shortest row keeps one; where all are alike it is left out.
    """

    def __init__(self, pooling: str, window: tuple[int, ...]) -> None:
        super().__init__()
        self.pooling, self.window = pooling, window

    def forward(self, maps: Map) -> Map:
        """Maps with half the steps."""
        x_BCS, within = maps
        if within is None:
            pools: dict[str, Any] = {
                "max1": F.max_pool1d,
                "max2": F.max_pool2d,
                "mean1": F.avg_pool1d,
                "mean2": F.avg_pool2d,
            }
            return pools[f"{self.pooling}{len(self.window)}"](x_BCS, self.window), None
        first_B1T, second_B1T = within[..., ::2], F.pad(within, (0, 1))[..., 1::2]
        first_BCT, second_BCT = x_BCS[..., ::2], F.pad(x_BCS, (0, 1))[..., 1::2]
        if self.pooling == "max":
            x_BCT = torch.maximum(
                first_BCT.masked_fill(~first_B1T, -torch.inf), second_BCT.masked_fill(~second_B1T, -torch.inf)
            )
        else:
            count_B1T = (first_B1T.int() + second_B1T.int()).clamp(min=1)
            x_BCT = (first_BCT * first_B1T + second_BCT * second_B1T) / count_B1T
        within = within[..., ::2]
        return x_BCT.masked_fill(~within, 0.0), within  # infinities would come back from the gradient as NaN


class ConvNorm(nn.Module):
    """Convolution (same padding), then normalization; a bias only where no normalization would cancel it."""

    def __init__(
        self, axes: int, c_in: int, c_out: int, settings: CnnSettings, stride: int = 1, kernel: int = 0
    ) -> None:
        super().__init__()
        kernel = kernel or settings.kernel_size
        convolution = nn.Conv2d if axes == 2 else nn.Conv1d
        bias = settings.normalization == "none"
        self.stride = stride
        self.convolution = convolution(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=bias)
        self.norm: nn.Module | None = None
        if settings.normalization != "none":
            self.norm = GlobalBatchNorm(c_out) if settings.normalization == "batch" else group_norm(c_out)

    def forward(self, maps: Map, pool: Pool | None = None) -> Map:
        """Maps, every axis `stride` times shorter, rounded up, then pooled if so asked."""
        x_BCS, within = maps
        if within is not None:
            x_BCS, within = x_BCS.masked_fill(~within, 0.0), within[..., :: self.stride]
        x_BCS = self.convolution(x_BCS)
        if pool is not None and within is None and isinstance(self.norm, GlobalBatchNorm):
            return self.norm.pooled(x_BCS, pool.window), None
        if self.norm is not None:
            x_BCS = self.norm(x_BCS, within)
        return (x_BCS, within) if pool is None else pool((x_BCS, within))


class Ending(nn.Module):
    """How a block ends: activation and, at the end of a stage, pooling. Where the activation never falls, a window's
    largest value is the activation of the largest before, and pooling comes first: it leaves less to do.
    """

    def __init__(self, activation: Activation, pool: Pool | None) -> None:
        super().__init__()
        self.activation = nn.ReLU(inplace=True) if activation == "relu" else ACTIVATIONS[activation]()
        pools_first = pool is not None and pool.pooling == "max" and activation in NEVER_FALL
        self.first = pool if pools_first else None
        self.last = None if pools_first else pool

    def forward(self, maps: Map) -> Map:
        """The end of what `first`, if there is one, has pooled."""
        x_BCS, within = maps
        maps = self.activation(x_BCS), within
        return maps if self.last is None else self.last(maps)


class PlainBlock(nn.Module):
    """Convolution, normalization, activation, pooling at the end of a stage, dropout of channels."""

    def __init__(
        self,
        axes: int,
        c_in: int,
        c_out: int,
        settings: CnnSettings,
        stride: int,
        knobs: RegularizationSettings,
        block: int,
        pool: Pool | None,
    ) -> None:
        super().__init__()
        self.conv = ConvNorm(axes, c_in, c_out, settings, stride)
        self.ending = Ending(settings.activation, pool)
        self.spatial_dropout = Dropout(knobs.spatial_dropout, c_out, LATER + block, "spatial_dropout")
        self.mixing = MixingPoint()

    def forward(self, maps: Map, key_B: Tensor | None) -> Map:
        """Maps of `c_out` channels."""
        x_BCS, within = self.ending(self.conv(maps, self.ending.first))
        return self.mixing(self.spatial_dropout(x_BCS, key_B)), within


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut, a 1x1 convolution where shapes differ (He et al. 2016, eq. 1 and 2)."""

    def __init__(
        self,
        axes: int,
        c_in: int,
        c_out: int,
        settings: CnnSettings,
        stride: int,
        knobs: RegularizationSettings,
        block: int,
        pool: Pool | None,
    ) -> None:
        super().__init__()
        self.first = ConvNorm(axes, c_in, c_out, settings, stride)
        self.second = ConvNorm(axes, c_out, c_out, settings)
        self.middle = Ending(settings.activation, None)
        self.ending = Ending(settings.activation, pool)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or c_in != c_out:
            self.shortcut = ConvNorm(axes, c_in, c_out, settings, stride, kernel=1)
        num_blocks = len(settings.channels) * settings.blocks_per_stage
        self.depth = StochasticDepth(knobs.stochastic_depth, block, num_blocks)
        self.spatial_dropout = Dropout(knobs.spatial_dropout, c_out, LATER + block, "spatial_dropout")
        self.mixing = MixingPoint()

    def forward(self, maps: Map, key_B: Tensor | None) -> Map:
        """Maps of `c_out` channels."""
        x_BCS, within = self.second(self.middle(self.first(maps)))
        maps = self.depth(x_BCS, key_B) + self.shortcut(maps)[0], within
        x_BCS, within = self.ending(maps if self.ending.first is None else self.ending.first(maps))
        return self.mixing(self.spatial_dropout(x_BCS, key_B)), within


class Stages(nn.Sequential):
    """Blocks, one after the other."""

    def forward(self, maps: Map, key_B: Tensor | None = None) -> Map:
        """The last maps."""
        for block in self:
            maps = block(maps, key_B)
        return maps


def stages(
    settings: CnnSettings, size: tuple[int, ...], c_in: int, knobs: RegularizationSettings
) -> tuple[nn.Sequential, int]:
    """The convolutional part for maps of `size` (a sequence's is `ANY` where lengths differ), and the number of values
    [C * S] in its last map.
    """
    axes = len(size)
    block = PlainBlock if settings.block == "plain" else ResidualBlock
    blocks: list[nn.Module] = []
    places = itertools.count()
    for stage, c_out in enumerate(settings.channels):
        stride, pool = 1, None
        if ANY in size or max(size) > 1:
            # an axis that has shrunk to 1 stays 1
            if settings.pooling == "stride":
                if stage > 0:
                    stride, size = 2, tuple((s + 1) // 2 for s in size)
            elif stage + 1 < len(settings.channels):
                window = tuple(2 if s == ANY else min(2, s) for s in size)
                pool, size = Pool(settings.pooling, window), tuple(s // w for s, w in zip(size, window, strict=True))
        for number in range(settings.blocks_per_stage):
            ends = pool if number + 1 == settings.blocks_per_stage else None
            blocks.append(block(axes, c_in, c_out, settings, stride, knobs, next(places), ends))
            c_in, stride = c_out, 1
    return Stages(*blocks), c_in * math.prod(size)


class Cnn(nn.Module):
    """Convolutional stages, pooling to one vector, table columns beside it, and a dense head."""

    def __init__(self, settings: CnnSettings, inputs: InputSpec, regularization: RegularizationSettings) -> None:
        super().__init__()
        places = itertools.count()
        self.image = ImageNormalization(inputs) if inputs.image_CHW else None
        there = {"image": inputs.image_CHW, "sequence": inputs.sequence_TC, "text": inputs.vocabulary_size}
        names = [name for name, size in there.items() if size]
        if not names:
            raise JobError(
                "network.kind = 'cnn' needs an image, a sequence or a text column, and the features have none; "
                "use network.kind: feedforward for a table"
            )
        if len(names) > 1:
            raise JobError(
                f"network.kind = 'cnn' takes one image, sequence or text column, and the features have "
                f"{' and '.join(names)}; set one of them to ignore in data.columns, or use network.kind: feedforward"
            )
        self.tokens: TokenEmbedding | None = None
        if inputs.image_CHW:
            channels, *size = inputs.image_CHW
        elif inputs.sequence_TC:
            length, channels = inputs.sequence_TC
            size = [length]
        else:
            channels, size = settings.embedding, [ANY]
        self.any_length = inputs.any_length
        if self.any_length and settings.head_pooling == "flatten":
            raise JobError(
                "network.head_pooling = 'flatten' needs sequences of one length, and their lengths differ; use mean or "
                "max"
            )
        self.head_pooling = settings.head_pooling or ("max" if self.any_length else "flatten")
        if inputs.vocabulary_size:
            self.tokens = TokenEmbedding(inputs.vocabulary_size, channels, regularization.input_dropout, next(places))
        else:
            self.input_dropout = Dropout(regularization.input_dropout, channels, next(places), "input_dropout")
        self.mixing = MixingPoint()
        self.stages, flat = stages(settings, tuple(size), channels, regularization)
        self.table = TableEmbedding(inputs)
        self.mixing_table = MixingPoint(last=True)
        width = (flat if self.head_pooling == "flatten" else settings.channels[-1]) + self.table.width
        self.dropouts = nn.ModuleList([Dropout(regularization.dropout, width, next(places))])
        self.dense = nn.ModuleList()
        for hidden in settings.head_hidden:
            self.dense.append(nn.Linear(width, hidden))
            self.dropouts.append(Dropout(regularization.dropout, hidden, next(places)))
            width = hidden
        self.activation = ACTIVATIONS[settings.activation]()
        self.head = nn.Linear(width, inputs.num_outputs)

    def forward(self, batch: Batch, key_B: Tensor | None = None) -> Tensor:
        """Outputs [B, K]: logits, or the standardized value."""
        return self.head(self.features(batch, key_B))

    def features(self, batch: Batch, key_B: Tensor | None = None) -> Tensor:
        """What the head reads [B, H]."""
        x_BCS, within = self._inputs(batch, key_B)
        x_BCS = self.mixing(x_BCS)
        x_BCS, within = self.stages((channels_last(x_BCS) if x_BCS.dim() == 4 else x_BCS, within), key_B)
        table = map(self.mixing_table, self.table(batch))
        x_BH = self.dropouts[0](torch.cat([self._pooled(x_BCS, within), *table], dim=1), key_B)
        for dense, dropout in zip(self.dense, list(self.dropouts)[1:], strict=True):
            x_BH = dropout(self.activation(dense(x_BH)), key_B)
        return x_BH

    def _inputs(self, batch: Batch, key_B: Tensor | None) -> Map:
        """The image, the sequence or the embedded text."""
        if self.image is not None:
            return self.input_dropout(self.image(batch["image"]), key_B), None
        if self.tokens is not None:
            x_BCT = self.tokens(batch["tokens"], key_B).transpose(1, 2)
        else:
            x_BCT = self.input_dropout(batch["sequence"].transpose(1, 2), key_B)
        within = steps_within(batch["length"], x_BCT.shape[2])[:, None] if self.any_length else None
        return x_BCT, within

    def _pooled(self, x_BCS: Tensor, within_B1T: Tensor | None) -> Tensor:
        """One vector a row [B, H] from the last map."""
        if within_B1T is not None:
            return pooled_over_steps(x_BCS.transpose(1, 2), within_B1T.squeeze(1), self.head_pooling)
        if self.head_pooling == "flatten":
            return flattened(x_BCS)
        return x_BCS.flatten(2).mean(-1) if self.head_pooling == "mean" else x_BCS.flatten(2).amax(-1)


def build(settings: CnnSettings, inputs: InputSpec, regularization: RegularizationSettings) -> nn.Module:
    """The network for these inputs.

    Raises:
        JobError: the features have no image, sequence or text, or two of them; a map of any length is to be flattened.
    """
    return Cnn(settings, inputs, regularization).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
