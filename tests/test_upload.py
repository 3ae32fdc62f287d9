"""What an upload holds: exactly what Ray packs, and which folders make it large."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import pytest

from raynn.upload import MOST_BYTES, Upload, measured


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size in {
        "job.yaml": 10,
        "raynn/cli.py": 100,
        "raynn/networks/cnn.py": 50,
        "data/big.parquet": 5000,
        "data/kept.csv": 7,
        "deep/one/two/three.bin": 2000,
        "scratch/a.tmp": 30,
        "__pycache__/x.pyc": 40,
        ".git/objects/pack": 900,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    (tmp_path / ".rayignore").write_text("*.parquet\n")
    (tmp_path / ".gitignore").write_text("scratch/\n")
    (tmp_path / "deep/.rayignore").write_text("# nothing\n")
    return tmp_path


@pytest.mark.parametrize("excludes", [(), ("deep",)])
def test_what_is_measured_is_what_ray_packs(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, excludes: tuple[str, ...]
) -> None:
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    packed = tmp_path_factory.mktemp("packed") / "package.zip"
    left_out = [*get_runtime_env_default_excludes(), *excludes]
    create_package(str(folder), packed, include_gitignore=True, excludes=left_out)
    with ZipFile(packed) as package:
        theirs = {info.filename: info.file_size for info in package.infolist() if not info.is_dir()}
    ours = measured(folder, excludes)
    assert dict(ours.files) == theirs
    assert ours.num_bytes == sum(theirs.values())
    assert "data/kept.csv" in ours.files
    assert not any("parquet" in name or "scratch" in name or ".git/" in name for name in ours.files)


def test_the_largest_folders_are_named(folder: Path) -> None:
    assert measured(folder).largest(2) == [("deep/one/", 2000), ("raynn/", 100)]


def test_what_goes_along(folder: Path) -> None:
    upload = measured(folder)
    assert upload.holds(Path("job.yaml"))
    assert upload.holds(Path("raynn/networks"))
    assert not upload.holds(Path("data/big.parquet"))
    assert not upload.holds(Path("ray"))


def test_ray_takes_no_more_than_we_say() -> None:
    from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE

    assert MOST_BYTES <= GCS_STORAGE_MAX_SIZE
    assert Upload({}).largest() == []
