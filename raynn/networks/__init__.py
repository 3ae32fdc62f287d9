"""Who learns: one file per type (settings, module), named in this table.

A network is an `nn.Module` whose forward takes a batch (columns by name, `[B, ...]`) and the rows' random keys, and
gives outputs `[B, K]`: logits of K classes, or one standardized value; a generator of images gives its losses. `build`
makes it for an `InputSpec`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from raynn.networks import cnn, feedforward, image_generator, lstm, rnn
from raynn.networks.cnn import CnnSettings
from raynn.networks.feedforward import FeedforwardSettings
from raynn.networks.image_generator import ImageGeneratorSettings
from raynn.networks.lstm import LstmSettings
from raynn.networks.rnn import RnnSettings
from raynn.settings import Settings

NetworkSettings = Annotated[
    FeedforwardSettings | CnnSettings | RnnSettings | LstmSettings | ImageGeneratorSettings, Field(discriminator="kind")
]


@dataclass(frozen=True)
class NetworkSpec:
    """A network type: how it is built, what it is for, and the tuned defaults of other sections it brings."""

    description: str
    settings: type[Settings]
    build: Callable[..., nn.Module]
    tasks: tuple[str, ...]
    inputs: tuple[str, ...]
    needs: tuple[str, ...] = ()  # at least one column of these kinds
    any_length: bool = False  # takes sequences whose lengths differ
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)


RECURRENT_DEFAULTS = {"regularization": {"dropout": 0.1, "weight_decay": 1e-3, "gradient_clip_norm": 1.0}}

NETWORKS: dict[str, NetworkSpec] = {
    "feedforward": NetworkSpec(
        description="dense layers or residual blocks over tables, with embeddings of numbers and categories",
        settings=FeedforwardSettings,
        build=feedforward.build,
        tasks=("classification", "regression"),
        inputs=("numeric", "categorical", "date", "image", "sequence"),
        defaults={"regularization": {"dropout": 0.1, "weight_decay": 1e-3}},
    ),
    "cnn": NetworkSpec(
        description="convolution and pooling over images (2D) or sequences of equal length (1D)",
        settings=CnnSettings,
        build=cnn.build,
        tasks=("classification", "regression"),
        inputs=("image", "sequence", "numeric", "categorical", "date"),
        needs=("image", "sequence"),
        defaults={"regularization": {"dropout": 0.25, "weight_decay": 1e-2}},
    ),
    "rnn": NetworkSpec(
        description="recurrent network over sequences of any lengths: Elman's (tanh, relu) or gated (gru)",
        settings=RnnSettings,
        build=rnn.build,
        tasks=("classification", "regression"),
        inputs=("sequence", "numeric", "categorical", "date"),
        needs=("sequence",),
        any_length=True,
        defaults=RECURRENT_DEFAULTS,
    ),
    "lstm": NetworkSpec(
        description="recurrent network with a memory cell, over sequences of any lengths",
        settings=LstmSettings,
        build=lstm.build,
        tasks=("classification", "regression"),
        inputs=("sequence", "numeric", "categorical", "date"),
        needs=("sequence",),
        any_length=True,
        defaults=RECURRENT_DEFAULTS,
    ),
    "image_generator": NetworkSpec(
        description="draws images like those it was shown, by class if asked: flow matching or variational autoencoder",
        settings=ImageGeneratorSettings,
        build=image_generator.build,
        tasks=("image_generation",),
        inputs=("image",),
        needs=("image",),
        defaults={"regularization": {"weight_decay": 1e-2, "gradient_clip_norm": 1.0}},
    ),
}


def defaults_for(kind: str) -> dict[str, dict[str, Any]]:
    """The tuned defaults a network type brings to other sections; a job file's own settings win over them."""
    return NETWORKS[kind].defaults if kind in NETWORKS else {}
