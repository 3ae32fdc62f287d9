"""Text generator: the next token from those before it, by a Transformer or an LSTM behind one setting.

Shapes: B rows, T tokens, W width, V vocabulary.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raynn.dropout import LATER, Branch, PositionDropout, TokenDropout
from raynn.errors import JobError
from raynn.networks.inputs import Batch
from raynn.networks.layers import exactly
from raynn.networks.recurrent import initialize
from raynn.networks.transformer import Transformer
from raynn.preprocessing import InputSpec
from raynn.regularization import RegularizationSettings
from raynn.settings import Settings

Size = Annotated[int, Field(ge=1)]
LstmState = tuple[tuple[Tensor, Tensor] | None, ...]  # a layer's hidden state and cell, each [1, B, W]


class TextGeneratorSettings(Settings):
    """`transformer` sees a window of tokens; `lstm` remembers what it has read, however long ago."""

    kind: Literal["text_generator"]
    architecture: Literal["transformer", "lstm"] = "transformer"
    width: Annotated[Size, Field(description="features of a token, in every layer")] = 256
    layers: Size = 6
    heads: Annotated[Size, Field(description="of the transformer's attention; each has an even share of the width")] = 4
    tied: Annotated[
        bool,
        Field(description="one matrix for the tokens read and written (Press & Wolf 2017): for large vocabularies"),
    ] = False


class Lstm(nn.Module):
    """LSTM layers, each beside a shortcut and behind a normalization, so that many can be stacked."""

    def __init__(
        self, width: int, num_layers: int, dropout: float, place: int, locked: float = 0.0, depth: float = 0.0
    ) -> None:
        super().__init__()
        self.cells = nn.ModuleList(nn.LSTM(width, width, batch_first=True) for _ in range(num_layers))
        for cell in self.cells:
            assert isinstance(cell, nn.LSTM)
            initialize(cell)
        self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(num_layers + 1))
        self.dropouts = nn.ModuleList(PositionDropout(dropout, width, place + i) for i in range(num_layers))
        self.branches = nn.ModuleList(Branch(locked, depth, width, i, num_layers) for i in range(num_layers))

    def forward(self, x_BTW: Tensor, key_B: Tensor | None = None) -> Tensor:
        """Features [B, T, W] of each token and those before it."""
        return self._run(x_BTW, key_B, self.start(x_BTW.shape[0]))[0]

    def start(self, num_rows: int) -> LstmState:
        """Nothing seen yet."""
        return (None,) * len(self.cells)

    def step(self, x_BTW: Tensor, state: LstmState) -> tuple[Tensor, LstmState]:
        """The features of the next tokens, and the state after them."""
        return self._run(x_BTW, None, state)

    def _run(self, x_BTW: Tensor, key_B: Tensor | None, state: LstmState) -> tuple[Tensor, LstmState]:
        after = []
        with exactly(x_BTW):
            parts = zip(self.cells, self.norms, self.dropouts, self.branches, state, strict=False)
            for cell, norm, dropout, branch, before in parts:
                y_BTW, now = cell(norm(x_BTW), before)
                x_BTW = x_BTW + branch(dropout(y_BTW, key_B), key_B)
                after.append(now)
            return self.norms[-1](x_BTW), tuple(after)


class TextGenerator(nn.Module):
    """Embedded tokens, layers that see no later one, and a linear head.

    `forward` is for whole windows, in training; `start` and `step` continue texts of any length (`LanguageModel` of
    raynn.generation).
    """

    def __init__(
        self, settings: TextGeneratorSettings, inputs: InputSpec, regularization: RegularizationSettings
    ) -> None:
        super().__init__()
        width, dropout = settings.width, regularization.dropout
        self.embedding = nn.Embedding(inputs.vocabulary_size, width)
        self.input_dropout = PositionDropout(regularization.input_dropout, width, 0, "input_dropout")
        self.embedding_dropout = TokenDropout(
            regularization.embedding_dropout, inputs.vocabulary_size, LATER, "embedding_dropout"
        )
        locked, depth = regularization.locked_dropout, regularization.stochastic_depth
        self.layers: Transformer | Lstm
        if settings.architecture == "transformer":
            size = (width, settings.layers, settings.heads, inputs.window)
            self.layers = Transformer(*size, dropout, place=1, locked=locked, depth=depth)
        else:
            self.layers = Lstm(width, settings.layers, dropout, 1, locked, depth)
        self.head = None if settings.tied else nn.Linear(width, inputs.vocabulary_size, bias=False)
        # so small that the first logits are nearly equal, and even a token's product with itself is about 1
        written_VW = self.embedding.weight if self.head is None else self.head.weight
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(written_VW, std=1.0 / width)

    def forward(self, batch: Batch, key_B: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] of what comes after each of the first T of `tokens` [B, T + 1]."""
        tokens_BT = batch["tokens"][:, :-1]
        x_BTW = self.embedding_dropout(self._embedded(tokens_BT), tokens_BT, key_B)
        x_BTW = self.input_dropout(x_BTW, key_B)
        return self._logits(self.layers(x_BTW, key_B))

    def start(self, num_rows: int) -> Any:
        """The state of texts of which nothing has been read."""
        return self.layers.start(num_rows)

    def step(self, tokens_BT: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits [B, T, V] of what comes after each of the next tokens, and the state after them."""
        x_BTW, state = self.layers.step(self._embedded(tokens_BT), state)
        return self._logits(x_BTW), state

    def _embedded(self, tokens_BT: Tensor) -> Tensor:
        """Of mean 0 and variance 1, so that the embedding's small weights, which learn fast, count in full."""
        x_BTW = self.embedding(tokens_BT)
        return F.layer_norm(x_BTW, x_BTW.shape[-1:])

    def _logits(self, x_BTW: Tensor) -> Tensor:
        return F.linear(x_BTW, self.embedding.weight) if self.head is None else self.head(x_BTW)


def build(settings: TextGeneratorSettings, inputs: InputSpec, regularization: RegularizationSettings) -> nn.Module:
    """The network for these inputs.

    Raises:
        JobError: there is no text, or the heads do not divide the width into even parts.
    """
    if not inputs.vocabulary_size or not inputs.window:
        raise JobError(
            "network.kind = 'text_generator' needs a text column or text files, and the features have none; "
            "use network.kind: feedforward for a table"
        )
    if settings.architecture == "transformer" and settings.width % (2 * settings.heads):
        raise JobError(_uneven(settings.width, settings.heads))
    return TextGenerator(settings, inputs, regularization)


def _uneven(width: int, heads: int) -> str:
    fitting = [n for n in range(1, width // 2 + 1) if width % (2 * n) == 0]
    by_heads = f"set heads to {min(fitting, key=lambda n: abs(n - heads))}, or " if fitting else "set "
    wider = -(-width // (2 * heads)) * 2 * heads
    return (
        f"network.heads = {heads} must divide network.width = {width} into parts of an even size, as rotary positions "
        f"turn features in pairs; {by_heads}width to {wider}"
    )
