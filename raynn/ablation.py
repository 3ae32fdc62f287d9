"""What a study of regularizers compares, and what the comparison says: pure functions, for `raynn study`.

The arms: the network without any regularizer; each knob alone; the job as it is; the job without each of its knobs. All
arms train with the same seeds, which means the same splits, initial weights and order of rows; so they are compared in
pairs: the mean over seeds of the differences, with the interval of Student's t (`Gosset 1908`) at 95 %,
mean +- t(0.975, n - 1) * sd / sqrt(n). Intervals are of one comparison each, not corrected for their number.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from raynn.metrics import QUANTITIES, Task, metric_problem, quantities_of
from raynn.problems import hinted
from raynn.regularization import RegularizationSettings, knob_specs
from raynn.settings import Settings

LEVEL = 0.95  # of the intervals
Kind = Literal["none", "all", "alone", "without"]
Values = dict[str, JsonValue]
Row = Mapping[str, Any]  # of study.parquet


class StudySettings(Settings):
    """The study of `raynn study`: what each regularizer is worth. `raynn train` and `raynn tune` ignore it."""

    seeds: Annotated[
        int, Field(ge=2, description="runs of each arm: seeds from optimization.seed on, the same for all arms")
    ] = 3
    knobs: Annotated[
        Literal["job", "all"] | Annotated[tuple[str, ...], Field(min_length=1)],
        Field(description="job: those that are on; all: those that can be; or names. One that is off is tried alone"),
    ] = "job"
    epochs: Annotated[
        int | None, Field(ge=1, description="in the place of optimization.max_epochs; null: that, as it is")
    ] = None
    metric: Annotated[str, Field(description="a quantity of the task, such as accuracy; auto: the task's own")] = "auto"
    concurrent_trials: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"

    def quantity(self, task: Task) -> str:
        """What is compared."""
        if self.metric != "auto":
            return self.metric
        return next(name for name in ("accuracy", "rmse", "loss") if name in quantities_of(task))


def study_problems(study: StudySettings, task: Task | None) -> Iterator[tuple[str, str]]:
    """What is wrong with the section by itself: dotted path, and message."""
    names = knob_specs()
    for name in study.knobs if isinstance(study.knobs, tuple) else ():
        if name not in names:
            yield "study.knobs", hinted(f"{name!r} is no key of regularization", name, names)
    if study.metric != "auto" and (message := metric_problem(f"val/{study.metric}", task)):
        yield "study.metric", message


@dataclass(frozen=True)
class Arm:
    """One setting of the knobs, which is run with every seed.

    Attributes:
        knob: the one that is alone, or is left out.
        settings: what is otherwise than in the job, by dotted path.
        runs: the arm whose runs are this one's: itself, or the first with the same settings.
    """

    name: str
    kind: Kind
    knob: str | None
    settings: Values
    runs: str


def arms_of(study: StudySettings, own: RegularizationSettings, able: Sequence[str]) -> tuple[Arm, ...]:
    """The arms.

    A knob that is off in the job is tried at the middle of its search range; one that means nothing without another
    comes with it.

    Args:
        own: the job's knobs.
        able: the names of the knobs that mean something in the job.
    """
    specs, plain = knob_specs(), own.model_dump(mode="json")
    on = [name for name, spec in specs.items() if spec.is_on(getattr(own, name))]
    off: Values = {name: spec.off for name, spec in specs.items()}
    if isinstance(study.knobs, tuple):
        names = list(dict.fromkeys(study.knobs))
    else:
        names = on if study.knobs == "job" else [name for name in specs if name in on or name in able]

    def strength(name: str) -> Values:
        spec = specs[name]
        if name in on:
            value: JsonValue = plain[name]
        else:
            assert spec.search is not None, f"{name} has no range"
            value = spec.search.draw(0.5)
        return {name: value} | (strength(spec.knob.when) if spec.knob.when else {})

    def without(name: str) -> Values:
        dependents = [other for other, spec in specs.items() if spec.knob.when == name]
        return plain | {each: off[each] for each in (name, *dependents)}

    arms: list[tuple[str, Kind, str | None, Values]] = [("none", "none", None, off), ("all", "all", None, plain)]
    arms += [(f"{name} alone", "alone", name, off | strength(name)) for name in names]
    arms += [(f"without {name}", "without", name, without(name)) for name in names if name in on]
    found, first = [], dict[str, str]()
    for arm, kind, knob, values in arms:
        changed = {f"regularization.{key}": value for key, value in values.items() if value != plain[key]}
        runs = first.setdefault(json.dumps(changed, sort_keys=True), arm)
        found.append(Arm(arm, kind, knob, changed, runs))
    return tuple(found)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its interval; without one where there are fewer than two."""

    n: int
    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate | None:
        """Of independent values, which may be differences of pairs; None of none."""
        known = [value for value in values if math.isfinite(value)]
        if not known:
            return None
        mean = statistics.fmean(known)
        if len(known) < 2:
            return cls(1, mean, None, None)
        from scipy.stats import t  # takes half a second to load

        half = float(t.ppf((1 + LEVEL) / 2, len(known) - 1)) * statistics.stdev(known) / math.sqrt(len(known))
        return cls(len(known), mean, mean - half, mean + half)

    @property
    def verdict(self) -> Literal["better", "worse", "unclear"]:
        """Of a difference, which way its interval is clear of zero."""
        if self.low is not None and self.low > 0:
            return "better"
        return "worse" if self.high is not None and self.high < 0 else "unclear"


@dataclass(frozen=True)
class Finding:
    """What a study says of an arm. Differences and gaps are positive where the first is the better one.

    Attributes:
        test, validation, train: the quantity itself; train over the training rows, without regularizers.
        gap: train minus test: what does not generalize.
        gap_validation: train minus validation.
        gain: the arm against none, on the test set.
        loss_of_leaving: all against the arm, of arms without a knob.
        narrowed: the gap of none minus that of the arm.
    """

    arm: Arm
    test: Estimate | None
    validation: Estimate | None
    train: Estimate | None
    gap: Estimate | None
    gap_validation: Estimate | None
    gain: Estimate | None
    loss_of_leaving: Estimate | None
    narrowed: Estimate | None


def findings(arms: Sequence[Arm], rows: Sequence[Row], quantity: str) -> list[Finding]:
    """What the runs say of each arm.

    Args:
        rows: of study.parquet; a run that failed has no figures, and its seed counts for nothing in that arm.
        quantity: what is compared.
    """
    sign = 1.0 if QUANTITIES[quantity][0] == "max" else -1.0

    def by_seed(arm: str, split: str) -> dict[int, float]:
        key = f"{split}/{quantity}"
        return {row["seed"]: row[key] for row in rows if row["arm"] == arm and row.get(key) is not None}

    def minus(a: Mapping[int, float], b: Mapping[int, float]) -> dict[int, float]:
        return {seed: sign * (a[seed] - b[seed]) for seed in a if seed in b}

    def estimate(values: Mapping[int, float]) -> Estimate | None:
        return Estimate.of(list(values.values()))

    def gap(arm: str, split: str = "test") -> dict[int, float]:
        return minus(by_seed(arm, "train"), by_seed(arm, split))

    found = []
    for arm in arms:
        test, before, gaps = by_seed(arm.runs, "test"), gap("none"), gap(arm.runs)
        narrowed = {seed: before[seed] - gaps[seed] for seed in gaps if seed in before}
        found.append(
            Finding(
                arm,
                estimate(test),
                estimate(by_seed(arm.runs, "val")),
                estimate(by_seed(arm.runs, "train")),
                estimate(gaps),
                estimate(gap(arm.runs, "val")),
                estimate(minus(test, by_seed("none", "test"))) if arm.kind != "none" else None,
                estimate(minus(by_seed("all", "test"), test)) if arm.kind == "without" else None,
                estimate(narrowed) if arm.kind != "none" else None,
            )
        )
    return found
