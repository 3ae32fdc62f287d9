"""Distributions that a search draws settings from: each one key, `{uniform: [0, 0.6]}`."""

from __future__ import annotations

import itertools
import json
import math
from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from statistics import NormalDist
from typing import Annotated, Any

from pydantic import AfterValidator, Field, JsonValue, TypeAdapter, ValidationError

from raynn.scales import Distribution, Real, Stepped

Positive = Annotated[float, Field(gt=0.0)]
PositiveInteger = Annotated[int, Field(ge=1)]

TAIL = 3.0  # standard deviations, beyond which `normal` and `lognormal` draw nothing


def _rising(bounds: tuple[float, ...]) -> tuple[float, ...]:
    if not bounds[0] < bounds[1]:
        raise ValueError("lo must be less than hi")
    return bounds


def _whole_steps(bounds: tuple[float, float, float]) -> tuple[float, float, float]:
    lo, hi, step = bounds
    if step > hi - lo:
        raise ValueError(f"the step must be at most hi - lo = {hi - lo:g}, and is {step:g}")
    return bounds


def _cut_rising(parts: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    mean, sd, lo, hi = parts
    if not lo < hi:
        raise ValueError("lo must be less than hi")
    if hi < mean - 6 * sd or lo > mean + 6 * sd:
        raise ValueError("lo and hi lie more than 6 sd to one side of the mean: nothing would be drawn")
    return parts


def _distinct(values: tuple[JsonValue, ...]) -> tuple[JsonValue, ...]:
    # By repr: 1, 1.0 and true are equal in Python, yet not the same choice.
    written = [repr(value) for value in values]
    again = next((text for i, text in enumerate(written) if text in written[:i]), None)
    if again is not None:
        raise ValueError(f"{again} is given twice")
    return values


def _inner_distributions_fit(values: tuple[JsonValue, ...]) -> tuple[JsonValue, ...]:
    for value in values:
        try:
            inner_distribution(value)
        except ValidationError as error:
            raise ValueError(f"{json.dumps(value)}: {error.errors()[0]['msg']}") from None
    return values


class UniformSettings(Real):
    """A real number, equally likely anywhere from lo to hi."""

    uniform: Annotated[tuple[float, float], AfterValidator(_rising), Field(description="[lo, hi]")]

    @property
    def interval(self) -> tuple[float, float]:
        """As given."""
        return self.uniform

    def _quantile(self, u: float) -> float:
        lo, hi = self.uniform
        return lo + u * (hi - lo)

    def _cumulative(self, value: float) -> float:
        lo, hi = self.uniform
        return (value - lo) / (hi - lo)


class LoguniformSettings(Real):
    """A real number whose logarithm is uniform: as many draws from 1e-4 to 1e-3 as from 1e-3 to 1e-2."""

    loguniform: Annotated[tuple[Positive, Positive], AfterValidator(_rising), Field(description="[lo, hi], above 0")]

    @property
    def interval(self) -> tuple[float, float]:
        """As given."""
        return self.loguniform

    def _quantile(self, u: float) -> float:
        lo, hi = self.loguniform
        return math.exp(math.log(lo) + u * (math.log(hi) - math.log(lo)))

    def _cumulative(self, value: float) -> float:
        lo, hi = self.loguniform
        return (math.log(value) - math.log(lo)) / (math.log(hi) - math.log(lo))


class QuniformSettings(Stepped):
    """A real number among lo, lo + q, lo + 2 q, ... up to hi."""

    quniform: Annotated[
        tuple[float, float, Positive],
        AfterValidator(_rising),
        AfterValidator(_whole_steps),
        Field(description="[lo, hi, q]"),
    ]

    @property
    def steps(self) -> tuple[float, float, float]:
        """As given."""
        lo, hi, step = self.quniform
        return float(lo), float(hi), step


class QloguniformSettings(Stepped):
    """A real number among lo, lo + q, lo + 2 q, ... up to hi, whose logarithm is roughly uniform."""

    qloguniform: Annotated[
        tuple[Positive, Positive, Positive],
        AfterValidator(_rising),
        AfterValidator(_whole_steps),
        Field(description="[lo, hi, q], lo above 0"),
    ]

    @property
    def steps(self) -> tuple[float, float, float]:
        """As given."""
        lo, hi, step = self.qloguniform
        return float(lo), float(hi), step

    @property
    def logarithmic(self) -> bool:
        """Yes."""
        return True


class RandintSettings(Stepped):
    """An integer from lo to hi, hi included."""

    randint: Annotated[tuple[int, int], AfterValidator(_rising), Field(description="[lo, hi], hi included")]

    @property
    def steps(self) -> tuple[int, int, int]:
        """By one."""
        return (*self.randint, 1)


class LograndintSettings(Stepped):
    """An integer from lo to hi, hi included, whose logarithm is roughly uniform."""

    lograndint: Annotated[
        tuple[PositiveInteger, PositiveInteger],
        AfterValidator(_rising),
        Field(description="[lo, hi], hi included, lo at least 1"),
    ]

    @property
    def steps(self) -> tuple[int, int, int]:
        """By one."""
        return (*self.lograndint, 1)

    @property
    def logarithmic(self) -> bool:
        """Yes."""
        return True


class QrandintSettings(Stepped):
    """An integer among lo, lo + q, lo + 2 q, ... up to hi."""

    qrandint: Annotated[
        tuple[int, int, PositiveInteger],
        AfterValidator(_rising),
        AfterValidator(_whole_steps),
        Field(description="[lo, hi, q]"),
    ]

    @property
    def steps(self) -> tuple[int, int, int]:
        """As given."""
        return self.qrandint


class _Bell(Real):
    """A normal distribution, cut at bounds."""

    @property
    @abstractmethod
    def _normal(self) -> tuple[NormalDist, float, float]:
        """The distribution before it is cut, and where."""

    def _quantile(self, u: float) -> float:
        normal, lo, hi = self._normal
        low, high = normal.cdf(lo), normal.cdf(hi)
        return normal.inv_cdf(min(max(low + u * (high - low), 1e-15), 1 - 1e-15))

    def _cumulative(self, value: float) -> float:
        normal, lo, hi = self._normal
        low, high = normal.cdf(lo), normal.cdf(hi)
        return (normal.cdf(value) - low) / (high - low)


class NormalSettings(_Bell):
    """A real number with this mean and standard deviation, drawn within 3 standard deviations of the mean."""

    normal: Annotated[tuple[float, Positive], Field(description="[mean, sd], sd above 0")]

    @property
    def interval(self) -> tuple[float, float]:
        """mean - 3 sd, mean + 3 sd."""
        mean, sd = self.normal
        return float(f"{mean - TAIL * sd:.9g}"), float(f"{mean + TAIL * sd:.9g}")

    @property
    def _normal(self) -> tuple[NormalDist, float, float]:
        return NormalDist(*self.normal), *self.interval


class TruncatedNormalSettings(_Bell):
    """A real number from lo to hi, as likely there as the normal distribution with this mean and deviation has it."""

    truncated_normal: Annotated[
        tuple[float, Positive, float, float],
        AfterValidator(_cut_rising),
        Field(description="[mean, sd, lo, hi], sd above 0"),
    ]

    @property
    def interval(self) -> tuple[float, float]:
        """As given."""
        return self.truncated_normal[2:]

    @property
    def _normal(self) -> tuple[NormalDist, float, float]:
        mean, sd, lo, hi = self.truncated_normal
        return NormalDist(mean, sd), lo, hi


class LognormalSettings(Real):
    """A real number whose natural logarithm is normal, drawn within 3 standard deviations of the logarithm's mean."""

    lognormal: Annotated[tuple[float, Positive], Field(description="[mean, sd] of the natural logarithm")]

    @property
    def interval(self) -> tuple[float, float]:
        """exp(mean - 3 sd), exp(mean + 3 sd)."""
        lo, hi = NormalSettings(normal=self.lognormal).interval
        return float(f"{math.exp(lo):.9g}"), float(f"{math.exp(hi):.9g}")

    def _quantile(self, u: float) -> float:
        return math.exp(NormalSettings(normal=self.lognormal)._quantile(u))

    def _cumulative(self, value: float) -> float:
        return NormalSettings(normal=self.lognormal)._cumulative(math.log(value))


class ChoiceSettings(Distribution):
    """One of some values, each as likely. In the place of a value may stand a distribution:
    `{choice: [null, {loguniform: [0.1, 10]}]}` is null in half of the draws.
    """

    choice: Annotated[
        tuple[JsonValue, ...],
        AfterValidator(_distinct),
        AfterValidator(_inner_distributions_fit),
        Field(min_length=1, description="values, each of which fits, or distributions of values that fit"),
    ]

    @cached_property
    def inner(self) -> tuple[Distribution | None, ...]:
        """For each choice the distribution that stands in its place, or None."""
        return tuple(inner_distribution(value) for value in self.choice)

    def index(self, value: JsonValue) -> int | None:
        """Which choice a value is, or is drawn from; None of any other."""
        for i, (choice, inner) in enumerate(zip(self.choice, self.inner, strict=True)):
            if inner.contains(value) if inner is not None else _same(choice, value):
                return i
        return None

    def draw(self, u: float) -> JsonValue:
        """The choice in whose cell `u` lies; of a distribution, what it draws where `u` lies in the cell."""
        place = min(max(u, 0.0) * len(self.choice), math.nextafter(len(self.choice), 0))
        inner = self.inner[int(place)]
        return self.choice[int(place)] if inner is None else inner.draw(place - int(place))

    def position(self, value: JsonValue) -> float:
        """The middle of its cell; of a distribution's value, where that lies in the cell."""
        index = self.index(value)
        assert index is not None, f"{value!r} is none of the choices"
        inner = self.inner[index]
        within = 0.5 if inner is None else min(inner.position(value), math.nextafter(1, 0))
        return (index + within) / len(self.choice)

    def nearest(self, value: JsonValue) -> JsonValue:
        """Itself: choices are not near each other."""
        return value

    def contains(self, value: JsonValue) -> bool:
        """Whether it is one of the choices, or drawn by one."""
        return self.index(value) is not None

    @property
    def count(self) -> float:
        """Of choices, and of the values of distributions among them."""
        return sum(1 if inner is None else inner.count for inner in self.inner)

    def values(self) -> Iterator[JsonValue]:
        """The choices in their order."""
        parts = zip(self.choice, self.inner, strict=True)
        return itertools.chain.from_iterable([c] if inner is None else inner.values() for c, inner in parts)

    @property
    def outermost(self) -> tuple[JsonValue, ...]:
        """The choices, and the bounds of distributions among them."""
        parts = zip(self.choice, self.inner, strict=True)
        return tuple(value for c, inner in parts for value in ([c] if inner is None else inner.outermost))

    @property
    def real(self) -> float | None:
        """That of a distribution among the choices."""
        return next((inner.real for inner in self.inner if inner is not None and inner.real is not None), None)


def _same(a: Any, b: Any) -> bool:
    """Equality of values from a file, in which true is not 1, but 1 is 1.0."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


DistributionSettings = (
    UniformSettings
    | LoguniformSettings
    | QuniformSettings
    | QloguniformSettings
    | RandintSettings
    | LograndintSettings
    | QrandintSettings
    | ChoiceSettings
    | NormalSettings
    | LognormalSettings
    | TruncatedNormalSettings
)

KINDS: dict[str, type[Distribution]] = {
    kind: member for member in DistributionSettings.__args__ for kind in member.model_fields
}


def kind_of(distribution: Distribution) -> str:
    """The key that a distribution is written with."""
    return next(iter(type(distribution).model_fields))


def inner_distribution(value: JsonValue) -> Distribution | None:
    """The distribution that is written in the place of a choice; None where it is a value.

    Raises:
        pydantic.ValidationError: a distribution that is none, as one with lo above hi.
    """
    if not isinstance(value, dict) or len(value) != 1 or (kind := next(iter(value))) not in KINDS:
        return None
    return TypeAdapter(KINDS[kind]).validate_json(json.dumps(value), strict=True)
