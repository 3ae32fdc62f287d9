"""Every knob against overfitting, in one table for all networks: the `regularization` section.

Shapes: B rows of a batch, T positions of a row, C channels, H features, V tokens, E width of a token.
"""

from __future__ import annotations

import copy
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from raynn.randomness import column_salts, position_keys, random_bits, random_bytes
from raynn.settings import Settings

Probability = Annotated[float, Field(ge=0.0, lt=1.0)]


class RegularizationSettings(Settings):
    """What keeps the network from learning its training rows by heart. 0 turns a knob off."""

    dropout: Annotated[Probability, Field(description="share of hidden units silenced, a row at a time")] = 0.0
    input_dropout: Annotated[
        Probability, Field(description="share of inputs (of text: of different tokens) silenced, a row at a time")
    ] = 0.0
    weight_decay: Annotated[
        float, Field(ge=0.0, description="decoupled decay of weight matrices; biases and norms exempt")
    ] = 1e-4
    label_smoothing: Annotated[Probability, Field(description="share of the target spread over all classes")] = 0.0
    horizontal_flip: Annotated[Probability, Field(description="share of training images mirrored left to right")] = 0.0
    crop_padding: Annotated[
        int, Field(ge=0, description="largest shift of a training image in pixels, each way; borders are reflected")
    ] = 0
    gradient_clip_norm: Annotated[
        float | None, Field(gt=0.0, description="largest Euclidean norm of the whole gradient")
    ] = None
    ema_decay: Annotated[
        float | None,
        Field(gt=0.0, lt=1.0, description="weights averaged over steps, with this decay, are scored and kept"),
    ] = None


class Dropout(nn.Module):
    """Silences features with probability p and scales the rest by 1 / (1 - p) (Srivastava et al. 2014, section 4).

    Which ones is a function of the row's key and of this layer's place, not of a generator's state: the same for any
    number of workers and after a resume. On a map [B, C, ...] whole channels are silenced (Tompson et al. 2015).
    """

    salt_H: Tensor

    def __init__(self, p: float, num_features: int, place: int) -> None:
        super().__init__()
        self.p = p
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

    def __init__(self, p: float, vocabulary_size: int, place: int) -> None:
        super().__init__()
        self.p = p
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

    def __init__(self, p: float, num_features: int, place: int) -> None:
        super().__init__()
        self.silenced = min(255, round(p * 256))  # of 256 values of a byte
        self.register_buffer("salt_N", column_salts(place, -(-num_features // 4)), persistent=False)

    def forward(self, x_BTH: Tensor, key_B: Tensor | None) -> Tensor:
        """`x`; without keys, or in evaluation, the identity."""
        if self.silenced == 0 or not self.training or key_B is None:
            return x_BTH
        key_BT = position_keys(key_B, x_BTH.shape[1])
        byte_BTH = random_bytes(key_BT.flatten(), self.salt_N).view(*key_BT.shape, -1)[:, :, : x_BTH.shape[2]]
        return x_BTH * (byte_BTH >= self.silenced).to(x_BTH.dtype).mul_(256 / (256 - self.silenced))


def decayed_and_exempt(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that weight decay shrinks (matrices, kernels), and the rest (biases, norms, embeddings)."""
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            named_so = name == "weight" or name.startswith(("weight_ih", "weight_hh"))  # recurrent layers' own names
            shrinks = parameter.dim() >= 2 and named_so and not isinstance(module, nn.Embedding)
            (decayed if shrinks else exempt).append(parameter)
    return decayed, exempt


def clip_gradient_norm(model: nn.Module, max_norm: float | None) -> None:
    """Scales the whole gradient down to `max_norm` (Pascanu et al. 2013, algorithm 1); None leaves it alone."""
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)


class AveragedWeights:
    """An exponential moving average of a network's weights (Polyak & Juditsky 1992; as in Ho et al. 2020, appendix B).

    The decay grows from 1 / 11 to the one that was asked for as (1 + n) / (10 + n) over steps n, so that a short
    training is not dominated by the initial weights. Buffers, running statistics among them, are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay, self.num_steps = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """After a step of `model`."""
        self.num_steps += 1
        decay = min(self.decay, (1 + self.num_steps) / (10 + self.num_steps))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1.0 - decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"weights": self.model.state_dict(), "num_steps": self.num_steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes the place of what `to_dict` wrote."""
        self.model.load_state_dict(state["weights"])
        self.num_steps = state["num_steps"]
