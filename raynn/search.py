"""What a search may vary, and how trials are compared: the `search` section."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue

from raynn.metrics import QUANTITIES
from raynn.schedulers import SchedulerSettings
from raynn.settings import Settings

Positive = Annotated[float, Field(gt=0.0)]
PositiveInteger = Annotated[int, Field(ge=1)]


def _rising(bounds: tuple[float, ...]) -> tuple[float, ...]:
    if not bounds[0] < bounds[1]:
        raise ValueError("lo must be less than hi")
    return bounds


def _whole_steps(bounds: tuple[float, float, float]) -> tuple[float, float, float]:
    lo, hi, step = bounds
    if step > hi - lo:
        raise ValueError(f"the step must be at most hi - lo = {hi - lo:g}, and is {step:g}")
    return bounds


def _distinct(values: tuple[JsonValue, ...]) -> tuple[JsonValue, ...]:
    # By repr: 1, 1.0 and true are equal in Python, yet not the same choice.
    written = [repr(value) for value in values]
    again = next((text for i, text in enumerate(written) if text in written[:i]), None)
    if again is not None:
        raise ValueError(f"{again} is given twice")
    return values


class UniformSettings(Settings):
    """A real number, equally likely anywhere from lo to hi."""

    uniform: Annotated[tuple[float, float], AfterValidator(_rising), Field(description="[lo, hi]")]


class LoguniformSettings(Settings):
    """A real number whose logarithm is uniform: as many draws from 1e-4 to 1e-3 as from 1e-3 to 1e-2."""

    loguniform: Annotated[tuple[Positive, Positive], AfterValidator(_rising), Field(description="[lo, hi], above 0")]


class QuniformSettings(Settings):
    """A real number among lo, lo + q, lo + 2 q, ... up to hi."""

    quniform: Annotated[
        tuple[float, float, Positive],
        AfterValidator(_rising),
        AfterValidator(_whole_steps),
        Field(description="[lo, hi, q]"),
    ]


class RandintSettings(Settings):
    """An integer from lo to hi, hi included."""

    randint: Annotated[tuple[int, int], AfterValidator(_rising), Field(description="[lo, hi], hi included")]


class LograndintSettings(Settings):
    """An integer from lo to hi, hi included, whose logarithm is roughly uniform."""

    lograndint: Annotated[
        tuple[PositiveInteger, PositiveInteger],
        AfterValidator(_rising),
        Field(description="[lo, hi], hi included, lo at least 1"),
    ]


class ChoiceSettings(Settings):
    """One of some values, each as likely."""

    choice: Annotated[
        tuple[JsonValue, ...],
        AfterValidator(_distinct),
        Field(min_length=1, description="the values, each of which fits"),
    ]


class NormalSettings(Settings):
    """A real number with this mean and standard deviation; mean - 3 sd and mean + 3 sd must fit the setting."""

    normal: Annotated[tuple[float, Positive], Field(description="[mean, sd], sd above 0")]


DistributionSettings = (
    UniformSettings
    | LoguniformSettings
    | QuniformSettings
    | RandintSettings
    | LograndintSettings
    | ChoiceSettings
    | NormalSettings
)


def drawn_real(distribution: DistributionSettings) -> float | None:
    """A number with a fraction that it may draw; None where it draws no real numbers."""
    match distribution:
        case UniformSettings(uniform=(lo, hi)) | LoguniformSettings(loguniform=(lo, hi)):
            return lo + (hi - lo) / math.pi
        case QuniformSettings(quniform=(lo, hi, _)):
            return lo + (hi - lo) / math.pi
        case NormalSettings(normal=(mean, sd)):
            return mean + sd / math.pi
    return None


def outermost(distribution: DistributionSettings) -> tuple[JsonValue, ...]:
    """The values that must fit for its draws to fit: each choice, the bounds, or mean - 3 sd and mean + 3 sd."""
    match distribution:
        case ChoiceSettings(choice=values):
            return values
        case NormalSettings(normal=(mean, sd)):
            return (float(f"{mean - 3 * sd:.9g}"), float(f"{mean + 3 * sd:.9g}"))
        case RandintSettings(randint=bounds) | LograndintSettings(lograndint=bounds):
            return bounds
        case UniformSettings(uniform=interval) | LoguniformSettings(loguniform=interval):
            return interval
        case QuniformSettings(quniform=(lo, hi, _)):
            return (lo, hi)


class SearchSettings(Settings):
    """The search of `raynn tune`; `raynn train` ignores it.

    `space` gives settings by dotted path, each with one distribution. `scheduler` says which trials go on, by kind or
    as a section: `{kind: asha, grace_period: 2}`. `mode: auto` knows which way `metric` is better.
    """

    trials: Annotated[int, Field(ge=1)] = 32
    algorithm: Annotated[
        Literal["optuna", "random", "grid"],
        Field(description="grid: every combination of distributions with countable values"),
    ] = "optuna"
    scheduler: Annotated[SchedulerSettings, Field(description="a kind, or a section with its settings")] = "asha"
    concurrent_trials: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    metric: Annotated[str, Field(description="<split>/<quantity>, of train or val")] = "val/loss"
    mode: Literal["auto", "min", "max"] = "auto"
    space: Annotated[dict[str, DistributionSettings], Field(min_length=1, description="dotted path: distribution")]

    @property
    def direction(self) -> Literal["min", "max"]:
        """Which way `metric` is better: `mode`, or where that is auto, what its quantity is."""
        return QUANTITIES[self.metric.partition("/")[2]][0] if self.mode == "auto" else self.mode
