"""What the network of a run gives for rows that are encoded: the batches, and the columns of a prediction.

Shapes: N rows, K classes or targets, H steps forecast.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from raynn.batches import evaluation_batches
from raynn.errors import DataError
from raynn.fragments import BadRow
from raynn.gradients import precision
from raynn.job import Job
from raynn.loop import evaluation_batch_rows
from raynn.preparation import described
from raynn.preprocessing import Preprocessing
from raynn.shards import Arrays, Shard, build_shard
from raynn.splits import NAMES

SPLITS = {name: split for split, name in NAMES.items()}


class Trained(Protocol):
    """What a run is to those who compute with it."""

    @property
    def folder(self) -> Path: ...
    @property
    def job(self) -> Job: ...
    @property
    def preprocessing(self) -> Preprocessing: ...
    @property
    def model(self) -> torch.nn.Module: ...


def device_of(run: Trained) -> torch.device:
    """Where its network is."""
    return next(run.model.parameters()).device


def shard_of(run: Trained, pieces: Iterator[Arrays], rows: int) -> Shard:
    """Encoded rows, where its network reads them."""
    return build_shard(pieces, 0, rows, folder=run.folder / "scratch", device=device_of(run), residence="memory")


@torch.no_grad()
def outputs_of(run: Trained, shard: Shard) -> NDArray[np.float32]:
    """Outputs [N, K], or of a forecast [N, H, K], of the network, a batch at a time."""
    run.model.eval()
    device = device_of(run)
    outputs, order = [], shard.by_length()
    for batch, _ in evaluation_batches(shard, evaluation_batch_rows(run.job), device, order):
        with precision(run.job, device):
            outputs.append(run.model(batch).float().cpu().numpy())
    if not outputs:
        return np.zeros((0, run.preprocessing.input_spec.num_outputs), np.float32)
    whole = np.concatenate(outputs)
    return whole if order is None else whole[order.argsort().cpu().numpy()]


def prediction_columns(preprocessing: Preprocessing, outputs_NK: NDArray[np.float32]) -> dict[str, pa.Array]:
    """Prediction columns: the class and every class's probability, or the value in the target's unit."""
    inputs = preprocessing.input_spec
    if inputs.classes is None:
        return {"prediction": preprocessing.decode_target(outputs_NK[:, 0])}
    probability_NK = torch.from_numpy(outputs_NK).double().softmax(dim=1).numpy()
    columns = {"prediction": preprocessing.decode_target(probability_NK.argmax(axis=1))}
    for k, label in enumerate(inputs.classes):
        columns[f"probability_{label}"] = pa.array(probability_NK[:, k])
    return columns


def cannot_be_evaluated(data: str, bad: BadRow) -> DataError:
    """A source holds a bad row, and no row may be left out."""
    return DataError(f"{data} holds rows that cannot be evaluated, the first: {described(bad)}; mend or drop them")
