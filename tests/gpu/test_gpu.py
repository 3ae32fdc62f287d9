"""What only a GPU shows; skipped where there is none: `pytest -m gpu`."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from raynn.job import Job
from raynn.trainer import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]


def job(storage: Path, **optimization: Any) -> Job:
    """A CNN on digits, three epochs."""
    return Job.from_dict(
        {
            "data": {"train": "digits", "target": "label", "test": 0.2},
            "network": {"kind": "cnn", "channels": [16, 32], "head_hidden": [32]},
            "regularization": {"dropout": 0.2, "horizontal_flip": 0.5, "crop_padding": 1},
            "optimization": {"global_batch_size": 64, "max_epochs": 3} | optimization,
            "storage": str(storage),
        }
    )


def losses(run: Path) -> list[float]:
    """Training and validation losses, epoch after epoch."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record[key] for record in records for key in ("train/loss", "val/loss")]


def test_gpu_and_cpu_see_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = losses(train(job(tmp_path / "gpu")))
    with monkeypatch.context() as context:
        context.setattr(torch.cuda, "is_available", lambda: False)
        on_cpu = losses(train(job(tmp_path / "cpu")))
    # TF32 is off by default for matrix products, convolutions differ by their algorithms
    assert on_gpu == pytest.approx(on_cpu, rel=2e-2)
    assert on_gpu[0] == pytest.approx(on_cpu[0], rel=2e-3)


def test_data_live_on_the_gpu_and_disk_gives_the_same_batches(tmp_path: Path) -> None:
    resident = losses(train(job(tmp_path / "device")))
    small = job(tmp_path / "disk")
    small = small.model_copy(update={"resources": small.resources.model_copy(update={"residence": "disk"})})
    assert losses(train(small)) == pytest.approx(resident, rel=1e-3)


def test_a_step_does_not_wait_for_the_gpu(tmp_path: Path) -> None:
    """Torch tells of each time that the host waits: as often for 11 steps an epoch as for 21. `test_host_waits` has
    every network and knob, without a GPU.
    """

    def waits(batch_rows: int) -> int:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                train(job(tmp_path / str(batch_rows), global_batch_size=batch_rows))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(each.message) for each in told)

    waits(64)  # what is sent once and stays
    assert waits(64) == waits(128)


def test_bf16_learns(tmp_path: Path) -> None:
    run = train(job(tmp_path, precision="bf16"))
    assert json.loads((run / "result.json").read_text())["metrics"]["test/accuracy"] > 0.8


@pytest.mark.parametrize("how", [True, "reduce-overhead"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_compiled_it_learns_the_same(how: bool | str, accumulate: int, tmp_path: Path) -> None:
    """A last batch of another size, pieces of a step and an evaluation between the epochs among it."""
    plain = losses(train(job(tmp_path / "plain", accumulate=accumulate)))
    assert losses(train(job(tmp_path / "compiled", accumulate=accumulate, compile=how))) == pytest.approx(
        plain, rel=1e-2
    )


@pytest.mark.cluster
def test_one_ray_worker_on_the_gpu_equals_local_mode(tmp_path: Path) -> None:
    """NCCL, one process a GPU."""
    local = losses(train(job(tmp_path / "local")))
    through_ray = job(tmp_path / "ray")
    through_ray = through_ray.model_copy(
        update={"resources": through_ray.resources.model_copy(update={"driver": "ray", "gpus_per_worker": 1.0})}
    )
    assert losses(train(through_ray)) == pytest.approx(local, rel=1e-3)


@pytest.mark.cluster
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs here")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_fsdp_over_two_gpus_equals_ddp_and_one(precision: str, tmp_path: Path) -> None:
    """NCCL, one process a GPU, batches in pieces; a run that fsdp began, one GPU ends."""

    def through_ray(name: str, strategy: str, **more: Any) -> Job:
        plain = job(tmp_path / name, precision=precision, accumulate=2)
        network = plain.network.model_copy(update={"normalization": "group"})
        asked = {"driver": "ray", "workers": 2, "gpus_per_worker": 1.0, "strategy": strategy} | more
        resources = plain.resources.model_copy(update=asked)
        return plain.model_copy(update={"network": network, "resources": resources})

    tolerance = 1e-3 if precision == "float32" else 2e-2
    fsdp = train(through_ray("fsdp", "fsdp"))
    expected = losses(train(through_ray("ddp", "ddp")))
    assert losses(fsdp) == pytest.approx(expected, rel=tolerance)
    shutil.rmtree(fsdp / "checkpoints" / "epoch-00003")
    (fsdp / "result.json").unlink()
    alone = through_ray("fsdp", "fsdp", workers=1, driver="local").model_copy(update={"resume": True})
    assert losses(train(alone)) == pytest.approx(expected, rel=tolerance)
