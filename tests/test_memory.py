"""What a worker will hold, counted here; and the bound that a job sets on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from knob_cases import BENCHES, ON, WITH, Bench, defined, fresh, job_for, rows_for, shard_of
from processes import run_on_workers

from raynn.batches import TrainingShard
from raynn.collectives import Workers
from raynn.errors import ResourceError
from raynn.job import Job
from raynn.lanes import Lanes
from raynn.loop import TrainingState
from raynn.memory import (
    Activations,
    activations_of,
    copies_to_come,
    held_bytes,
    optimizer_bytes,
    optimizer_bytes_to_come,
    require_within,
)

TABLE = BENCHES["table"]
MIB = 2**20


def bounded(gib: float, bench: Bench = TABLE, **optimization: Any) -> Job:
    job = job_for(bench)
    return job.model_copy(
        update={
            "resources": job.resources.model_copy(update={"worker_memory_gib": gib}),
            "optimization": job.optimization.model_copy(update=optimization),
        }
    )


def rows_of(bench: Bench, workers: Workers = Workers(), batch_rows: int = 8) -> TrainingShard:  # noqa: B008 - frozen
    lanes = Lanes(24, batch_rows, 0)
    return TrainingShard(shard_of(rows_for(bench, 24), *lanes.rows_of_worker(workers.rank, workers.count)), lanes)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_what_an_optimizer_will_remember(optimizer: str, momentum: float) -> None:
    state = fresh(bounded(1.0, optimizer=optimizer, momentum=momentum), TABLE)
    told = optimizer_bytes_to_come(state.optimizer)
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    steps = 4 * len(list(state.model.parameters())) if optimizer != "sgd" else 0  # each tensor's count of them
    assert told <= optimizer_bytes(state.optimizer) <= told + steps
    assert told > 0 or (optimizer, momentum) == ("sgd", 0.0)
    assert optimizer_bytes_to_come(state.optimizer) == 0 or told == 0


@pytest.mark.parametrize("reductions", [0, 2])
def test_what_will_be_kept_of_the_best_epoch(reductions: int) -> None:
    job = job_for(TABLE, ema_decay=0.9)
    stopping = job.early_stopping.model_copy(update={"reductions": reductions})
    job = job.model_copy(update={"early_stopping": stopping})
    state = fresh(job, TABLE)
    told, weights = copies_to_come(job, state), sum(x.nbytes for x in state.model.state_dict().values())
    state.keep_best(may_go_back=reductions > 0)
    moments = optimizer_bytes_to_come(state.optimizer)
    assert told == weights + (2 * weights + moments if reductions else 0)
    assert copies_to_come(job, state) == 0


@pytest.mark.parametrize(
    ("name", "knob"), [pair for pair in defined() if pair[0] in ("table", "images", "rnn", "transformer")]
)
def test_every_knobs_activations_are_told_and_nothing_is_changed(name: str, knob: str) -> None:
    bench = BENCHES[name]
    job = job_for(bench, **{knob: ON[knob]}, **WITH.get(knob, {}))
    state = fresh(job, bench)
    before = {key: x.clone() for key, x in state.model.state_dict().items()}
    assert activations_of(job, state.model, rows_of(bench), Workers()).total > 0
    assert all(parameter.grad is None for parameter in state.model.parameters())
    assert all(torch.equal(x, before[key]) for key, x in state.model.state_dict().items())


def test_a_job_is_refused_that_would_hold_more_and_told_what_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raynn.memory.held_bytes", lambda: 100 * MIB)
    monkeypatch.setattr("raynn.memory.activations_of", lambda *args: Activations(32 * MIB, 0, 32 * MIB))
    state, train = fresh(job_for(TABLE), TABLE), rows_of(TABLE)
    require_within(bounded(165 / 1024), state, train, Workers())
    with pytest.raises(
        ResourceError, match=r"less than the 164 MiB .* activations of a batch 32\.0 MiB, what"
    ) as refused:
        require_within(bounded(135 / 1024), state, train, Workers())
    assert "(optimization.accumulate=2), or raise it" in str(refused.value)
    images = BENCHES["images"]
    with pytest.raises(
        ResourceError, match=r"\(optimization\.accumulate=2, and network\.normalization=group, as pieces"
    ):
        require_within(bounded(135 / 1024, images), fresh(job_for(images), images), rows_of(images), Workers())
    with pytest.raises(ResourceError, match="take a smaller network"):
        require_within(bounded(99 / 1024), state, train, Workers())
    with pytest.raises(ResourceError, match=r"the process and its rows 170 MiB"):
        require_within(bounded(165 / 1024), state, train, Workers(), rows_to_come=70 * MIB)
    require_within(job_for(TABLE), state, train, Workers())  # no bound


def test_on_a_gpu_its_memory_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raynn.memory.held_bytes", lambda: 100 * MIB)
    monkeypatch.setattr("raynn.memory.activations_of", lambda *args: Activations(2**50, 0, 0))
    require_within(
        bounded(101 / 1024), fresh(job_for(TABLE), TABLE), rows_of(TABLE), Workers(device=torch.device("cuda"))
    )


def test_what_a_process_holds_does_not_count_pages_of_files(tmp_path: Path) -> None:
    before = held_bytes()
    taken = torch.ones(32 * MIB // 4)
    assert 30 * MIB < held_bytes() - before < 40 * MIB
    mapped = torch.from_file(str(tmp_path / "rows.bin"), shared=True, size=64 * MIB // 4)
    mapped.fill_(1.0)
    assert held_bytes() - before < 40 * MIB
    assert float(taken[0] + mapped[0]) == 2.0


def refused(workers: Workers) -> str:
    """One of two workers holds too much."""
    import raynn.memory

    raynn.memory.held_bytes = lambda: (1 + 9 * workers.rank) * MIB
    bench = BENCHES["images"]
    job = bounded(5 / 1024, bench)
    state: TrainingState = fresh(job, bench, workers)
    try:
        require_within(job, state, rows_of(bench, workers), workers)
    except ResourceError as error:
        return str(error)
    return ""


def test_workers_are_refused_together(tmp_path: Path) -> None:
    first, second = run_on_workers(refused, 2, tmp_path)
    assert "less than the 10.1 MiB that a worker would hold: the process and its rows 1.0 MiB" in first
    assert "the process and its rows 10.0 MiB" in second
