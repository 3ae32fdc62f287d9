"""Settings that change during training: in force from their epoch on, exact after a resume, refused if they cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from raynn.errors import JobError
from raynn.job import Job
from raynn.loop import train_epochs
from raynn.trainer import train

RATE = "optimization.learning_rate"


def job(garden: Path, folder: Path, *changes: tuple[int, dict[str, Any]], **sections: Any) -> Job:
    return Job.from_dict(
        {
            "data": {"train": str(garden / "flowers.parquet"), "target": "kind"},
            "network": {"kind": "feedforward", "hidden": [8]},
            "optimization": {"global_batch_size": 16, "max_epochs": 4, "learning_rate": 1e-2, "schedule": "constant"},
            "changes": [{"after_epoch": epoch, "settings": settings} for epoch, settings in changes],
            "storage": str(folder),
            **sections,
        }
    )


def losses(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record[key] for record in records for key in ("train/loss", "val/loss")]


def test_a_change_to_the_same_value_changes_no_bit(garden: Path, tmp_path: Path) -> None:
    same = train(job(garden, tmp_path, (2, {RATE: 1e-2, "regularization.dropout": 0.1})))
    assert losses(same) == losses(train(job(garden, tmp_path)))


def test_the_learning_rate_changes_and_only_after_its_epoch(garden: Path, tmp_path: Path) -> None:
    plain, changed = losses(train(job(garden, tmp_path))), losses(train(job(garden, tmp_path, (2, {RATE: 1e-30}))))
    assert changed[:4] == plain[:4]
    assert changed[5] == changed[7] == changed[3] != plain[5]  # val/loss stands still


def test_weight_decay_and_dropout_are_those_in_force(garden: Path, tmp_path: Path) -> None:
    """Decay that takes all of a weight in a step leaves next to none; dropout of nearly all leaves the loss high."""
    decayed = train(job(garden, tmp_path, (1, {"regularization.weight_decay": 100.0, RATE: 1e-2})))
    kept = train(job(garden, tmp_path))
    dropped = train(job(garden, tmp_path, (1, {"regularization.dropout": 0.9})))
    size = [max(float(w.norm()) for w in matrices(run)) for run in (decayed, kept)]
    assert size[0] < 0.05 * size[1]
    assert losses(dropped)[2] > losses(kept)[2]


def matrices(run: Path) -> list[torch.Tensor]:
    """The weights that decay shrinks, as the last epoch left them."""
    tensors = load_file(sorted((run / "checkpoints").glob("epoch-*"))[-1] / "tensors.safetensors")
    return [
        w
        for name, w in tensors.items()
        if name.startswith("state/model/") and "categories" not in name and w.dim() == 2
    ]


def test_the_optimizer_steps_with_what_is_in_force(garden: Path, tmp_path: Path) -> None:
    """Seen inside of every step: rate and decay of the group of weight matrices."""
    seen: list[tuple[float, float]] = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]))

    handle = register_optimizer_step_pre_hook(look)
    try:
        train(job(garden, tmp_path, (1, {RATE: 3e-3}), (3, {"regularization.weight_decay": 0.7})))
    finally:
        handle.remove()
    steps = len(seen) // 4
    before, after = seen[0], (3e-3, seen[0][1])
    assert before[0] == 1e-2
    assert seen == [before] * steps + [after] * (2 * steps) + [(3e-3, 0.7)] * steps


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_run_killed_around_a_change_resumes_exactly(
    garden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    change = (2, {RATE: 3e-3, "regularization.dropout": 0.4, "regularization.weight_decay": 0.1})
    straight = losses(train(job(garden, tmp_path / "straight", change)))

    def killed(*arguments: Any) -> Any:
        for record in train_epochs(*arguments):
            yield record
            if record["epoch"] == epochs:
                raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("raynn.training.train_epochs", killed)
        with pytest.raises(OSError, match="killed"):
            train(job(garden, tmp_path / "killed", change))
    # the epoch was yielded but not saved: as if the process had died while it saved
    saved = sorted((tmp_path / "killed" / "job" / "checkpoints").glob("epoch-*"))
    assert len(saved) == min(2, epochs)
    resumed = train(job(garden, tmp_path / "killed", change, resume=True))
    assert losses(resumed) == straight
    shutil.rmtree(resumed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([(2, {"network.hidden": [4]})], "'network.hidden' cannot change during training; what can: regularization.*"),
        ([(4, {RATE: 1e-3})], "after_epoch = 4 must be more than 0 and less than optimization.max_epochs = 4"),
        ([(2, {RATE: 1e-3}), (2, {RATE: 1e-4})], "after_epoch = 2 must be more than 2 and less than"),
        ([(1, {"regularization.dropout": 2.0})], "after epoch 1: regularization.dropout = 2.0: must be"),
        ([(1, {"regularization.dropuot": 0.2})], "after epoch 1: regularization.dropuot"),
    ],
)
def test_a_change_that_cannot_be_is_refused(
    garden: Path, tmp_path: Path, changes: list[tuple[int, dict[str, Any]]], message: str
) -> None:
    with pytest.raises(JobError) as caught:
        job(garden, tmp_path, *changes)
    assert message in str(caught.value)


def test_a_job_with_changes_is_read_back_from_its_yaml(garden: Path, tmp_path: Path) -> None:
    changed = job(garden, tmp_path, (2, {RATE: 1e-3}))
    path = tmp_path / "job.yaml"
    path.write_text(changed.to_yaml())
    assert Job.load(path) == changed
    assert changed.fingerprint() != job(garden, tmp_path).fingerprint()
    assert changed.after(1) == changed
    assert changed.after(2).optimization.learning_rate == 1e-3
