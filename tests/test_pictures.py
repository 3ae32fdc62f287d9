from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raynn.errors import DataError
from raynn.pictures import GAP, grid, png, save_pictures


def pictures(num: int, channels: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 255, (num, channels, 4, 6), np.uint8)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_png_holds_every_pixel(channels: int, mode: str) -> None:
    image_CHW = pictures(1, channels)[0]
    with Image.open(io.BytesIO(png(image_CHW))) as image:
        assert image.format == "PNG"
        assert image.mode == mode
        assert np.array_equal(np.asarray(image).reshape(4, 6, channels).transpose(2, 0, 1), image_CHW)


def test_other_numbers_of_channels_are_refused() -> None:
    with pytest.raises(DataError, match=r"^a picture has 2 channels, and must have 1 \(gray\) or 3 \(RGB\): pick some"):
        png(pictures(1, 2)[0])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("num", "columns", "shape"), [(6, 3, (2, 3)), (5, 0, (2, 3)), (1, 0, (1, 1)), (2, 10, (1, 2))])
@pytest.mark.parametrize("zoom", [1, 3])
def test_a_grid_holds_every_picture(channels: int, num: int, columns: int, shape: tuple[int, int], zoom: int) -> None:
    image_NCHW = pictures(num, channels)
    sheet_CHW = grid(image_NCHW, columns, zoom)
    step_y, step_x = 4 * zoom + GAP, 6 * zoom + GAP
    assert sheet_CHW.shape == (channels, shape[0] * step_y - GAP, shape[1] * step_x - GAP)
    for place in range(shape[0] * shape[1]):
        y, x = step_y * (place // shape[1]), step_x * (place % shape[1])
        cell_CHW = sheet_CHW[:, y : y + 4 * zoom, x : x + 6 * zoom]
        if place < num:
            for i in range(zoom):
                assert np.array_equal(cell_CHW[:, i::zoom, i::zoom], image_NCHW[place])
        else:
            assert (cell_CHW == 255).all()
    assert (sheet_CHW[:, 4 * zoom : step_y] == 255).all(), "the gap is white"


def test_pictures_are_saved_in_order_and_in_a_grid(tmp_path: Path) -> None:
    image_NCHW = pictures(11, 3)
    paths = save_pictures(tmp_path / "new" / "folder", image_NCHW, columns=4)
    assert [path.name for path in paths] == ["grid.png", *(f"{i:02d}.png" for i in range(11))]
    for path, expected_CHW in zip(paths, [grid(image_NCHW, 4), *image_NCHW], strict=True):
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image).transpose(2, 0, 1), expected_CHW)
