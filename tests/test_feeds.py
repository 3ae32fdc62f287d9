"""What mirrors are told of runs and searches, from their folders."""

from __future__ import annotations

from pathlib import Path

from followed import RunFolder, SearchFolder, StudyFolder

from raynn.feeds import Change, RunFeed, SearchFeed, best_record, dotted, feed_of
from raynn.ledger import FILE


def test_settings_by_dotted_path() -> None:
    nested = {"a": {"b": {"c": 1}, "d": [{"e": 2}]}, "f": None, "g": {}}
    assert dotted(nested) == {"a.b.c": 1, "a.d": [{"e": 2}], "f": None}


def test_a_run_is_told_of_when_it_changes_and_ends_with_its_result(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a", {})
    feed = feed_of(run.folder)
    assert isinstance(feed, RunFeed)
    assert [(now.records, now.state) for now in feed.read(False)] == [((), "running")]
    assert feed.read(False) == []
    run.train(1, 2)
    with (run.folder / "norms.jsonl").open("a") as file:
        file.write('{"epoch": 3, "step": 30, "norms/weight/head": 3.0}\n')  # the metrics follow
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "val')  # being written
    (now,) = feed.read(False)
    assert [(record["epoch"], record["norms/weight/head"]) for record in now.records] == [(1, 1.0), (2, 2.0)]
    assert [now.state for now in feed.read(True)] == ["interrupted"]
    run.end(**{"val/loss": 0.5})
    (now,) = feed.read(True)
    assert (now.state, now.summary) == ("ended", {"status": "finished", "best_epoch": 2, "val/loss": 0.5})
    run.end("failed")
    assert [now.state for now in feed.read(True)] == ["failed"]


def test_a_search_is_told_trial_by_trial_with_states_and_best_epochs(tmp_path: Path) -> None:
    search = SearchFolder(tmp_path / "s", {})
    feed = feed_of(search.folder)
    assert isinstance(feed, SearchFeed)
    first, second = search.begin(0.1), search.begin(0.2, "repeat")
    search.train(first, 1, 2, "pause")
    now = {run.name: run for run in feed.read(False)}
    assert {name: (run.kind, run.group, run.state, len(run.records)) for name, run in now.items()} == {
        "s-0000": ("trial", "s", "paused", 2),
        "s-0001": ("repeat", "s", "running", 0),
    }
    assert now["s-0001"].settings["regularization.dropout"] == 0.2
    assert "search.trials" not in now["s-0001"].settings
    search.ledger.become(first, "running")
    search.train(first, 3, 3, "cut")
    (again,) = feed.read(False)
    assert (again.state, again.summary["val/loss"], again.summary["best_epoch"]) == ("ended", 1 / 3, 3)
    assert [(run.name, run.state) for run in feed.read(True)] == [("s-0001", "interrupted")]
    assert feed.read(True) == []
    assert [(run.name, len(run.records)) for run in feed_of(search.folder).read(True)] == [("s-0000", 3), ("s-0001", 0)]
    assert second.number == 1


def test_a_line_of_the_journal_that_is_being_written_waits(tmp_path: Path) -> None:
    search = SearchFolder(tmp_path / "s", {})
    trial = search.begin(0.1)
    feed = feed_of(search.folder)
    feed.read(False)
    search.train(trial, 1, 1)
    whole = (search.folder / FILE).read_bytes()
    (search.folder / FILE).write_bytes(whole[:-5])
    assert feed.read(False) == []
    (search.folder / FILE).write_bytes(whole)
    assert [len(run.records) for run in feed.read(False)] == [1]


def test_a_trial_that_takes_over_keeps_what_it_measured_and_says_from_where_it_goes_on(tmp_path: Path) -> None:
    search = SearchFolder(tmp_path / "s", {})
    good, poor = search.begin(0.1), search.begin(0.2)
    search.train(good, 1, 2, "pause")
    search.train(poor, 1, 2, "pause")
    settings = {"regularization.dropout": 0.12, "optimization.learning_rate": 0.02}
    search.ledger.exploit(poor, good, settings)
    search.ledger.become(poor, "running")
    search.train(poor, 3, 3)
    told = feed_of(search.folder).read(False)[1]
    assert [record["val/loss"] for record in told.records] == [2.0, 1.0, 2 / 3]
    assert told.changes == (Change(2, 0, settings),)


def test_the_best_record_has_a_number() -> None:
    records = [{"epoch": 1, "v": None}, {"epoch": 2, "v": 3.0}, {"epoch": 3, "v": float("nan")}, {"epoch": 4, "v": 2.0}]
    assert best_record(records, "v", "min") == records[3]
    assert best_record(records, "v", "max") == records[1]
    assert best_record(records[:1], "v", "min") is None


def test_the_winner_is_told_of_once_the_search_has_ended(tmp_path: Path) -> None:
    search = SearchFolder(tmp_path / "s", {})
    trials = [search.begin(0.1), search.begin(0.2)]
    for trial in trials:
        search.train(trial, 1, 2, "cut")
    feed = feed_of(search.folder)
    assert [(run.winner_of, run.shown) for run in feed.read(False)] == [(None, False)] * 2
    search.end(trials[1], **{"val/loss": 0.5, "test/loss": 0.25})
    (won,) = feed.read(False)
    assert (won.name, won.kind, won.winner_of, won.shown) == ("s-0001", "trial", 2, True)
    assert (won.summary["winner_of"], won.summary["test/loss"]) == (2, 0.25)
    assert feed.read(True) == []
    (search.folder / "result.json").unlink()  # extended by another trial, which wins
    third = search.begin(0.3)
    search.train(third, 1, 3, "cut")
    assert [run.winner_of for run in feed.read(False)] == [None]
    search.end(third)
    assert [(run.name, run.winner_of) for run in feed.read(True)] == [("s-0002", 3)]


def test_a_winner_that_is_trained_once_more_is_a_run_of_the_search(tmp_path: Path) -> None:
    search = SearchFolder(tmp_path / "s", {})
    trial = search.begin(0.1)
    search.train(trial, 1, 2, "cut")
    feed = feed_of(search.folder)
    feed.read(False)
    again = RunFolder(search.folder / "winner", {})
    again.train(1, 2)
    (running,) = feed.read(False)
    assert (running.name, running.kind, running.group, running.state) == ("s-winner", "winner", "s", "running")
    again.end(**{"val/loss": 0.5})
    search.end(trial, run="winner")
    (won,) = feed.read(True)  # and no trial
    assert (won.name, won.shown) == ("s-winner", True)


def test_a_study_is_told_arm_by_arm(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path / "worth", {})
    study.run("none", 0, metrics={"test/accuracy": 0.5, "train/loss": 9.0}, train={"loss": 1.0})
    study.run("dropout alone", 0, metrics={"test/accuracy": 0.75})
    feed = feed_of(study.folder)
    none, alone = feed.read(True)
    assert (none.name, none.group, none.job_type, none.tags) == ("worth: none, seed 0", "worth", "none", ())
    assert (alone.name, alone.job_type, alone.tags) == ("worth: dropout alone, seed 0", "dropout alone", ("dropout",))
    assert (none.kind, none.state, none.shown, len(none.records)) == ("arm", "ended", False, 2)
    # the kept weights on the training rows, not the loss recorded while they changed
    assert (none.summary["test/accuracy"], none.summary["train/loss"]) == (0.5, 1.0)
    assert (none.settings["regularization.dropout"], alone.settings["regularization.dropout"]) == (0.0, 0.3)
