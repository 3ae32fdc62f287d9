"""A source predicted by a run, to a Parquet file: in this process or over Ray Data."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raynn.cleaning import ShapeError
from raynn.corpus import cut_texts
from raynn.drivers import LocalDriver
from raynn.errors import DataError
from raynn.folder import write_bad_rows
from raynn.forecast import reading_plan
from raynn.fragments import BadRow, Fragment, read_fragment
from raynn.outputs import SPLITS
from raynn.preparation import Understood, described
from raynn.progress import Counter
from raynn.run import Run, SplitRows, open_run
from raynn.series import read_steps
from raynn.sources import find_fragments
from raynn.storage import local_run, url_of

BAD = "__bad__"  # column of bad rows as JSON, in a fragment's first row


def predict(run: str | Path, data: str, out: str | Path, *, workers: int = 1, quiet: bool = True) -> dict[str, Any]:
    """Writes DATA's rows, in their order, with prediction columns, to a Parquet file. A forecast writes the steps after
    the end of DATA, or the forecasts of all windows of a split beside what came.

    Args:
        run: the run folder.
        data: a source; or `train`, `validation`, `test`: those rows of the job's own data.
        out: the file to write, whole or not at all.
        workers: more than one predict through Ray Data, and so does a cluster's address in RAY_ADDRESS; series are
            read and continued in this process.
        quiet: no progress line.

    Returns:
        rows: how many; bad_rows: how many of them could not be read (null predictions, listed in `OUT.bad_rows.jsonl`).

    Raises:
        RunError: no run folder, or no such split.
        DataError: a feature is missing, the source is empty or cannot be read, or `out` cannot be written.
    """
    out = _checked_out(Path(out))
    folder = local_run(run)
    folder = folder.resolve() if folder.exists() else folder
    weights = folder / "model" / "weights.safetensors"
    version = weights.stat().st_mtime_ns if weights.exists() else 0
    url = url_of(folder)
    opened = _opened(folder, version, url)
    if opened.preprocessing.forecast is not None:
        return _forecast(opened, data, out)
    chosen = opened.rows_of_split(data) if data in SPLITS else None
    fragments = find_fragments(data, Path()) if chosen is None else chosen.fragments
    predict_one = _FragmentPrediction(folder, version, url, chosen)
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

    total = _write_whole(zip(noted(), (fragment.path for fragment in fragments), strict=True), out)
    if not total:
        raise DataError(f"{data} has no rows to predict; name a source that does")
    write_bad_rows(out.with_name(out.name + ".bad_rows.jsonl"), bad)
    return {"rows": total, "bad_rows": len(bad), "out": str(out)}


def _forecast(run: Run, data: str, out: Path) -> dict[str, Any]:
    """The same for a run that forecasts."""
    bad: tuple[BadRow, ...] = ()
    if data in SPLITS:
        tables = run.forecasts_of_split(data)
    else:
        plan = reading_plan(run.preprocessing, run.job.data, targets_may_be_empty=True)
        fragments = find_fragments(data, Path())
        steps, read = read_steps(Understood(plan, fragments, (0,) * len(fragments)), LocalDriver())
        tables, bad = iter([run.continued(steps)]), read.bad_rows
    total = _write_whole(((table, data) for table in tables), out)
    write_bad_rows(out.with_name(out.name + ".bad_rows.jsonl"), bad)
    return {"rows": total, "bad_rows": len(bad), "out": str(out)}


@functools.lru_cache(maxsize=1)
def _opened(folder: Path, version: int, url: str | None) -> Run:
    """One model a process, however many fragments it predicts. Another node fetches what is kept at a URL."""
    return open_run(folder if url is None or folder.exists() else url)


@dataclass(frozen=True)
class _FragmentPrediction:
    """Predicts one fragment's rows, or those of one split; picklable, so that Ray Data can map it."""

    folder: Path
    version: int  # when the weights were written, ns: a folder may be trained anew
    url: str | None  # where the folder is kept, if that is at a URL
    chosen: SplitRows | None  # where a split is asked for

    def __call__(self, index: int, fragment: Fragment) -> pa.Table:
        """Raw rows with prediction columns, and the bad rows as JSON in the column BAD."""
        table, unread = read_fragment(fragment)
        run = _opened(self.folder, self.version, self.url)
        rows = np.arange(table.num_rows)
        if self.chosen is not None:
            rows = self.chosen.rows[index]
            table = table.take(pa.array(rows))
            if self.chosen.characters is not None:
                place = table.column_names.index(run.preprocessing.features[0].name)
                text = cut_texts(table[place], np.arange(len(rows)), *self.chosen.characters[index].T)
                table = table.set_column(place, table.column_names[place], text)
        try:
            predicted, found = run.predicted(table)
        except ShapeError as error:
            raise error.located(*fragment.locate(int(rows[error.row]), unread)) from None
        bad = [BadRow(*fragment.locate(int(rows[row]), unread), column, reason) for row, column, reason in found]
        if self.chosen is None:  # a row that could not be read belongs to no split
            bad = sorted([*unread, *bad], key=lambda row: (row.file, row.row))
        if bad and not predicted.num_rows:
            raise DataError(f"no row could be read; the first: {described(bad[0])}")
        notes: list[str | None] = [None] * predicted.num_rows
        if bad:
            notes[0] = json.dumps([row.to_json() for row in bad])
        return predicted.append_column(BAD, pa.array(notes, pa.string()))


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


def _write_whole(tables: Iterator[tuple[pa.Table, str]], out: Path) -> int:
    """Writes tables, each with the name of its file, to one Parquet file, whole or not at all; returns how many rows.

    Raises:
        DataError: a file whose columns are not those of the first.
    """
    partial = _partial(out)
    total, first = 0, ""
    writer: pq.ParquetWriter | None = None
    try:
        for table, file in tables:
            first = first or file
            writer = writer or pq.ParquetWriter(partial, table.schema)
            names = writer.schema.names
            others = sorted(set(names) ^ set(table.column_names))
            try:
                table = table if others else table.select(names).cast(writer.schema)
            except (pa.ArrowException, ValueError) as error:
                others = [str(error)]
            if others:
                raise DataError(
                    f"{file} has other columns than {first}: {', '.join(others)}; predict one after the other"
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
