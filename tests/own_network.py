"""A network of a user's own, for the tests of `network.kind: custom`."""

from __future__ import annotations

import json
from typing import Any

from torch import nn

from raynn.networks import feedforward
from raynn.networks.feedforward import FeedforwardSettings
from raynn.preprocessing import InputSpec
from raynn.regularization import RegularizationSettings

NOT_A_FUNCTION = 3


def build(inputs: InputSpec, regularization: RegularizationSettings, **settings: Any) -> nn.Module:
    chosen = FeedforwardSettings.model_validate_json(json.dumps({"kind": "feedforward", **settings}))
    return feedforward.build(chosen, inputs, regularization)


def narrow(inputs: InputSpec, regularization: RegularizationSettings, width: int = 3) -> nn.Module:
    return nn.Linear(inputs.num_numeric, width)


def no_module(inputs: InputSpec, regularization: RegularizationSettings) -> str:
    return "a network"
