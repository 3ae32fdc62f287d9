"""Settings changed while a trial trains: which may be, and by how much."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from random import Random

from pydantic import JsonValue

from raynn.distributions import ChoiceSettings, kind_of
from raynn.ledger import Values
from raynn.scales import Distribution, Stepped

_LOGARITHMIC = ("loguniform", "qloguniform", "lograndint", "lognormal")
FACTORS = (0.8, 1.2)  # Jaderberg et al. 2017, appendix A

_OPEN_SECTIONS = ("regularization", "early_stopping")
_OPEN_KEYS = tuple(
    f"optimization.{key}"
    for key in ("learning_rate", "momentum", "schedule", "warmup_fraction", "plateau_factor", "plateau_patience")
)

MAX_MOVES = 100  # tried before a trial goes on with the donor's settings, where moves break constraints

Space = Mapping[str, Distribution]
Allowed = Callable[[Values], bool]  # whether settings meet the constraints of a search


def all_are_allowed(values: Values) -> bool:
    """Where there are no constraints."""
    return True


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


def perturbed(distribution: Distribution, value: JsonValue, random: Random, resample_probability: float) -> JsonValue:
    """A value near another: a number 1.2 or 0.8 times as large, within the distribution's bounds; of a choice, the
    next or the one before; or, with this probability, one drawn anew.

    Whole numbers and multiples of a step stay so, and move by one where the factor moves them by less.
    """
    anew, side, fresh = random.random(), random.random(), random.random()
    up = side < 0.5
    if isinstance(distribution, ChoiceSettings):
        index = distribution.index(value)
        if anew < resample_probability or index is None:
            return distribution.draw(fresh)
        if (inner := distribution.inner[index]) is not None:
            return perturbed(inner, value, random, 0.0)
        index = min(max(index + (1 if up else -1), 0), len(distribution.choice) - 1)
        inner = distribution.inner[index]
        return distribution.choice[index] if inner is None else inner.draw(fresh)
    if anew < resample_probability or isinstance(value, bool) or not isinstance(value, int | float):
        return distribution.draw(fresh)
    moved = value * FACTORS[up]
    step = distribution.steps[2] if isinstance(distribution, Stepped) else 0
    if step and abs(moved - value) < step:
        moved = value + math.copysign(step, moved - value or (1 if up else -1))
    return fitted(distribution, moved)


def drawn(distribution: Distribution, u: float) -> JsonValue:
    """The value at position `u`, in [0, 1), of the distribution: uniform `u` give draws."""
    return distribution.draw(u)


def position(distribution: Distribution, value: JsonValue) -> float | None:
    """Where in [0, 1] a number lies between the bounds, on the scale it is drawn on; None of what is no number, and of
    choices.
    """
    if isinstance(distribution, ChoiceSettings) or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    lo, hi = _bounds(distribution)
    inside = min(max(value, lo), hi)
    if kind_of(distribution) in _LOGARITHMIC:
        return math.log(inside / lo) / math.log(hi / lo)
    return (inside - lo) / (hi - lo)


def at_position(distribution: Distribution, place: float) -> JsonValue:
    """The number at a position between the bounds: the inverse of `position`."""
    lo, hi = _bounds(distribution)
    logarithmic = kind_of(distribution) in _LOGARITHMIC
    return fitted(distribution, lo * (hi / lo) ** place if logarithmic else lo + place * (hi - lo))


def fitted(distribution: Distribution, value: float) -> JsonValue:
    """A number moved to the nearest that the distribution has, of six digits where it has all."""
    return distribution.nearest(value if isinstance(distribution, Stepped) else float(f"{value:.6g}"))


def _bounds(distribution: Distribution) -> tuple[float, float]:
    lo, hi = distribution.outermost
    return float(str(lo)), float(str(hi))
