"""Forecasts by any network of the table: a window of past steps becomes an ordinary sequence, and what is known of the
steps to come becomes numbers beside it. The network predicts all steps and targets at once (direct multi-step).

Nothing else of the steps to come is handed on: neither the target nor a covariate that is not known.

Shapes: B windows, W steps that are read, H steps to predict, T of either, K targets, F numbers and C categories of a
step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raynn.networks.inputs import Batch, embedding_width
from raynn.preprocessing import InputSpec
from raynn.randomness import column_salts, random_bits

MAX_ONE_HOT = 32  # codes of a category, above which it is embedded
PLACE = 1 << 16  # of the keys of channels; dropout layers count theirs from 0
EPSILON = 1e-5  # as in the authors' code of RevIN


class StepCodes(nn.Module):
    """Categories of steps as numbers: one-hot, the unknown code 0 as zeros, or embedded where there are many."""

    def __init__(self, cardinalities: tuple[int, ...]) -> None:
        super().__init__()
        self.cardinalities = cardinalities
        self.widths = [n - 1 if n <= MAX_ONE_HOT else embedding_width(n) for n in cardinalities]
        many = {str(i): nn.Embedding(n, self.widths[i]) for i, n in enumerate(cardinalities) if n > MAX_ONE_HOT}
        with torch.no_grad():
            for embedding in many.values():
                embedding.weight[0].zero_()
        self.embeddings = nn.ModuleDict(many)

    def forward(self, code_BTC: Tensor, column: int) -> Tensor:
        """Codes [B, T] of one column as [B, T, width]."""
        code_BT = code_BTC[:, :, column]
        if str(column) in self.embeddings:
            return self.embeddings[str(column)](code_BT)
        return F.one_hot(code_BT, self.cardinalities[column])[:, :, 1:]


class WindowNormalization(nn.Module):
    """Takes the level of each window away before the network, and gives it back after.

    none: as it is.
    last: less the last value (NLinear: Zeng et al. 2023, section 4).
    revin: less the mean, over the standard deviation, with a learned scale and shift of each target (Kim et al. 2022,
        section 3, eq. 1 to 3).
    """

    def __init__(self, kind: Literal["none", "last", "revin"], num_targets: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "revin":
            self.weight = nn.Parameter(torch.ones(num_targets))
            self.bias = nn.Parameter(torch.zeros(num_targets))

    def level(self, past_BWK: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale [B, 1, K] of every window."""
        if self.kind == "revin":
            variance_B1K, mean_B1K = torch.var_mean(past_BWK, dim=1, correction=0, keepdim=True)
            return mean_B1K, (variance_B1K + EPSILON).sqrt()
        last_B1K = past_BWK[:, -1:]
        return last_B1K if self.kind == "last" else torch.zeros_like(last_B1K), torch.ones_like(last_B1K)

    def normalized(self, x_BTK: Tensor, shift_B1K: Tensor, scale_B1K: Tensor) -> Tensor:
        """What the network sees."""
        x_BTK = (x_BTK - shift_B1K) / scale_B1K
        return x_BTK * self.weight + self.bias if self.kind == "revin" else x_BTK

    def restored(self, x_BTK: Tensor, shift_B1K: Tensor, scale_B1K: Tensor) -> Tensor:
        """The inverse, of what it predicts."""
        if self.kind == "revin":
            x_BTK = (x_BTK - self.bias) / (self.weight + EPSILON**2)
        return x_BTK * scale_B1K + shift_B1K


class Forecaster(nn.Module):
    """A network of the table between a window and its forecast.

    With `independent` channels each target is forecast from its own past alone, and the covariates, by the same weights
    (Nie et al. 2023, section 3.1).
    """

    known_numeric: Tensor
    salt_K: Tensor

    def __init__(
        self,
        build: Callable[[InputSpec], nn.Module],
        inputs: InputSpec,
        normalization: Literal["none", "last", "revin"] = "none",
        *,
        independent: bool = False,
    ) -> None:
        super().__init__()
        self.window, self.horizon, self.num_targets = inputs.window, inputs.horizon, inputs.num_targets
        self.independent = independent
        self.known_categorical = inputs.known_categorical
        self.codes = StepCodes(inputs.cardinalities)
        self.normalization = WindowNormalization(normalization, inputs.num_targets)
        self.register_buffer("known_numeric", torch.tensor(inputs.known_numeric, dtype=torch.int64), persistent=False)
        self.register_buffer("salt_K", column_salts(PLACE, inputs.num_targets), persistent=False)
        num_channels = 1 if independent else inputs.num_targets
        num_known = len(inputs.known_numeric) + sum(self.codes.widths[i] for i in inputs.known_categorical)
        self.network = build(
            InputSpec(
                num_numeric=inputs.horizon * num_known,
                quantile_bins=((),) * (inputs.horizon * num_known),
                sequence_TC=(inputs.window, num_channels + inputs.num_numeric + sum(self.codes.widths)),
                num_outputs=inputs.horizon * num_channels,
            )
        )

    def forward(self, batch: Batch, key_B: Tensor | None = None) -> Tensor:
        """Standardized values [B, H, K], from `target` [B, W + H, K], `numeric` [B, W + H, F] and `categorical`
        [B, W + H, C].
        """
        past_BWK = batch["target"][:, : self.window]
        level = self.normalization.level(past_BWK)
        x_BWK = self.normalization.normalized(past_BWK, *level)
        parts = self._covariates(batch)
        known = self._known(batch)
        if self.independent:
            num_targets = self.num_targets
            x_BWK = x_BWK.transpose(1, 2).reshape(-1, self.window, 1)
            parts = [part.repeat_interleave(num_targets, dim=0) for part in parts]
            known = [part.repeat_interleave(num_targets, dim=0) for part in known]
            if key_B is not None:  # channels of a window draw different dropout masks
                key_B = random_bits(key_B, self.salt_K).flatten()
        sequence_BWC = torch.cat([x_BWK, *parts], dim=2)
        inner = {
            "sequence": sequence_BWC,
            "length": sequence_BWC.new_full((sequence_BWC.shape[0],), self.window).long(),
        }
        if known:
            inner["numeric"] = torch.cat(known, dim=2).flatten(1)
        outputs = self.network(inner, key_B).to(past_BWK.dtype)
        if self.independent:
            y_BHK = outputs.view(-1, self.num_targets, self.horizon).transpose(1, 2)
        else:
            y_BHK = outputs.view(-1, self.horizon, self.num_targets)
        return self.normalization.restored(y_BHK, *level)

    def _covariates(self, batch: Batch) -> list[Tensor]:
        """Of the steps that are read, parts [B, W, ...]."""
        parts = []
        if "numeric" in batch:
            parts.append(batch["numeric"][:, : self.window])
        if "categorical" in batch:
            code_BWC = batch["categorical"][:, : self.window]
            parts += [self.codes(code_BWC, i).to(batch["target"].dtype) for i in range(code_BWC.shape[2])]
        return parts

    def _known(self, batch: Batch) -> list[Tensor]:
        """Of the steps to predict, what is known: parts [B, H, ...]."""
        parts = []
        if len(self.known_numeric):
            parts.append(batch["numeric"][:, self.window :].index_select(2, self.known_numeric))
        for i in self.known_categorical:
            parts.append(self.codes(batch["categorical"][:, self.window :], i).to(batch["target"].dtype))
        return parts
