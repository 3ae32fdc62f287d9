"""Cleaned tables for tests of preprocessing, and what is fitted on them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raynn.columns import ColumnSpec
from raynn.preprocessing import Preprocessing, arrays, fit, summarize
from raynn.sources import DataSettings

FEATURES = (
    ColumnSpec("age", "numeric"),
    ColumnSpec("name", "ignore", reason="every value is distinct"),
    ColumnSpec("city", "categorical"),
    ColumnSpec("born", "date"),
    ColumnSpec("photo", "image", (3, 2, 2)),
    ColumnSpec("pulse", "sequence", (4, 2)),
    ColumnSpec("income", "numeric"),
)
LABEL = ColumnSpec("label", "categorical")
PRICE = ColumnSpec("price", "numeric")
CITIES = np.array(["Rome", "Oslo", "Lima"])


def lists(values: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def people(num_rows: int, seed: int = 0) -> pa.Table:
    """A cleaned table with a column of each kind, with gaps."""
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "age": pa.array(rng.normal(40, 12, num_rows), mask=rng.random(num_rows) < 0.1),
            "city": pa.array(rng.choice(CITIES, num_rows), mask=rng.random(num_rows) < 0.1),
            "born": pa.array(
                rng.integers(-(10**15), 10**15, num_rows),
                pa.timestamp("us"),
                mask=rng.random(num_rows) < 0.1,
            ),
            "photo": lists(rng.integers(0, 256, (num_rows, 12), dtype=np.uint8)),
            "pulse": lists(rng.normal(70, 9, (num_rows, 8)).astype(np.float32)),
            "income": pa.array(rng.lognormal(10, 1, num_rows)),
            "label": pa.array(rng.choice(np.array(["no", "yes", "maybe"]), num_rows)),
            "price": pa.array(rng.normal(100, 30, num_rows)),
        }
    )


PATH = (ColumnSpec("path", "sequence", (0, 2)),)


def ragged(lengths: Sequence[int], seed: int = 0) -> pa.Table:
    """A cleaned table of sequences of so many steps, 2 channels each."""
    rng = np.random.default_rng(seed)
    values = rng.normal(5, 3, 2 * sum(lengths)).astype(np.float32)
    path = pa.LargeListArray.from_arrays(pa.array(2 * np.cumsum([0, *lengths])), pa.array(values))
    return pa.table({"path": path, "label": pa.array([["no", "yes"][i % 2] for i in range(len(lengths))])})


def fitted(
    table: pa.Table,
    features: Any = FEATURES,
    target: ColumnSpec = LABEL,
    task: Any = "classification",
    scaling: Any = "standard",
    cuts: tuple[int, ...] = (),
    tokens: Any = "words",
    **data: Any,
) -> Preprocessing:
    pairs = itertools.pairwise([0, *cuts, table.num_rows])
    pieces = [summarize(table.slice(a, b - a), features, [target], np.arange(a, b), tokens) for a, b in pairs]
    return fit(pieces, features, [target], task, DataSettings(train="people.csv", scaling=scaling, **data))


def one_column(
    values: Any, kind: Any = "numeric", scaling: Any = "standard", dtype: pa.DataType = None
) -> tuple[Preprocessing, pa.Table]:
    """Fitted on a single feature `x`, with a target to go with it."""
    column = pa.array(values, dtype)
    table = pa.table({"x": column, "label": pa.array([str(i % 2) for i in range(len(column))])})
    return fitted(table, (ColumnSpec("x", kind),), scaling=scaling), table


def numeric(preprocessing: Preprocessing, values: Any, dtype: pa.DataType = None) -> np.ndarray:
    return arrays(preprocessing.encode(pa.table({"x": pa.array(values, dtype)})))["numeric"]


def with_labels(labels: list[Any]) -> pa.Table:
    return pa.table({"x": pa.array(range(len(labels)), pa.float64()), "label": labels})
