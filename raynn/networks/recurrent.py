"""What recurrent networks share: their settings, the stack of layers, pooling over time, and the next token of a text.

Shapes: B rows, T steps, F channels, H hidden units of a layer (both directions), K outputs, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raynn.dropout import LATER, Dropout, LockedDropout, TokenDropout
from raynn.errors import JobError
from raynn.mixing import MixingPoint
from raynn.networks.inputs import Batch, TableEmbedding, TokenEmbedding
from raynn.networks.layers import exactly, pooled_over_steps, steps_within
from raynn.networks.zoneout import Zoneout
from raynn.penalties import StatePenalty
from raynn.preprocessing import InputSpec
from raynn.regularization import RegularizationSettings
from raynn.settings import Settings

Width = Annotated[int, Field(ge=1)]
Cell = Callable[[int], nn.RNNBase]  # one layer in one direction, for inputs of that width
States = tuple[Any, ...]  # of each layer after the tokens read; None before the first


class RecurrentSettings(Settings):
    """The settings that every recurrent network has; each type says its `kind`."""

    kind: str
    hidden: Annotated[Width, Field(description="units a layer and direction")] = 128
    layers: Width = 1
    bidirectional: bool = False
    embedding: Annotated[Width, Field(description="width of a token's vector")] = 64
    pooling: Annotated[
        Literal["last", "mean", "max", "attention"],
        Field(description="from all steps to one vector; last: each direction's state after its last step"),
    ] = "last"
    segment: Annotated[
        Width, Field(description="steps of a sequence that are read at once (Lin et al. 2023, SegRNN, section 4.1)")
    ] = 1
    initialization: Annotated[
        Literal["orthogonal", "uniform"],
        Field(description="of recurrent weights; uniform: torch's own, small, which soon forget what they read"),
    ] = "orthogonal"


class Layer(nn.Module):
    """Reads every sequence forward and, of two ways, backward from the last step that is there.

    What stands behind a sequence is read after it and then left out. torch's packed sequences read less and take longer
    on a CPU, the more the longer they are: a training step of an LSTM of 128 units over 64 sequences of 5 to 100 steps
    took 155 ms packed and 36 ms so, of 5 to 500 steps 2,671 and 715 ms (2 cores, one thread).
    """

    def __init__(
        self, cell: Cell, width: int, ways: int, orthogonal: bool, knobs: RegularizationSettings, place: int
    ) -> None:
        super().__init__()
        cells = [cell(width) for _ in range(ways)]
        if orthogonal:
            for way in cells:
                initialize(way)
        self.ways = nn.ModuleList(cells)
        self.zoneouts = nn.ModuleList(
            Zoneout(knobs, way.hidden_size, ways * place + number) for number, way in enumerate(cells)
        )

    def forward(self, x_BTH: Tensor, length_B: Tensor, key_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features [B, T, H] of both ways side by side, and each way's last [B, H]."""
        features, lasts = [], []
        for place, (way, zoneout) in enumerate(zip(self.ways, self.zoneouts, strict=True)):
            y_BTH, _ = zoneout(way, _reversed(x_BTH, length_B) if place else x_BTH, None, key_B)
            lasts.append(_steps_at(y_BTH, length_B[:, None] - 1).squeeze(1))
            features.append(_reversed(y_BTH, length_B) if place else y_BTH)
        return torch.cat(features, dim=2), torch.cat(lasts, dim=1)


def _reversed(x_BTH: Tensor, length_B: Tensor) -> Tensor:
    """The steps that are there in reverse, the padding where it was."""
    place_T = torch.arange(x_BTH.shape[1], device=x_BTH.device)
    back_BT = length_B[:, None] - 1 - place_T
    return _steps_at(x_BTH, torch.where(back_BT >= 0, back_BT, place_T))


def _steps_at(x_BTH: Tensor, place_BN: Tensor) -> Tensor:
    """Those steps of each row [B, N, H]."""
    return x_BTH.gather(1, place_BN[:, :, None].expand(-1, -1, x_BTH.shape[2]))


class Recurrent(nn.Module):
    """Layers over the steps of a sequence or the tokens of a text, pooling, table columns beside it, and a linear head.

    Dropout silences a feature of a row at all steps alike (Gal & Ghahramani 2016, section 4.1).
    """

    def __init__(
        self, cell: Cell, settings: RecurrentSettings, inputs: InputSpec, regularization: RegularizationSettings
    ) -> None:
        super().__init__()
        places = itertools.count()
        self.tokens: TokenEmbedding | None = None
        if inputs.vocabulary_size:
            width = settings.embedding
            self.tokens = TokenEmbedding(inputs.vocabulary_size, width, regularization.input_dropout, next(places))
        elif inputs.sequence_TC:
            width = inputs.sequence_TC[1] * settings.segment
            self.input_dropout = LockedDropout(regularization.input_dropout, width, next(places), "input_dropout")
        else:
            raise JobError(
                f"network.kind = {settings.kind!r} needs a sequence or a text column, and the features have neither; "
                "use network.kind: feedforward for a table, cnn for images"
            )
        self.segment = settings.segment
        ways = 2 if settings.bidirectional else 1
        self.layers, self.dropouts = nn.ModuleList(), nn.ModuleList()
        for number in range(settings.layers):
            orthogonal = settings.initialization == "orthogonal"
            self.layers.append(Layer(cell, width, ways, orthogonal, regularization, number))
            width = settings.hidden * ways
            self.dropouts.append(Dropout(regularization.dropout, width, next(places)))
        self.state_penalty = StatePenalty(regularization.activation_penalty, regularization.temporal_activation_penalty)
        self.pooling = settings.pooling
        self.score = nn.Linear(width, 1, bias=False) if settings.pooling == "attention" else None
        self.table = TableEmbedding(inputs)
        self.mixing_input, self.mixing, self.mixing_table = MixingPoint(), MixingPoint(), MixingPoint(last=True)
        self.head = nn.Linear(width + self.table.width, inputs.num_outputs)

    def forward(self, batch: Batch, key_B: Tensor | None = None) -> Tensor:
        """Outputs [B, K]: logits, or the standardized value."""
        if self.tokens is not None:
            x_BTH, length_B = self.tokens(batch["tokens"], key_B), batch["length"]
        else:
            x_BTH, length_B = segmented(batch["sequence"], batch["length"], self.segment)
            x_BTH = self.input_dropout(x_BTH, key_B)
        length_B = length_B.clamp(min=1)
        with exactly(x_BTH):
            x_BTH = self.mixing_input(x_BTH.to(self.head.weight.dtype))
            for layer, dropout in zip(self.layers, self.dropouts, strict=True):
                states_BTH, last_BH = layer(x_BTH, length_B, key_B)
                x_BTH = _over_steps(dropout, states_BTH, key_B)
            self.state_penalty(states_BTH, x_BTH, steps_within(length_B, x_BTH.shape[1]))
            if self.pooling == "last":
                x_BH = self.dropouts[-1](last_BH, key_B)
            else:
                x_BH = self._pooled(x_BTH, length_B)
        table = map(self.mixing_table, self.table(batch))
        return self.head(torch.cat([self.mixing(x_BH), *table], dim=1))

    def _pooled(self, x_BTH: Tensor, length_B: Tensor) -> Tensor:
        """One vector a row [B, H] from the steps within its length."""
        within_BT = steps_within(length_B, x_BTH.shape[1])
        if self.score is None:
            return pooled_over_steps(x_BTH, within_BT, self.pooling)
        weight_BT1 = self.score(x_BTH).masked_fill(~within_BT[:, :, None], -torch.inf).softmax(dim=1)
        return (x_BTH * weight_BT1).sum(1)


def segmented(x_BTF: Tensor, length_B: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Segments of `steps` steps side by side [B, T / steps, steps * F], T / steps rounded up, and how many each row has
    [B]; one that is not full ends in zeros.
    """
    if steps == 1:
        return x_BTF, length_B
    x_BTF = x_BTF.masked_fill(~steps_within(length_B, x_BTF.shape[1])[:, :, None], 0.0)
    x_BTF = F.pad(x_BTF, (0, 0, 0, -x_BTF.shape[1] % steps))
    return x_BTF.unflatten(1, (-1, steps)).flatten(2), (length_B + steps - 1) // steps


class RecurrentLanguageModel(nn.Module):
    """Embedded tokens, layers that remember those before, and a linear head at every step (Mikolov et al. 2010,
    section 2, with embeddings and several layers).

    Dropout silences a feature of a row at all steps alike, as above. Padding stands behind a text, where no token that
    is scored looks. `start` and `step` continue texts.
    """

    def __init__(
        self, cell: Cell, settings: RecurrentSettings, inputs: InputSpec, regularization: RegularizationSettings
    ) -> None:
        super().__init__()
        if settings.bidirectional:
            raise JobError(
                "network.bidirectional = true lets a language model read the tokens that it is to predict; set it to "
                "false"
            )
        places = itertools.count()
        self.embedding = nn.Embedding(inputs.vocabulary_size, settings.embedding)
        self.input_dropout = LockedDropout(
            regularization.input_dropout, settings.embedding, next(places), "input_dropout"
        )
        self.embedding_dropout = TokenDropout(
            regularization.embedding_dropout, inputs.vocabulary_size, LATER, "embedding_dropout"
        )
        width = settings.embedding
        self.layers, self.dropouts, self.zoneouts = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for number in range(settings.layers):
            layer = cell(width)
            if settings.initialization == "orthogonal":
                initialize(layer)
            self.layers.append(layer)
            width = settings.hidden
            self.dropouts.append(LockedDropout(regularization.dropout, width, next(places)))
            self.zoneouts.append(Zoneout(regularization, width, number))
        self.state_penalty = StatePenalty(regularization.activation_penalty, regularization.temporal_activation_penalty)
        self.head = nn.Linear(width, inputs.vocabulary_size)

    def forward(self, batch: Batch, key_B: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] of the token after each of the first T of `tokens` [B, T + 1]."""
        tokens_BT = batch["tokens"][:, :-1]
        within_BT = steps_within(batch["length"] - 1, tokens_BT.shape[1]) if self.training else None
        return self._run(tokens_BT, key_B, self.start(batch["tokens"].shape[0]), within_BT)[0]

    def start(self, num_rows: int) -> States:
        """The state of texts of which nothing has been read."""
        return (None,) * len(self.layers)

    def step(self, tokens_BT: Tensor, state: States) -> tuple[Tensor, States]:
        """Logits [B, T, V] of what comes after each of the next tokens, and the state after them."""
        return self._run(tokens_BT, None, state)

    def _run(
        self, tokens_BT: Tensor, key_B: Tensor | None, before: States, within_BT: Tensor | None = None
    ) -> tuple[Tensor, States]:
        x_BTH = self.embedding_dropout(self.embedding(tokens_BT), tokens_BT, key_B)
        x_BTH = self.input_dropout(x_BTH, key_B)
        after = []
        with exactly(x_BTH):
            parts = zip(self.layers, self.dropouts, self.zoneouts, before, strict=True)
            for layer, dropout, zoneout, state in parts:
                states_BTH, state = zoneout(layer, x_BTH, state, key_B)
                x_BTH = dropout(states_BTH, key_B)
                after.append(state)
            if within_BT is not None:
                self.state_penalty(states_BTH, x_BTH, within_BT)
        return self.head(x_BTH), tuple(after)


def build_recurrent(
    cell: Cell, settings: RecurrentSettings, inputs: InputSpec, regularization: RegularizationSettings
) -> nn.Module:
    """The network for these inputs.

    Raises:
        JobError: no feature is a sequence or text, a text is to be read in segments, or a language model in
            both directions.
    """
    if settings.segment > 1 and not inputs.sequence_TC:
        raise JobError(
            f"network.segment = {settings.segment} is of sequences of numbers, and the features have none; leave it out"
        )
    network = RecurrentLanguageModel if inputs.task == "language_modeling" else Recurrent
    return network(cell, settings, inputs, regularization)


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
