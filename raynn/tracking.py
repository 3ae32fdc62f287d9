"""Where figures go while a run trains: metrics.jsonl always, Weights & Biases when asked."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from raynn.folder import finite
from raynn.settings import Settings


class WandbSettings(Settings):
    """`mode: auto` is online where a key is present in the environment, else offline (files under the run folder)."""

    project: str = "raynn"
    entity: str | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"


class TrackingSettings(Settings):
    """The `tracking` section. Without a `wandb` part, metrics.jsonl alone is written."""

    wandb: WandbSettings | None = None


class Tracker:
    """Writes a run's records, one an epoch; on the first worker only.

    Args:
        folder: the run folder.
        records: epochs already trained, when resuming: the file starts with exactly these.
        settings: the `tracking` section.
        config: the job's settings, for W&B.
        file: the name of the file of records.
    """

    def __init__(
        self,
        folder: Path,
        records: Iterable[Mapping[str, Any]],
        settings: TrackingSettings,
        config: dict[str, Any],
        file: str = "metrics.jsonl",
    ) -> None:
        self.path = folder / file
        self.path.write_text("".join(json.dumps(finite(dict(record))) + "\n" for record in records))
        self.wandb_run: Any = None
        if settings.wandb is not None and settings.wandb.mode != "disabled":
            self.wandb_run = _wandb_run(folder, settings.wandb, config)

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds one epoch."""
        with self.path.open("a") as file:
            file.write(json.dumps(finite(dict(record))) + "\n")
        if self.wandb_run is not None:
            self.wandb_run.log(dict(record), step=int(record["epoch"]))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Ends the run with its final metrics."""
        if self.wandb_run is not None:
            self.wandb_run.summary.update(dict(summary))
            self.wandb_run.finish()


def _wandb_run(folder: Path, settings: WandbSettings, config: dict[str, Any]) -> Any:
    """The W&B run of this folder; its id is kept in the folder, so that a resumed run continues its history."""
    import wandb

    id_file = folder / "wandb_id"
    if not id_file.exists():
        id_file.write_text(secrets.token_hex(4))
    mode = settings.mode
    if mode == "auto":
        mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
    return wandb.init(
        project=settings.project,
        entity=settings.entity,
        tags=list(settings.tags),
        name=folder.name,
        id=id_file.read_text(),
        resume="allow",
        dir=folder,
        mode=mode,
        config=config,
        settings=wandb.Settings(silent=True),
    )
