"""Networks over sequences of different lengths are blind to the padding behind them.

Shapes: B rows, T steps, C channels.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raynn.networks import NETWORKS
from raynn.networks.cnn import Pool
from raynn.networks.layers import pooled_over_steps, steps_within
from raynn.networks.normalization import GlobalBatchNorm, group_norm
from raynn.preprocessing import InputSpec
from raynn.regularization import RegularizationSettings

STEPS = InputSpec(sequence_TC=(0, 3), num_numeric=2, num_outputs=2, task="classification", classes=(0, 1))
TEXT = InputSpec(vocabulary_size=20, num_numeric=2, num_outputs=2, task="classification", classes=(0, 1))
LENGTHS = [4, 1, 9, 2, 9, 5, 0, 3]

CNN = {"kind": "cnn", "channels": (4, 5, 6, 4), "head_hidden": (6,)}
FEEDFORWARD = {"kind": "feedforward", "hidden": (6,)}
OPTIONS: dict[str, dict[str, Any]] = {
    "max": {"pooling": "max", "head_pooling": "mean"},
    "mean": {"pooling": "mean", "normalization": "group"},
    "stride": {"pooling": "stride", "normalization": "none", "kernel_size": 5},
    "residual": {"block": "residual", "activation": "gelu", "blocks_per_stage": 2},
    "residual group stride": {"block": "residual", "normalization": "group", "pooling": "stride"},
}
CASES = {f"cnn {name}": CNN | option for name, option in OPTIONS.items()} | {
    f"feedforward {pooling}": FEEDFORWARD | {"pooling": pooling} for pooling in ("mean", "max")
}


TEXT_CASES: dict[str, dict[str, Any]] = {
    "text: cnn": CNN,
    "text: feedforward mean": FEEDFORWARD | {"pooling": "mean"},
    "text: feedforward max": FEEDFORWARD | {"pooling": "max"},
    "text: rnn": {"kind": "rnn", "hidden": 4},
    "text: lstm": {"kind": "lstm", "hidden": 4, "layers": 2, "bidirectional": True, "pooling": "attention"},
}
ALL = {name: (STEPS, fields) for name, fields in CASES.items()}
ALL |= {name: (TEXT, fields) for name, fields in TEXT_CASES.items()}


def build(inputs: InputSpec, fields: dict[str, Any], **regularization: float) -> nn.Module:
    torch.manual_seed(0)
    network = NETWORKS[fields["kind"]]
    return network.build(network.settings(**fields), inputs, RegularizationSettings(**regularization))


def batch_of(extra_steps: int = 0, padding: float = 0.0, lengths: list[int] = LENGTHS) -> dict[str, Tensor]:
    """Rows of these lengths, padded beyond the longest by `extra_steps`; the value `padding` stands behind each, of
    text as much as it is of a token.
    """
    generator = torch.Generator().manual_seed(1)
    x_BTC = torch.full((len(lengths), max(lengths) + extra_steps, 3), padding)
    for x_TC, length in zip(x_BTC, lengths, strict=True):
        x_TC[:length] = torch.randn(length, 3, generator=generator)
        x_TC[length : length + (length == 0)] = 0.0  # a row without steps counts as one of zeros
    random_BT = torch.arange(len(lengths))[:, None] + 3 * torch.arange(x_BTC.shape[1])
    there_BT = torch.arange(x_BTC.shape[1]) < torch.tensor(lengths)[:, None]
    behind_BT = min(19, int(padding)) * steps_within(torch.tensor(lengths), x_BTC.shape[1]).logical_not()
    return {
        "sequence": x_BTC,
        "tokens": torch.where(there_BT, random_BT % 20, behind_BT).int(),
        "length": torch.tensor(lengths),
        "numeric": torch.randn(len(lengths), 2, generator=generator),
    }


def keys(num: int) -> Tensor:
    return torch.arange(num, dtype=torch.int32) * 0x1234567


def doubled(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.double() if x.is_floating_point() else x for name, x in batch.items()}


def trained(name: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs, gradients and running statistics of a step, then outputs in evaluation, in float64."""
    model, batch = build(*ALL[name], dropout=0.2, input_dropout=0.2).double(), doubled(batch)
    outputs = model(batch, keys(len(LENGTHS)))
    (outputs.square().sum() + outputs[:, 0].sum()).backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in found.values())
    found |= {name: buffer.clone() for name, buffer in model.named_buffers()}
    return found | {"outputs": outputs.detach(), "evaluated": model.eval()(batch).detach()}


@pytest.mark.parametrize("name", ALL)
def test_more_padding_gives_the_same(name: str) -> None:
    expected = trained(name, batch_of())
    assert expected["outputs"].std() > 0.01
    for other in (batch_of(extra_steps=1), batch_of(extra_steps=6, padding=100.0)):
        for key, found in trained(name, other).items():
            torch.testing.assert_close(found, expected[key], rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.parametrize("name", ALL)
def test_a_row_does_not_see_its_batch(name: str) -> None:
    model = build(*ALL[name])
    model(batch_of())  # running statistics that are not those of the start
    batch = batch_of()
    together = model.eval()(batch)
    for row, length in enumerate(LENGTHS):
        alone = {
            key: x[row : row + 1, : max(1, length)] if key in ("sequence", "tokens") else x[row : row + 1]
            for key, x in batch.items()
        }
        torch.testing.assert_close(model(alone), together[row : row + 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", OPTIONS)
def test_where_all_lengths_are_alike_nothing_is_masked(name: str) -> None:
    """Of 8 steps, halved three times: as the network of that very length, whose weights fit."""
    fields = {"head_pooling": "max"} | CASES[f"cnn {name}"]
    ragged, even = build(STEPS, fields), build(InputSpec(**{**vars(STEPS), "sequence_TC": (8, 3)}), fields)
    even.load_state_dict(ragged.state_dict())
    batch = batch_of(lengths=[8] * 6)
    for training in (True, False):
        torch.testing.assert_close(ragged.train(training)(batch), even.train(training)(batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", [GlobalBatchNorm(8), group_norm(8)])
def test_norms_see_the_steps_that_are_there(norm: nn.Module) -> None:
    x_BCT = torch.randn(3, 8, 7) + 2.0
    within_B1T = steps_within(torch.tensor([7, 2, 4]), 7)[:, None]
    found = norm(x_BCT, within_B1T)
    if isinstance(norm, GlobalBatchNorm):
        steps_SC = x_BCT.transpose(1, 2)[within_B1T.squeeze(1)]
        expected = (steps_SC - steps_SC.mean(0)) / (steps_SC.var(0, correction=0) + norm.eps).sqrt()
        torch.testing.assert_close(found.transpose(1, 2)[within_B1T.squeeze(1)], expected)
        return
    for x_CT, y_CT, length in zip(x_BCT, found, (7, 2, 4), strict=True):
        expected = nn.functional.group_norm(x_CT[None, :, :length], norm.num_groups)[0]
        torch.testing.assert_close(y_CT[:, :length], expected)


def test_steps_are_halved_in_pairs() -> None:
    x_BCT = torch.tensor([[[1.0, 3.0, -5.0, 7.0, 7.0]], [[-1.0, 9.0, 9.0, 9.0, 9.0]]])
    within = steps_within(torch.tensor([3, 1]), 5)[:, None]
    for pooling, first in (("max", 3.0), ("mean", 2.0)):
        y_BCT, halved = Pool(pooling, (2,))((x_BCT, within))
        assert y_BCT.tolist() == [[[first, -5.0, 0.0]], [[-1.0, 0.0, 0.0]]]
        assert halved is not None
        assert halved.tolist() == [[[True, True, False]], [[True, False, False]]]


def test_pooling_over_steps() -> None:
    x_BTH = torch.tensor([[[1.0], [-4.0], [9.0]], [[-2.0], [9.0], [9.0]], [[0.0], [9.0], [9.0]]])
    within_BT = steps_within(torch.tensor([2, 1, 0]), 3)
    assert pooled_over_steps(x_BTH, within_BT, "mean").tolist() == [[-1.5], [-2.0], [0.0]]
    assert pooled_over_steps(x_BTH, within_BT, "max").tolist() == [[1.0], [-2.0], [0.0]]
