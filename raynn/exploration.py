"""Settings changed while a trial trains: which may be, and by how much.

A distribution is read by its one key, as it is written in a job: {uniform: [lo, hi]}.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from random import Random
from statistics import NormalDist
from typing import Any

from pydantic import BaseModel, JsonValue

FACTORS = (0.8, 1.2)  # Jaderberg et al. 2017, appendix A

_OPEN_SECTIONS = ("regularization", "early_stopping")
_OPEN_KEYS = tuple(
    f"optimization.{key}"
    for key in ("learning_rate", "momentum", "schedule", "warmup_fraction", "plateau_factor", "plateau_patience")
)

Space = Mapping[str, BaseModel]


def may_change(path: str) -> str | None:
    """Why a setting cannot change while a trial trains, so that no population can search it; None where it can."""
    if path.partition(".")[0] in _OPEN_SECTIONS or path in _OPEN_KEYS:
        return None
    sections = ", ".join(f"{section}.*" for section in _OPEN_SECTIONS)
    return (
        f"{path!r} cannot change while a trial trains, as pbt and pb2 would have it: search {sections} or "
        f"{', '.join(_OPEN_KEYS)}, or use another scheduler"
    )


def random_for(seed: int, epochs: int, number: int) -> Random:
    """Random numbers that are a function of the search's seed, the generation (its epoch) and the trial alone.

    Only `random()` is used, whose sequence Python keeps from version to version.
    """
    return Random(f"{seed} {epochs} {number}")


def perturbed(distribution: BaseModel, value: JsonValue, random: Random, resample_probability: float) -> JsonValue:
    """A value near another: a number 1.2 or 0.8 times as large, within the distribution's bounds; of a choice, the
    next or the one before; or, with this probability, one drawn anew.

    Whole numbers and multiples of a step stay so, and move by one where the factor moves them by less.
    """
    anew, side, fresh = random.random(), random.random(), random.random()
    kind, parts = _parts(distribution)
    if kind == "choice":
        if anew < resample_probability or value not in parts:
            return drawn(distribution, fresh)
        return parts[min(max(parts.index(value) + (1 if side < 0.5 else -1), 0), len(parts) - 1)]
    if anew < resample_probability or isinstance(value, bool) or not isinstance(value, int | float):
        return drawn(distribution, fresh)
    up = side < 0.5
    moved = value * FACTORS[up]
    step = {"quniform": parts[-1], "randint": 1, "lograndint": 1}.get(kind, 0)
    if step and abs(moved - value) < step:
        moved = value + math.copysign(step, moved - value or (1 if up else -1))
    return fitted(distribution, moved)


def drawn(distribution: BaseModel, u: float) -> JsonValue:
    """The value at position `u`, in [0, 1), of the distribution: uniform `u` give draws."""
    kind, parts = _parts(distribution)
    if kind == "choice":
        return parts[min(int(u * len(parts)), len(parts) - 1)]
    if kind == "normal":
        return fitted(distribution, NormalDist(*parts).inv_cdf(min(max(u, 1e-9), 1 - 1e-9)))
    lo, hi = parts[:2]
    if kind in ("randint", "lograndint"):
        edges = (lo, hi + 1) if kind == "randint" else (math.log(lo), math.log(hi + 1))
        cut = edges[0] + u * (edges[1] - edges[0])
        return min(int(cut if kind == "randint" else math.exp(cut)), hi)
    if kind == "loguniform":
        return fitted(distribution, math.exp(math.log(lo) + u * math.log(hi / lo)))
    if kind == "quniform":
        return fitted(distribution, lo + parts[2] * math.floor(u * (math.floor((hi - lo) / parts[2] + 1e-9) + 1)))
    return fitted(distribution, lo + u * (hi - lo))


def position(distribution: BaseModel, value: JsonValue) -> float | None:
    """Where in [0, 1] a number lies between the bounds, on the scale it is drawn on; None of what is no number, and of
    choices.
    """
    kind, _ = _parts(distribution)
    if kind == "choice" or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    lo, hi = _bounds(distribution)
    inside = min(max(value, lo), hi)
    if kind.startswith("log"):
        return math.log(inside / lo) / math.log(hi / lo)
    return (inside - lo) / (hi - lo)


def at_position(distribution: BaseModel, place: float) -> JsonValue:
    """The number at a position between the bounds: the inverse of `position`."""
    kind, _ = _parts(distribution)
    lo, hi = _bounds(distribution)
    return fitted(distribution, lo * (hi / lo) ** place if kind.startswith("log") else lo + place * (hi - lo))


def fitted(distribution: BaseModel, value: float) -> float | int:
    """A number moved to the nearest that the distribution has, of six digits where it has all."""
    kind, parts = _parts(distribution)
    lo, hi = _bounds(distribution)
    inside = min(max(value, lo), hi)
    if kind in ("randint", "lograndint"):
        return round(inside)
    if kind == "quniform":
        step = parts[2]
        most = math.floor((hi - lo) / step + 1e-9)
        return float(f"{lo + step * min(round((inside - lo) / step), most):.9g}")
    return min(max(float(f"{inside:.6g}"), lo), hi)


def _bounds(distribution: BaseModel) -> tuple[float, float]:
    kind, parts = _parts(distribution)
    if kind == "normal":
        return parts[0] - 3 * parts[1], parts[0] + 3 * parts[1]
    return parts[0], parts[1]


def _parts(distribution: BaseModel) -> tuple[str, tuple[Any, ...]]:
    kind = next(iter(type(distribution).model_fields))
    return kind, tuple(getattr(distribution, kind))
