"""Who learns: one file per type (settings, module), named in this table.

A network is an `nn.Module` whose forward takes a batch (columns by name, `[B, ...]`) and the rows' random keys, and
gives outputs `[B, K]`: logits of K classes, or one standardized value; a generator of images gives its losses. `build`
makes it for an `InputSpec`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, get_args

from pydantic import Field
from torch import nn

from raynn.metrics import Task
from raynn.networks import cnn, custom, feedforward, image_generator, lstm, rnn, text_generator
from raynn.networks.cnn import CnnSettings
from raynn.networks.custom import CustomSettings
from raynn.networks.feedforward import FeedforwardSettings
from raynn.networks.image_generator import ImageGeneratorSettings
from raynn.networks.lstm import LstmSettings
from raynn.networks.rnn import RnnSettings
from raynn.networks.text_generator import TextGeneratorSettings
from raynn.settings import Settings

NetworkSettings = Annotated[
    FeedforwardSettings
    | CnnSettings
    | RnnSettings
    | LstmSettings
    | ImageGeneratorSettings
    | TextGeneratorSettings
    | CustomSettings,
    Field(discriminator="kind"),
]


@dataclass(frozen=True)
class NetworkSpec:
    """A network type: how it is built, what it is for, and the tuned defaults of other sections it brings."""

    description: str
    settings: type[Settings]
    build: Callable[..., nn.Module]
    tasks: tuple[Task, ...]
    inputs: tuple[str, ...]
    needs: tuple[str, ...] = ()  # at least one column of these kinds
    any_length: bool = False  # gains nothing from knowing that all sequences have one length, so is never told
    by_length: bool = False  # trains faster on pieces of like lengths; but for batch norm, rows do not see each other
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)


RECURRENT_DEFAULTS = {"regularization": {"dropout": 0.1, "weight_decay": 1e-3, "gradient_clip_norm": 1.0}}

NETWORKS: dict[str, NetworkSpec] = {
    "feedforward": NetworkSpec(
        description="dense layers or residual blocks over tables, with embeddings of numbers and categories",
        settings=FeedforwardSettings,
        build=feedforward.build,
        tasks=("classification", "regression", "forecasting"),
        inputs=("numeric", "categorical", "date", "image", "sequence", "text"),
        defaults={"regularization": {"dropout": 0.1, "weight_decay": 1e-3}},
    ),
    "cnn": NetworkSpec(
        description="convolution and pooling over images (2D), sequences or text (1D)",
        settings=CnnSettings,
        build=cnn.build,
        tasks=("classification", "regression", "forecasting"),
        inputs=("image", "sequence", "text", "numeric", "categorical", "date"),
        needs=("image", "sequence", "text"),
        by_length=True,
        defaults={"regularization": {"dropout": 0.25, "weight_decay": 1e-2}},
    ),
    "rnn": NetworkSpec(
        description="recurrent network over sequences or text of any length: Elman's (tanh, relu) or gated (gru)",
        settings=RnnSettings,
        build=rnn.build,
        tasks=("classification", "regression", "forecasting", "language_modeling"),
        inputs=("sequence", "text", "numeric", "categorical", "date"),
        needs=("sequence", "text"),
        any_length=True,
        by_length=True,
        defaults=RECURRENT_DEFAULTS,
    ),
    "lstm": NetworkSpec(
        description="recurrent network with a memory cell, over sequences or text of any length",
        settings=LstmSettings,
        build=lstm.build,
        tasks=("classification", "regression", "forecasting", "language_modeling"),
        inputs=("sequence", "text", "numeric", "categorical", "date"),
        needs=("sequence", "text"),
        any_length=True,
        by_length=True,
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
    "text_generator": NetworkSpec(
        description="language model that writes text: a causal transformer, or an LSTM",
        settings=TextGeneratorSettings,
        build=text_generator.build,
        tasks=("language_modeling",),
        inputs=("text",),
        needs=("text",),
    ),
    "custom": NetworkSpec(
        description="your own nn.Module, built by a function of yours",
        settings=CustomSettings,
        build=custom.build,
        tasks=get_args(Task),
        inputs=("numeric", "categorical", "date", "image", "sequence", "text"),
    ),
}


def defaults_for(kind: str) -> dict[str, dict[str, Any]]:
    """The tuned defaults a network type brings to other sections; a job file's own settings win over them."""
    return NETWORKS[kind].defaults if kind in NETWORKS else {}
