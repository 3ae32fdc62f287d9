"""Trained runs that tests share; training one takes about half a second."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import s3
import torch
from flowers import flowers, paint
from hypothesis import settings
from tides import tides

from raynn.job import Job
from raynn.trainer import train

settings.register_profile("untimed", deadline=None)  # nothing timed is a test
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def _to_itself(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests join no cluster that the machine happens to know of and report to no one; one thread a process, because
    threads that wait for each other stall on a machine that is busy with something else.
    """
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("WANDB_MODE", "disabled")
        patch.setenv("RAYNN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("RAYNN_REPORT", "off")  # a tenth of a second a run; the tests of reports write theirs
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server that speaks S3."""
    if s3.MISSING:
        pytest.skip(f"not installed: {', '.join(s3.MISSING)}")
    with s3.serving(tmp_path_factory.mktemp("s3") / "log") as port:
        yield port


@pytest.fixture
def bucket(s3_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> s3.Bucket:
    """An empty bucket; this process has the key to it, and its copies are in a folder of the test's own."""
    for name, value in s3.CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return s3.bucket(s3_port, f"bucket-{uuid.uuid4().hex[:8]}")


@pytest.fixture(scope="session")
def garden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with flowers.parquet, the same rows as flowers.csv, and the image folder pets."""
    folder = tmp_path_factory.mktemp("garden")
    pq.write_table(flowers(), folder / "flowers.parquet", row_group_size=50)
    pyarrow.csv.write_csv(flowers(), folder / "flowers.csv")
    paint(folder / "pets")
    return folder


@pytest.fixture(scope="session")
def classifier(garden: Path) -> Path:
    """A run that tells kinds of flowers, with a test set."""
    return _trained(garden, "classifier", data={"target": "kind", "test": 0.25})


@pytest.fixture(scope="session")
def regressor(garden: Path) -> Path:
    """A run that tells prices; it has no test set."""
    return _trained(garden, "regressor", data={"target": "price"}, epochs=12)


@pytest.fixture(scope="session")
def image_classifier(garden: Path) -> Path:
    """A run that tells cats from dogs, pictures of 8 x 8."""
    data = {"train": str(garden / "pets"), "target": "label"}
    return _trained(garden, "pets", data, network={"kind": "cnn", "channels": [4]}, epochs=2)


@pytest.fixture(scope="session")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned to count: 0123456789 again and again."""
    folder = tmp_path_factory.mktemp("writer")
    (folder / "digits.txt").write_text("0123456789\n" * 300)
    job = {
        "name": "writer",
        "data": {"train": str(folder / "digits.txt"), "window": 16},
        "network": {"kind": "text_generator", "width": 16, "layers": 1, "heads": 2},
        "optimization": {"global_batch_size": 8, "max_epochs": 12, "learning_rate": 1e-2},
        "storage": str(folder),
    }
    return train(Job.from_dict(job))


@pytest.fixture(scope="session")
def painter(garden: Path) -> Path:
    """A run that draws cats and dogs, badly."""
    job = {
        "name": "painter",
        "data": {"train": str(garden / "pets"), "target": "label"},
        "network": {"kind": "image_generator", "channels": [8, 8], "steps": 2},
        "optimization": {"global_batch_size": 8, "max_epochs": 1},
        "storage": str(garden / "runs"),
    }
    return train(Job.from_dict(job))


@pytest.fixture(scope="session")
def forecaster(garden: Path) -> Path:
    """A run that forecasts the height and the flow of the tide at two stations, twelve hours ahead."""
    pq.write_table(tides(240, ("Brest", "Aden")), garden / "tides.parquet")
    data = {"train": str(garden / "tides.parquet"), "target": ["height", "flow"], "time": "time", "series": "station"}
    data |= {"features": ["moon", "wind"], "window": 24, "horizon": 12, "test": 0.2}
    return _trained(garden, "tides", data)


def _trained(
    garden: Path, name: str, data: dict[str, Any], network: dict[str, Any] | None = None, epochs: int = 4
) -> Path:
    job = {
        "name": name,
        "data": {"train": str(garden / "flowers.parquet"), **data},
        "network": network or {"kind": "feedforward", "hidden": [16]},
        "optimization": {"global_batch_size": 16, "max_epochs": epochs, "learning_rate": 1e-2},
        "storage": str(garden / "runs"),
    }
    return train(Job.from_dict(job))
