"""Small files of every format: what the tests of sources and fragments find and read."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
from PIL import Image

TABLE = pa.table({"a": [1, 2, 3], "b": ["x", "y", "z"]})


def write_parquet(path: Path, table: pa.Table = TABLE, row_group_size: int | None = None) -> None:
    pa.parquet.write_table(table, path, row_group_size=row_group_size)


def write_csv(path: Path) -> None:
    path.write_text("a,b\n1,x\n2,y\n3,z\n")


def write_json_lines(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in TABLE.to_pylist()))


WRITERS = {".parquet": write_parquet, ".csv": write_csv, ".jsonl": write_json_lines}  # of TABLE


def write_image(path: Path, color: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), color).save(path)
