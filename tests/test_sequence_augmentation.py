"""Sequences and texts changed at random: what is there changes as it should, the padding never."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from raynn.randomness import row_keys
from raynn.regularization import RegularizationSettings
from raynn.sequence_augmentation import changed_sequences, changed_texts, swapped, warped

NUM_ROWS, NUM_STEPS = 2000, 12


def keys(num: int = NUM_ROWS, epoch: int = 0) -> Tensor:
    return torch.from_numpy(row_keys(0, epoch, np.arange(num)))


LENGTH_B = torch.arange(NUM_ROWS) % NUM_STEPS + 1
WITHIN_BT = torch.arange(NUM_STEPS) < LENGTH_B[:, None]
SEQUENCE_BTC = torch.randn(NUM_ROWS, NUM_STEPS, 3, generator=torch.Generator().manual_seed(0)) * WITHIN_BT[..., None]
TOKENS_BT = (torch.arange(1, NUM_STEPS + 1).expand(NUM_ROWS, -1) * WITHIN_BT).int()


def changed(**fields: float) -> Tensor:
    return changed_sequences(SEQUENCE_BTC, LENGTH_B, keys(), RegularizationSettings(**fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("knob", ["jitter", "scaling", "time_masking", "time_warping"])
def test_padding_stays_and_a_row_depends_on_its_key_alone(knob: str) -> None:
    found = changed(**{knob: 0.4})
    assert (found[~WITHIN_BT] == 0).all()
    assert not torch.equal(found, SEQUENCE_BTC)
    settings = RegularizationSettings(**{knob: 0.4})  # type: ignore[arg-type]
    part = changed_sequences(SEQUENCE_BTC[50:60], LENGTH_B[50:60], keys()[50:60], settings)
    assert torch.equal(part, found[50:60])
    assert not torch.equal(changed_sequences(SEQUENCE_BTC, LENGTH_B, keys(epoch=1), settings), found)


def test_jitter_is_normal_noise_at_every_step() -> None:
    noise = (changed(jitter=0.3) - SEQUENCE_BTC)[WITHIN_BT] / 0.3
    n = noise.numel()
    assert abs(float(noise.mean())) < 5 / n**0.5
    assert abs(float(noise.var()) - 1) < 5 * (2 / n) ** 0.5
    assert abs(float((noise[1:, 0] * noise[:-1, 0]).mean())) < 5 / (n / 3) ** 0.5, "steps draw for themselves"


def test_scaling_is_one_factor_a_channel() -> None:
    factor_BTC = changed(scaling=0.2)[WITHIN_BT] / SEQUENCE_BTC[WITHIN_BT]
    row_S = torch.arange(NUM_ROWS)[:, None].expand_as(WITHIN_BT)[WITHIN_BT]
    first_BC = factor_BTC[torch.cat([torch.ones(1).bool(), row_S.diff() > 0])]
    torch.testing.assert_close(factor_BTC, first_BC[row_S], rtol=1e-4, atol=1e-4)
    assert float(first_BC.mean()) == pytest.approx(1.0, abs=5 * 0.2 / 6000**0.5)
    assert float(first_BC.std()) == pytest.approx(0.2, rel=0.05)


def test_time_masking_masks_one_run_no_longer_than_its_share() -> None:
    masked_BT = (changed(time_masking=0.5) == 0).all(2) & WITHIN_BT
    run_B = masked_BT.sum(1)
    assert (run_B <= 0.5 * LENGTH_B).all()
    edges_B = torch.nn.functional.pad(masked_BT.int(), (1, 1)).diff(dim=1).abs().sum(1)
    assert ((edges_B == 2) | (run_B == 0)).all(), "one run"
    whole = run_B[LENGTH_B == NUM_STEPS].bincount(minlength=7).double()  # 0 .. 6, each as likely
    assert (whole - whole.sum() / 7).abs().max() < 5 * float(whole.sum() / 7) ** 0.5
    places = masked_BT[LENGTH_B == NUM_STEPS].double().mean(0)
    assert (places > 0.03).all(), "anywhere"


def test_warping_is_interpolation_between_two_lines() -> None:
    middle_B = torch.linspace(0.3, 0.7, NUM_ROWS)
    found = warped(SEQUENCE_BTC, LENGTH_B, middle_B).double().numpy()
    for row in range(0, NUM_ROWS, 37):
        length = int(LENGTH_B[row])
        last = max(1, length - 1)
        where = np.interp(np.arange(length) / last, [0, float(middle_B[row]), 1], [0, 0.5, 1]) * last
        for channel in range(3):
            expected = np.interp(where, np.arange(NUM_STEPS), SEQUENCE_BTC[row, :, channel].double().numpy())
            np.testing.assert_allclose(found[row, :length, channel], expected, atol=1e-4)
    torch.testing.assert_close(warped(SEQUENCE_BTC, LENGTH_B, torch.full((NUM_ROWS,), 0.5)), SEQUENCE_BTC)


def test_token_masking_puts_the_unknown_token_in_its_share_of_places() -> None:
    found = changed_texts(TOKENS_BT, LENGTH_B, keys(), RegularizationSettings(token_masking=0.3))
    masked_BT = (found == 0) & WITHIN_BT
    assert ((found == TOKENS_BT) | masked_BT).all()
    n = int(WITHIN_BT.sum())
    assert abs(int(masked_BT.sum()) - 0.3 * n) < 5 * (n * 0.3 * 0.7) ** 0.5


def test_token_swapping_moves_its_share_by_one_place() -> None:
    found = swapped(TOKENS_BT, LENGTH_B, keys(), 0.4)
    assert torch.equal(found.sort(1).values, TOKENS_BT.sort(1).values), "the same tokens"
    assert ((found - TOKENS_BT).abs() <= 1).all()
    assert (found[~WITHIN_BT] == 0).all()
    moved_BT = found[LENGTH_B == NUM_STEPS] != TOKENS_BT[LENGTH_B == NUM_STEPS]
    share_T = moved_BT.double().mean(0)
    n = len(moved_BT)
    assert (share_T[1:-1] - 0.4).abs().max() < 5 * (0.24 / n) ** 0.5
    assert (share_T[[0, -1]] - 0.2).abs().max() < 5 * (0.16 / n) ** 0.5  # the ends have a neighbor half of the time


def test_windows_of_text_are_left_alone() -> None:
    """What a language model reads is what it is to predict."""
    from raynn.augmentation import augmented

    batch = {"tokens": TOKENS_BT, "length": LENGTH_B, "skip": torch.zeros_like(LENGTH_B)}
    assert augmented(batch, keys(), RegularizationSettings(token_masking=0.5)) is batch


def test_numbers_are_made_noisy() -> None:
    from raynn.augmentation import augmented

    numeric_BF = torch.zeros(NUM_ROWS, 4)
    noise_BF = augmented({"numeric": numeric_BF}, keys(), RegularizationSettings(input_noise=0.2))["numeric"]
    assert float(noise_BF.std()) == pytest.approx(0.2, rel=0.05)
    assert (torch.corrcoef(noise_BF.T) - torch.eye(4)).abs().max() < 5 / NUM_ROWS**0.5
