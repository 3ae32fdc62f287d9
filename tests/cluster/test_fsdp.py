"""`strategy: fsdp` through the command line, on Ray: the run of ddp, and a checkpoint that anyone goes on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from flowers import flowers
from safetensors.torch import load_file

from raynn.cli import main

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]

JOB = """\
data: {train: flowers.parquet, target: kind, test: 0.2}
network: {kind: feedforward, hidden: [16, 16], residual: true}
regularization: {dropout: 0.1, ema_decay: 0.9, gradient_clip_norm: 1.0}
optimization: {global_batch_size: 24, max_epochs: 4, learning_rate: 1e-2, accumulate: 2}
storage: runs
"""


def trained(name: str, *overrides: str) -> list[dict[str, float]]:
    """metrics.jsonl of `raynn train`."""
    assert main(["train", "job.yaml", f"name={name}", "--quiet", *overrides]) == 0
    return [json.loads(line) for line in Path("runs", name, "metrics.jsonl").read_text().splitlines()]


def assert_same(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    """Losses, epoch after epoch, to rounding."""
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        for key in ("train/loss", "val/loss"):
            assert one[key] == pytest.approx(other[key], rel=1e-5), key


def test_fsdp_trains_as_ddp_and_one_worker_goes_on_from_it(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(flowers(), "flowers.parquet", row_group_size=50)
    Path("job.yaml").write_text(JOB)
    one = trained("one", "resources={driver: local}")
    many = "resources={{workers: 2, driver: ray, cpus_per_worker: 1, strategy: {}}}"
    assert_same(trained("parts", many.format("fsdp")), one)
    results = {name: json.loads(Path("runs", name, "result.json").read_text()) for name in ("one", "parts")}
    assert results["parts"]["workers"] == 2
    assert results["parts"]["parameters"] == results["one"]["parameters"]
    assert results["parts"]["metrics"] == pytest.approx(results["one"]["metrics"], rel=1e-4)
    ours, theirs = (load_file(Path("runs", name, "model", "weights.safetensors")) for name in ("parts", "one"))
    assert {key: x.shape for key, x in ours.items()} == {key: x.shape for key, x in theirs.items()}
    Path("runs/parts/result.json").unlink()
    shutil.rmtree("runs/parts/checkpoints/epoch-00004")
    assert_same(trained("parts", "resources={driver: local}", "resume=true"), one)
    Path("runs/parts/result.json").unlink()
    shutil.rmtree("runs/parts/checkpoints/epoch-00004")
    assert_same(trained("parts", many.format("ddp"), "resume=true"), one)
