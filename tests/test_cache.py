"""Prepared tables kept between runs: the same result, faster, and never one of anything that has changed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flowers import flowers

import raynn.cache
from raynn.cache import RememberingDriver, cache_folder, code_fingerprint
from raynn.drivers import LocalDriver
from raynn.encoded import Encoded, itself
from raynn.fragments import Fragment
from raynn.job import Job
from raynn.preparation import ReadPlan, prepare, understand
from raynn.sources import DataSettings
from raynn.splits import TEST, TRAIN, VALIDATION
from raynn.trainer import train


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, in which everything is worth keeping."""
    monkeypatch.setenv("RAYNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(raynn.cache, "WORTHWHILE_S", 0.0)
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the fragments that were read."""
    seen: list[str] = []
    read = ReadPlan.read

    def noted(self: ReadPlan, index: int, fragment: Fragment) -> pa.Table:
        seen.append(fragment.path)
        return read(self, index, fragment)

    monkeypatch.setattr(ReadPlan, "read", noted)
    return seen


def rows(encoded: Encoded) -> list[dict[str, Any]]:
    found = []
    for split in (TRAIN, VALIDATION, TEST):
        pieces = list(encoded.pieces(split, 0, encoded.num_rows(split), itself))
        found.append({name: np.concatenate([piece[name] for piece in pieces]) for name in (pieces or [{}])[0]})
    return found


def prepared(source: Path, seed: int = 0, driver: LocalDriver | None = None, **data: Any) -> list[dict[str, Any]]:
    settings = DataSettings(**{"train": str(source), "target": "kind", "test": 0.2, **data})
    return rows(prepare(understand(settings, source.parent), None, seed, driver or RememberingDriver()).encoded)


def alike(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> bool:
    return all(
        a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a) for a, b in zip(first, second, strict=True)
    )


def test_the_second_time_nothing_is_read_and_everything_is_the_same(garden: Path, reads: list[str]) -> None:
    plain = prepared(garden / "flowers.parquet", driver=LocalDriver())
    reads.clear()
    first = prepared(garden / "flowers.parquet")
    assert reads
    reads.clear()
    second = prepared(garden / "flowers.parquet")
    assert not reads, "the second time its tables were there"
    assert alike(plain, first)
    assert alike(first, second)


def test_images_of_a_folder_are_decoded_once(garden: Path, reads: list[str]) -> None:
    first = prepared(garden / "pets", target="label")
    assert reads
    reads.clear()
    assert alike(first, prepared(garden / "pets", target="label"))
    assert not reads


@pytest.mark.parametrize("keeps_its_time", [False, True])
def test_a_source_that_changed_is_read_again(tmp_path: Path, reads: list[str], keeps_its_time: bool) -> None:
    """Even one whose size and time of change are what they were: the bytes decide."""
    path = tmp_path / "flowers.parquet"
    table = flowers()
    pq.write_table(table, path, compression="none", use_dictionary=False)
    before, stat = prepared(path), path.stat()
    name = next(field.name for field in table.schema if pa.types.is_floating(field.type))
    column = table[name].to_numpy().copy()
    column[:5] += 1.0
    changed = table.set_column(table.column_names.index(name), name, pa.array(column))
    pq.write_table(changed, path, compression="none", use_dictionary=False)
    if keeps_its_time:
        assert path.stat().st_size == stat.st_size
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    reads.clear()
    after = prepared(path)
    assert reads
    assert not alike(before, after)
    assert alike(after, prepared(path, driver=LocalDriver()))


@pytest.mark.parametrize(
    "otherwise",
    [{"seed": 1}, {"validation": 0.3}, {"features": ("width",)}, {"max_bad_rows": 0.5}, {"test": 0.3}],
)
def test_other_settings_give_what_they_give_without_it(garden: Path, otherwise: dict[str, Any]) -> None:
    source = garden / "flowers.parquet"
    prepared(source)
    assert alike(prepared(source, **otherwise), prepared(source, driver=LocalDriver(), **otherwise))


def test_other_code_or_another_library_finds_nothing(
    garden: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(garden / "flowers.parquet")
    for fingerprint in ("other code", "another pyarrow"):
        monkeypatch.setattr(raynn.cache, "code_fingerprint", lambda fingerprint=fingerprint: fingerprint)
        reads.clear()
        prepared(garden / "flowers.parquet")
        assert reads


def test_the_fingerprint_is_of_the_code_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_fingerprint()
    code_fingerprint.cache_clear()
    assert code_fingerprint() == before
    code_fingerprint.cache_clear()
    monkeypatch.setattr(raynn.cache.importlib.metadata, "version", lambda name: "0")  # type: ignore[attr-defined]
    assert code_fingerprint() != before
    code_fingerprint.cache_clear()


def test_a_source_that_changes_while_it_is_read_is_not_kept(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "flowers.parquet"
    pq.write_table(flowers(), path)
    read = ReadPlan.read

    def slow(self: ReadPlan, index: int, fragment: Fragment) -> pa.Table:
        table = read(self, index, fragment)
        os.utime(path, ns=(0, time.time_ns()))
        return table

    monkeypatch.setattr(ReadPlan, "read", slow)
    prepared(path)
    assert not list(folder.glob("*/*.arrow"))


def test_a_damaged_table_is_made_anew(garden: Path, folder: Path, reads: list[str]) -> None:
    first = prepared(garden / "flowers.parquet")
    for path in folder.glob("*/*.arrow"):
        path.write_bytes(path.read_bytes()[:100])
    reads.clear()
    assert alike(first, prepared(garden / "flowers.parquet"))
    assert reads
    reads.clear()
    prepared(garden / "flowers.parquet")
    assert not reads, "and is whole again"


def test_a_table_made_from_a_kept_one_is_another(garden: Path) -> None:
    """Keys go by identity: a slice has none, so what is made of it is not taken for what was made of the whole."""
    driver = RememberingDriver()
    plan = understand(DataSettings(train=str(garden / "flowers.parquet"), target="kind"), garden)
    (block, *_) = driver.read(plan.fragments, plan.plan.read)
    (whole,) = driver.map([block], _counted)
    part = block.slice(0, 3)
    (few,) = driver.map([part], _counted)
    assert (whole["rows"][0].as_py(), few["rows"][0].as_py()) == (block.num_rows, 3)
    driver.keys[id(part)] = driver.keys[id(block)]  # as where a table is gone and another has its address
    (few,) = driver.map([part], _counted)
    assert few["rows"][0].as_py() == 3


def _counted(table: pa.Table) -> pa.Table:
    return pa.table({"rows": [table.num_rows]})


def test_the_longest_unused_goes_first(garden: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(garden / "flowers.parquet")
    old = set(folder.glob("*/*.arrow"))
    for path in old:
        os.utime(path, ns=(0, 10**9))
    size = sum(path.stat().st_size for path in old)
    monkeypatch.setenv("RAYNN_CACHE_GIB", str(1.5 * size / 2**30))
    prepared(garden / "flowers.parquet", seed=1, validation=0.3)
    left = set(folder.glob("*/*.arrow"))
    assert left - old
    assert old - left
    assert sum(path.stat().st_size for path in left) <= 1.5 * size


def test_off_keeps_nothing(garden: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYNN_CACHE", "off")
    assert cache_folder() is None
    prepared(garden / "flowers.parquet")
    assert not folder.exists()
    monkeypatch.setenv("RAYNN_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/raynn/prepared")


def test_a_folder_that_cannot_be_written_stops_no_run(
    garden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAYNN_CACHE", str(tmp_path / "file" / "below"))
    assert alike(prepared(garden / "flowers.parquet"), prepared(garden / "flowers.parquet", driver=LocalDriver()))


def test_two_runs_of_a_job_are_the_same_run(garden: Path, tmp_path: Path) -> None:
    job = {
        "data": {"train": str(garden / "flowers.parquet"), "target": "kind", "test": 0.2},
        "network": {"kind": "feedforward", "hidden": [8]},
        "optimization": {"max_epochs": 2, "global_batch_size": 32},
        "storage": str(tmp_path / "runs"),
    }
    metrics = []
    for _ in range(2):
        run = train(Job.from_dict(job))
        metrics.append((run / "model" / "weights.safetensors").read_bytes())
    assert metrics[0] == metrics[1]


DIGESTS = """
import functools, sys
from raynn.cache import _digest
from raynn.job import Job
tree = {"data": {"train": "x", "target": "y", "validation": 0.2, "test": 0.1}, "network": {"kind": "feedforward"}}
read = functools.partial(print, Job.from_dict(tree).data, ["".join(["a", "b"]), "ab"])
print(_digest(read))
"""


def test_a_key_is_the_same_in_every_process() -> None:
    """Whatever order its sets have, and whether equal texts are one object."""
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for script in (DIGESTS, DIGESTS.replace('"".join(["a", "b"])', '"ab"'))
        for seed in (1, 2, 3)
    }
    assert len(found) == 1
    assert len(found.pop().strip()) == 64
