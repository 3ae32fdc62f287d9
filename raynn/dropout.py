"""Units, channels, tokens, positions and whole blocks silenced at random while training.

What is silenced is a function of the row's key and of the layer's place, not of a generator's state: the same for any
number of workers and after a resume. Each layer has the strength `p` of one `knob`, which a ramp moves.

Shapes: B rows of a batch, T positions of a row, C channels, H features, V tokens, E width of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raynn.randomness import column_salts, position_keys, random_bits, random_bytes
from raynn.regularization import RegularizationSettings

# Knobs that came later count their places from here, so that they move no mask of those before.
LATER = 1 << 12


class Dropout(nn.Module):
    """Silences features with probability p and scales the rest by 1 / (1 - p) (Srivastava et al. 2014, section 4).

    Which ones is a function of the row's key and of this layer's place, not of a generator's state: the same for any
    number of workers and after a resume. On a map [B, C, ...] whole channels are silenced (Tompson et al. 2015).
    """

    salt_H: Tensor

    def __init__(self, p: float, num_features: int, place: int, knob: str = "dropout") -> None:
        super().__init__()
        self.p, self.knob = p, knob
        self.register_buffer("salt_H", column_salts(place, num_features), persistent=False)

    def forward(self, x: Tensor, key_B: Tensor | None) -> Tensor:
        """`x` [B, H] or [B, C, ...]; without keys, or in evaluation, the identity."""
        if self.p == 0.0 or not self.training or key_B is None:
            return x
        keep_BH = random_bits(key_B, self.salt_H) >= int(self.p * 2**31)
        scale_BH = keep_BH.to(x.dtype).mul_(1.0 / (1.0 - self.p))
        return x * scale_BH.reshape(*scale_BH.shape, *([1] * (x.dim() - 2)))


class TokenDropout(nn.Module):
    """Silences whole tokens, each wherever a row holds it (Gal & Ghahramani 2016, section 4.2: word types, so that no
    other occurrence gives it away), and scales the rest by 1 / (1 - p). A function of row, token and place.
    """

    salt_V: Tensor

    def __init__(self, p: float, vocabulary_size: int, place: int, knob: str = "input_dropout") -> None:
        super().__init__()
        self.p, self.knob = p, knob
        self.register_buffer("salt_V", column_salts(place, vocabulary_size), persistent=False)

    def forward(self, x_BTE: Tensor, tokens_BT: Tensor, key_B: Tensor | None) -> Tensor:
        """`x_BTE`, the vectors of `tokens_BT`; without keys, or in evaluation, as they are."""
        if self.p == 0.0 or not self.training or key_B is None:
            return x_BTE
        keep_BT = random_bits(key_B, self.salt_V[tokens_BT.long()]) >= int(self.p * 2**31)
        return x_BTE * keep_BT.to(x_BTE.dtype).mul_(1.0 / (1.0 - self.p))[:, :, None]


class PositionDropout(nn.Module):
    """Dropout whose mask is another at every position of a row: a function of row, position, feature and place.

    The share is rounded to whole 256ths, as a byte decides: a quarter of the random numbers, hence of the time.
    """

    salt_N: Tensor

    def __init__(self, p: float, num_features: int, place: int, knob: str = "dropout") -> None:
        super().__init__()
        self.p, self.knob = p, knob
        self.register_buffer("salt_N", column_salts(place, -(-num_features // 4)), persistent=False)

    def forward(self, x_BTH: Tensor, key_B: Tensor | None) -> Tensor:
        """`x`; without keys, or in evaluation, the identity."""
        silenced = min(255, round(self.p * 256))  # of 256 values of a byte
        if silenced == 0 or not self.training or key_B is None:
            return x_BTH
        key_BT = position_keys(key_B, x_BTH.shape[1])
        byte_BTH = random_bytes(key_BT.flatten(), self.salt_N).view(*key_BT.shape, -1)[:, :, : x_BTH.shape[2]]
        return x_BTH * (byte_BTH >= silenced).to(x_BTH.dtype).mul_(256 / (256 - silenced))


class LockedDropout(nn.Module):
    """Dropout of features whose mask is the same at all positions of a row (Gal & Ghahramani 2016, section 4.1)."""

    def __init__(self, p: float, num_features: int, place: int, knob: str = "dropout") -> None:
        super().__init__()
        self.dropout = Dropout(p, num_features, place, knob)

    def forward(self, x_BTH: Tensor, key_B: Tensor | None) -> Tensor:
        """`x`; without keys, or in evaluation, the identity."""
        return self.dropout(x_BTH.transpose(1, 2), key_B).transpose(1, 2)


class AlphaDropout(nn.Module):
    """Sets features of selu units to their negative limit a' with probability p, then restores mean 0 and variance 1:
    a (x d + a' (1 - d)) + b (Klambauer et al. 2017, section 3, with q = 1 - p).
    """

    LIMIT = -1.6732632423543772 * 1.0507009873554805  # -alpha * lambda of selu

    salt_H: Tensor

    def __init__(self, p: float, num_features: int, place: int) -> None:
        super().__init__()
        self.p, self.knob = p, "alpha_dropout"
        self.register_buffer("salt_H", column_salts(LATER + place, num_features), persistent=False)

    def forward(self, x_BH: Tensor, key_B: Tensor | None) -> Tensor:
        """`x`; without keys, or in evaluation, the identity."""
        if self.p == 0.0 or not self.training or key_B is None:
            return x_BH
        keep_BH = random_bits(key_B, self.salt_H) >= int(self.p * 2**31)
        scale = (1.0 - self.p + self.LIMIT**2 * self.p * (1.0 - self.p)) ** -0.5
        return torch.where(keep_BH, x_BH, self.LIMIT) * scale - scale * self.p * self.LIMIT


class StochasticDepth(nn.Module):
    """Leaves a residual block out for some rows, and scales it for the others, so that the mean stays (Huang et al.
    2016, eq. 2, a row at a time). Block l of L is left out with probability p l / L (their eq. 4, p = 1 - p_L).
    """

    salt_1: Tensor

    def __init__(self, p: float, block: int, num_blocks: int) -> None:
        super().__init__()
        self.p, self.knob, self.depth = p, "stochastic_depth", (block + 1) / num_blocks
        self.register_buffer("salt_1", column_salts(2 * LATER + block, 1), persistent=False)

    def forward(self, x: Tensor, key_B: Tensor | None) -> Tensor:
        """What the block adds, `x` [B, ...]; without keys, or in evaluation, the identity."""
        p = self.p * self.depth
        if p == 0.0 or not self.training or key_B is None:
            return x
        keep_B = random_bits(key_B, self.salt_1)[:, 0] >= int(p * 2**31)
        return x * (keep_B.to(x.dtype) / (1.0 - p)).reshape(-1, *([1] * (x.dim() - 1)))


def set_strengths(model: nn.Module, knobs: RegularizationSettings) -> None:
    """Gives each layer the strength that its knob has now."""
    for module in model.modules():
        if isinstance(knob := getattr(module, "knob", None), str):
            module.p = getattr(knobs, knob)


class Branch(nn.Module):
    """What a layer adds to its shortcut, on the way there: features silenced at all positions alike, then the whole of
    it for some rows (stochastic depth).
    """

    def __init__(self, locked: float, depth: float, num_features: int, block: int, num_blocks: int) -> None:
        super().__init__()
        self.locked = LockedDropout(locked, num_features, 3 * LATER + block, "locked_dropout")
        self.depth = StochasticDepth(depth, block, num_blocks)

    def forward(self, x_BTH: Tensor, key_B: Tensor | None) -> Tensor:
        """`x`; without keys, or in evaluation, the identity."""
        return self.depth(self.locked(x_BTH, key_B), key_B)
