"""Trained anew on train and validation: the length that stopping found, its rates, its rows, both models, after a kill
too.
"""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch
from safetensors.torch import load_file
from tides import tides, understood
from torch import Tensor

from raynn.corpus import prepare_corpus, understand_corpus
from raynn.drivers import LocalDriver
from raynn.errors import RunError
from raynn.job import Job
from raynn.optimization import learning_rate
from raynn.refit import Refit
from raynn.run import open_run
from raynn.series import prepare_series
from raynn.sources import DataSettings
from raynn.splits import TEST, TRAIN, VALIDATION
from raynn.stopping import decide
from raynn.trainer import train


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def records(run: Path, file: str = "metrics.jsonl") -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / file).read_text().splitlines()]


def weights(run: Path, model: str = "model") -> dict[str, Tensor]:
    return load_file(run / model / "weights.safetensors")


def job_with(**sections: Any) -> Job:
    return Job.from_dict({"data": {"train": "t", "target": "y"}, "network": {"kind": "feedforward"}, **sections})


def history_of(losses: list[float], steps: int = 10) -> list[dict[str, float]]:
    return [{"val/loss": loss, "step": (i + 1) * steps, "seconds": 1.0} for i, loss in enumerate(losses)]


def found(job: Job, losses: list[float], steps: int = 10) -> Refit:
    history = history_of(losses, steps)
    return Refit.found(job, history, decide(job.early_stopping, history))


def test_the_steps_are_those_up_to_the_best_epoch() -> None:
    """Goodfellow et al., algorithm 7.2: as many steps as the training took that was best."""
    assert found(job_with(), [3.0, 2.0, 1.0, 2.0, 3.0], steps=7).num_steps == 21


def test_a_schedule_is_run_over_the_length_that_was_found() -> None:
    job = job_with(optimization={"schedule": "cosine", "warmup_fraction": 0.1, "max_epochs": 50})
    refit = found(job, [3.0, 2.0, 1.0, 2.0])
    rates = [refit.rate(job.optimization, step) for step in range(30)]
    assert rates == [learning_rate(job.optimization, step, 30) for step in range(30)]
    assert rates[-1] < 0.01 * max(rates)


def test_the_reductions_of_a_plateau_schedule_come_at_the_same_steps() -> None:
    """val/loss stands still in epochs 2 and 3, so the rate is halved in the 4th, and in the refit from step 30 on."""
    schedule = {"schedule": "plateau", "plateau_patience": 2, "plateau_factor": 0.5, "learning_rate": 0.8}
    job = job_with(optimization=schedule, early_stopping={"rule": "none"})
    refit = found(job, [3.0, 3.0, 3.0, 2.0, 1.0])
    assert [refit.rate(job.optimization, step) for step in (0, 29, 30, 49)] == [0.8, 0.8, 0.4, 0.4]


def test_epochs_that_training_went_back_behind_are_no_part_of_the_length() -> None:
    """After epoch 4 back to 2; from there at a tenth of the rate epochs 5 and 6, the best."""
    job = job_with(
        optimization={"schedule": "constant", "learning_rate": 1.0}, early_stopping={"patience": 2, "reductions": 1}
    )
    refit = found(job, [3.0, 2.0, 4.0, 5.0, 1.5, 1.0, 2.0, 2.0])
    assert refit.path == (1, 2, 5, 6)
    assert refit.num_steps == 40
    assert [refit.rate(job.optimization, step) for step in (0, 19, 20, 39)] == [1.0, 1.0, 0.1, 0.1]


def test_settings_change_after_the_epoch_that_ends_nearest() -> None:
    """Changes after steps 10, 20 and 40 of 50, in epochs of 15 steps: after epochs 1 (both) and 3."""
    rate, momentum = "optimization.learning_rate", "optimization.momentum"
    settings = [(1, {rate: 0.1, momentum: 0.5}), (2, {rate: 0.2}), (4, {rate: 0.3})]
    changes = [{"after_epoch": n, "settings": changed} for n, changed in settings]
    job = job_with(changes=changes, early_stopping={"rule": "none"})
    refit = found(job, [5.0, 4.0, 3.0, 2.0, 1.0, 2.0])
    made = refit.job(job, steps_per_epoch=15).changes
    assert [(c.after_epoch, c.settings) for c in made] == [(1, {rate: 0.2, momentum: 0.5}), (3, {rate: 0.3})]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """half.csv, and whole.csv with its rows twice."""
    folder = tmp_path_factory.mktemp("refit")
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(2, 64))
    half = pa.table({"x": x, "z": z, "y": 3 * x - z + 0.1 * rng.normal(size=64)})
    pyarrow.csv.write_csv(half, folder / "half.csv")
    pyarrow.csv.write_csv(pa.concat_tables([half, half]), folder / "whole.csv")
    return folder


def run_of(folder: Path, *overrides: str, **sections: Any) -> Path:
    half = str(folder / "half.csv")
    job = {
        "name": "half",
        "data": {"train": half, "validation": half, "test": str(folder / "whole.csv"), "target": "y"},
        "network": {"kind": "feedforward", "hidden": [8]},
        "regularization": {"dropout": 0.1},
        "optimization": {"global_batch_size": 16, "max_epochs": 4, "learning_rate": 1e-2},
        "early_stopping": {"rule": "none"},
        "refit": True,
        "storage": str(folder / "runs"),
    }
    return train(Job.from_dict({**job, **sections}, overrides))


@pytest.fixture(scope="module")
def refitted(folder: Path) -> Path:
    return run_of(folder)


def test_a_refit_is_the_training_that_has_all_rows_from_the_beginning(folder: Path, refitted: Path) -> None:
    """4 epochs of 4 steps; with the validation rows, the same again, 2 epochs of 8 steps: as a job on both would do."""
    half = str(folder / "half.csv")
    data = {"train": str(folder / "whole.csv"), "validation": half, "test": str(folder / "whole.csv"), "target": "y"}
    reference = run_of(folder, "optimization.max_epochs=2", data=data, refit=False, name="whole")
    assert result_of(refitted)["best_epoch"] == 4
    for name, expected in weights(reference).items():
        torch.testing.assert_close(weights(refitted)[name], expected, rtol=1e-4, atol=1e-5, msg=name)
    mine, theirs = records(refitted, "refit.jsonl"), records(reference)
    assert [r["step"] for r in mine] == [8, 16]
    for key in ("train/loss", "learning_rate", "step"):
        assert [r[key] for r in mine] == pytest.approx([r[key] for r in theirs], rel=1e-4)
    for key, value in result_of(reference)["metrics"].items():
        if key.startswith("test/"):
            assert result_of(refitted)["metrics"][key] == pytest.approx(value, rel=1e-4)


def test_the_first_training_is_that_without_a_refit(folder: Path, refitted: Path) -> None:
    plain = run_of(folder, "refit=false", name="plain")
    for name, expected in weights(plain).items():
        assert torch.equal(weights(refitted, "model-validated")[name], expected)
        assert not torch.equal(weights(refitted)[name], expected)
    with_refit, without = result_of(refitted), result_of(plain)
    for key, value in without["metrics"].items():
        assert (with_refit["metrics"][key] == value) == (not key.startswith("test/"))
    assert "refit" not in without
    assert not (plain / "model-validated").exists()


def test_the_result_says_what_the_refit_was(refitted: Path) -> None:
    result = result_of(refitted)
    last = records(refitted, "refit.jsonl")[-1]
    test = {key: value for key, value in result["metrics"].items() if key.startswith("test/")}
    assert result["refit"] == {
        "steps": 16,
        "epochs": 2,
        "metrics": {"train/loss": last["train/loss"], **test},
        "model": "model",
        "validated": "model-validated",
    }
    assert test


def test_predict_uses_the_refitted_model_and_validation_rows_cannot_judge_it(refitted: Path) -> None:
    run = open_run(refitted)
    expected = {key: value for key, value in run.result["metrics"].items() if key.startswith("test/")}
    assert run.evaluate("test") == pytest.approx(expected, rel=1e-6)
    with pytest.raises(RunError, match="was refitted: model/ has trained on the validation rows"):
        run.evaluate("validation")


def test_the_last_epoch_is_cut_at_the_step_that_was_found(folder: Path) -> None:
    """128 rows, a fifth of which validate: 102 rows are 6 steps of 16, all of them 8. 3 epochs are 18 steps."""
    data = {"train": str(folder / "whole.csv"), "validation": 0.2, "target": "y"}
    run = run_of(folder, "optimization.max_epochs=3", data=data, name="cut")
    assert [r["step"] for r in records(run)] == [6, 12, 18]
    assert [r["step"] for r in records(run, "refit.jsonl")] == [8, 16, 18]
    assert result_of(run)["refit"]["steps"] == 18


@pytest.mark.parametrize("lost", ["the end", "an epoch of the refit", "the refit", "an epoch of the first training"])
def test_a_run_killed_anywhere_resumes_exactly(folder: Path, lost: str, tmp_path: Path) -> None:
    storage = f"storage={tmp_path}"
    straight = run_of(folder, storage)
    expected = weights(straight), weights(straight, "model-validated"), result_of(straight)["metrics"]
    losses = [r["train/loss"] for r in records(straight, "refit.jsonl")]
    first = records(straight, "refit.jsonl")[0]
    (straight / "result.json").unlink()
    shutil.rmtree(straight / "model")
    if lost == "an epoch of the refit":
        shutil.rmtree(straight / "checkpoints" / "refit" / "epoch-00002")
    if lost in ("the refit", "an epoch of the first training"):
        shutil.rmtree(straight / "checkpoints" / "refit")
        shutil.rmtree(straight / "model-validated")
    if lost == "an epoch of the first training":
        shutil.rmtree(straight / "checkpoints" / "epoch-00004")
    resumed = run_of(folder, storage, "resume=true")
    assert resumed == straight
    for name in expected[0]:
        assert torch.equal(weights(resumed)[name], expected[0][name]), name
        assert torch.equal(weights(resumed, "model-validated")[name], expected[1][name]), name
    assert result_of(resumed)["metrics"] == expected[2]
    assert [r["train/loss"] for r in records(resumed, "refit.jsonl")] == losses
    if lost in ("the end", "an epoch of the refit"):
        assert records(resumed, "refit.jsonl")[0] == first, "what was saved is not trained again: not even its time"


def test_the_windows_of_a_forecast_reach_over_the_end_of_training(tmp_path: Path) -> None:
    """100 hours, 20 of them test, 20 validation: windows of 4 + 2 over 60 hours, or all 80; the test's are the same."""
    plan = understood(tides(100), tmp_path, validation=0.2, test=0.2)
    found = prepare_series(plan, LocalDriver(), refit=True)
    assert found.refit is not None
    assert [found.encoded.num_rows(split) for split in (TRAIN, VALIDATION, TEST)] == [55, 19, 19]
    assert [found.refit.num_rows(split) for split in (TRAIN, VALIDATION, TEST)] == [75, 0, 19]
    starts = found.refit.windows[TRAIN].start_N  # type: ignore[attr-defined]
    assert starts.tolist() == list(range(75))
    assert prepare_series(plan, LocalDriver()).refit is None


def test_text_that_validated_joins_the_text_before_it(tmp_path: Path) -> None:
    """800 letters train, 100 validate; windows of 10 predict each but the first once."""
    (tmp_path / "t.txt").write_text("abcdefghij" * 100)
    settings = DataSettings(train="t.txt", validation=0.1, test=0.1, window=10, tokens="characters")
    found = prepare_corpus(understand_corpus(settings, tmp_path), LocalDriver(), refit=True)
    assert found.refit is not None
    plan, whole = (e.windows.windows[TRAIN] for e in (found.encoded, found.refit))  # type: ignore[attr-defined]
    assert (plan.stop_N.max(), whole.stop_N.max(), whole.start_N.min()) == (800, 900, 0)
    assert sum(b - a - 1 for a, b in zip(whole.start_N, whole.stop_N, strict=True)) == 899
    assert all(a + 10 == b for a, b in pairwise(whole.start_N.tolist()))
    assert found.refit.num_rows(VALIDATION) == 0
    assert found.refit.num_rows(TEST) == found.encoded.num_rows(TEST)
