"""A refit by two Ray Train workers is that of one in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from raynn.job import Job
from raynn.trainer import train

JOB: dict[str, Any] = {
    "name": "wine",
    "data": {"train": "wine", "target": "cultivar", "test": 0.2, "validation": 0.2},
    "network": {"kind": "feedforward", "hidden": [16]},
    "optimization": {"global_batch_size": 16, "max_epochs": 4, "learning_rate": 1e-2},
    "early_stopping": {
        "any": [{"rule": "gl", "alpha": 5.0}, {"rule": "time", "budget_s": 600.0}],
        "reductions": 1,
    },
    "refit": True,
}


@pytest.mark.cluster
@pytest.mark.slow
def test_two_workers_refit_as_one(ray_cluster: None, tmp_path: Path) -> None:
    one = train(Job.from_dict(JOB | {"storage": str(tmp_path / "one")}))
    two = train(Job.from_dict(JOB | {"storage": str(tmp_path / "two"), "resources": {"workers": 2}}))
    found, expected = (json.loads((run / "result.json").read_text()) for run in (two, one))
    assert found["workers"] == 2
    assert found["refit"].pop("metrics") == pytest.approx(expected["refit"].pop("metrics"), rel=1e-4)
    assert found["refit"] == expected["refit"]
    assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-4)
    for model in ("model", "model-validated"):
        weights, theirs = (load_file(run / model / "weights.safetensors") for run in (two, one))
        for name, weight in weights.items():
            torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=1e-5, msg=f"{model}: {name}")
