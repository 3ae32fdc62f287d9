"""What one search learns from an earlier one."""

from __future__ import annotations

from pathlib import Path

import pytest

from raynn.errors import RunError
from raynn.job import Job
from raynn.ledger import FILE, Ledger, Verdict
from raynn.warm_start import earlier_trials


def job(space: object, **search: object) -> Job:
    return Job.from_dict({"data": {"train": "x"}, "network": {"kind": "cnn"}, "search": {"space": space, **search}})


def earlier(folder: Path) -> Path:
    """A search over dropout, with the job's own weight decay of 0.01; trial 2 fails, trial 4 runs."""
    folder.mkdir()
    (folder / "job.yaml").write_text(job({"regularization.dropout": {"uniform": [0, 0.9]}}).to_yaml())
    ledger = Ledger(folder / FILE)
    for number, dropout in enumerate((0.1, 0.3, 0.5, 0.8, 0.2)):
        trial = ledger.add({"regularization.dropout": dropout}, "search")
        ledger.become(trial, "running")
        ledger.report(trial, {"epoch": 1, "val/loss": dropout}, lambda trial: Verdict("go_on"))
        ledger.become(trial, ("finished", "cut", "failed", "stopped_early", "running")[number])  # type: ignore[arg-type]
    again = ledger.add({"regularization.dropout": 0.1, "optimization.seed": 1}, "repeat", {"of": 0})
    ledger.report(again, {"epoch": 1, "val/loss": 0.1}, lambda trial: Verdict("go_on"))
    ledger.become(again, "finished")
    return folder


BOTH = {"regularization.dropout": {"uniform": [0, 0.6]}, "regularization.weight_decay": {"loguniform": [1e-4, 0.1]}}


def test_the_trials_that_lie_in_the_space_with_what_they_left_as_it_was(tmp_path: Path) -> None:
    folder = earlier(tmp_path / "before")
    now = job(BOTH)
    assert now.search is not None
    trials = earlier_trials(folder, now.space(), now.search)
    assert [trial.number for trial in trials] == [0, 1, 2]  # 3 lies outside, 4 still runs
    assert trials[1].settings == {"regularization.dropout": 0.3, "regularization.weight_decay": 0.01}
    assert [trial.status for trial in trials] == ["finished", "cut", "failed"]


def test_a_journal_that_is_being_written_is_left_as_it_is(tmp_path: Path) -> None:
    folder = earlier(tmp_path / "before")
    with (folder / FILE).open("a") as file:
        file.write('{"event": "sta')
    content = (folder / FILE).read_bytes()
    now = job(BOTH)
    assert now.search is not None
    assert len(earlier_trials(folder, now.space(), now.search)) == 3
    assert (folder / FILE).read_bytes() == content


def test_a_folder_that_cannot_be_learned_from_is_named(tmp_path: Path) -> None:
    now = job(BOTH)
    assert now.search is not None
    with pytest.raises(RunError, match=r"search.warm_start = '.*nowhere': no search.jsonl and job.yaml there"):
        earlier_trials(tmp_path / "nowhere", now.space(), now.search)
    folder = earlier(tmp_path / "before")
    elsewhere = job({**BOTH, "regularization.weight_decay": {"loguniform": [1e-6, 1e-5]}})
    with pytest.raises(RunError, match=r"none of its 6 trials has ended with val/loss and settings that search.space"):
        earlier_trials(folder, elsewhere.space(), now.search)
    accuracy = now.search.model_copy(update={"metric": "val/accuracy"})
    (trial,) = earlier_trials(folder, now.space(), accuracy)  # the one that failed says something all the same
    assert trial.number == 2
