"""Losses: pure functions of outputs and a batch.

Shapes: B rows, K classes or targets, W steps of the window read, H steps forecast, T tokens read, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Batch = Mapping[str, Tensor]


def loss_per_row(outputs: Tensor, batch: Batch, task: str, label_smoothing: float = 0.0) -> Tensor:
    """Loss of each row [B] in float32.

    classification: cross-entropy in nats of logits [B, K]. With label smoothing s the target is (1 - s) at its class
        plus s / K everywhere (Szegedy et al. 2016, section 7). Of a row that was mixed with another (`other_target`)
        the loss is that of both targets, the row's own weighing `share` (Zhang et al. 2018, eq. 1).
    regression, forecasting: squared error in standard deviations of the target, of outputs [B, 1] or [B, H, K].
    language_modeling: cross-entropy in nats per scored token, of logits [B, T, V].
    image_generation: the first column of outputs, which are losses: such a network knows its own.
    """
    outputs = outputs.float()
    if task == "classification":
        loss_B = F.cross_entropy(outputs, batch["target"], reduction="none", label_smoothing=label_smoothing)
        if "other_target" not in batch:
            return loss_B
        other_B = F.cross_entropy(outputs, batch["other_target"], reduction="none", label_smoothing=label_smoothing)
        return torch.lerp(other_B, loss_B, batch["share"])
    if task == "language_modeling":
        loss_BT, scored_BT = token_losses(outputs, batch, label_smoothing)
        return (loss_BT * scored_BT).sum(1) / scored_BT.sum(1).clamp(min=1)
    if task == "image_generation":
        return outputs[:, 0]
    return squared_errors(outputs, batch).flatten(1).mean(1)


def squared_errors(outputs: Tensor, batch: Batch) -> Tensor:
    """Of regression [B, 1], or of the last H steps of every target of a forecast [B, H, K], in float32 or better."""
    return (outputs - targets_of(outputs, batch)) ** 2


def targets_of(outputs: Tensor, batch: Batch) -> Tensor:
    """What outputs [B, 1] or [B, H, K] should have been: the target, or the end of its window [B, W + H, K]."""
    target = batch["target"]
    return target[:, None] if target.dim() == 1 else target[:, -outputs.shape[1] :]


def token_losses(logits_BTV: Tensor, batch: Batch, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats of each next token [B, T], and which of them count [B, T]: those behind the context that
    is only read (`skip`), up to the last token there is (`length`).
    """
    next_BT = batch["tokens"][:, 1:].long()
    loss_BT = F.cross_entropy(
        logits_BTV.flatten(0, 1), next_BT.flatten(), reduction="none", label_smoothing=label_smoothing
    ).view(next_BT.shape)
    return loss_BT, is_scored(batch)


def is_scored(batch: Batch) -> Tensor:
    """Which of the next tokens [B, T] count."""
    place_T = torch.arange(batch["tokens"].shape[1] - 1, device=batch["tokens"].device)
    return (place_T >= batch["skip"][:, None]) & (place_T < batch["length"][:, None] - 1)


def with_split(split: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """The contract's keys: `<split>/<quantity>`."""
    return {f"{split}/{name}": value for name, value in metrics.items()}
