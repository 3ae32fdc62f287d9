"""Over which range a search tries a setting for which the job gives none, and where a setting means anything."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
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
from raynn.regularization import knob_specs
from raynn.rules import RULES, SECTION_KEYS

SECTIONS = ("regularization", "optimization", "early_stopping")

# Beside these: the knobs of raynn.regularization and the rules of raynn.rules, whose tables say what is drawn.
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
    name: str, tree: Mapping[str, Any], columns: Collection[str] | None = None, any_length: bool = False
) -> dict[str, DistributionSettings]:
    """The usual ranges of a section's settings that mean something, or of the one setting, by dotted path.

    Args:
        tree: the job, plain; its network and task say what applies.
        columns: kinds of the features; None where they are not known yet.
        any_length: sequences among the features differ in length.
    """
    ranges = {**_of_regularization(tree), **RANGES, **_of_stopping(tree)}
    return {
        path: distribution
        for path, distribution in ranges.items()
        if path == name or (path.startswith(f"{name}.") and why_ignored(path, tree, columns, any_length) is None)
    }


def reached_when(path: str, tree: Mapping[str, Any]) -> tuple[str, ...]:
    """The expressions without each of which a setting of a job has no effect, or may not be on, whatever its value."""
    section, _, key = path.partition(".")
    if spec := _knob(path):
        return tuple(_knob_reached_when(spec, tree))
    if section != "early_stopping":
        return (_REACHED_WHEN[path],) if path in _REACHED_WHEN else ()
    if rules := [rule for rule, spec in RULES.items() if key in spec.keys]:
        return (f"early_stopping.rule in {rules}",)
    if key == "factor":
        return ("early_stopping.reductions > 0",)
    return ("early_stopping.rule != 'none'",) if key in SECTION_KEYS else ()


def why_ignored(
    path: str, tree: Mapping[str, Any], columns: Collection[str] | None = None, any_length: bool = False
) -> str | None:
    """Why a setting means nothing in a job, whatever its value; None where it may mean something.

    What depends on settings that may be searched as well is in `reached_when`.
    """
    spec = _knob(path)
    if spec is None:
        return None
    kind, needs = tree["network"]["kind"], spec.knob.needs
    network, task = NETWORKS[kind], tree.get("task")
    if needs and not set(needs) & set(network.inputs):
        return f"a network of kind {kind!r} reads no {' or '.join(needs)} columns, which it changes"
    kinds = needs[:1] if columns is None else columns
    reasons = [spec.undefined(kind, each, kinds, any_length) for each in ([task] if task else network.tasks)]
    told = [reason for reason in reasons if reason is not None]
    return told[0].strip() if len(told) == len(reasons) else None


def _of_regularization(tree: Mapping[str, Any]) -> dict[str, DistributionSettings]:
    """The ranges of all knobs: each may be off, but one without which another that is on in the job means nothing."""
    needed = {spec.knob.when for spec in knob_specs().values() if _is_on(spec, tree)}
    found = {
        f"regularization.{name}": spec.search if name in needed else spec.search_with_off
        for name, spec in knob_specs().items()
    }
    return {path: distribution for path, distribution in found.items() if distribution is not None}


def _of_stopping(tree: Mapping[str, Any]) -> dict[str, DistributionSettings]:
    """The ranges of the keys that the job's stopping rule uses."""
    keys = {**RULES[tree["early_stopping"]["rule"]].keys, **SECTION_KEYS} if "early_stopping" in tree else {}
    return {f"early_stopping.{key}": distribution for key, distribution in keys.items() if distribution is not None}


def _knob(path: str) -> KnobSpec | None:
    section, _, name = path.partition(".")
    return knob_specs().get(name) if section == "regularization" else None


def _knob_reached_when(spec: KnobSpec, tree: Mapping[str, Any]) -> Iterator[str]:
    """The settings of the network that a knob needs; its partner on; those before it that exclude it off."""
    for key, value in spec.knob.networks.get(tree["network"]["kind"], {}).items():
        yield f"network.{key} == {_written(value)}"
    specs = knob_specs()
    if partner := spec.knob.when:
        yield f"regularization.{partner} != {_written(specs[partner].off)}"
    # The one that is on in the job is the first to be drawn: of others, what is not drawn is off in the job too.
    order = sorted(specs.values(), key=lambda other: not _is_on(other, tree))
    for other in order[: order.index(spec)]:
        if spec.clashes(other):
            yield f"regularization.{other.name} == {_written(other.off)}"


def _is_on(spec: KnobSpec, tree: Mapping[str, Any]) -> bool:
    """Whether a knob is on in a job; a ramp, which is a mapping there, counts as on."""
    return bool(tree.get("regularization", {}).get(spec.name))


def _written(value: Any) -> str:
    return repr(value) if isinstance(value, str) else json.dumps(value)
