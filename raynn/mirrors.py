"""Where runs are mirrored to beside W&B: TensorBoard's event files, an MLflow server."""

from __future__ import annotations

import io
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from raynn.feeds import Media, Record, Tracked
from raynn.tracking import MlflowSettings

MLFLOW_PARAM_CHARACTERS = 500  # of a value; what old servers take
MLFLOW_BATCH = 100  # params of a request
MLFLOW_METRICS = 1000  # of a request


class Mirror(Protocol):
    """One place that runs are shown at."""

    name: str

    def update(self, run: Tracked, media: Callable[[], Media]) -> None:
        """Brings the run up to date there; called again with what has come since, in another thread perhaps, but never
        twice at a time for one run.

        Args:
            run: as it is now.
            media: what is seen of its model; asked once it has ended.

        Raises:
            Exception: the place cannot be had now; it is tried again.
        """

    def conclude(self) -> None:
        """Nobody writes any more, and all runs are there.

        Raises:
            Exception: the place cannot be had now; it is tried again.
        """

    def problem(self, reason: str) -> None:
        """An update failed."""


def numbers(record: Record) -> dict[str, float]:
    """The quantities of a record; null, which is how JSON lines write NaN, is NaN again."""
    return {
        key: math.nan if value is None else float(value)
        for key, value in record.items()
        if key not in ("epoch", "step") and (value is None or isinstance(value, float | int))
    }


class TensorBoard:
    """Event files in RUN/tensorboard, epochs as steps; written anew by each session, from the first epoch on."""

    name = "TensorBoard"

    def __init__(self) -> None:
        self.open: dict[Path, tuple[Any, int]] = {}  # writers, and the epochs they have

    def update(self, run: Tracked, media: Callable[[], Media]) -> None:
        """Adds the epochs that are new, and at the end the images."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = run.folder / "tensorboard"
        if run.folder not in self.open:
            shutil.rmtree(folder, ignore_errors=True)
            writer = EventFileWriter(str(folder))
            writer.add_event(Event(wall_time=time.time(), step=0, summary=_hyperparameters(run)))
            self.open[run.folder] = writer, 0
        writer, known = self.open[run.folder]
        for record in run.records[known:]:
            values = [Summary.Value(tag=key, simple_value=value) for key, value in numbers(record).items()]
            writer.add_event(Event(wall_time=time.time(), step=int(record["epoch"]), summary=Summary(value=values)))
        self.open[run.folder] = writer, len(run.records)
        if run.state == "ended":
            for title, content in media().images.items():
                image = Summary.Value(tag=title, image=Summary.Image(encoded_image_string=content))
                step = int(run.records[-1]["epoch"]) if run.records else 0
                writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=[image])))
        writer.flush()

    def conclude(self) -> None:
        """Nothing: it knows of runs alone."""

    def problem(self, reason: str) -> None:
        """Nothing: the log of the mirroring process has it."""


def _hyperparameters(run: Tracked) -> Any:
    """For TensorBoard's own table of settings."""
    from tensorboard.plugins.hparams import summary_v2

    plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in run.settings.items()}
    return summary_v2.hparams_pb(plain)


class Mlflow:
    """Runs of an experiment on an MLflow server, epochs as steps; each says its folder in the tag raynn.folder, by
    which it is found again.
    """

    name = "MLflow"

    def __init__(self, settings: MlflowSettings) -> None:
        from mlflow.tracking import MlflowClient

        self.settings, self.client = settings, MlflowClient(settings.uri)
        self.open: dict[Path, tuple[str, int]] = {}  # run ids, and the epochs they have

    def update(self, run: Tracked, media: Callable[[], Media]) -> None:
        """Adds the epochs that are new, and at the end the test metrics and the images."""
        from mlflow.entities import Metric

        if run.folder not in self.open:
            self.open[run.folder] = self._found(run) or (self._created(run), 0)
        run_id, known = self.open[run.folder]
        for record in run.records:
            if int(record["epoch"]) > known:
                now_ms, known = int(time.time() * 1000), int(record["epoch"])
                metrics = [Metric(key, value, now_ms, known) for key, value in numbers(record).items()]
                metrics.append(Metric("epoch", known, now_ms, known))  # last: what it says of an epoch, all is there
                for start in range(0, len(metrics), MLFLOW_METRICS):
                    self.client.log_batch(run_id, metrics=metrics[start : start + MLFLOW_METRICS])
                self.open[run.folder] = run_id, known
        for key, value in run.summary.items() if run.state == "ended" else ():
            if isinstance(value, float | int) and key.startswith("test/"):
                self.client.log_metric(run_id, key, value, step=known)
        if run.state == "ended":
            self._show(run_id, media())
        states = {"ended": "FINISHED", "failed": "FAILED", "interrupted": "KILLED", "paused": "SCHEDULED"}
        self.client.update_run(run_id, status=states.get(run.state, "RUNNING"))

    def conclude(self) -> None:
        """Nothing: it knows of runs alone."""

    def problem(self, reason: str) -> None:
        """Nothing: the log of the mirroring process has it."""

    def _show(self, run_id: str, media: Media) -> None:
        from PIL import Image

        for title, content in media.images.items():
            name = "".join(c if c.isalnum() else "_" for c in title)
            self.client.log_image(run_id, Image.open(io.BytesIO(content)), artifact_file=f"media/{name}.png")

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.settings.experiment)
        return str(found.experiment_id if found else self.client.create_experiment(self.settings.experiment))

    def _found(self, run: Tracked) -> tuple[str, int] | None:
        """The run of an earlier session, and the epochs it has."""
        folder = str(run.folder).replace("'", "")
        runs = self.client.search_runs([self._experiment()], f"tags.`raynn.folder` = '{folder}'", max_results=1)
        return (runs[0].info.run_id, int(runs[0].data.metrics.get("epoch", 0))) if runs else None

    def _created(self, run: Tracked) -> str:
        from mlflow.entities import Param

        tags = {"raynn.folder": str(run.folder).replace("'", ""), "raynn.kind": run.kind}
        tags |= {"raynn.search": run.group} if run.group else {}
        run_id = str(self.client.create_run(self._experiment(), run_name=run.name, tags=tags).info.run_id)
        params = [Param(name, str(value)[:MLFLOW_PARAM_CHARACTERS]) for name, value in run.settings.items()]
        for start in range(0, len(params), MLFLOW_BATCH):
            self.client.log_batch(run_id, params=params[start : start + MLFLOW_BATCH])
        return run_id
