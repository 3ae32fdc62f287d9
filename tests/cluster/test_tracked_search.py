"""A search on Ray, seen in W&B: the command as people run it, a server on this machine, and where the key is not."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from followed import KEY, descendants, until
from wandb_server import WandbServer

from raynn.folder import read_result

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(500)]


def test_every_trial_arrives_in_the_sweep_and_the_key_nowhere_else(garden: Path, tmp_path: Path) -> None:
    job = {
        "name": "roses",
        "data": {"train": str(garden / "flowers.parquet"), "target": "kind"},
        "network": {"kind": "feedforward", "hidden": [4]},
        "optimization": {"max_epochs": 3, "global_batch_size": 32},
        "search": {"trials": 4, "concurrent_trials": 2, "space": {"regularization.dropout": {"uniform": [0.0, 0.5]}}},
        "tracking": {"wandb": {"wait_s": 60.0}},
        "storage": str(tmp_path / "runs"),
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    words: set[bytes] = set()
    # Ray's sockets want a short path
    with WandbServer() as server, tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as scratch:
        environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
        environment |= {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url, "RAY_TMPDIR": scratch}
        command = [sys.executable, "-m", "raynn", "tune", str(tmp_path / "job.yaml")]
        log = tmp_path / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)

            def ended() -> bool:
                for pid in descendants(process.pid):
                    try:
                        words.add(Path(f"/proc/{pid}/cmdline").read_bytes())
                    except OSError:  # it has just ended
                        continue
                return process.poll() is not None

            try:
                until(ended, 450)
            finally:
                process.kill()
        assert process.returncode == 0, log.read_text()
        search = tmp_path / "runs" / "roses"
        assert read_result(search)["trials"].keys()
        assert {run.fields["displayName"] for run in server.runs.values()} == {f"roses-{n:04d}" for n in range(4)}
        assert {run.fields["sweep"] for run in server.runs.values()} == {"sweep0"}
        assert all(run.complete for run in server.runs.values())
        for run in server.runs.values():
            lines = search / "trials" / run.fields["displayName"][-4:] / "metrics.jsonl"
            assert sum("val/loss" in row for row in run.history) == len(lines.read_text().splitlines())
        (won,) = (run for run in server.runs.values() if "winner_of" in run.summary)
        assert won.fields["displayName"] == f"roses-{read_result(search)['best']['number']:04d}"
        assert won.history[-1]["media/confusion_table"]["nrows"] == 4
        assert server.sweeps["sweep0"]["states"] == ["FINISHED"]
        assert len(server.views) == 1
        last = log.read_text().splitlines()[-1]
        assert "raynn sync" not in last
        assert "job.best.yaml" in last
        # Ray's own logs are in scratch
        files = [path for folder in (tmp_path, Path(scratch)) for path in folder.rglob("*") if path.is_file()]
        assert any(path.name.startswith("raylet") for path in files)
        assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert any(b"ray::" in word or b"raylet" in word for word in words)
    assert [word for word in words if KEY.encode() in word] == []
