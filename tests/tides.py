"""Small tables of series: the height of the tide, hour by hour, at one or several stations."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raynn.drivers import LocalDriver
from raynn.preparation import Understood
from raynn.series import Steps, read_steps, understand_series
from raynn.sources import DataSettings

START = datetime(2024, 1, 1)


def times(num_steps: int, first: int = 0) -> list[str]:
    """So many hours from the first one on."""
    return [str(START + timedelta(hours=first + hour)) for hour in range(num_steps)]


def tides(num_steps: int = 200, stations: tuple[str, ...] = ("Brest",), seed: int = 0, first: int = 0) -> pa.Table:
    """`height` [m] and `flow` are to be predicted, `moon` is known in the future, `wind` and `sky` are not. By station,
    then by time.
    """
    tables = []
    for number, station in enumerate(stations):
        rng = np.random.default_rng([seed, number])
        hour = first + np.arange(num_steps)
        moon = np.sin(2 * np.pi * hour / 50)
        wind = rng.normal(size=num_steps)
        height = (2 + number) * np.sin(2 * np.pi * hour / 12) + moon + 0.1 * rng.normal(size=num_steps)
        columns = {
            "time": times(num_steps, first),
            "station": [station] * num_steps,
            "height": height,
            "flow": np.gradient(height) + 0.1 * wind,
            "moon": moon,
            "wind": wind,
            "sky": rng.choice(["clear", "cloudy"], num_steps),
        }
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def data_of(table: pa.Table | dict[str, Any], path: Path, **settings: Any) -> DataSettings:
    """The settings of a job on this table, written to a file."""
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path, row_group_size=70)
    fields = {"train": str(path), "time": "time", "target": "height", "window": 4, "horizon": 2, **settings}
    return DataSettings.model_validate_json(json.dumps(fields))


def understood(table: pa.Table | dict[str, Any], folder: Path, **settings: Any) -> Understood:
    """What is understood of it."""
    return understand_series(data_of(table, folder / "tides.parquet", **settings), folder)


def steps_of(table: pa.Table | dict[str, Any], folder: Path, **settings: Any) -> Steps:
    """Its steps."""
    return read_steps(understood(table, folder, **settings), LocalDriver())[0]
