"""What a study compares, and the intervals it gives, against figures worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from raynn.ablation import Arm, Estimate, StudySettings, arms_of, findings
from raynn.errors import JobError
from raynn.job import Job
from raynn.report import write_report
from raynn.study_report import METHOD, read_study, study_page

ABLE = ("dropout", "l2", "rand_augment", "rand_augment_magnitude", "ema_decay")


def job_with(study: dict[str, Any] | None = None, **regularization: Any) -> Job:
    off = {"dropout": 0.0, "weight_decay": 0.0}
    tree = {"data": {"train": "x"}, "network": {"kind": "cnn"}, "regularization": off | regularization}
    return Job.from_dict(tree | ({"study": study} if study is not None else {}))


def arms(study: dict[str, Any], **regularization: Any) -> dict[str, dict[str, Any]]:
    job = job_with(study, **regularization)
    assert job.study is not None
    return {
        arm.name: {name.removeprefix("regularization."): value for name, value in arm.settings.items()}
        for arm in arms_of(job.study, job.regularization, ABLE)
    }


def test_the_jobs_own_knobs_each_alone_and_each_left_out() -> None:
    ramp = {"from": 0.0, "to": 0.4, "over": 0.5}
    assert arms({}, dropout=ramp, l2=1e-3, ema_decay=0.99) == {
        "none": {"dropout": 0.0, "l2": 0.0, "ema_decay": None},
        "all": {},
        "dropout alone": {"l2": 0.0, "ema_decay": None},  # at the job's own strength, which differs from nothing
        "l2 alone": {"dropout": 0.0, "ema_decay": None},
        "ema_decay alone": {"dropout": 0.0, "l2": 0.0},
        "without dropout": {"dropout": 0.0},
        "without l2": {"l2": 0.0},
        "without ema_decay": {"ema_decay": None},
    }


def test_a_knob_that_is_off_is_tried_in_the_middle_of_its_range() -> None:
    found = arms({"knobs": "all"}, dropout=0.1)
    assert "without l2" not in found
    assert found["l2 alone"] == {"dropout": 0.0, "l2": pytest.approx(math.sqrt(1e-7 * 1e-2))}
    assert found["rand_augment alone"] == {"dropout": 0.0, "rand_augment": 2}
    assert found["rand_augment_magnitude alone"] == {"dropout": 0.0, "rand_augment": 2, "rand_augment_magnitude": 9.0}
    assert found["dropout alone"] == {}
    assert list(arms({"knobs": ["l2"]}, dropout=0.1)) == ["none", "all", "l2 alone"]


def test_arms_with_the_same_settings_share_their_runs() -> None:
    job = job_with({}, dropout=0.1, l2=1e-3)
    found = arms_of(StudySettings(), job.regularization, ABLE)
    assert {arm.name: arm.runs for arm in found if arm.runs != arm.name} == {
        "without dropout": "l2 alone",
        "without l2": "dropout alone",
    }
    told = rows("accuracy", none=[(1, 0, 0.5)], all=[(1, 0, 0.9)], l2_alone=[(1, 0, 0.6)])
    without = findings(found, told, "accuracy")[-2]
    assert without.loss_of_leaving is not None
    assert without.loss_of_leaving.mean == pytest.approx(0.3)


def test_what_hangs_on_a_knob_is_left_out_with_it() -> None:
    found = arms({}, rand_augment=1, rand_augment_magnitude=5.0, dropout=0.2)
    assert found["without rand_augment"] == {"rand_augment": 0, "rand_augment_magnitude": None}
    assert found["without rand_augment_magnitude"] == {"rand_augment_magnitude": None}
    assert found["rand_augment_magnitude alone"] == {"dropout": 0.0}


def test_every_arm_is_a_valid_job() -> None:
    job = job_with({"knobs": "all"}, dropout=0.1, sam=0.05)
    assert job.study is not None
    for arm in arms_of(job.study, job.regularization, ABLE):
        assert job.with_settings({**arm.settings, "optimization.seed": 7}).study is None


def test_an_interval_is_that_of_students_t() -> None:
    found = Estimate.of([1.0, 2.0, 6.0])
    assert found is not None
    # sd = sqrt(7), t(0.975, 2) = 4.302653 (any table of it)
    half = 4.302653 * math.sqrt(7 / 3)
    assert (found.n, found.mean) == (3, 3.0)
    assert found.low == pytest.approx(3 - half, rel=1e-6)
    assert found.high == pytest.approx(3 + half, rel=1e-6)
    assert Estimate.of([0.5, math.nan]) == Estimate(1, 0.5, None, None)
    assert Estimate.of([]) is None
    assert [Estimate(3, 1.0, *ends).verdict for ends in ((0.5, 1.5), (-1.5, -0.5), (-0.5, 2.5))] == [
        "better",
        "worse",
        "unclear",
    ]


ARMS = (
    Arm("none", "none", None, {}, "none"),
    Arm("all", "all", None, {}, "all"),
    Arm("without l2", "without", "l2", {}, "without l2"),
)


def rows(quantity: str, **figures: list[tuple[float, float, float] | None]) -> list[dict[str, Any]]:
    """Rows of train, validation and test figures, an arm and a seed each; None of a run that failed."""
    found = []
    for arm, values in figures.items():
        for seed, three in enumerate(values):
            keys = [f"{split}/{quantity}" for split in ("train", "val", "test")]
            row = dict(zip(keys, three, strict=True)) if three else {}
            found.append({"arm": arm.replace("_", " "), "seed": seed, **row})
    return found


def test_arms_are_compared_in_pairs_of_one_seed() -> None:
    # the seeds differ by far more than the arms: unpaired, nothing could be said
    told = rows(
        "accuracy",
        none=[(0.9, 0.5, 0.5), (0.9, 0.7, 0.7), (0.9, 0.3, 0.3)],
        all=[(0.8, 0.6, 0.61), (0.8, 0.8, 0.80), (0.8, 0.4, 0.42)],
        without_l2=[(0.8, 0.6, 0.58), None, (0.8, 0.4, 0.37)],
    )
    none, everything, without = findings(ARMS, told, "accuracy")
    assert none.gain is None
    assert none.gap is not None
    assert none.gap.mean == pytest.approx(0.4)
    gain = everything.gain
    assert gain is not None
    assert gain.mean == pytest.approx(0.11)
    assert gain.high == pytest.approx(0.11 + 4.302653 * 0.01 / math.sqrt(3), rel=1e-6)
    assert gain.verdict == "better"
    assert everything.narrowed is not None
    assert everything.narrowed.mean == pytest.approx(0.21)
    assert without.test is not None
    assert without.test.n == 2  # one failed
    assert without.loss_of_leaving is not None
    assert without.loss_of_leaving.mean == pytest.approx((0.03 + 0.05) / 2)


def test_of_an_error_less_is_a_gain() -> None:
    told = rows("rmse", none=[(1.0, 2.0, 2.0), (1.0, 2.0, 2.2)], all=[(1.5, 1.9, 1.9), (1.5, 1.9, 2.0)])
    none, everything, _ = findings(ARMS, told, "rmse")
    assert none.gap is not None
    assert none.gap.mean == pytest.approx(1.1)
    assert everything.gain is not None
    assert everything.gain.mean == pytest.approx(0.15)


WRONG = {
    "a knob that is none": ({"knobs": ["dropuot"]}, "'dropuot' is no key of regularization. Did you mean 'dropout'?"),
    "a word for the knobs": ({"knobs": "every"}, "study.knobs = 'every': "),
    "one seed": ({"seeds": 1}, "study.seeds = 1: must be at least 2"),
    "a metric that is none": ({"metric": "acuracy"}, "study.metric = 'acuracy': 'acuracy' is not a quantity"),
}


@pytest.mark.parametrize(("study", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_with_a_study_is_named(study: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError) as caught:
        job_with(study)
    assert message in str(caught.value)


def test_the_section_changes_no_result() -> None:
    assert job_with({"seeds": 5}).fingerprint() == job_with().fingerprint()
    assert Job.from_dict(job_with({"knobs": ["l2"]}).model_dump(mode="json")).study == StudySettings(knobs=("l2",))


def write_study(folder: Path) -> Path:
    """A study's folder with made-up figures."""
    told = rows("accuracy", none=[(0.99, 0.8, 0.8), (0.98, 0.81, 0.79)], all=[(0.95, 0.86, 0.85), (0.94, 0.85, 0.86)])
    content: dict[str, Any] = {"quantity": "accuracy", "seeds": 2, "arms": []}
    content["failed"] = [{"arm": "without l2", "seed": 1, "reason": "the loss <b>stopped</b> being finite"}]
    for finding in findings(ARMS, told, "accuracy"):
        arm: dict[str, Any] = {"arm": finding.arm.name, "kind": finding.arm.kind}
        for key, value in vars(finding).items():
            if key != "arm":
                arm[key] = None if value is None else vars(value) | {"verdict": value.verdict}
        content["arms"].append(arm)
    folder.mkdir()
    (folder / "study.json").write_text(json.dumps(content))
    (folder / "result.json").write_text(json.dumps({"name": "wine", "status": "finished", "seconds": 3.0}))
    return folder


def test_a_report_shows_gains_gaps_and_the_method(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "wine")
    page = study_page(read_study(folder))
    assert [title for _, title, _ in page.sections] == [
        "What each is worth",
        "Where it generalizes",
        "How it was measured",
        "Repeat",
    ]
    labels = [chart["label"] for chart in page.charts.values()]
    assert [label.partition(".")[0] for label in labels] == [
        "Gain over no regularizer",
        "Generalization gap",
        "Train, validation, test",
    ]
    gain = page.charts["chart-0"]["option"]["series"]
    assert gain[0]["data"] == [0.06]  # of all over none: (0.05 + 0.07) / 2
    # t(0.975, 1) = 12.7062, sd / sqrt(2) = 0.01
    assert gain[1]["data"] == [[0, pytest.approx(0.06 - 0.127062, abs=1e-5), pytest.approx(0.06 + 0.127062, abs=1e-5)]]
    text = write_report(folder).read_text()
    assert "0.06\u00a0\u00b1\u00a00.13" in text
    assert "unclear" in text
    assert "&lt;b&gt;stopped" in text
    assert METHOD.partition(".")[0] in text


def test_a_study_that_goes_on_has_a_report(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "wine")
    content = json.loads((folder / "study.json").read_text())
    for arm in content["arms"]:
        arm.update(dict.fromkeys(("test", "validation", "train", "gap", "gain", "loss_of_leaving", "narrowed")))
    (folder / "study.json").write_text(json.dumps(content))
    (folder / "result.json").unlink()
    assert [key for key, _, _ in study_page(read_study(folder)).sections] == ["method", "again"]
