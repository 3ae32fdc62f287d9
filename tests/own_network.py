"""A network of a user's own, for the tests of `network.kind: custom`."""

from __future__ import annotations

import torch
from torch import nn

from raynn.networks import feedforward, image_generator, text_generator
from raynn.networks.feedforward import FeedforwardSettings
from raynn.networks.image_generator import ImageGeneratorSettings
from raynn.networks.text_generator import TextGeneratorSettings
from raynn.preprocessing import InputSpec
from raynn.regularization import RegularizationSettings

NOT_A_FUNCTION = 3


def build(inputs: InputSpec, regularization: RegularizationSettings, size: int = 8) -> nn.Module:
    """For every task, as a user's own would be."""
    if inputs.task == "language_modeling":
        writer = TextGeneratorSettings(kind="text_generator", architecture="lstm", width=size, layers=1)
        return text_generator.build(writer, inputs, regularization)
    if inputs.task == "image_generation":
        painter = ImageGeneratorSettings(kind="image_generator", channels=(size,), condition_width=size)
        return image_generator.build(painter, inputs, regularization)
    layers = FeedforwardSettings(kind="feedforward", hidden=(size, size))
    return feedforward.build(layers, inputs, regularization)


def narrow(inputs: InputSpec, regularization: RegularizationSettings, width: int = 3) -> nn.Module:
    return nn.Linear(inputs.num_numeric, width)


def scaled(inputs: InputSpec, regularization: RegularizationSettings) -> nn.Module:
    """With a weight that is one number."""
    network = build(inputs, regularization)
    network.scale = nn.Parameter(torch.tensor(1.0))
    return network


def no_module(inputs: InputSpec, regularization: RegularizationSettings) -> str:
    return "a network"
