"""The space of a search: defaults written out, conditions, constraints, and all that is said of a wrong one."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from knob_cases import BENCHES, Bench

from raynn.errors import JobError
from raynn.job import Job
from raynn.networks import NETWORKS
from raynn.ranges import RANGES
from raynn.regularization import RegularizationSettings, applicable, knob_specs, misuse
from raynn.space import Space


def job_with(space: object, *overrides: str, kind: str = "cnn", **search: Any) -> Job:
    tree = {"data": {"train": "x"}, "network": {"kind": kind}, "search": {"space": space, **search}}
    return Job.from_dict(tree, overrides)


def error_of(space: object, *overrides: str, kind: str = "cnn", **search: Any) -> list[str]:
    with pytest.raises(JobError) as caught:
        job_with(space, *overrides, kind=kind, **search)
    return str(caught.value).splitlines()


CONDITIONAL = {
    "optimization.optimizer": {"choice": ["adamw", "sgd"]},
    "optimization.momentum": {"uniform": [0.5, 0.95]},
    "regularization.dropout": {"uniform": [0, 0.8]},
    "regularization.input_dropout": {"uniform": [0, 0.8]},
    "regularization.ema_decay": {"choice": [None, {"uniform": [0.9, 0.99]}]},
    "early_stopping.patience": {"randint": [2, 8]},
}
WHEN = {"regularization.input_dropout": "regularization.dropout < 0.5 and network.kind == 'cnn'"}
CONSTRAINTS = ["regularization.dropout + regularization.input_dropout <= 0.8"]


def conditional() -> Job:
    return job_with(CONDITIONAL, when=WHEN, constraints=CONSTRAINTS)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(u=st.lists(st.floats(0, 1, exclude_max=True), min_size=6, max_size=6))
def test_what_is_drawn_is_active_and_contained(u: list[float]) -> None:
    space = SPACE
    values = space.draw(u)
    assert ("optimization.momentum" in values) == (values["optimization.optimizer"] == "sgd")
    dropout, both = values["regularization.dropout"], "regularization.input_dropout" in values
    assert both == (float(str(dropout)) < 0.5)
    assert space.contains(values) == (space.broken(values) is None)
    assert space.active(values) == values
    assert space.nearest(values) == values


SPACE: Space = conditional().space()


def test_a_condition_comes_after_what_it_names() -> None:
    backwards = dict(reversed(CONDITIONAL.items()))
    names = job_with(backwards, when=WHEN).space().names
    assert names.index("optimization.optimizer") < names.index("optimization.momentum")
    assert names.index("regularization.dropout") < names.index("regularization.input_dropout")


def test_what_is_not_drawn_is_what_the_job_says() -> None:
    job = conditional()
    values = job.space().draw([0.0] * 6)
    assert "optimization.momentum" not in values
    drawn = job.with_settings(values)
    assert (drawn.optimization.optimizer, drawn.optimization.momentum) == ("adamw", 0.9)
    assert drawn.search is None


def test_the_jobs_own_settings_and_the_nearest_in_the_space() -> None:
    job = job_with({"regularization.dropout": {"uniform": [0.4, 0.6]}, "optimization.optimizer": {"choice": ["sgd"]}})
    space = job.space()
    assert space.own_values() == {"regularization.dropout": 0.25, "optimization.optimizer": "adamw"}
    assert not space.contains(space.own_values())
    assert space.nearest(space.own_values()) is None  # adamw is near no other optimizer
    assert space.nearest({"optimization.optimizer": "sgd"}) == {
        "regularization.dropout": 0.4,
        "optimization.optimizer": "sgd",
    }


def test_combinations_that_differ_in_nothing_active_are_one() -> None:
    space = job_with(
        {
            "optimization.optimizer": {"choice": ["adamw", "sgd"]},
            "optimization.momentum": {"quniform": [0.5, 0.9, 0.2]},
            "early_stopping.patience": {"randint": [2, 3]},
        },
        constraints=["not (optimization.momentum > 0.8 and early_stopping.patience == 3)"],
    ).space()
    assert space.count == 12
    combinations = list(space.combinations())
    # momentum counts with sgd alone; without, it is the job's own 0.9, which patience 3 excludes
    assert [each.get("optimization.momentum") for each in combinations] == [None, 0.5, 0.5, 0.7, 0.7, 0.9]
    assert space.listed == tuple(combinations)


@pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind != "custom"])
def test_every_default_range_fits_its_setting(kind: str) -> None:
    sections = ["regularization", "early_stopping", "optimization"]
    job = job_with(sections, kind=kind, first="none")
    assert job.search is not None
    space = job.space()
    written_out = {name: distribution.model_dump(mode="json") for name, distribution in space.axes.items()}
    again = job_with(written_out, kind=kind)  # each value is checked against its setting
    assert set(again.space().axes) == set(space.axes)
    random = Random(0)
    for _ in range(5):
        job.with_settings(space.draw([random.random() for _ in space.names]))


def test_what_has_no_effect_is_not_among_the_defaults() -> None:
    names = set(job_with("optimization").space().axes)
    assert names == {"optimization.learning_rate", "optimization.warmup_fraction"}
    others = ("optimization.optimizer=sgd", "optimization.schedule=plateau", "early_stopping.rule=none")
    names = set(job_with(["optimization", "early_stopping"], *others).space().axes)
    assert names == RANGES.keys()


@pytest.mark.parametrize("bench", BENCHES.values(), ids=BENCHES.keys())
def test_every_draw_of_every_knob_is_a_valid_job(bench: Bench) -> None:
    tree = {"data": {"train": "x"}, "task": bench.inputs.task, "network": bench.network}
    job = Job.from_dict({**tree, "search": {"space": "regularization"}})
    any_length = bench.inputs.any_length
    task, where = bench.inputs.task, (job.network.kind, job.network)
    space, random = job.space(bench.columns, any_length), Random(0)
    names = {spec.name for spec in applicable(where[0], task, bench.columns, where[1], any_length)}
    assert {name.removeprefix("regularization.") for name in space.names} == names
    drawn: set[str] = set()
    own = job.regularization.model_dump(mode="json")
    for number in range(200):
        values = space.draw([random.random() for _ in space.names])
        knobs = {name.removeprefix("regularization."): value for name, value in values.items()}
        trial = RegularizationSettings.model_validate_json(json.dumps(own | knobs))
        if number % 40 == 0:  # 20 ms each
            assert job.with_settings(values).regularization == trial
        assert misuse(trial, *where, task, bench.columns, any_length) is None
        drawn |= {name for name, spec in knob_specs().items() if spec.is_on(getattr(trial, name))}
    assert drawn == names  # each is on in some of them


def test_a_knob_that_excludes_others_is_drawn_before_them() -> None:
    job = job_with("regularization", "regularization.average_last=3")
    space = job.space(["image"])
    assert [str(each.text) for each in space.when["regularization.swa_start"]] == [
        "regularization.average_last == null",
        "regularization.ema_decay == null",
    ]
    for u in (0.1, 0.4, 0.6, 0.9):
        values = space.draw({name: 0.9 for name in space.names} | {"regularization.average_last": u})
        trial = job.with_settings(values).regularization
        assert misuse(trial, "cnn", job.network, "classification", ["image"]) is None
        assert (trial.average_last is None, trial.ema_decay is None) == (u < 0.5, u > 0.5)
    kept = job_with(
        {"regularization": "default", "regularization.average_last": "keep"}, "regularization.average_last=3"
    )
    assert not {"regularization.ema_decay", "regularization.swa_start"} & set(kept.space().names)
    (line,) = error_of({"regularization.ema_decay": "default"}, "regularization.average_last=3")
    assert line.endswith(
        "has no effect: regularization.average_last = 3, and it is used where regularization.average_last == null; "
        "set that, or search it as well"
    )


def test_settings_changed_in_training_still_exclude_each_other() -> None:
    job = job_with("regularization")
    space = job.space(["image"])
    trial = space.draw({name: 0.1 for name in space.names} | {"regularization.rand_augment": 0.9})
    assert "regularization.rand_augment_magnitude" in trial
    settled = space.settled(trial | {"regularization.trivial_augment": True})  # as a population may perturb it
    assert settled.keys() == trial.keys()
    changed = job.with_settings(trial).with_settings(settled).regularization
    assert (changed.trivial_augment, changed.rand_augment) == (True, 0)
    assert misuse(changed, "cnn", job.network, "classification", ["image"]) is None
    assert space.settled(trial) == trial


def test_a_knob_that_needs_another_is_drawn_with_it() -> None:
    space = job_with("regularization").space(["image"])
    everywhere = {name: 0.1 for name in space.names}  # all that can be off is
    off = space.draw(everywhere)
    on = space.draw(everywhere | {"regularization.rand_augment": 0.9})
    assert "regularization.rand_augment_magnitude" in on.keys() - off.keys()
    # where the job has the other on, this one stays on
    job = job_with("regularization", "regularization.rand_augment=2", "regularization.rand_augment_magnitude=7")
    assert job.space(["image"]).axes["regularization.rand_augment"].model_dump() == {"randint": (1, 3)}


def test_a_setting_of_the_network_opens_the_knobs_that_need_it() -> None:
    assert "regularization.stochastic_depth" not in job_with("regularization").space().names
    assert "regularization.stochastic_depth" in job_with("regularization", "network.block=residual").space().names
    space = job_with({"regularization": "default", "network.block": {"choice": ["plain", "residual"]}}).space()
    assert [each.text for each in space.when["regularization.stochastic_depth"]] == ["network.block == 'residual'"]


def test_knobs_that_exclude_each_other_are_never_on_together() -> None:
    space = job_with("regularization", kind="feedforward").space()
    averages = [f"regularization.{name}" for name in ("ema_decay", "swa_start", "average_last")]
    random, seen = Random(0), set[str]()
    for _ in range(100):
        values = space.draw([random.random() for _ in space.names])
        on = [name for name in averages if values.get(name) is not None]
        assert len(on) <= 1
        seen.update(on)
    assert seen == set(averages)
    # the job's own is drawn first, so that the others are on only where it is off
    names = job_with("regularization", "regularization.swa_start=0.7", kind="feedforward").space().names
    assert min(averages, key=names.index) == "regularization.swa_start"


def test_the_keys_of_a_stopping_rule_are_searched_where_it_rules() -> None:
    space = job_with(
        {
            "early_stopping.rule": {"choice": ["patience", "up"]},
            "early_stopping": "default",
            "early_stopping.strips": {"randint": [1, 4]},
        }
    ).space()
    low, high = space.draw([0.0] * len(space.axes)), space.draw([0.999] * len(space.axes))
    assert "early_stopping.patience" in low.keys() - high.keys()
    assert "early_stopping.strips" in high.keys() - low.keys()
    assert "early_stopping.factor" in high.keys() - low.keys()  # there are no reductions in the other
    assert "early_stopping.target" not in space.axes
    (line,) = error_of({"early_stopping.alpha": {"uniform": [1, 4]}})
    assert (
        "has no effect: early_stopping.rule = 'patience', and it is used where early_stopping.rule in ['gl', " in line
    )


def test_a_section_stands_for_what_applies() -> None:
    names = job_with("regularization", kind="lstm").space().names
    assert "regularization.horizontal_flip" not in names
    assert "regularization.dropout" in names
    assert "regularization.label_smoothing" in names
    regression = job_with("regularization", "task=regression")
    assert "regularization.label_smoothing" not in regression.space().names
    assert "regularization.crop_padding" in regression.space().names
    assert "regularization.crop_padding" not in regression.space(columns=["numeric"]).names
    assert "regularization.crop_padding" in regression.space(columns=["image"]).names


def test_what_is_given_for_a_setting_wins_over_its_sections_default() -> None:
    space = job_with(
        {
            "regularization.dropout": {"uniform": [0.1, 0.2]},
            "regularization": "default",
            "regularization.weight_decay": "keep",
            "optimization.learning_rate": "default",
        }
    ).space()
    assert space.axes["regularization.dropout"].model_dump(mode="json") == {"uniform": [0.1, 0.2]}
    assert "regularization.weight_decay" not in space.axes
    assert space.axes["optimization.learning_rate"] == RANGES["optimization.learning_rate"]
    assert len(space.axes) > 5


@pytest.mark.parametrize("space", ["regularization", ["regularization", "early_stopping.patience"], CONDITIONAL])
def test_a_written_search_is_read_back(space: object) -> None:
    job = job_with(space, objectives=[{"metric": "parameters"}], budget={"time_s": 60}, repeats={"top": 3})
    assert Job.from_dict(Job.from_dict(job.model_dump(mode="json")).model_dump(mode="json")) == job


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a section that has no default": ({"space": "network"}, "search.space = 'network': there is no default range for"),
    "a misspelt section": (
        {"space": ["regularisation"]},
        "search.space = ['regularisation']: there is no default range for 'regularisation': give a distribution, "
        "or one of regularization, optimization,",
    ),
    "a setting without a default": (
        {"space": {"network.channels": "default"}},
        "search.space.network.channels = 'default': there is no default range for 'network.channels': give a "
        "distribution, or one of regularization, optimization, early_stopping, regularization.dropout,",
    ),
    "nothing left": (
        {"space": {"early_stopping.patience": "keep"}},
        "search.space: nothing is left to search: give a setting a distribution",
    ),
    "keep of nothing": (
        {"space": {"early_stopping": "default", "early_stopping.patiense": "keep"}},
        "search.space.early_stopping.patiense = 'keep': there is no setting 'early_stopping.patiense' with",
    ),
    "without effect": (
        {"space": {"optimization.momentum": {"uniform": [0, 0.9]}}},
        "search.space.optimization.momentum: has no effect: optimization.optimizer = 'adamw', and it is used where "
        "optimization.optimizer == 'sgd'; set that, or search it as well",
    ),
    "a condition on what is not searched": (
        {"when": {"regularization.dropuot": "network.kind == 'cnn'"}},
        "search.when.regularization.dropuot = \"network.kind == 'cnn'\": 'regularization.dropuot' is not in "
        "search.space. Did you mean 'regularization.dropout'?",
    ),
    "a condition on no setting": (
        {"when": {"regularization.dropout": "optimization.optimiser == 'sgd'"}},
        "search.when.regularization.dropout = \"optimization.optimiser == 'sgd'\": there is no setting "
        "'optimization.optimiser' with a network of kind 'cnn'. Did you mean 'optimization.optimizer'?",
    ),
    "a condition that is none": (
        {"when": {"regularization.dropout": "optimization.max_epochs ** 2 > 3"}},
        "search.when.regularization.dropout = 'optimization.max_epochs ** 2 > 3': column 1: "
        "`optimization.max_epochs ** 2` may not stand here",
    ),
    "a circle": (
        {
            "space": {"regularization.dropout": "default", "regularization.weight_decay": "default"},
            "when": {
                "regularization.dropout": "regularization.weight_decay > 0",
                "regularization.weight_decay": "regularization.dropout > 0",
            },
        },
        "search.when: the conditions of regularization.dropout, regularization.weight_decay name each other in a "
        "circle: remove one of them",
    ),
    "a constraint on nothing searched": (
        {"constraints": ["optimization.max_epochs < 100"]},
        "search.constraints = ['optimization.max_epochs < 100']: 'optimization.max_epochs < 100' names no setting of "
        "search.space, so no draw could change it",
    ),
    "a constraint never met": (
        {"constraints": ["regularization.dropout < 0.9", "regularization.dropout > 0.61"]},
        "none of 1000 random draws meets them; 'regularization.dropout > 0.61' failed 1000 times: loosen it",
    ),
    "a constraint with a mistake": (
        {"constraints": ["regularization.dropout <"]},
        "search.constraints[0] = 'regularization.dropout <': column 24: not an expression",
    ),
    "an objective twice": (
        {"objectives": [{"metric": "val/loss"}]},
        "search.objectives = [{metric: 'val/loss', mode: 'auto'}]: 'val/loss' is an objective twice: remove one",
    ),
    "an objective that is none": (
        {"objectives": [{"metric": "parametres"}]},
        "'parametres' must be <split>/<quantity>, such as 'val/loss', or one of parameters, seconds, epochs. "
        "Did you mean 'parameters'?",
    ),
    "cmaes with two objectives": (
        {"objectives": [{"metric": "parameters"}], "algorithm": "cmaes"},
        "search.algorithm = 'cmaes': cmaes has one objective: remove search.objectives, or use nsga2, optuna or gp",
    ),
    "cmaes without numbers": (
        {"space": {"optimization.optimizer": {"choice": ["sgd", "adamw"]}}, "algorithm": "cmaes"},
        "search.algorithm = 'cmaes': cmaes moves numbers, and the space has choices only: use optuna",
    ),
    "a warm start of nothing": (
        {"warm_start": "runs/x", "algorithm": "random"},
        "search.warm_start = 'runs/x': algorithm 'random' learns from no trial: remove it, or use optuna,",
    ),
    "a grid of reals by default": (
        {"space": {"regularization": "default"}, "algorithm": "grid"},
        "search.space.regularization = 'default': a grid cannot list the values of uniform for regularization.dropout",
    ),
    "a grid larger than the search": (
        {"space": {"early_stopping.patience": {"randint": [2, 40]}}, "algorithm": "grid"},
        "search.trials = 32: the grid has 39 combinations: use 39, or a smaller grid",
    ),
}


@pytest.mark.parametrize(("search", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_with_a_search_is_named(search: dict[str, Any], message: str) -> None:
    given = {"space": {"regularization.dropout": "default"}, **search}
    lines = error_of(given.pop("space"), **given)
    assert any(message in line for line in lines), lines


def test_a_setting_that_the_network_ignores_is_named() -> None:
    (line,) = error_of({"regularization.horizontal_flip": {"uniform": [0, 0.5]}}, kind="rnn")
    assert line.endswith(
        "search.space.regularization.horizontal_flip: a network of kind 'rnn' reads no image columns, which it changes"
    )
    (line,) = error_of({"regularization.zoneout": {"uniform": [0, 0.5]}})
    assert line.endswith("regularization.zoneout: is for network.kind: rnn or lstm, and network.kind = 'cnn'")
    (line,) = error_of({"regularization.label_smoothing": "default"}, "task=regression", kind="feedforward")
    assert line.endswith("has no meaning for regression")
