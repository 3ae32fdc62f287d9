"""A finished run: open it, evaluate it, predict with it."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from raynn.batches import Shard, build_shard
from raynn.cleaning import ShapeError, clean
from raynn.collectives import Workers
from raynn.errors import DataError, RunError
from raynn.folder import check_run, read_result, write_bad_rows
from raynn.job import Job
from raynn.loop import evaluate_shard, evaluation_batch_rows, precision
from raynn.objectives import with_split
from raynn.preparation import (
    LocalDriver,
    Prepared,
    ReadPlan,
    bad_rows_of,
    described,
    prepare,
    shaped_arrays,
    understand,
)
from raynn.preprocessing import Preprocessing
from raynn.progress import Counter
from raynn.sources import BadRow, Fragment, find_fragments, read_fragment
from raynn.splits import NAMES
from raynn.training import build_model

BAD = "__bad__"  # column of bad rows as JSON, in a fragment's first row
SPLITS = {name: split for split, name in NAMES.items()}


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
        """Predictions for rows in memory, in their order: the same table with prediction columns added.

        Args:
            data: a `pyarrow.Table`, a pandas data frame, or a dict of columns; it needs the features, not the target.

        Raises:
            DataError: a feature is missing, or the data are not a table.
        """
        return self.predicted(_as_table(data))[0]

    def predicted(self, table: pa.Table) -> tuple[pa.Table, list[tuple[int, str, str]]]:
        """Raw rows with prediction columns added, and (row, column, reason) of the bad ones: their predictions are
        null.
        """
        self._check_features(table)
        cleaned, bad = clean(table, self.preprocessing.features, None, (), self.job.data)
        arrays = shaped_arrays(self.preprocessing.encode(cleaned), self.preprocessing.input_spec)
        outputs_NK = self._outputs(arrays, table.num_rows)
        unusable = np.zeros(table.num_rows, bool)
        unusable[[row for row, _, _ in bad]] = True
        for name, values in self._columns(outputs_NK).items():
            column = pa.array(values.to_pylist(), values.type, mask=unusable) if unusable.any() else values
            table = table.append_column(_free_name(name, table.column_names), column)
        return table, bad

    def evaluate(self, data: str | None = None) -> dict[str, float]:
        """Metrics on the job's test set, or on a source with the target in it; no row is left out.

        Raises:
            RunError: no source is named and the job has no test set.
            DataError: rows or labels that the model cannot take.
        """
        if data is None or data in SPLITS:
            name = data or "test"
            shard = self._split_shard(self._prepared(), name)
        else:
            name, shard = "test", self._source_shard(data)
        device = next(self.model.parameters()).device
        inputs = self.preprocessing.input_spec
        key = "val" if name == "validation" else name
        return with_split(key, evaluate_shard(self.job, inputs, self.model, shard, Workers(device=device)))

    def rows_of_split(self, name: str) -> tuple[tuple[Fragment, ...], tuple[NDArray[np.int64], ...]]:
        """The job's fragments, and which rows of each belong to a split.

        Raises:
            RunError: the job has no such split.
        """
        understood = understand(self.job.data, self.folder)
        prepared = self._prepared()
        rows = tuple(np.flatnonzero(part == SPLITS[name]) for part in prepared.splits)
        if not any(len(part) for part in rows):
            raise RunError(f"the job has no {name} set; name the data: raynn predict {self.folder} DATA")
        return understood.fragments, rows

    def _prepared(self) -> Prepared:
        """The job's own data again, with the model's preprocessing."""
        understood = understand(self.job.data, self.folder)
        return prepare(understood, self.job.task, self.job.optimization.seed, LocalDriver(), self.preprocessing)

    def _split_shard(self, prepared: Prepared, name: str) -> Shard:
        rows = prepared.encoded.num_rows(SPLITS[name])
        if not rows:
            raise RunError(f"the job has no {name} set; name the data: raynn evaluate {self.folder} DATA")
        pieces = prepared.encoded.pieces(SPLITS[name], 0, rows, lambda table: table)
        return self._shard(pieces, rows)

    def _source_shard(self, data: str) -> Shard:
        """A whole source, encoded with its target."""
        target = self.preprocessing.target
        plan = ReadPlan(self.job.data, self.preprocessing.features, target)
        tables = []
        for index, fragment in enumerate(find_fragments(data, self.folder)):
            cleaned = plan.read(index, fragment)
            if bad := bad_rows_of(cleaned):
                raise DataError(
                    f"{data} holds rows that cannot be evaluated, the first: {described(bad[0])}; mend or drop them"
                )
            tables.append(self.preprocessing.encode(cleaned, None, with_target=True))
        whole = pa.concat_tables(tables).combine_chunks()
        if not whole.num_rows:
            raise DataError(f"{data} has no rows to evaluate")
        return self._shard(iter([shaped_arrays(whole, self.preprocessing.input_spec)]), whole.num_rows)

    def _shard(self, pieces: Iterator[dict[str, NDArray[Any]]], rows: int) -> Shard:
        device = next(self.model.parameters()).device
        return build_shard(pieces, 0, rows, folder=self.folder / "scratch", device=device, residence="memory")

    def _check_features(self, table: pa.Table) -> None:
        """A missing feature is named before anything is computed."""
        present = table.column_names
        missing = [s.name for s in self.preprocessing.features if s.name not in present]
        if missing:
            self.preprocessing.encode(table)  # raises, with the nearest name
            raise DataError(f"column {missing[0]!r} is missing from the data")

    @torch.no_grad()
    def _outputs(self, arrays: dict[str, NDArray[Any]], num_rows: int) -> NDArray[np.float32]:
        """Outputs [N, K] of the network, a batch at a time."""
        self.model.eval()
        device = next(self.model.parameters()).device
        outputs = [np.zeros((0, self.preprocessing.input_spec.num_outputs), np.float32)]
        rows_at_once = evaluation_batch_rows(self.job)
        for start in range(0, num_rows, rows_at_once):
            rows = slice(start, min(start + rows_at_once, num_rows))
            batch = {name: torch.from_numpy(np.array(array[rows])).to(device) for name, array in arrays.items()}
            with precision(self.job, device):
                outputs.append(self.model(batch).float().cpu().numpy())
        return np.concatenate(outputs)

    def _columns(self, outputs_NK: NDArray[np.float32]) -> dict[str, pa.Array]:
        """Prediction columns: the class and every class's probability, or the value in the target's unit."""
        inputs = self.preprocessing.input_spec
        if inputs.classes is None:
            return {"prediction": self.preprocessing.decode_target(outputs_NK[:, 0])}
        probability_NK = torch.from_numpy(outputs_NK).double().softmax(dim=1).numpy()
        columns = {"prediction": self.preprocessing.decode_target(probability_NK.argmax(axis=1))}
        for k, label in enumerate(inputs.classes):
            columns[f"probability_{label}"] = pa.array(probability_NK[:, k])
        return columns


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


def _free_name(name: str, taken: list[str]) -> str:
    """`name`, or with underscores added where the data have a column of that name."""
    while name in taken:
        name += "_"
    return name


def evaluate(run: str | Path, data: str | None = None) -> dict[str, float]:
    """Metrics of a run folder's model: `Run.evaluate`."""
    return open_run(run).evaluate(data)


def open_run(folder: str | Path) -> Run:
    """Opens a run folder: its job, preprocessing and best weights, on the GPU where there is one.

    Raises:
        RunError: it is no run folder, or its training has not ended.
    """
    folder = check_run(Path(folder))
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


@functools.lru_cache(maxsize=1)
def _opened(folder: Path, version: int) -> Run:
    """One model a process, however many fragments it predicts."""
    return open_run(folder)


@dataclass(frozen=True)
class _FragmentPrediction:
    """Predicts one fragment's rows, or those of one split; picklable, so that Ray Data can map it."""

    folder: Path
    version: int  # when the weights were written, ns: a folder may be trained anew
    rows: tuple[NDArray[np.int64], ...] | None  # per fragment, where a split is asked for

    def __call__(self, index: int, fragment: Fragment) -> pa.Table:
        """Raw rows with prediction columns, and the bad rows as JSON in the column BAD."""
        table, unread = read_fragment(fragment)
        rows = np.arange(table.num_rows) if self.rows is None else self.rows[index]
        if self.rows is not None:
            table = table.take(pa.array(rows))
        try:
            predicted, found = _opened(self.folder, self.version).predicted(table)
        except ShapeError as error:
            raise error.located(*fragment.locate(int(rows[error.row]), unread)) from None
        bad = [BadRow(*fragment.locate(int(rows[row]), unread), column, reason) for row, column, reason in found]
        if self.rows is None:  # a row that could not be read belongs to no split
            bad = sorted([*unread, *bad], key=lambda row: (row.file, row.row))
        if bad and not predicted.num_rows:
            raise DataError(f"no row could be read; the first: {described(bad[0])}")
        notes: list[str | None] = [None] * predicted.num_rows
        if bad:
            notes[0] = json.dumps([row.to_json() for row in bad])
        return predicted.append_column(BAD, pa.array(notes, pa.string()))


def predict(run: str | Path, data: str, out: str | Path, *, workers: int = 1, quiet: bool = True) -> dict[str, Any]:
    """Writes DATA's rows, in their order, with prediction columns, to a Parquet file.

    Args:
        run: the run folder.
        data: a source; or `train`, `validation`, `test`: those rows of the job's own data.
        out: the file to write, whole or not at all.
        workers: more than one predict through Ray Data, and so does a cluster's address in RAY_ADDRESS.
        quiet: no progress line.

    Returns:
        rows: how many; bad_rows: how many of them could not be read (null predictions, listed in `OUT.bad_rows.jsonl`).

    Raises:
        RunError: no run folder, or no such split.
        DataError: a feature is missing, the source is empty or cannot be read, or `out` cannot be written.
    """
    out = _checked_out(Path(out))
    folder = Path(run).resolve() if Path(run).exists() else Path(run)
    weights = folder / "model" / "weights.safetensors"
    version = weights.stat().st_mtime_ns if weights.exists() else 0
    opened = _opened(folder, version)
    fragments, rows = opened.rows_of_split(data) if data in SPLITS else (find_fragments(data, Path()), None)
    predict_one = _FragmentPrediction(folder, version, rows)
    tables: Iterator[pa.Table] = (predict_one(index, fragment) for index, fragment in enumerate(fragments))
    if workers > 1 or os.environ.get("RAY_ADDRESS"):
        from raynn.data import mapped_over_cluster

        tables = mapped_over_cluster(fragments, predict_one, workers)
    bad: list[BadRow] = []

    def noted() -> Iterator[pa.Table]:
        with Counter("rows", len(fragments), quiet=quiet) as counter:
            for table in tables:
                for text in table[BAD].drop_null().to_pylist():
                    bad.extend(BadRow(**row) for row in json.loads(text))
                counter.add(table.num_rows)
                yield table.drop_columns(BAD)

    total = _write_whole(noted(), out, [fragment.path for fragment in fragments])
    if not total:
        raise DataError(f"{data} has no rows to predict; name a source that does")
    write_bad_rows(out.with_name(out.name + ".bad_rows.jsonl"), bad)
    return {"rows": total, "bad_rows": len(bad), "out": str(out)}


def _checked_out(out: Path) -> Path:
    """The file to write, its folder made if need be. DataError when it cannot be written."""
    if out.suffix != ".parquet":
        raise DataError(f"--out {out} must end in .parquet: predictions are written as Parquet; rename it")
    try:
        if out.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial(out)
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise DataError(
            f"--out {out} cannot be written: {error.strerror}; name a file in a folder you may write"
        ) from None
    return out


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _write_whole(tables: Iterator[pa.Table], out: Path, files: list[str]) -> int:
    """Writes the tables of these files to one Parquet file, whole or not at all; returns how many rows.

    Raises:
        DataError: a file whose columns are not those of the first.
    """
    partial = _partial(out)
    total = 0
    writer: pq.ParquetWriter | None = None
    try:
        for table, file in zip(tables, files, strict=True):
            writer = writer or pq.ParquetWriter(partial, table.schema)
            names = writer.schema.names
            others = sorted(set(names) ^ set(table.column_names))
            try:
                table = table if others else table.select(names).cast(writer.schema)
            except (pa.ArrowException, ValueError) as error:
                others = [str(error)]
            if others:
                raise DataError(
                    f"{file} has other columns than {files[0]}: {', '.join(others)}; predict one after the other"
                )
            writer.write_table(table)
            total += table.num_rows
        if writer is not None:
            writer.close()
        if total:
            partial.replace(out)
    finally:
        if writer is not None:
            writer.close()
        partial.unlink(missing_ok=True)
    return total
