"""A knob against overfitting, described: what it does, who found it, where it is defined, what a search tries.

A knob is a field of the table in raynn.regularization; what stands there is read here. A knob that is set where it
means nothing is an error, never skipped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, get_args

from annotated_types import Ge, Gt, Le, Lt
from pydantic import Field, create_model
from pydantic.fields import FieldInfo

from raynn.distributions import ChoiceSettings, DistributionSettings
from raynn.metrics import Task
from raynn.settings import Settings

TASKS: tuple[Task, ...] = get_args(Task)
COLUMNS = ("numeric", "categorical", "date", "image", "sequence", "text")

# Sections whose keys are `from`, a word that no class body takes, `to` and `over`.
Ramp = create_model(
    "Ramp",
    __base__=Settings,
    __doc__="A strength that moves linearly over the first share `over` of all steps of training, and then stays.",
    **{
        "from": (Annotated[float, Field(ge=0.0, description="before the first step")], ...),
        "to": (Annotated[float, Field(ge=0.0, description="from then on")], ...),
        "over": (Annotated[float, Field(gt=0.0, le=1.0, description="share of all steps")], 1.0),
    },  # type: ignore[call-overload]
)
ShareRamp = create_model(
    "ShareRamp",
    __base__=Ramp,
    __doc__="A share that moves linearly over the first share `over` of all steps of training, and then stays.",
    **{
        "from": (Annotated[float, Field(ge=0.0, lt=1.0, description="before the first step")], ...),
        "to": (Annotated[float, Field(ge=0.0, lt=1.0, description="from then on")], ...),
    },  # type: ignore[call-overload]
)


def value_at(knob: Any, done: float) -> Any:
    """What a knob is when the share `done` of all steps lies behind; of any but a ramp, itself."""
    if not isinstance(knob, Ramp):
        return knob
    first, last = getattr(knob, "from"), knob.to  # type: ignore[attr-defined]
    return first + (last - first) * min(1.0, done / knob.over)  # type: ignore[attr-defined]


def peak(knob: Any) -> Any:
    """The largest value that a knob takes; of any but a ramp, itself."""
    return max(value_at(knob, 0.0), value_at(knob, 1.0)) if isinstance(knob, Ramp) else knob


@dataclass(frozen=True)
class Knob:
    """What the table says of a field beside its range, its default (which is off) and its description.

    Attributes:
        source: paper, and where in it.
        search: what a search draws where the knob is on; None: a search leaves it alone.
        networks: kinds for which it is defined, each with the settings of `network` that it needs; empty: all.
        tasks: for which it is defined.
        needs: kinds of columns of which the features hold one at least; empty: any.
        only: kinds of columns beside which it means nothing.
        one_length: sequences must all be equally long.
        when: another knob that has to be on.
        group: of the knobs with this word at most one may be on.
        excludes: knobs that may not be on beside it.
        always: a search draws a value in every trial; of others it first decides whether they are on.
    """

    source: str
    search: DistributionSettings | None = None
    networks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tasks: tuple[Task, ...] = TASKS
    needs: tuple[str, ...] = ()
    only: tuple[str, ...] = COLUMNS
    one_length: bool = False
    when: str = ""
    group: str = ""
    excludes: tuple[str, ...] = ()
    always: bool = False


@dataclass(frozen=True)
class KnobSpec:
    """A knob of the table under its name; `off` is the value that turns it off."""

    name: str
    description: str
    bounds: str
    off: float | bool | None
    knob: Knob

    @property
    def search(self) -> DistributionSettings | None:
        """What a search draws where the knob is on."""
        return self.knob.search

    @property
    def search_with_off(self) -> DistributionSettings | None:
        """What a search draws that may leave the knob off: as likely as each of its choices, or as all of its range."""
        search = self.knob.search
        if search is None or self.knob.always:
            return search
        inner = search.choice if isinstance(search, ChoiceSettings) else (search.model_dump(mode="json"),)
        return ChoiceSettings(choice=(self.off, *inner))

    @property
    def about(self) -> str:
        """What it does, its range, where it is defined and its source, on one line."""
        knob = self.knob
        where = [_needing(kind, settings) for kind, settings in knob.networks.items()] or ["all networks"]
        if len(knob.tasks) < len(TASKS):
            where.append(f"task {' or '.join(knob.tasks)}")
        if knob.needs:
            where.append(f"{' or '.join(knob.needs)} columns")
        if knob.when:
            where.append(f"with {knob.when}")
        return f"{self.description}; {self.bounds}; {', '.join(where)} ({knob.source})"

    def is_on(self, value: Any) -> bool:
        """Whether it has an effect at this value, at some time."""
        return bool(peak(value))

    def clashes(self, other: KnobSpec) -> bool:
        """Whether the two may not be on together."""
        alike = bool(self.knob.group) and self.knob.group == other.knob.group
        return self is not other and (alike or other.name in self.knob.excludes or self.name in other.knob.excludes)

    def misuse(
        self,
        network: str,
        settings: Settings | None,
        task: Task,
        columns: Iterable[str],
        any_length: bool = False,
    ) -> str | None:
        """Why the knob means nothing there, to follow `regularization.name = value`; None where it is defined.

        `settings` are those of the network; without them a knob that asks for one of them is not defined.
        """
        if reason := self.undefined(network, task, columns, any_length):
            return f"{reason}; set it to {_written(self.off)}"
        for key, value in self.knob.networks.get(network, {}).items():
            if getattr(settings, key, None) != value:
                needed = str(value).lower() if isinstance(value, bool) else value
                return f" needs network.{key}: {needed}; set that, or leave it out"
        return None

    def undefined(self, network: str, task: Task, columns: Iterable[str], any_length: bool = False) -> str | None:
        """The same without the way out, whatever the network's settings."""
        knob, kinds = self.knob, set(columns)
        if task not in knob.tasks:
            return f" has no meaning for {task}"
        if knob.networks and network not in knob.networks:
            return f" is for network.kind: {' or '.join(knob.networks)}, and network.kind = {network!r}"
        shown = ", ".join(sorted(kinds)) or "none"
        if knob.needs and not kinds & set(knob.needs):
            return f" changes {' or '.join(f'{kind}s' for kind in knob.needs)}, and the features are {shown}"
        if kinds - set(knob.only):
            outside = " and ".join(sorted(kinds - set(knob.only)))
            return f" is defined for {', '.join(knob.only)} columns, and the features have {outside}"
        if knob.one_length and any_length:
            return " needs sequences of one length, and their lengths differ"
        return None


def knobs_of(fields: Mapping[str, FieldInfo]) -> dict[str, KnobSpec]:
    """The knobs of a table, in its order."""
    found = {}
    for name, info in fields.items():
        knob = next(item for item in info.metadata if isinstance(item, Knob))
        off = None if info.default is None else type(info.default)(0)
        found[name] = KnobSpec(name, info.description or "", bounds(info), off, knob)
    return found


def bounds(info: FieldInfo) -> str:
    """The values that a field takes, as intervals are written: `[0, 1)`."""
    low, high, rampable = "(-inf", "inf)", False
    waiting: list[Any] = [info.annotation, *info.metadata]
    while waiting:
        item = waiting.pop(0)
        match item:
            case Ge(ge=value):
                low = f"[{value:g}"
            case Gt(gt=value):
                low = f"({value:g}"
            case Le(le=value):
                high = f"{value:g}]"
            case Lt(lt=value):
                high = f"{value:g})"
            case FieldInfo():
                waiting += item.metadata
            case _ if item is bool:
                return "true, false"
            case _ if isinstance(item, type) and issubclass(item, Ramp):
                rampable = True
            case _:
                waiting += get_args(item)
    return f"{low}, {high}{', may ramp' if rampable else ''}"


def problem_of(
    specs: Mapping[str, KnobSpec],
    values: Mapping[str, Any],
    network: str,
    settings: Settings | None,
    task: Task,
    columns: Collection[str],
    any_length: bool,
) -> str | None:
    """What the first of these values that means nothing here lacks, with the way out; None where all mean something."""
    on: list[KnobSpec] = []
    for name, spec in specs.items():
        value = values[name]
        if not spec.is_on(value):
            continue
        subject = f"regularization.{name} = {_written(value)}"
        if reason := spec.misuse(network, settings, task, columns, any_length):
            return subject + reason
        if spec.knob.when and not specs[spec.knob.when].is_on(values[spec.knob.when]):
            return f"{subject} changes what regularization.{spec.knob.when} does, which is off; set that, or remove it"
        if other := next((other.name for other in on if spec.clashes(other)), None):
            return f"{subject} and regularization.{other} exclude each other; remove one of them"
        on.append(spec)
    return None


def _needing(kind: str, settings: Mapping[str, Any]) -> str:
    needed = [f"{key}: {str(value).lower()}" for key, value in settings.items()]
    return f"{kind} with {' and '.join(needed)}" if needed else kind


def _written(value: Any) -> str:
    if isinstance(value, Ramp):
        return "{" + ", ".join(f"{key}: {number:g}" for key, number in value.model_dump().items()) + "}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


if TYPE_CHECKING:
    # Networks and steps are handed the knobs of one moment, in which each ramp is a number.
    Share = float
    Strength = float
else:
    Share = Annotated[float, Field(ge=0.0, lt=1.0)] | ShareRamp
    Strength = Annotated[float, Field(ge=0.0)] | Ramp
