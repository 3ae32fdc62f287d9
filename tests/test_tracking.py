"""metrics.jsonl always; the real W&B client, offline, when asked."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest

from raynn.tracking import Tracker, TrackingSettings, WandbSettings


def test_records_are_lines_of_json_and_a_resumed_file_starts_with_the_epochs_kept(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, [], TrackingSettings(), {})
    tracker.write({"epoch": 1, "val/loss": 0.5})
    tracker.write({"epoch": 2, "val/loss": math.nan})
    tracker.finish({})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"epoch": 1, "val/loss": 0.5}, {"epoch": 2, "val/loss": None}]
    Tracker(tmp_path, lines[:1], TrackingSettings(), {})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"epoch": 1, "val/loss": 0.5}\n'
    assert not (tmp_path / "wandb").exists()


def test_wandb_offline_keeps_the_run_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    settings = TrackingSettings(wandb=WandbSettings(project="p"))
    tracker = Tracker(tmp_path, [], settings, {"optimization": {"learning_rate": 0.125}})
    tracker.write({"epoch": 1, "val/loss": 0.5})
    tracker.finish({"test/loss": 0.25})
    (log,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 20
    while b"test/loss" not in (content := log.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.1)  # W&B's own process writes the file, on a busy machine a little after the run has ended
    assert b"learning_rate" in content
    assert b"val/loss" in content
    assert b"test/loss" in content
    assert (tmp_path / "wandb_id").read_text() in log.name
