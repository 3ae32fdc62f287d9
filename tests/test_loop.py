from __future__ import annotations

import copy
import math
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import run_on_workers
from torch import Tensor

import raynn.loop
from raynn.batches import TrainingShard, evaluation_rows
from raynn.checkpoint import load_newest, save_checkpoint
from raynn.collectives import Workers
from raynn.errors import TrainingError
from raynn.job import Job
from raynn.lanes import Lanes
from raynn.loop import Record, TrainingState, evaluate_shard, train_epochs
from raynn.networks import NETWORKS
from raynn.objectives import loss_per_row
from raynn.optimization import learning_rate
from raynn.preprocessing import InputSpec
from raynn.shards import Arrays, Shard, build_shard

CLOCK = ("seconds", "examples_per_second")  # what two equal runs may differ in
TABLE = InputSpec(num_numeric=3, cardinalities=(4,), num_outputs=3, task="classification", classes=(0, 1, 2))
VALUES = InputSpec(num_numeric=3)
IMAGES = InputSpec(
    image_CHW=(1, 6, 5),
    image_mean=(120.0,),
    image_std=(60.0,),
    num_outputs=3,
    task="classification",
    classes=(0, 1, 2),
)


def job_for(inputs: InputSpec, network: dict[str, Any] | None = None, **sections: dict[str, Any]) -> Job:
    kind = "cnn" if inputs.image_CHW else "feedforward"
    shape = {"channels": [4, 6], "head_hidden": [8]} if inputs.image_CHW else {"hidden": [12, 8]}
    optimization = {"global_batch_size": 9, "max_epochs": 3, "learning_rate": 0.01, "seed": 1}
    return Job.from_dict(
        {
            "data": {"train": "rows.parquet", "target": "y"},
            "task": inputs.task,
            "network": {"kind": kind, **shape, **(network or {})},
            **sections,
            "optimization": {**optimization, **sections.get("optimization", {})},
        }
    )


def rows(inputs: InputSpec, num_rows: int, seed: int = 0) -> Arrays:
    """Rows whose target depends on their features."""
    random = np.random.default_rng(seed)
    arrays: Arrays = {}
    if inputs.num_numeric:
        arrays["numeric"] = random.normal(size=(num_rows, inputs.num_numeric)).astype(np.float32)
        signal = arrays["numeric"][:, 0]
    if inputs.cardinalities:
        arrays["categorical"] = random.integers(0, inputs.cardinalities, (num_rows, len(inputs.cardinalities)))
    if inputs.image_CHW:
        arrays["image"] = random.integers(0, 256, (num_rows, *inputs.image_CHW), dtype=np.uint8)
        signal = (arrays["image"].mean((1, 2, 3)) - 127.5) / 13
    if inputs.task == "classification":
        arrays["target"] = np.digitize(signal, [-0.4, 0.4])
    else:
        arrays["target"] = signal.astype(np.float32)
    return arrays


def shard(arrays: Arrays, start: int, stop: int) -> Shard:
    part = {name: array[start:stop] for name, array in arrays.items()}
    return build_shard([part], start, stop - start, folder=Path(), device=torch.device("cpu"), residence="memory")


def fresh(job: Job, inputs: InputSpec) -> TrainingState:
    torch.manual_seed(job.optimization.seed)
    network = NETWORKS[job.network.kind]
    return TrainingState.fresh(job, network.build(job.network, inputs, job.regularization))


def train(
    job: Job,
    inputs: InputSpec,
    state: TrainingState | None = None,
    *,
    arrays: Arrays | None = None,
    num_rows: int = 65,
    epochs: int | None = None,
    workers: Workers = Workers(),  # noqa: B008 - frozen
) -> TrainingState:
    """Trains (at most `epochs` epochs) on this worker's share of the rows."""
    arrays = rows(inputs, num_rows) if arrays is None else arrays
    state = state or fresh(job, inputs)
    lanes = Lanes(len(arrays["target"]), job.optimization.global_batch_size, job.optimization.seed)
    mine = TrainingShard(shard(arrays, *lanes.rows_of_worker(workers.rank, workers.count)), lanes)
    validation = shard(rows(inputs, 31, seed=1), *evaluation_rows(31, workers.rank, workers.count))
    for done, _ in enumerate(train_epochs(job, inputs, state, mine, validation, workers), start=1):
        if done == epochs:
            break
    return state


def figures(history: Iterable[Record]) -> list[Record]:
    return [{name: value for name, value in record.items() if name not in CLOCK} for record in history]


def weights(state: TrainingState) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in state.model.state_dict().items()}


def assert_same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_one_step_is_the_gradient_of_the_mean_loss_over_all_rows() -> None:
    """The golden step, by hand in float64: if it fails, something changed what a step of training is."""
    optimization = {"optimizer": "sgd", "momentum": 0.0, "schedule": "constant", "learning_rate": 0.1}
    job = job_for(
        VALUES,
        {"hidden": []},
        optimization={**optimization, "global_batch_size": 8, "max_epochs": 1},
        regularization={"dropout": 0.0, "weight_decay": 0.5},
    )
    state = fresh(job, VALUES)
    before = {name: weight.double().numpy().copy() for name, weight in weights(state).items()}
    arrays = rows(VALUES, 10)  # 8 lanes of one or two rows: a single batch, of 10 rows
    train(job, VALUES, state, arrays=arrays)
    x_NF, y_N = arrays["numeric"].astype(np.float64), arrays["target"].astype(np.float64)
    error_N = x_NF @ before["head.weight"][0] + before["head.bias"][0] - y_N
    w_F = before["head.weight"][0] - 0.1 * (2 * error_N @ x_NF / 10 + 0.5 * before["head.weight"][0])
    after = weights(state)
    np.testing.assert_allclose(after["head.weight"][0], w_F, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(after["head.bias"][0], before["head.bias"][0] - 0.1 * 2 * error_N.mean(), atol=1e-7)
    (record,) = state.history
    assert record["train/loss"] == pytest.approx((error_N**2).mean(), rel=1e-6)
    assert (record["epoch"], record["step"], record["learning_rate"]) == (1, 1, 0.1)


CASES = {
    "batch norm and dropout": (IMAGES, {"regularization": {"dropout": 0.3, "input_dropout": 0.2}}),
    "accumulation": (TABLE, {"optimization": {"accumulate": 3}, "regularization": {"gradient_clip_norm": 0.1}}),
    "regression": (VALUES, {"optimization": {"optimizer": "sgd", "schedule": "one_cycle"}}),
    "going back": (
        TABLE,
        {
            "early_stopping": {"rule": "divergence", "bound": -1.0, "warmup_epochs": 2, "reductions": 2},
            "optimization": {"max_epochs": 4},
        },
    ),
}
SPOILED_ROW = 50  # the second worker's, of 65 rows in 9 lanes


def spoiled(inputs: InputSpec) -> Arrays:
    arrays = rows(inputs, 65)
    arrays["numeric"][SPOILED_ROW, 1] = np.nan
    return arrays


def on_a_worker(workers: Workers) -> dict[str, Any]:
    """Every case, and a run that fails on one worker alone."""
    found: dict[str, Any] = {}
    for name, (inputs, sections) in CASES.items():
        state = train(job_for(inputs, **sections), inputs, workers=workers)
        found[name] = (weights(state), figures(state.history), state.norms_E2L)
    found["seconds"] = [record["seconds"] for record in state.history]
    raynn.loop.STEPS_BETWEEN_CHECKS = 1  # before the gradient has spoiled the other worker too
    with pytest.raises(TrainingError) as caught:
        train(job_for(VALUES), VALUES, arrays=spoiled(VALUES), workers=workers)
    return found | {"error": str(caught.value)}


def spoiled_step() -> int:
    batches = Lanes(65, 9, 1).batches(0, 0, 1)
    return next(k for k, batch in enumerate(batches, start=1) if SPOILED_ROW in batch)


def not_finite() -> str:
    return (
        f"the training loss stopped being finite at step {spoiled_step()} of epoch 1; lower "
        "optimization.learning_rate, set regularization.gradient_clip_norm: 1.0, or look for extreme values"
    )


def test_two_workers_train_as_one(tmp_path: Path) -> None:
    first, second = run_on_workers(on_a_worker, 2, tmp_path)
    assert first.pop("error") == second.pop("error") == not_finite()  # told by both, seen by one
    assert first["seconds"] == second["seconds"], "a rule goes by the time, and workers must decide alike"
    for name, (inputs, sections) in CASES.items():
        (first_weights, first_history, first_norms), (second_weights, second_history, norms) = first[name], second[name]
        assert_same_bits(first_weights, second_weights)
        assert first_history == second_history
        assert torch.equal(first_norms, norms)
        alone = train(job_for(inputs, **sections), inputs)
        for key, expected in weights(alone).items():
            torch.testing.assert_close(first_weights[key], expected, rtol=1e-4, atol=1e-5, msg=f"{name}: {key}")
        for found, record in zip(first_history, figures(alone.history), strict=True):
            assert found == pytest.approx(record, rel=1e-4), name
        torch.testing.assert_close(norms, alone.norms_E2L, rtol=1e-4, atol=1e-5, msg=name)


BUDGET: dict[str, Any] = {"early_stopping": {"rule": "time", "budget_s": 0.2}, "optimization": {"max_epochs": 2000}}


def by_another_clock(workers: Workers) -> list[tuple[dict[str, Tensor], list[Record]]]:
    """Until the time is up, where the second worker's clock is an hour ahead and five times as fast; then for as many
    epochs by clocks that agree.
    """
    real, began = time.perf_counter, time.perf_counter()
    if workers.rank == 1:
        time.perf_counter = lambda: began + 3600 + 5 * (real() - began)
    state = train(job_for(TABLE, **BUDGET), TABLE, workers=workers)
    time.perf_counter = real
    job = job_for(TABLE, optimization=BUDGET["optimization"])
    again = train(job, TABLE, epochs=len(state.history), workers=workers)
    return [(weights(each), each.history) for each in (state, again)]


def test_clocks_that_differ_change_nothing(tmp_path: Path) -> None:
    """By its own clock the second worker would stop after a fifth of the epochs."""
    first, second = run_on_workers(by_another_clock, 2, tmp_path)
    for (weights_1, history_1), (weights_2, history_2) in zip(first, second, strict=True):
        assert history_1 == history_2
        assert_same_bits(weights_1, weights_2)
    seconds = [record["seconds"] for record in first[0][1]]
    assert sum(seconds[:-1]) < BUDGET["early_stopping"]["budget_s"] <= sum(seconds)
    assert_same_bits(first[0][0], first[1][0])
    assert figures(first[0][1]) == figures(first[1][1])


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    with pytest.raises(TrainingError, match=f"^{re.escape(not_finite())}$"):
        train(job_for(VALUES), VALUES, arrays=spoiled(VALUES))


def test_losses_are_looked_at_before_an_epoch_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raynn.loop, "STEPS_BETWEEN_CHECKS", 1)
    state = fresh(job_for(VALUES), VALUES)
    with pytest.raises(TrainingError):
        train(job_for(VALUES), VALUES, state, arrays=spoiled(VALUES))
    assert state.step_of_epoch == spoiled_step() < 7


def test_pieces_of_a_batch_give_the_gradient_of_the_whole() -> None:
    whole = train(job_for(TABLE), TABLE)
    in_pieces = train(job_for(TABLE, optimization={"accumulate": 9}), TABLE)
    for name, expected in weights(whole).items():
        torch.testing.assert_close(weights(in_pieces)[name], expected, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("inputs", [TABLE, IMAGES], ids=["table", "images"])
def test_a_resumed_run_is_the_run_bit_for_bit(tmp_path: Path, inputs: InputSpec) -> None:
    job = job_for(
        inputs,
        optimization={"max_epochs": 5, "schedule": "plateau", "plateau_patience": 1},
        regularization={"dropout": 0.2},
    )
    through = train(job, inputs)
    stopped = train(job, inputs, epochs=2)
    save_checkpoint(tmp_path, 2, stopped.to_dict())
    resumed = fresh(job, inputs)
    state, _ = load_newest(tmp_path)
    assert state is not None
    resumed.restore(state)
    train(job, inputs, resumed)
    assert len(through.history) == 5
    assert figures(resumed.history) == figures(through.history)
    assert torch.equal(resumed.norms_E2L, through.norms_E2L)
    assert len(through.norms_E2L) == 5
    assert_same_bits(weights(resumed), weights(through))
    assert_same_bits(resumed.best_weights, through.best_weights)
    assert resumed.decision == through.decision


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    first, second, other = (train(job_for(IMAGES, optimization={"seed": seed}), IMAGES, epochs=1) for seed in (1, 1, 2))
    assert_same_bits(weights(first), weights(second))
    assert figures(first.history) == figures(second.history) != figures(other.history)


def test_training_learns() -> None:
    state = train(job_for(TABLE, optimization={"max_epochs": 15}), TABLE, num_rows=200)
    assert state.history[-1]["train/loss"] < 0.5 * state.history[0]["train/loss"]
    assert state.history[-1]["val/accuracy"] > 0.8


def test_the_rule_ends_the_run_and_the_best_weights_are_kept() -> None:
    job = job_for(TABLE, early_stopping={"patience": 2, "min_delta": 1e6}, optimization={"max_epochs": 10})
    state = fresh(job, TABLE)
    copies: list[dict[str, Tensor]] = []
    arrays = rows(TABLE, 65)
    mine = TrainingShard(shard(arrays, 0, 65), Lanes(65, 9, 1))
    for _ in train_epochs(job, TABLE, state, mine, shard(rows(TABLE, 31, 1), 0, 31), Workers()):
        copies.append({name: weight.clone() for name, weight in weights(state).items()})
    assert len(state.history) == 3
    assert state.decision is not None
    assert state.decision.stop
    losses = [record["val/loss"] for record in state.history]
    assert state.decision.best_epoch == losses.index(min(losses)) + 1
    assert_same_bits(state.best_weights, copies[state.decision.best_epoch - 1])
    state.decision = None  # as after a resume
    train(job, TABLE, state)
    assert len(state.history) == 3, "a run that has ended trains no further"


def test_the_best_weights_do_not_move_with_the_model() -> None:
    state = train(job_for(VALUES), VALUES, epochs=1)
    kept = {name: weight.clone() for name, weight in state.best_weights.items()}
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.add_(1.0)
    assert_same_bits(state.best_weights, kept)


# Every epoch after the second is worse than the bound, so the first two decide which weights training goes back to.
GOING_BACK = {"rule": "divergence", "bound": -1.0, "warmup_epochs": 3, "reductions": 2, "factor": 0.5}
JUMPY = {"learning_rate": 0.3, "max_epochs": 6, "schedule": "constant"}  # so that the third epoch is not the best


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_a_reduction_goes_back_to_the_weights_and_moments_of_the_best_epoch(optimizer: str) -> None:
    job = job_for(
        TABLE,
        early_stopping=GOING_BACK,
        optimization={**JUMPY, "optimizer": optimizer},
        regularization={"ema_decay": 0.9},
    )
    state = fresh(job, TABLE)
    mine, validation = TrainingShard(shard(rows(TABLE, 65), 0, 65), Lanes(65, 9, 1)), shard(rows(TABLE, 31, 1), 0, 31)
    after: list[dict[str, Any]] = []
    epochs_lost = 0
    for _ in train_epochs(job, TABLE, state, mine, validation, Workers()):
        after.append(copy.deepcopy(state.to_dict()))
        assert state.decision is not None
        if state.decision.back:
            epochs_lost += len(after) - state.decision.best_epoch
            best = after[state.decision.best_epoch - 1]
            assert_same_bits(dict(leaves(state.moving())), dict(leaves({key: best[key] for key in state.moving()})))
    assert state.decision is not None
    assert [reaction.epoch for reaction in state.decision.reactions] == [4, 5]
    assert epochs_lost > 0, "or going back changed nothing"
    assert [record["learning_rate"] for record in state.history] == pytest.approx([0.3] * 4 + [0.15, 0.075])
    assert state.decision.stop


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested values; the learning rate, which a step sets, is none."""
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, dict | list | tuple):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, value in pairs:
            yield from leaves(value, f"{path}/{key}")


@pytest.mark.parametrize("epochs", [3, 4, 5])
def test_a_run_killed_around_a_reduction_resumes_exactly(epochs: int, tmp_path: Path) -> None:
    job = job_for(TABLE, early_stopping=GOING_BACK, optimization=JUMPY, regularization={"ema_decay": 0.9})
    through = train(job, TABLE)
    save_checkpoint(tmp_path, epochs, train(job, TABLE, epochs=epochs).to_dict())
    state, _ = load_newest(tmp_path)
    assert state is not None
    resumed = fresh(job, TABLE)
    resumed.restore(state)
    train(job, TABLE, resumed)
    assert len(through.history) == 6
    assert figures(resumed.history) == figures(through.history)
    assert_same_bits(dict(leaves(resumed.moving())), dict(leaves(through.moving())))
    assert resumed.decision == through.decision


def test_no_state_is_kept_to_go_back_to_where_none_is_asked_for() -> None:
    assert train(job_for(TABLE), TABLE, epochs=1).best_state is None


def test_the_learning_rate_follows_the_schedule_over_all_steps() -> None:
    job = job_for(TABLE, optimization={"warmup_fraction": 0.2})
    steps = Lanes(65, 9, 1).steps_per_epoch
    last_of_epoch = [steps - 1, 2 * steps - 1, 3 * steps - 1]
    recorded = [record["learning_rate"] for record in train(job, TABLE).history]
    assert recorded == [learning_rate(job.optimization, step, 3 * steps) for step in last_of_epoch]


def test_the_gradient_is_clipped() -> None:
    optimization = {"optimizer": "sgd", "momentum": 0.0, "schedule": "constant", "learning_rate": 1.0}
    job = job_for(
        VALUES,
        optimization={**optimization, "global_batch_size": 64, "max_epochs": 1},
        regularization={"gradient_clip_norm": 1e-3, "weight_decay": 0.0, "dropout": 0.0},
    )
    before = torch.cat([weight.flatten() for weight in weights(fresh(job, VALUES)).values()]).double()
    after = torch.cat([weight.flatten() for weight in weights(train(job, VALUES)).values()]).double()
    assert float((after - before).norm()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("inputs", [TABLE, IMAGES], ids=["table", "images"])
def test_evaluation_covers_every_row_and_changes_nothing(inputs: InputSpec) -> None:
    job = job_for(inputs, regularization={"dropout": 0.5, "label_smoothing": 0.3})
    state = train(job, inputs, epochs=1)
    before = {name: weight.clone() for name, weight in weights(state).items()}
    arrays = rows(inputs, 700)  # more than two batches of 256
    state.model.train()
    found = evaluate_shard(job, inputs, state.model, shard(arrays, 0, 700), Workers())
    assert_same_bits(weights(state), before)  # running statistics too
    batch = {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
    with torch.no_grad():
        outputs_NK = state.model.eval()(batch)
    loss = loss_per_row(outputs_NK, batch, inputs.task).mean().item()
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["accuracy"] == float((outputs_NK.argmax(1) == batch["target"]).double().mean())


def test_training_uses_dropout_and_smoothing() -> None:
    def first_loss(**regularization: float) -> float:
        job = job_for(TABLE, regularization={"dropout": 0.0, **regularization})
        return train(job, TABLE, epochs=1).history[0]["train/loss"]

    plain = first_loss()
    assert first_loss(dropout=0.5) != plain
    assert first_loss(label_smoothing=0.9) == pytest.approx(math.log(3), abs=0.05)


def test_half_precision_leaves_the_weights_whole() -> None:
    half, whole = (train(job_for(IMAGES, optimization={"precision": p}), IMAGES) for p in ("bf16", "float32"))
    assert all(weight.dtype == torch.float32 for weight in weights(half).values())
    assert not torch.equal(weights(half)["head.weight"], weights(whole)["head.weight"])
    assert half.history[-1]["train/loss"] == pytest.approx(whole.history[-1]["train/loss"], rel=0.05)
