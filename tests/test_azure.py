"""Runs and data in Azure's storage: its addresses and keys, and the real requests, to Microsoft's emulator."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import azurite
import pyarrow.parquet as pq
import pytest
from flowers import flowers
from processes import slowly
from pyarrow.fs import FileSelector, FileType

from raynn.azure import open_azure
from raynn.errors import DataError, JobError
from raynn.fragments import open_file_system
from raynn.job import Job
from raynn.prediction import predict
from raynn.run import evaluate
from raynn.storage import address_of, copies, open_storage
from raynn.trainer import train

DATA = {"target": "kind", "features": ["width", "height", "color"], "test": 0.2}
JOB: dict[str, Any] = {
    "name": "flowers",
    "network": {"kind": "feedforward", "hidden": [16]},
    "optimization": {"global_batch_size": 16, "max_epochs": 3},
    "early_stopping": {"rule": "none"},
}
CHINA = "DefaultEndpointsProtocol=https;AccountName=mine;AccountKey=a2V5;EndpointSuffix=core.chinacloudapi.cn"
LOSSES = ("epoch", "step", "train/loss", "val/loss", "learning_rate")


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if azurite.COMMAND is None:
        pytest.skip("Azurite is not installed: npm install --prefix build azurite")
    with azurite.serving(tmp_path_factory.mktemp("azurite") / "log") as text:
        yield text


@pytest.fixture
def container(connection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A container that is not there yet; this process has the key, and its copies are in a folder of the test's own."""
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"container-{uuid.uuid4().hex[:8]}"


def files_in(url: str) -> dict[str, bytes]:
    """Every object below a URL."""
    files, path = open_file_system(url)
    found = files.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
    return {
        info.path[len(path) + 1 :]: files.open_input_stream(info.path).read()
        for info in found
        if info.type == FileType.File
    }


def metrics_at(url: str) -> list[bytes]:
    """The lines of a run's metrics.jsonl; none before there is one, and while it is replaced."""
    files, path = open_file_system(url)
    try:
        return list(files.open_input_stream(f"{path}/metrics.jsonl").read().splitlines())
    except OSError:
        return []


def losses(metrics: list[bytes]) -> list[list[float]]:
    return [[json.loads(line)[key] for key in LOSSES] for line in metrics]


def job(data: str, runs: str, **sections: Any) -> Job:
    return Job.from_dict(JOB | {"data": DATA | {"train": data}, "storage": runs} | sections)


def test_data_and_run_in_azure_are_the_local_ones(container: str, tmp_path: Path) -> None:
    pq.write_table(flowers(90), tmp_path / "flowers.parquet")
    local = train(job(str(tmp_path / "flowers.parquet"), str(tmp_path / "runs")))
    url = f"abfs://{container}/runs"
    open_storage(url)
    files, path = open_file_system(f"abfs://{container}/data")
    with files.open_output_stream(f"{path}/flowers.parquet") as stream:
        stream.write((tmp_path / "flowers.parquet").read_bytes())
    copy = train(job(f"abfs://{container}/data/*.parquet", url))
    assert address_of(copy) == f"{url}/flowers"
    there = files_in(f"{url}/flowers")
    assert losses(metrics_at(f"{url}/flowers")) == losses((local / "metrics.jsonl").read_bytes().splitlines())
    assert there["model/weights.safetensors"] == (local / "model" / "weights.safetensors").read_bytes()
    manifests = {"manifest.json", "manifest.json.spare"}
    assert set(there) == {str(p.relative_to(local)) for p in local.rglob("*") if p.is_file()} | manifests
    shutil.rmtree(copies())  # another machine
    assert evaluate(f"{url}/flowers") == evaluate(local)
    assert predict(f"{url}/flowers", "test", tmp_path / "p.parquet")["rows"] == 18
    hadoop = f"abfss://{container}@{azurite.ACCOUNT}.dfs.core.windows.net/runs"
    assert evaluate(f"{hadoop}/flowers") == evaluate(local)


@pytest.mark.slow
def test_killed_and_resumed_on_another_machine(container: str, tmp_path: Path) -> None:
    url, long = f"abfs://{container}/runs", JOB["optimization"] | {"max_epochs": 12}
    pq.write_table(flowers(90), tmp_path / "flowers.parquet")
    straight = train(job(str(tmp_path / "flowers.parquet"), str(tmp_path / "runs"), optimization=long))
    (tmp_path / "job.yaml").write_text(job(str(tmp_path / "flowers.parquet"), url, optimization=long).to_yaml())
    command = [sys.executable, "-m", "raynn", "train", str(tmp_path / "job.yaml"), "--quiet"]
    first, second = (os.environ | {"XDG_CACHE_HOME": str(tmp_path / name)} for name in ("first", "second"))
    process = subprocess.Popen(command, env=slowly(first, tmp_path / "slow"), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(before := metrics_at(f"{url}/flowers")) < 3:  # a checkpoint follows its figures
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([*command, "resume=true"], env=second, check=True, stdout=subprocess.DEVNULL)
    after = metrics_at(f"{url}/flowers")
    assert after[0] == before[0], "the first epoch is the other machine's, with its seconds"
    assert len(before) < 12
    assert losses(after) == losses((straight / "metrics.jsonl").read_bytes().splitlines())


def test_what_is_not_there_is_said(container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_storage(f"abfs://{container}/runs")
    with pytest.raises(DataError, match="nothing there; look at the address"):
        train(job(f"abfs://{container}/data/*.parquet", str(tmp_path)))
    with pytest.raises(JobError, match="the address is of the account 'another', the environment has"):
        open_storage("abfs://runs@another.dfs.core.windows.net/")
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING", os.environ["AZURE_STORAGE_CONNECTION_STRING"].replace("Eb", "AA")
    )
    with pytest.raises(JobError, match=r"cannot be written: .*mend the address or the access to it"):
        open_storage(f"abfs://{container}/other-runs")


@pytest.mark.parametrize(
    ("url", "given", "path"),
    [
        ("abfs://data/a/b", {"AZURE_STORAGE_ACCOUNT": "mine"}, "data/a/b"),
        ("abfs://data/a/b", {"AZURE_STORAGE_ACCOUNT": "mine", "AZURE_STORAGE_KEY": "a2V5"}, "data/a/b"),
        ("abfs://data@mine.dfs.core.windows.net/a b/", {"AZURE_STORAGE_KEY": "a2V5"}, "data/a b"),
        ("abfss://data@mine.dfs.core.windows.net", {"AZURE_STORAGE_SAS_TOKEN": "?sv=1&sig=x"}, "data"),
        ("abfs://mine.blob.core.windows.net/data/a", {"AZURE_STORAGE_KEY": "a2V5"}, "data/a"),
        ("abfs://data/a", {"AZURE_STORAGE_CONNECTION_STRING": CHINA}, "data/a"),
    ],
)
def test_addresses(url: str, given: dict[str, str], path: str) -> None:
    opened = open_azure(url, given)
    assert opened is not None
    assert opened[1] == path
    # what it was made of is all that tells: as pickled for another process
    made_of = opened[0].__reduce__()[1][0]
    assert made_of["account_name"] == "mine"
    assert made_of["account_key"] == ("" if "KEY" not in str(given).upper().replace("STORAGE_ACC", "") else "a2V5")
    suffix = ".core.chinacloudapi.cn" if "CONNECTION" in str(given) else ".core.windows.net"
    assert made_of["blob_storage_authority"] == f".blob{suffix}"
    assert made_of["dfs_storage_authority"] == f".dfs{suffix}"


def test_without_a_key_pyarrow_decides() -> None:
    assert open_azure("abfs://data@mine.dfs.core.windows.net/a", {}) is None
    assert open_azure("s3://data/a", {"AZURE_STORAGE_KEY": "a2V5"}) is None
    with pytest.raises(ValueError, match="what stands behind the question mark belongs into AZURE_STORAGE_CONN"):
        open_azure("abfs://data/a?enable_tls=false", {"AZURE_STORAGE_CONNECTION_STRING": CHINA})
