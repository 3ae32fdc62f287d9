"""Generators of images: a variational autoencoder, or flow matching. Of a class if the job names a target."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from raynn.errors import JobError
from raynn.networks.flow_matching import FlowMatching, FlowMatchingSettings
from raynn.networks.unet import MapSettings
from raynn.networks.vae import Vae, VaeSettings
from raynn.preprocessing import InputSpec
from raynn.regularization import RegularizationSettings

OWN: dict[str, type[MapSettings]] = {"vae": VaeSettings, "flow_matching": FlowMatchingSettings}


class ImageGeneratorSettings(VaeSettings, FlowMatchingSettings):
    """Settings of both architectures; those of the other one keep their defaults."""

    kind: Literal["image_generator"]
    architecture: Annotated[
        Literal["vae", "flow_matching"],
        Field(
            description="vae: has a likelihood bound, draws in one pass; flow_matching: better pictures, in many passes"
        ),
    ] = "flow_matching"


def build(settings: ImageGeneratorSettings, inputs: InputSpec, regularization: RegularizationSettings) -> nn.Module:
    """The network for these inputs.

    Raises:
        JobError: the features have no image; a setting is of the other architecture; guidance without label_dropout;
            input_dropout, whose gaps a generator would learn to draw.
    """
    for architecture, own in OWN.items():
        for name in own.model_fields.keys() - OWN[settings.architecture].model_fields.keys():
            if (value := getattr(settings, name)) != own.model_fields[name].default:
                raise JobError(
                    f"network.{name} = {value} is a setting of architecture: {architecture}, and "
                    f"network.architecture = {settings.architecture!r}; leave it out"
                )
    if regularization.input_dropout:
        raise JobError(
            f"regularization.input_dropout = {regularization.input_dropout:g}, and network.kind = 'image_generator' "
            "would learn to draw the gaps; set it to 0, and use regularization.dropout"
        )
    if inputs.classes and settings.label_dropout == 0 and settings.guidance != 1:
        raise JobError(
            f"network.guidance = {settings.guidance:g} needs images whose class is withheld in training, and "
            "network.label_dropout = 0; set guidance: 1, or label_dropout: 0.1"
        )
    kind = Vae if settings.architecture == "vae" else FlowMatching
    return kind(settings, inputs, regularization).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
