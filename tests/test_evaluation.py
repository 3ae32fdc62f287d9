from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, mean_absolute_error, mean_squared_error, r2_score, roc_auc_score
from torch import Tensor

from raynn.collectives import Workers
from raynn.evaluation import auroc, evaluation_of, f1_macro
from raynn.metrics import quantities_of
from raynn.preprocessing import InputSpec

CPU = torch.device("cpu")


def classes(num: int) -> InputSpec:
    return InputSpec(num_outputs=num, task="classification", classes=tuple(range(num)))


def metrics(inputs: InputSpec, outputs: Tensor, target: Tensor, pieces: int = 3) -> dict[str, float]:
    return metrics_of(inputs, outputs, {"target": target}, pieces)


def metrics_of(inputs: InputSpec, outputs: Tensor, batch: dict[str, Tensor], pieces: int = 3) -> dict[str, float]:
    evaluation = evaluation_of(inputs, CPU)
    rows = torch.arange(len(outputs))
    for rows_B in rows.chunk(pieces):
        evaluation.add(outputs[rows_B], {name: x[rows_B] for name, x in batch.items()})
    return evaluation.metrics(Workers())


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_that_of_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    positive = random.random(500) < 0.3
    score = random.normal(size=500) + positive
    for scores in (score, score.round(0), np.zeros(500)):  # few ties, many, all
        assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


def test_auroc_at_hand_computed_points() -> None:
    truth = np.array([False, False, True, True])
    assert auroc(np.array([1.0, 2.0, 3.0, 4.0]), truth) == 1.0
    assert auroc(np.array([4.0, 3.0, 2.0, 1.0]), truth) == 0.0
    assert auroc(np.array([1.0, 3.0, 2.0, 4.0]), truth) == 0.75
    assert auroc(np.array([1.0, 2.0, 2.0, 4.0]), truth) == 0.875  # a tie counts half
    assert math.isnan(auroc(np.array([1.0, 2.0]), np.array([True, True])))


@pytest.mark.parametrize("seed", range(5))
def test_f1_macro_is_that_of_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth, predicted = random.integers(0, 6, 40), random.integers(1, 7, 40)  # 0 never predicted, 6 never true
    confusion = np.zeros((9, 9))  # 7 and 8 neither
    np.add.at(confusion, (truth, predicted), 1)
    assert f1_macro(confusion) == pytest.approx(f1_score(truth, predicted, average="macro", zero_division=0), abs=1e-12)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_classification_metrics_over_batches(num_classes: int) -> None:
    generator = torch.Generator().manual_seed(num_classes)
    outputs_NK = torch.randn(301, num_classes, generator=generator)
    target_N = torch.randint(num_classes, (301,), generator=generator)
    found = metrics(classes(num_classes), outputs_NK, target_N)
    log_p_NK = outputs_NK.double().log_softmax(1)
    predicted, truth = outputs_NK.argmax(1).numpy(), target_N.numpy()
    expected = {
        "loss": -float(log_p_NK[torch.arange(301), target_N].mean()),
        "accuracy": float((predicted == truth).mean()),
        "f1_macro": f1_score(truth, predicted, average="macro"),
    }
    if num_classes == 2:
        expected["auroc"] = roc_auc_score(truth, log_p_NK[:, 1])
    assert found == pytest.approx(expected, abs=1e-6)
    assert set(found) <= set(quantities_of("classification"))
    # a confusion of true and predicted would leave accuracy alone: here every row is predicted 0
    lopsided = metrics(classes(2), torch.tensor([[1.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1]))
    assert lopsided["accuracy"] == 0.75
    assert lopsided["f1_macro"] == pytest.approx((6 / 7 + 0) / 2)


def test_regression_metrics_are_in_the_units_of_the_target() -> None:
    generator = torch.Generator().manual_seed(0)
    y_N = torch.randn(301, generator=generator)
    outputs_N1 = y_N[:, None] + 0.5 * torch.randn(301, 1, generator=generator)
    found = metrics(InputSpec(target_mean=(100.0,), target_std=(20.0,)), outputs_N1, y_N)
    truth, predicted = y_N.double().numpy(), outputs_N1[:, 0].double().numpy()
    mse, mae = mean_squared_error(truth, predicted), mean_absolute_error(truth, predicted)
    expected = {
        "loss": mse,
        "rmse": 20 * math.sqrt(mse),
        "mae": 20 * mae,
        "r2": r2_score(truth, predicted),
        "mse_standardized": mse,
        "mae_standardized": mae,
    }
    assert found == pytest.approx(expected, abs=1e-6)
    assert tuple(found) == quantities_of("regression")


@pytest.mark.parametrize("value", [0.0, 0.1, 0.3, -1.7])
def test_r2_of_a_constant_target_is_not_a_number(value: float) -> None:
    for num_rows in [1, 2, 3, *range(100, 8000, 100)]:  # some of these sums round up
        found = metrics(InputSpec(), torch.zeros(num_rows, 1), torch.full((num_rows,), value), 1)
        assert math.isnan(found["r2"]), num_rows


def test_r2_sees_a_spread_far_from_zero() -> None:
    y_N = 1000 + torch.tensor([-1.0, 0.0, 1.0])
    assert metrics(InputSpec(), y_N[:, None] + 0.5, y_N)["r2"] == pytest.approx(1 - 0.75 / 2)


def test_margins_are_not_rounded_to_16_bits() -> None:
    # bfloat16 keeps 8 bits: in it 1 - 512 and 0 - 512 tie
    outputs_BK = torch.tensor([[512.0, 1.0], [512.0, 0.0]], dtype=torch.bfloat16)
    assert metrics(classes(2), outputs_BK, torch.tensor([1, 0]), 1)["auroc"] == 1.0


def test_metrics_can_be_asked_twice() -> None:
    evaluation = evaluation_of(classes(2), CPU)
    evaluation.add(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), {"target": torch.tensor([1, 1])})
    assert evaluation.metrics(Workers())["accuracy"] == evaluation.metrics(Workers())["accuracy"] == 0.5


def test_forecasts_of_several_targets() -> None:
    generator = torch.Generator().manual_seed(1)
    target_NWK = torch.randn(50, 7, 2, generator=generator)
    outputs_NHK = target_NWK[:, -3:] + 0.5 * torch.randn(50, 3, 2, generator=generator)
    inputs = InputSpec(task="forecasting", horizon=3, num_targets=2, target_mean=(5.0, 0.0), target_std=(10.0, 0.1))
    found = metrics(inputs, outputs_NHK, target_NWK)
    truth = target_NWK[:, -3:].reshape(-1, 2).double().numpy()
    predicted = outputs_NHK.reshape(-1, 2).double().numpy()
    unit = np.array([10.0, 0.1])
    expected = {
        "loss": mean_squared_error(truth, predicted),
        "rmse": math.sqrt(mean_squared_error(truth * unit, predicted * unit)),
        "mae": mean_absolute_error(truth * unit, predicted * unit),
        "r2": r2_score(truth, predicted),
        "mse_standardized": mean_squared_error(truth, predicted),
        "mae_standardized": mean_absolute_error(truth, predicted),
    }
    assert found == pytest.approx(expected, abs=1e-6)
    assert tuple(found) == quantities_of("forecasting")


def test_language_is_scored_per_token_and_per_character() -> None:
    logits_NTV = torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(2))
    tokens_NT = torch.randint(5, (6, 5), generator=torch.Generator().manual_seed(3))
    length_N, skip_N = torch.tensor([5, 5, 3, 5, 2, 4]), torch.tensor([0, 2, 1, 3, 0, 0])
    characters_N = torch.tensor([9, 4, 2, 1, 3, 6])
    batch = {"tokens": tokens_NT, "length": length_N, "skip": skip_N, "characters": characters_N}
    found = metrics_of(InputSpec(task="language_modeling"), logits_NTV, batch)
    log_p = logits_NTV.double().log_softmax(-1)
    nats = [
        -log_p[n, t, tokens_NT[n, t + 1]].item() for n in range(6) for t in range(int(skip_N[n]), int(length_N[n]) - 1)
    ]
    expected = {
        "loss": np.mean(nats),
        "perplexity": math.exp(np.mean(nats)),
        "bits_per_character": sum(nats) / math.log(2) / 25,
    }
    assert found == pytest.approx(expected, rel=1e-6)
    assert tuple(found) == quantities_of("language_modeling")


def test_images_have_bits_where_there_is_a_likelihood() -> None:
    inputs = InputSpec(task="image_generation")
    losses_N2 = torch.tensor([[3.0, 1.0], [4.0, 2.0], [8.0, 6.0]])
    assert metrics_of(inputs, losses_N2, {}, 2) == {"loss": 5.0, "bits_per_dim": 3.0}
    assert metrics_of(inputs, losses_N2[:, :1], {}, 2) == {"loss": 5.0}
