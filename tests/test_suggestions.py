"""What a search tries next: a function of the trials, good where it should be, within conditions and constraints."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from raynn.bayesian import known_points
from raynn.errors import JobError
from raynn.ledger import Ledger, Trial, Values, Verdict
from raynn.pareto import pareto_front
from raynn.search import Algorithm, Objective, SearchSettings
from raynn.space import Space, key
from raynn.suggestions import ALGORITHMS, Suggestion, seed_for, suggest, uniform

TREE: dict[str, Any] = {
    "network": {"kind": "cnn"},
    "x": 0.9,
    "rate": 0.5,
    "count": 9,
    "kind": "a",
    "slope": 0.25,
    "none": None,
}
NUMBERS: dict[str, Any] = {"x": {"uniform": [0, 1]}, "rate": {"loguniform": [1e-4, 1]}, "count": {"randint": [0, 10]}}
CONDITIONAL: dict[str, Any] = {
    **NUMBERS,
    "kind": {"choice": ["a", "b", "c"]},
    "slope": {"normal": [0, 1]},
    "none": {"choice": [None, {"quniform": [0, 1, 0.1]}]},
}
GRID: dict[str, Any] = {
    "count": {"randint": [1, 3]},
    "kind": {"choice": ["a", "b"]},
    "slope": {"quniform": [0, 1, 0.5]},
}
WHEN = {"slope": "kind == 'b'"}
CONSTRAINTS = ["x + count / 10 <= 1.2", "none == null or x > 0.2"]


def settings(space: dict[str, Any] | None = None, **search: Any) -> SearchSettings:
    return SearchSettings.model_validate_json(json.dumps({"space": space or NUMBERS, **search}))


def quadratic(values: Values) -> float:
    """0 at x = 0.3, rate = 0.01, count = 3."""
    x, rate, count = (float(str(values[name])) for name in ("x", "rate", "count"))
    return (x - 0.3) ** 2 + (math.log10(rate) + 2) ** 2 / 16 + (count - 3) ** 2 / 100


def end(ledger: Ledger, trial: Trial, *values: float, status: str = "finished", **others: float) -> None:
    ledger.become(trial, "running")
    for value in values:
        record = {"epoch": trial.epochs + 1.0, "val/loss": value, **others}
        ledger.report(trial, record, lambda trial: Verdict("go_on"))
    ledger.become(trial, status)  # type: ignore[arg-type]


def asked(search: SearchSettings, trials: Sequence[Trial]) -> Suggestion | None:
    return suggest(Space.of(search, TREE), search, len(trials), trials)


def searched(
    search: SearchSettings, num: int, value: Callable[[Values], float] = quadratic, path: Path | None = None
) -> Ledger:
    """A search whose trials end one after the other."""
    ledger = Ledger(path)
    for _ in range(num):
        suggestion = asked(search, ledger.trials)
        if suggestion is None:
            break
        end(ledger, ledger.add(suggestion[0], "search", suggestion[1]), value({**TREE, **suggestion[0]}))
    return ledger


def best(ledger: Ledger) -> float:
    return min(trial.records[0]["val/loss"] for trial in ledger.trials)


def test_every_algorithm_is_in_the_table() -> None:
    assert set(ALGORITHMS) == set(get_args(Algorithm))


def test_uniform_numbers_are_uniform_and_of_their_place() -> None:
    drawn = [uniform(3, number, "a.b") for number in range(2000)]
    assert np.histogram(drawn, bins=10, range=(0, 1))[0].min() > 150
    assert uniform(3, 1, "a.b") == drawn[1] != uniform(3, 1, "a.c")
    assert 0 <= seed_for(0, 1) < 2**31


@pytest.mark.parametrize(("algorithm", "num", "factor"), [("optuna", 50, 4), ("gp", 18, 50), ("cmaes", 80, 4)])
def test_what_learns_beats_chance(algorithm: str, num: int, factor: float) -> None:
    chance = [best(searched(settings(algorithm="random", seed=seed), num)) for seed in range(20)]
    found = best(searched(settings(algorithm=algorithm), num))
    assert found < np.median(chance) / factor


@pytest.mark.parametrize("algorithm", ["random", "quasi_random", "optuna", "gp", "cmaes", "nsga2"])
def test_a_suggestion_is_a_function_of_the_journal(algorithm: str, tmp_path: Path) -> None:
    path, num = tmp_path / "search.jsonl", 12 if algorithm == "gp" else 30
    search = settings(CONDITIONAL, algorithm=algorithm, when=WHEN, constraints=CONSTRAINTS)
    ledger = searched(search, num, path=path)
    for cut in (1, 5, num - 3, num - 1):
        again = Ledger(path)  # read from the file by a process that knows nothing else
        del again.trials[cut:]
        suggestion = asked(search, again.trials)
        assert suggestion is not None
        assert (suggestion[0], suggestion[1]) == (ledger.trials[cut].settings, ledger.trials[cut].notes)
    few = ledger.trials[:3]
    assert asked(search.model_copy(update={"seed": 1}), few) != asked(search, few)


@pytest.mark.parametrize("algorithm", ["random", "quasi_random", "optuna", "gp", "cmaes", "nsga2"])
def test_conditions_and_constraints_hold_in_every_suggestion(algorithm: str) -> None:
    search = settings(CONDITIONAL, algorithm=algorithm, when=WHEN, constraints=CONSTRAINTS)
    space, ledger = Space.of(search, TREE), searched(search, 12 if algorithm == "gp" else 30)
    for trial in ledger.trials[1:]:  # the first is the job itself
        assert space.contains(trial.settings), trial.settings
        assert ("slope" in trial.settings) == (trial.settings["kind"] == "b")
    assert len({trial.settings["kind"] for trial in ledger.trials}) >= 2
    assert {trial.settings["none"] is None for trial in ledger.trials} == {True, False}


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_a_small_space_is_tried_once_and_ends(algorithm: str) -> None:
    space = {"count": {"randint": [1, 3]}, "kind": {"choice": ["a", "b"]}}
    ledger = searched(settings(space, algorithm=algorithm, first="none", trials=99), 99, lambda values: 1.0)
    tried = [key(trial.settings) for trial in ledger.trials]
    assert len(tried) == len(set(tried)) == 6
    assert asked(settings(space, algorithm=algorithm, first="none"), ledger.trials) is None


def test_a_grid_is_every_combination_in_order() -> None:
    search = settings(GRID, algorithm="grid", when=WHEN, constraints=["count + slope <= 3"], trials=99)
    ledger = searched(search, 99, lambda values: 1.0)
    assert ledger.trials[0].notes == {"origin": "job"}
    assert ledger.trials[0].settings == {"count": 9, "kind": "a"}  # the job's own are in no grid
    found = [tuple(trial.settings.values()) for trial in ledger.trials[1:]]
    without = [(1, "a"), (1, "b", 0.0), (1, "b", 0.5), (1, "b", 1.0), (2, "a"), (2, "b", 0.0), (2, "b", 0.5)]
    # where kind is a, slope is the job's own 0.25, and 3 + 0.25 is too much
    assert found == [*without, (2, "b", 1.0), (3, "b", 0.0)]


def test_the_first_trial_is_the_jobs_own() -> None:
    for algorithm in ALGORITHMS:
        assert asked(settings(GRID, algorithm=algorithm), []) == (
            {"count": 9, "kind": "a", "slope": 0.25},
            {"origin": "job"},
        )
    values = asked(settings(first="none"), [])
    assert values is not None
    assert values[0]["x"] != TREE["x"]


def test_sobols_points_fill_every_cell() -> None:
    search = settings({"x": {"uniform": [0, 1]}, "rate": {"uniform": [0, 1]}}, algorithm="quasi_random", first="none")
    points = [(float(str(t.settings["x"])), float(str(t.settings["rate"]))) for t in searched(search, 64, len).trials]
    assert len({(int(x * 8), int(y * 8)) for x, y in points}) == 64
    assert [trial.notes["point"] for trial in searched(search, 4, len).trials] == [0, 1, 2, 3]


def test_a_setting_more_changes_no_random_draw_of_the_others() -> None:
    few = searched(settings(NUMBERS, algorithm="random"), 6)
    more = searched(settings(CONDITIONAL, algorithm="random"), 6)
    assert all(a.settings.items() <= b.settings.items() for a, b in zip(few.trials, more.trials, strict=True))


@pytest.mark.parametrize("algorithm", ["random", "optuna", "cmaes", "quasi_random"])
def test_a_constraint_that_is_hard_to_meet_is_met(algorithm: str) -> None:
    search = settings(constraints=["x > 0.5", "rate > 0.3", "count in [4]"], algorithm=algorithm)  # 1 draw in 170
    space, ledger = Space.of(search, TREE), searched(search, 14)
    assert len(ledger.trials) == 14
    assert all(space.broken(trial.settings) is None for trial in ledger.trials[1:])


def test_constraints_that_nothing_meets_are_named() -> None:
    for algorithm in ("random", "optuna"):
        with pytest.raises(JobError, match=r"none of 1000 draws meets 'x > 2'; 'x > 2' failed 1000 times: loosen it"):
            asked(settings(constraints=["x > 2"], algorithm=algorithm, first="none"), [])
    with pytest.raises(JobError, match=r"no combination of the space meets 'count > 5'; loosen them"):
        asked(settings(GRID, constraints=["count > 5"], first="none"), [])


def known(search: SearchSettings, num: int) -> Ledger:
    """Trials of a random search."""
    return searched(search.model_copy(update={"algorithm": "random"}), num)


@pytest.mark.parametrize("algorithm", ["optuna", "gp"])
def test_failed_trials_are_kept_away_from(algorithm: str) -> None:
    search = settings({"x": {"uniform": [0, 1]}}, algorithm=algorithm, first="none")
    ledger = Ledger()
    for i in range(30):
        x = (i + 0.5) / 30
        # better and better up to 0.5, where trials begin to fail
        end(ledger, ledger.add({"x": x}, "search"), 1 - x, status="failed" if x > 0.5 else "finished")
    drawn = []
    for number in range(30, 36):
        suggestion = suggest(Space.of(search, TREE), search, number, ledger.trials)
        assert suggestion is not None
        drawn.append(float(str(suggestion[0]["x"])))
    assert np.mean([0.2 < x < 0.6 for x in drawn]) >= 0.8


@pytest.mark.parametrize("algorithm", ["optuna", "nsga2"])
def test_a_cut_trial_counts_with_its_best_value(algorithm: str) -> None:
    search = settings(algorithm=algorithm)
    finished, cut = known(search, 30), known(search, 30)
    for number in range(20, 30):
        cut.become(cut.trials[number], "cut")
    assert asked(search, cut.trials) == asked(search, finished.trials)


def test_what_a_trial_counts_as() -> None:
    ledger, objectives = Ledger(), [Objective("val/loss", "min"), Objective("val/accuracy", "max")]
    for values, status in (
        ((3.0, 2.0, 4.0), "finished"),
        ((5.0,), "cut"),  # its best so far
        ((0.5, 0.5), "failed"),  # the worst of those that did not
        ((math.nan, math.nan), "finished"),  # likewise
        ((), "failed"),
        ((1.0,), "running"),
        ((), "running"),
        ((), "waiting"),
        ((1.5, 1.0), "paused"),
    ):
        end(ledger, ledger.add({}, "search"), *values, status=status, **{"val/accuracy": 0.25})
    expected = [
        (2.0, -0.25),
        (5.0, -0.25),
        (5.0, -0.25),
        (5.0, -0.25),
        (5.0, -0.25),
        (1.0, -0.25),
        None,
        None,
        (1.0, -0.25),
    ]
    assert known_points(ledger.trials, objectives) == expected
    del ledger.trials[1]  # without it the shortest that settled has two epochs
    assert known_points(ledger.trials, objectives)[4] is None


def test_what_runs_is_not_suggested_again() -> None:
    search = settings({"x": {"uniform": [0, 1]}}, algorithm="optuna")
    ledger = known(search, 20)
    drawn = []
    for _ in range(4):
        suggestion = asked(search, ledger.trials)
        assert suggestion is not None
        ledger.become(ledger.add(suggestion[0], "search", suggestion[1]), "running")
        drawn.append(float(str(suggestion[0]["x"])))
    assert np.min(np.abs(np.subtract.outer(drawn, drawn)) + np.eye(4)) > 1e-3


def test_cmaes_learns_generation_by_generation_also_with_several_trials_at_a_time() -> None:
    search, ledger = settings(algorithm="cmaes"), Ledger()
    waiting: list[Trial] = []
    for _ in range(60):
        suggestion = asked(search, ledger.trials)
        assert suggestion is not None
        waiting.append(ledger.add(suggestion[0], "search", suggestion[1]))
        if len(waiting) == 4:  # the newest of four ends first
            trial = waiting.pop()
            end(ledger, trial, quadratic({**TREE, **trial.settings}))
    notes = [trial.notes["cmaes"] for trial in ledger.trials[1:]]
    generations = [note["generation"] for note in notes]  # type: ignore[index,call-overload]
    assert generations == sorted(generations)
    assert generations[-1] >= 6
    told = [note for note in notes if "told" in note]  # type: ignore[operator]
    assert len(told) == generations[-1]


def test_several_objectives_spread_along_their_front() -> None:
    objectives = [{"metric": "val/accuracy"}]
    for algorithm in ("optuna", "nsga2"):
        search = settings(NUMBERS, algorithm=algorithm, objectives=objectives)
        ledger = Ledger()
        for _ in range(64):
            suggestion = asked(search, ledger.trials)
            assert suggestion is not None
            values = {**TREE, **suggestion[0]}
            x = float(str(values["x"]))
            others = quadratic({**values, "x": 0.3})  # both objectives suffer from the other two settings
            end(ledger, ledger.add(suggestion[0], "search", suggestion[1]), x + others, **{"val/accuracy": x - others})
        front = [float(str(trial.settings["x"])) for trial in pareto_front(ledger.trials, search.all_objectives)]
        assert len(front) >= 4
        assert max(front) - min(front) > 0.4


def test_earlier_trials_are_learned_from() -> None:
    earlier = known(settings(seed=7), 40).trials
    for algorithm in ("optuna", "cmaes"):
        search = settings(algorithm=algorithm, first="none")
        space, found = Space.of(search, TREE), []
        for number in range(6):
            suggestion = suggest(space, search, number, [], earlier)
            assert suggestion is not None
            assert suggestion == suggest(space, search, number, [], earlier)
            assert suggestion != suggest(space, search, number, [])
            found.append(quadratic(suggestion[0]))
        chance = [quadratic(trial.settings) for trial in earlier]
        assert np.median(found) < np.median(chance) / 2
