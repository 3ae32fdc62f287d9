"""Stopping rules: on a recorded curve and on made-up ones with known answers, and what holds for every curve.

Prechelt's sequences are computed here from the paper's definitions alone, in rational numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raynn.errors import JobError
from raynn.rules import (
    REQUIRED,
    RULES,
    SECTION_KEYS,
    Curve,
    RuleName,
    RuleSettings,
    generalization_losses,
    smoothed,
    training_progress,
)
from raynn.stopping import EarlyStoppingSettings, decide

# breast_cancer, feedforward with 64 hidden units, no regularizer, Adam at 1e-2, 30 % validation: it overfits.
VALIDATION = [
    *(0.129, 0.0621, 0.0693, 0.0712, 0.0672, 0.0582, 0.0647, 0.0704, 0.0539, 0.0584, 0.0518, 0.0577, 0.0553, 0.0559),
    *(0.0627, 0.0579, 0.0518, 0.056, 0.053, 0.0578, 0.0608, 0.0408, 0.0403, 0.0722, 0.0518, 0.0463, 0.0487, 0.0612),
    *(0.0646, 0.0636, 0.0551, 0.0721, 0.071, 0.0695, 0.065, 0.067, 0.0745, 0.0744, 0.0735, 0.0787),
]
TRAINING = [
    *(0.2768, 0.0807, 0.0653, 0.0525, 0.0473, 0.0406, 0.0316, 0.0295, 0.0249, 0.0207, 0.0184, 0.0171, 0.017, 0.0146),
    *(0.0127, 0.0093, 0.0085, 0.0101, 0.01, 0.0073, 0.0053, 0.0047, 0.0041, 0.0044, 0.0029, 0.0031, 0.0026, 0.0022),
    *(0.002, 0.0021, 0.002, 0.0017, 0.0018, 0.0012, 0.0015, 0.0013, 0.0013, 0.001, 0.0011, 0.0008),
]
EXAMPLE_OF = {"target": 0.5, "bound": 2.0, "budget_s": 3.0}  # of keys without a default


def history_of(values: Sequence[float], training: Sequence[float] | None = None) -> list[dict[str, float]]:
    training = training or [1.0] * len(values)
    return [
        {"epoch": i + 1, "val/loss": value, "val/accuracy": value, "train/loss": error, "seconds": 1.0}
        for i, (value, error) in enumerate(zip(values, training, strict=True))
    ]


def curve_of(values: Sequence[float], training: Sequence[float] | None = None, metric: str = "val/loss") -> Curve:
    return Curve(metric, history_of(values, training), range(len(values)))


def fires(rule: str, curve: Curve, **keys: Any) -> list[int]:
    """The epochs (from 1) after which a rule would stop."""
    settings = RuleSettings(rule=rule, **keys)  # type: ignore[arg-type]
    return [i + 1 for i, reason in enumerate(RULES[settings.rule].reasons(curve, settings)) if reason]


def settings_for(rule: RuleName, **keys: Any) -> RuleSettings:
    """A rule with what it cannot do without."""
    needed = {key: EXAMPLE_OF[key] for key in RULES[rule].keys if key in REQUIRED}
    return RuleSettings(rule=rule, **{**needed, **keys})


class Prechelt:
    """The definitions of section 2 of the paper, epochs counted from 1, in rational numbers."""

    def __init__(self, validation: Sequence[float], training: Sequence[float], k: int) -> None:
        self.va = [Fraction(value) for value in validation]
        self.tr = [Fraction(value) for value in training]
        self.k = k

    def gl(self, t: int) -> Fraction:
        return 100 * (self.va[t - 1] / min(self.va[:t]) - 1)

    def progress(self, t: int) -> Fraction:
        strip = self.tr[t - self.k : t]
        return 1000 * (sum(strip) / (self.k * min(strip)) - 1)

    def stops_up(self, s: int, t: int) -> bool:
        if t % self.k or t - self.k < 1 or not self.va[t - 1] > self.va[t - self.k - 1]:
            return False
        return s == 1 or self.stops_up(s - 1, t - self.k)


def test_generalization_loss_by_hand() -> None:
    losses = generalization_losses(curve_of([1.0, 0.8, 0.5, 0.6, 0.55, 0.75]))
    assert losses == pytest.approx([0, 0, 0, 20, 10, 50])


def test_training_progress_by_hand() -> None:
    """Strips of 3: 1000 (1.8 / (3 * 0.3) - 1) and 1000 (1.2 / (3 * 0.3) - 1)."""
    progress = training_progress(curve_of([1.0] * 7, [0.9, 0.6, 0.3, 0.5, 0.4, 0.3, 9.0]), k=3)
    assert progress == [None, None, pytest.approx(1000), None, None, pytest.approx(1000 / 3), None]


def test_prechelts_criteria_by_hand() -> None:
    validation, training = [1.0, 0.8, 0.5, 0.6, 0.55, 0.75], [0.9, 0.6, 0.3, 0.5, 0.4, 0.3]
    curve = curve_of(validation, training)
    assert fires("gl", curve, alpha=9.0) == [4, 5, 6]
    assert fires("gl", curve, alpha=11.0) == [4, 6]
    assert fires("pq", curve, alpha=0.1, strip_length=3) == [6]  # 50 / 333.3 = 0.15, at the end of a strip alone
    assert fires("pq", curve, alpha=0.2, strip_length=3) == []
    assert fires("up", curve, strips=1, strip_length=2) == [6]  # ends of strips: 0.8, 0.6, 0.75
    assert fires("up", curve, strips=1, strip_length=1) == [4, 6]
    assert fires("up", curve, strips=2, strip_length=1) == []
    assert fires("up", curve_of([1, 9, 2, 9, 3, 9, 4]), strips=3, strip_length=2) == []  # 9, 9, 9
    assert fires("up", curve_of([9, 1, 9, 2, 9, 3, 9, 4]), strips=3, strip_length=2) == [8]  # 1 < 2 < 3 < 4


@pytest.mark.parametrize(
    ("rule", "keys", "first"),
    [
        pytest.param("patience", {"patience": 5}, 16, id="patience"),
        pytest.param("patience", {"patience": 5, "min_delta": 0.01}, 7, id="min_delta"),
        pytest.param("patience", {"patience": 5, "min_delta_relative": 0.1}, 7, id="min_delta_relative"),
        pytest.param("target", {"target": 0.05}, 22, id="target"),
        pytest.param("divergence", {"bound": 0.078}, 1, id="divergence"),
        pytest.param("plateau", {"window": 4, "max_deviation": 0.0025}, 14, id="plateau"),
        pytest.param("gl", {"alpha": 20.0}, 8, id="gl"),
        pytest.param("gl", {"alpha": 50.0}, 24, id="gl 50"),
        pytest.param("pq", {"alpha": 0.25, "strip_length": 5}, 30, id="pq"),
        pytest.param("up", {"strips": 2, "strip_length": 5}, 35, id="up"),
        pytest.param("time", {"budget_s": 12.5}, 13, id="time"),
    ],
)
def test_a_recorded_curve(rule: str, keys: dict[str, Any], first: int) -> None:
    found = fires(rule, curve_of(VALIDATION, TRAINING), **keys)
    assert found
    assert found[0] == first


positive = st.floats(0.01, 100.0)
curves = st.lists(positive, min_size=1, max_size=30)


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=24), st.integers(1, 4), st.integers(1, 3))
def test_every_curve_follows_the_papers_definitions(pairs: list[tuple[float, float]], k: int, s: int) -> None:
    validation, training = (list(values) for values in zip(*pairs, strict=True))
    curve, paper = curve_of(validation, training), Prechelt(validation, training, k)
    epochs = range(1, len(pairs) + 1)
    assert generalization_losses(curve) == pytest.approx([float(paper.gl(t)) for t in epochs], rel=1e-9, abs=1e-9)
    ends = [t for t in epochs if t % k == 0]
    progress = training_progress(curve, k)
    assert [progress[t - 1] for t in ends] == pytest.approx(
        [float(paper.progress(t)) for t in ends], rel=1e-9, abs=1e-6
    )
    assert fires("up", curve, strips=s, strip_length=k) == [t for t in epochs if paper.stops_up(s, t)]
    quotients = {t: (paper.gl(t), paper.progress(t)) for t in ends}
    assume(all(gl == 0 or abs(gl - 2 * p) > 1e-6 * gl for gl, p in quotients.values()))
    assert fires("pq", curve, alpha=2.0, strip_length=k) == [t for t, (gl, p) in quotients.items() if gl > 2 * p]


@given(curves, st.sampled_from(["gl", "pq", "up"]))
def test_a_curve_that_falls_is_never_stopped_early(values: list[float], rule: str) -> None:
    falling = sorted(values, reverse=True)
    keys = {"alpha": 1e-9} if rule != "up" else {"strips": 1}
    steps = {} if rule == "gl" else {"strip_length": 1}
    assert fires(rule, curve_of(falling, falling), **keys, **steps) == []


@given(curves, st.sampled_from(get_args(RuleName)), st.integers(-100, 100))
def test_the_names_of_epochs_change_nothing(values: list[float], rule: RuleName, shift: int) -> None:
    history = history_of(values, values)
    relabelled = [record | {"epoch": record["epoch"] + shift} for record in history]
    settings = EarlyStoppingSettings(any=(settings_for(rule),))
    assert decide(settings, relabelled) == decide(settings, history)


@given(st.floats(-1e6, 1e6), st.floats(0.0, 0.99), st.integers(1, 50))
def test_the_average_of_a_constant_is_the_constant(value: float, smoothing: float, length: int) -> None:
    assert smoothed([value] * length, smoothing) == [value] * length


@given(curves, st.floats(0.0, 0.99))
def test_an_average_lies_between_the_least_and_the_most(values: list[float], smoothing: float) -> None:
    assert all(min(values) - 1e-9 <= mean <= max(values) + 1e-9 for mean in smoothed(values, smoothing))


def test_smoothing_by_hand() -> None:
    assert smoothed([1.0, 2.0, 4.0], 0.5) == [1.0, 1.5, 2.75]
    assert smoothed([1.0, 2.0, 4.0], 0.0) == [1.0, 2.0, 4.0]
    assert smoothed([66.0, 1.5530011695187427], 0.0)[1] == 1.5530011695187427, "raw is raw to the bit"
    with_nan = smoothed([math.nan, 1.0, math.inf, 3.0], 0.5)
    assert math.isnan(with_nan[0])
    assert with_nan[1:] == [1.0, math.inf, 2.0], "what is not finite stands for itself, and the average goes on"


def test_smoothing_keeps_one_bad_epoch_from_stopping() -> None:
    values = [1.0, 1.0, 1.0, 1.5, 1.0, 1.0]
    raw, calm = curve_of(values), Curve("val/loss", history_of(values), range(6), smoothing=0.9)
    assert fires("gl", raw, alpha=10.0) == [4]
    assert fires("gl", calm, alpha=10.0) == []  # 1.05 at the most


def test_errors_of_a_metric_of_which_more_is_better_are_counted_from_one() -> None:
    curve = curve_of([0.5, 0.9, 0.8], metric="val/accuracy")
    assert generalization_losses(curve) == pytest.approx([0, 0, 100])  # 0.2 is twice 0.1
    assert fires("up", curve, strips=1, strip_length=1) == [3]
    assert fires("target", curve, target=0.9) == [2]
    assert fires("divergence", curve, bound=0.85) == [1, 3]
    assert fires("patience", curve, patience=1) == [3]


def test_numbers_that_are_none() -> None:
    curve = curve_of([math.nan, 1.0, math.nan, math.inf, 0.5])
    assert fires("non_finite", curve) == [1, 3, 4]
    assert fires("divergence", curve, bound=2.0) == [1, 3, 4]
    assert fires("gl", curve, alpha=5.0) == [3, 4]
    assert fires("plateau", curve, window=2, max_deviation=9.0) == []


def test_an_error_of_nothing() -> None:
    """From a least error of 0 any other is infinitely far; training that stands still makes no progress."""
    assert generalization_losses(curve_of([1.0, 0.0, 0.0, 0.1])) == [0.0, 0.0, 0.0, math.inf]
    assert training_progress(curve_of([1.0] * 4, [0.0, 1.0, 0.0, 0.0]), k=2) == [None, math.inf, None, 0.0]


def test_no_share_is_taken_of_a_negative_error() -> None:
    message = (
        "early_stopping: rules gl and pq take shares of an error, and val/loss gives -0.25 at epoch 2, below 0; "
        "monitor another metric, or use rule: patience or up"
    )
    with pytest.raises(JobError, match=f"^{re.escape(message)}$"):
        generalization_losses(curve_of([1.0, -0.25]))


def test_a_reason_names_the_values() -> None:
    curve = curve_of([1.0, 0.5, 0.6], [1.0, 0.9, 0.9])
    for rule, keys, expected in [
        ("gl", {}, "the generalization loss of val/loss is 20 %, more than alpha = 3 (best 0.5 at epoch 2)"),
        ("time", {"budget_s": 2.5}, "training has taken 3.0 s of the 2.5 s it may"),
        ("target", {"target": 0.7}, "val/loss = 0.6 has reached the target 0.7"),
        ("divergence", {"bound": 0.55}, "val/loss = 0.6 is worse than the bound 0.55"),
        (
            "up",
            {"strips": 1, "strip_length": 1},
            "val/loss has been worse at the ends of 1 strips of 1 epochs in a row: 0.5, 0.6",
        ),
        (
            "patience",
            {"patience": 1, "min_delta_relative": 0.5},
            "val/loss has not improved by more than 50 % for 2 epochs (best 0.5 at epoch 2)",
        ),
        (
            "plateau",
            {"window": 2, "max_deviation": 0.1},
            "the standard deviation 0.05 of val/loss over 2 epochs is at most 0.1 (best 0.5 at epoch 2)",
        ),
        (
            "pq",
            {"alpha": 0.5, "strip_length": 3},
            "the generalization loss of val/loss, 20 %, over the training progress 37.04 is more than alpha = 0.5 "
            "(best 0.5 at epoch 2)",
        ),
    ]:
        settings = RuleSettings(rule=rule, **keys)  # type: ignore[arg-type]
        assert list(RULES[settings.rule].reasons(curve, settings))[-1] == expected


@pytest.mark.parametrize("rule", get_args(RuleName))
def test_the_table_fits_the_settings(rule: RuleName) -> None:
    """Each key is a described setting, takes what a search draws by default, and matters to no rule in vain."""
    spec = RULES[rule]
    assert spec.description
    assert spec.source
    for key, distribution in spec.keys.items():
        field = RuleSettings.model_fields[key]
        assert field.description, key
        for value in distribution.outermost if distribution else ():
            RuleSettings.model_validate({"rule": rule, key: value})
    assert len(list(spec.reasons(curve_of([1.0, 2.0, 3.0]), settings_for(rule)))) == 3


def test_every_key_belongs_to_a_rule_or_the_section() -> None:
    of_rules = {key for spec in RULES.values() for key in spec.keys}
    assert {"monitor", "rule", *of_rules} == RuleSettings.model_fields.keys()
    assert {"any", "all", *SECTION_KEYS} == EarlyStoppingSettings.model_fields.keys() - RuleSettings.model_fields.keys()
    assert REQUIRED.keys() == {k for k in of_rules if k != "smoothing" and RuleSettings.model_fields[k].default is None}
