"""Norms of layers: against float64, at the step that they are of, and their file through a crash."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import TABLE, assert_same_bits, figures, fresh, job_for, weights
from test_loop import train as train_state
from torch import nn

import raynn.loop
from raynn.checkpoint import load_newest, save_checkpoint
from raynn.folder import NORMS
from raynn.job import Job
from raynn.norms import norm_records, norms_of, own_parameters
from raynn.trainer import train


class Tied(nn.Module):
    """A parameter of its own, one that two layers share, and one without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((), 2.0))
        self.read, self.unused = nn.Linear(3, 3), nn.Linear(2, 2)
        self.write = nn.Linear(3, 3)
        self.write.weight = self.read.weight


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / NORMS).read_text().splitlines()]


def test_norms_are_those_of_float64() -> None:
    torch.manual_seed(0)
    model = Tied()
    (model.scale * model.write(torch.tanh(model.read(torch.randn(5, 3)))).square().sum()).backward()
    layers = {name: own for name, _, own in own_parameters(model)}
    assert list(layers) == ["(itself)", "read", "unused", "write"]
    assert [len(own) for own in layers.values()] == [1, 2, 2, 1]  # the shared weight is the first one's
    weight_L, gradient_L = norms_of(model).tolist()
    for (name, own), weight, gradient in zip(layers.items(), weight_L, gradient_L, strict=True):
        assert weight == pytest.approx(math.sqrt(sum(p.detach().double().square().sum() for p in own)), rel=1e-6)
        grads = [p.grad.double().square().sum() for p in own if p.grad is not None]
        assert gradient == pytest.approx(math.sqrt(sum(grads)), rel=1e-6)
        assert (gradient == 0.0) == (name == "unused")


def test_they_are_of_the_last_step_before_it_is_made_and_of_the_gradient_that_makes_it() -> None:
    sections: dict[str, Any] = {
        "optimization": {"optimizer": "sgd", "schedule": "constant", "global_batch_size": 65, "max_epochs": 2},
        "regularization": {"gradient_clip_norm": 0.05, "weight_decay": 0.0},
    }
    job = job_for(TABLE, **sections)
    start = norms_of(fresh(job, TABLE).model)[0]
    state = train_state(job, TABLE)
    assert [record["step"] for record in state.history] == [1, 2]
    first, second = state.norms_E2L
    assert torch.equal(first[0], start)
    assert not torch.equal(second[0], start)
    # and of the last step where there are several
    job = job_for(TABLE, optimization={"max_epochs": 1})
    several = train_state(job, TABLE)
    assert several.history[0]["step"] == 7
    for other in (norms_of(fresh(job, TABLE).model)[0], norms_of(several.model)[0]):
        assert not torch.equal(several.norms_E2L[0, 0], other)
    # the gradient as clipped, which nothing has set to zero yet
    assert state.norms_E2L[:, 1].norm(dim=1).tolist() == pytest.approx([0.05, 0.05], rel=1e-4)


def test_training_is_the_same_bit_for_bit_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_for(TABLE, regularization={"dropout": 0.2, "gradient_noise": 0.1})
    measured = train_state(job, TABLE)
    monkeypatch.setattr(raynn.loop, "with_epoch", lambda norms_E2L, model: norms_E2L)
    plain = train_state(job, TABLE)
    assert len(measured.norms_E2L) == 3 > len(plain.norms_E2L)
    assert_same_bits(weights(measured), weights(plain))
    assert figures(measured.history) == figures(plain.history)


def test_a_checkpoint_from_before_there_were_norms_goes_on_with_them(tmp_path: Path) -> None:
    job = job_for(TABLE)
    old = train_state(job, TABLE, epochs=2).to_dict()
    del old["norms"]
    save_checkpoint(tmp_path, 2, old)
    saved, _ = load_newest(tmp_path)
    assert saved is not None
    state = fresh(job, TABLE)
    state.restore(saved)
    assert norm_records(state.model, state.history, state.norms_E2L) == []
    train_state(job, TABLE, state)
    assert [each["epoch"] for each in norm_records(state.model, state.history, state.norms_E2L)] == [3]


def test_the_file_has_each_epoch_once_after_a_crash_at_its_worst(garden: Path, tmp_path: Path) -> None:
    job = {
        "name": "a",
        "data": {"train": str(garden / "flowers.parquet"), "target": "kind"},
        "network": {"kind": "feedforward", "hidden": [4]},
        "optimization": {"max_epochs": 5, "global_batch_size": 32},
        "storage": str(tmp_path),
    }
    run = train(Job.from_dict(job))
    whole = lines(run)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(each["epoch"], each["step"]) for each in whole] == [(each["epoch"], each["step"]) for each in metrics]
    names = {key.split("/", 2)[2] for key in whole[0] if key not in ("epoch", "step")}
    assert {f"norms/{kind}/{name}" for kind in ("weight", "gradient") for name in names} | {"epoch", "step"} == set(
        whole[0]
    )
    assert not any(key.startswith("norms/") for record in metrics for key in record), "metrics.jsonl keeps its keys"
    # killed after norms.jsonl had an epoch that no checkpoint has, in the middle of a line
    shutil.rmtree(run / "checkpoints" / "epoch-00005")
    (run / "result.json").unlink()
    (run / NORMS).write_text("".join(json.dumps(each) + "\n" for each in whole) + '{"epoch": 6, "st')
    assert lines(train(Job.from_dict(job, ["resume=true"]))) == whole
