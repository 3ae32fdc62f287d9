"""MNIST-1D: figures of the package `mnist1d` 0.0.2 (make_dataset with its defaults), which raynn does not install."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import LogisticRegression

from raynn.mnist1d import mnist1d_test, mnist1d_train


def arrays(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Signals [N, 40] and labels [N]."""
    return np.array(table["signal"].to_pylist()), table["label"].to_numpy()


def test_the_numbers_are_the_published_ones() -> None:
    (x_NT, _), (test_x_NT, _) = arrays(mnist1d_train()), arrays(mnist1d_test())
    assert (x_NT.shape, test_x_NT.shape) == ((4000, 40), (1000, 40))
    np.testing.assert_allclose(x_NT[0, :6], [-0.33201, -0.47191, -0.7787, -1.00974, -0.88235, 0.10393], atol=1e-5)
    np.testing.assert_allclose(x_NT[-1, -6:], [-0.8411, -0.87756, -0.81374, -1.21625, -1.46494, -1.65099], atol=1e-5)
    np.testing.assert_allclose(
        test_x_NT[-1, 17:23], [-0.93925, -0.39955, 0.61584, 1.39493, 1.06768, 0.28651], atol=1e-5
    )
    assert np.abs(x_NT).sum() == pytest.approx(118338.29510719894, rel=1e-7)
    assert np.abs(test_x_NT).sum() == pytest.approx(29977.877540866408, rel=1e-7)
    assert (test_x_NT * np.arange(1, 41)).sum() == pytest.approx(7617.765120411957, rel=1e-5)


def test_the_labels_are_the_published_ones() -> None:
    (_, label_N), (_, test_label_N) = arrays(mnist1d_train()), arrays(mnist1d_test())
    assert label_N[:12].tolist() == [2, 6, 4, 5, 6, 6, 6, 0, 3, 1, 6, 9]
    assert test_label_N[-12:].tolist() == [3, 9, 8, 3, 3, 6, 1, 2, 5, 9, 6, 4]
    assert np.bincount(test_label_N).tolist() == [102, 104, 89, 106, 106, 98, 99, 96, 98, 102]
    assert (np.bincount(label_N) + np.bincount(test_label_N) == 500).all()


def test_classes_vary_as_published() -> None:
    (x_NT, label_N), (test_x_NT, _) = arrays(mnist1d_train()), arrays(mnist1d_test())
    power_K = [np.mean(x_NT[label_N == label] ** 2) for label in range(10)]
    published_K = [1.65071, 0.76338, 0.70838, 1.12685, 0.78751, 0.70019, 1.54326, 0.7958, 1.05281, 0.83283]
    np.testing.assert_allclose(power_K, published_K, atol=1e-5)
    every_NT = np.concatenate([x_NT, test_x_NT])
    assert every_NT.mean() == pytest.approx(0, abs=1e-6)
    assert every_NT.std() == pytest.approx(1, abs=1e-6)


def test_logistic_regression_fails_as_published() -> None:
    (x_NT, label_N), (test_x_NT, test_label_N) = arrays(mnist1d_train()), arrays(mnist1d_test())
    accuracy = LogisticRegression(C=0.01).fit(x_NT, label_N).score(test_x_NT, test_label_N)
    assert accuracy == pytest.approx(0.32, abs=0.02)
