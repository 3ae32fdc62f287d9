"""A run that has ended: open it, evaluate it, predict rows in memory with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from raynn.batches import evaluation_batches
from raynn.cleaning import clean
from raynn.collectives import Workers
from raynn.corpus import encoding_of, scored_characters, scored_source, scoring_windows
from raynn.encoded import shaped_arrays
from raynn.errors import DataError, RunError
from raynn.folder import check_run, read_result
from raynn.forecast import Horizons, after_the_end, free_name, named, reading_plan, within
from raynn.fragments import BadRow, Fragment
from raynn.gradients import precision
from raynn.job import Job
from raynn.loop import evaluate_shard, evaluation_batch_rows
from raynn.objectives import token_losses, with_split
from raynn.preparation import LocalDriver, Prepared, ReadPlan, Understood, bad_rows_of, described
from raynn.preprocessing import Preprocessing
from raynn.ragged import Ragged
from raynn.series import Steps, encode_steps, plan_of_data, plan_windows, read_steps, sorted_steps, split_steps
from raynn.shards import Arrays, Shard, build_shard
from raynn.sources import find_fragments
from raynn.splits import NAMES, TEST
from raynn.tasks import build_model, prepare_job, understand_job

SPLITS = {name: split for split, name in NAMES.items()}


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
        plan = plan_of_data(reading_plan(self.preprocessing, self.job.data, targets_may_be_empty=True))

        def place_of(row: int) -> tuple[str, int]:
            return "the data", row

        return self.continued(sorted_steps(plan.cleaned(table, place_of), plan.settings, place_of))

    def predicted(self, table: pa.Table) -> tuple[pa.Table, list[tuple[int, str, str]]]:
        """Raw rows with prediction columns added, and (row, column, reason) of the bad ones: their predictions are
        null.
        """
        self._check_features(table)
        cleaned, bad = clean(table, self.preprocessing.features, (), (), self.job.data)
        arrays = shaped_arrays(self.preprocessing.encode(cleaned), self.preprocessing.input_spec)
        if self.preprocessing.task == "language_modeling":
            columns = self._language_columns(arrays["tokens"])
        else:
            columns = self._columns(self._outputs(self._shard(iter([arrays]), table.num_rows)))
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
        return self._forecasts(after_the_end(steps, self.preprocessing, self.job.data))

    def forecasts_of_split(self, name: str) -> Iterator[pa.Table]:
        """The forecasts of every window of a split, some at a time: series, origin, step, time, actual values,
        predictions.

        Raises:
            RunError: the job has no such split.
        """
        understood, settings = understand_job(self.job, self.folder), self.job.data
        steps, read = read_steps(understood, LocalDriver())
        plans = plan_windows(steps, split_steps(steps, understood, read), settings)
        windows = encode_steps(steps, plans, self.preprocessing, LocalDriver())
        if not windows.num_rows(SPLITS[name]):
            raise RunError(f"the job has no {name} set; name the data: raynn predict {self.folder} DATA")
        yield from map(self._forecasts, within(steps, windows, SPLITS[name], self.preprocessing, settings))

    def _forecasts(self, horizons: Horizons) -> pa.Table:
        """The steps of windows, with prediction columns."""
        y_NHK = self._outputs(self._shard(horizons.windows, horizons.count))
        table = horizons.steps
        for k, spec in enumerate(self.preprocessing.targets):
            name = free_name(named("prediction", spec.name, self.preprocessing), table.column_names)
            table = table.append_column(name, self.preprocessing.decode_target(y_NHK[:, :, k].reshape(-1), k))
        return table

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

    def rows_of_split(self, name: str) -> SplitRows:
        """Which rows of the job's own data, and of text which characters, belong to a split.

        Raises:
            RunError: the job has no such split.
        """
        understood = understand_job(self.job, self.folder)
        prepared = self._prepared()
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

    def _prepared(self) -> Prepared:
        """The job's own data again, with the model's preprocessing."""
        return prepare_job(self.job, understand_job(self.job, self.folder), LocalDriver(), self.preprocessing)

    def _split_shard(self, prepared: Prepared, name: str) -> Shard:
        rows = prepared.encoded.num_rows(SPLITS[name])
        if not rows:
            raise RunError(f"the job has no {name} set; name the data: raynn evaluate {self.folder} DATA")
        pieces = prepared.encoded.pieces(SPLITS[name], 0, rows, lambda table: table)
        return self._shard(pieces, rows)

    def _source_shard(self, data: str) -> Shard:
        """A whole source, encoded with its target: of a forecast, all windows of it."""
        if self.preprocessing.forecast is not None:
            return self._windows_shard(data)
        plan = ReadPlan(self.job.data, self.preprocessing.features, self.preprocessing.targets)
        fragments, blocks = find_fragments(data, self.folder), []
        for index, fragment in enumerate(fragments):
            blocks.append(plan.read(index, fragment))
            if bad := bad_rows_of(blocks[-1]):
                raise _cannot_be_evaluated(data, bad[0])
        if self.preprocessing.task == "language_modeling":
            encoded = scored_source(plan, fragments, blocks, self.preprocessing, LocalDriver())
            rows = encoded.num_rows(TEST)
            return self._shard(encoded.pieces(TEST, 0, rows, lambda table: table), rows)
        tables = [self.preprocessing.encode(block, with_target=True) for block in blocks]
        whole = pa.concat_tables(tables).combine_chunks()
        if not whole.num_rows:
            raise DataError(f"{data} has no rows to evaluate")
        return self._shard(iter([shaped_arrays(whole, self.preprocessing.input_spec)]), whole.num_rows)

    def _windows_shard(self, data: str) -> Shard:
        plan = reading_plan(self.preprocessing, self.job.data, targets_may_be_empty=False)
        fragments = find_fragments(data, self.folder)
        steps, read = read_steps(Understood(plan, fragments, (0,) * len(fragments)), LocalDriver())
        if read.bad_rows:
            raise _cannot_be_evaluated(data, read.bad_rows[0])
        plans = plan_windows(steps, np.full(len(steps.tick_S), SPLITS["test"], np.uint8), self.job.data)
        windows = encode_steps(steps, plans, self.preprocessing, LocalDriver())
        if not (count := windows.num_rows(SPLITS["test"])):
            needed = windows.inputs.window + windows.inputs.horizon
            raise DataError(f"{data} has no {needed} steps in a row to evaluate; give longer series")
        return self._shard(windows.pieces(SPLITS["test"], 0, count, lambda table: table), count)

    def _shard(self, pieces: Iterator[Arrays], rows: int) -> Shard:
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
    def _outputs(self, shard: Shard) -> NDArray[np.float32]:
        """Outputs [N, K], or of a forecast [N, H, K], of the network, a batch at a time."""
        self.model.eval()
        device = next(self.model.parameters()).device
        outputs, order = [], shard.by_length()
        for batch, _ in evaluation_batches(shard, evaluation_batch_rows(self.job), device, order):
            with precision(self.job, device):
                outputs.append(self.model(batch).float().cpu().numpy())
        if not outputs:
            return np.zeros((0, self.preprocessing.input_spec.num_outputs), np.float32)
        whole = np.concatenate(outputs)
        return whole if order is None else whole[order.argsort().cpu().numpy()]

    @torch.no_grad()
    def _language_columns(self, tokens: Any) -> dict[str, pa.Array]:
        """Of each document: nats, and the tokens and characters that they are of; perplexity, null where no token is
        predicted.
        """
        plan = scoring_windows(tokens.start_N, tokens.stop_N, self.preprocessing.window)
        windows = Ragged(tokens.values, plan.start_N, plan.stop_N)
        skip_N = plan.columns["skip"]
        characters_N = scored_characters(encoding_of(self.preprocessing), windows, skip_N)
        pieces: Arrays = {"tokens": windows, "skip": skip_N, "characters": characters_N}
        device = next(self.model.parameters()).device
        sums = [np.zeros((0, 2))]
        self.model.eval()
        for batch, key_B in evaluation_batches(
            self._shard(iter([pieces]), len(plan)), evaluation_batch_rows(self.job), device
        ):
            with precision(self.job, device):
                logits_BTV = self.model(batch, key_B)
            loss_BT, scored_BT = token_losses(logits_BTV.float(), batch)
            sums.append(torch.stack([(loss_BT.double() * scored_BT).sum(1), scored_BT.sum(1)], dim=1).cpu().numpy())
        document_N = np.searchsorted(tokens.stop_N, plan.start_N, side="right")
        per_document = partial(np.bincount, document_N, minlength=len(tokens))
        nats_D, tokens_D = (per_document(weights=column) for column in np.concatenate(sums).T)
        characters_D = per_document(weights=characters_N)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            perplexity_D = np.exp(nats_D / tokens_D)
        return {
            "nats": pa.array(nats_D),
            "tokens": pa.array(tokens_D.astype(np.int64)),
            "characters": pa.array(characters_D.astype(np.int64)),
            "perplexity": pa.array(perplexity_D, mask=tokens_D == 0),
        }

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


def _cannot_be_evaluated(data: str, bad: BadRow) -> DataError:
    return DataError(f"{data} holds rows that cannot be evaluated, the first: {described(bad)}; mend or drop them")


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
