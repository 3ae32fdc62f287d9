"""The space of a search: which settings it draws, from what, under which conditions, within which constraints."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import JsonValue

from raynn.expressions import Expression
from raynn.ledger import Values
from raynn.ranges import default_ranges, reached_when
from raynn.scales import Distribution
from raynn.search import SearchSettings

# Up to so many combinations a space is listed, so that no setting is tried twice.
LISTED = 1000


@dataclass(frozen=True)
class Space:
    """What is searched. Values hold the settings that are drawn; one whose condition does not hold is not among them,
    and is what the job says.

    Attributes:
        own: the job's own value of every setting that is searched, or named in a condition or constraint.
        axes: distributions by dotted path, each after those that its condition names.
        when: conditions by dotted path.
        constraints: what all values meet.
    """

    own: Mapping[str, JsonValue]
    axes: Mapping[str, Distribution]
    when: Mapping[str, tuple[Expression, ...]]
    constraints: tuple[Expression, ...] = ()

    @classmethod
    def of(
        cls,
        search: SearchSettings,
        tree: Mapping[str, Any],
        columns: Collection[str] | None = None,
        any_length: bool = False,
    ) -> Space:
        """The space of a job's search.

        Args:
            tree: the job, plain, without its search.
            columns: kinds of the features; None where they are not known yet, and all may be there.
            any_length: sequences among the features differ in length.
        """
        axes = expanded(search, tree, columns, any_length)
        when = conditions(search, tree, axes)
        constraints = tuple(map(Expression.parse, search.constraints))
        named = {name for each in (*constraints, *itertools.chain(*when.values())) for name in each.names}
        own = {name: value_at_path(tree, name) for name in sorted({*axes, *named})}
        order = ordered(axes, when)
        return cls(own, {name: axes[name] for name in order}, when, constraints)

    @property
    def names(self) -> tuple[str, ...]:
        """The settings that are searched, in an order in which their conditions can be told."""
        return tuple(self.axes)

    def own_values(self) -> Values:
        """The job's own settings, whether or not the distributions have them."""
        return self.active({name: self.own[name] for name in self.axes})

    def draw(self, u: Mapping[str, float] | Sequence[float]) -> Values:
        """The values at uniform numbers in [0, 1), one for each setting; those that are active."""
        at = u if isinstance(u, Mapping) else dict(zip(self.axes, u, strict=True))
        return self.active({name: distribution.draw(at[name]) for name, distribution in self.axes.items()})

    def is_active(self, name: str, values: Mapping[str, JsonValue]) -> bool:
        """Whether a setting is drawn, given those before it."""
        return all(condition.holds({**self.own, **values}) for condition in self.when.get(name, ()))

    def active(self, values: Mapping[str, JsonValue]) -> Values:
        """Those of the values whose conditions hold."""
        kept: Values = {}
        for name in self.axes:
            if name in values and self.is_active(name, kept):
                kept[name] = values[name]
        return kept

    def settled(self, values: Mapping[str, JsonValue]) -> Values:
        """The values with those whose conditions do not hold at what the job says: what replaces them in a trial that
        trains already, in which leaving them out would leave them as they were.
        """
        active = self.active(values)
        return {name: active.get(name, self.own.get(name, value)) for name, value in values.items()}

    def broken(self, values: Mapping[str, JsonValue]) -> Expression | None:
        """The first constraint that does not hold."""
        if not self.constraints:
            return None
        whole = {**self.own, **values}
        return next((constraint for constraint in self.constraints if not constraint.holds(whole)), None)

    def contains(self, values: Mapping[str, JsonValue]) -> bool:
        """Whether these are all active settings, each with a value that its distribution draws, and as constrained."""
        drawn = self.active({name: values.get(name, self.own[name]) for name in self.axes})
        fits = drawn.keys() == values.keys() and all(self.axes[name].contains(value) for name, value in values.items())
        return fits and self.broken(values) is None

    def nearest(self, values: Mapping[str, JsonValue]) -> Values | None:
        """The values moved into their distributions, those not given being the job's; None where one is no choice."""
        moved: Values = {}
        for name, distribution in self.axes.items():
            if self.is_active(name, moved):
                moved[name] = distribution.nearest(values.get(name, self.own[name]))
                if not distribution.contains(moved[name]):
                    return None
        return moved

    @property
    def count(self) -> float:
        """Combinations of values, those that conditions and constraints leave out among them; infinite for reals."""
        return math.prod(distribution.count for distribution in self.axes.values())

    def combinations(self) -> Iterator[Values]:
        """All combinations that the constraints allow, the last setting varying fastest, none twice."""
        told: set[str] = set()
        for values in itertools.product(*(distribution.values() for distribution in self.axes.values())):
            active = self.active(dict(zip(self.axes, values, strict=True)))
            if len(active) < len(self.axes):  # others differ only in what is not active
                if key(active) in told:
                    continue
                told.add(key(active))
            if self.broken(active) is None:
                yield active

    @cached_property
    def enumerated(self) -> Enumerated:
        """The combinations, each worked out once."""
        return Enumerated(self.combinations())

    @cached_property
    def memory(self) -> dict[str, Any]:
        """What an algorithm has worked out of settings seen before, by `key`: saves time, and changes nothing."""
        return {}

    @cached_property
    def listed(self) -> tuple[Values, ...] | None:
        """All combinations of a small space; None of a large one."""
        return tuple(self.combinations()) if self.count <= LISTED else None


class Enumerated:
    """An iterator's items by place, each asked for once and kept."""

    def __init__(self, items: Iterator[Values]) -> None:
        self._left, self._kept = items, list[Values]()

    def since(self, begin: int) -> Iterator[Values]:
        """The items from a place on."""
        for place in itertools.count(begin):
            self._kept += itertools.islice(self._left, max(0, place + 1 - len(self._kept)))
            if place >= len(self._kept):
                return
            yield self._kept[place]


def key(values: Mapping[str, JsonValue]) -> str:
    """The same text for the same values."""
    return json.dumps(values, sort_keys=True)


def expanded(
    search: SearchSettings,
    tree: Mapping[str, Any],
    columns: Collection[str] | None = None,
    any_length: bool = False,
) -> dict[str, Distribution]:
    """The distributions by dotted path, with defaults written out; what is given for a setting itself wins."""
    axes: dict[str, Distribution] = {}
    given = written(search)
    for name, what in given.items():
        if what == "default":
            axes |= default_ranges(name, tree, columns, any_length)
    for name, what in given.items():
        if what == "keep":
            axes.pop(name, None)
        elif isinstance(what, Distribution):
            axes[name] = what
    while idle := [name for name in axes if name not in given and not has_effect(name, tree, axes)]:
        axes = {name: each for name, each in axes.items() if name not in idle}  # others may hang on these
    return axes


def has_effect(name: str, tree: Mapping[str, Any], searched: Iterable[str]) -> bool:
    """Whether a setting changes anything, or may where what that hangs on is searched as well."""
    return next(unreached(name, tree, searched), None) is None


def unreached(name: str, tree: Mapping[str, Any], searched: Iterable[str]) -> Iterator[Expression]:
    """What a setting hangs on that does not hold in the job, and of which nothing is searched."""
    varied = set(searched)
    for reach in map(Expression.parse, reached_when(name, tree)):
        if not varied & set(reach.names) and not reach.holds({n: value_at_path(tree, n) for n in reach.names}):
            yield reach


def written(search: SearchSettings) -> dict[str, Any]:
    """The space as a mapping, in whichever form it was written."""
    if isinstance(search.space, dict):
        return dict(search.space)
    names = (search.space,) if isinstance(search.space, str) else search.space
    return dict.fromkeys(names, "default")


def conditions(
    search: SearchSettings, tree: Mapping[str, Any], axes: Mapping[str, Distribution]
) -> dict[str, tuple[Expression, ...]]:
    """When each setting is drawn: what the search says, and without what it has no effect, where that is searched."""
    found: dict[str, tuple[Expression, ...]] = {}
    for name in axes:
        given = [Expression.parse(search.when[name])] if name in search.when else []
        reaches = map(Expression.parse, reached_when(name, tree))
        given += [reach for reach in reaches if set(reach.names) & axes.keys()]
        if given:
            found[name] = tuple(given)
    return found


def ordered(axes: Iterable[str], when: Mapping[str, tuple[Expression, ...]]) -> list[str]:
    """The settings, each after those that its condition names.

    Raises:
        ValueError: conditions that name each other in a circle; the settings in it.
    """
    left, order = list(axes), list[str]()
    while left:
        named = {name: {other for each in when.get(name, ()) for other in each.names} for name in left}
        free = [name for name in left if not named[name] & set(left)]
        if not free:
            raise ValueError(", ".join(left))
        order.append(free[0])
        left.remove(free[0])
    return order


def value_at_path(tree: Any, name: str) -> Any:
    """The value at a dotted path, of lists by place; KeyError where there is none. Keys may have dots themselves."""
    if isinstance(tree, list):
        place, _, rest = name.partition(".")
        if not place.isdecimal() or int(place) >= len(tree):
            raise KeyError(name)
        return value_at_path(tree[int(place)], rest) if rest else tree[int(place)]
    if name in tree:
        return tree[name]
    for first in (name[:i] for i, letter in enumerate(name) if letter == "."):
        if isinstance(tree.get(first), Mapping | list):
            return value_at_path(tree[first], name[len(first) + 1 :])
    raise KeyError(name)
