"""The page: what training is, in the order in which it happens. A generator; whoever drives it saves, reports or stops.

Shapes: B rows of this worker's share of a batch, E epochs, L layers.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from raynn.augmentation import augmented
from raynn.averaging import Average, average_of
from raynn.batches import TrainingShard, evaluation_batches
from raynn.checkpoint import restore_optimizer
from raynn.collectives import Workers
from raynn.compiler import begin_step, compile_network, kept
from raynn.dropout import set_strengths
from raynn.errors import TrainingError
from raynn.evaluation import evaluation_of
from raynn.gradients import Share, add_gradient, precision, reshape_gradient
from raynn.job import Job
from raynn.mixing import mixed
from raynn.networks import NETWORKS
from raynn.networks.normalization import GlobalBatchNorm
from raynn.norms import with_epoch
from raynn.objectives import with_split
from raynn.optimization import build_optimizer, learning_rate, plateau_reductions, set_rates
from raynn.penalties import add_weight_penalties, project_weights
from raynn.preprocessing import InputSpec
from raynn.randomness import step_key
from raynn.refit import Refit
from raynn.regularization import RegularizationSettings
from raynn.sharding import cut, data_parallel, in_step, load_weights, place
from raynn.shards import Shard
from raynn.stopping import Decision, decide

Record = dict[str, float]

STEPS_BETWEEN_CHECKS = 32  # how often the losses are looked at for NaN; on a GPU each look waits for the device


@dataclass
class TrainingState:
    """All that changes while a network trains; what a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average | None = None
    history: list[Record] = field(default_factory=list)
    norms_E2L: Tensor = field(default_factory=lambda: torch.zeros(0, 2, 0))  # at each epoch's last step
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    best_state: dict[str, Any] | None = None  # of the best epoch, where training may go back to it
    decision: Decision | None = None
    # seen by the progress line, not part of a checkpoint
    step_of_epoch: int = 0
    losses: Tensor = field(
        default_factory=lambda: torch.zeros(0)
    )  # of this epoch's steps, summed over this worker's rows
    epoch_started: float = 0.0  # perf_counter, s
    first_step_at: float | None = None  # Unix time, s

    @classmethod
    def fresh(cls, job: Job, model: nn.Module, workers: Workers = Workers()) -> TrainingState:  # noqa: B008 - frozen
        """The state before the first step, on the worker's device, or the worker's part of it."""
        knobs = job.regularization.at(0.0)
        average = average_of(model, knobs, job.optimization.max_epochs)
        for network in [model] if average is None else [model, average.model]:
            place(network, job.resources.strategy, workers)
        return cls(model, build_optimizer(job.optimization, model, knobs.weight_decay), average)

    @property
    def evaluated(self) -> nn.Module:
        """The network that is scored and kept: the one of averaged weights where the job asks for it."""
        return self.model if self.average is None else self.average.model

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint, once `gathered`. Random numbers are functions of (seed, epoch, row): there is no generator
        to save.
        """
        return {
            **self.moving(),
            "history": self.history,
            "norms": self.norms_E2L,
            "best_weights": self.best_weights,
            "best_state": self.best_state,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes the place of a state that `to_dict` wrote, its tensors whole or cut."""
        self.set_moving(state)
        now = self.model.state_dict()
        self.best_weights = {name: cut(weight, now[name]) for name, weight in state["best_weights"].items()}
        self.history = state["history"]
        self.best_state = state["best_state"]
        self.norms_E2L = state.get("norms", self.norms_E2L)

    def moving(self) -> dict[str, Any]:
        """What a step changes: weights, optimizer, averaged weights."""
        average = self.average.to_dict() if self.average else None
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "average": average}

    def set_moving(self, state: dict[str, Any]) -> None:
        """Takes the place of what `moving` gave."""
        load_weights(self.model, state["model"])
        restore_optimizer(self.optimizer, state["optimizer"])
        if self.average and (state["average"] or {}).keys() == self.average.to_dict().keys():
            self.average.restore(state["average"])
        elif self.average:  # asked for by a change since: averages begin here
            self.average.begin(self.model)

    def keep_best(self, may_go_back: bool) -> None:
        """The weights at hand are the best so far."""
        self.best_weights = {name: w.detach().clone() for name, w in self.evaluated.state_dict().items()}
        self.best_state = copy.deepcopy(self.moving()) if may_go_back else None


def train_epochs(
    job: Job,
    inputs: InputSpec,
    state: TrainingState,
    train: TrainingShard,
    validation: Shard,
    workers: Workers,
    until: int | None = None,
    refit: Refit | None = None,
) -> Iterator[Record]:
    """Trains until the stopping rule, `max_epochs` or `until` (epochs) ends it; yields one record an epoch,
    the same on every worker.

    With `refit`, for exactly its steps and at its rates; there is no validation then, and nothing is decided.

    Raises:
        TrainingError: a loss that is not finite.
    """
    steps = train.lanes.steps_per_epoch
    all_steps = job.optimization.max_epochs * (refit.steps_per_epoch if refit else steps)  # by which knobs ramp
    network = _network(job, state.model, workers)
    ragged = train.shard.ragged if _by_length(job, state.model, workers.device) else ()
    while not _ended(job, state, refit) and (until is None or len(state.history) < until):
        epoch = len(state.history)
        num_steps = steps if refit is None else min(steps, refit.num_steps - epoch * steps)
        rate_of = partial(refit.rate, job.optimization) if refit else _schedule(job, state, steps)
        losses = torch.zeros(steps, dtype=torch.float64, device=workers.device)
        state.losses, state.epoch_started = losses, time.perf_counter()
        network.train()
        for k, (batch, key_B) in enumerate(islice(train.batches(epoch, workers), num_steps)):
            step = epoch * steps + k
            rate, knobs = rate_of(step), job.regularization.at(step / all_steps)
            set_rates(state.optimizer, rate, knobs.weight_decay)
            if knobs is not job.regularization:
                set_strengths(state.model, knobs)
            step_key_1 = partial(step_key, job.optimization.seed, epoch, k, workers.device)
            batch = mixed(augmented(batch, key_B, knobs), key_B, knobs, inputs.task, workers)
            share = Share(batch, key_B, ragged, train.lanes.batch_rows(k))
            begin_step(job.optimization.compile)
            losses[k] = add_gradient(job, knobs, network, share, step_key_1, workers)
            add_weight_penalties(state.model, knobs)
            reshape_gradient(state.model, knobs, step_key_1, step)
            if k + 1 == num_steps:
                state.norms_E2L = with_epoch(state.norms_E2L, state.model)
            state.optimizer.step()
            project_weights(state.model, knobs)
            state.optimizer.zero_grad()
            if state.average:
                state.average.update(state.model)
            state.step_of_epoch = k + 1
            state.first_step_at = state.first_step_at or time.time()
            if (k + 1) % STEPS_BETWEEN_CHECKS == 0 or k + 1 == num_steps:
                _check_finite(losses[: k + 1], epoch, workers)
        if state.average:
            set_strengths(state.average.model, knobs)
            state.average.update_epoch(state.model, epoch, _shown(job, knobs, train, epoch, workers))
        # the first worker's clock: rules go by it, and all must decide alike
        train_seconds = workers.decided(time.perf_counter() - state.epoch_started)
        # losses are sums over this worker's rows: over all workers and steps, per row
        num_rows = sum(map(train.lanes.batch_rows, range(num_steps)))
        train_loss = float(workers.sum(losses).sum()) / num_rows
        record = {"epoch": epoch + 1, "step": epoch * steps + num_steps, "train/loss": train_loss}
        if refit is None:
            record |= with_split("val", evaluate_shard(job, inputs, state.evaluated, validation, workers))
        record |= {"learning_rate": rate, "seconds": train_seconds, "examples_per_second": num_rows / train_seconds}
        state.history.append(record)
        state.step_of_epoch = 0
        if refit is None:
            _take_decision(job, state)
        yield record


def _network(job: Job, model: nn.Module, workers: Workers) -> nn.Module:
    """What a step calls."""
    network = data_parallel(model, workers)
    if job.optimization.compile:
        compile_network(network, workers.device, job.optimization.compile)
    return network


def _schedule(job: Job, state: TrainingState, steps: int) -> Callable[[int], float]:
    """The learning rate as a function of the step, until the epoch ends: later ones know more of the history."""
    settings = job.optimization
    reductions = plateau_reductions(settings, [record["val/loss"] for record in state.history])
    factor = job.early_stopping.factor ** len(state.decision.reactions if state.decision else ())
    return lambda step: factor * learning_rate(settings, step, steps * settings.max_epochs, reductions)


def _take_decision(job: Job, state: TrainingState) -> None:
    """After an epoch: the best weights are kept, or taken back to train on from them at a lower rate."""
    state.decision = decide(job.early_stopping, state.history)
    if state.decision.best_epoch == len(state.history):
        state.keep_best(may_go_back=job.early_stopping.reductions > 0)
    if state.decision.back:
        assert state.best_state is not None
        state.set_moving(copy.deepcopy(state.best_state))


def _ended(job: Job, state: TrainingState, refit: Refit | None) -> bool:
    """Whether the history so far is the whole of it; after a resume the decision is made again from the history."""
    if refit is not None:
        return bool(state.history) and state.history[-1]["step"] >= refit.num_steps
    if state.history:
        state.decision = decide(job.early_stopping, state.history)
    stopped = state.decision is not None and state.decision.stop
    return stopped or len(state.history) >= job.optimization.max_epochs


def _shown(
    job: Job, knobs: RegularizationSettings, train: TrainingShard, epoch: int, workers: Workers
) -> Iterator[Callable[[nn.Module], Tensor]]:
    """What shows a network each of an epoch's batches, changed as in training but that rows are not mixed."""
    for batch, key_B in train.batches(epoch, workers):
        with precision(job, workers.device):
            yield partial(_output, batch=augmented(batch, key_B, knobs), key_B=key_B)


def _output(model: nn.Module, batch: dict[str, Tensor], key_B: Tensor) -> Tensor:
    return model(batch, key_B)


def _by_length(job: Job, model: nn.Module, device: torch.device) -> bool:
    """Whether a batch may be cut into pieces of rows whose lengths are alike, and gains by it: on a CPU, where a step
    takes the longer the more rows it has, and where no row's outputs depend on the others.
    """
    normalizes_batches = any(isinstance(module, GlobalBatchNorm) for module in model.modules())
    return NETWORKS[job.network.kind].by_length and not normalizes_batches and device.type == "cpu"


@torch.no_grad()
def evaluate_shard(job: Job, inputs: InputSpec, model: nn.Module, shard: Shard, workers: Workers) -> dict[str, float]:
    """Quantities of a split over all workers' shards, no row left out, the same on every worker."""
    model.eval()
    evaluation = evaluation_of(inputs, workers.device)
    rows = evaluation_batch_rows(job)
    batches = evaluation_batches(shard, rows, workers.device, shard.by_length())
    for (batch, key_B), counts in in_step(batches, -(-shard.num_rows // rows), model, workers):
        begin_step(job.optimization.compile)
        with precision(job, workers.device):
            outputs = model(batch, key_B)
        if counts:
            evaluation.add(kept(outputs, job.optimization.compile), batch)
    return evaluation.metrics(workers)


def evaluation_batch_rows(job: Job) -> int:
    """Rows of a batch that is only looked at: like a piece of a training batch, which is known to fit; of other rows
    than windows of text, of which each is many, within 256 .. 4,096.
    """
    rows = job.optimization.global_batch_size // job.optimization.accumulate
    return max(1, rows) if job.task == "language_modeling" else max(256, min(4096, rows))


def _check_finite(losses: Tensor, epoch: int, workers: Workers) -> None:
    """Raises on every worker when any worker has seen a loss that is not finite."""
    first_bad = math.inf
    bad = (~torch.isfinite(losses)).nonzero()
    if len(bad):
        first_bad = float(bad[0])
    if workers.any(first_bad < math.inf):
        step = -workers.max(-first_bad)
        raise TrainingError(
            f"the training loss stopped being finite at step {int(step) + 1} of epoch {epoch + 1}; lower "
            "optimization.learning_rate, set regularization.gradient_clip_norm: 1.0, or look for extreme values"
        )
