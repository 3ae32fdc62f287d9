"""What a search may vary, how trials are compared, and what ends it: the `search` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from raynn.distributions import DistributionSettings
from raynn.expressions import Expression
from raynn.metrics import QUANTITIES
from raynn.schedulers import SchedulerSettings
from raynn.settings import Settings

Direction = Literal["min", "max"]
Algorithm = Literal["optuna", "gp", "cmaes", "nsga2", "random", "quasi_random", "grid"]

# What a trial costs, beside what it measures: may be an objective, less is better.
COSTS = ("parameters", "seconds", "epochs")


def _an_expression(text: str) -> str:
    Expression.parse(text)
    return text


ExpressionText = Annotated[str, AfterValidator(_an_expression)]
Default = Literal["default", "keep"]
SpaceSettings = (
    Annotated[dict[str, DistributionSettings | Default], Field(min_length=1)]
    | Annotated[str, Field(min_length=1)]
    | Annotated[tuple[str, ...], Field(min_length=1)]
)


@dataclass(frozen=True)
class Objective:
    """One thing that trials are compared by."""

    metric: str
    direction: Direction


class ObjectiveSettings(Settings):
    """A further objective."""

    metric: Annotated[str, Field(description=f"<split>/<quantity>, of train or val, or one of {', '.join(COSTS)}")]
    mode: Literal["auto", "min", "max"] = "auto"


class BudgetSettings(Settings):
    """What ends a search early, whichever comes first. null: no limit of the kind."""

    time_s: Annotated[float | None, Field(gt=0.0, description="seconds of work, over all its sessions")] = None
    device_hours: Annotated[
        float | None, Field(gt=0.0, description="hours of all GPUs, or without any of all CPU cores, that trials hold")
    ] = None
    target: Annotated[float | None, Field(description="a value of `metric` that is good enough")] = None


class RepeatsSettings(Settings):
    """The best trials once more with other seeds, which tells a good setting from a lucky one."""

    top: Annotated[int, Field(ge=0, description="how many of the best; 0: none")] = 0
    seeds: Annotated[int, Field(ge=1, description="further seeds of each")] = 3


class SearchSettings(Settings):
    """The search of `raynn tune`; `raynn train` ignores it.

    `space` gives settings by dotted path, each with one distribution, or with `default`, its usual range; a section
    with `default`, or alone as in `space: regularization`, stands for all its settings that apply. `scheduler` says
    which trials go on, by kind or as a section: `{kind: asha, grace_period: 2}`.
    """

    trials: Annotated[int, Field(ge=1)] = 32
    algorithm: Annotated[
        Algorithm,
        Field(
            description="optuna: a tree-structured Parzen estimator; gp: a Gaussian process; cmaes, nsga2: evolution; "
            "quasi_random: Sobol's sequence; grid: every combination of distributions with countable values"
        ),
    ] = "optuna"
    scheduler: Annotated[SchedulerSettings, Field(description="a kind, or a section with its settings")] = "asha"
    concurrent_trials: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    metric: Annotated[str, Field(description="<split>/<quantity>, of train or val")] = "val/loss"
    mode: Annotated[Literal["auto", "min", "max"], Field(description="auto knows which way the metric is better")] = (
        "auto"
    )
    objectives: Annotated[
        tuple[ObjectiveSettings, ...],
        Field(description="others beside `metric`, which schedulers and the choice of a winner go by"),
    ] = ()
    space: Annotated[
        SpaceSettings,
        Field(description="dotted path: distribution, `default`, or `keep`, which leaves it out of a section"),
    ]
    when: Annotated[
        dict[str, ExpressionText],
        Field(description="dotted path: when it is searched, as in optimization.optimizer == 'sgd'"),
    ] = Field(default_factory=dict)
    constraints: Annotated[
        tuple[ExpressionText, ...],
        Field(description="what every trial meets, as in regularization.dropout + regularization.input_dropout < 0.8"),
    ] = ()
    first: Annotated[Literal["job", "none"], Field(description="job: the first trial has the job's own settings")] = (
        "job"
    )
    warm_start: Annotated[
        str | None,
        Field(min_length=1, description="folder of an earlier search, to learn from"),
    ] = None
    seed: Annotated[int, Field(ge=0, lt=2**31, description="of the search, not of its trials")] = 0
    max_failed_trials: Annotated[int, Field(ge=0, description="more failed trials end the search")] = 3
    budget: BudgetSettings = BudgetSettings()
    repeats: RepeatsSettings = RepeatsSettings()
    winner: Annotated[
        Literal["taken", "retrained"],
        Field(description="taken: the best trial's model; retrained: trained once more with its settings"),
    ] = "taken"

    @property
    def direction(self) -> Direction:
        """Which way `metric` is better: `mode`, or where that is auto, what its quantity is."""
        return direction_of(self.metric, self.mode)

    @property
    def all_objectives(self) -> tuple[Objective, ...]:
        """`metric` and the others, in their order."""
        others = (Objective(each.metric, direction_of(each.metric, each.mode)) for each in self.objectives)
        return (Objective(self.metric, self.direction), *others)


def direction_of(metric: str, mode: Literal["auto", "min", "max"]) -> Direction:
    """Which way a metric or a cost is better."""
    if mode != "auto":
        return mode
    return "min" if metric in COSTS else QUANTITIES[metric.partition("/")[2]][0]
