"""Feedforward network over tables; images and sequences of one length are flattened, text and others pooled.

Shapes: B rows, T steps, C channels, E width of a step, D input width, H hidden units, K outputs.
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raynn.dropout import AlphaDropout, Dropout, StochasticDepth
from raynn.mixing import MixingPoint
from raynn.networks.inputs import Batch, ImageNormalization, TableEmbedding, TokenEmbedding
from raynn.networks.layers import ACTIVATIONS, Activation, pooled_over_steps, steps_within
from raynn.networks.normalization import GlobalBatchNorm
from raynn.preprocessing import InputSpec
from raynn.regularization import RegularizationSettings
from raynn.settings import Settings

Width = Annotated[int, Field(ge=1)]


class FeedforwardSettings(Settings):
    """`hidden` gives the width of each layer; with `residual`, of each block."""

    kind: Literal["feedforward"]
    hidden: tuple[Width, ...] = (256, 256)
    activation: Activation = "relu"
    normalization: Literal["none", "batch", "layer"] = "none"
    residual: bool = False
    number_embedding: Annotated[
        Literal["none", "piecewise_linear", "periodic"],
        Field(description="how a number enters: as it is, by its quantile bin, or as waves (Gorishniy et al. 2022)"),
    ] = "none"
    number_embedding_width: Width = 16
    number_embedding_frequencies: Annotated[Width, Field(description="waves a column (periodic)")] = 48
    number_embedding_scale: Annotated[
        float, Field(gt=0.0, description="standard deviation of the initial frequencies (periodic)")
    ] = 0.1
    category_embedding_width: Annotated[
        Width | None, Field(description="default: 1.6 * categories ** 0.56, at most 50")
    ] = None
    embedding: Annotated[Width, Field(description="width of a token's vector; of a step's, where lengths differ")] = 64
    pooling: Annotated[
        Literal["mean", "max"], Field(description="from all tokens or steps to one vector, where lengths differ")
    ] = "mean"


def normalization(kind: str, width: int) -> nn.Module:
    """The normalization layer of that name over features [B, H]."""
    return {"none": nn.Identity, "batch": GlobalBatchNorm, "layer": nn.LayerNorm}[kind](width)


class Layer(nn.Module):
    """Linear, normalization, activation, dropout."""

    def __init__(
        self, width_in: int, width: int, settings: FeedforwardSettings, knobs: RegularizationSettings, place: int
    ) -> None:
        super().__init__()
        # a bias before a normalization has no effect: left out
        self.linear = nn.Linear(width_in, width, bias=settings.normalization == "none")
        self.norm = normalization(settings.normalization, width)
        self.activation = ACTIVATIONS[settings.activation]()
        self.dropout = Dropout(knobs.dropout, width, place)
        self.alpha_dropout = AlphaDropout(knobs.alpha_dropout, width, place)
        self.mixing = MixingPoint()

    def forward(self, x_BH: Tensor, key_B: Tensor | None) -> Tensor:
        """Features [B, H]."""
        x_BH = self.dropout(self.activation(self.norm(self.linear(x_BH))), key_B)
        return self.mixing(self.alpha_dropout(x_BH, key_B))


class ResidualBlock(nn.Module):
    """x + Linear(dropout(activation(Linear(norm(x))))) (Gorishniy et al. 2021, section 3.2: the ResNet for tables)."""

    def __init__(
        self, width_in: int, width: int, settings: FeedforwardSettings, knobs: RegularizationSettings, place: int
    ) -> None:
        super().__init__()
        self.skip = nn.Linear(width_in, width) if width_in != width else nn.Identity()
        self.norm = normalization(settings.normalization, width)
        self.widen = nn.Linear(width, 2 * width)
        self.activation = ACTIVATIONS[settings.activation]()
        self.dropout = Dropout(knobs.dropout, 2 * width, place)
        self.narrow = nn.Linear(2 * width, width)
        self.depth = StochasticDepth(knobs.stochastic_depth, place - 1, len(settings.hidden))
        self.mixing = MixingPoint()

    def forward(self, x_BH: Tensor, key_B: Tensor | None) -> Tensor:
        """Features [B, H]."""
        x_BH = self.skip(x_BH)
        added_BH = self.narrow(self.dropout(self.activation(self.widen(self.norm(x_BH))), key_B))
        return self.mixing(x_BH + self.depth(added_BH, key_B))


class PooledSteps(nn.Module):
    """A vector for every step (one dense layer) or token (its embedding), then their mean or largest: a function of the
    set of steps, blind to their order (Zaheer et al. 2017, theorem 2; of text Joulin et al. 2017, section 2).
    """

    def __init__(
        self, settings: FeedforwardSettings, inputs: InputSpec, regularization: RegularizationSettings, place: int
    ) -> None:
        super().__init__()
        width, p = settings.embedding, regularization.input_dropout
        self.pooling = settings.pooling
        self.tokens = TokenEmbedding(inputs.vocabulary_size, width, p, place) if inputs.vocabulary_size else None
        if inputs.sequence_TC:
            self.input_dropout = Dropout(p, inputs.sequence_TC[1], place, "input_dropout")
            self.linear = nn.Linear(inputs.sequence_TC[1], width)
            self.activation = ACTIVATIONS[settings.activation]()

    def forward(self, batch: Batch, key_B: Tensor | None) -> Tensor:
        """One vector a row [B, E]; dropout silences a channel at all steps alike."""
        if self.tokens is not None:
            x_BTE = self.tokens(batch["tokens"], key_B)
        else:
            x_BCT = self.input_dropout(batch["sequence"].transpose(1, 2), key_B)
            x_BTE = self.activation(self.linear(x_BCT.transpose(1, 2)))
        return pooled_over_steps(x_BTE, steps_within(batch["length"], x_BTE.shape[1]), self.pooling)


class Feedforward(nn.Module):
    """Embeddings, layers or residual blocks, and a linear head."""

    def __init__(
        self, settings: FeedforwardSettings, inputs: InputSpec, regularization: RegularizationSettings
    ) -> None:
        super().__init__()
        places = itertools.count()
        self.table = TableEmbedding(
            inputs,
            settings.number_embedding,
            settings.number_embedding_width,
            settings.number_embedding_frequencies,
            settings.number_embedding_scale,
            settings.category_embedding_width,
        )
        self.image = ImageNormalization(inputs) if inputs.image_CHW else None
        self.flat = inputs.sequence_TC if not inputs.any_length else None
        width = self.table.width
        for shape in (inputs.image_CHW, self.flat):
            width += math.prod(shape) if shape else 0
        self.input_dropout = Dropout(regularization.input_dropout, width, next(places), "input_dropout")
        width += settings.embedding if inputs.any_length else 0
        self.mixing = MixingPoint()
        layers: list[nn.Module] = []
        block = ResidualBlock if settings.residual else Layer
        for hidden in settings.hidden:
            layers.append(block(width, hidden, settings, regularization, next(places)))
            width = hidden
        self.layers = nn.ModuleList(layers)
        self.last_norm = normalization(settings.normalization if settings.residual else "none", width)
        self.head = nn.Linear(width, inputs.num_outputs)
        self.steps = PooledSteps(settings, inputs, regularization, next(places)) if inputs.any_length else None

    def forward(self, batch: Batch, key_B: Tensor | None = None) -> Tensor:
        """Outputs [B, K]: logits, or the standardized value."""
        parts = self.table(batch)
        if self.image is not None:
            parts.append(self.image(batch["image"]).flatten(1))
        if self.flat:
            parts.append(batch["sequence"].flatten(1))
        if parts:
            parts = [self.input_dropout(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), key_B)]
        if self.steps is not None:
            parts.append(self.steps(batch, key_B))
        x_BH = self.mixing(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))
        for layer in self.layers:
            x_BH = layer(x_BH, key_B)
        return self.head(self.last_norm(x_BH))


def build(settings: FeedforwardSettings, inputs: InputSpec, regularization: RegularizationSettings) -> nn.Module:
    """The network for these inputs; takes every kind of column."""
    return Feedforward(settings, inputs, regularization)
