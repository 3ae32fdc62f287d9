"""The search section: distributions, metrics, and what they may vary."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from raynn.errors import JobError
from raynn.job import Job
from raynn.metrics import QUANTITIES
from raynn.problems import Problem
from raynn.scales import Distribution
from raynn.search import SearchSettings

DISTRIBUTIONS = {
    "uniform": [0.0, 1.0],
    "loguniform": [0.1, 1.0],
    "quniform": [0.0, 1.0, 0.25],
    "randint": [1, 5],
    "lograndint": [1, 5],
    "choice": [1, 2.5, "a", True, None, [1, 2]],
    "normal": [0.5, 0.1],
    "qloguniform": [0.5, 4.0, 0.5],
    "qrandint": [8, 64, 8],
    "lognormal": [-1.0, 0.5],
    "truncated_normal": [0.5, 1.0, 0.0, 2.0],
}
WHOLE = {"randint", "lograndint", "qrandint", "choice"}


def job_with(space: dict[str, object], *overrides: str, **search: object) -> Job:
    tree = {"data": {"train": "x"}, "network": {"kind": "cnn"}, "search": {"space": space, **search}}
    return Job.from_dict(tree, overrides)


def error_of(space: dict[str, object], *overrides: str, **search: object) -> list[str]:
    with pytest.raises(JobError) as caught:
        job_with(space, *overrides, **search)
    return str(caught.value).splitlines()


def distribution_of(kind: str) -> Distribution:
    settings = SearchSettings.model_validate_json(json.dumps({"space": {"a": {kind: DISTRIBUTIONS[kind]}}}))
    assert isinstance(settings.space, dict)
    distribution = settings.space["a"]
    assert isinstance(distribution, Distribution)
    return distribution


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_every_distribution_is_one_key_and_knows_what_it_draws(kind: str) -> None:
    distribution = distribution_of(kind)
    assert list(type(distribution).model_fields) == [kind]
    assert distribution.model_dump(mode="json") == {kind: DISTRIBUTIONS[kind]}
    assert type(distribution).__doc__
    assert (distribution.real is None) == (kind in WHOLE)
    assert distribution.outermost
    with pytest.raises(ValidationError, match="frozen"):
        setattr(distribution, kind, None)


def test_the_outermost_values_are_the_bounds() -> None:
    drawn = {kind: distribution_of(kind).outermost for kind in DISTRIBUTIONS}
    assert drawn["uniform"] == (0.0, 1.0)
    assert drawn["quniform"] == (0.0, 1.0)
    assert drawn["randint"] == (1, 5)  # hi included
    assert drawn["normal"] == (0.2, 0.8)
    assert drawn["choice"] == tuple(DISTRIBUTIONS["choice"])


BAD_DISTRIBUTIONS = {
    "falling": ({"uniform": [1, 0]}, ".uniform = [1, 0]: lo must be less than hi"),
    "a point": ({"randint": [2, 2]}, ".randint = [2, 2]: lo must be less than hi"),
    "one bound": ({"uniform": [1]}, ".uniform = [1]: must be a list of 2 numbers"),
    "a bound alone": ({"uniform": 1}, ".uniform = 1: must be a list of 2 numbers: write [1]"),
    "log of nothing": ({"loguniform": [0, 1]}, ".loguniform[0] = 0: must be greater than 0"),
    "log of no integer": ({"lograndint": [0, 4]}, ".lograndint[0] = 0: must be at least 1"),
    "real bounds of integers": ({"randint": [0.5, 3]}, ".randint[0] = 0.5: must be an integer"),
    "no step": ({"quniform": [0, 1, 0]}, ".quniform[2] = 0: must be greater than 0"),
    "a step too far": (
        {"quniform": [0, 1, 3]},
        ".quniform = [0, 1, 3]: the step must be at most hi - lo = 1, and is 3",
    ),
    "negative deviation": ({"normal": [0, -1]}, ".normal[1] = -1: must be greater than 0"),
    "no choice": ({"choice": []}, ".choice = []: must have at least 1 value"),
    "same choice": ({"choice": ["a", "b", "a"]}, ".choice = ['a', 'b', 'a']: 'a' is given twice"),
    "infinite": ({"uniform": [0, float("inf")]}, ".uniform[1] = .inf: must be a finite number"),
    "misspelt": (
        {"unifrom": [0, 1]},
        ": must be one of 'default', 'keep' or a section with one of the keys 'uniform',",
    ),
    "bare bounds": ([0, 1], " = [0, 1]: must be one of 'default', 'keep' or a section with one of the keys 'uniform',"),
    "two": ({"uniform": [0, 1], "choice": [1]}, ": must have only one of the keys 'uniform', 'choice'"),
    "none": ({}, ": must be one of 'default', 'keep' or a section with one of the keys 'uniform',"),
}


@pytest.mark.parametrize(("distribution", "message"), BAD_DISTRIBUTIONS.values(), ids=BAD_DISTRIBUTIONS.keys())
def test_a_bad_distribution_is_named(distribution: object, message: str) -> None:
    (line,) = error_of({"regularization.dropout": distribution})
    assert line.startswith(f"search.space.regularization.dropout{message}")


BAD_PATHS = {
    "regularization.droput": "there is no setting 'regularization.droput' with a network of kind 'cnn'. "
    "Did you mean 'regularization.dropout'?",
    "dropout": "Did you mean 'regularization.dropout'?",
    "droput": "Did you mean 'regularization.dropout'?",
    "network.hidden": "there is no setting 'network.hidden' with a network of kind 'cnn'",
    "regularization.dropout.x": "there is no setting 'regularization.dropout.x'",
    "regularization": "'regularization' is a section: name one of its keys",
    "resources.workers": "'resources' cannot be searched: it never changes the result",
    "tracking.wandb.project": "'tracking' cannot be searched: it never changes the result",
    "name": "'name' cannot be searched: it never changes the result",
    "search.trials": "'search' cannot be searched: it never changes the result",
    "data.train": "'data.train' cannot be searched: every trial is scored on the same rows and the same target",
    "data.validation.column": "'data.validation' cannot be searched: every trial is scored on the same rows",
    "network.kind": "'network.kind' cannot be searched: the other keys of `network` depend on it",
}


@pytest.mark.parametrize(("path", "message"), BAD_PATHS.items())
def test_what_cannot_be_searched_is_named(path: str, message: str) -> None:
    (line,) = error_of({path: {"uniform": [0, 0.5]}})
    assert line.startswith(f"search.space.{path}: ")
    assert message in line


MISFITS = {
    "real for integer": (
        {"optimization.max_epochs": {"uniform": [1, 5]}},
        "draws real numbers, and optimization.max_epochs takes integers: use randint or lograndint",
    ),
    "whole real for integer": ({"optimization.max_epochs": {"quniform": [1, 5, 1]}}, "takes integers: use randint"),
    "above": (
        {"regularization.dropout": {"uniform": [0, 1.5]}},
        "search.space.regularization.dropout.uniform = [0.0, 1.5]: 1.5 does not fit regularization.dropout: "
        "must be less than 1",
    ),
    "below": (
        {"optimization.max_epochs": {"randint": [0, 5]}},
        "0 does not fit optimization.max_epochs: must be at least 1",
    ),
    "tail": (
        {"regularization.dropout": {"normal": [0.1, 0.1]}},
        "-0.2 does not fit regularization.dropout: must be at least 0",
    ),
    "choice": (
        {"optimization.optimizer": {"choice": ["adam", "adamm"]}},
        "'adamm' does not fit optimization.optimizer: must be one of 'sgd', 'adam', 'adamw', 'muon'. Did you mean "
        "'adam'?",
    ),
    "part of a choice": (
        {"network.channels": {"choice": [[8], [0, 8]]}},
        "[0, 8] does not fit network.channels: network.channels[0] = 0: must be at least 1",
    ),
    "number for a name": (
        {"optimization.schedule": {"uniform": [0, 1]}},
        "0.0 does not fit optimization.schedule: must be one of 'constant',",
    ),
    "metric": (
        {"early_stopping.monitor": {"choice": ["test/loss"]}},
        "'test/loss' does not fit early_stopping.monitor: the test split is looked at once",
    ),
    "together": (
        {"optimization.global_batch_size": {"choice": [64, 100]}},
        "100 does not fit optimization.global_batch_size: optimization.accumulate = 8: "
        "must divide global_batch_size = 100",
    ),
}


@pytest.mark.parametrize(("space", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_what_does_not_fit_its_setting_is_named_once(space: dict[str, object], message: str) -> None:
    overrides = ("optimization.accumulate=8", "network.normalization=group", "search.algorithm=random")
    (line,) = error_of(space, *overrides)
    assert message in line


def test_every_wrong_choice_is_named() -> None:
    lines = error_of({"regularization.dropout": {"choice": [0.1, 2, 3]}})
    assert [line.partition("]: ")[2].split()[0] for line in lines] == ["2", "3"]


def test_settings_that_are_searched_together_may_fit_together() -> None:
    job_with(
        {"optimization.accumulate": {"choice": [3, 5]}, "optimization.global_batch_size": {"choice": [150, 300]}},
        "network.normalization=group",  # 3 and 5 do not divide the job's own 256
    )
    (line,) = error_of({"optimization.accumulate": {"choice": [3]}}, "network.normalization=group")
    assert "3 does not fit optimization.accumulate: must divide global_batch_size = 256, as 2 does" in line


def test_a_problem_of_a_whole_section_is_left_to_the_trial_when_more_of_it_is_searched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def problems_in(annotation: object, tree: dict[str, dict[str, object]]) -> list[Problem]:
        doubtful = tree["network"].get("channels") == [7]
        return [Problem(("network",), "value_error", "widths differ", tree["network"])] if doubtful else []

    monkeypatch.setattr("raynn.job.problems_in", problems_in)
    space: dict[str, object] = {"network.channels": {"choice": [[7], [8]]}}
    (line,) = error_of(space)
    assert line.endswith("[7] does not fit network.channels: network: widths differ")
    job_with({**space, "network.block": {"choice": ["plain", "residual"]}})


def test_a_problem_of_the_job_itself_is_not_blamed_on_the_search() -> None:
    (line,) = error_of({"optimization.max_epochs": {"randint": [1, 5]}}, "early_stopping.monitor=test/loss")
    assert line.startswith("override 'early_stopping.monitor=test/loss': early_stopping.monitor = 'test/loss': ")


def test_what_fits_is_taken() -> None:
    space = {
        "regularization.dropout": {"uniform": [0, 0.9]},
        "regularization.label_smoothing": {"quniform": [0, 0.2, 0.05]},
        "regularization.weight_decay": {"loguniform": [1e-6, 0.1]},
        "regularization.gradient_clip_norm": {"choice": [None, 1.0]},
        "optimization.global_batch_size": {"lograndint": [16, 512]},
        "network.channels": {"choice": [[8], [8, 16]]},
        "data.scaling": {"choice": ["standard", "quantile"]},
    }
    job = job_with(space)
    assert job.search is not None
    assert list(job.search.space) == list(space)


def test_algorithms_refuse_what_they_cannot_draw() -> None:
    (line,) = error_of({"regularization.dropout": {"uniform": [0, 0.5]}}, algorithm="grid")
    assert line.endswith("a grid cannot list the values of uniform: use choice or quniform")
    job_with({"regularization.dropout": {"quniform": [0, 0.5, 0.1]}}, algorithm="grid")


def test_a_search_names_what_it_varies() -> None:
    (line,) = error_of({})
    assert line.startswith("search.space: must have at least 1 key")
    with pytest.raises(JobError, match=r"search\.space: required key is missing"):
        Job.from_dict({"data": {"train": "x"}, "network": {"kind": "cnn"}, "search": {"trials": 3}})


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_the_better_way_follows_from_the_quantity(quantity: str) -> None:
    assert QUANTITIES[quantity][1], "no task has it"
    space = {"regularization.dropout": {"uniform": [0, 0.5]}}
    for mode in ("auto", "min", "max"):
        job = job_with(space, metric=f"val/{quantity}", mode=mode)
        assert job.search is not None
        assert job.search.direction == (QUANTITIES[quantity][0] if mode == "auto" else mode)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("val/acuracy", "'acuracy' is not a quantity: must be one of loss, accuracy,"),
        ("test/accuracy", "the test split is looked at once, at the end: use 'val/accuracy'"),
        ("accuracy", "must be <split>/<quantity>, such as 'val/loss'. Did you mean 'val/accuracy'?"),
        ("vall/loss", "split 'vall' must be 'train' or 'val'. Did you mean 'val'?"),
        ("", "must be <split>/<quantity>, such as 'val/loss'"),
    ],
)
def test_a_metric_that_is_none_is_named(metric: str, message: str) -> None:
    (line,) = error_of({"regularization.dropout": {"uniform": [0, 0.5]}}, metric=metric)
    assert line.startswith(f"search.metric = {metric!r}: {message}")
