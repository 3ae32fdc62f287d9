"""What one search learns from an earlier one: those of its trials whose settings the space has."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from raynn.errors import RunError
from raynn.jobfile import Document
from raynn.ledger import FILE, Ledger, Trial, value_at
from raynn.search import SearchSettings
from raynn.space import Space, value_at_path


def earlier_trials(folder: Path, space: Space, search: SearchSettings) -> list[Trial]:
    """The trials of the search in `folder` that have ended, have the metric and lie in the space, settings that they
    did not vary taken from that search's job.

    Raises:
        RunError: the folder holds no search, or none of its trials fits.
    """
    journal, job_file = folder / FILE, folder / "job.yaml"
    if not journal.exists() or not job_file.exists():
        raise RunError(
            f"search.warm_start = {str(folder)!r}: no {FILE} and job.yaml there; name the folder of a search"
        )
    with TemporaryDirectory() as scratch:  # to open a journal mends its end, and this one may still be written
        copied = Path(scratch) / FILE
        shutil.copyfile(journal, copied)
        trials = Ledger(copied).trials
    tree = Document.read(job_file).root.plain()
    assert isinstance(tree, dict)
    found = [trial for trial in trials if _fits(trial, tree, space, search)]
    if not found:
        raise RunError(
            f"search.warm_start = {str(folder)!r}: none of its {len(trials)} trials has ended with {search.metric} and "
            "settings that search.space has; widen the space, or remove warm_start"
        )
    return found


def _fits(trial: Trial, tree: dict[str, Any], space: Space, search: SearchSettings) -> bool:
    """Whether the trial says something; its settings are then completed."""
    if not trial.ended or trial.origin == "repeat":
        return False
    if value_at(trial, trial.epochs, search.metric, search.direction) is None and trial.status != "failed":
        return False
    settings = {}
    for name in space.names:
        try:
            settings[name] = trial.settings_now[name] if name in trial.settings_now else value_at_path(tree, name)
        except KeyError:
            return False
    trial.settings, trial.changes = space.active(settings), []
    return space.contains(trial.settings)
