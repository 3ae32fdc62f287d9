"""What one worker holds in memory once it trains, told before it does; and the bound that a job may set on it."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from raynn.allocator import LARGEST_KEPT, MOST_KEPT
from raynn.augmentation import augmented
from raynn.batches import TrainingShard
from raynn.collectives import Workers
from raynn.errors import ResourceError
from raynn.gradients import training_losses
from raynn.job import Job
from raynn.loop import TrainingState, evaluation_batch_rows
from raynn.mixing import mixed
from raynn.networks.normalization import GlobalBatchNorm
from raynn.optimization import moments_of, scratch_bytes
from raynn.perturbation import statistics_kept
from raynn.sharding import own

FEWEST = 2  # rows, without which nothing can be normalized over them
SHARE = 16  # activations are told from this part of a batch
PASSED_ON = 3  # tensors as large as the largest, that two operations pass on: what one reads, makes, and its gradient


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
        said = ", ".join(f"{what} {mib(size)}" for what, size in parts.items())
        return f"memory of a worker, about {mib(self.total)}: {said}"


def require_within(
    job: Job, state: TrainingState, train: TrainingShard, workers: Workers, rows_to_come: int = 0
) -> None:
    """Looks, before a first step, whether this worker will stay within `resources.worker_memory_gib`; all workers look
    together, and all raise. Memory of a GPU is not in it.

    Args:
        train: this worker's rows, which are where they will be.
        rows_to_come: bytes of rows that are not here yet.

    Raises:
        ResourceError: it will not; the message says what takes how much, and what would take less.
    """
    bound_gib = job.resources.worker_memory_gib
    if bound_gib is None:
        return
    parts: dict[str, int] = {}
    varying = 0  # with the rows that are computed at once
    if workers.device.type == "cpu":
        parts["gradients"] = gradient_bytes(state.model)
        parts["optimizer"] = optimizer_bytes_to_come(state.optimizer)
        parts["best weights"] = copies_to_come(job, state)
        kept = activations_of(job, state.model, train, workers)
        passed_on = math.ceil(PASSED_ON * kept.largest * max(1.0, evaluation_batch_rows(job) / _piece_rows(job)))
        parts["activations of a batch"] = kept.total
        parts["what operations pass on or have freed"] = max(passed_on, scratch_bytes(state.optimizer)) + kept.freed
        varying = kept.total + passed_on + kept.freed
    parts = {"the process and its rows": held_bytes() + rows_to_come, **parts}
    needed, bound = workers.max(sum(parts.values())), bound_gib * 2**30
    if needed <= bound:
        return
    said = ", ".join(f"{what} {mib(size)}" for what, size in parts.items())
    raise ResourceError(
        f"resources.worker_memory_gib = {bound_gib:g} is less than the {mib(int(needed))} that a worker would hold: "
        f"{said}; {_way_out(job, state.model, varying, varying - (needed - bound))}, or raise it"
    )


def _piece_rows(job: Job) -> int:
    """Of a worker's share of a batch, as it is computed."""
    return max(1, job.optimization.global_batch_size // job.resources.min_workers // job.optimization.accumulate)


def _way_out(job: Job, model: nn.Module, varying: int, room: float) -> str:
    """What takes less: a batch in pieces for which there is room, or where no piece has any, less network."""
    more = math.ceil(varying / room) if room > 0 else 0
    if more and _piece_rows(job) // more >= FEWEST:
        of_batches = any(isinstance(module, GlobalBatchNorm) for module in model.modules())
        also = ", and network.normalization=group, as pieces are not normalized together" if of_batches else ""
        return f"compute each batch in pieces (optimization.accumulate={more * job.optimization.accumulate}{also})"
    return "take a smaller network, share it among workers (resources.strategy=fsdp)"


@dataclass(frozen=True)
class Activations:
    """What the forward computation over a worker's share of a batch, or over a piece of it, keeps for the backward one,
    in bytes: each memory once, but for the weights and the batch itself.
    """

    total: int
    largest: int  # of one, what an operation keeps for itself left out
    freed: int  # of what a process does not give back when it is freed, as memory is never without gaps


def activations_of(job: Job, model: nn.Module, train: TrainingShard, workers: Workers) -> Activations:
    """Told from a 16th of the rows, in proportion, by a pass forth and back of which nothing stays in the network."""
    batch, key_B = next(train.batches(0, workers))
    piece_rows = math.ceil(len(key_B) / job.optimization.accumulate)
    num_rows = min(piece_rows, max(FEWEST, piece_rows // SHARE))
    few, key_B = {name: x[:num_rows] for name, x in batch.items()}, key_B[:num_rows]
    knobs = job.regularization.at(0.0)
    kept: dict[int, tuple[int, bool]] = {}

    def keep(x: Tensor) -> Tensor:
        kept[_memory(x)] = math.ceil(x.untyped_storage().nbytes() * piece_rows / num_rows), x.dtype != torch.uint8
        return x

    few = mixed(augmented(few, key_B, knobs), key_B, knobs, job.task or "", workers)
    ours = {_memory(own(x)) for x in (*model.parameters(), *model.buffers(), *batch.values(), *few.values(), key_B)}
    with statistics_kept(model):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            losses = training_losses(job, knobs, model, few, key_B)
        losses.sum().backward()
    model.zero_grad()
    found = [pair for memory, pair in kept.items() if memory not in ours]
    sizes = [size for size, _ in found]
    freed = min(MOST_KEPT, sum(size for size in sizes if size <= LARGEST_KEPT))
    return Activations(sum(sizes), max((size for size, passed_on in found if passed_on), default=0), freed)


def gradient_bytes(model: nn.Module) -> int:
    """Of all that is learned; of this worker's part where weights are cut."""
    return bytes_of(own(parameter) for parameter in model.parameters() if parameter.requires_grad)


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of what it remembers, once it has taken a step."""
    return bytes_of(own(x) for kept in optimizer.state.values() for x in kept.values() if isinstance(x, Tensor))


def optimizer_bytes_to_come(optimizer: torch.optim.Optimizer) -> int:
    """Of what it will remember, before it has taken a step; nothing where it has."""
    if optimizer.state:
        return 0
    return sum(moments * bytes_of(map(own, parameters)) for parameters, moments in moments_of(optimizer))


def copies_to_come(job: Job, state: TrainingState) -> int:
    """Of the best weights, and of all that training may go back to, where that has not been kept yet."""
    if state.best_weights:
        return 0
    weights = bytes_of(own(x) for x in state.evaluated.state_dict().values())
    if not job.early_stopping.reductions:
        return weights
    average = 0 if state.average is None else weights
    return 2 * weights + average + max(optimizer_bytes(state.optimizer), optimizer_bytes_to_come(state.optimizer))


def held_bytes() -> int:
    """Memory that this process has and the system cannot take back: without pages of files, memory-mapped rows among
    them. Where the system does not say, the most that it has had.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return 1024 * sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem"))
    except (OSError, ValueError, KeyError, IndexError):
        return peak_bytes()


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


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of their numbers."""
    return sum(x.numel() * x.element_size() for x in tensors)


def mib(size: int) -> str:
    """`1.5 MiB`, `1,500 MiB`."""
    return f"{size / 2**20:,.1f} MiB" if size < 100 * 2**20 else f"{size / 2**20:,.0f} MiB"


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
