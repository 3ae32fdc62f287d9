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
from raynn.columns import infer_columns
from raynn.errors import DataError
from raynn.sources import DataSettings

SIZES = {
    "digits": (1797, 2),
    "breast_cancer": (569, 31),
    "wine": (178, 14),
    "diabetes": (442, 11),
    "fashion_mnist_train": (3, 2),
    "fashion_mnist_test": (3, 2),
    "digits_sequence": (1797, 2),
    "mnist1d_train": (4000, 2),
    "mnist1d_test": (1000, 2),
    "adding_100_train": (50_000, 2),
    "adding_100_test": (10_000, 2),
    "markov_text": (256, 1),
    "seasonal_series": (8000, 4),
    "twonorm": (20_000, 21),
    "ringnorm": (20_000, 21),
    "friedman1": (20_000, 11),
}
OF_THIS_PYTHON = {"python_functions", "python_text"}  # how many rows they have, its version says
TASKS = {
    "diabetes": "regression",
    "adding_100_train": "regression",
    "adding_100_test": "regression",
    "friedman1": "regression",
    "python_text": "language_modeling",
    "markov_text": "language_modeling",
    "seasonal_series": "forecasting",
}
TARGET_TYPES = {"classification": pa.int64(), "regression": pa.float64(), "forecasting": pa.float64()}
STEPS = {  # (T, C) of those that are sequences
    "digits_sequence": (8, 8),
    "mnist1d_train": (40, 1),
    "mnist1d_test": (40, 1),
    "adding_100_train": (100, 2),
    "adding_100_test": (100, 2),
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
    assert spec.name == name
    assert name in OF_THIS_PYTHON or table.shape == SIZES[name]
    assert not any(column.null_count for column in table.columns)
    assert spec.task == TASKS.get(name, "classification")
    if spec.target is None:
        assert spec.task == "language_modeling"
        assert table.column_names[-1] == "text"
        return
    assert table.column_names[-1] == spec.target
    kind = table.schema.field(spec.target).type
    named_classes = {"breast_cancer", "wine", "python_functions"}
    assert kind == (pa.string() if name in named_classes else TARGET_TYPES[spec.task])


@pytest.mark.parametrize("name", STEPS)
def test_sequences_are_taken_as_sequences(name: str) -> None:
    table, spec = load_dataset(name), CATALOG[name]
    (feature,), (target,) = infer_columns(
        table.schema, table.slice(0, 50), DataSettings(train=name, target=spec.target)
    )
    assert (feature.kind, feature.shape) == ("sequence", STEPS[name])
    assert target.kind == "numeric"


def test_digits_row_by_row_are_the_digits() -> None:
    images, sequences = load_dataset("digits"), load_dataset("digits_sequence")
    assert images["label"].equals(sequences["label"])
    for row in (0, 1796):
        with Image.open(io.BytesIO(images["image"][row].as_py())) as image:
            counts_TC = np.asarray(image) * (16 / 255)
        np.testing.assert_allclose(sequences["rows"][row].as_py(), counts_TC, atol=0.04)  # rounded to 256 grays


def test_training_and_test_sets_share_no_row() -> None:
    for stem, column in (("mnist1d", "signal"), ("adding_100", "steps")):
        train, test = (load_dataset(f"{stem}_{split}")[column].slice(0, 200).to_pylist() for split in ("train", "test"))
        assert not {str(row) for row in train} & {str(row) for row in test}


def test_descriptions_say_the_best_figure() -> None:
    assert "best loss 1.75 bits = 1.2130 nats per character" in CATALOG["markov_text"].description
    assert "best RMSE one day ahead 1.000, over 7 days 1.450" in CATALOG["seasonal_series"].description


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


@pytest.mark.parametrize(
    "content",
    [b"", b"not gzip", gzip.compress(b"\0\0"), idx(PIXELS_NHW)[:100]],
    ids=["empty", "not gzip", "too short", "cut off"],
)
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
    assert str(caught.value) == (f"no data set 'diabets'. Did you mean 'diabetes'? The catalog: {', '.join(CATALOG)}")
