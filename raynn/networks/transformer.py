"""A stack of causal Transformer layers: attention that sees no later token, rotary positions, a memory of the past.

Shapes: B rows, T tokens now, S tokens before and now, W width, A attention heads, D features of a head (W = A * D).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raynn.dropout import Branch, PositionDropout

ROTARY_BASE = 10_000.0
HIDDEN_FACTOR = 4  # a block's hidden units, in widths
Past = tuple[Tensor, Tensor]  # a block's keys and values, each [B, A, S, D]
Rotation = tuple[Tensor, Tensor]  # cosines and sines, each [T, D]


@dataclass(frozen=True)
class TransformerState:
    """What a stack keeps of the tokens before: its inputs, and every block's keys and values (None: no tokens)."""

    x_BSW: Tensor
    pasts: tuple[Past | None, ...]


class Transformer(nn.Module):
    """Blocks one after the other, and a normalization."""

    def __init__(
        self,
        width: int,
        num_layers: int,
        num_heads: int,
        window: int,
        dropout: float,
        place: int,
        locked: float = 0.0,
        depth: float = 0.0,
    ) -> None:
        super().__init__()
        self.window, self.head_width = window, width // num_heads
        places = itertools.count(place)
        self.blocks = nn.ModuleList(
            Block(width, num_layers, num_heads, dropout, places, number, locked, depth) for number in range(num_layers)
        )
        self.norm = nn.LayerNorm(width, bias=False)

    def forward(self, x_BTW: Tensor, key_B: Tensor | None = None) -> Tensor:
        """Features [B, T, W] of each token and those before it."""
        angles = rotation(0, x_BTW.shape[1], self.head_width, x_BTW.device)
        for block in self.blocks:
            x_BTW, _ = block(x_BTW, angles, key_B)
        return self.norm(x_BTW)

    def start(self, num_rows: int) -> TransformerState:
        """No tokens yet."""
        nothing_B0W = self.norm.weight.new_zeros(num_rows, 0, len(self.norm.weight))
        return TransformerState(nothing_B0W, (None,) * len(self.blocks))

    def step(self, x_BTW: Tensor, state: TransformerState) -> tuple[Tensor, TransformerState]:
        """Features [B, T, W] of the next tokens, and the state with them.

        As in training, a token sees at most a window, whose positions count from 0. Once it is full, what follows
        starts anew from its last half: those keys and values are computed again, so that each token is read twice.
        Only dropping the oldest ones would leave keys and values that were computed with them in sight.
        """
        features = []
        while x_BTW.shape[1]:
            if state.x_BSW.shape[1] == self.window:
                half_BSW = state.x_BSW[:, self.window - self.window // 2 :]
                _, state = self._extended(half_BSW, self.start(len(half_BSW)))
            room = self.window - state.x_BSW.shape[1]
            y_BTW, state = self._extended(x_BTW[:, :room], state)
            features.append(y_BTW)
            x_BTW = x_BTW[:, room:]
        return torch.cat(features, dim=1), state

    def _extended(self, x_BTW: Tensor, state: TransformerState) -> tuple[Tensor, TransformerState]:
        """`step` within the window."""
        x_BSW = torch.cat([state.x_BSW, x_BTW], dim=1)
        angles = rotation(state.x_BSW.shape[1], x_BTW.shape[1], self.head_width, x_BTW.device)
        pasts = []
        for block, past in zip(self.blocks, state.pasts, strict=True):
            x_BTW, past = block(x_BTW, angles, None, past)
            pasts.append(past)
        return self.norm(x_BTW), TransformerState(x_BSW, tuple(pasts))


class Block(nn.Module):
    """Attention, then two dense layers, each behind a normalization and beside a shortcut (Xiong et al. 2020, fig. 1b).

    There are no biases. Dense layers that end in the sum start smaller, by the root of how many there are (Radford et
    al. 2019, section 2.3).
    """

    def __init__(
        self,
        width: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
        places: Iterator[int],
        number: int = 0,
        locked: float = 0.0,
        depth: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.query_key_value = dense(width, 3 * width)
        self.attended = dense(width, width, 2 * num_layers)
        self.attention_dropout = PositionDropout(dropout, width, next(places))
        self.hidden_norm = nn.LayerNorm(width, bias=False)
        self.hidden = dense(width, HIDDEN_FACTOR * width)
        self.output = dense(HIDDEN_FACTOR * width, width, 2 * num_layers)
        self.output_dropout = PositionDropout(dropout, width, next(places))
        self.attention_branch = Branch(locked, depth, width, 2 * number, 2 * num_layers)
        self.output_branch = Branch(locked, depth, width, 2 * number + 1, 2 * num_layers)

    def forward(
        self, x_BTW: Tensor, angles: Rotation, key_B: Tensor | None, past: Past | None = None
    ) -> tuple[Tensor, Past]:
        """Features [B, T, W] of tokens at these angles, and the keys and values so far."""
        num_rows, num_tokens, width = x_BTW.shape
        parts = self.query_key_value(self.attention_norm(x_BTW))
        parts = parts.view(num_rows, num_tokens, 3 * self.num_heads, width // self.num_heads).transpose(1, 2)
        turning, v_BASD = parts.split([2 * self.num_heads, self.num_heads], dim=1)
        q_BATD, k_BASD = turned(turning, angles).chunk(2, dim=1)
        if past is not None:
            k_BASD, v_BASD = torch.cat([past[0], k_BASD], dim=2), torch.cat([past[1], v_BASD], dim=2)
        y_BATD = causal_attention(q_BATD, k_BASD, v_BASD, whole=past is None)
        y_BTW = self.attended(y_BATD.transpose(1, 2).reshape(x_BTW.shape))
        x_BTW = x_BTW + self.attention_branch(self.attention_dropout(y_BTW, key_B), key_B)
        y_BTW = self.output(F.gelu(self.hidden(self.hidden_norm(x_BTW))))
        return x_BTW + self.output_branch(self.output_dropout(y_BTW, key_B), key_B), (k_BASD, v_BASD)


def dense(width_in: int, width_out: int, num_summed: int = 1) -> nn.Linear:
    """A linear map without bias; `num_summed` of them together give outputs of the inputs' variance."""
    layer = nn.Linear(width_in, width_out, bias=False)
    nn.init.normal_(layer.weight, std=(width_in * num_summed) ** -0.5)
    return layer


def rotation(first: int, num_tokens: int, head_width: int, device: torch.device) -> Rotation:
    """Of the positions from `first` on (Su et al. 2021, section 3.2.2, eq. 15)."""
    rate_D = ROTARY_BASE ** -(torch.arange(0, head_width, 2, device=device) / head_width)
    angle_TD = torch.arange(first, first + num_tokens, device=device)[:, None] * rate_D
    return torch.cat([angle_TD.cos()] * 2, dim=1), torch.cat([-angle_TD.sin(), angle_TD.sin()], dim=1)


def turned(x_BATD: Tensor, angles: Rotation) -> Tensor:
    """Each pair of features (d, d + D / 2) turned by its position's angle (eq. 34): the product of a turned query and
    a turned key depends on how far apart they stand, and not on where.
    """
    cos_TD, sin_TD = (part.to(x_BATD.dtype) for part in angles)
    return x_BATD * cos_TD + x_BATD.roll(x_BATD.shape[-1] // 2, -1) * sin_TD


def causal_attention(q_BATD: Tensor, k_BASD: Tensor, v_BASD: Tensor, whole: bool = True) -> Tensor:
    """Attention (Vaswani et al. 2017, eq. 1) of the last T of S tokens, each to itself and those before it.

    `whole` says that T is S.
    """
    if not whole:
        num_new, num_all = q_BATD.shape[2], k_BASD.shape[2]
        seen_TS = torch.ones(num_new, num_all, dtype=torch.bool, device=q_BATD.device).tril(num_all - num_new)
        return F.scaled_dot_product_attention(q_BATD, k_BASD, v_BASD, attn_mask=seen_TS)
    if q_BATD.device.type == "cpu" and q_BATD.dtype == torch.bfloat16 and q_BATD.requires_grad:
        # written out, as the fused kernel's backward pass takes three times as long in 16 bits on a CPU
        q, k, v = q_BATD.flatten(0, 1), k_BASD.flatten(0, 1), v_BASD.flatten(0, 1)
        unseen_TT = q.new_full((q.shape[1], q.shape[1]), -math.inf).triu(1)
        weight = torch.baddbmm(unseen_TT, q, k.transpose(1, 2), alpha=q.shape[2] ** -0.5).softmax(-1)
        return torch.bmm(weight, v).view(q_BATD.shape)
    return F.scaled_dot_product_attention(q_BATD, k_BASD, v_BASD, is_causal=True)
