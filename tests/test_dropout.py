from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from raynn.dropout import AlphaDropout, Dropout, LockedDropout, PositionDropout, StochasticDepth, set_strengths
from raynn.gradients import clip_gradient_norm
from raynn.networks.normalization import GlobalBatchNorm
from raynn.penalties import decayed_and_exempt
from raynn.randomness import row_keys
from raynn.regularization import RegularizationSettings


def keys(num: int, epoch: int = 0, first: int = 0) -> Tensor:
    return torch.from_numpy(row_keys(0, epoch, np.arange(first, first + num)))


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_dropout_keeps_the_share_it_says(p: float) -> None:
    y_BH = Dropout(p, 500, 0)(torch.ones(2000, 500), keys(2000))
    n = y_BH.numel()
    kept = int((y_BH != 0).sum())
    assert abs(kept - n * (1 - p)) < 5 * (n * p * (1 - p)) ** 0.5
    torch.testing.assert_close(y_BH[y_BH != 0], torch.full((kept,), 1 / (1 - p)))
    for axis, size in ((0, 2000), (1, 500)):  # in every row, and in every column
        share = (y_BH != 0).double().mean(axis)
        assert (share - (1 - p)).abs().max() < 6 * (p * (1 - p) / size) ** 0.5


def test_dropout_keeps_the_expectation() -> None:
    x_BH = torch.rand(1, 300).expand(4000, 300)
    mean_H = Dropout(0.3, 300, 1)(x_BH, keys(4000)).mean(0)
    sigma_H = x_BH[0] * (0.3 / 0.7 / 4000) ** 0.5
    assert ((mean_H - x_BH[0]).abs() < 5 * sigma_H).all()


def test_a_row_has_its_mask_wherever_it_sits() -> None:
    dropout, x_BH = Dropout(0.5, 64, 3), torch.ones(100, 64)
    whole = dropout(x_BH, keys(100))
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dropout(x_BH, keys(100)[order]), whole[order])
    assert torch.equal(dropout(x_BH[:1], keys(1, first=37)), whole[37:38])


def test_masks_differ_between_rows_epochs_and_places() -> None:
    x_BH = torch.ones(200, 64)
    first = Dropout(0.5, 64, 0)(x_BH, keys(200))
    assert len(first.unique(dim=0)) == 200
    for other in (Dropout(0.5, 64, 0)(x_BH, keys(200, epoch=1)), Dropout(0.5, 64, 1)(x_BH, keys(200))):
        agree = float((other == first).double().mean())
        assert abs(agree - 0.5) < 5 * (0.25 / first.numel()) ** 0.5


def test_dropout_silences_whole_channels_of_maps() -> None:
    for shape in ((50, 8, 5), (50, 8, 5, 3)):
        y = Dropout(0.5, 8, 0)(torch.ones(shape), keys(50)).flatten(2)
        assert ((y == 0).all(-1) | (y == 2).all(-1)).all()
        assert 0 < int((y == 0).all(-1).sum()) < 400
        assert torch.equal(y[:, :, 0], Dropout(0.5, 8, 0)(torch.ones(50, 8), keys(50)))


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.999])
def test_position_dropout_keeps_the_share_it_says_at_every_position(p: float) -> None:
    share = min(255, round(p * 256)) / 256
    y_BTH = PositionDropout(p, 30, 0)(torch.ones(300, 40, 30), keys(300))
    kept = y_BTH[y_BTH != 0]
    assert abs(len(kept) - y_BTH.numel() * (1 - share)) < 5 * (y_BTH.numel() * share * (1 - share)) ** 0.5
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - share)))
    for axes in ((0, 1), (0, 2), (1, 2)):
        means = (y_BTH != 0).double().mean(axes)
        size = y_BTH.numel() / len(means)
        assert (means - (1 - share)).abs().max() < 6 * (share * (1 - share) / size) ** 0.5


def test_position_dropout_is_a_function_of_row_position_feature_and_place() -> None:
    dropout, x_BTH = PositionDropout(0.5, 64, 3), torch.ones(20, 10, 64)
    whole = dropout(x_BTH, keys(20))
    assert len(whole.flatten(0, 1).unique(dim=0)) == 200, "no two positions of any rows have the same mask"
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dropout(x_BTH, keys(20)[order]), whole[order])
    assert torch.equal(dropout(x_BTH[:, :4], keys(20)), whole[:, :4])
    for other in (dropout(x_BTH, keys(20, epoch=1)), PositionDropout(0.5, 64, 4)(x_BTH, keys(20))):
        agree = float((other == whole).double().mean())
        assert abs(agree - 0.5) < 5 * (0.25 / whole.numel()) ** 0.5


def test_position_dropout_acts_in_training_alone_and_passes_its_mask_to_the_gradient() -> None:
    x_BTH = torch.ones(5, 6, 7, requires_grad=True)
    dropout = PositionDropout(0.4, 7, 0)
    y_BTH = dropout(x_BTH, keys(5))
    y_BTH.sum().backward()
    assert x_BTH.grad is not None
    assert torch.equal(x_BTH.grad, y_BTH.detach())
    assert PositionDropout(0.0, 7, 0)(x_BTH, keys(5)) is x_BTH
    assert dropout(x_BTH, None) is x_BTH
    assert dropout.eval()(x_BTH, keys(5)) is x_BTH
    assert not dropout.state_dict()
    assert dropout.train()(torch.ones(5, 6, 7, dtype=torch.bfloat16), keys(5)).dtype == torch.bfloat16


def test_dropout_is_the_identity_without_keys_in_evaluation_and_at_zero() -> None:
    x_BH = torch.randn(5, 4)
    assert Dropout(0.5, 4, 0)(x_BH, None) is x_BH
    assert Dropout(0.5, 4, 0).eval()(x_BH, keys(5)) is x_BH
    assert Dropout(0.0, 4, 0)(x_BH, keys(5)) is x_BH


def test_the_gradient_passes_through_kept_units_alone() -> None:
    x_BH = torch.ones(20, 30, requires_grad=True)
    y_BH = Dropout(0.4, 30, 0)(x_BH, keys(20))
    y_BH.sum().backward()
    assert x_BH.grad is not None
    assert torch.equal(x_BH.grad, y_BH.detach())


def test_dropout_keeps_the_type_of_its_input_and_leaves_no_state() -> None:
    dropout = Dropout(0.5, 4, 0)
    assert dropout(torch.ones(3, 4, dtype=torch.bfloat16), keys(3)).dtype == torch.bfloat16
    assert dropout.state_dict() == {}


def test_matrices_and_kernels_decay_alone() -> None:
    model = nn.ModuleDict(
        {
            "matrix": nn.Linear(2, 2),
            "kernel": nn.Conv1d(2, 2, 3),
            "norm": nn.LayerNorm(2),
            "batch": GlobalBatchNorm(2),
            "group": nn.GroupNorm(1, 2),
            "embedding": nn.Embedding(3, 2),
        }
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, exempt = decayed_and_exempt(model)
    assert {names[id(p)] for p in decayed} == {"matrix.weight", "kernel.weight"}
    assert len(decayed) + len(exempt) == len(names)


def test_clipping_scales_the_whole_gradient() -> None:
    model = nn.Linear(2, 1)
    model.weight.grad, model.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    clip_gradient_norm(model, 10.0)
    assert model.bias.grad.item() == 4.0
    clip_gradient_norm(model, 1.0)
    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.6, 0.0]]))
    torch.testing.assert_close(model.bias.grad, torch.tensor([0.8]))
    clip_gradient_norm(model, None)
    torch.testing.assert_close(model.bias.grad, torch.tensor([0.8]))


@pytest.mark.parametrize(
    "fields", [{"dropout": 1.0}, {"dropout": -0.1}, {"weight_decay": -1.0}, {"gradient_clip_norm": 0.0}, {"drop": 0.1}]
)
def test_impossible_settings_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        RegularizationSettings(**fields)


def test_locked_dropout_is_the_same_at_all_positions() -> None:
    y_BTH = LockedDropout(0.5, 40, 0)(torch.ones(30, 7, 40), keys(30))
    assert torch.equal(y_BTH, y_BTH[:, :1].expand_as(y_BTH))
    assert torch.equal(y_BTH[:, 0], Dropout(0.5, 40, 0)(torch.ones(30, 40), keys(30)))


def test_alpha_dropout_keeps_mean_and_variance() -> None:
    x_BH = torch.nn.functional.selu(torch.randn(4000, 100))
    x_BH = (x_BH - x_BH.mean()) / x_BH.std()
    layer = AlphaDropout(0.2, 100, 0)
    y_BH = layer(x_BH, keys(4000))
    assert abs(float(y_BH.mean())) < 0.01
    assert abs(float(y_BH.var()) - 1.0) < 0.01
    low = float(y_BH.min())
    limit = -1.7580993408473766  # of selu toward minus infinity: -alpha * lambda
    a = (0.8 + limit**2 * 0.8 * 0.2) ** -0.5  # eq. of Klambauer et al. 2017, section 3, q = 0.8
    assert low == pytest.approx(a * limit - a * 0.2 * limit, rel=1e-5)
    assert abs(float((y_BH == low).double().mean()) - 0.2) < 5 * (0.16 / y_BH.numel()) ** 0.5
    assert layer.eval()(x_BH, keys(4000)) is x_BH


@pytest.mark.parametrize(("block", "p"), [(0, 0.1), (1, 0.2), (3, 0.4)])
def test_blocks_survive_at_a_rate_that_falls_with_depth(block: int, p: float) -> None:
    layer = StochasticDepth(0.4, block, 4)
    y = layer(torch.ones(5000, 3, 2), keys(5000))
    gone_B = (y == 0).flatten(1)
    assert (gone_B.all(1) == gone_B.any(1)).all(), "a row as a whole"
    assert abs(int(gone_B[:, 0].sum()) - 5000 * p) < 5 * (5000 * p * (1 - p)) ** 0.5
    torch.testing.assert_close(y[~gone_B[:, 0]], torch.full_like(y[~gone_B[:, 0]], 1 / (1 - p)))


def test_a_strength_can_be_moved() -> None:
    layers = nn.ModuleList([Dropout(0.5, 4, 0), Dropout(0.1, 4, 1, "input_dropout"), nn.Linear(2, 2)])
    set_strengths(layers, RegularizationSettings(dropout=0.2, input_dropout=0.3))
    assert [layer.p for layer in list(layers)[:2]] == [0.2, 0.3]
