"""A run that has ended: open it, evaluate it, predict rows in memory with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from raynn.cleaning import clean
from raynn.collectives import Workers
from raynn.corpus import scored_source
from raynn.documents import document_columns
from raynn.drivers import LocalDriver, StreamingDriver
from raynn.encoded import itself, shaped_arrays
from raynn.errors import DataError, RunError
from raynn.folder import check_run, read_result
from raynn.forecast import free_name
from raynn.forecasts import continued, forecasts_of_split, forecasts_of_table, windows_of_source
from raynn.fragments import Fragment
from raynn.job import Job
from raynn.loop import evaluate_shard
from raynn.objectives import with_split
from raynn.outputs import SPLITS, cannot_be_evaluated, device_of, outputs_of, prediction_columns, shard_of
from raynn.preparation import Prepared, ReadPlan, bad_rows_of
from raynn.preprocessing import Preprocessing
from raynn.series import Steps
from raynn.shards import Shard, free_memory_bytes
from raynn.sources import find_fragments
from raynn.splits import TEST
from raynn.storage import local_run
from raynn.tasks import build_model, prepare_job, understand_job


@dataclass(frozen=True)
class SplitRows:
    """The rows of a split: which of each fragment [n], and of text which characters of each, start .. stop [n, 2]."""

    fragments: tuple[Fragment, ...]
    rows: tuple[NDArray[np.int64], ...]
    characters: tuple[NDArray[np.int64], ...] | None = None


@dataclass(frozen=True)
class Run:
    """A run folder whose model is ready. Make one with `open_run`."""

    folder: Path
    job: Job
    preprocessing: Preprocessing
    model: torch.nn.Module = field(repr=False)

    @property
    def result(self) -> dict[str, Any]:
        """result.json."""
        return read_result(self.folder)

    def predict(self, data: Any) -> pa.Table:
        """Predictions for rows in memory, in their order: the same table with prediction columns added. A run that
        forecasts gives the steps that come after these rows: series, time, predictions.

        Args:
            data: a `pyarrow.Table`, a pandas data frame, or a dict of columns; it needs the features, not the target,
                which a forecast alone reads.

        Raises:
            DataError: a feature is missing, or the data are not a table.
        """
        table = _as_table(data)
        if self.preprocessing.forecast is None:
            return self.predicted(table)[0]
        return forecasts_of_table(self, table)

    def predicted(self, table: pa.Table) -> tuple[pa.Table, list[tuple[int, str, str]]]:
        """Raw rows with prediction columns added, and (row, column, reason) of the bad ones: their predictions are
        null.

        Raises:
            RunError: the run generates images.
            DataError: a feature is missing.
        """
        if self.preprocessing.task == "image_generation":
            raise RunError(
                f"{self.folder} generates images, and has nothing to predict; `raynn generate {self.folder}` draws them"
            )
        self._check_features(table)
        cleaned, bad = clean(table, self.preprocessing.features, (), (), self.job.data)
        arrays = shaped_arrays(self.preprocessing.encode(cleaned), self.preprocessing.input_spec)
        if self.preprocessing.task == "language_modeling":
            columns = document_columns(self, arrays["tokens"])
        else:
            outputs_NK = outputs_of(self, shard_of(self, iter([arrays]), table.num_rows))
            columns = prediction_columns(self.preprocessing, outputs_NK)
        unusable = np.zeros(table.num_rows, bool)
        unusable[[row for row, _, _ in bad]] = True
        for name, values in columns.items():
            column = pa.array(values.to_pylist(), values.type, mask=unusable) if unusable.any() else values
            table = table.append_column(free_name(name, table.column_names), column)
        return table, bad

    def continued(self, steps: Steps) -> pa.Table:
        """The steps that come after the end of every series: series, time, predictions.

        Raises:
            DataError: steps that a forecast needs are missing.
        """
        return continued(self, steps)

    def forecasts_of_split(self, name: str) -> Iterator[pa.Table]:
        """The forecasts of every window of a split, some at a time: series, origin, step, time, actual values,
        predictions.

        Raises:
            RunError: the job has no such split.
        """
        return forecasts_of_split(self, name)

    def evaluate(self, data: str | None = None) -> dict[str, float]:
        """Metrics on the job's test set, or on a source with the target in it; no row is left out.

        Raises:
            RunError: no source is named and the job has no test set.
            DataError: rows or labels that the model cannot take.
        """
        if data is None or data in SPLITS:
            name = data or "test"
            if name == "validation" and (self.folder / "model-validated").exists():
                raise RunError(
                    f"{self.folder} was refitted: model/ has trained on the validation rows. The val/ metrics in "
                    "result.json are those of model-validated/, which has not; evaluate the test set, or other data"
                )
            shard = self.split_shard(self.prepared(), name)
        else:
            name, shard = "test", self._source_shard(data)
        inputs = self.preprocessing.input_spec
        key = "val" if name == "validation" else name
        return with_split(key, evaluate_shard(self.job, inputs, self.model, shard, Workers(device=device_of(self))))

    def rows_of_split(self, name: str) -> SplitRows:
        """Which rows of the job's own data, and of text which characters, belong to a split.

        Raises:
            RunError: the job has no such split.
        """
        understood = understand_job(self.job, self.folder)
        prepared = self.prepared()
        split = SPLITS[name]
        rows = tuple(np.flatnonzero(part == split) for part in prepared.splits)
        characters = None
        if prepared.cuts:
            rows = tuple(np.flatnonzero(cut[:, split]) for cut in prepared.cuts)
            stops = [np.cumsum(cut, axis=1)[row, split] for cut, row in zip(prepared.cuts, rows, strict=True)]
            counts = [cut[row, split] for cut, row in zip(prepared.cuts, rows, strict=True)]
            characters = tuple(np.stack([b - n, b], axis=1) for b, n in zip(stops, counts, strict=True))
        if not any(len(part) for part in rows):
            raise RunError(f"the job has no {name} set; name the data: raynn predict {self.folder} DATA")
        return SplitRows(understood.fragments, rows, characters)

    def prepared(self) -> Prepared:
        """The job's own data again, with the model's preprocessing."""
        understood = understand_job(self.job, self.folder)
        kept = understood.footprint is None or understood.footprint.kept(free_memory_bytes(), "auto")
        return prepare_job(self.job, understood, LocalDriver() if kept else StreamingDriver(), self.preprocessing)

    def split_shard(self, prepared: Prepared, name: str) -> Shard:
        rows = prepared.encoded.num_rows(SPLITS[name])
        if not rows:
            raise RunError(f"the job has no {name} set; name the data: raynn evaluate {self.folder} DATA")
        pieces = prepared.encoded.pieces(SPLITS[name], 0, rows, itself)
        return shard_of(self, pieces, rows)

    def _source_shard(self, data: str) -> Shard:
        """A whole source, encoded with its target: of a forecast, all windows of it."""
        if self.preprocessing.forecast is not None:
            return windows_of_source(self, data)
        plan = ReadPlan(self.job.data, self.preprocessing.features, self.preprocessing.targets)
        fragments, blocks = find_fragments(data, self.folder), []
        for index, fragment in enumerate(fragments):
            blocks.append(plan.read(index, fragment))
            if bad := bad_rows_of(blocks[-1]):
                raise cannot_be_evaluated(data, bad[0])
        if self.preprocessing.task == "language_modeling":
            encoded = scored_source(plan, fragments, blocks, self.preprocessing, LocalDriver())
            rows = encoded.num_rows(TEST)
            return shard_of(self, encoded.pieces(TEST, 0, rows, itself), rows)
        tables = [self.preprocessing.encode(block, with_target=True) for block in blocks]
        whole = pa.concat_tables(tables).combine_chunks()
        if not whole.num_rows:
            raise DataError(f"{data} has no rows to evaluate")
        return shard_of(self, iter([shaped_arrays(whole, self.preprocessing.input_spec)]), whole.num_rows)

    def _check_features(self, table: pa.Table) -> None:
        """A missing feature is named before anything is computed."""
        present = table.column_names
        missing = [s.name for s in self.preprocessing.features if s.name not in present]
        if missing:
            self.preprocessing.encode(table)  # raises, with the nearest name
            raise DataError(f"column {missing[0]!r} is missing from the data")


def _as_table(data: Any) -> pa.Table:
    """A table, a data frame or a dict of columns as an Arrow table."""
    if isinstance(data, pa.Table):
        return data
    try:
        return pa.table(data) if isinstance(data, dict) else pa.Table.from_pandas(data, preserve_index=False)
    except (pa.ArrowException, AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"the data, a {type(data).__name__}, cannot be read as a table ({error}); give a pyarrow.Table, a pandas "
            "data frame, or a dict of columns of equal length"
        ) from None


def evaluate(run: str | Path, data: str | None = None) -> dict[str, float]:
    """Metrics of a run folder's model: `Run.evaluate`."""
    return open_run(run).evaluate(data)


def open_run(folder: str | Path) -> Run:
    """Opens a run folder, local or at a URL: its job, preprocessing and best weights, on the GPU where there is one.

    Raises:
        RunError: it is no run folder, or its training has not ended.
    """
    folder = check_run(local_run(folder))
    model_folder = folder / "model"
    if not (model_folder / "weights.safetensors").exists():
        raise RunError(
            f"{folder} has no model yet: its training has not ended well; continue it with its job file and resume=true"
        )
    try:
        job = Job.load(model_folder / "job.yaml")
        preprocessing = Preprocessing.from_json((model_folder / "preprocessing.json").read_text())
        model = build_model(job, preprocessing)
        model.load_state_dict(load_file(model_folder / "weights.safetensors"))
    except (OSError, SafetensorError, RuntimeError) as error:  # torch's word for weights of another network
        reason = str(error).partition("\n")[0]
        raise RunError(f"{model_folder} is damaged: {reason}; restore its files, or train again") from None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Run(folder.resolve(), job, preprocessing, model.to(device).eval())
