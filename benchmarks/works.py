"""The same work for raynn and for those it is compared with: data as arrays, networks written out, and raynn's jobs.

Shapes: B rows, F numbers of a row, T steps, C channels, H hidden units, K classes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Arrays = dict[str, np.ndarray[Any, Any]]
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Work:
    """What is trained.

    Attributes:
        network, data, optimization: sections of raynn's job.
        arrays: the training rows [N, ...] by column, `target` among them.
        build: the same network, of as many parameters, for those rows.
        epochs: of which the first warms up.
    """

    network: dict[str, Any]
    data: dict[str, Any]
    arrays: Callable[[Path], Arrays]
    build: Callable[[Arrays], nn.Module]
    rows: int
    epochs: int
    optimization: dict[str, Any] = field(default_factory=dict)
    lr: float = 1e-3

    def job(self, data: Path, storage: Path, name: str, **sections: Any) -> dict[str, Any]:
        """raynn's job of this work: no regularizer, every epoch trained."""
        paths = {key: str(data / value) if key in ("train", "test") else value for key, value in self.data.items()}
        return {
            "name": name,
            "data": paths,
            "network": self.network,
            "regularization": {"dropout": 0.0, "weight_decay": 0.01},
            "optimization": {
                "learning_rate": self.lr,
                "schedule": "constant",
                "global_batch_size": self.rows,
                "max_epochs": self.epochs,
                **self.optimization,
            },
            "early_stopping": {"rule": "none"},
            "storage": str(storage),
            "report": False,
            **sections,
        }


def held_in(num_rows: int) -> np.ndarray[Any, Any]:
    """Nine tenths of the rows, at random: raynn holds a tenth back for validation."""
    return np.random.default_rng(0).permutation(num_rows)[: num_rows - num_rows // 10]


def adult_rows(data: Path) -> Arrays:
    """Standardized numbers, and categories counted from 1; 0 is for what is missing."""
    table = pq.read_table(data / "adult_train.parquet").to_pandas()
    target_N = (table.pop("income_over_50k").astype("category").cat.codes).to_numpy(np.int64)
    numbers = table.select_dtypes("number")
    numeric_NF = ((numbers - numbers.mean()) / numbers.std()).fillna(0.0).to_numpy(np.float32)
    codes = [
        table[name].astype("category").cat.codes.to_numpy(np.int64) + 1
        for name in table.columns.difference(numbers.columns)
    ]
    return {"numeric": numeric_NF, "categorical": np.stack(codes, 1), "target": target_N}


def adult(data: Path) -> Arrays:
    """Those of its rows that are trained on."""
    arrays = adult_rows(data)
    rows = held_in(len(arrays["target"]))
    return {name: x[rows] for name, x in arrays.items()}


def embedding_width(num_categories: int) -> int:
    """As many numbers as raynn gives a category by default."""
    return min(50, round(1.6 * num_categories**0.56))


class Mlp(nn.Module):
    """Embedded categories beside numbers, three layers of 256."""

    def __init__(self, arrays: Arrays) -> None:
        super().__init__()
        sizes = arrays["categorical"].max(0) + 1
        widths = [embedding_width(size) for size in sizes.tolist()]
        self.embeddings = nn.ModuleList(nn.Embedding(int(s), w) for s, w in zip(sizes, widths, strict=True))
        width, layers = arrays["numeric"].shape[1] + sum(widths), []
        for _ in range(3):
            layers += [nn.Linear(width, 256), nn.ReLU()]
            width = 256
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, K]."""
        embedded = [embed(batch["categorical"][:, i]) for i, embed in enumerate(self.embeddings)]
        return self.layers(torch.cat([batch["numeric"], *embedded], dim=1))


def fashion(data: Path) -> Arrays:
    """Gray images in bytes."""
    from PIL import Image

    table = pq.read_table(data / "fashion_mnist_test.parquet")
    images = [np.asarray(Image.open(io.BytesIO(item.as_py()))) for item in table["image"]]
    rows = held_in(len(images))
    return {"image": np.stack(images)[:, None][rows], "target": table["label"].to_numpy().astype(np.int64)[rows]}


class Cnn(nn.Module):
    """Convolutions 32, 64 and 64, a pooling before each but the first, and a layer of 128."""

    def __init__(self, arrays: Arrays) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for stage, width in enumerate((32, 64, 64)):
            layers += [nn.MaxPool2d(2)] if stage else []
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, K]."""
        return self.layers((batch["image"].float() - 72.9) / 90.0)


def vowels(data: Path) -> Arrays:
    """Sequences of 12 channels, zeros behind their ends."""
    table = pq.read_table(data / "japanesevowels_train.parquet")
    name = next(n for n in table.schema.names if n != "label")
    sequences = [np.asarray(item.as_py(), np.float32) for item in table[name]]
    length_N = np.array([len(s) for s in sequences])
    steps = np.concatenate(sequences)
    x_NTC = np.zeros((len(sequences), length_N.max(), steps.shape[1]), np.float32)
    for row, sequence in enumerate(sequences):
        x_NTC[row, : len(sequence)] = (sequence - steps.mean(0)) / steps.std(0)
    target_N = table["label"].to_pandas().astype("category").cat.codes.to_numpy(np.int64)
    rows = held_in(len(sequences))
    return {"sequence": x_NTC[rows], "length": length_N[rows], "target": target_N[rows]}


class Lstm(nn.Module):
    """An LSTM of 128 units, read at each row's last step."""

    def __init__(self, arrays: Arrays) -> None:
        super().__init__()
        self.lstm = nn.LSTM(arrays["sequence"].shape[2], 128, batch_first=True)
        self.head = nn.Linear(128, 9)

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, K]."""
        packed = nn.utils.rnn.pack_padded_sequence(
            batch["sequence"], batch["length"].cpu(), batch_first=True, enforce_sorted=False
        )
        return self.head(self.lstm(packed)[1][0][-1])


WINDOW = 128


def shakespeare(data: Path) -> Arrays:
    """Windows of 129 characters, 128 apart."""
    text = (data / "tiny_shakespeare.txt").read_text()
    text = text[: len(text) * 9 // 10]
    code = {character: number for number, character in enumerate(sorted(set(text)), start=1)}
    tokens = np.array([code[c] for c in text], np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(tokens, WINDOW + 1)[::128]
    return {"tokens": windows.copy(), "target": np.zeros(len(windows), np.int64)}


class Transformer(nn.Module):
    """raynn's own network, trained by others' loops: what is compared here is the loop."""

    def __init__(self, arrays: Arrays) -> None:
        super().__init__()
        from raynn.job import Job
        from raynn.networks import NETWORKS
        from raynn.preprocessing import InputSpec

        job = Job.from_dict({"data": {"train": "x"}, "task": "language_modeling", "network": WORKS["text"].network})
        size = int(arrays["tokens"].max()) + 1
        inputs = InputSpec(vocabulary_size=size, window=WINDOW, task="language_modeling")
        self.inner = NETWORKS["text_generator"].build(job.network, inputs, job.regularization)

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, T, V]."""
        length_B = torch.full((len(batch["tokens"]),), WINDOW + 1)
        return self.inner({"tokens": batch["tokens"], "length": length_B}, None)


def loss_of(outputs: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy over rows or tokens."""
    if outputs.dim() == 3:
        return F.cross_entropy(outputs.flatten(0, 1), batch["tokens"][:, 1:].flatten())
    return F.cross_entropy(outputs, batch["target"])


WORKS: dict[str, Work] = {
    "mlp": Work(
        {"kind": "feedforward", "hidden": [256, 256, 256]},
        {"train": "adult_train.parquet", "validation": 0.1, "target": "income_over_50k"},
        adult,
        Mlp,
        rows=256,
        epochs=5,
    ),
    "cnn": Work(
        {"kind": "cnn", "channels": [32, 64, 64]},
        {"train": "fashion_mnist_test.parquet", "validation": 0.1, "target": "label"},  # the smaller of the two
        fashion,
        Cnn,
        rows=256,
        epochs=3,
    ),
    "lstm": Work(
        {"kind": "lstm", "hidden": 128, "initialization": "uniform"},
        {"train": "japanesevowels_train.parquet", "validation": 0.1, "target": "label"},
        vowels,
        Lstm,
        rows=32,
        epochs=30,
        lr=3e-3,
    ),
    "text": Work(
        {"kind": "text_generator", "width": 128, "layers": 2, "heads": 4},
        {"train": "tiny_shakespeare.txt", "validation": 0.1, "window": WINDOW, "stride": 128, "tokens": "characters"},
        shakespeare,
        Transformer,
        rows=32,
        epochs=2,
    ),
}
