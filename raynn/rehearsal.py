"""A few steps of a job's own network on its own first rows: what a step takes, and what a worker holds."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import nn

from raynn.allocator import keep_freed_memory
from raynn.batches import TrainingShard
from raynn.collectives import Workers
from raynn.encoded import Encoded, itself
from raynn.job import Job
from raynn.lanes import Lanes
from raynn.loop import STEPS_BETWEEN_CHECKS, TrainingState, train_epochs
from raynn.memory import (
    FEWEST,
    Memory,
    activations_of,
    bytes_of,
    gradient_bytes,
    optimizer_bytes,
    peak_bytes,
    require_within,
    resident_bytes,
)
from raynn.networks.normalization import GlobalBatchNorm
from raynn.placement import Residence
from raynn.preprocessing import Preprocessing
from raynn.scaling import Compute, Traffic
from raynn.shards import RaggedTensor, Shard, build_shard
from raynn.splits import TRAIN
from raynn.stopping import EarlyStoppingSettings
from raynn.tasks import build_model

BUDGET_S = 2.0
PARTS = (16, 4, 1)  # a step is timed over these parts of the global batch, the smallest first
STEPS = 6  # timed, of each
MOST_BATCHES = 4  # of rows


@dataclass(frozen=True)
class Rehearsal:
    """What was measured; `threads` and `device` say of what kind of worker."""

    compute: Compute
    traffic: Traffic
    memory: Memory
    threads: int
    device: str


def rehearse(
    job: Job,
    preprocessing: Preprocessing,
    encoded: Encoded,
    residence: Residence,
    budget_s: float = BUDGET_S,
    fetch: Callable[[Any], pa.Table] = itself,
) -> Rehearsal:
    """Trains for a few steps in this process, and forgets what it has learned.

    Args:
        encoded: the prepared rows, whose blocks `fetch` gives.
        residence: where a worker's rows will be.
        budget_s: no further step is begun where it would take longer; the first is always taken.

    Raises:
        ResourceError: a worker would hold more than `resources.worker_memory_gib`.
    """
    wants_gpu = job.resources.gpus_per_worker != 0 and torch.cuda.is_available()
    workers = Workers(device=torch.device("cuda" if wants_gpu else "cpu"))
    if not wants_gpu:
        keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(job.resources.cpus_per_worker or threads)
    try:
        batch_rows = job.optimization.global_batch_size
        num_rows = min(encoded.num_rows(TRAIN), MOST_BATCHES * batch_rows)
        pieces = encoded.pieces(TRAIN, 0, num_rows, fetch)
        with tempfile.TemporaryDirectory() as folder:
            rows = build_shard(pieces, 0, num_rows, folder=Path(folder), device=workers.device, residence="memory")
        state = TrainingState.fresh(job, build_model(job, preprocessing), workers)
        share = math.ceil(batch_rows / job.resources.min_workers)
        train = TrainingShard(rows, _lanes(job, num_rows, share))
        to_come = residence.worker_bytes if residence.where == "memory" else 0
        require_within(job, state, train, workers, to_come)
        kept = activations_of(job, state.model, train, workers).total
        compute = _timed(job, preprocessing, state, rows, workers, budget_s)
        weights = bytes_of(state.model.state_dict().values())
        optimizer = optimizer_bytes(state.optimizer)
        copies = bytes_of(state.evaluated.state_dict().values()) * (1 if state.average is None else 2)
        held = 0 if wants_gpu else weights + optimizer + copies + _rows_bytes(rows)
        memory = Memory(
            max(0, resident_bytes() - held),
            weights,
            gradient_bytes(state.model),
            optimizer,
            copies,
            kept,
            to_come,
            peak_bytes(),
        )
        return Rehearsal(compute, traffic_of(state.model), memory, torch.get_num_threads(), workers.device.type)
    finally:
        torch.set_num_threads(threads)


def _timed(
    job: Job, preprocessing: Preprocessing, state: TrainingState, rows: Shard, workers: Workers, budget_s: float
) -> Compute:
    """Seconds of a step over parts of the global batch, by the very loop that trains."""
    started, batch_rows = time.perf_counter(), job.optimization.global_batch_size
    looked_at, points = rows.first(min(rows.num_rows, 64)), list[tuple[int, float]]()

    def step_s(size: int, num_steps: int) -> float:
        lanes = _lanes(job, min(rows.num_rows, size * num_steps), size)
        part = TrainingShard(rows.first(lanes.num_rows), lanes)
        tried = _rehearsing(job, size, len(state.history) + 1)
        [record] = train_epochs(tried, preprocessing.input_spec, state, part, looked_at, workers)
        return record["seconds"] / lanes.steps_per_epoch

    for size in sorted({max(min(FEWEST, batch_rows), batch_rows // part) for part in PARTS}):
        expected = points[-1][1] * size / points[-1][0] if points else 0.0
        left_s = budget_s - (time.perf_counter() - started)
        if points and 2 * expected > left_s:
            break
        once_s = step_s(size, 1)  # the first of its size warms up, and is timed only where there is no time for more
        left_s = budget_s - (time.perf_counter() - started)
        repeats = min(STEPS, int(max(0.0, left_s) / 3 / once_s), rows.num_rows // size)
        points.append((size, min(once_s, step_s(size, repeats)) if repeats else once_s))
    return Compute(tuple(points))


def _rehearsing(job: Job, batch_rows: int, epochs: int) -> Job:
    """The job over batches of so many rows, until so many epochs are over, at a rate at which nothing diverges."""
    update = {"global_batch_size": batch_rows, "max_epochs": epochs, "learning_rate": 1e-12, "compile": False}
    return job.model_copy(
        update={
            "optimization": job.optimization.model_copy(update=update),
            "early_stopping": EarlyStoppingSettings(rule="none"),
            "changes": (),
        }
    )


def _lanes(job: Job, num_rows: int, batch_rows: int) -> Lanes:
    return Lanes(num_rows, batch_rows, job.optimization.seed)


def traffic_of(model: nn.Module) -> Traffic:
    """What workers that train a network add up in each step."""
    normalized = sum(isinstance(module, GlobalBatchNorm) for module in model.modules())
    return Traffic(gradient_bytes(model), 2 * normalized + 1 / STEPS_BETWEEN_CHECKS)


def _rows_bytes(rows: Shard) -> int:
    """Of the tensors, and of sequences."""
    return bytes_of(x.values if isinstance(x, RaggedTensor) else x for x in rows.tensors.values())
