"""What predictions say of a run: confusion, ROC, calibration, residuals, forecast bands. Pure functions of arrays.

Shapes: N rows or windows, K classes, H steps forecast, P points of a curve, Q quantiles, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raynn.evaluation import auroc

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CURVE_POINTS = 200
CALIBRATION_BINS = 10
BAND = (0.1, 0.5, 0.9)  # eight errors in ten lie between the outer two


@dataclass(frozen=True)
class ClassFindings:
    """Of a classifier over a split. Rows of the confusion matrix are true classes."""

    labels: tuple[str, ...]
    confusion_KK: Integers
    precision_K: Floats  # NaN of a class that is never predicted
    recall_K: Floats  # NaN of a class that is not there
    f1_K: Floats
    loss_N: Floats  # nats
    confidence_N: Floats
    predicted_N: Integers
    actual_N: Integers

    @property
    def accuracy(self) -> float:
        """Share of rows whose class is the likeliest."""
        return float(self.confusion_KK.trace() / self.confusion_KK.sum())

    @property
    def f1_macro(self) -> float:
        """Mean F1 over the classes that are there or predicted."""
        seen = self.confusion_KK.sum(0) + self.confusion_KK.sum(1) > 0
        return float(self.f1_K[seen].mean())


def log_softmax(logits_NK: Floats) -> Floats:
    """Log probabilities [N, K]."""
    shifted = logits_NK - logits_NK.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def class_findings(logits_NK: NDArray[Any], actual_N: Integers, labels: tuple[str, ...]) -> ClassFindings:
    """Of logits and true classes, at least one row."""
    num_classes = len(labels)
    predicted_N = logits_NK.argmax(axis=1)
    cells = np.bincount(actual_N * num_classes + predicted_N, minlength=num_classes**2)
    confusion = cells.reshape(num_classes, num_classes)
    log_p = log_softmax(logits_NK.astype(np.float64))
    rows = np.arange(len(actual_N))
    hits, true, told = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall, f1 = hits / told, hits / true, 2 * hits / (told + true)
    return ClassFindings(
        labels,
        confusion,
        precision,
        recall,
        f1,
        -log_p[rows, actual_N],
        np.exp(log_p[rows, predicted_N]),
        predicted_N,
        actual_N,
    )


@dataclass(frozen=True)
class Roc:
    """One class against all others."""

    label: str
    false_positive_P: Floats
    true_positive_P: Floats
    auroc: float


def roc(label: str, score_N: Floats, positive_N: NDArray[np.bool_]) -> Roc | None:
    """The curve (Fawcett 2006, algorithm 1) thinned to CURVE_POINTS; its area is that of all points. None where only
    one class is there.
    """
    num_positive = int(positive_N.sum())
    if num_positive in (0, len(positive_N)):
        return None
    order = np.argsort(-score_N, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score_N[order])), len(score_N) - 1)  # ties are one step
    hits = np.cumsum(positive_N[order])[ends]
    tpr = np.append(0.0, hits / num_positive)
    fpr = np.append(0.0, (ends + 1 - hits) / (len(positive_N) - num_positive))
    keep = np.unique(np.linspace(0, len(tpr) - 1, CURVE_POINTS).round().astype(int))
    return Roc(label, fpr[keep], tpr[keep], auroc(score_N, positive_N))


def rocs(logits_NK: NDArray[Any], actual_N: Integers, labels: tuple[str, ...]) -> list[Roc]:
    """Of two classes the second one's curve by the margin, of more each against the others by its probability."""
    logits_NK = logits_NK.astype(np.float64)
    if len(labels) == 2:
        curves = [roc(labels[1], logits_NK[:, 1] - logits_NK[:, 0], actual_N == 1)]
    else:
        log_p = log_softmax(logits_NK)
        curves = [roc(label, log_p[:, k], actual_N == k) for k, label in enumerate(labels)]
    return [curve for curve in curves if curve is not None]


@dataclass(frozen=True)
class Calibration:
    """Rows in bins of equal width by the probability of the predicted class; empty bins are left out."""

    confidence_P: Floats
    accuracy_P: Floats
    count_P: Integers
    error: float  # expected calibration error (Guo et al. 2017, eq. 3)


def calibration(confidence_N: Floats, correct_N: NDArray[np.bool_]) -> Calibration:
    """Of probabilities and whether they were right."""
    bins = np.minimum((confidence_N * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    there = count > 0
    confidence = np.bincount(bins, confidence_N, CALIBRATION_BINS)[there] / count[there]
    accuracy = np.bincount(bins, correct_N, CALIBRATION_BINS)[there] / count[there]
    error = float((count[there] * np.abs(accuracy - confidence)).sum() / len(confidence_N))
    return Calibration(confidence, accuracy, count[there], error)


@dataclass(frozen=True)
class ValueFindings:
    """Of a regression over a split, in the target's unit."""

    actual_N: Floats
    predicted_N: Floats

    @property
    def residual_N(self) -> Floats:
        """Predicted less actual."""
        return self.predicted_N - self.actual_N

    @property
    def rmse(self) -> float:
        """Root mean squared error."""
        return float(np.sqrt(np.mean(self.residual_N**2)))

    @property
    def mae(self) -> float:
        """Mean absolute error."""
        return float(np.abs(self.residual_N).mean())


@dataclass(frozen=True)
class ForecastFindings:
    """Of one target's windows over a split, in its unit."""

    target: str
    actual_NH: Floats
    predicted_NH: Floats

    @property
    def rmse_H(self) -> Floats:
        """Of each step ahead."""
        return np.asarray(np.sqrt(((self.predicted_NH - self.actual_NH) ** 2).mean(axis=0)))

    @property
    def band_QH(self) -> Floats:
        """Quantiles BAND of actual less predicted, of each step ahead: added to a forecast they are its band."""
        return np.quantile(self.actual_NH - self.predicted_NH, BAND, axis=0)

    @property
    def rmse_N(self) -> Floats:
        """Of each window."""
        return np.asarray(np.sqrt(((self.predicted_NH - self.actual_NH) ** 2).mean(axis=1)))


@dataclass(frozen=True)
class TokenFindings:
    """Of some windows of text: tokens in words, and how surprising each was, in nats."""

    excerpts: tuple[tuple[tuple[str, float | None], ...], ...]  # None: only read
    loss_T: Floats  # of all scored tokens
    hardest: tuple[tuple[str, float, int], ...]  # token, mean loss, how often


def spread(num_rows: int, count: int) -> Integers:
    """Up to `count` row numbers, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, num_rows - 1, min(count, num_rows)).round().astype(np.int64))


def histogram(values: Floats, bins: int = 40) -> tuple[Floats, Integers]:
    """Edges [bins + 1] and counts [bins]; the outermost half percent on each side is put into the outer bins."""
    low, high = np.quantile(values, [0.005, 0.995])
    if not high > low:
        low, high = values.min() - 0.5, values.max() + 0.5
    counts, edges = np.histogram(np.clip(values, low, high), bins, (low, high))
    return edges, counts
