from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynn.errors import JobError
from raynn.job import Job
from raynn.rules import RULES, RuleSettings
from raynn.stopping import Decision, EarlyStoppingSettings, Reaction, decide, rule_problems


def history_of(curve: Sequence[float]) -> list[dict[str, float]]:
    return [
        {"epoch": i, "val/loss": value, "val/accuracy": 1 / (1 + value), "train/loss": 1 / i, "seconds": 2.0}
        for i, value in enumerate(curve, start=1)
    ]


def decision(curve: list[float], **fields: Any) -> Decision:
    return decide(EarlyStoppingSettings(**fields), history_of(curve))


def stops_at(curve: list[float], **fields: Any) -> int | None:
    """The first epoch after which the rule stops."""
    return next((n for n in range(1, len(curve) + 1) if decision(curve[:n], **fields).stop), None)


@pytest.mark.parametrize(
    ("curve", "fields", "stop", "best"),
    [
        pytest.param([5, 4, 3, 2, 1], {"patience": 1}, None, 5, id="always better"),
        pytest.param([1, 2, 3, 4, 5], {"patience": 3}, 4, 1, id="always worse"),
        pytest.param([3, 2, 4, 4, 1, 4], {"patience": 2}, 4, 5, id="stops before a later best"),
        pytest.param([3, 2, 4, 1, 4, 4], {"patience": 2}, 6, 4, id="a best in time renews patience"),
        pytest.param([2, 2, 2], {"patience": 2}, 3, 1, id="equal is not better; the first is the best"),
        pytest.param([1.0, 0.95, 0.9, 0.85], {"patience": 2, "min_delta": 0.2}, 3, 4, id="too little each time"),
        pytest.param([1.0, 0.9, 0.75, 0.5], {"patience": 2, "min_delta": 0.2}, None, 4, id="enough over two epochs"),
        pytest.param([1, 2, 3, 4], {"rule": "none"}, None, 1, id="no rule"),
        pytest.param([1, 2, 3, 4, 5], {"patience": 1, "warmup_epochs": 3}, 4, 1, id="no rule fires in the warm-up"),
        pytest.param([4, 3, 5, 3, 1], {"patience": 2, "smoothing": 0.9}, 4, 5, id="smoothed; the best is as measured"),
        pytest.param([math.nan, 1.0, math.nan, math.nan], {"patience": 2}, 4, 2, id="NaN is never better"),
        pytest.param([math.nan, math.nan], {"patience": 1}, 2, 1, id="only NaN"),
        pytest.param([math.inf, 3.0, math.inf], {"patience": 2}, None, 2, id="infinite at first"),
    ],
)
def test_curves_with_known_answers(curve: list[float], fields: dict[str, Any], stop: int | None, best: int) -> None:
    assert stops_at(curve, **fields) == stop
    assert decision(curve, **fields).best_epoch == best


@pytest.mark.parametrize(("monitor", "best"), [("val/accuracy", 2), ("val/loss", 3)])
def test_the_direction_of_the_metric(monitor: str, best: int) -> None:
    history = [{"val/accuracy": value, "val/loss": value} for value in (0.5, 0.9, 0.1)]
    assert decide(EarlyStoppingSettings(monitor=monitor), history).best_epoch == best


def test_an_epoch_better_by_less_than_min_delta_gives_the_weights_but_no_patience() -> None:
    last = decision([1.0, 0.99, 0.98], patience=2, min_delta=0.05)
    assert last == Decision(
        True,
        "val/loss has not improved by more than 0.05 for 2 epochs (best 0.98 at epoch 3): rule patience, epoch 3",
        best_epoch=3,
        path=(1, 2, 3),
    )


def test_a_decision_to_go_on_has_no_reason() -> None:
    assert decision([1.0]) == Decision(False, "", 1, path=(1,))


def test_the_metric_must_be_recorded() -> None:
    message = (
        "early_stopping.monitor = 'val/los' is not recorded by this job. Did you mean 'val/loss'? "
        "Recorded: train/loss, val/accuracy, val/loss"
    )
    with pytest.raises(JobError, match=f"^{re.escape(message)}$"):
        decision([1.0], monitor="val/los")


GL, SPENT = RuleSettings(rule="gl", alpha=5.0), RuleSettings(rule="time", budget_s=7.0)


def test_any_and_all_say_which_rules_held() -> None:
    curve = [1.0, 1.1, 0.9, 1.2]  # GL holds at 2 and 4, and 8 s are over at 4
    assert stops_at(curve, any=(GL, SPENT)) == 2
    assert stops_at(curve, all=(GL, SPENT)) == 4
    assert decision(curve, all=(GL, SPENT)).reason == (
        "the generalization loss of val/loss is 33.33 %, more than alpha = 5 (best 0.9 at epoch 3); "
        "training has taken 8.0 s of the 7 s it may: rule gl and time, epoch 4"
    )
    assert decision(curve[:2], any=(GL, SPENT)).reason.endswith("(best 1 at epoch 1): rule gl, epoch 2")


def test_rules_have_the_sections_monitor_and_smoothing_unless_they_have_their_own() -> None:
    section = EarlyStoppingSettings(
        monitor="val/accuracy", smoothing=0.5, any=(GL, RuleSettings(monitor="train/loss", smoothing=0.0))
    )
    assert [(rule.monitor, rule.smoothing) for rule in section.rules] == [("val/accuracy", 0.5), ("train/loss", 0.0)]


a_rule = st.sampled_from(
    [
        GL,
        SPENT,
        RuleSettings(patience=2),
        RuleSettings(rule="up", strips=1, strip_length=2),
        RuleSettings(rule="plateau", window=2, max_deviation=0.5),
        RuleSettings(rule="target", target=1.0),
    ]
)
some_curve = st.lists(st.floats(0.125, 8.0), min_size=1, max_size=12)


@given(some_curve, st.lists(a_rule, min_size=1, max_size=3))
def test_any_is_or_and_all_is_and(curve: list[float], rules: list[RuleSettings]) -> None:
    alone = [decision(curve, any=(rule,)).stop for rule in rules]
    assert decision(curve, any=tuple(rules)).stop == any(alone)
    assert decision(curve, all=tuple(rules)).stop == all(alone)


def trained(curve: Sequence[float], **fields: Any) -> list[Decision]:
    """The decision after each epoch of a training that sees this curve until it is stopped."""
    made = []
    for n in range(1, len(curve) + 1):
        made.append(decision(list(curve[:n]), **fields))
        if made[-1].stop:
            break
    return made


def test_the_rate_is_reduced_before_training_stops() -> None:
    """Epochs 3 and 4 are worse than 2: back to it. So are 5 and 6, then 8 and 9 than 7."""
    made = trained([3.0, 2.0, 2.5, 2.6, 1.9, 2.1, 1.8, 1.85, 1.9, 1.0], patience=2, reductions=1)
    assert [d.back for d in made] == [False, False, False, True, False, False, False, False, False][: len(made)]
    assert [len(d.reactions) for d in made] == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert made[3].reactions == (
        Reaction(
            4, "val/loss has not improved by more than 0 for 2 epochs (best 2 at epoch 2): rule patience, epoch 4"
        ),
    )
    assert made[-1] == Decision(
        True,
        "val/loss has not improved by more than 0 for 2 epochs (best 1.8 at epoch 7): rule patience, epoch 9, "
        "the learning rate reduced once before",
        best_epoch=7,
        reactions=made[3].reactions,
        path=(1, 2, 5, 6, 7),
    )


def test_after_a_reduction_patience_counts_from_the_best_epoch_again() -> None:
    made = trained([1.0, 2.0, 3.0, 2.0, 3.0, 4.0, 5.0], patience=2, reductions=2)
    assert [d.back for d in made] == [False, False, True, False, True, False, False]
    assert made[-1].stop
    assert made[-1].reason.endswith("rule patience, epoch 7, the learning rate reduced 2 times before")
    assert made[-1].path == (1,)


def test_the_strips_of_up_go_on_from_the_best_epoch() -> None:
    """After going back to epoch 2 the next two epochs are a strip, whose end is worse than epoch 2."""
    made = trained([3.0, 2.0, 2.5, 2.6, 2.4, 2.2, 9.0, 9.0], rule="up", strips=1, strip_length=2, reductions=1)
    assert [d.back for d in made] == [False, False, False, True, False, False]
    assert made[-1].stop


@pytest.mark.parametrize(
    "fields", [{"rule": "target", "target": 1.0}, {"any": (GL, RuleSettings(rule="target", target=1.0))}]
)
def test_reaching_the_target_ends_training_whatever_reductions_are_left(fields: dict[str, Any]) -> None:
    made = trained([3.0, 2.0, 1.0, 0.5], reductions=3, **fields)
    assert len(made) == 3
    assert made[-1].stop


def test_with_any_one_rule_that_ends_training_is_enough_and_with_all_it_takes_all() -> None:
    """In epoch 3 patience is over, and so is the time."""
    rules = (RuleSettings(patience=2), RuleSettings(rule="time", budget_s=6.0))
    assert trained([1.0, 2.0, 3.0], any=rules, reductions=3)[-1].stop
    assert trained([1.0, 2.0, 3.0], all=rules, reductions=3)[-1].back


@given(some_curve, a_rule, st.integers(0, 3), st.integers(0, 4))
def test_a_decision_made_again_from_the_history_is_the_same(
    curve: list[float], rule: RuleSettings, reductions: int, warmup: int
) -> None:
    """Earlier reactions are found again whoever asks: so it is after a resume, and on every worker."""
    made = trained(curve, any=(rule,), reductions=reductions, warmup_epochs=warmup)
    for earlier, later in pairwise(made):
        assert later.reactions[: len(earlier.reactions)] == earlier.reactions
        assert len(later.reactions) == len(earlier.reactions) + later.back
    assert all(reaction.epoch > warmup for reaction in made[-1].reactions)
    assert all(not d.stop for d in made[:warmup])
    assert made[-1].path[-1] == made[-1].best_epoch
    assert not (made[-1].back and made[-1].stop)


def problems(**section: Any) -> list[tuple[str, str]]:
    settings = EarlyStoppingSettings.model_validate_json(json.dumps(section))
    return [(path.removeprefix("early_stopping."), message) for path, message, _ in rule_problems(settings)]


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"patience": 5}, []),
        ({"rule": "none", "patience": 5, "min_delta": 0.0}, []),  # at their defaults they say nothing
        (
            {"rule": "gl", "patience": 3},
            [
                (
                    "patience",
                    "is not used by rule 'gl', whose keys are: alpha, smoothing: remove it, or use rule patience",
                )
            ],
        ),
        (
            {"alpha": 2.0},
            [
                (
                    "alpha",
                    "is not used by rule 'patience', whose keys are: patience, min_delta, min_delta_relative, "
                    "smoothing: remove it, or use rule gl or pq",
                )
            ],
        ),
        (
            {"rule": "none", "warmup_epochs": 2},
            [("warmup_epochs", "is not used by rule 'none', which never stops: remove it")],
        ),
        (
            {"rule": "time", "budget_s": 9.0, "reductions": 2},
            [("reductions", "is not used by rule 'time', which only ends training: remove it")],
        ),
        ({"factor": 0.5}, [("factor", "is not used without early_stopping.reductions: set that too")]),
        ({"factor": 0.5, "reductions": 1}, []),
        (
            {"rule": "target"},
            [("target", "is needed by rule 'target': give the value of the metric to stop at")],
        ),
        (
            {"rule": "gl", "any": [{"rule": "up"}]},
            [("rule", "is not used beside early_stopping.any and all, whose rules have keys of their own: remove it")],
        ),
        ({"any": [{"rule": "up"}], "all": [{}]}, [("all", "cannot stand beside early_stopping.any: keep one of them")]),
        ({"all": [{}, {"rule": "none"}]}, [("all.1.rule", "'none' is no rule to combine: remove it")]),
        (
            {"any": [{"rule": "time", "budget_s": 1.0}, {"rule": "up", "alpha": 1.0}]},
            [
                (
                    "any.1.alpha",
                    "is not used by rule 'up', whose keys are: strips, strip_length, smoothing: remove it, or use "
                    "rule gl or pq",
                )
            ],
        ),
    ],
)
def test_a_key_that_would_be_ignored_is_named(section: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert problems(**section) == expected


JOB = """\
data: {train: rows.parquet, target: y}
network: {kind: feedforward}
early_stopping: {any: [{rule: gl, alpha: 5}, {rule: time, budget_s: 600}], reductions: 2}
"""


def load(tmp_path: Any, text: str, *overrides: str) -> Job:
    (tmp_path / "job.yaml").write_text(text)
    return Job.load(tmp_path / "job.yaml", overrides)


@pytest.mark.parametrize(
    "section",
    [
        "{patience: 5}",
        "{rule: none}",
        "{rule: pq, alpha: 0.5, strip_length: 3, smoothing: 0.5, warmup_epochs: 4}",
        "{rule: target, target: 0.1, monitor: val/accuracy}",
        "{any: [{rule: gl, alpha: 5}, {rule: time, budget_s: 600}], reductions: 2, factor: 0.5}",
        "{all: [{}, {rule: plateau, monitor: val/accuracy, smoothing: 0.3}]}",
    ],
)
def test_a_job_written_out_is_the_same_job(tmp_path: Any, section: str) -> None:
    job = load(tmp_path, JOB[: JOB.index("early")] + f"early_stopping: {section}\n")
    written = job.to_yaml()
    assert load(tmp_path, written) == job
    assert Job.from_dict(job.model_dump(mode="json")) == job
    assert not {
        key for rule in job.early_stopping.rules for key in ("window", "strips") if key not in RULES[rule.rule].keys
    } & {line.strip().partition(":")[0] for line in written.splitlines()}, "keys that no rule uses are left out"


def test_the_place_of_a_wrong_key_is_named(tmp_path: Any) -> None:
    with pytest.raises(JobError) as caught:
        load(tmp_path, JOB.replace("alpha: 5", "strips: 5"))
    assert str(caught.value).endswith(
        "job.yaml:3:43: early_stopping.any[0].strips = 5: is not used by rule 'gl', whose keys are: alpha, smoothing: "
        "remove it, or use rule up"
    )


def test_a_rule_of_several_is_overridden_and_searched_by_its_place(tmp_path: Any) -> None:
    search = "search: {space: {early_stopping.any.0.alpha: {loguniform: [1, 9]}}}\n"
    job = load(tmp_path, JOB + search, "early_stopping.any.0.alpha=7.5")
    assert job.early_stopping.any[0].alpha == 7.5
    for path, message in [
        ("early_stopping.any.0.strips", "2 does not fit early_stopping.any.0.strips: is not used by rule 'gl'"),
        ("early_stopping.any.2.strips", "there is no setting 'early_stopping.any.2.strips'"),
        ("early_stopping.patience", "2 does not fit early_stopping.patience: is not used beside early_stopping.any"),
    ]:
        with pytest.raises(JobError, match=re.escape(message)):
            load(tmp_path, JOB + f"search: {{space: {{{path}: {{choice: [2, 3, 4]}}}}}}\n")


def test_a_search_over_rules_may_vary_the_keys_of_each(tmp_path: Any) -> None:
    space = "{early_stopping.rule: {choice: [patience, gl]}, early_stopping.alpha: {uniform: [1, 9]}}"
    job = load(tmp_path, JOB[: JOB.index("early")] + f"search: {{space: {space}}}\n")
    assert job.search is not None
    with pytest.raises(JobError, match=r"early_stopping\.alpha: has no effect: early_stopping\.rule = 'patience'"):
        load(tmp_path, JOB[: JOB.index("early")] + "search: {space: {early_stopping.alpha: {uniform: [1, 9]}}}\n")


def test_rules_do_not_change_during_training_that_may_go_back(tmp_path: Any) -> None:
    """What was gone back behind is found again from the history, by rules that were in force throughout."""
    change = "changes: [{after_epoch: 2, settings: {early_stopping.factor: 0.5}}]\n"
    message = "'early_stopping.factor' cannot change with early_stopping.reductions, which earlier epochs decided"
    with pytest.raises(JobError, match=re.escape(message)):
        load(tmp_path, JOB + change)
    without = JOB[: JOB.index("early")] + "early_stopping: {patience: 5}\n"
    assert load(tmp_path, without + change.replace("factor: 0.5", "patience: 3")).after(2).early_stopping.patience == 3
