from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from raynn.objectives import loss_per_row, token_losses, with_split


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_equal_logits_cost_ln_k_whatever_the_smoothing(smoothing: float) -> None:
    loss_B = loss_per_row(torch.full((4, 7), 2.5), {"target": torch.tensor([0, 1, 5, 6])}, "classification", smoothing)
    torch.testing.assert_close(loss_B, torch.full((4,), math.log(7)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_smoothed_cross_entropy_against_its_closed_form(smoothing: float) -> None:
    # logits (a, 0, 0, 0): -log p is Z - a at the first class and Z elsewhere, Z = ln(e^a + 3)
    a = 1.7
    z = math.log(math.exp(a) + 3)
    loss_B = loss_per_row(
        torch.tensor([[a, 0, 0, 0]] * 2), {"target": torch.tensor([0, 2])}, "classification", smoothing
    )
    right = z - a + smoothing * 3 / 4 * a  # (1 - s)(Z - a) + s (Z - a / 4)
    wrong = z - smoothing * a / 4
    torch.testing.assert_close(loss_B, torch.tensor([right, wrong]), rtol=1e-6, atol=0.0)


def test_squared_error_has_no_half_and_is_float32() -> None:
    batch = {"target": torch.tensor([1.0, 1.0])}
    loss_B = loss_per_row(torch.tensor([[1.5], [-1.0]], dtype=torch.bfloat16), batch, "regression")
    assert loss_B.dtype == torch.float32
    assert loss_B.tolist() == [0.25, 4.0]


def test_a_forecast_is_scored_on_the_end_of_its_window() -> None:
    target_BWK = torch.arange(24.0).reshape(2, 4, 3)  # 2 steps read, 2 forecast, of 3 targets
    outputs_BHK = target_BWK[:, 2:] + torch.tensor([1.0, 2.0])[:, None, None]
    assert loss_per_row(outputs_BHK, {"target": target_BWK}, "forecasting").tolist() == [1.0, 4.0]


def test_next_tokens_are_scored_behind_the_context_up_to_the_length() -> None:
    logits_BTV = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    tokens_BT = torch.tensor([[1, 2, 3, 4, 5, 6], [6, 5, 4, 0, 0, 0], [3, 3, 0, 0, 0, 0]], dtype=torch.int32)
    batch = {"tokens": tokens_BT, "length": torch.tensor([6, 3, 2]), "skip": torch.tensor([2, 0, 1])}
    loss_BT, scored_BT = token_losses(logits_BTV, batch)
    assert scored_BT.tolist() == [[0, 0, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
    log_p_BTV = logits_BTV.double().log_softmax(-1)
    for b, t in scored_BT.nonzero().tolist():
        assert loss_BT[b, t].item() == pytest.approx(-log_p_BTV[b, t, tokens_BT[b, t + 1].item()].item(), rel=1e-6)
    rows_B = loss_per_row(logits_BTV, batch, "language_modeling")
    assert rows_B[0] == pytest.approx(float(loss_BT[0, 2:].mean()))
    assert rows_B[1] == pytest.approx(float(cross_entropy(logits_BTV[1, :2], torch.tensor([5, 4]))))
    assert rows_B[2] == 0.0, "nothing is scored"


def test_an_image_generator_knows_its_own_loss() -> None:
    losses_B2 = torch.tensor([[3.0, 1.0], [4.0, 2.0]])
    assert loss_per_row(losses_B2, {}, "image_generation").tolist() == [3.0, 4.0]


def test_keys_name_their_split() -> None:
    assert with_split("val", {"loss": 1.0}) == {"val/loss": 1.0}
