"""What a distribution of a search is: an inverse cumulative distribution function, and the way back.

`draw` turns uniform numbers in [0, 1) into draws; `position` leads from a value to a number that draws it, so an
algorithm that works in the unit cube serves every kind. Real numbers are drawn with six digits.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator

from pydantic import JsonValue

from raynn.settings import Settings

DIGITS = 6


def number_of(value: JsonValue) -> float | None:
    """A number as it is; None of anything else, true and false among them."""
    return None if isinstance(value, bool) or not isinstance(value, int | float) else float(value)


class Distribution(Settings):
    """What all kinds answer."""

    @abstractmethod
    def draw(self, u: float) -> JsonValue:
        """The value at `u` in [0, 1): draws, for uniform `u`."""

    @abstractmethod
    def position(self, value: JsonValue) -> float:
        """A number in [0, 1] that draws `value`, of those that do the middle one; for values that it contains."""

    @abstractmethod
    def nearest(self, value: JsonValue) -> JsonValue:
        """The value nearest to a number; of what is no number, and of a choice, itself."""

    @property
    @abstractmethod
    def outermost(self) -> tuple[JsonValue, ...]:
        """The values that must fit for all draws to fit: the bounds, or each choice."""

    @property
    def count(self) -> float:
        """Different values that it draws; infinite for real numbers."""
        return math.inf

    @property
    def real(self) -> float | None:
        """A number with a fraction that it may draw; None where it draws none."""
        return None

    def values(self) -> Iterator[JsonValue]:
        """All values, in order, of a distribution with a finite count."""
        raise TypeError(f"{type(self).__name__} draws real numbers, which have no list")

    def contains(self, value: JsonValue) -> bool:
        """Whether `value` is among the draws, to rounding."""
        nearest = self.nearest(value)
        a, b = number_of(nearest), number_of(value)
        if a is None or b is None:
            return False
        whole = isinstance(nearest, int) == isinstance(value, int) or not isinstance(nearest, int)
        return whole and math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


class Real(Distribution):
    """A real number between bounds, on a scale of its own."""

    @property
    @abstractmethod
    def interval(self) -> tuple[float, float]:
        """The bounds, both included."""

    @abstractmethod
    def _quantile(self, u: float) -> float: ...

    @abstractmethod
    def _cumulative(self, value: float) -> float: ...

    def draw(self, u: float) -> JsonValue:
        """The quantile at `u`, of six digits."""
        lo, hi = self.interval
        return lo if u <= 0 else hi if u >= 1 else self.nearest(float(f"{self._quantile(u):.{DIGITS}g}"))

    def position(self, value: JsonValue) -> float:
        """The share of draws below `value`."""
        number = number_of(self.nearest(value))
        assert number is not None, f"{value!r} is no number"
        return min(max(self._cumulative(number), 0.0), 1.0)

    def nearest(self, value: JsonValue) -> JsonValue:
        """The value, moved between the bounds."""
        number, (lo, hi) = number_of(value), self.interval
        return value if number is None else min(max(number, lo), hi)

    @property
    def outermost(self) -> tuple[JsonValue, ...]:
        """The bounds."""
        return self.interval

    @property
    def real(self) -> float | None:
        """Between the bounds, of no round number."""
        lo, hi = self.interval
        return lo + (hi - lo) / math.pi


class Stepped(Distribution):
    """A number among lo, lo + step, ... up to hi, equally likely or, on a logarithmic scale, as its cell is wide."""

    @property
    @abstractmethod
    def steps(self) -> tuple[float, float, float]:
        """lo, hi, step."""

    @property
    def logarithmic(self) -> bool:
        """Whether value v is as likely as log((v + step) / v) is large."""
        return False

    @property
    def count(self) -> float:
        """From lo to hi."""
        lo, hi, step = self.steps
        return math.floor((hi - lo) / step + 1e-9) + 1

    def at(self, index: int) -> JsonValue:
        """The value of this index, from 0."""
        lo, _, step = self.steps
        return lo + index * step if isinstance(lo, int) else float(f"{lo + index * step:.9g}")

    def index(self, value: JsonValue) -> int:
        """The index of the value nearest to a number."""
        number, (lo, _, step) = number_of(value), self.steps
        assert number is not None, f"{value!r} is no number"
        return min(max(round((number - lo) / step), 0), int(self.count) - 1)

    def draw(self, u: float) -> JsonValue:
        """The value in whose cell `u` lies."""
        lo, _, step = self.steps
        index = u * self.count
        if self.logarithmic:
            index = lo * math.expm1(u * math.log1p(self.count * step / lo)) / step
        return self.at(min(max(int(index), 0), int(self.count) - 1))

    def position(self, value: JsonValue) -> float:
        """The middle of its cell."""
        lo, _, step = self.steps
        middle = self.index(value) + 0.5
        if self.logarithmic:
            return math.log1p(middle * step / lo) / math.log1p(self.count * step / lo)
        return middle / self.count

    def nearest(self, value: JsonValue) -> JsonValue:
        """The nearest value."""
        return value if number_of(value) is None else self.at(self.index(value))

    def values(self) -> Iterator[JsonValue]:
        """From lo up to hi."""
        return map(self.at, range(int(self.count)))

    @property
    def outermost(self) -> tuple[JsonValue, ...]:
        """The bounds; hi even where no step meets it."""
        return self.steps[:2]

    @property
    def real(self) -> float | None:
        """Between the bounds, of no round number; None of integers."""
        lo, hi, _ = self.steps
        return None if isinstance(lo, int) else lo + (hi - lo) / math.pi
