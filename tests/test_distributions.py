"""Distributions: draws against closed forms, bounds exact, positions that lead back."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scipy import stats

from raynn.distributions import KINDS, ChoiceSettings, kind_of
from raynn.scales import Distribution


def of(**written: Any) -> Distribution:
    (kind,) = written
    return TypeAdapter(KINDS[kind]).validate_json(json.dumps(written), strict=True)


def cut(normal: Any, lo: float, hi: float) -> Any:
    """The cumulative distribution function of a normal one between bounds."""
    return lambda x: (normal.cdf(x) - normal.cdf(lo)) / (normal.cdf(hi) - normal.cdf(lo))


REALS = {
    "uniform": (of(uniform=[-1, 3]), stats.uniform(-1, 4).cdf),
    "loguniform": (of(loguniform=[1e-6, 0.1]), stats.loguniform(1e-6, 0.1).cdf),
    "normal": (of(normal=[2, 0.5]), cut(stats.norm(2, 0.5), 0.5, 3.5)),
    "lognormal": (of(lognormal=[-1, 0.5]), lambda x: cut(stats.norm(-1, 0.5), -2.5, 0.5)(np.log(x))),
    "truncated_normal": (of(truncated_normal=[0, 1, 0.5, 4]), cut(stats.norm(0, 1), 0.5, 4)),
}
UNIFORM = np.random.default_rng(0).random(2000)


@pytest.mark.parametrize(("distribution", "cumulative"), REALS.values(), ids=REALS.keys())
def test_draws_of_reals_follow_the_closed_form(distribution: Distribution, cumulative: Any) -> None:
    draws = np.array([distribution.draw(float(u)) for u in UNIFORM], dtype=np.float64)
    assert stats.kstest(draws, cumulative).pvalue > 0.01
    assert stats.kstest(draws, lambda x: cumulative(x) ** 1.2).pvalue < 1e-6  # the test can tell


MASSES: dict[str, tuple[Distribution, dict[Any, float]]] = {
    "quniform": (of(quniform=[0, 1, 0.3]), {0.0: 0.25, 0.3: 0.25, 0.6: 0.25, 0.9: 0.25}),
    "randint": (of(randint=[-1, 2]), {-1: 0.25, 0: 0.25, 1: 0.25, 2: 0.25}),
    "qrandint": (of(qrandint=[8, 30, 8]), {8: 1 / 3, 16: 1 / 3, 24: 1 / 3}),
    "lograndint": (of(lograndint=[1, 3]), {k: math.log((k + 1) / k) / math.log(4) for k in (1, 2, 3)}),
    "qloguniform": (
        of(qloguniform=[0.5, 1.5, 0.5]),
        {v: math.log((v + 0.5) / v) / math.log(4) for v in (0.5, 1.0, 1.5)},
    ),
    "choice": (of(choice=["a", None, True]), {"a": 1 / 3, None: 1 / 3, True: 1 / 3}),
}


@pytest.mark.parametrize(("distribution", "masses"), MASSES.values(), ids=MASSES.keys())
def test_draws_of_countable_values_have_their_masses(distribution: Distribution, masses: dict[Any, float]) -> None:
    grid = (np.arange(200_000) + 0.5) / 200_000
    drawn = [distribution.draw(float(u)) for u in grid[::20]]
    assert list(distribution.values()) == list(masses)
    assert distribution.count == len(masses)
    for value, mass in masses.items():
        assert sum(repr(one) == repr(value) for one in drawn) / len(drawn) == pytest.approx(mass, abs=2e-4)


EVERY = {
    **{name: each for name, (each, _) in REALS.items()},
    **{name: each for name, (each, _) in MASSES.items()},
    "choice with distributions": of(choice=[None, 0.0, {"loguniform": [0.1, 10]}, {"randint": [20, 40]}]),
}


def test_every_kind_is_tried() -> None:
    assert {kind_of(each) for each in EVERY.values()} == KINDS.keys()


@pytest.mark.parametrize("distribution", EVERY.values(), ids=EVERY.keys())
def test_the_ends_are_exact(distribution: Distribution) -> None:
    first, last = distribution.draw(0.0), distribution.draw(math.nextafter(1, 0))
    if isinstance(distribution, ChoiceSettings):
        assert repr(first) == repr(next(distribution.values()))
    elif math.isinf(distribution.count):
        assert (first, distribution.draw(1.0)) == distribution.outermost
        assert last == pytest.approx(distribution.outermost[1], rel=1e-5)
    else:
        assert (first, last) == (next(distribution.values()), list(distribution.values())[-1])


@pytest.mark.parametrize("distribution", EVERY.values(), ids=EVERY.keys())
@settings(max_examples=60, deadline=None, derandomize=True)
@given(u=st.floats(0, 1, exclude_max=True))
def test_a_position_leads_back_to_its_value(distribution: Distribution, u: float) -> None:
    value = distribution.draw(u)
    assert distribution.contains(value)
    place = distribution.position(value)
    again = distribution.draw(min(place, math.nextafter(1, 0)))
    assert 0 <= place <= 1
    if isinstance(value, float):
        assert again == pytest.approx(value, rel=2e-5, abs=1e-6)
    else:
        assert repr(again) == repr(value)
    if math.isinf(distribution.count) and isinstance(value, float):
        assert place == pytest.approx(u, abs=1e-4) or isinstance(distribution, ChoiceSettings)


@pytest.mark.parametrize("distribution", EVERY.values(), ids=EVERY.keys())
def test_larger_numbers_draw_larger_values(distribution: Distribution) -> None:
    if not isinstance(distribution, ChoiceSettings):
        drawn = [distribution.draw(u / 50) for u in range(50)]
        assert drawn == sorted(drawn, key=lambda value: float(str(value)))
        assert len(set(drawn)) == min(50, distribution.count)


def test_what_is_contained() -> None:
    assert of(randint=[1, 4]).contains(4)
    assert not of(randint=[1, 4]).contains(5)
    assert not of(randint=[1, 4]).contains(2.5)
    assert not of(randint=[0, 4]).contains(True)
    assert of(uniform=[0, 1]).contains(1)
    assert not of(uniform=[0, 1]).contains(1.0001)
    assert not of(uniform=[0, 1]).contains(None)
    assert of(quniform=[0, 1, 0.1]).contains(0.3)
    assert not of(quniform=[0, 1, 0.1]).contains(0.35)
    assert of(choice=[[1, 2], 1]).contains([1, 2])
    assert not of(choice=[[1, 2], 1]).contains(True)
    assert of(choice=[None, {"uniform": [1, 2]}]).contains(1.5)
    assert not of(choice=[None, {"uniform": [1, 2]}]).contains(0.5)


def test_the_nearest_value() -> None:
    assert of(uniform=[0, 1]).nearest(3) == 1
    assert of(qrandint=[8, 30, 8]).nearest(29) == 24
    assert of(qrandint=[8, 30, 8]).nearest(13) == 16
    assert of(uniform=[0, 1]).nearest(None) is None


def test_a_choice_of_a_distribution_takes_an_equal_share() -> None:
    distribution = of(choice=[0.0, {"uniform": [1, 2]}])
    assert [distribution.draw(u) for u in (0.0, 0.49, 0.5, 0.75)] == [0.0, 0.0, 1.0, 1.5]
    assert distribution.position(1.5) == 0.75
    assert math.isinf(distribution.count)


def test_a_distribution_in_a_choice_is_checked() -> None:
    with pytest.raises(ValueError, match="lo must be less than hi"):
        of(choice=[None, {"uniform": [2, 1]}])
    # a section that is no distribution is a value as any other
    assert of(choice=[{"from": 0.0, "to": 0.5}]).draw(0.3) == {"from": 0.0, "to": 0.5}
