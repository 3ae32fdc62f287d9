"""Pictures as PNG files: single ones, and many in a grid.

Shapes: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raynn.errors import DataError

GAP = 2  # pixels between the pictures of a grid, white


def png(image_CHW: NDArray[np.uint8]) -> bytes:
    """A picture as the bytes of a PNG file.

    Raises:
        DataError: it is neither gray (1 channel) nor RGB (3).
    """
    if len(image_CHW) not in (1, 3):
        raise DataError(
            f"a picture has {len(image_CHW)} channels, and must have 1 (gray) or 3 (RGB): pick some of them"
        )
    image_HWC = np.ascontiguousarray(image_CHW.transpose(1, 2, 0))
    file = io.BytesIO()
    Image.fromarray(image_HWC[:, :, 0] if len(image_CHW) == 1 else image_HWC).save(file, "PNG")
    return file.getvalue()


def grid(image_NCHW: NDArray[np.uint8], columns: int = 0, zoom: int = 1) -> NDArray[np.uint8]:
    """Pictures side by side, row after row, as one [C, H, W].

    Args:
        image_NCHW: the pictures, at least one.
        columns: pictures a row; 0: as many as rows, or one more.
        zoom: side of the square that a pixel becomes.
    """
    num, channels, height, width = image_NCHW.shape
    columns = min(num, columns or math.ceil(math.sqrt(num)))
    rows = math.ceil(num / columns)
    cell_CHW = (channels, zoom * height + GAP, zoom * width + GAP)
    cells_NCHW = np.full((rows * columns, *cell_CHW), 255, np.uint8)
    cells_NCHW[:num, :, :-GAP, :-GAP] = image_NCHW.repeat(zoom, axis=2).repeat(zoom, axis=3)
    sheet = cells_NCHW.reshape(rows, columns, *cell_CHW).transpose(2, 0, 3, 1, 4)
    return sheet.reshape(channels, rows * cell_CHW[1], columns * cell_CHW[2])[:, :-GAP, :-GAP]


def save_pictures(folder: Path, image_NCHW: NDArray[np.uint8], columns: int = 0, zoom: int = 1) -> list[Path]:
    """Writes grid.png, and each picture as 0.png, 1.png, ... (numbers as wide as the last one); gives their paths.

    Raises:
        DataError: pictures neither gray nor RGB.
    """
    digits = len(str(len(image_NCHW) - 1))
    named = {f"{number:0{digits}d}.png": image_CHW for number, image_CHW in enumerate(image_NCHW)}
    files = {"grid.png": png(grid(image_NCHW, columns, zoom)), **{name: png(image) for name, image in named.items()}}
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in files]
    for path, content in zip(paths, files.values(), strict=True):
        path.write_bytes(content)
    return paths
