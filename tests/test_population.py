"""Populations: the same whatever the timing, better than any fixed setting, and the bandit against its formulas."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from simulated_search import Simulation, interrupted, outcome, spread

from raynn.bandit import Bandit, Kernel, beta, fitted_kernel, greatest, log_likelihood, posterior
from raynn.exploration import at_position, drawn, fitted, may_change, perturbed, position
from raynn.ledger import Ledger, Resume, Trial, Values
from raynn.race import Race
from raynn.schedulers import scheduler_of, written_out
from raynn.search import SearchSettings

RATE = "optimization.learning_rate"
MAX_EPOCHS = 60
KINDS = ("pbt", "pb2")


def space_of(**distributions: Any) -> Any:
    paths = {name.replace("__", "."): value for name, value in distributions.items()}
    return SearchSettings.model_validate({"space": paths}).space


SPACE = space_of(optimization__learning_rate={"loguniform": (0.001, 1.0)})


def noisy_quadratic(rates: list[float]) -> float:
    """The expected loss x**2 of gradient descent on x**2 / 2 whose gradient has noise of variance 1, from x = 1: after
    each step of rate r, (1 - r)**2 of it remains and r**2 is added. The best rate falls as the loss does.
    """
    loss = 1.0
    for rate in rates:
        loss = (1.0 - rate) ** 2 * loss + rate**2
    return loss


def rates_of(trial: Trial) -> list[float]:
    """The rate of each epoch so far, and of the next, as the ledger says: what a schedule is replayed from."""
    rates = []
    for epoch in range(trial.epochs + 1):
        in_force = [c.settings for c in trial.changes if c.after_epoch <= epoch] or [trial.settings]
        rates.append(float(in_force[-1][RATE]))  # type: ignore[arg-type]
    return rates


def first_settings(number: int) -> Values:
    return {RATE: drawn(SPACE[RATE], (number + 0.5) / 8)}


def population(
    kind: str, ledger: Ledger | None = None, slots: int = 1, seed: int = 0, max_epochs: int = MAX_EPOCHS, **more: Any
) -> list[Trial]:
    settings = written_out(kind).model_validate({"kind": kind, "interval": 2})  # type: ignore[arg-type]
    scheduler = scheduler_of(settings, Race("val/loss", "min", max_epochs), 8, seed, SPACE)
    more = {"curve": lambda trial: noisy_quadratic(rates_of(trial)), "settings": first_settings} | more
    return Simulation(ledger or Ledger(), scheduler, 8, max_epochs, slots=slots, **more).run()


def best_of(trials: list[Trial]) -> float:
    return min(record["val/loss"] for trial in trials for record in trial.records)


@pytest.mark.parametrize("kind", KINDS)
def test_a_population_beats_every_fixed_rate(kind: str) -> None:
    max_epochs = MAX_EPOCHS if kind == "pbt" else 40
    fixed = min(
        min(noisy_quadratic([rate] * epochs) for epochs in range(1, max_epochs + 1))
        for rate in np.geomspace(0.001, 1.0, 400)
    )
    optimum = 1.0
    for _ in range(max_epochs):
        optimum = noisy_step_at_its_best(optimum)
    assert optimum == pytest.approx(1 / (max_epochs + 1))
    for seed in range(3 if kind == "pbt" else 1):
        trials = population(kind, seed=seed, max_epochs=max_epochs)
        assert optimum <= best_of(trials) < 0.9 * fixed
        best = min(trials, key=lambda trial: trial.records[-1]["val/loss"])
        rates = rates_of(best)[:-1]
        assert noisy_quadratic(rates) == best.records[-1]["val/loss"]  # the schedule found, replayed
        assert rates[-1] < 0.5 * max(rates)
        assert all(0.001 <= rate <= 1.0 for rate in rates)


def noisy_step_at_its_best(loss: float) -> float:
    rate = loss / (loss + 1.0)
    return (1.0 - rate) ** 2 * loss + rate**2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [0.6, 0.0])
def test_constraints_hold_for_settings_that_change(kind: str, limit: float) -> None:
    """The more dropout of the two kinds together, the better it is made to look; a limit that no move meets leaves
    every trial with its donor's settings.
    """
    rows, columns = "regularization.dropout", "regularization.input_dropout"
    space = space_of(
        regularization__dropout={"uniform": (0.0, 0.5)}, regularization__input_dropout={"choice": (0.1, 0.2, 0.3)}
    )

    def total(values: Values) -> float:
        return float(values[rows]) + float(values[columns])  # type: ignore[arg-type]

    def allowed(values: Values) -> bool:
        return total(values) < limit

    def searched(**allows: Any) -> list[Trial]:
        settings = written_out(kind).model_validate({"kind": kind, "interval": 1})  # type: ignore[arg-type]
        scheduler = scheduler_of(settings, Race("val/loss", "min", 8), 6, 0, space, **allows)
        return Simulation(
            Ledger(),
            scheduler,
            6,
            8,
            curve=lambda trial: 1.0 / (1 + trial.epochs) - 0.1 * total(trial.settings_now),
            settings=lambda number: {rows: 0.05 * number, columns: 0.1},
        ).run()

    changes = [change.settings for trial in searched(allowed=allowed) for change in trial.changes]
    assert changes
    if limit:
        assert all(map(allowed, changes))
        assert not all(allowed(c.settings) for trial in searched() for c in trial.changes), "nothing to hold back"
        assert len({json.dumps(each, sort_keys=True) for each in changes}) > 3
    else:
        begun = [{rows: 0.05 * number, columns: 0.1} for number in range(6)]
        assert all(each in begun for each in changes)


@pytest.mark.parametrize("kind", KINDS)
def test_the_outcome_depends_neither_on_slots_nor_on_timing(kind: str) -> None:
    def fails(trial: Trial) -> bool:
        return trial.number == 3 and trial.epochs == 5

    def ends(trial: Trial) -> bool:
        return trial.number == 6 and trial.epochs >= 7

    results = [
        outcome(population(kind, slots=slots, max_epochs=12, fails=fails, ends=ends, duration=duration))
        for slots in (1, 2, 5, 8)
        for duration in (lambda t: 1.0, lambda t: 0.1 + spread(t.number, t.epochs, 5))
    ]
    assert all(result == results[0] for result in results)
    assert {status for _, status, *_ in results[0]} == {"finished", "failed", "stopped_early"}
    other_seed = outcome(population(kind, max_epochs=12, fails=fails, ends=ends, seed=1))
    assert other_seed != results[0]


@pytest.mark.parametrize("kind", KINDS)
def test_killed_after_any_event_it_decides_the_same(kind: str, tmp_path: Path) -> None:
    # Timing matters to none but those which end: 6 does, right after it has taken over.
    def ends(trial: Trial) -> bool:
        return trial.number == 6 and trial.epochs >= 5

    undisturbed = outcome(population(kind, Ledger(tmp_path / "whole.jsonl"), max_epochs=7, ends=ends))
    whole = (tmp_path / "whole.jsonl").read_bytes()
    for at in range(0, whole.count(b"\n"), 1 if kind == "pbt" else 3):
        ledger = interrupted(tmp_path / "killed.jsonl", at, whole)
        again = outcome(population(kind, ledger, max_epochs=7, ends=ends))
        assert again == undisturbed, f"killed after {at} events"


def trial(number: int, values: list[float], status: Any = "paused", rate: float = 0.1) -> Trial:
    records = [{"epoch": float(i), "val/loss": value} for i, value in enumerate(values, start=1)]
    return Trial(number, {RATE: rate}, "search", records=records, status=status)


def resumed(trials: list[Trial], more: bool = False, **settings: Any) -> Resume | None:
    chosen = written_out("pbt").model_validate({"kind": "pbt", "interval": 2} | settings)
    return scheduler_of(chosen, Race("val/loss", "min", 10), 4, 0, SPACE).resume(trials, more)


def test_the_worst_take_over_before_the_others_go_on() -> None:
    ledger = Ledger()
    ledger.trials = [trial(i, [0.0, value]) for i, value in enumerate([0.4, 0.1, math.nan, 0.3])]
    first = resumed(ledger.trials)
    assert first is not None
    assert (first.number, first.donor) == (2, 1)
    assert first.settings is not None
    rate = first.settings[RATE]
    assert first.reason == (
        "generation 1: val/loss that is no number is 4th of 4, takes over from trial 1: "
        f"optimization.learning_rate 0.1 -> {rate}"
    )
    ledger.exploit(ledger.trials[2], ledger.trials[1], first.settings)
    again = resumed(ledger.trials)  # killed right here: the trial has taken over, and not gone on
    assert again == Resume(
        2, "generation 1: val/loss that is no number is 4th of 4, goes on with what it has taken over"
    )
    ledger.become(ledger.trials[2], "running")
    order = []
    while (one := resumed(ledger.trials)) is not None:
        order.append((one.number, one.donor, one.reason))
        ledger.become(ledger.trials[one.number], "running")
    assert order == [
        (0, None, "generation 1: val/loss 0.4 is 3rd of 4, goes on as it is"),
        (1, None, "generation 1: val/loss 0.1 is 1st of 4, goes on as it is"),
        (3, None, "generation 1: val/loss 0.3 is 2nd of 4, goes on as it is"),
    ]


def test_a_generation_waits_for_all() -> None:
    paused = [trial(i, [1.0, 1.0]) for i in range(3)]
    assert resumed([*paused, trial(3, [1.0], "running")]) is None
    assert resumed([*paused, trial(3, [], "waiting")]) is None
    assert resumed(paused, more=True) is None  # the population is not complete
    assert resumed(paused, more=False) is not None
    for status in ("failed", "stopped_early", "cut"):
        one = resumed([*paused, trial(3, [1.0], status)])
        assert one is not None
        assert "of 3" in one.reason
    only = resumed([trial(0, [1.0, 1.0])])
    assert only is not None
    assert only.donor is None


def test_a_population_has_a_fixed_size() -> None:
    scheduler = scheduler_of("pbt", Race("val/loss", "min", 10), 4, 0, SPACE)
    trials = [trial(i, [1.0], "failed") for i in range(3)]
    assert scheduler.wants_new(trials)
    assert not scheduler.wants_new([*trials, trial(3, [1.0], "failed")])


# exploring

DISTRIBUTIONS: dict[str, Any] = {
    "uniform": (0.0, 0.5),
    "loguniform": (1e-4, 1e-1),
    "quniform": (0.0, 1.0, 0.25),
    "randint": (1, 9),
    "lograndint": (1, 100),
    "choice": ("a", "b", None, True),
    "normal": (0.5, 0.1),
}


def distribution(kind: str) -> Any:
    return space_of(a={kind: DISTRIBUTIONS[kind]})["a"]


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_what_is_explored_stays_within_the_distribution(kind: str) -> None:
    one = distribution(kind)
    parts = DISTRIBUTIONS[kind]
    low, high = (0.2, 0.8) if kind == "normal" else parts[:2]
    value = drawn(one, 0.4)
    seen = []
    for i in range(300):
        value = perturbed(one, value, Random(i), 0.1)
        seen.append(value)
        assert perturbed(one, value, Random(i), 0.1) == perturbed(one, value, Random(i), 0.1)
    if kind == "choice":
        assert set(seen) == set(parts)
        return
    assert all(low <= value <= high for value in seen)
    assert len(set(seen)) > 4
    assert all(type(value) is (int if "randint" in kind else float) for value in seen)
    assert kind != "quniform" or set(seen) == {0.0, 0.25, 0.5, 0.75, 1.0}
    for value in seen:
        place = position(one, value)
        assert place is not None
        assert 0.0 <= place <= 1.0
        assert at_position(one, place) == pytest.approx(value)


@pytest.mark.parametrize(
    ("kind", "value", "neighbors"),
    [
        ("uniform", 0.2, {0.16, 0.24}),
        ("uniform", 0.45, {0.36, 0.5}),
        ("loguniform", 1e-4, {1e-4, 1.2e-4}),
        ("quniform", 0.25, {0.0, 0.5}),
        ("randint", 3, {2, 4}),
        ("randint", 9, {7, 9}),
        ("lograndint", 50, {40, 60}),
        ("choice", "b", {"a", None}),
        ("choice", "a", {"a", "b"}),
    ],
)
def test_a_value_moves_to_its_neighbors(kind: str, value: Any, neighbors: set[Any]) -> None:
    assert {perturbed(distribution(kind), value, Random(i), 0.0) for i in range(30)} == neighbors


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_draws_follow_the_distribution(kind: str) -> None:
    draws = [drawn(distribution(kind), (i + 0.5) / 1000) for i in range(1000)]
    middle: Any = {"uniform": 0.25, "loguniform": 10**-2.5, "quniform": 0.5, "randint": 5, "lograndint": 10}
    if kind == "choice":
        assert [draws.count(value) for value in DISTRIBUTIONS[kind]] == [250] * 4
    else:
        assert sorted(draws)[500] == pytest.approx(middle.get(kind, 0.5), rel=0.06)  # type: ignore[type-var]
    if kind in ("quniform", "randint"):
        counts = {value: draws.count(value) for value in draws}
        assert max(counts.values()) - min(counts.values()) <= 1
    assert drawn(distribution(kind), 0.0) is not drawn(distribution(kind), 1.0 - 1e-12)


def test_numbers_are_written_with_six_digits() -> None:
    assert fitted(distribution("loguniform"), 0.0012345678) == 0.00123457


@pytest.mark.parametrize(
    ("path", "may"),
    [
        ("regularization.dropout", True),
        ("early_stopping.patience", True),
        ("optimization.learning_rate", True),
        ("optimization.warmup_fraction", True),
        ("optimization.max_epochs", False),
        ("optimization.seed", False),
        ("optimization.optimizer", False),
        ("data.crop", False),
        ("network.channels", False),
    ],
)
def test_what_may_change_while_a_trial_trains(path: str, may: bool) -> None:
    message = may_change(path)
    assert (message is None) == may
    if message is not None:
        assert message.startswith(f"{path!r} cannot change while a trial trains")
        assert message.endswith("optimization.plateau_patience, or use another scheduler")


# the bandit


def test_the_kernel_is_the_papers() -> None:
    kernel = Kernel(lengthscale=0.5, epsilon=0.2, noise=0.1)
    x, t = np.array([[0.0, 0.0], [0.3, 0.4]]), np.array([1.0, 4.0])
    expected = math.exp(-(0.5**2) / (2 * 0.5**2)) * 0.8 ** (3 / 2)
    np.testing.assert_allclose(kernel.between(x, t, x, t), [[1.0, expected], [expected, 1.0]], rtol=1e-12)


def test_the_posterior_is_that_of_the_joint_normal_distribution() -> None:
    random = np.random.default_rng(0)
    kernel = Kernel(0.4, 0.1, 0.05)
    x, t, y = random.random((7, 2)), np.arange(7.0), random.normal(size=7)
    points, times = random.random((3, 2)), np.full(3, 8.0)
    own = kernel.between(x, t, x, t) + 0.05 * np.eye(7)
    cross = kernel.between(points, times, x, t)
    mean, variance = posterior(kernel, x, t, y)(points, times)
    np.testing.assert_allclose(mean, cross @ np.linalg.inv(own) @ y, rtol=1e-9)
    np.testing.assert_allclose(variance, 1.0 - np.diag(cross @ np.linalg.inv(own) @ cross.T), rtol=1e-9)


def test_the_likelihood_is_that_of_a_normal_distribution() -> None:
    from scipy.stats import multivariate_normal

    random = np.random.default_rng(1)
    kernel = Kernel(0.4, 0.1, 0.05)
    x, t, y = random.random((6, 2)), np.arange(6.0), random.normal(size=6)
    expected = multivariate_normal(cov=kernel.between(x, t, x, t) + 0.05 * np.eye(6)).logpdf(y)
    value, gradient = log_likelihood(kernel, x, t, y)
    assert value == pytest.approx(expected, rel=1e-9)
    for i, (name, setting) in enumerate(kernel._asdict().items()):
        up, down = (log_likelihood(kernel._replace(**{name: setting * math.exp(h)}), x, t, y)[0] for h in (1e-5, -1e-5))
        assert gradient[i] == pytest.approx((up - down) / 2e-5, rel=1e-6)
    assert log_likelihood(fitted_kernel(x, t, y), x, t, y)[0] > value


def test_without_age_it_is_a_plain_gaussian_process() -> None:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF

    random = np.random.default_rng(2)
    x, y, points = random.random((9, 2)), random.normal(size=9), random.random((4, 2))
    theirs = GaussianProcessRegressor(RBF(0.3), alpha=0.1, optimizer=None).fit(x, y)
    mean, std = theirs.predict(points, return_std=True)
    ours, variance = posterior(Kernel(0.3, 0.3, 0.1), x, np.zeros(9), y)(points, np.zeros(4))
    np.testing.assert_allclose(ours, mean, rtol=1e-8)
    np.testing.assert_allclose(np.sqrt(variance), std, rtol=1e-6)


def test_beta() -> None:
    assert beta(1) == 0.2
    assert beta(100) == pytest.approx(0.2 + math.log(40))


def test_the_greatest_is_found() -> None:
    def hill(x: Any) -> Any:
        return -((x[:, 0] - 0.123) ** 2) - (x[:, 1] - 1.5) ** 2  # the second beyond the bounds

    np.testing.assert_allclose(greatest(hill, 2, [0.5, 0.5], Random(0)), [0.123, 1.0], atol=1e-5)


def test_what_was_left_for_anothers_weights_is_still_learned_from() -> None:
    bandit = Bandit(Race("val/loss", "min", 20), SPACE, seed=0, interval=2)
    ledger = Ledger()
    ledger.trials = [trial(0, [5.0, 4.0, 3.0, 2.0], rate=0.1), trial(1, [6.0, 6.0, 6.0, 7.0], rate=0.9)]
    ledger.exploit(ledger.trials[1], ledger.trials[0], {RATE: 0.2})
    ledger.trials[1].records += [{"val/loss": 1.5}, {"val/loss": 1.25}]
    seen = [(one.generation, one.before, one.gain, one.settings[RATE]) for one in bandit.observations(ledger.trials, 6)]
    assert seen == [(2, 4.0, 2.0, 0.1), (2, 6.0, -1.0, 0.9), (3, 2.0, 0.75, 0.2)]
    assert len(bandit.observations(ledger.trials, 4)) == 2


def test_two_of_a_generation_are_given_different_settings(tmp_path: Path) -> None:
    population(
        "pb2", Ledger(tmp_path / "s.jsonl"), slots=8, max_epochs=12
    )  # of eight the two worst take over, together
    events = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    rates = [event["settings"][RATE] for event in events if event["event"] == "exploit"]
    assert len(rates) == 10
    assert all(abs(math.log(one / other)) > 0.01 for one, other in zip(rates[::2], rates[1::2], strict=True))
