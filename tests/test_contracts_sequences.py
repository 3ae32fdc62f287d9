"""What every network over steps or tokens promises: padding changes nothing, and nothing sees what is yet to come."""

from __future__ import annotations

import pytest
import torch
from contracts import (
    CASES,
    HORIZON,
    STEPS,
    VOCABULARY,
    WINDOW,
    Case,
    batch_of,
    build,
    doubled,
    keys,
    loss_of,
    over,
    parameters_of,
    shaken,
    taken,
)
from torch import Tensor

RAGGED = [case for case in CASES if case.inputs.any_length]
WRITERS = [case for case in CASES if case.task == "language_modeling"]
FORECASTERS = [case for case in CASES if case.task == "forecasting"]
COLUMNS = ("sequence", "tokens")


def test_the_table_has_them() -> None:
    assert {case.kind for case in RAGGED} >= {"feedforward", "cnn", "rnn", "lstm", "text_generator", "custom"}
    assert {case.kind for case in WRITERS} >= {"rnn", "lstm", "text_generator", "custom"}
    assert {case.kind for case in FORECASTERS} >= {"feedforward", "cnn", "rnn", "lstm", "custom"}


def padded(batch: dict[str, Tensor], more: int, filled: bool) -> dict[str, Tensor]:
    """With more steps behind every row, and other values than zero behind its end."""
    found = dict(batch)
    for name in COLUMNS:
        if name in batch:
            x = torch.cat(
                [batch[name], torch.zeros_like(batch[name][:, :1]).expand(-1, more, *batch[name].shape[2:])], 1
            )
            behind_BT = torch.arange(x.shape[1]) >= batch["length"][:, None]
            x = x.clone()
            x[behind_BT] = (7 if filled else 0) * torch.ones_like(x[behind_BT])
            found[name] = x
    return found


@over(RAGGED)
def test_padding_changes_no_loss_and_no_gradient(case: Case) -> None:
    batch, key_B = doubled(batch_of(case.inputs, 8)), keys(8)
    knobs = {"dropout": 0.2, "input_dropout": 0.2}
    found = []
    for more, filled in ((0, False), (1, False), (STEPS, True)):
        model = shaken(build(case, **knobs)).double()
        loss = loss_of(model, padded(batch, more, filled), key_B, case.task)
        loss.backward()
        found.append([loss.detach(), *(p.grad for _, p in parameters_of(model))])
        assert all(gradient is not None for gradient in found[-1])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-9)


@over(RAGGED)
def test_a_row_alone_needs_no_padding(case: Case) -> None:
    model, batch = shaken(build(case)).eval(), batch_of(case.inputs, 8)
    together = model(batch, keys(8))
    for row, length in enumerate(batch["length"].tolist()):
        alone = taken(batch, torch.tensor([row]))
        alone |= {name: alone[name][:, :length] for name in COLUMNS if name in alone}
        expected = (
            together[row : row + 1, : length - 1] if case.task == "language_modeling" else together[row : row + 1]
        )
        torch.testing.assert_close(model(alone, keys(8)[[row]]), expected, rtol=1e-4, atol=1e-5)


@over(WRITERS)
def test_no_token_sees_a_later_one_and_each_sees_all_before(case: Case) -> None:
    model = shaken(build(case, dropout=0.2), spread=0.3).double()
    tokens_BT = torch.arange(2 * (WINDOW + 1)).view(2, -1) % (VOCABULARY - 1) + 1
    length_B = torch.full((2,), WINDOW + 1)
    before = model({"tokens": tokens_BT, "length": length_B}, keys(2))
    for place in range(WINDOW + 1):
        changed = tokens_BT.clone()
        changed[:, place] = changed[:, place] % (VOCABULARY - 1) + 1
        after = model({"tokens": changed, "length": length_B}, keys(2))
        assert torch.equal(after[:, :place], before[:, :place])
        assert (after[:, place:] != before[:, place:]).any(dim=2).all(), "each later one sees it"


@over(FORECASTERS)
def test_no_forecast_sees_the_future_but_what_is_known_of_it(case: Case) -> None:
    inputs = case.inputs
    model = shaken(build(case)).eval()
    batch, other = batch_of(inputs, 8), batch_of(inputs, 8, seed=1)
    before = model(batch, keys(8))
    known = {"numeric": list(inputs.known_numeric), "categorical": list(inputs.known_categorical), "target": []}
    for name in known.keys() & batch.keys():
        other[name][:, :WINDOW] = batch[name][:, :WINDOW]
        other[name][:, :, known[name]] = batch[name][:, :, known[name]]
        assert not torch.equal(other[name], batch[name])
    assert torch.equal(model(other, keys(8)), before)
    for name in known.keys() & batch.keys():
        for column in known[name]:
            for step in range(HORIZON):
                changed = batch | {name: batch[name].clone()}
                changed[name][:, WINDOW + step, column] = 1 - changed[name][:, WINDOW + step, column].clamp(0, 1)
                assert not torch.equal(model(changed, keys(8)), before), "what is known counts"


@over(FORECASTERS)
@pytest.mark.parametrize("name", ["target", "numeric", "categorical"])
def test_a_forecast_reads_every_step_of_its_window(case: Case, name: str) -> None:
    model, batch = shaken(build(case)).eval(), batch_of(case.inputs, 8)
    if name not in batch:
        return
    before = model(batch, keys(8))
    for step in range(WINDOW):
        changed = batch | {name: batch[name].clone()}
        changed[name][:, step] = 1 - changed[name][:, step].clamp(0, 1)
        assert not torch.equal(model(changed, keys(8)), before)
