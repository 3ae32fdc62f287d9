"""A few steps of a job's own network on its own first rows: what a step takes, and what it holds in memory."""

from __future__ import annotations

import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from raynn.allocator import keep_freed_memory
from raynn.batches import TrainingShard
from raynn.collectives import Workers
from raynn.encoded import Encoded, itself
from raynn.gradients import training_losses
from raynn.job import Job
from raynn.lanes import Lanes
from raynn.loop import STEPS_BETWEEN_CHECKS, TrainingState, train_epochs
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
class Memory:
    """What one worker holds, in bytes."""

    process: int  # with all that is loaded by a first step, and the prepared data
    weights: int
    gradients: int
    optimizer: int
    copies: int  # of the best weights, and of averaged ones
    activations: int  # kept for the backward pass of this worker's share of a batch
    rows: int
    so_far: int = 0  # the most that this process has had, while it prepared the data

    @property
    def total(self) -> int:
        """The peak: all of it, but for what is passed on between two operations."""
        return max(self.so_far, sum(vars(self).values()) - self.so_far)

    def __str__(self) -> str:
        parts = {
            "the process as it is here": self.process,
            "network": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "best and averaged weights": self.copies,
            "activations of a batch": self.activations,
            "rows": self.rows,
        }
        said = ", ".join(f"{what} {_mib(size)}" for what, size in parts.items())
        return f"memory of a worker, about {_mib(self.total)}: {said}"


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
        few = max(_fewest(job), share // PARTS[0])
        kept = activation_bytes(job, state.model, TrainingShard(rows, _lanes(job, num_rows, few)), workers)
        compute = _timed(job, preprocessing, state, rows, workers, budget_s)
        weights = _bytes(state.model.state_dict().values())
        optimizer = _bytes(x for kept in state.optimizer.state.values() for x in kept.values() if isinstance(x, Tensor))
        copies = _bytes(state.evaluated.state_dict().values()) * (1 if state.average is None else 2)
        held = 0 if wants_gpu else weights + optimizer + copies + _rows_bytes(rows)
        memory = Memory(
            max(0, resident_bytes() - held),
            weights,
            gradient_bytes(state.model),
            optimizer,
            copies,
            math.ceil(kept * share / few),  # in proportion
            residence.worker_bytes if residence.where == "memory" else 0,
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

    for size in sorted({max(_fewest(job), batch_rows // part) for part in PARTS}):
        expected = points[-1][1] * size / points[-1][0] if points else 0.0
        left_s = budget_s - (time.perf_counter() - started)
        if points and 2 * expected > left_s:
            break
        once_s = step_s(size, 1)  # the first of its size warms up, and is timed only where there is no time for more
        left_s = budget_s - (time.perf_counter() - started)
        repeats = min(STEPS, int(max(0.0, left_s) / 3 / once_s), rows.num_rows // size)
        points.append((size, min(once_s, step_s(size, repeats)) if repeats else once_s))
    return Compute(tuple(points))


def _fewest(job: Job) -> int:
    """Two rows, without which nothing can be normalized over them."""
    return min(2, job.optimization.global_batch_size)


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


def gradient_bytes(model: nn.Module) -> int:
    """Of all that is learned."""
    return _bytes(parameter for parameter in model.parameters() if parameter.requires_grad)


def activation_bytes(job: Job, model: nn.Module, train: TrainingShard, workers: Workers) -> int:
    """What the forward computation over a batch keeps for the backward one, each memory once, but for the weights and
    the batch itself.
    """
    batch, key_B = next(train.batches(0, workers))
    ours = {_memory(x) for x in (*model.parameters(), *model.buffers(), *batch.values(), key_B)}
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[_memory(x)] = x.untyped_storage().nbytes()
        return x

    knobs = job.regularization.at(0.0)
    piece_rows = math.ceil(len(key_B) / job.optimization.accumulate)
    piece = {name: x[:piece_rows] for name, x in batch.items()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        losses = training_losses(job, knobs, model, piece, key_B[:piece_rows])
    del losses
    return sum(size for memory, size in kept.items() if memory not in ours)


def resident_bytes() -> int:
    """Memory that this process has now; where the system does not say, the most that it has had."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return peak_bytes()


def peak_bytes() -> int:
    """The most that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def _rows_bytes(rows: Shard) -> int:
    """Of the tensors, and of sequences."""
    return _bytes(x.values if isinstance(x, RaggedTensor) else x for x in rows.tensors.values())


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB" if size < 100 * 2**20 else f"{size / 2**20:,.0f} MiB"
