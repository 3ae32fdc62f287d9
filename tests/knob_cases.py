"""Every regularizer beside every network for which it is defined, in miniature: what the contract tests run over."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raynn.batches import TrainingShard, evaluation_rows
from raynn.collectives import Workers
from raynn.job import Job
from raynn.lanes import Lanes
from raynn.loop import TrainingState, train_epochs
from raynn.networks import NETWORKS
from raynn.networks.forecasting import Forecaster
from raynn.preprocessing import InputSpec
from raynn.ragged import Ragged
from raynn.regularization import knob_specs
from raynn.shards import Arrays, Shard, build_shard

NUM_ROWS, BATCH = 21, 8  # three steps an epoch, the last one larger
CLASSES: dict[str, Any] = {"num_outputs": 3, "task": "classification", "classes": (0, 1, 2)}
WORDS: dict[str, Any] = {"vocabulary_size": 7, "window": 5, "task": "language_modeling"}
GRAY: dict[str, Any] = {"image_mean": (120.0,), "image_std": (60.0,)}
COLORED: dict[str, Any] = {"image_mean": (120.0,) * 3, "image_std": (60.0,) * 3}


@dataclass(frozen=True)
class Bench:
    """A small network and what it reads."""

    network: dict[str, Any]
    inputs: InputSpec
    columns: tuple[str, ...]


DENSE = {"kind": "feedforward", "hidden": [6]}
WRITER = {"kind": "text_generator", "width": 8, "layers": 1, "heads": 2}
BENCHES: dict[str, Bench] = {
    "table": Bench(DENSE, InputSpec(num_numeric=3, cardinalities=(4,), **CLASSES), ("numeric", "categorical")),
    "numbers": Bench(DENSE, InputSpec(num_numeric=3), ("numeric",)),
    "residual": Bench(DENSE | {"hidden": [6, 6], "residual": True}, InputSpec(num_numeric=3, **CLASSES), ("numeric",)),
    "selu": Bench(DENSE | {"activation": "selu"}, InputSpec(num_numeric=3, **CLASSES), ("numeric",)),
    "texts": Bench(DENSE | {"embedding": 4}, InputSpec(vocabulary_size=9, **CLASSES), ("text",)),
    "images": Bench(
        {"kind": "cnn", "channels": [3, 4], "head_hidden": [4]},
        InputSpec(image_CHW=(1, 6, 5), **GRAY, **CLASSES),
        ("image",),
    ),
    "deep images": Bench(
        {"kind": "cnn", "channels": [3, 4], "block": "residual", "normalization": "group", "head_hidden": []},
        InputSpec(image_CHW=(3, 5, 6), **COLORED, **CLASSES),
        ("image",),
    ),
    "steps": Bench(
        {"kind": "cnn", "channels": [3], "normalization": "none", "head_hidden": []},
        InputSpec(sequence_TC=(5, 2), **CLASSES),
        ("sequence",),
    ),
    "rnn": Bench({"kind": "rnn", "hidden": 4, "cell": "gru"}, InputSpec(sequence_TC=(0, 2), **CLASSES), ("sequence",)),
    "lstm": Bench(
        {"kind": "lstm", "hidden": 4, "layers": 2, "bidirectional": True},
        InputSpec(sequence_TC=(0, 2), **CLASSES),
        ("sequence",),
    ),
    "lstm language": Bench({"kind": "lstm", "hidden": 4, "embedding": 4}, InputSpec(**WORDS), ("text",)),
    "transformer": Bench(WRITER, InputSpec(**WORDS), ("text",)),
    "lstm writer": Bench(WRITER | {"architecture": "lstm"}, InputSpec(**WORDS), ("text",)),
    "forecast": Bench(
        {"kind": "lstm", "hidden": 4},
        InputSpec(
            task="forecasting", window=5, horizon=2, num_targets=2, target_mean=(0.0,) * 2, target_std=(1.0,) * 2
        ),
        (),
    ),
    "drawer": Bench(
        {"kind": "image_generator", "channels": [4], "condition_width": 4, "attention": False},
        InputSpec(image_CHW=(1, 4, 4), task="image_generation", **GRAY),
        ("image",),
    ),
    "own": Bench(
        {"kind": "custom", "target": "own_network:build", "settings": {"size": 5}},
        InputSpec(num_numeric=3, **CLASSES),
        ("numeric",),
    ),
}

# A value at which each knob is on, strong enough to be seen, and what has to be on with it.
ON: dict[str, Any] = {
    **dict.fromkeys(("dropout", "input_dropout", "spatial_dropout", "alpha_dropout", "locked_dropout"), 0.4),
    **dict.fromkeys(("embedding_dropout", "stochastic_depth", "weight_drop", "zoneout", "zoneout_cell"), 0.4),
    **dict.fromkeys(("activation_penalty", "temporal_activation_penalty", "weight_decay"), 2.0),
    **dict.fromkeys(("l1", "l2", "label_smoothing", "confidence_penalty", "r_drop", "input_noise"), 0.3),
    **dict.fromkeys(("max_norm", "spectral_norm"), 0.3),
    **dict.fromkeys(("mixup", "cutmix", "manifold_mixup"), 1.0),
    **dict.fromkeys(("horizontal_flip", "random_erasing"), 0.6),
    **dict.fromkeys(("jitter", "scaling", "time_masking", "time_warping", "token_masking", "token_swapping"), 0.6),
    **dict.fromkeys(("crop_padding", "rand_augment", "aug_mix"), 2),
    "trivial_augment": True,
    "rand_augment_magnitude": 30.0,
    "weight_noise": 0.1,
    "gradient_noise": 0.1,
    "gradient_clip_norm": 1e-2,
    "gradient_clip_value": 1e-3,
    "gradient_clip_adaptive": 1e-2,
    "sam": 0.2,
    "asam": 0.5,
    "ema_decay": 0.9,
    "swa_start": 0.2,
    "average_last": 2,
}
WITH: dict[str, dict[str, Any]] = {"rand_augment_magnitude": {"rand_augment": 2}, "r_drop": {"dropout": 0.3}}
OFF = {name: spec.off for name, spec in knob_specs().items()}


def job_for(bench: Bench, max_epochs: int = 2, **regularization: Any) -> Job:
    """Plain gradient descent, so that what a knob does is not hidden by an optimizer that rescales it."""
    return Job.from_dict(
        {
            "data": {"train": "rows.parquet"},
            "task": bench.inputs.task,
            "network": bench.network,
            "regularization": {**OFF, **regularization},
            "optimization": {
                "optimizer": "sgd",
                "learning_rate": 0.05,
                "global_batch_size": BATCH,
                "max_epochs": max_epochs,
                "seed": 3,
            },
        }
    )


def defined() -> list[tuple[str, str]]:
    """Each bench and each knob that means something there."""
    return [
        (name, knob)
        for name, bench in BENCHES.items()
        for knob, spec in knob_specs().items()
        if not spec.misuse(
            bench.network["kind"],
            job_for(bench).network,
            bench.inputs.task,
            bench.columns,
            bench.inputs.any_length,
        )
    ]


def rows_for(bench: Bench, num_rows: int = NUM_ROWS, seed: int = 0) -> Arrays:
    """Random rows."""
    random, inputs = np.random.default_rng(seed), bench.inputs
    arrays: Arrays = {}
    if inputs.num_numeric:
        arrays["numeric"] = random.normal(size=(num_rows, inputs.num_numeric)).astype(np.float32)
    if inputs.cardinalities:
        arrays["categorical"] = random.integers(0, inputs.cardinalities, (num_rows, len(inputs.cardinalities)))
    if inputs.image_CHW:
        arrays["image"] = random.integers(0, 256, (num_rows, *inputs.image_CHW), dtype=np.uint8)
    if inputs.sequence_TC and inputs.sequence_TC[0]:
        arrays["sequence"] = random.normal(size=(num_rows, *inputs.sequence_TC)).astype(np.float32)
    length_N = random.integers(3, 7, num_rows)
    if inputs.sequence_TC and not inputs.sequence_TC[0]:
        values = random.normal(size=(length_N.sum(), inputs.sequence_TC[1])).astype(np.float32)
        arrays["sequence"] = Ragged.consecutive(values, length_N)
    if inputs.task == "language_modeling":
        arrays["tokens"] = random.integers(0, inputs.vocabulary_size, (num_rows, inputs.window + 1)).astype(np.int32)
        arrays["length"] = random.integers(3, inputs.window + 2, num_rows)
        arrays["skip"] = np.zeros(num_rows, np.int64)
        arrays["characters"] = arrays["length"]
    elif inputs.vocabulary_size:
        arrays["tokens"] = Ragged.consecutive(random.integers(1, inputs.vocabulary_size, length_N.sum()), length_N)
    return arrays | targets_for(inputs, random, num_rows)


def targets_for(inputs: InputSpec, random: np.random.Generator, num_rows: int) -> Arrays:
    """What is to be predicted; generators have no target."""
    if inputs.task == "classification":
        return {"target": random.integers(0, 3, num_rows)}
    if inputs.task == "forecasting":
        shape = (num_rows, inputs.window + inputs.horizon, inputs.num_targets)
        return {"target": random.normal(size=shape).astype(np.float32)}
    return {"target": random.normal(size=num_rows).astype(np.float32)} if inputs.task == "regression" else {}


def shard_of(arrays: Arrays, start: int, stop: int) -> Shard:
    part = {name: array[start:stop] for name, array in arrays.items()}
    return build_shard([part], start, stop - start, folder=Path(), device=torch.device("cpu"), residence="memory")


def fresh(job: Job, bench: Bench, workers: Workers = Workers()) -> TrainingState:  # noqa: B008 - frozen
    torch.manual_seed(job.optimization.seed)
    build = partial(NETWORKS[job.network.kind].build, job.network, regularization=job.regularization.peak())
    if bench.inputs.task == "forecasting":  # each target by itself: a row is two for the network inside
        model: nn.Module = Forecaster(build, bench.inputs, independent=True)
    else:
        model = build(bench.inputs)
    return TrainingState.fresh(job, model, workers)


def train(
    job: Job,
    bench: Bench,
    state: TrainingState | None = None,
    *,
    num_rows: int = NUM_ROWS,
    epochs: int | None = None,
    workers: Workers = Workers(),  # noqa: B008 - frozen
) -> TrainingState:
    """Trains (at most `epochs` epochs) on this worker's share of the rows."""
    state = state or fresh(job, bench, workers)
    lanes = Lanes(num_rows, BATCH, job.optimization.seed)
    start, stop = lanes.rows_of_worker(workers.rank, workers.count)
    mine = TrainingShard(shard_of(rows_for(bench, num_rows), start, stop), lanes)
    validation = shard_of(rows_for(bench, 5, seed=1), *evaluation_rows(5, workers.rank, workers.count))
    for done, _ in enumerate(train_epochs(job, bench.inputs, state, mine, validation, workers), start=1):
        if done == epochs:
            break
    return state


def weights(state: TrainingState) -> dict[str, Tensor]:
    """Of the network that is scored and kept."""
    return {name: weight.detach().clone() for name, weight in state.evaluated.state_dict().items()}


def batch_of(bench: Bench, num_rows: int = NUM_ROWS) -> dict[str, Tensor]:
    """All rows at once."""
    return shard_of(rows_for(bench, num_rows), 0, num_rows).gathered(torch.arange(num_rows), torch.device("cpu"))
