"""On a GPU no step of training waits for the device: nothing is asked of it, nothing is sent to it.

The network, its rows and its steps are those of training, on torch's `meta` device, which knows shapes and no numbers:
what asks it for one fails, as what asks a GPU waits. What is sent there is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from knob_cases import BATCH, BENCHES, CLASSES, ON, WITH, Bench, defined, fresh, job_for, rows_for, shard_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import raynn.gradients
import raynn.loop
from raynn.batches import TrainingShard
from raynn.collectives import Workers
from raynn.evaluation import evaluation_of
from raynn.job import Job
from raynn.lanes import Lanes
from raynn.loop import TrainingState, evaluate_shard, train_epochs
from raynn.preprocessing import InputSpec
from raynn.shards import Shard

META = torch.device("meta")
# Which of 14 operations is whose has to be known before they are done: one wait each time.
WAITING = ("trivial_augment", "rand_augment", "rand_augment_magnitude", "aug_mix")
NORMED = Bench(
    {"kind": "cnn", "channels": [3, 4], "head_hidden": [4]}, InputSpec(vocabulary_size=9, **CLASSES), ("text",)
)


class Sent(TorchDispatchMode):
    """Counts what goes from memory to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = op(*args, **(kwargs or {}))
        before = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        after = [x for x in tree_leaves(given) if isinstance(x, torch.Tensor)]
        comes_from_memory = any(x.device.type == "cpu" and x.dim() for x in before)
        if comes_from_memory and any(x.device.type == "meta" for x in (*before, *after)):
            self.counts[str(op)] += 1
        return given


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """What `meta` cannot is left out: autocast, the look at losses once in 32 steps; and what torch makes of Python's
    numbers, which no dispatch shows, is counted, too.
    """
    mode = Sent()

    def counted(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def wrapped(*args: Any, **kwargs: Any) -> torch.Tensor:
            made = make(*args, **kwargs)
            if made.device.type == "meta":
                mode.counts[make.__name__] += 1
            return made

        return wrapped

    for module in (raynn.gradients, raynn.loop):
        monkeypatch.setattr(module, "precision", lambda job, device: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    monkeypatch.setattr(raynn.loop, "_check_finite", lambda *args: None)
    monkeypatch.setattr(torch, "tensor", counted(torch.tensor))
    monkeypatch.setattr(torch, "as_tensor", counted(torch.as_tensor))
    monkeypatch.setattr(torch.Tensor, "new_tensor", counted(torch.Tensor.new_tensor))
    return mode


def on_device(bench: Bench, num_rows: int) -> Shard:
    """Rows that are there."""
    real = shard_of(rows_for(bench, num_rows), 0, num_rows)
    return Shard({name: x.to(META) for name, x in real.tensors.items()}, 0, num_rows, "device")


def trained(bench: Bench, job: Job, steps: int) -> TrainingState:
    """The state after an epoch of so many steps, or where it failed."""
    state = fresh(job, bench, Workers(device=META))
    keys = ("params", "weight_decay", "decays")
    groups = [{key: group[key] for key in keys} for group in state.optimizer.param_groups]
    state.optimizer = torch.optim.SGD(groups, lr=0.1, foreach=True)  # none of torch's fused ones is for meta
    rows = on_device(bench, steps * BATCH)
    shard = TrainingShard(rows, Lanes(rows.num_rows, BATCH, 0))
    with pytest.raises(
        (RuntimeError, NotImplementedError)
    ) as failed:  # at the latest where the epoch's loss is asked for
        next(train_epochs(job, bench.inputs, state, shard, rows, Workers(device=META)))
    if state.step_of_epoch < steps:
        raise failed.value
    return state


def sends_no_more_for_more_steps(sent: Sent, bench: Bench, job: Job) -> bool:
    """An epoch sends what it may; what stays there from the first step on is there."""
    trained(bench, job, 1)
    counts = []
    for steps in (1, 3):
        sent.counts.clear()
        with sent:
            trained(bench, job, steps)
        counts.append(Counter(sent.counts))
    return counts[0] == counts[1]


def first_bench_of_each_knob() -> list[tuple[str, str]]:
    """Where it is tried; what a knob does hardly depends on the network."""
    return [(name, knob) for knob, name in {knob: name for name, knob in reversed(defined())}.items()]


@pytest.mark.parametrize(("name", "knob"), first_bench_of_each_knob())
def test_no_knob_makes_a_step_wait(name: str, knob: str, sent: Sent) -> None:
    job = job_for(BENCHES[name], **{knob: ON[knob]}, **WITH.get(knob, {}))
    if knob in WAITING:
        with pytest.raises(NotImplementedError):
            trained(BENCHES[name], job, 1)
    else:
        assert sends_no_more_for_more_steps(sent, BENCHES[name], job)


@pytest.mark.parametrize("name", sorted(set(BENCHES) - {"own"}))
def test_no_network_makes_a_step_wait(name: str, sent: Sent) -> None:
    assert sends_no_more_for_more_steps(sent, BENCHES[name], job_for(BENCHES[name]))


def test_a_normalization_over_steps_that_are_there_does_not_wait(sent: Sent) -> None:
    assert sends_no_more_for_more_steps(sent, NORMED, job_for(NORMED))


@pytest.mark.parametrize("name", sorted(set(BENCHES) - {"own"}))
def test_evaluation_waits_at_its_end_only(name: str, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = BENCHES[name]
    job, added = job_for(bench), []

    class Unanswered:
        """The sums, which nobody asks for."""

        def __init__(self, inputs: InputSpec, device: torch.device) -> None:
            self.sums = evaluation_of(inputs, device)

        def add(self, outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> None:
            self.sums.add(outputs, batch)
            added.append(len(outputs))

        def metrics(self, workers: Workers) -> dict[str, float]:
            return {}

    monkeypatch.setattr(raynn.loop, "evaluation_of", Unanswered)
    monkeypatch.setattr(raynn.loop, "evaluation_batch_rows", lambda job: BATCH)
    monkeypatch.setattr(Shard, "by_length", lambda shard: None)  # asked for once
    counts = []
    for batches in (2, 5):
        state, rows = fresh(job, bench, Workers(device=META)), on_device(bench, batches * BATCH)
        sent.counts.clear()
        with sent:
            evaluate_shard(job, bench.inputs, state.model, rows, Workers(device=META))
        counts.append(Counter(sent.counts))
    assert counts[0] == counts[1]
    assert len(added) == 7
