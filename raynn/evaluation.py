"""Metrics of a whole split: running sums in float64, reduced over the workers, no row left out.

Shapes: B rows, N rows of a whole split, K classes or targets, H steps forecast.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raynn.collectives import Workers
from raynn.objectives import Batch, loss_per_row, targets_of, token_losses
from raynn.preprocessing import InputSpec

ALONE = Workers()
SCORES_AT_ONCE = 2**18


class Evaluation(Protocol):
    """Sums over one split, batch by batch."""

    def add(self, outputs: Tensor, batch: Batch) -> None:
        """One batch and the network's outputs for it."""

    def metrics(self, workers: Workers) -> dict[str, float]:
        """Quantities of the split over all workers' rows, the same on every worker."""


def evaluation_of(inputs: InputSpec, device: torch.device) -> Evaluation:
    """Empty sums for the task."""
    kinds: dict[str, type[Evaluation]] = {
        "classification": ClassificationSums,
        "regression": RegressionSums,
        "forecasting": RegressionSums,
        "language_modeling": LanguageSums,
        "image_generation": ImageSums,
    }
    return kinds[inputs.task](inputs, device)  # type: ignore[call-arg]


class ClassificationSums:
    """Loss, confusion matrix, and with two classes every row's score."""

    def __init__(self, inputs: InputSpec, device: torch.device) -> None:
        self.num_classes = inputs.num_outputs
        self.confusion_KK = torch.zeros(self.num_classes**2, dtype=torch.float64, device=device)
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)
        # with two classes: how far each row's second logit is above the first, and whether its class is the second
        self.margins, self.positive = [self.sums.new_zeros(0)], [self.sums.new_zeros(0, dtype=torch.bool)]

    def add(self, outputs: Tensor, batch: Batch) -> None:
        """Logits [B, K]."""
        target_B = batch["target"]
        loss_B = loss_per_row(outputs, batch, "classification").double()
        cell_B = target_B * self.num_classes + outputs.argmax(1)
        self.confusion_KK.index_add_(0, cell_B, torch.ones_like(loss_B))  # bincount has a GPU's host wait
        if self.num_classes == 2:
            self.margins.append(outputs[:, 1].double() - outputs[:, 0].double())
            self.positive.append(target_B == 1)
        self.sums += torch.stack([loss_B.sum(), loss_B.new_full((), len(loss_B))])

    def metrics(self, workers: Workers) -> dict[str, float]:
        """Loss, accuracy, f1_macro, and with two classes auroc."""
        loss, rows = workers.sum(self.sums.clone()).tolist()
        num_classes = self.num_classes
        confusion = workers.sum(self.confusion_KK.clone()).reshape(num_classes, num_classes).cpu().numpy()
        metrics = {"loss": loss / rows, "accuracy": confusion.trace() / rows, "f1_macro": f1_macro(confusion)}
        if num_classes == 2:
            margin_N, positive_N = torch.cat(self.margins), torch.cat(self.positive)
            metrics["auroc"] = area(margin_N[~positive_N], margin_N[positive_N], workers)
        return {name: float(value) for name, value in metrics.items()}


class RegressionSums:
    """Errors and the spread of every target, over rows and steps."""

    def __init__(self, inputs: InputSpec, device: torch.device) -> None:
        self.std_K = torch.tensor(inputs.target_std, dtype=torch.float64, device=device)
        self.sums_5K = torch.zeros(5, len(self.std_K), dtype=torch.float64, device=device)

    def add(self, outputs: Tensor, batch: Batch) -> None:
        """Standardized values [B, 1] or [B, H, K]."""
        y_NK = targets_of(outputs, batch).double().reshape(-1, len(self.std_K))
        error_NK = (outputs.double().reshape(y_NK.shape) - y_NK).abs()
        terms = [torch.ones_like(y_NK), error_NK**2, error_NK, y_NK, y_NK**2]
        self.sums_5K += torch.stack([term.sum(0) for term in terms])

    def metrics(self, workers: Workers) -> dict[str, float]:
        """Errors in the targets' own units are over all of them; r2 is the mean over targets."""
        count_K, square_K, absolute_K, total_K, total_square_K = workers.sum(self.sums_5K.clone())
        spread_K = total_square_K - total_K**2 / count_K
        varies_K = spread_K > 1e-12 * total_square_K  # what a constant target leaves is the sums' rounding
        r2_K = torch.where(varies_K, 1.0 - square_K / spread_K, math.nan)
        count = count_K.sum()
        metrics = {
            "loss": square_K.sum() / count,
            "rmse": ((square_K * self.std_K**2).sum() / count).sqrt(),
            "mae": (absolute_K * self.std_K).sum() / count,
            "r2": r2_K.mean(),
            "mse_standardized": square_K.sum() / count,
            "mae_standardized": absolute_K.sum() / count,
        }
        return {name: float(value) for name, value in metrics.items()}


class LanguageSums:
    """Nats, tokens and the characters they stand for."""

    def __init__(self, inputs: InputSpec, device: torch.device) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, outputs: Tensor, batch: Batch) -> None:
        """Logits [B, T, V]."""
        loss_BT, scored_BT = token_losses(outputs.float(), batch)
        nats = (loss_BT.double() * scored_BT).sum()
        self.sums += torch.stack([nats, scored_BT.sum().double(), batch["characters"].sum().double()])

    def metrics(self, workers: Workers) -> dict[str, float]:
        """Loss in nats per token, perplexity, bits per character."""
        nats, tokens, characters = workers.sum(self.sums.clone()).tolist()
        loss = nats / tokens
        perplexity = math.exp(loss) if loss < 700.0 else math.inf
        return {"loss": loss, "perplexity": perplexity, "bits_per_character": nats / math.log(2.0) / characters}


class ImageSums:
    """Losses as the network gives them, and bits per dimension where it has a likelihood."""

    def __init__(self, inputs: InputSpec, device: torch.device) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)
        self.has_likelihood = False

    def add(self, outputs: Tensor, batch: Batch) -> None:
        """Losses [B, 1], or [B, 2] with bits per dimension."""
        self.has_likelihood = outputs.shape[1] == 2
        terms = outputs.double().sum(0)
        self.sums[: len(terms)] += terms
        self.sums[2] += len(outputs)

    def metrics(self, workers: Workers) -> dict[str, float]:
        """Loss, and bits_per_dim where the network has a likelihood."""
        has_likelihood = workers.any(self.has_likelihood)  # a worker may have no row
        loss, bits, rows = workers.sum(self.sums.clone()).tolist()
        metrics = {"loss": loss / rows}
        return metrics | {"bits_per_dim": bits / rows} if has_likelihood else metrics


def f1_macro(confusion_KK: NDArray[np.float64]) -> float:
    """Mean over classes of F1 = 2 tp / (2 tp + fp + fn); rows are true classes. A class that is neither there nor
    predicted is left out.
    """
    hits = confusion_KK.diagonal()
    seen = confusion_KK.sum(0) + confusion_KK.sum(1)
    return float(np.mean(2 * hits[seen > 0] / seen[seen > 0]))


def auroc(score_N: NDArray[np.float64], positive_N: NDArray[np.bool_]) -> float:
    """Area under the ROC curve of these scores; NaN where only one class is present."""
    return area(torch.from_numpy(score_N[~positive_N]), torch.from_numpy(score_N[positive_N]))


def area(negative_N: Tensor, positive_N: Tensor, workers: Workers = ALONE) -> float:
    """Area under the ROC curve of all workers' scores as the statistic of Mann and Whitney (Fawcett 2006, section 7):
    how often a positive row has the larger score, ties counted half. A worker takes its own positive rows and all
    negative ones, so that none holds all scores. The counts are whole numbers and halves, exact in float64.

    NaN where only one class is present.
    """
    ascending = workers.gathered(negative_N).sort().values
    counts = torch.zeros(2, dtype=torch.float64, device=ascending.device)
    for score_B in positive_N.split(SCORES_AT_ONCE):
        below = torch.searchsorted(ascending, score_B) + torch.searchsorted(ascending, score_B, right=True)
        counts += torch.stack([below.double().sum() / 2, counts.new_full((), len(score_B))])
    larger, num_positive = workers.sum(counts).tolist()
    return larger / (num_positive * len(ascending)) if num_positive and len(ascending) else math.nan
