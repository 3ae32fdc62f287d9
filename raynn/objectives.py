"""Losses and metrics: pure functions, reduced over workers as sums in float64.

Shapes: B rows, N rows of a whole split, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from raynn.collectives import Workers
from raynn.preprocessing import InputSpec


def loss_per_row(outputs_BK: Tensor, target_B: Tensor, task: str, label_smoothing: float = 0.0) -> Tensor:
    """Loss of each row [B] in float32: cross-entropy in nats, or squared error in standard deviations of the target.

    With label smoothing s the target is (1 - s) at its class plus s / K everywhere (Szegedy et al. 2016, section 7).
    """
    outputs_BK = outputs_BK.float()
    if task == "classification":
        return F.cross_entropy(outputs_BK, target_B, reduction="none", label_smoothing=label_smoothing)
    return (outputs_BK[:, 0] - target_B) ** 2


@dataclass
class Evaluation:
    """Running sums over one split; `metrics` reduces them over the workers."""

    inputs: InputSpec
    device: torch.device

    def __post_init__(self) -> None:
        """Empty sums."""
        num_classes = self.inputs.num_outputs if self.inputs.task == "classification" else 0
        self.confusion_KK = torch.zeros(num_classes * num_classes, dtype=torch.float64, device=self.device)
        self.sums = torch.zeros(6, dtype=torch.float64, device=self.device)
        self.scores: list[Tensor] = []

    def add(self, outputs_BK: Tensor, target_B: Tensor) -> None:
        """One batch of outputs and targets."""
        loss_B = loss_per_row(outputs_BK, target_B, self.inputs.task).double()
        if self.inputs.task == "classification":
            num_classes = self.inputs.num_outputs
            cell_B = target_B * num_classes + outputs_BK.argmax(1)
            self.confusion_KK += torch.bincount(cell_B, minlength=num_classes**2)
            if num_classes == 2:
                margin_B = outputs_BK[:, 1].double() - outputs_BK[:, 0].double()
                self.scores.append(torch.stack([margin_B, target_B.double()], dim=1))
            self.sums[:2] += torch.stack([loss_B.sum(), loss_B.new_tensor(len(loss_B))])
        else:
            y_B = target_B.double()
            error_B = (outputs_BK[:, 0].double() - y_B).abs()
            terms = [
                loss_B.sum(),
                loss_B.new_tensor(len(y_B)),
                (error_B**2).sum(),
                error_B.sum(),
                y_B.sum(),
                (y_B**2).sum(),
            ]
            self.sums += torch.stack(terms)

    def metrics(self, workers: Workers) -> dict[str, float]:
        """Quantities of the split over all workers' rows, the same on every worker."""
        sums = workers.sum(self.sums.clone()).tolist()
        loss, rows = sums[0] / sums[1], sums[1]
        if self.inputs.task == "classification":
            num_classes = self.inputs.num_outputs
            confusion = workers.sum(self.confusion_KK.clone()).reshape(num_classes, num_classes).cpu().numpy()
            metrics = {"loss": loss, "accuracy": confusion.trace() / rows, "f1_macro": f1_macro(confusion)}
            if num_classes == 2:
                empty = torch.zeros(0, 2, dtype=torch.float64, device=self.device)
                scores = workers.gathered(torch.cat([empty, *self.scores])).cpu().numpy()
                metrics["auroc"] = auroc(scores[:, 0], scores[:, 1] > 0.5)
            return {name: float(value) for name, value in metrics.items()}
        square, absolute, total, total_square = sums[2:]
        spread = total_square - total**2 / rows
        varies = spread > 1e-12 * total_square  # what a constant target leaves is the sums' rounding
        std = self.inputs.target_std
        return {
            "loss": loss,
            "rmse": math.sqrt(square / rows) * std,
            "mae": absolute / rows * std,
            "r2": 1.0 - square / spread if varies else math.nan,
            "mse_standardized": square / rows,
            "mae_standardized": absolute / rows,
        }


def f1_macro(confusion_KK: NDArray[np.float64]) -> float:
    """Mean over classes of F1 = 2 tp / (2 tp + fp + fn); rows are true classes. A class that is neither there nor
    predicted is left out.
    """
    hits = confusion_KK.diagonal()
    seen = confusion_KK.sum(0) + confusion_KK.sum(1)
    return float(np.mean(2 * hits[seen > 0] / seen[seen > 0]))


def auroc(score_N: NDArray[np.float64], positive_N: NDArray[np.bool_]) -> float:
    """Area under the ROC curve as the rank statistic of Mann and Whitney (Fawcett 2006, section 7), ties counted half.

    NaN where only one class is present.
    """
    num_positive = int(positive_N.sum())
    num_negative = len(positive_N) - num_positive
    if num_positive == 0 or num_negative == 0:
        return math.nan
    _, place, count = np.unique(score_N, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count - 1) / 2
    rank_sum = float(mean_rank[place][positive_N].sum())
    return (rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def with_split(split: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """The contract's keys: `<split>/<quantity>`."""
    return {f"{split}/{name}": value for name, value in metrics.items()}
