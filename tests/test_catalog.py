"""The catalog: every data set goes through the same tests; Fashion-MNIST with small files in its place."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raynn import catalog
from raynn.catalog import CATALOG, load_dataset
from raynn.errors import DataError

SIZES = {
    "digits": (1797, 2),
    "breast_cancer": (569, 31),
    "wine": (178, 14),
    "diabetes": (442, 11),
    "fashion_mnist_train": (3, 2),
    "fashion_mnist_test": (3, 2),
}
PIXELS_NHW = np.arange(3 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)


def idx(values: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return gzip.compress(bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes())


@pytest.fixture
def fashion_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for stem in ("train", "t10k"):
        (tmp_path / f"{stem}-images-idx3-ubyte.gz").write_bytes(idx(PIXELS_NHW))
        (tmp_path / f"{stem}-labels-idx1-ubyte.gz").write_bytes(idx(np.array([9, 0, 3], np.uint8)))
    monkeypatch.setattr(catalog, "FASHION_MNIST_FOLDER", tmp_path)
    load_dataset.cache_clear()
    yield tmp_path
    load_dataset.cache_clear()


@pytest.mark.parametrize("name", CATALOG)
@pytest.mark.usefixtures("fashion_folder")
def test_every_data_set_has_its_rows_and_its_target(name: str) -> None:
    table = load_dataset(name)
    spec = CATALOG[name]
    assert table.shape == SIZES[name]
    assert table.column_names[-1] == spec.target
    assert not any(column.null_count for column in table.columns)
    assert spec.name == name
    assert spec.task == ("regression" if name == "diabetes" else "classification")
    kind = table.schema.field(spec.target).type
    assert kind == {"breast_cancer": pa.string(), "wine": pa.string(), "diabetes": pa.float64()}.get(name, pa.int64())


def test_classes_have_names() -> None:
    assert set(load_dataset("breast_cancer")["diagnosis"].to_pylist()) == {"malignant", "benign"}
    assert set(load_dataset("wine")["cultivar"].to_pylist()) == {"class_0", "class_1", "class_2"}


def test_columns_have_names_that_a_job_file_can_write() -> None:
    assert "mean_radius" in load_dataset("breast_cancer").column_names


def test_diabetes_is_in_its_own_units() -> None:
    assert load_dataset("diabetes")["age"][0].as_py() == 59.0


def test_digits_are_gray_images_that_span_the_range() -> None:
    with Image.open(io.BytesIO(load_dataset("digits")["image"][0].as_py())) as image:
        assert (image.mode, image.size) == ("L", (8, 8))
        assert image.getextrema() == (0, 239)  # its darkest count is 15 of 16


@pytest.mark.usefixtures("fashion_folder")
def test_images_survive() -> None:
    table = load_dataset("fashion_mnist_train")
    for value, pixels_HW in zip(table["image"].to_pylist(), PIXELS_NHW, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(value))), pixels_HW)
    assert table["label"].to_pylist() == [9, 0, 3]


def test_a_missing_package_is_named(fashion_folder: Path) -> None:
    path = fashion_folder / "t10k-images-idx3-ubyte.gz"
    path.unlink()
    with pytest.raises(DataError) as caught:
        load_dataset("fashion_mnist_test")
    assert str(caught.value) == (
        f"{path} does not exist: Fashion-MNIST comes with Debian's package; run `apt-get install "
        "dataset-fashion-mnist`, or name a file of your own as the source"
    )


@pytest.mark.parametrize("content", [b"", b"not gzip", gzip.compress(b"\0\0"), idx(PIXELS_NHW)[:100]])
def test_a_damaged_file_is_named(fashion_folder: Path, content: bytes) -> None:
    path = fashion_folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_dataset("fashion_mnist_train")
    assert str(caught.value).startswith(f"{path} is not a whole gzipped IDX file (")
    assert str(caught.value).endswith("); install the package again")


def test_a_misspelt_name_gets_the_nearest() -> None:
    with pytest.raises(DataError) as caught:
        load_dataset("diabets")
    assert str(caught.value) == (
        "no data set 'diabets'. Did you mean 'diabetes'? The catalog: digits, breast_cancer, wine, diabetes, "
        "fashion_mnist_train, fashion_mnist_test"
    )
