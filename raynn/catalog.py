"""Named data sets that need no download, each in the form of any other source: a raw Arrow table."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raynn.corpora import python_functions, python_text
from raynn.errors import DataError, did_you_mean
from raynn.generators import (
    MARKOV_BITS,
    adding_problem,
    best_seasonal_rmse,
    friedman1,
    list_array,
    markov_text,
    ringnorm,
    seasonal_series,
    twonorm,
)
from raynn.metrics import Task
from raynn.mnist1d import mnist1d_test, mnist1d_train

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it


@dataclass(frozen=True)
class DatasetSpec:
    """A data set of the catalog: its name stands wherever a job takes a source. Text to be modeled has no target."""

    name: str
    task: Task
    target: str | None
    description: str
    load: Callable[[], pa.Table]


def _digits() -> pa.Table:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels_NHW = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # published as counts 0 .. 16
    return _image_table(pixels_NHW, digits.target)


def _digits_sequence() -> pa.Table:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return pa.table({"rows": list_array(digits.images.astype(np.float32)), "label": digits.target.astype(np.int64)})


def _breast_cancer() -> pa.Table:
    from sklearn.datasets import load_breast_cancer

    return _feature_table(load_breast_cancer(), "diagnosis")


def _wine() -> pa.Table:
    from sklearn.datasets import load_wine

    return _feature_table(load_wine(), "cultivar")


def _diabetes() -> pa.Table:
    from sklearn.datasets import load_diabetes

    # unscaled: scikit-learn's default is standardized with the mean of all rows, a test set's included
    return _feature_table(load_diabetes(scaled=False), "progression")


def _fashion_mnist(stem: str) -> Callable[[], pa.Table]:
    def load() -> pa.Table:
        pixels_NHW = _read_idx(FASHION_MNIST_FOLDER / f"{stem}-images-idx3-ubyte.gz")
        return _image_table(pixels_NHW, _read_idx(FASHION_MNIST_FOLDER / f"{stem}-labels-idx1-ubyte.gz"))

    return load


def _feature_table(bunch: Any, target: str) -> pa.Table:
    """A scikit-learn data set: one float64 column a feature, then the target, classes by their names."""
    names = [str(name).replace(" ", "_") for name in bunch.feature_names]
    values = bunch.target_names[bunch.target] if "target_names" in bunch else bunch.target
    columns = [*np.ascontiguousarray(bunch.data.T, dtype=np.float64), values.tolist()]
    return pa.table(dict(zip([*names, target], columns, strict=True)))


def _image_table(pixels_NHW: NDArray[np.uint8], labels_N: NDArray[Any]) -> pa.Table:
    """Gray images in 0 .. 255 as binary PGM files, and integer labels.

    PGM is a header before the raw bytes, so no image is encoded in Python. As PNG 10,000 of 28 x 28 took 0.58 s to
    encode and 0.40 s to decode; as PGM 0.20 s to decode (Pillow 13, 2 cores of a cloud CPU, one run).
    """
    num_images, height, width = pixels_NHW.shape
    header = np.frombuffer(f"P5 {width} {height} 255\n".encode(), np.uint8)
    bytes_NB = np.empty((num_images, header.size + height * width), np.uint8)
    bytes_NB[:, : header.size] = header
    bytes_NB[:, header.size :] = pixels_NHW.reshape(num_images, -1)
    fixed = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(bytes_NB.shape[1]), num_images, [None, pa.py_buffer(bytes_NB)]
    )
    return pa.table({"image": fixed.cast(pa.binary()), "label": pa.array(labels_N.astype(np.int64))})


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """An array in LeCun's IDX format: bytes 0, 0, 8 (uint8), number of axes, sizes (big-endian), values."""
    if not path.exists():
        raise DataError(
            f"{path} does not exist: Fashion-MNIST comes with Debian's package; run `apt-get install "
            "dataset-fashion-mnist`, or name a file of your own as the source"
        )
    try:
        data = gzip.decompress(path.read_bytes())
        sizes = np.frombuffer(data, ">u4", count=data[3], offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise DataError(f"{path} is not a whole gzipped IDX file ({error}); install the package again") from error


CATALOG: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec("digits", "classification", "label", "1,797 handwritten digits, gray 8 x 8", _digits),
        DatasetSpec(
            "breast_cancer",
            "classification",
            "diagnosis",
            "569 tumors, 30 measurements, 2 classes",
            _breast_cancer,
        ),
        DatasetSpec("wine", "classification", "cultivar", "178 wines, 13 measurements, 3 classes", _wine),
        DatasetSpec("diabetes", "regression", "progression", "442 patients, 10 measurements", _diabetes),
        DatasetSpec(
            "fashion_mnist_train",
            "classification",
            "label",
            "60,000 articles of clothing, gray 28 x 28, 10 classes; Debian package dataset-fashion-mnist",
            _fashion_mnist("train"),
        ),
        DatasetSpec(
            "fashion_mnist_test",
            "classification",
            "label",
            "the 10,000 test images of Fashion-MNIST; Debian package dataset-fashion-mnist",
            _fashion_mnist("t10k"),
        ),
        DatasetSpec(
            "digits_sequence",
            "classification",
            "label",
            "the digits row by row: 8 steps of 8 gray values, 0 to 16",
            _digits_sequence,
        ),
        DatasetSpec(
            "mnist1d_train",
            "classification",
            "label",
            "MNIST-1D: 4,000 sequences of 40 steps, 10 classes; published accuracies: logistic regression .32, MLP "
            ".68, GRU .91, CNN .94",
            mnist1d_train,
        ),
        DatasetSpec("mnist1d_test", "classification", "label", "the 1,000 test sequences of MNIST-1D", mnist1d_test),
        DatasetSpec(
            "adding_100_train",
            "regression",
            "total",
            "the adding problem: 50,000 sequences of 100 steps, the sum of two marked values; best MSE 0, that of the "
            "constant 1 is 1/6",
            partial(adding_problem, 100, 50_000, seed=0),
        ),
        DatasetSpec(
            "adding_100_test",
            "regression",
            "total",
            "10,000 other sequences of the adding problem",
            partial(adding_problem, 100, 10_000, seed=1),
        ),
        DatasetSpec(
            "python_functions",
            "classification",
            "label",
            "text: some 4,200 functions of Python's standard library, and which of 9 packages each is from",
            python_functions,
        ),
        DatasetSpec(
            "python_text",
            "language_modeling",
            None,
            "text: the source of Python's standard library, some 380 files and 7.8 million characters",
            python_text,
        ),
        DatasetSpec(
            "markov_text",
            "language_modeling",
            None,
            "text: a million characters of a Markov chain of order 2 over 64 symbols; best loss "
            f"{MARKOV_BITS} bits = {MARKOV_BITS * log(2):.4f} nats per character",
            partial(markov_text, 256, seed=0),
        ),
        DatasetSpec(
            "seasonal_series",
            "forecasting",
            "value",
            "8 daily series of 1,000 days with a weekly season and promotions known in advance; best RMSE one day "
            f"ahead {best_seasonal_rmse(1):.3f}, over 7 days {best_seasonal_rmse(7):.3f}",
            partial(seasonal_series, 8, 1000, seed=0),
        ),
        DatasetSpec(
            "twonorm",
            "classification",
            "label",
            "20,000 rows of two normal distributions, 20 features; best accuracy .97725",
            partial(twonorm, 20_000, seed=0),
        ),
        DatasetSpec(
            "ringnorm",
            "classification",
            "label",
            "20,000 rows of a normal distribution within another, 20 features; best accuracy .98760",
            partial(ringnorm, 20_000, seed=0),
        ),
        DatasetSpec(
            "friedman1",
            "regression",
            "y",
            "20,000 rows, 10 features of which 5 count, smooth and with an interaction; best RMSE 1",
            partial(friedman1, 20_000, seed=0),
        ),
    )
}


@lru_cache(maxsize=2)  # a train and a test set: each is read in several fragments
def load_dataset(name: str) -> pa.Table:
    """A data set of the catalog as a raw table.

    Raises:
        DataError: an unknown name, or a data set that is not installed.
    """
    if name not in CATALOG:
        raise DataError(f"no data set {name!r}.{did_you_mean(name, CATALOG)} The catalog: {', '.join(CATALOG)}")
    return CATALOG[name].load()
