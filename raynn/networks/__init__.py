"""Who learns: one file per type (settings, module), named in this table.

A network is an `nn.Module` whose forward takes a batch (columns by name, `[B, ...]`) and the rows' random keys, and
gives outputs `[B, K]`: logits of K classes, or one standardized value. `build` makes it for an `InputSpec`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from raynn.networks import cnn, feedforward
from raynn.networks.cnn import CnnSettings
from raynn.networks.feedforward import FeedforwardSettings

NetworkSettings = Annotated[FeedforwardSettings | CnnSettings, Field(discriminator="kind")]


@dataclass(frozen=True)
class NetworkSpec:
    """A network type: how it is built, what it is for, and the tuned defaults of other sections it brings."""

    description: str
    settings: type[FeedforwardSettings] | type[CnnSettings]
    build: Callable[..., nn.Module]
    tasks: tuple[str, ...]
    inputs: tuple[str, ...]
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)


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
        defaults={"regularization": {"dropout": 0.25, "weight_decay": 1e-2}},
    ),
}


def defaults_for(kind: str) -> dict[str, dict[str, Any]]:
    """The tuned defaults a network type brings to other sections; a job file's own settings win over them."""
    return NETWORKS[kind].defaults if kind in NETWORKS else {}
