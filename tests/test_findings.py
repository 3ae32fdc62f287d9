"""Findings against scikit-learn's, and against what is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from raynn.findings import ForecastFindings, calibration, class_findings, histogram, log_softmax, roc, rocs, spread

LABELS = ("a", "b", "c", "d")


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    actual_N = rng.integers(0, 3, 400)  # no row is d
    logits_NK = rng.normal(size=(400, 4)).round(1)
    logits_NK[np.arange(400), actual_N] += 1.0
    return logits_NK, actual_N


def test_figures_of_each_class(scored: tuple[np.ndarray, np.ndarray]) -> None:
    logits_NK, actual_N = scored
    found = class_findings(logits_NK, actual_N, LABELS)
    predicted_N = logits_NK.argmax(1)
    assert np.array_equal(found.confusion_KK, sk.confusion_matrix(actual_N, predicted_N, labels=range(4)))
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        actual_N, predicted_N, labels=range(4), zero_division=np.nan
    )
    assert found.precision_K == pytest.approx(precision)
    assert found.recall_K[:3] == pytest.approx(recall[:3])
    assert np.isnan(found.recall_K[3])
    assert found.f1_K[:3] == pytest.approx(f1[:3])
    assert found.accuracy == pytest.approx(sk.accuracy_score(actual_N, predicted_N))
    assert found.f1_macro == pytest.approx(np.append(f1[:3], 0.0).mean())
    assert found.loss_N.mean() == pytest.approx(sk.log_loss(actual_N, np.exp(log_softmax(logits_NK)), labels=range(4)))


def test_roc_and_its_area(scored: tuple[np.ndarray, np.ndarray]) -> None:
    logits_NK, actual_N = scored
    curves = {curve.label: curve for curve in rocs(logits_NK, actual_N, LABELS)}
    assert set(curves) == {"a", "b", "c"}, "a class of which there is no row has no curve"
    score = log_softmax(logits_NK)[:, 1]
    assert curves["b"].auroc == pytest.approx(sk.roc_auc_score(actual_N == 1, score))
    found = roc("b", logits_NK[:, 1], actual_N == 1)
    assert found is not None
    fpr, tpr, _ = sk.roc_curve(actual_N == 1, logits_NK[:, 1], drop_intermediate=False)
    assert found.false_positive_P == pytest.approx(fpr)
    assert found.true_positive_P == pytest.approx(tpr)


def test_two_classes_have_one_curve_by_the_margin(scored: tuple[np.ndarray, np.ndarray]) -> None:
    logits_NK, actual_N = scored
    (curve,) = rocs(logits_NK[:, :2], (actual_N > 0).astype(int), ("no", "yes"))
    margin = logits_NK[:, 1] - logits_NK[:, 0]
    assert (curve.label, curve.auroc) == ("yes", pytest.approx(sk.roc_auc_score(actual_N > 0, margin)))


def test_calibration_of_what_is_right_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    told = rng.uniform(0.3, 1.0, 200_000)
    right = rng.uniform(size=len(told)) < told
    honest = calibration(told, right)
    assert honest.error < 0.005
    assert honest.count_P.sum() == len(told)
    assert len(honest.count_P) == 7, "bins below 0.3 are empty"
    # always 0.1 too sure
    assert calibration(told, rng.uniform(size=len(told)) < told - 0.1).error == pytest.approx(0.1, abs=0.005)
    assert calibration(np.ones(4), np.array([True, True, True, False])).error == pytest.approx(0.25)


def test_eight_errors_in_ten_lie_in_the_band_of_their_step() -> None:
    rng = np.random.default_rng(0)
    error_NH = rng.normal(size=(5000, 3)) * [1.0, 2.0, 4.0] + [0.0, 0.5, 1.0]
    found = ForecastFindings("y", error_NH, np.zeros_like(error_NH))
    low_H, middle_H, high_H = found.band_QH
    assert ((error_NH > low_H) & (error_NH < high_H)).mean(axis=0) == pytest.approx([0.8] * 3, abs=0.001)
    assert middle_H == pytest.approx([0.0, 0.5, 1.0], abs=0.1)
    assert found.rmse_H == pytest.approx([1.0, (4 + 0.25) ** 0.5, 17**0.5], rel=0.05)


def test_a_histogram_counts_every_value() -> None:
    values = np.append(np.random.default_rng(0).normal(size=1000), 1e9)
    edges, counts = histogram(values)
    assert counts.sum() == 1001
    assert edges[-1] < 10
    edges, counts = histogram(np.full(7, 3.0))
    assert counts.sum() == 7


def test_rows_evenly_spaced() -> None:
    assert spread(100, 3).tolist() == [0, 50, 99]
    assert spread(2, 9).tolist() == [0, 1]
