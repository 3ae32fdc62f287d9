"""The table of contracts: every network of the house x every task it is for x every input it takes, and rows for each.

A new network needs an entry in `SETTINGS`; what it is for and what it takes is read from its own entry in NETWORKS.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raynn.job import Job
from raynn.networks import NETWORKS
from raynn.networks.forecasting import MAX_ONE_HOT, Forecaster
from raynn.objectives import loss_per_row
from raynn.preprocessing import InputSpec
from raynn.ragged import Ragged
from raynn.randomness import row_keys
from raynn.shards import Arrays, Shard, build_shard

NUM_CLASSES, VOCABULARY, STEPS = 5, 13, 9
WINDOW, HORIZON, TARGETS = 6, 3, 2
CPU = torch.device("cpu")

TABLE: dict[str, Any] = {
    "num_numeric": 4,
    "cardinalities": (3, 11),
    "quantile_bins": ((-2.0, -0.5, 0.1, 2.0), (-1.0, 0.0, 1.0), (), ()),
}
IMAGE: dict[str, Any] = {"image_CHW": (2, 8, 6), "image_mean": (100.0, 120.0), "image_std": (50.0, 70.0)}
PICTURES: dict[str, Any] = {"image_CHW": (1, 4, 4), "image_mean": (127.5,), "image_std": (73.9,)}
SERIES: dict[str, Any] = {
    "window": WINDOW,
    "horizon": HORIZON,
    "num_targets": TARGETS,
    "num_outputs": HORIZON * TARGETS,
    "target_mean": (0.0,) * TARGETS,
    "target_std": (1.0,) * TARGETS,
}
INPUTS: dict[str, dict[str, Any]] = {
    "table": TABLE,
    "image": IMAGE,
    "sequence": {"sequence_TC": (STEPS, 3)},
    "steps": {"sequence_TC": (0, 3)},  # sequences whose lengths differ
    "text": {"vocabulary_size": VOCABULARY},
    "pictures": PICTURES,
    "pictures by class": PICTURES | {"classes": tuple(range(3))},
    "tokens": {"vocabulary_size": VOCABULARY, "window": WINDOW, "num_outputs": VOCABULARY},
    "series": SERIES,
    # some of the numbers and categories are known for the steps to come, one category is embedded
    "series and covariates": SERIES
    | {"num_numeric": 3, "cardinalities": (4, MAX_ONE_HOT + 8), "known_numeric": (1,), "known_categorical": (1,)},
}
PREDICTED = ("table", "image", "sequence", "steps", "text")
BESIDE = tuple(f"{name} and table" for name in PREDICTED[1:])
DATA: dict[str, tuple[str, ...]] = {
    "classification": (*PREDICTED, *BESIDE),
    "regression": PREDICTED,
    "forecasting": ("series", "series and covariates"),
    "language_modeling": ("tokens",),
    "image_generation": ("pictures", "pictures by class"),
}
KINDS = {"table": "numeric", "steps": "sequence", "pictures": "image", "tokens": "text"}

# Of every network its variants, each small enough for tests.
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "feedforward": {"": {"hidden": [24, 16]}},
    "cnn": {"": {"channels": [6, 8], "head_hidden": [16]}},
    "rnn": {"": {"hidden": 20}, "gru": {"hidden": 20, "cell": "gru"}},
    "lstm": {"": {"hidden": 20}},
    "image_generator": {
        "vae": {"architecture": "vae", "channels": [8], "latent": 2, "mixture": 2},
        "flow": {"architecture": "flow_matching", "channels": [8], "condition_width": 16, "steps": 2},
    },
    "text_generator": {
        "transformer": {"width": 24, "layers": 2, "heads": 3},
        "lstm": {"architecture": "lstm", "width": 24, "layers": 2},
    },
    "custom": {"": {"target": "own_network:build", "settings": {"size": 24}}},
}
# The smallest that still have every part: for gradients by finite differences.
TINY: dict[str, dict[str, Any]] = {
    "feedforward": {"hidden": [3, 4], "number_embedding_width": 2, "number_embedding_frequencies": 3},
    "cnn": {"channels": [2, 3], "head_hidden": [3]},
    "rnn": {"hidden": 3, "layers": 2},
    "lstm": {"hidden": 3, "layers": 2},
    "custom": {"target": "own_network:build", "settings": {"size": 3}},
}


@dataclass(frozen=True)
class Case:
    """A network with its settings, a task and what a row holds."""

    kind: str
    variant: str
    task: str
    data: str

    def __str__(self) -> str:
        return "-".join(filter(None, (self.kind, self.variant, self.task, self.data)))

    @property
    def settings(self) -> dict[str, Any]:
        """The section `network` of a job."""
        return {"kind": self.kind, **SETTINGS[self.kind][self.variant]}

    @property
    def inputs(self) -> InputSpec:
        """What the network receives and owes."""
        return inputs_of(self.task, self.data)


def inputs_of(task: str, data: str) -> InputSpec:
    """Of rows of that name."""
    fields = {key: value for name in names_in(data) for key, value in INPUTS[name].items()}
    if task == "classification":
        fields |= {"num_outputs": NUM_CLASSES, "classes": tuple(range(NUM_CLASSES))}
    return InputSpec(**fields, task=task)  # type: ignore[arg-type]


def names_in(data: str) -> list[str]:
    """`text and table` has two."""
    return [data] if data in INPUTS else data.split(" and ")


def takes(kind: str, data: str) -> bool:
    """Whether the network takes rows of that name, and has all it needs."""
    network, kinds = NETWORKS[kind], {KINDS.get(name, name) for name in names_in(data)}
    if data in DATA["forecasting"] or data in DATA["image_generation"]:
        return True
    if network.any_length and "sequence" in names_in(data):
        return False  # to it sequences are always `steps`
    return kinds <= set(network.inputs) and (not network.needs or bool(kinds & set(network.needs)))


CASES = [
    Case(kind, variant, task, data)
    for kind, network in NETWORKS.items()
    for variant in SETTINGS.get(kind, ())
    for task in network.tasks
    for data in DATA[task]
    if takes(kind, data)
]


def over(cases: list[Case]) -> pytest.MarkDecorator:
    """A test of every case."""
    return pytest.mark.parametrize("case", cases, ids=str)


def settings_of(case: Case, settings: dict[str, Any] | None, regularization: dict[str, Any]) -> Job:
    """A job with this network, whose data are never read."""
    data: dict[str, Any] = {"train": "rows.parquet"}
    if case.task == "forecasting":
        data |= {"target": ["a", "b"], "time": "t", "window": WINDOW, "horizon": HORIZON}
        data |= {"window_normalization": "revin", "channels": "independent"} if "cov" in case.data else {}
    elif case.task == "language_modeling":
        data |= {"window": WINDOW}
    elif case.inputs.classes or case.task == "regression":
        data |= {"target": "y"}
    return Job.from_dict(
        {
            "data": data,
            "task": case.task,
            "network": case.settings if settings is None else {"kind": case.kind, **settings},
            "regularization": {"dropout": 0.0, "weight_decay": 0.0, **regularization},
            "optimization": {"global_batch_size": 9, "max_epochs": 3, "learning_rate": 0.01, "seed": 1},
        }
    )


def build(
    case: Case, settings: dict[str, Any] | None = None, inputs: InputSpec | None = None, **regularization: float
) -> nn.Module:
    """The network, its weights those of seed 0."""
    job, inputs = settings_of(case, settings, regularization), inputs or case.inputs
    torch.manual_seed(0)
    network = partial(NETWORKS[case.kind].build, job.network, regularization=job.regularization)
    if case.task == "forecasting":
        data = job.data
        return Forecaster(network, inputs, data.window_normalization, independent=data.channels == "independent")
    return network(inputs)


def rows_of(inputs: InputSpec, num_rows: int, seed: int = 0) -> Arrays:
    """Rows as a shard is given them."""
    random = np.random.default_rng(seed)
    if inputs.task == "forecasting":
        return _windows(inputs, num_rows, random)
    arrays: Arrays = {}
    if inputs.num_numeric:
        arrays["numeric"] = random.normal(size=(num_rows, inputs.num_numeric)).astype(np.float32)
    if inputs.cardinalities:
        arrays["categorical"] = _codes(inputs, num_rows, random)
    if inputs.image_CHW:
        arrays["image"] = random.integers(0, 256, (num_rows, *inputs.image_CHW), dtype=np.uint8)
    if inputs.sequence_TC:
        length, channels = inputs.sequence_TC
        length_N = np.full(num_rows, length) if length else random.integers(1, STEPS + 1, num_rows)
        steps_SC = random.normal(size=(length_N.sum(), channels)).astype(np.float32)
        ragged = Ragged.consecutive(steps_SC, length_N)
        arrays["sequence"] = steps_SC.reshape(num_rows, length, channels) if length else ragged
    if inputs.vocabulary_size:
        arrays |= _texts(inputs, num_rows, random)
    if inputs.classes:
        arrays["target"] = random.integers(0, len(inputs.classes), num_rows)
    elif inputs.task == "regression":
        arrays["target"] = random.normal(size=num_rows).astype(np.float32)
    return arrays


def _codes(inputs: InputSpec, num: int, random: np.random.Generator) -> NDArray[np.int64]:
    return np.stack([random.integers(0, size, num) for size in inputs.cardinalities], axis=1)


def _windows(inputs: InputSpec, num_rows: int, random: np.random.Generator) -> Arrays:
    """Steps read and steps to predict of each row."""
    num_steps = inputs.window + inputs.horizon
    num = num_rows * num_steps
    steps: dict[str, NDArray[Any]] = {"target": random.normal(size=(num, inputs.num_targets)).astype(np.float32)}
    if inputs.num_numeric:
        steps["numeric"] = random.normal(size=(num, inputs.num_numeric)).astype(np.float32)
    if inputs.cardinalities:
        steps["categorical"] = _codes(inputs, num, random)
    return {name: Ragged.consecutive(values, np.full(num_rows, num_steps)) for name, values in steps.items()}


def _texts(inputs: InputSpec, num_rows: int, random: np.random.Generator) -> Arrays:
    """Tokens, and for a language model which of them count."""
    models_language = inputs.task == "language_modeling"
    low, high = (2, inputs.window + 2) if models_language else (1, STEPS + 1)
    length_N = random.integers(low, high, num_rows)
    tokens_S = random.integers(1, inputs.vocabulary_size, length_N.sum())
    if not models_language:
        return {"tokens": Ragged.consecutive(tokens_S, length_N)}
    tokens_S[np.cumsum(length_N) - length_N] = 1 + np.arange(num_rows) % (inputs.vocabulary_size - 1)  # tell rows apart
    tokens = Ragged.consecutive(tokens_S, length_N)
    return {"tokens": tokens, "skip": np.zeros(num_rows, np.int64), "characters": length_N - 1}


def shard_of(arrays: Arrays, start: int, stop: int) -> Shard:
    """Some of the rows, in memory."""
    part = {name: array[start:stop] for name, array in arrays.items()}
    return build_shard([part], start, stop - start, folder=Path(), device=CPU, residence="memory")


def batch_of(inputs: InputSpec, num_rows: int, seed: int = 0) -> dict[str, Tensor]:
    """All rows as one batch."""
    return shard_of(rows_of(inputs, num_rows, seed), 0, num_rows).gathered(torch.arange(num_rows), CPU)


def keys(num_rows: int, epoch: int = 0) -> Tensor:
    """Random keys of rows in an epoch."""
    return torch.from_numpy(row_keys(0, epoch, np.arange(num_rows)))


def taken(batch: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Those rows of a batch."""
    return {name: x[rows] for name, x in batch.items()}


def doubled(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """In float64."""
    return {name: x.double() if x.is_floating_point() else x for name, x in batch.items()}


def shaken(model: nn.Module, spread: float = 0.1) -> nn.Module:
    """With other weights: off the kinks (a bias of 0 before a ReLU is one), and layers that begin at zero count."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return model


def loss_of(model: nn.Module, batch: dict[str, Tensor], key_B: Tensor, task: str) -> Tensor:
    """Mean over rows, in the network's own precision."""
    outputs = model(batch, key_B)
    if outputs.dtype == torch.float64:
        return _exact_loss(outputs, batch, task)
    return loss_per_row(outputs, batch, task).mean()


def _exact_loss(outputs: Tensor, batch: dict[str, Tensor], task: str) -> Tensor:
    """The same in float64, written down once more."""
    if task == "image_generation":
        return outputs[:, 0].mean()
    if task == "classification":
        return -outputs.log_softmax(1).gather(1, batch["target"][:, None]).mean()
    if task == "language_modeling":
        nats_BT = -outputs.log_softmax(2).gather(2, batch["tokens"][:, 1:, None]).squeeze(2)
        scored_BT = torch.arange(nats_BT.shape[1]) < batch["length"][:, None] - 1
        return ((nats_BT * scored_BT).sum(1) / scored_BT.sum(1)).mean()
    target = batch["target"][:, None] if task == "regression" else batch["target"][:, -outputs.shape[1] :]
    return (outputs - target).square().mean()


def parameters_of(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Those that training changes."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)
