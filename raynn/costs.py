"""What each regularizer costs a training step, as `benchmarks/regularizers.py` has measured it: costs.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

FILE = "costs.json"


def measurements() -> list[dict[str, Any]]:
    """One a machine: `hardware`, `date`, `torch`, `n` (repeats), `steps`, `cpus`, `load` (before and after) and
    `ratios`: by knob and kind of network, the median of step time with it over that without, and its quartiles.
    """
    found: list[dict[str, Any]] = json.loads((files("raynn") / FILE).read_text())
    return found


def lines_of(measurement: Mapping[str, Any]) -> list[str]:
    """A measurement as text: where from, and a line a knob, the dearest first."""
    ratios = {knob: found for knob, found in measurement["ratios"].items() if found}
    width = max(map(len, ratios))
    order = sorted(ratios, key=lambda knob: -max(each["ratio"] for each in ratios[knob].values()))
    before, after = measurement["load"]
    return [
        f"step time over that without, {measurement['hardware']}, {measurement['date']}, torch {measurement['torch']}, "
        f"median of n = {measurement['n']} (load {before:g} to {after:g} on {measurement['cpus']} CPUs)",
        *(f"  {knob:<{width}}  {_shown(ratios[knob])}" for knob in order),
    ]


def _shown(found: Mapping[str, Mapping[str, float]]) -> str:
    return ", ".join(f"{kind} {each['ratio']:.2f}" for kind, each in found.items())
