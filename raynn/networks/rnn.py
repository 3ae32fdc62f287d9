"""Recurrent network over sequences: Elman's, or gated (GRU)."""

from __future__ import annotations

from typing import Literal

from torch import nn

from raynn.networks.recurrent import RecurrentSettings, build_recurrent
from raynn.preprocessing import InputSpec
from raynn.regularization import RegularizationSettings


class RnnSettings(RecurrentSettings):
    """`cell`: Elman's with tanh or relu (Elman 1990), or the gated recurrent unit (Cho et al. 2014)."""

    kind: Literal["rnn"]
    cell: Literal["tanh", "relu", "gru"] = "tanh"


def build(settings: RnnSettings, inputs: InputSpec, regularization: RegularizationSettings) -> nn.Module:
    """The network for these inputs.

    Raises:
        JobError: no feature is a sequence or text, a text is to be read in segments, or a language model in
            both directions.
    """

    def cell(width: int) -> nn.RNNBase:
        if settings.cell == "gru":
            return nn.GRU(width, settings.hidden, batch_first=True)
        return nn.RNN(width, settings.hidden, nonlinearity=settings.cell, batch_first=True)

    return build_recurrent(cell, settings, inputs, regularization)
