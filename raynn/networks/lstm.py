"""Recurrent network with a memory cell (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000)."""

from __future__ import annotations

from typing import Literal

from torch import nn

from raynn.networks.recurrent import RecurrentSettings, build_recurrent
from raynn.preprocessing import InputSpec
from raynn.regularization import RegularizationSettings


class LstmSettings(RecurrentSettings):
    """Long short-term memory."""

    kind: Literal["lstm"]


def build(settings: LstmSettings, inputs: InputSpec, regularization: RegularizationSettings) -> nn.Module:
    """The network for these inputs.

    Raises:
        JobError: no feature is a sequence or text, a text is to be read in segments, or a language model in
            both directions.
    """

    def cell(width: int) -> nn.RNNBase:
        return nn.LSTM(width, settings.hidden, batch_first=True)

    return build_recurrent(cell, settings, inputs, regularization)
