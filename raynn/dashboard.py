"""A run in Weights & Biases: the real client, told by whoever mirrors a run folder.

One W&B run a run or trial, its id kept in the run folder, so that whoever goes on with it appends. What the server has
is asked of the server itself: a run that is resumed says at which step, and earlier epochs are not sent again.
"""

from __future__ import annotations

import io
import secrets
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raynn.feeds import Media, Tracked, has_ended, is_search
from raynn.folder import write_json
from raynn.mirrors import numbers
from raynn.sweeps import SweepState, arrive, conclude
from raynn.tracking import STATE, Mode, WandbSettings, read_state

INIT_TIMEOUT_S = 30.0
MAX_CLASSES = 50  # of a confusion matrix that can be read


class Dashboard:
    """Runs in W&B. Online each is sent as it grows; offline each is written once, whole, when nobody works on it any
    more, so that one file holds its history however often it was paused or resumed.

    Args:
        folder: of a run, or of a search, which arrives as a sweep.
        settings: the job's.
        mode: online or offline.
    """

    name = "W&B"

    def __init__(self, folder: Path, settings: WandbSettings, mode: Mode) -> None:
        self.folder, self.settings, self.mode = folder, settings, mode
        self.open: dict[Path, tuple[Any, int, int]] = {}  # W&B runs, epochs and changes they have
        self.known: dict[Path, tuple[int, str, bool]] = {}  # epochs, state, whether sent whole
        self.lock = threading.Lock()  # one begins at a time
        self.state = {key: value for key, value in read_state(folder).items() if key != "problem"}
        self.state |= {"mode": mode}

    def update(self, run: Tracked, media: Callable[[], Media]) -> None:
        """Sends, or writes, what is new."""
        if self._is_sent(run):
            self._note(run, True)
            return
        self._note(run, False)
        if self.mode == "offline" and not run.over:
            return
        self._log(run)
        if run.over:
            self._finish(run, media())
            self._note(run, True)

    def conclude(self) -> None:
        """Says there that the search has ended, if it has; one that was interrupted goes on being expected."""
        if self.mode == "online" and is_search(self.folder) and has_ended(self.folder) and self.state.get("sweep"):
            state = conclude(self.settings, SweepState.of(self.state))
            with self.lock:
                self.state |= state.to_dict()
                self.state.pop("problem", None)
                self._write()

    def problem(self, reason: str) -> None:
        """Says, to whoever reads the folder, why something is not sent."""
        with self.lock:
            self.state["problem"] = reason
            self._write()

    def _is_sent(self, run: Tracked) -> bool:
        """Whether an earlier session sent all of this."""
        before = read_state(run.folder).get("whole") if run.over and run.folder not in self.open else None
        if before is None or run.winner_of is not None:
            return before == self._whole(run)
        return before[:3] == self._whole(run)  # one that has won an earlier, shorter search stays as it is

    def _whole(self, run: Tracked) -> list[Any]:
        """What a state file says of a run of which all is sent."""
        won = [] if run.winner_of is None else [run.winner_of]
        return [self.mode, len(run.records), run.state, *won]

    def _log(self, run: Tracked) -> None:
        if run.folder not in self.open:
            wandb_run = self._begun(run)
            self.open[run.folder] = wandb_run, max(0, wandb_run.starting_step - 1), 0
        wandb_run, epochs, changes = self.open[run.folder]
        for record in run.records:
            epoch = int(record["epoch"])
            row: dict[str, Any] = {"epoch": epoch} | numbers(record)
            while changes < len(run.changes) and run.changes[changes].after_epoch < epoch:
                change = run.changes[changes]
                wandb_run.config.update(change.settings, allow_val_change=True)
                row["donor"] = change.donor  # where the curve goes on from another trial's weights
                changes += 1
            if epoch > epochs:
                wandb_run.log(row, step=epoch, commit=True)
                epochs = epoch
            self.open[run.folder] = wandb_run, epochs, changes

    def _begun(self, run: Tracked) -> Any:
        import wandb

        with self.lock:
            sweep_id = None
            # the winner, trained once more on more rows, is no trial of the sweep
            if self.mode == "online" and is_search(self.folder) and run.kind != "winner":
                sweep_id = self._sweep().sweep
            offline = self.mode == "offline"
            wandb_run = wandb.init(
                project=self.settings.project,
                entity=self.settings.entity,
                tags=[*self.settings.tags, *run.tags],
                name=run.name,
                group=run.group,
                job_type=run.job_type or run.kind,
                id=self._id(run.folder),
                config=dict(run.settings),
                resume=None if offline else "allow",
                dir=run.folder,
                mode="offline" if offline else "online",
                reinit="create_new",
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    init_timeout=INIT_TIMEOUT_S,
                    sweep_id=sweep_id,
                    # this process is not the one that trains
                    x_disable_stats=True,
                    x_disable_meta=True,
                    disable_git=True,
                    save_code=False,
                ),
            )
            if not offline and run.folder == self.folder:
                self.state["url"] = wandb_run.url
        wandb_run.define_metric("epoch")
        wandb_run.define_metric("*", step_metric="epoch")
        return wandb_run

    def _id(self, folder: Path) -> str:
        """Of a run, for ever."""
        path = folder / "wandb_id"
        if not path.exists():
            path.write_text(secrets.token_hex(4))
        return path.read_text()

    def _sweep(self) -> SweepState:
        """The search as a sweep, made when its first trial begins."""
        state = arrive(self.folder, self.settings, SweepState.of(self.state))
        self.state |= state.to_dict()
        self._write()
        return state

    def _finish(self, run: Tracked, media: Media) -> None:
        import wandb

        wandb_run, epochs, _ = self.open[run.folder]
        if self.settings.log_model and run.shown and (run.folder / "model").exists():
            artifact = wandb.Artifact(_artifact_name(run), type="model", metadata=dict(run.summary))
            artifact.add_dir(str(run.folder / "model"))
            artifact = wandb_run.log_artifact(artifact)
            if self.mode == "online":
                artifact.wait()  # raises where it did not arrive
        if shown := _shown(media):
            wandb_run.log(shown | {"epoch": epochs}, commit=True)  # a row of its own: the last epoch's has been sent
        wandb_run.summary.update(dict(run.summary))
        wandb_run.finish(exit_code=0 if run.state in ("ended", "paused") else 1)
        del self.open[run.folder]
        if self.mode == "offline":
            for old in sorted((run.folder / "wandb").glob(f"offline-run-*-{wandb_run.id}"))[:-1]:
                shutil.rmtree(old, ignore_errors=True)

    def _note(self, run: Tracked, whole: bool) -> None:
        """What has been sent, for whoever asks at the end."""
        with self.lock:
            self.known[run.folder] = len(run.records), run.state, whole
            if run.folder != self.folder and whole:
                write_json(run.folder / STATE, {"whole": self._whole(run)})
            elif whole:
                self.state["whole"] = self._whole(run)
            if whole:
                self.state.pop("problem", None)
            self._write()

    def _write(self) -> None:
        sent = sum(whole for _, _, whole in self.known.values())
        write_json(self.folder / STATE, self.state | {"runs": len(self.known), "sent": sent})


def _artifact_name(run: Tracked) -> str:
    """Of a search one name: each winner, as the search is extended, is a version of it."""
    name = f"{run.group or run.name}-model"
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def warm_up() -> None:
    """Loads the client and starts its own process."""
    import wandb

    wandb.setup()


def _shown(media: Media) -> dict[str, Any]:
    """As W&B's own kinds of media."""
    import wandb
    from PIL import Image

    row: dict[str, Any] = {
        f"media/{title}": wandb.Image(Image.open(io.BytesIO(content)), caption=title)
        for title, content in media.images.items()
    }
    if media.classes is not None and len(media.classes[0]) <= MAX_CLASSES:
        labels, actual, predicted = media.classes
        row["media/confusion"] = wandb.plot.confusion_matrix(
            y_true=list(actual), preds=list(predicted), class_names=list(labels)
        )
    for title, (actual_H, forecast_H) in media.curves.items():
        steps = list(range(1, len(actual_H) + 1))
        row[f"media/{title}"] = wandb.plot.line_series(
            xs=steps, ys=[list(actual_H), list(forecast_H)], keys=["actual", "forecast"], title=title, xname="step"
        )
    if media.texts:
        row["media/texts"] = wandb.Table(columns=["text"], data=[[text] for text in media.texts])
    return row
