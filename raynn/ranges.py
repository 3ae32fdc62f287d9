"""Over which range a search tries a setting for which the job gives none, and where a setting means anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from raynn.distributions import (
    ChoiceSettings,
    DistributionSettings,
    LoguniformSettings,
    RandintSettings,
    UniformSettings,
)
from raynn.rules import RULES, SECTION_KEYS


@dataclass(frozen=True)
class Range:
    """What a search draws, and where the setting means anything; empty: everywhere.

    `columns` are kinds of columns of which the features hold one at least.
    """

    distribution: DistributionSettings
    networks: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


_SEES_IMAGES = ("feedforward", "cnn", "image_generator", "custom")

SECTIONS = ("regularization", "optimization", "early_stopping")

RANGES: dict[str, Range] = {
    "regularization.dropout": Range(UniformSettings(uniform=(0.0, 0.6))),
    "regularization.input_dropout": Range(ChoiceSettings(choice=(0.0, {"uniform": [0.02, 0.4]}))),
    "regularization.weight_decay": Range(LoguniformSettings(loguniform=(1e-6, 1e-1))),
    "regularization.label_smoothing": Range(
        ChoiceSettings(choice=(0.0, {"uniform": [0.01, 0.2]})), tasks=("classification", "language_modeling")
    ),
    "regularization.horizontal_flip": Range(
        ChoiceSettings(choice=(0.0, 0.5)), networks=_SEES_IMAGES, columns=("image",)
    ),
    "regularization.crop_padding": Range(RandintSettings(randint=(0, 4)), networks=_SEES_IMAGES, columns=("image",)),
    "regularization.gradient_clip_norm": Range(ChoiceSettings(choice=(None, {"loguniform": [0.1, 10.0]}))),
    "regularization.ema_decay": Range(ChoiceSettings(choice=(None, 0.99, 0.995, 0.999, 0.9995))),
    "optimization.learning_rate": Range(LoguniformSettings(loguniform=(1e-4, 3e-2))),
    "optimization.momentum": Range(UniformSettings(uniform=(0.5, 0.99))),
    "optimization.warmup_fraction": Range(ChoiceSettings(choice=(0.0, {"uniform": [0.02, 0.3]}))),
    "optimization.plateau_factor": Range(UniformSettings(uniform=(0.1, 0.8))),
    "optimization.plateau_patience": Range(RandintSettings(randint=(1, 6))),
}

# Without this a setting has no effect, whatever its value.
_REACHED_WHEN: dict[str, str] = {
    "optimization.momentum": "optimization.optimizer == 'sgd'",
    "optimization.plateau_factor": "optimization.schedule == 'plateau'",
    "optimization.plateau_patience": "optimization.schedule == 'plateau'",
}


def default_ranges(
    name: str, tree: Mapping[str, Any], columns: Iterable[str] | None = None
) -> dict[str, DistributionSettings]:
    """The usual ranges of a section's settings that mean something, or of the one setting, by dotted path.

    Args:
        tree: the job, plain; its network and task say what applies.
        columns: kinds of the features; None where they are not known yet.
    """
    ranges = {path: entry.distribution for path, entry in RANGES.items()} | _of_stopping(tree)
    return {
        path: distribution
        for path, distribution in ranges.items()
        if path == name or (path.startswith(f"{name}.") and why_ignored(path, tree, columns) is None)
    }


def reached_when(path: str) -> str | None:
    """The expression without which a setting has no effect, whatever its value; None where there is none."""
    section, _, key = path.partition(".")
    if section != "early_stopping":
        return _REACHED_WHEN.get(path)
    if rules := [rule for rule, spec in RULES.items() if key in spec.keys]:
        return f"early_stopping.rule in {rules}"
    if key == "factor":
        return "early_stopping.reductions > 0"
    return "early_stopping.rule != 'none'" if key in SECTION_KEYS else None


def _of_stopping(tree: Mapping[str, Any]) -> dict[str, DistributionSettings]:
    """The ranges of the keys that the job's stopping rule uses."""
    keys = {**RULES[tree["early_stopping"]["rule"]].keys, **SECTION_KEYS} if "early_stopping" in tree else {}
    return {f"early_stopping.{key}": distribution for key, distribution in keys.items() if distribution is not None}


def why_ignored(path: str, tree: Mapping[str, Any], columns: Iterable[str] | None = None) -> str | None:
    """Why a setting has no effect on the job's network, whatever its value; None where it may have."""
    entry = RANGES.get(path)
    if entry is None:
        return None
    kind, task = tree["network"]["kind"], tree.get("task")
    if entry.networks and kind not in entry.networks:
        return f"a network of kind {kind!r} ignores it: it is for {', '.join(entry.networks)}"
    if entry.tasks and task is not None and task not in entry.tasks:
        return f"it has no effect on {task}: it is for {' and '.join(entry.tasks)}"
    if entry.columns and columns is not None and not set(columns) & set(entry.columns):
        return f"it changes {' or '.join(entry.columns)} columns, and the features have none"
    return None
