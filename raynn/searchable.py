"""What is wrong with a search: settings that cannot be searched, values that do not fit them, rules that never hold."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from random import Random
from typing import Any

from pydantic import JsonValue

from raynn.distributions import ChoiceSettings, kind_of
from raynn.expressions import Expression
from raynn.metrics import metric_problem
from raynn.problems import Path, Problem, dotted, hinted, show
from raynn.ranges import SECTIONS, default_ranges, why_ignored
from raynn.scales import Distribution
from raynn.schedulers import space_problems
from raynn.search import COSTS, SearchSettings
from raynn.space import Space, conditions, expanded, ordered, unreached, value_at_path, written

TRIED = 1000  # draws, of which one at least has to meet the constraints

# A problem of a job, and other settings that have a part in it.
Relation = tuple[Problem, tuple[str, ...]]


@dataclass(frozen=True)
class Searched:
    """What the checks ask of a job.

    Attributes:
        tree: the job, plain, without its search.
        split: the path of a dotted name.
        problems: all that is wrong with a tree in the place of the job's own.
        not_searched: what a search may not vary, and why: whole sections, or one key.
    """

    search: SearchSettings
    tree: dict[str, Any]
    split: Callable[[str], Path]
    problems: Callable[[dict[str, Any]], list[Relation]]
    not_searched: Mapping[str, str]

    @cached_property
    def axes(self) -> dict[str, Distribution]:
        """The distributions, defaults written out."""
        return expanded(self.search, self.tree)

    @cached_property
    def settings(self) -> list[str]:
        """The settings that a search may vary."""
        return [name for name in _leaves(self.tree) if not any(within(name, taboo) for taboo in self.not_searched)]

    @cached_property
    def own_problems(self) -> set[tuple[str, tuple[str, ...]]]:
        """What is wrong with the job before anything is varied."""
        return {(str(problem), also) for problem, also in self.problems(self.tree)}

    def where(self, name: str) -> str:
        """The key of the space that a setting comes from."""
        if not isinstance(self.search.space, dict):
            return "search.space"
        owner = name if name in self.search.space else max((k for k in self.search.space if within(name, k)), key=len)
        return f"search.space.{owner}"

    def value_of(self, name: str) -> JsonValue:
        """The job's own value; KeyError where there is no such setting."""
        value: JsonValue = value_at_path(self.tree, name)
        return value


def search_problems(job: Searched) -> Iterator[tuple[str, str]]:
    """Each problem: dotted path, and what is wrong there, with the way out."""
    yield from _objective_problems(job)
    found = list(_space_problems(job))
    if not found and not job.axes:
        found.append(("search.space", "nothing is left to search: give a setting a distribution"))
    found += _rule_problems(job)
    yield from found
    if not found:
        for name, message in space_problems(job.search.scheduler, job.axes):
            yield job.where(name) if name else "search.space", message
        yield from _algorithm_problems(job)
        yield from _never_met(job)


def within(name: str, ancestor: str) -> bool:
    """Whether a dotted name is another or lies below it."""
    return name == ancestor or name.startswith(f"{ancestor}.")


def _objective_problems(job: Searched) -> Iterator[tuple[str, str]]:
    task = job.tree.get("task")
    if message := metric_problem(job.search.metric, task):
        yield "search.metric", message
    told = {job.search.metric}
    for objective in job.search.objectives:
        if objective.metric in told:
            yield "search.objectives", f"{objective.metric!r} is an objective twice: remove one"
        elif objective.metric not in COSTS and "/" not in objective.metric:
            text = f"{objective.metric!r} must be <split>/<quantity>, such as 'val/loss', or one of {', '.join(COSTS)}"
            yield "search.objectives", hinted(text, objective.metric, COSTS)
        elif objective.metric not in COSTS and (message := metric_problem(objective.metric, task)):
            yield "search.objectives", f"{objective.metric!r}: {message}"
        told.add(objective.metric)


def _space_problems(job: Searched) -> Iterator[tuple[str, str]]:
    for name, given in written(job.search).items():
        if isinstance(given, Distribution):
            if message := _not_searchable(job, name) or _without_effect(job, name):
                yield job.where(name), message
            else:
                for message in _misfits(job, name, given):
                    yield f"{job.where(name)}.{kind_of(given)}", message
        elif given == "default":
            if message := _no_default(job, name):
                yield job.where(name), message
        elif message := _not_searchable(job, name):
            yield job.where(name), message


def _no_default(job: Searched, name: str) -> str | None:
    """Why a setting or a section has no default to search, or None where it has."""
    if name in SECTIONS:
        return None
    if default_ranges(name, job.tree):
        return _without_effect(job, name)
    known = [*SECTIONS, *(path for section in SECTIONS for path in default_ranges(section, job.tree))]
    text = f"there is no default range for {name!r}: give a distribution, or one of {', '.join(known)}"
    return hinted(text, name, known)


def _not_searchable(job: Searched, name: str) -> str | None:
    """Why a dotted path cannot be searched, or None where it can."""
    path = [str(step) for step in job.split(name)]
    for length in range(1, len(path) + 1):
        reason = job.not_searched.get(".".join(path[:length]))
        if reason:
            return f"{'.'.join(path[:length])!r} cannot be searched: {reason}"
    try:
        value = job.value_of(name)
    except KeyError:
        return _unknown(job, name)
    return f"{name!r} is a section: name one of its keys, or write `default`" if isinstance(value, dict) else None


def _unknown(job: Searched, name: str) -> str:
    by_key = {other.rpartition(".")[2]: other for other in job.settings}
    last = name.rpartition(".")[2]
    near = get_close_matches(last, by_key, n=1)
    # A key of the same name elsewhere, else the nearest path, else the nearest key.
    nearest = by_key.get(last) or next(
        iter(get_close_matches(name, job.settings, n=1) or map(by_key.__getitem__, near)), None
    )
    text = f"there is no setting {name!r} with a network of kind {job.tree['network']['kind']!r}"
    return f"{text}. Did you mean {nearest!r}?" if nearest else text


def _without_effect(job: Searched, name: str) -> str | None:
    """Why a setting changes nothing, whatever its value; None where it may."""
    if message := why_ignored(name, job.tree):
        return message
    reach = next(unreached(name, job.tree, job.axes), None)
    if reach is None:
        return None
    own = {other: job.value_of(other) for other in reach.names}
    shown = " and ".join(f"{other} = {show(value)}" for other, value in own.items())
    return f"has no effect: {shown}, and it is used where {reach.text}; set that, or search it as well"


def _misfits(job: Searched, name: str, distribution: Distribution) -> Iterator[str]:
    """What a distribution draws that its setting does not take: the job is validated with the values put in."""
    real = distribution.real
    if real is not None and any(problem.kind == "int_type" for problem in _problems_with(job, name, real)):
        yield f"draws real numbers, and {name} takes integers: use randint or lograndint"
        return
    told: set[str] = set()
    for value in distribution.outermost:
        for problem in _problems_with(job, name, value):
            own = problem.path == job.split(name)
            reason = problem.message if own else str(problem)
            if reason not in told or isinstance(distribution, ChoiceSettings):
                told.add(reason)
                yield f"{show(value)} does not fit {name}: {reason}"


def _problems_with(job: Searched, name: str, value: JsonValue) -> list[Problem]:
    """The problems that `value` at `name` brings, but for those in which another searched setting has a part."""
    others = [other for other in job.axes if other != name]
    tree = copy.deepcopy(job.tree)
    *path, last = job.split(name)
    inner: Any = tree
    for step in path:
        inner = inner[step]
    inner[last] = value
    return [
        problem
        for problem, also in job.problems(tree)
        if (str(problem), also) not in job.own_problems
        and not any(within(other, dotted(problem.path)) for other in others)
        and not {dotted(problem.path), *also} & set(others)
    ]


def _rule_problems(job: Searched) -> Iterator[tuple[str, str]]:
    """Of conditions and constraints."""
    for name, text in job.search.when.items():
        if name not in job.axes:
            yield f"search.when.{name}", hinted(f"{name!r} is not in search.space", name, job.axes)
        for message in _unknown_names(job, text):
            yield f"search.when.{name}", message
    for text in job.search.constraints:
        names = Expression.parse(text).names
        yield from (("search.constraints", f"{text!r}: {message}") for message in _unknown_names(job, text))
        if not set(names) & job.axes.keys():
            yield "search.constraints", f"{text!r} names no setting of search.space, so no draw could change it"
    try:
        ordered(job.axes, conditions(job.search, job.tree, job.axes))
    except ValueError as circle:
        yield "search.when", f"the conditions of {circle} name each other in a circle: remove one of them"


def _unknown_names(job: Searched, text: str) -> Iterator[str]:
    for name in Expression.parse(text).names:
        try:
            if isinstance(job.value_of(name), dict):
                yield f"{name!r} is a section: name one of its keys"
        except KeyError:
            yield _unknown(job, name)


def _algorithm_problems(job: Searched) -> Iterator[tuple[str, str]]:
    search = job.search
    if search.algorithm == "grid":
        yield from _grid_problems(job)
    if search.algorithm == "cmaes" and search.objectives:
        yield "search.algorithm", "cmaes has one objective: remove search.objectives, or use nsga2, optuna or gp"
    if search.algorithm == "cmaes" and all(isinstance(each, ChoiceSettings) for each in job.axes.values()):
        yield "search.algorithm", "cmaes moves numbers, and the space has choices only: use optuna"
    if search.warm_start is not None and search.algorithm in ("random", "quasi_random", "grid"):
        message = f"algorithm {search.algorithm!r} learns from no trial: remove it, or use optuna, gp, cmaes or nsga2"
        yield "search.warm_start", message


def _grid_problems(job: Searched) -> Iterator[tuple[str, str]]:
    endless = [(name, each) for name, each in job.axes.items() if math.isinf(each.count)]
    for name, distribution in endless:
        kind = kind_of(distribution)
        if isinstance(distribution, ChoiceSettings):
            kind = next(kind_of(inner) for inner in distribution.inner if inner is not None and math.isinf(inner.count))
        named = "" if job.where(name).endswith(name) else f" for {name}"
        yield job.where(name), f"a grid cannot list the values of {kind}{named}: use choice or quniform"
    if endless:
        return
    space = Space.of(job.search, job.tree)
    num = space.count if space.count > 100_000 else sum(1 for _ in space.combinations())
    extra = job.search.first == "job" and not space.contains(space.own_values())
    if num + extra > job.search.trials:
        first = ", and the first trial has the job's own settings" if extra else ""
        yield "search.trials", f"the grid has {num:g} combinations{first}: use {num + extra:g}, or a smaller grid"


def _never_met(job: Searched) -> Iterator[tuple[str, str]]:
    """Constraints that none of many draws meets."""
    if not job.search.constraints:
        return
    space, random = Space.of(job.search, job.tree), Random(0)
    broken: dict[str, int] = {}
    for _ in range(TRIED):
        constraint = space.broken(space.draw([random.random() for _ in space.names]))
        if constraint is None:
            return
        broken[constraint.text] = broken.get(constraint.text, 0) + 1
    text, often = max(broken.items(), key=lambda item: item[1])
    yield (
        "search.constraints",
        f"none of {TRIED} random draws meets them; {text!r} failed {often} times: loosen it, or narrow the "
        "distributions to where it holds",
    )


def _leaves(tree: JsonValue, name: str = "") -> Iterable[str]:
    if not isinstance(tree, dict):
        yield name
    else:
        for key, value in tree.items():
            yield from _leaves(value, f"{name}.{key}" if name else key)
