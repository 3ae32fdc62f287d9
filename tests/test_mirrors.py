"""TensorBoard's event files, read by its own reader; an MLflow store, by its own client."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from followed import RunFolder

from raynn.feeds import Media, Tracked, feed_of
from raynn.mirrors import Mlflow, TensorBoard, numbers
from raynn.pictures import png
from raynn.tracking import MlflowSettings


def nothing() -> Media:
    return Media()


def now(run: RunFolder) -> Tracked:
    (tracked,) = feed_of(run.folder).read(False)
    return tracked


def test_null_is_nan_and_what_is_no_number_is_left_out() -> None:
    told = numbers({"epoch": 1, "step": 5, "val/loss": None, "val/accuracy": 1, "note": "x"})
    assert math.isnan(told.pop("val/loss"))
    assert told == {"val/accuracy": 1.0}


def test_event_files_hold_every_epoch_once_however_often_the_run_was_resumed(tmp_path: Path) -> None:
    accumulator: Any = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    import numpy as np

    run = RunFolder(tmp_path / "a", {"tensorboard": True})
    image = png(np.zeros((3, 4, 4), np.uint8))
    for last in (2, 4):  # two sessions
        mirror = TensorBoard()
        run.train(last - 1, last)
        mirror.update(now(run), nothing)
    run.end()
    mirror.update(now(run), lambda: Media({"filters": image}))
    events = accumulator.EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    loss = [(event.step, event.value) for event in events.Scalars("val/loss")]
    assert loss == [(epoch, pytest.approx(1 / epoch)) for epoch in range(1, 5)]
    assert set(events.Tags()["scalars"]) == {"train/loss", "val/loss", "learning_rate", "norms/weight/head"}
    assert [event.encoded_image_string for event in events.Images("filters")] == [image]
    told = events.SummaryMetadata("_hparams_/session_start_info").plugin_data
    assert told.plugin_name == "hparams"
    assert b"regularization.dropout" in told.content


@pytest.mark.filterwarnings("ignore")  # MLflow's own, of what it stands on
def test_an_mlflow_run_goes_on_in_another_session(tmp_path: Path) -> None:
    mlflow: Any = pytest.importorskip("mlflow")
    run = RunFolder(tmp_path / "a", {})
    settings = MlflowSettings(uri=f"sqlite:///{tmp_path / 'mlflow.db'}", experiment="garden")
    for last in (2, 4):
        run.train(last - 1, last)
        mirror = Mlflow(settings)
        mirror.update(now(run), nothing)
    run.end(**{"test/loss": 0.25})
    mirror.update(now(run), nothing)
    client = mlflow.tracking.MlflowClient(settings.uri)
    (kept,) = client.search_runs([client.get_experiment_by_name("garden").experiment_id])
    history = client.get_metric_history(kept.info.run_id, "val/loss")
    assert [(point.step, point.value) for point in history] == [(e, 1 / e) for e in range(1, 5)]
    assert (kept.info.status, kept.data.metrics["test/loss"]) == ("FINISHED", 0.25)
    assert kept.data.params["optimization.max_epochs"] == str(run.job.optimization.max_epochs)
