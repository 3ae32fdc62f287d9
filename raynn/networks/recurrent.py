"""What recurrent networks share: their settings, the stack of layers, and pooling over time.

Shapes: B rows, T steps, F channels, H hidden units of a layer (both directions), K outputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from raynn.errors import JobError
from raynn.networks.inputs import Batch, TableEmbedding
from raynn.networks.layers import pooled_over_steps, steps_within
from raynn.preprocessing import InputSpec
from raynn.regularization import Dropout, RegularizationSettings
from raynn.settings import Settings

Width = Annotated[int, Field(ge=1)]
Cell = Callable[[int], nn.RNNBase]  # one layer, for inputs of that width


class RecurrentSettings(Settings):
    """The settings that every recurrent network has; each type says its `kind`."""

    kind: str
    hidden: Annotated[Width, Field(description="units a layer and direction")] = 128
    layers: Width = 1
    bidirectional: bool = False
    pooling: Annotated[
        Literal["last", "mean", "max", "attention"],
        Field(description="from all steps to one vector; last: each direction's state after its last step"),
    ] = "last"


class Recurrent(nn.Module):
    """Layers over the steps of a sequence, pooling, table columns beside it, and a linear head.

    Dropout silences a feature of a row at all steps alike (Gal & Ghahramani 2016, section 4.1).
    """

    def __init__(
        self, cell: Cell, settings: RecurrentSettings, inputs: InputSpec, regularization: RegularizationSettings
    ) -> None:
        super().__init__()
        if inputs.sequence_TC is None:
            raise JobError(
                f"network.kind = {settings.kind!r} needs a sequence column, and the features have none; "
                "use network.kind: feedforward for a table, cnn for images"
            )
        places = itertools.count()
        width = inputs.sequence_TC[1]
        self.input_dropout = Dropout(regularization.input_dropout, width, next(places))
        layers, dropouts = [], []
        for _ in range(settings.layers):
            layers.append(cell(width))
            initialize(layers[-1])
            width = settings.hidden * (2 if settings.bidirectional else 1)
            dropouts.append(Dropout(regularization.dropout, width, next(places)))
        self.layers, self.dropouts = nn.ModuleList(layers), nn.ModuleList(dropouts)
        self.pooling = settings.pooling
        self.score = nn.Linear(width, 1) if settings.pooling == "attention" else None
        self.table = TableEmbedding(inputs)
        self.head = nn.Linear(width + self.table.width, inputs.num_outputs)

    def forward(self, batch: Batch, key_B: Tensor | None = None) -> Tensor:
        """Outputs [B, K]: logits, or the standardized value."""
        x_BTH = _over_steps(self.input_dropout, batch["sequence"], key_B)
        length_B = batch["length"].clamp(min=1)
        # float32 whatever the precision: rounding errors add up over the steps
        with torch.autocast(x_BTH.device.type, enabled=False):
            x_BTH = x_BTH.to(self.head.weight.dtype)
            for layer, dropout in zip(self.layers, self.dropouts, strict=True):
                # packed: no layer sees a step of padding, in either direction
                packed = pack_padded_sequence(x_BTH, length_B.cpu(), batch_first=True, enforce_sorted=False)
                packed, state = layer(packed)
                x_BTH, _ = pad_packed_sequence(packed, batch_first=True, total_length=x_BTH.shape[1])
                x_BTH = _over_steps(dropout, x_BTH, key_B)
            last_DBH = state[0] if isinstance(state, tuple) else state
            if self.pooling == "last":
                x_BH = self.dropouts[-1](torch.cat(list(last_DBH), dim=1), key_B)
            else:
                x_BH = self._pooled(x_BTH, length_B)
        return self.head(torch.cat([x_BH, *self.table(batch)], dim=1))

    def _pooled(self, x_BTH: Tensor, length_B: Tensor) -> Tensor:
        """One vector a row [B, H] from the steps within its length."""
        within_BT = steps_within(length_B, x_BTH.shape[1])
        if self.score is None:
            return pooled_over_steps(x_BTH, within_BT, self.pooling)
        weight_BT1 = self.score(x_BTH).masked_fill(~within_BT[:, :, None], -torch.inf).softmax(dim=1)
        return (x_BTH * weight_BT1).sum(1)


def _over_steps(dropout: nn.Module, x_BTH: Tensor, key_B: Tensor | None) -> Tensor:
    """Dropout of features [B, H], the same at every step."""
    return dropout(x_BTH.transpose(1, 2), key_B).transpose(1, 2)


def initialize(layer: nn.RNNBase) -> None:
    """Orthogonal recurrent weights, gate by gate (Saxe et al. 2014); a cell's forget gate opens with a bias of 1 (Gers
    et al. 2000; Jozefowicz et al. 2015, section 3.2).
    """
    for name, parameter in layer.named_parameters():
        if name.startswith("weight_hh"):
            for gate_HH in parameter.data.split(layer.hidden_size):
                nn.init.orthogonal_(gate_HH)
        elif name.startswith("bias"):
            nn.init.zeros_(parameter)
            if isinstance(layer, nn.LSTM) and name.startswith("bias_ih"):
                parameter.data[layer.hidden_size : 2 * layer.hidden_size] = 1.0  # order of gates: i, f, g, o
