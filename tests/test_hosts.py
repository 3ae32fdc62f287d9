"""Who prepares the data of a job that Ray trains: this process while Ray starts, where they are small, or Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raynn import hosts
from raynn.drivers import LocalDriver
from raynn.encoded import EncodedBlocks, itself
from raynn.errors import DataError
from raynn.hosts import begun_early, expected_preparing
from raynn.job import Job
from raynn.preparation import Understood
from raynn.tasks import prepare_job, understand_job


def job_of(folder: Path, rows: int = 200, **resources: Any) -> tuple[Job, Understood]:
    lines = [f"{row % 7},{'yes' if row % 3 else 'no'}" for row in range(rows)]
    (folder / "rows.csv").write_text("\n".join(["x,label", *lines]))
    job = Job.from_dict(
        {
            "data": {"train": str(folder / "rows.csv"), "target": "label"},
            "network": {"kind": "feedforward"},
            "resources": {"workers": 2, **resources},
        }
    )
    return job, understand_job(job, folder)


def test_small_tables_are_prepared_here_as_anywhere(tmp_path: Path) -> None:
    job, understood = job_of(tmp_path)
    with begun_early(job, understood) as early:
        assert early is not None
        assert early.prepared is not None
        prepared = early.prepared()
    here, there = prepared.encoded, prepare_job(job, understood, LocalDriver()).encoded
    assert isinstance(here, EncodedBlocks)
    assert isinstance(there, EncodedBlocks)
    assert (here.counts == there.counts).all()
    assert all(itself(a).equals(itself(b)) for a, b in zip(here.blocks, there.blocks, strict=True))
    assert "prepared by this process" in early.told
    assert expected_preparing(job, understood) == early.told


@pytest.mark.parametrize("preparation", ["keep", "stream"])
def test_a_way_that_is_asked_for_is_rays(tmp_path: Path, preparation: str) -> None:
    job, understood = job_of(tmp_path, preparation=preparation)
    with begun_early(job, understood) as early:
        assert early is None
    assert "this process" not in expected_preparing(job, understood)


def test_large_tables_are_rays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, understood = job_of(tmp_path)
    assert understood.footprint is not None
    monkeypatch.setattr(hosts, "SMALL_BYTES", understood.footprint.table_bytes - 1)
    with begun_early(job, understood) as early:
        assert early is None


def test_what_is_wrong_with_the_data_is_raised_where_they_are_asked_for(tmp_path: Path) -> None:
    job, understood = job_of(tmp_path)
    (tmp_path / "rows.csv").write_text("x,label\n1,yes\n2,yes\n")
    with begun_early(job, understood) as early:
        assert early is not None
        assert early.prepared is not None
        with pytest.raises(DataError):
            early.prepared()
