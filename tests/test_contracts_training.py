"""What every network of the table promises while it trains: one worker is two, a resumed run is the whole one, and
evaluation is what its outputs say, row by row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from contracts import CASES, CPU, Case, batch_of, build, keys, over, rows_of, settings_of, shard_of, taken
from processes import run_on_workers
from torch import Tensor

from raynn.batches import TrainingShard, evaluation_rows
from raynn.checkpoint import load_newest, save_checkpoint
from raynn.collectives import Workers
from raynn.evaluation import evaluation_of
from raynn.job import Job
from raynn.lanes import Lanes
from raynn.loop import Record, TrainingState, evaluate_shard, train_epochs

CLOCK = ("seconds", "examples_per_second")  # what two equal runs may differ in
NUM_ROWS, NUM_VALIDATION = 23, 11
KNOBS = {"dropout": 0.2, "weight_decay": 0.01}
# Nothing here depends on what else a row holds, so one case of each network, task and kind of main column is enough.
TRAINED = [case for case in CASES if " and table" not in case.data]


def job_of(case: Case) -> Job:
    return settings_of(case, None, KNOBS)


def fresh(case: Case, job: Job) -> TrainingState:
    return TrainingState.fresh(job, build(case, **KNOBS))


def train(
    case: Case,
    state: TrainingState | None = None,
    epochs: int | None = None,
    workers: Workers = Workers(),  # noqa: B008 - frozen
) -> TrainingState:
    """Trains on this worker's share of the rows, at most `epochs` epochs."""
    job, inputs = job_of(case), case.inputs
    state = state or fresh(case, job)
    lanes = Lanes(NUM_ROWS, job.optimization.global_batch_size, job.optimization.seed)
    mine = lanes.rows_of_worker(workers.rank, workers.count)
    share = TrainingShard(shard_of(rows_of(inputs, NUM_ROWS), *mine), lanes)
    held_out = evaluation_rows(NUM_VALIDATION, workers.rank, workers.count)
    validation = shard_of(rows_of(inputs, NUM_VALIDATION, seed=1), *held_out)
    for done, _ in enumerate(train_epochs(job, inputs, state, share, validation, workers), start=1):
        if done == epochs:
            break
    return state


def figures(state: TrainingState) -> list[Record]:
    return [{name: value for name, value in record.items() if name not in CLOCK} for record in state.history]


def weights(state: TrainingState) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in state.model.state_dict().items()}


def on_a_worker(workers: Workers) -> dict[str, Any]:
    """Two epochs of every case."""
    found = {}
    for case in TRAINED:
        state = train(case, epochs=2, workers=workers)
        found[str(case)] = (weights(state), figures(state))
    return found


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two workers has, of all cases: started once."""
    return run_on_workers(on_a_worker, 2, tmp_path_factory.mktemp("workers"))


@over(TRAINED)
def test_two_workers_train_as_one(case: Case, two_workers: list[dict[str, Any]]) -> None:
    (mine, history), (others, same_history) = (found[str(case)] for found in two_workers)
    assert [name for name in mine if not torch.equal(mine[name], others[name])] == []
    assert history == same_history
    alone = train(case, epochs=2)
    assert len(history) == 2
    for found, expected in zip(history, figures(alone), strict=True):
        assert found == pytest.approx(expected, rel=2e-4, abs=1e-6)


@over(TRAINED)
def test_a_resumed_run_is_the_run_bit_for_bit(case: Case, tmp_path: Path) -> None:
    through, stopped = train(case), train(case, epochs=1)
    save_checkpoint(tmp_path, 1, stopped.to_dict())
    resumed = fresh(case, job_of(case))
    state, _ = load_newest(tmp_path)
    assert state is not None
    resumed.restore(state)
    train(case, resumed)
    assert len(through.history) == 3
    assert figures(resumed) == figures(through)
    ours, theirs = weights(resumed), weights(through)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@over(CASES)
def test_evaluation_is_what_the_network_says_of_each_row(case: Case) -> None:
    """Whatever the company and the padding: sums over batches of many rows are those over rows alone."""
    job, inputs, num_rows = job_of(case), case.inputs, 13
    model = build(case, **KNOBS)
    model(batch_of(inputs, 32), keys(32))  # moves running statistics
    found = evaluate_shard(job, inputs, model, shard_of(rows_of(inputs, num_rows), 0, num_rows), Workers())
    alone, batch = evaluation_of(inputs, CPU), batch_of(inputs, num_rows)
    with torch.no_grad():
        for row in range(num_rows):
            part = taken(batch, torch.tensor([row]))
            alone.add(model.eval()(part, keys(num_rows)[[row]]), part)
    assert found == pytest.approx(alone.metrics(Workers()), rel=1e-4, abs=1e-5)
