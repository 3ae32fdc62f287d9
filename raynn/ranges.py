"""Over which range a search tries a setting for which the job gives none, and where a setting means anything."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from raynn.distributions import (
    ChoiceSettings,
    DistributionSettings,
    LoguniformSettings,
    RandintSettings,
    UniformSettings,
)
from raynn.knobs import KnobSpec
from raynn.networks import NETWORKS
from raynn.problems import show
from raynn.regularization import knob_specs
from raynn.rules import RULES, SECTION_KEYS

SECTIONS = ("regularization", "optimization", "early_stopping")

# Of `regularization` the table of knobs says it, of `early_stopping` that of rules.
RANGES: dict[str, DistributionSettings] = {
    "optimization.learning_rate": LoguniformSettings(loguniform=(1e-4, 3e-2)),
    "optimization.momentum": UniformSettings(uniform=(0.5, 0.99)),
    "optimization.warmup_fraction": ChoiceSettings(choice=(0.0, {"uniform": [0.02, 0.3]})),
    "optimization.plateau_factor": UniformSettings(uniform=(0.1, 0.8)),
    "optimization.plateau_patience": RandintSettings(randint=(1, 6)),
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
    ranges = _of_regularization(tree, columns) | RANGES | _of_stopping(tree)
    if name in SECTIONS:
        return {path: each for path, each in ranges.items() if path.startswith(f"{name}.")}
    section, _, key = name.partition(".")
    if section == "regularization" and key in knob_specs() and (each := knob_specs()[key].search_with_off) is not None:
        return {name: each}
    return {name: ranges[name]} if name in ranges else {}


def reached_when(path: str) -> str | None:
    """The expression without which a setting has no effect, whatever its value; None where there is none."""
    section, _, key = path.partition(".")
    if section == "regularization" and key in knob_specs():
        return _knob_reached_when(knob_specs()[key])
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


def _of_regularization(tree: Mapping[str, Any], columns: Iterable[str] | None) -> dict[str, DistributionSettings]:
    """The ranges of the knobs that are defined for the job. Where one of a group is on in the job itself, the others,
    beside which it could not stand, are left alone.
    """
    own, specs = tree.get("regularization", {}), knob_specs()
    busy = {spec.knob.group: name for name, spec in specs.items() if spec.knob.group and spec.is_on(own.get(name))}
    found = {}
    for name, spec in specs.items():
        distribution = spec.search_with_off
        if distribution is None or busy.get(spec.knob.group, name) != name:
            continue
        differ = columns is None or "sequence" in columns  # sequences, in length: they may
        if why_ignored(f"regularization.{name}", tree, columns) is None and not (spec.knob.one_length and differ):
            found[f"regularization.{name}"] = distribution
    return found


def _knob_reached_when(spec: KnobSpec) -> str | None:
    """A knob that changes another is drawn where that is on, and one of a group where those before it are off."""
    specs = knob_specs()
    before = list(specs)[: list(specs).index(spec.name)]
    texts = [f"regularization.{spec.knob.when} != {show(specs[spec.knob.when].off)}"] if spec.knob.when else []
    if spec.knob.group:
        others = [name for name in before if specs[name].knob.group == spec.knob.group]
        texts += [f"regularization.{name} == {show(specs[name].off)}" for name in others]
    return " and ".join(texts) or None


def why_ignored(path: str, tree: Mapping[str, Any], columns: Iterable[str] | None = None) -> str | None:
    """Why a setting has no effect on the job's network, whatever its value; None where it may have."""
    section, _, key = path.partition(".")
    if section != "regularization" or key not in knob_specs():
        return None
    spec, kind = knob_specs()[key], tree["network"]["kind"]
    network = NETWORKS[kind]
    tasks = (tree["task"],) if tree.get("task") else tuple(task for task in network.tasks if task in spec.knob.tasks)
    if not tasks:
        return f"a network of kind {kind!r} is for {' and '.join(network.tasks)}, where it has no meaning"
    if spec.knob.needs and not set(spec.knob.needs) & set(network.inputs):
        return f"a network of kind {kind!r} reads no {' or '.join(spec.knob.needs)} columns, which it changes"
    kinds = spec.knob.needs if columns is None else tuple(columns)
    settings = network.settings.model_validate_json(json.dumps(tree["network"]))
    reason = spec.misuse(kind, settings, tasks[0], kinds)
    return None if reason is None else reason.strip().rpartition(";")[0]
