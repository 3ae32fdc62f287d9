"""What each stopping rule says of a curve: pure functions, one table.

A rule looks at a metric epoch by epoch, and says after each epoch why it would stop, or nothing. What it sees is the
way to the weights at hand: epochs that training went back behind are no part of it.

Lutz Prechelt, "Early stopping - but when?" (Neural Networks: Tricks of the Trade, 1998), section 2, defines gl, pq and
up over the validation error E_va and the training error E_tr, and strips of k epochs that follow one another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Annotated, Literal, get_args

from pydantic import Field

from raynn.distributions import (
    ChoiceSettings,
    DistributionSettings,
    LograndintSettings,
    LoguniformSettings,
    RandintSettings,
    UniformSettings,
)
from raynn.errors import JobError, did_you_mean
from raynn.metrics import higher_is_better
from raynn.settings import Settings

RuleName = Literal["patience", "target", "divergence", "non_finite", "plateau", "gl", "pq", "up", "time", "none"]


class RuleSettings(Settings):
    """One stopping rule and its keys; `monitor` and `smoothing` are the section's where they are left out."""

    monitor: Annotated[str | None, Field(description="<split>/<quantity>")] = None
    rule: Annotated[RuleName, Field(description="none: all epochs; the best weights return")] = "patience"
    smoothing: Annotated[
        float | None, Field(ge=0.0, lt=1.0, description="share of the past in a moving average of the metric; 0: raw")
    ] = None
    patience: Annotated[int, Field(ge=1, description="patience: epochs without improvement")] = 5
    min_delta: Annotated[
        float, Field(ge=0.0, description="patience: an improvement is by more than this, in the metric's unit")
    ] = 0.0
    min_delta_relative: Annotated[
        float, Field(ge=0.0, description="patience: ... plus this share of the value to be improved on")
    ] = 0.0
    target: Annotated[float | None, Field(description="target: the value to reach")] = None
    bound: Annotated[float | None, Field(description="divergence: the value that must not be exceeded")] = None
    window: Annotated[int, Field(ge=2, description="plateau: epochs looked at")] = 5
    max_deviation: Annotated[
        float, Field(ge=0.0, description="plateau: the metric's standard deviation over the window, in its own unit")
    ] = 1e-3
    alpha: Annotated[
        float, Field(gt=0.0, description="gl: generalization loss, %; pq: it over the training progress")
    ] = 3.0
    strip_length: Annotated[int, Field(ge=1, description="pq, up: k, epochs of a training strip")] = 5
    strips: Annotated[int, Field(ge=1, description="up: s, strips in a row at whose ends the error has risen")] = 3
    budget_s: Annotated[float | None, Field(gt=0.0, description="time: seconds of training steps in all")] = None


@dataclass(frozen=True)
class Curve:
    """A metric over the epochs `path` (indices into `history`, ascending), and what else rules look at."""

    metric: str
    history: Sequence[Mapping[str, float]]
    path: Sequence[int]
    smoothing: float = 0.0

    @property
    def name(self) -> str:
        """The metric, as a reason calls it."""
        return f"smoothed {self.metric}" if self.smoothing else self.metric

    @cached_property
    def raw(self) -> list[float]:
        """The values as they were measured.

        Raises:
            JobError: the metric is not among those recorded.
        """
        return [_recorded(self.history[i], self.metric) for i in self.path]

    @cached_property
    def values(self) -> list[float]:
        """The values, smoothed where asked."""
        return smoothed(self.raw, self.smoothing)

    @cached_property
    def goodness(self) -> list[float]:
        """The values with their sign such that more is better; NaN is the worst there is."""
        return self._ranked(self.values)

    def _ranked(self, values: Sequence[float]) -> list[float]:
        sign = 1.0 if higher_is_better(self.metric) else -1.0
        return [-math.inf if math.isnan(value) else sign * value for value in values]

    @cached_property
    def errors(self) -> list[float]:
        """Errors, of which less is better and 0 the best: a loss as it is, else how far the metric is from 1, the most
        that accuracy, F1, AUROC and R2 can be; NaN as infinity.
        """
        errors = [1.0 - value for value in self.values] if higher_is_better(self.metric) else self.values
        return [math.inf if math.isnan(error) else error for error in errors]

    @cached_property
    def training_errors(self) -> list[float]:
        """Mean training loss of each epoch, as it was while the weights moved."""
        return [_recorded(self.history[i], "train/loss") for i in self.path]

    @cached_property
    def elapsed(self) -> list[float]:
        """Seconds of training steps up to each epoch, those included that training went back behind."""
        total = list(accumulate(record["seconds"] for record in self.history))
        return [total[i] for i in self.path]

    @cached_property
    def best_places(self) -> list[int]:
        """Of each epoch: where in `path` the first of the best values up to it stands, as they were measured."""
        scores = self._ranked(self.raw)
        places, best = [], 0
        for i, score in enumerate(scores):
            best = i if score > scores[best] else best
            places.append(best)
        return places

    def best(self, place: int) -> str:
        """`best 0.98 at epoch 3`, of the values up to a place in `path`."""
        best = self.best_places[place]
        return f"best {self.raw[best]:.6g} at epoch {self.path[best] + 1}"


def _recorded(record: Mapping[str, float], metric: str) -> float:
    if metric not in record:
        known = sorted(key for key in record if "/" in key)
        raise JobError(
            f"early_stopping.monitor = {metric!r} is not recorded by this job."
            f"{did_you_mean(metric, known)} Recorded: {', '.join(known)}"
        )
    return record[metric]


def smoothed(values: Sequence[float], smoothing: float) -> list[float]:
    """The exponential moving average m <- m + (1 - smoothing) (v - m), from the first value on (McClain & Trigg).

    Written so that a constant stays that constant to the bit. What is not finite stands for itself and is no part of
    the average.
    """
    if smoothing == 0.0:
        return list(values)  # the recursion would round
    result: list[float] = []
    mean: float | None = None
    for value in values:
        if math.isfinite(value):
            mean = value if mean is None else mean + (1.0 - smoothing) * (value - mean)
        result.append(mean if mean is not None and math.isfinite(value) else value)
    return result


Reasons = Iterator[str | None]  # of each epoch of a curve: why the rule would stop after it


def patience(curve: Curve, settings: RuleSettings) -> Reasons:
    """No value for `patience` epochs that is better than the last one that was, by more than `min_delta` and
    `min_delta_relative` of it.
    """
    renewed, reference = 0, -math.inf
    by = f"{settings.min_delta:g}"
    if settings.min_delta_relative:
        share = f"{100 * settings.min_delta_relative:g} %"
        by = f"{by} and {share}" if settings.min_delta else share
    for i, value in enumerate(curve.goodness):
        delta = settings.min_delta
        if math.isfinite(reference):
            delta += settings.min_delta_relative * abs(reference)
        if value > reference + delta:
            renewed, reference = i, value
        if i - renewed >= settings.patience:
            yield f"{curve.name} has not improved by more than {by} for {i - renewed} epochs ({curve.best(i)})"
        else:
            yield None


def target(curve: Curve, settings: RuleSettings) -> Reasons:
    """The value is `target` or better."""
    assert settings.target is not None
    for value in curve.values:
        reached = value >= settings.target if higher_is_better(curve.metric) else value <= settings.target
        yield f"{curve.name} = {value:.6g} has reached the target {settings.target:g}" if reached else None


def divergence(curve: Curve, settings: RuleSettings) -> Reasons:
    """The value is worse than `bound`, or not a number."""
    assert settings.bound is not None
    for value in curve.values:
        kept = value >= settings.bound if higher_is_better(curve.metric) else value <= settings.bound
        yield None if kept else f"{curve.name} = {value:.6g} is worse than the bound {settings.bound:g}"


def non_finite(curve: Curve, settings: RuleSettings) -> Reasons:
    """The measured value is NaN or infinite."""
    for value in curve.raw:
        yield None if math.isfinite(value) else f"{curve.metric} = {value:g} is not finite"


def plateau(curve: Curve, settings: RuleSettings) -> Reasons:
    """The standard deviation of the last `window` values, sqrt(mean((v - mean)^2)), is at most `max_deviation`."""
    for i in range(len(curve.values)):
        values = curve.values[max(0, i + 1 - settings.window) : i + 1]
        if len(values) < settings.window or not all(map(math.isfinite, values)):
            yield None
            continue
        mean = math.fsum(values) / len(values)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        if deviation <= settings.max_deviation:
            over = f"over {settings.window} epochs is at most {settings.max_deviation:g}"
            yield f"the standard deviation {deviation:.3g} of {curve.name} {over} ({curve.best(i)})"
        else:
            yield None


def gl(curve: Curve, settings: RuleSettings) -> Reasons:
    """GL_alpha: after the first epoch with GL(t) > alpha (Prechelt 1998, section 2, first class)."""
    for i, loss in enumerate(generalization_losses(curve)):
        if loss > settings.alpha:
            yield (
                f"the generalization loss of {curve.name} is {loss:.4g} %, more than alpha = {settings.alpha:g} "
                f"({curve.best(i)})"
            )
        else:
            yield None


def pq(curve: Curve, settings: RuleSettings) -> Reasons:
    """PQ_alpha: after the first end of a strip with GL(t) / P_k(t) > alpha (Prechelt 1998, section 2, second class)."""
    losses, progress = generalization_losses(curve), training_progress(curve, settings.strip_length)
    for i, (loss, p) in enumerate(zip(losses, progress, strict=True)):
        # multiplied out: training that stands still, P_k = 0, stops at any loss above 0
        if p is not None and loss > settings.alpha * p:
            yield (
                f"the generalization loss of {curve.name}, {loss:.4g} %, over the training progress {p:.4g} "
                f"is more than alpha = {settings.alpha:g} ({curve.best(i)})"
            )
        else:
            yield None


def up(curve: Curve, settings: RuleSettings) -> Reasons:
    """UP_s: after an end of a strip with E_va(t) > E_va(t - k), where UP_(s-1) holds at t - k (Prechelt 1998, section
    2, third class).
    """
    k, risen = settings.strip_length, 0
    for i, error in enumerate(curve.errors):
        if (i + 1) % k or i < k:
            yield None
            continue
        risen = risen + 1 if error > curve.errors[i - k] else 0
        if risen >= settings.strips:
            values = ", ".join(f"{value:.6g}" for value in curve.values[i - risen * k : i + 1 : k])
            yield f"{curve.name} has been worse at the ends of {risen} strips of {k} epochs in a row: {values}"
        else:
            yield None


def time(curve: Curve, settings: RuleSettings) -> Reasons:
    """Training steps have taken `budget_s` seconds or more."""
    assert settings.budget_s is not None
    for seconds in curve.elapsed:
        spent = seconds >= settings.budget_s
        yield f"training has taken {seconds:.1f} s of the {settings.budget_s:g} s it may" if spent else None


def none(curve: Curve, settings: RuleSettings) -> Reasons:
    """Never."""
    return (None for _ in curve.path)


def generalization_losses(curve: Curve) -> list[float]:
    """GL(t) = 100 (E_va(t) / E_opt(t) - 1) of each epoch, %; E_opt(t) is the least E_va up to t.

    Raises:
        JobError: an error below 0, of which no share can be taken.
    """
    losses, best = [], math.inf
    for i, error in enumerate(curve.errors):
        _check_not_negative(error, curve.metric, curve.path[i])
        best = min(best, error)
        if error == best:  # infinity over infinity and 0 over 0 too
            losses.append(0.0)
        else:
            losses.append(100.0 * (error / best - 1.0) if best > 0 else math.inf)
    return losses


def training_progress(curve: Curve, k: int) -> list[float | None]:
    """P_k(t) = 1000 (sum of E_tr over the strip / (k times its least) - 1) at the ends of strips, elsewhere None: how
    much the mean training error of the strip is above its least, per mille.

    Raises:
        JobError: a training loss below 0.
    """
    progress: list[float | None] = []
    for i, error in enumerate(curve.training_errors):
        _check_not_negative(error, "train/loss", curve.path[i])
        strip = curve.training_errors[i + 1 - k : i + 1]
        if (i + 1) % k:
            progress.append(None)
        elif min(strip) > 0:
            progress.append(max(0.0, 1000.0 * (math.fsum(strip) / (k * min(strip)) - 1.0)))
        else:
            progress.append(math.inf if max(strip) > 0 else 0.0)
    return progress


def _check_not_negative(error: float, metric: str, index: int) -> None:
    if error < 0:
        raise JobError(
            f"early_stopping: rules gl and pq take shares of an error, and {metric} gives {error:.6g} at epoch "
            f"{index + 1}, below 0; monitor another metric, or use rule: patience or up"
        )


@dataclass(frozen=True)
class RuleSpec:
    """One rule of the table.

    `keys` are the settings that it uses, each with the distribution that a search draws it from by default; None where
    that depends on the metric. A `final` rule ends training; after any other the learning rate may be reduced instead.
    """

    description: str
    source: str
    reasons: Callable[[Curve, RuleSettings], Reasons]
    keys: Mapping[str, DistributionSettings | None] = field(default_factory=dict)
    final: bool = False


_SMOOTHING: DistributionSettings = UniformSettings(uniform=(0.0, 0.9))
_STRIP_LENGTH: DistributionSettings = RandintSettings(randint=(2, 10))
_PRECHELT = "Prechelt 1998, Early stopping - but when?, section 2"

RULES: dict[RuleName, RuleSpec] = {
    "patience": RuleSpec(
        "stops when the metric has not improved by more than min_delta for so many epochs",
        "Goodfellow et al. 2016, Deep Learning, algorithm 7.1",
        patience,
        {
            "patience": LograndintSettings(lograndint=(2, 30)),
            "min_delta": None,
            "min_delta_relative": LoguniformSettings(loguniform=(1e-5, 1e-1)),
            "smoothing": _SMOOTHING,
        },
    ),
    "target": RuleSpec(
        "stops when the metric is as good as asked",
        "no paper: a threshold",
        target,
        {"target": None, "smoothing": _SMOOTHING},
        final=True,
    ),
    "divergence": RuleSpec(
        "stops when the metric is worse than a bound",
        "no paper: a threshold",
        divergence,
        {"bound": None, "smoothing": _SMOOTHING},
    ),
    "non_finite": RuleSpec("stops when the metric is NaN or infinite", "no paper: IEEE 754", non_finite),
    "plateau": RuleSpec(
        "stops when the metric's standard deviation over a window is small",
        "no paper: the population standard deviation",
        plateau,
        {
            "window": RandintSettings(randint=(3, 20)),
            "max_deviation": LoguniformSettings(loguniform=(1e-5, 1e-1)),
            "smoothing": _SMOOTHING,
        },
    ),
    "gl": RuleSpec(
        "stops when the error is more than alpha per cent above its least: GL",
        f"{_PRECHELT}, first class: GL_alpha",
        gl,
        {"alpha": LoguniformSettings(loguniform=(0.5, 20.0)), "smoothing": _SMOOTHING},
    ),
    "pq": RuleSpec(
        "stops when the generalization loss is more than alpha times the training progress of a strip: PQ",
        f"{_PRECHELT}, second class: PQ_alpha",
        pq,
        {
            "alpha": LoguniformSettings(loguniform=(0.25, 4.0)),
            "strip_length": _STRIP_LENGTH,
            "smoothing": _SMOOTHING,
        },
    ),
    "up": RuleSpec(
        "stops when the error has risen in so many strips in a row: UP",
        f"{_PRECHELT}, third class: UP_s",
        up,
        {"strips": RandintSettings(randint=(1, 8)), "strip_length": _STRIP_LENGTH, "smoothing": _SMOOTHING},
    ),
    "time": RuleSpec(
        "stops when training steps have taken so many seconds",
        "no paper: a budget",
        time,
        {"budget_s": None},
        final=True,
    ),
    "none": RuleSpec("trains all epochs; the best weights return all the same", "no paper: no rule", none),
}
assert tuple(RULES) == get_args(RuleName)

# Keys of the whole section, for every rule but `none`: the warm-up, and what happens before training stops.
SECTION_KEYS: dict[str, DistributionSettings | None] = {
    "warmup_epochs": RandintSettings(randint=(0, 10)),
    "reductions": ChoiceSettings(choice=(0, 1, 2, 3)),
    "factor": LoguniformSettings(loguniform=(0.05, 0.5)),
}

# Keys that a rule cannot do without, and what to give.
REQUIRED: dict[str, str] = {
    "target": "the value of the metric to stop at",
    "bound": "the value of the metric that is too bad to go on",
    "budget_s": "the seconds that training steps may take in all",
}
