"""A small table of flowers and small folders of pictures: what the tests of whole commands work on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

KINDS = ("iris", "rose")
PROBABILITIES = [f"probability_{kind}" for kind in KINDS]  # columns that a prediction of the kind adds


def flowers(num_rows: int = 240, seed: int = 0) -> pa.Table:
    """Numbers, a category, a day, a group and two targets: `kind`, which width and color tell, and `price` in cents."""
    rng = np.random.default_rng(seed)
    width, height = rng.normal(size=(2, num_rows)).round(3)
    color = rng.choice(["red", "white", "blue"], num_rows)
    is_rose = width + (color == "red") > 0.3
    return pa.table(
        {
            "width": width,
            "height": height,
            "color": color,
            "planted": [f"2024-{1 + i % 12:02d}-{1 + i % 28:02d}" for i in range(num_rows)],
            "garden": rng.integers(0, 12, num_rows),
            "part": rng.choice(["north", "south"], num_rows),
            "kind": np.array(KINDS)[is_rose.astype(int)],
            "price": (5000 + 900 * width - 400 * height + 50 * rng.normal(size=num_rows)).round(2),
        }
    )


def with_value(table: pa.Table, row: int, column: str, value: object) -> pa.Table:
    """The table with one value replaced; text where its type does not take it."""
    values = table[column].to_pylist()
    values[row] = value
    try:
        array = pa.array(values)
    except pa.ArrowException:
        array = pa.array([str(each) for each in values])
    return table.set_column(table.column_names.index(column), column, array)


def paint(folder: Path, num_images: int = 20, size: tuple[int, int] = (8, 8)) -> Path:
    """An image folder: dark cats and light dogs in color, `size` high and wide."""
    rng = np.random.default_rng(0)
    for label, darkest in (("cat", 0), ("dog", 128)):
        (folder / label).mkdir(parents=True)
        for i in range(num_images):
            pixels = rng.integers(darkest, darkest + 128, (*size, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i:03d}.png")
    return folder
