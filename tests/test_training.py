"""One run on one worker: what does and does not change its result."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch

from raynn.errors import TrainingError
from raynn.job import Job
from raynn.trainer import train

Train = Callable[..., list[dict[str, float]]]


def records(run: Path) -> list[dict[str, float]]:
    """metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(history: list[dict[str, float]]) -> list[float]:
    """Training and validation losses, epoch after epoch."""
    return [record[key] for record in history for key in ("train/loss", "val/loss")]


@pytest.fixture
def train_on_table(tmp_path: Path) -> Train:
    """Trains a small network for three epochs on 500 rows, with some settings changed; returns its records."""
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(2, 500))
    table = pa.table({"x": x, "z": z, "y": 3 * x - z + 0.1 * rng.normal(size=500) + 50})
    pyarrow.csv.write_csv(table, tmp_path / "table.csv")

    def run(*overrides: str, **sections: dict[str, Any]) -> list[dict[str, float]]:
        job = {
            "data": {"train": str(tmp_path / "table.csv"), "target": "y", "validation": 0.2},
            "network": {"kind": "feedforward", "hidden": [16]},
            "regularization": {"dropout": 0.1},
            "optimization": {"global_batch_size": 32, "max_epochs": 3, "learning_rate": 1e-2},
            "storage": str(tmp_path / "runs"),
        } | sections
        return records(train(Job.from_dict(job, overrides)))

    return run


def test_a_run_repeats_bit_for_bit_and_another_seed_differs(train_on_table: Train) -> None:
    first = losses(train_on_table())
    assert losses(train_on_table()) == first
    assert losses(train_on_table("optimization.seed=1")) != first


def test_accumulation_changes_memory_not_the_result(train_on_table: Train) -> None:
    assert losses(train_on_table("optimization.accumulate=4")) == pytest.approx(losses(train_on_table()), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle", "plateau"])
def test_every_optimizer_and_schedule_learns(train_on_table: Train, optimizer: str, schedule: str) -> None:
    history = train_on_table(
        f"optimization.optimizer={optimizer}",
        f"optimization.schedule={schedule}",
        "optimization.warmup_fraction=0.1",
        "optimization.max_epochs=6",
    )
    assert history[-1]["val/loss"] < 0.5 * history[0]["val/loss"]
    assert history[-1]["val/r2"] > 0.8


def test_bf16_is_close_to_float32(train_on_table: Train) -> None:
    exact, rounded = losses(train_on_table()), losses(train_on_table("optimization.precision=bf16"))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)


def test_clipping_bounds_the_step(train_on_table: Train) -> None:
    """A gradient clipped to nearly nothing moves the weights of SGD by nearly nothing."""
    sgd = ("optimization.optimizer=sgd", "optimization.schedule=constant", "regularization.weight_decay=0.0")
    still = train_on_table(*sgd, "regularization.gradient_clip_norm=1e-9")
    assert still[2]["val/loss"] == pytest.approx(still[0]["val/loss"], rel=1e-6)
    assert train_on_table(*sgd)[2]["val/loss"] < 0.9 * still[2]["val/loss"]


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(train_on_table: Train, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"stopped being finite at step \d+ of epoch \d+; lower") as caught:
        train_on_table("optimization.learning_rate=1e30", "optimization.optimizer=sgd", "name=exploded")
    result = json.loads((tmp_path / "runs" / "exploded" / "result.json").read_text())
    assert result["status"] == "failed"
    assert result["stop_reason"] == str(caught.value)


def test_the_best_weights_are_the_ones_left(train_on_table: Train, tmp_path: Path) -> None:
    """A rate so high that the last epochs are worse than an early one: the model is that early one."""
    from raynn.run import open_run

    overrides = ("optimization.learning_rate=0.3", "optimization.schedule=constant", "optimization.max_epochs=60")
    history = train_on_table(*overrides, "early_stopping.patience=3", "name=bumpy")
    best = min(range(len(history)), key=lambda i: history[i]["val/loss"])
    run = open_run(tmp_path / "runs" / "bumpy")
    assert run.result["status"] == "stopped_early"
    assert run.result["best_epoch"] == best + 1 == len(history) - 3
    assert "val/loss has not improved by more than 0 for 3 epochs" in run.result["stop_reason"]
    assert run.evaluate("validation")["val/loss"] == pytest.approx(history[best]["val/loss"], rel=1e-6)
    assert not math.isclose(history[best]["val/loss"], history[-1]["val/loss"], rel_tol=1e-3)


def test_one_worker_in_this_process_computes_with_as_many_threads_as_asked(train_on_table: Train) -> None:
    before = torch.get_num_threads()
    try:
        train_on_table(resources={"cpus_per_worker": 2})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
