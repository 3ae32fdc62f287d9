"""A few steps of a job's own network: what they are said to hold, counted here; bounded in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raynn.batches import TrainingShard
from raynn.cache import RememberingDriver
from raynn.collectives import Workers
from raynn.encoded import itself
from raynn.job import Job
from raynn.lanes import Lanes
from raynn.memory import activations_of, gradient_bytes
from raynn.placement import expected_residence, place_shards
from raynn.preparation import Prepared
from raynn.rehearsal import Rehearsal, rehearse, traffic_of
from raynn.tasks import build_model, prepare_job, understand_job


def digits(network: dict[str, Any], **sections: Any) -> tuple[Job, Prepared]:
    tree = {
        "data": {"train": "digits", "target": "label"},
        "network": network,
        "optimization": {"global_batch_size": 64},
    }
    job = Job.from_dict(tree | sections)
    prepared = prepare_job(job, understand_job(job, Path()), RememberingDriver())
    return job.model_copy(update={"task": prepared.task}), prepared


def rehearsed(job: Job, prepared: Prepared, **more: Any) -> Rehearsal:
    return rehearse(
        job, prepared.preprocessing, prepared.encoded, expected_residence(prepared.encoded, itself, job, Path()), **more
    )


def test_what_a_worker_holds() -> None:
    job, prepared = digits({"kind": "feedforward", "hidden": [32]}, regularization={"ema_decay": 0.9})
    memory = rehearsed(job, prepared).memory
    num_parameters = 64 * 32 + 32 + 32 * 10 + 10
    assert memory.gradients == 4 * num_parameters
    assert memory.weights - memory.gradients < 4096  # buffers: what inputs are scaled by
    assert memory.optimizer == 2 * 4 * num_parameters + 4 * 4  # two averages, and the step of each of four tensors
    assert memory.copies == 2 * memory.weights
    assert memory.rows == expected_residence(prepared.encoded, itself, job, Path()).worker_bytes
    parts = [memory.weights, memory.gradients, memory.optimizer, memory.copies, memory.activations, memory.rows]
    assert memory.total == max(memory.so_far, memory.process + sum(parts))
    assert memory.process > 100 * 2**20  # torch alone


def test_activations_are_what_the_backward_pass_reads() -> None:
    job, prepared = digits({"kind": "feedforward", "hidden": [32]}, regularization={"dropout": 0.0})
    shards = place_shards(prepared.encoded, itself, job, Workers(), 1, Path("unused"))
    model = build_model(job, prepared.preprocessing)

    def of(num_rows: int) -> int:
        rows = shards.train.shard
        return activations_of(job, model, TrainingShard(rows, Lanes(rows.num_rows, num_rows, 0)), Workers()).total

    a_row = (of(128) - of(64)) / 64
    # the 64 pixels as numbers, 32 units, 10 logarithms of probabilities, and at most a few values more
    assert 4 * (64 + 32 + 10) <= a_row <= 4 * (64 + 2 * 32 + 3 * 10 + 8)
    accumulated = job.model_copy(update={"optimization": job.optimization.model_copy(update={"accumulate": 2})})
    train = TrainingShard(shards.train.shard, Lanes(shards.train.shard.num_rows, 128, 0))
    assert activations_of(accumulated, model, train, Workers()).total == of(64)


def test_what_workers_add_up() -> None:
    job, prepared = digits({"kind": "cnn", "channels": [4, 8], "normalization": "batch"})
    model = build_model(job, prepared.preprocessing)
    traffic = traffic_of(model)
    assert traffic.gradient_bytes == gradient_bytes(model) == 4 * sum(p.numel() for p in model.parameters())
    assert traffic.small_sums == pytest.approx(2 * 2 + 1 / 32)  # forward and backward of two layers; the check for NaN


def test_batches_that_are_normalized_are_of_two_rows_at_least() -> None:
    optimization = {"global_batch_size": 16}
    cnn = {"kind": "cnn", "channels": [4], "normalization": "batch"}
    job, prepared = digits(cnn, optimization=optimization, resources={"workers": 16})
    assert [rows for rows, _ in rehearsed(job, prepared).compute.points] == [2, 4, 16]


def test_no_step_is_begun_that_the_time_does_not_allow() -> None:
    job, prepared = digits({"kind": "feedforward", "hidden": [8]})
    assert [rows for rows, _ in rehearsed(job, prepared).compute.points] == [4, 16, 64]
    for used_up in (0.0, -60.0):
        assert [rows for rows, _ in rehearsed(job, prepared, budget_s=used_up).compute.points] == [4]


def test_threads_are_those_of_a_worker_and_then_what_they_were() -> None:
    job, prepared = digits({"kind": "feedforward", "hidden": [8]}, resources={"cpus_per_worker": 2})
    before = torch.get_num_threads()
    assert rehearsed(job, prepared, budget_s=0.0).threads == 2
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "job_file",
    ["mnist1d_rnn", "adding_lstm", "python_functions_cnn", "python_functions_lstm", "fashion_mnist_vae"],
)
@pytest.mark.slow
def test_jobs_of_other_kinds_are_rehearsed(job_file: str) -> None:
    path = Path(__file__).parents[1] / "jobs" / f"{job_file}.yaml"
    job = Job.load(path, [])
    try:
        prepared = prepare_job(job, understand_job(job, path.parent), RememberingDriver())
    except Exception as error:
        pytest.skip(f"its data are not here: {error}")
    found = rehearsed(job.model_copy(update={"task": prepared.task}), prepared)
    assert found.memory.activations > 0
    assert found.compute.points[0][1] > 0
