"""Networks over rows that are made up: for what a step takes, which hardly depends on what the rows say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raynn.batches import TrainingShard
from raynn.collectives import Workers
from raynn.folder import processor_name
from raynn.job import Job
from raynn.lanes import Lanes
from raynn.loop import Record, TrainingState, train_epochs
from raynn.networks import NETWORKS
from raynn.preprocessing import InputSpec
from raynn.ragged import Ragged
from raynn.regularization import knob_specs
from raynn.shards import Arrays, Shard, build_shard

CLASSES: dict[str, Any] = {"num_outputs": 10, "task": "classification", "classes": tuple(range(10))}
COLORS: dict[str, Any] = {"image_mean": (120.0,) * 3, "image_std": (60.0,) * 3}


@dataclass(frozen=True)
class Bench:
    """A network, what it reads and how many rows at once."""

    network: dict[str, Any]
    inputs: InputSpec
    columns: tuple[str, ...]
    rows: int


def arrays_for(bench: Bench, num_rows: int) -> Arrays:
    """Random rows."""
    random, inputs = np.random.default_rng(0), bench.inputs
    if inputs.task == "language_modeling":
        text_NT = random.integers(0, inputs.vocabulary_size, (num_rows, inputs.window + 1)).astype(np.int32)
        length_N = np.full(num_rows, inputs.window + 1)
        return {"tokens": text_NT, "length": length_N, "skip": np.zeros(num_rows, np.int64), "characters": length_N}
    arrays: Arrays = {"target": random.integers(0, 10, num_rows)} if inputs.task == "classification" else {}
    if inputs.num_numeric:
        arrays["numeric"] = random.normal(size=(num_rows, inputs.num_numeric)).astype(np.float32)
    if inputs.image_CHW:
        arrays["image"] = random.integers(0, 256, (num_rows, *inputs.image_CHW), dtype=np.uint8)
    length_N = np.full(num_rows, 50)
    if inputs.sequence_TC:
        value_NTC = random.normal(size=(num_rows, 50, inputs.sequence_TC[1])).astype(np.float32)
        ragged = Ragged.consecutive(value_NTC.reshape(-1, inputs.sequence_TC[1]), length_N)
        arrays["sequence"] = value_NTC if inputs.sequence_TC[0] else ragged
    elif inputs.vocabulary_size:
        arrays["tokens"] = Ragged.consecutive(random.integers(1, inputs.vocabulary_size, 50 * num_rows), length_N)
    return arrays


def job_for(bench: Bench, max_epochs: int, **optimization: Any) -> Job:
    """Without any regularizer."""
    return Job.from_dict(
        {
            "data": {"train": "none"},
            "task": bench.inputs.task,
            "network": bench.network,
            "regularization": {name: spec.off for name, spec in knob_specs().items()},
            "optimization": {
                "global_batch_size": bench.rows,
                "max_epochs": max_epochs,
                "learning_rate": 1e-4,
                **optimization,
            },
            "early_stopping": {"rule": "none"},
        }
    )


def epochs_of(bench: Bench, job: Job, train: Shard, validation: Shard, device: torch.device) -> Iterator[Record]:
    """The epochs of a training, one at a time."""
    torch.manual_seed(0)
    model = NETWORKS[job.network.kind].build(job.network, bench.inputs, regularization=job.regularization.peak())
    shard, workers = TrainingShard(train, Lanes(train.num_rows, bench.rows, 0)), Workers(device=device)
    return train_epochs(job, bench.inputs, TrainingState.fresh(job, model, workers), shard, validation, workers)


def shard_for(bench: Bench, num_rows: int, device: torch.device) -> Shard:
    """Random rows, on the device where it is a GPU."""
    rows = arrays_for(bench, num_rows)
    return build_shard([rows], 0, num_rows, folder=Path(), device=device, residence="memory")


def hardware_of(device: torch.device) -> str:
    """What it was measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor_name()}, one thread"
