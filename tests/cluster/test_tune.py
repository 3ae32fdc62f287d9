"""A search on Ray Tune: what it finds can be trained again, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from test_faults import command_line

from raynn.cluster import descendants
from raynn.job import Job
from raynn.ledger import Ledger
from raynn.trainer import train
from raynn.tuner import tune

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

DROPOUT, RATE = "regularization.dropout", "optimization.learning_rate"


def job(storage: Path, search: dict[str, Any], **sections: Any) -> Job:
    """A small network on images of digits; a trial of six epochs takes less than a second."""
    return Job.from_dict(
        {
            "name": "digits",
            "data": {"train": "digits", "target": "label", "test": 0.2},
            "network": {"kind": "feedforward", "hidden": [16]},
            "optimization": {"global_batch_size": 64, "max_epochs": 6, "learning_rate": 3e-3},
            "early_stopping": {"patience": 3},
            "search": {
                "trials": 6,
                "algorithm": "random",
                "metric": "val/loss",
                "space": {DROPOUT: {"uniform": [0.0, 0.6]}, RATE: {"loguniform": [1e-4, 3e-2]}},
                **search,
            },
            "storage": str(storage),
            **sections,
        }
    )


def result_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "result.json").read_text())
    return content


def records_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def clocks_aside(record: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in record.items() if key not in ("seconds", "examples_per_second")}


def all_is_free(cpus: float) -> bool:
    """Whether every CPU is free and no actor is alive, within some seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        groups = [g for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"]
        if ray.available_resources().get("CPU", 0.0) == cpus and not groups:
            return True
        time.sleep(0.1)
    return False


def test_what_a_search_finds_can_be_trained_again(ray_cluster: None, tmp_path: Path) -> None:
    """A table, a run folder a trial, the winner's model and its test metrics, and a job file that gives the same."""
    scheduler = {"kind": "asha", "grace_period": 1, "reduction_factor": 2}
    groups = len(ray.util.placement_group_table())
    # more at a time may leave none to cut
    search = tune(job(tmp_path, {"scheduler": scheduler, "concurrent_trials": 1}))
    assert len(ray.util.placement_group_table()) == groups, "one that is removed while Ray places it stays reserved"
    result, table = result_of(search), pq.read_table(search / "trials.parquet").to_pylist()
    assert sum(result["trials"].values()) == len(table) == 6
    assert result["trials"]["cut"] >= 1
    for row in table:
        records = records_of(search / row["run"])
        assert len(records) == row["epochs"]
        assert min(record["val/loss"] for record in records) == row["value"]
        of_trial = result_of(search / row["run"])
        assert of_trial["status"] == row["status"]
        assert of_trial["best_epoch"] == row["best_epoch"]
        assert (search / row["run"] / "model" / "weights.safetensors").exists()
        tested = [key for key in of_trial["metrics"] if key.startswith("test/")]
        assert bool(tested) == (row["number"] == result["best"]["number"]), "the test set is looked at once"
    best = min(table, key=lambda row: row["value"])
    assert result["best"]["number"] == best["number"]
    assert all_is_free(4)
    again = train(Job.load(search / "job.best.yaml", [f"storage={tmp_path}", "name=again"]))
    by_epoch = [clocks_aside(record) for record in records_of(search / best["run"])]
    assert [clocks_aside(record) for record in records_of(again)][: len(by_epoch)] == by_epoch
    if best["status"] != "cut":
        assert result_of(again)["metrics"] == result["metrics"]


@pytest.mark.slow
def test_one_trial_at_a_time_a_search_repeats_exactly(ray_cluster: None, tmp_path: Path) -> None:
    """Twelve trials with ASHA, run twice: each suggestion, epoch, decision and reason in the same order, and the same
    table. An algorithm that learns, so that a difference anywhere would change what is tried after it.
    """
    asked = {
        "trials": 12,
        "algorithm": "optuna",
        "scheduler": {"kind": "asha", "grace_period": 1, "reduction_factor": 2},
        "concurrent_trials": 1,
    }
    optimization = {"global_batch_size": 64, "max_epochs": 4, "learning_rate": 3e-3}
    asked_for = job(tmp_path, asked, optimization=optimization, resources={"cpus_per_worker": 1})
    first, second = tune(asked_for), tune(asked_for)
    assert first != second
    events = decisions(first)
    assert sum(event["event"] == "trial" for event in events) == 12
    verdicts = [event["verdict"]["kind"] for event in events if event["event"] == "epoch"]
    assert {"cut", "go_on"} <= set(verdicts)
    assert decisions(second) == events
    assert table_of(second) == table_of(first)


@pytest.mark.slow
def test_every_slot_has_a_trial_from_the_start(ray_cluster: None, tmp_path: Path) -> None:
    """Actors start side by side: no trial trains before there is one for each slot."""
    search = tune(job(tmp_path, {"trials": 4, "scheduler": "none"}, optimization={"max_epochs": 1}))
    events = [json.loads(line) for line in (search / "search.jsonl").read_text().splitlines()]
    kinds = [event["event"] for event in events if event["event"] in ("trial", "epoch")]
    assert kinds == ["trial"] * 4 + ["epoch"] * 4


def decisions(search: Path) -> list[dict[str, Any]]:
    """The journal, but for when each event was, what was measured of time, and how long all was estimated to take."""
    events = [json.loads(line) for line in (search / "search.jsonl").read_text().splitlines()]
    kept = [event for event in events if event["event"] != "search" or "epoch_s" not in event["facts"]]
    for event in kept:
        del event["at"]
        if "record" in event:
            event["record"] = clocks_aside(event["record"])
    return kept


def table_of(search: Path) -> list[dict[str, Any]]:
    """trials.parquet, clocks aside."""
    return [clocks_aside(row) for row in pq.read_table(search / "trials.parquet").to_pylist()]


@pytest.mark.slow
def test_trials_of_several_workers_are_cut_and_free_what_they_held(ray_cluster: None, tmp_path: Path) -> None:
    """Without a dashboard, where a trial ended by killing would hold its workers' resources for ever. The second trial
    learns next to nothing and is cut after its first epoch; the third could not run were its workers still held.
    """
    scheduler = {"kind": "asha", "grace_period": 1, "reduction_factor": 2}
    space = {RATE: {"choice": [3e-3, 1e-7, 1e-8]}}
    searched = {"trials": 3, "algorithm": "grid", "first": "none", "space": space, "concurrent_trials": 1}
    optimization = {"global_batch_size": 64, "max_epochs": 2, "learning_rate": 3e-3}
    search = tune(
        job(tmp_path, searched | {"scheduler": scheduler}, resources={"workers": 2}, optimization=optimization)
    )
    trials = Ledger(search / "search.jsonl").trials
    assert [trial.status for trial in trials] == ["finished", "cut", "cut"]
    assert all(trial.epochs == len(records_of(search / "trials" / f"{trial.number:04d}")) for trial in trials)
    assert all_is_free(4)
    alone = tune(job(tmp_path / "alone", {"trials": 1, "scheduler": "none"}, optimization=optimization))
    expected = [record["val/loss"] for record in records_of(alone / "trials" / "0000")]
    found = [record["val/loss"] for record in trials[0].records]
    assert found == pytest.approx(expected[: len(found)], rel=1e-5)


def test_a_population_goes_on_from_the_best_and_its_schedule_can_be_replayed(ray_cluster: None, tmp_path: Path) -> None:
    scheduler = {"kind": "pbt", "interval": 2, "quantile_fraction": 0.34}
    search = tune(job(tmp_path, {"trials": 3, "scheduler": scheduler}, early_stopping={"rule": "none"}))
    trials = Ledger(search / "search.jsonl").trials
    changed = [trial for trial in trials if trial.changes]
    assert changed, "nothing was taken over"
    for trial in changed:
        donor = trials[int(str(trial.notes["donor"]))]
        assert trial.settings_now != donor.settings
        folder = search / "trials" / f"{trial.number:04d}"
        replayed = train(Job.load(folder / "job.yaml", [f"storage={tmp_path}", f"name=replay-{trial.number}"]))
        assert [clocks_aside(r) for r in records_of(replayed)] == [clocks_aside(r) for r in trial.records]
        assert [clocks_aside(r) for r in records_of(folder)] == [clocks_aside(r) for r in trial.records]
        assert records_of(folder)[-1]["learning_rate"] < 3e-2


def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(ray_cluster: None, tmp_path: Path) -> None:
    """A rate at which the loss explodes fails the trial that draws it."""
    space = {RATE: {"choice": [1e-3, 1e30, 3e-3]}}
    search = tune(job(tmp_path, {"algorithm": "grid", "trials": 3, "space": space, "scheduler": "none"}))
    rows = pq.read_table(search / "trials.parquet").to_pylist()
    assert sorted(row["status"] for row in rows).count("failed") == 1
    failed = next(row for row in rows if row["status"] == "failed")
    assert "the training loss stopped being finite at step" in failed["reason"]
    assert result_of(search / failed["run"])["status"] == "failed"
    assert result_of(search)["trials"]["failed"] == 1


def test_the_best_is_repeated_and_trained_once_more_on_all_rows(ray_cluster: None, tmp_path: Path) -> None:
    """Several objectives, repetitions with other seeds, and a winner trained on training and validation rows."""
    search = {
        "trials": 3,
        "scheduler": "none",
        "objectives": [{"metric": "val/accuracy"}, {"metric": "parameters"}],
        "repeats": {"top": 1, "seeds": 2},
        "winner": "retrained",
    }
    folder = tune(job(tmp_path, search))
    result, trials = result_of(folder), Ledger(folder / "search.jsonl").trials
    again = [trial for trial in trials if trial.origin == "repeat"]
    assert [trial.settings["optimization.seed"] for trial in again] == [1, 2]
    assert result["repeats"][0]["number"] == result["best"]["number"] == again[0].notes["of"]
    assert len(result["repeats"][0]["values"]) == 3
    assert result["objectives"][1] == {"metric": "val/accuracy", "direction": "max"}
    assert result["best"]["number"] in result["pareto_front"]
    parameters = result_of(folder / "trials" / "0000")["parameters"]
    assert {record["parameters"] for trial in trials for record in trial.records} == {parameters}
    retrained = result_of(folder / "winner")
    assert retrained["refit"]["steps"] > 0
    assert result["metrics"]["test/accuracy"] == retrained["metrics"]["test/accuracy"]
    # a repetition is the job with another seed, its own division of the rows included
    alone = train(Job.load(folder / "trials" / "0003" / "job.yaml", [f"storage={tmp_path}", "name=alone"]))
    assert [clocks_aside(r) for r in records_of(alone)] == [
        clocks_aside(r) for r in records_of(folder / "trials" / "0003")
    ]


@pytest.mark.slow
def test_with_a_dashboard_too_nothing_stays_reserved(tmp_path: Path) -> None:
    """Trials of two workers that are cut, in a process of its own with Ray's dashboard."""
    scheduler = {"kind": "asha", "grace_period": 1, "reduction_factor": 2}
    path = tmp_path / "job.yaml"
    path.write_text(job(tmp_path, {"trials": 3, "scheduler": scheduler}, resources={"workers": 2}).to_yaml())
    script = f"""
import time, ray
from raynn.job import Job
from raynn.tuner import tune
ray.init(num_cpus=4, include_dashboard=True, log_to_driver=False)
tune(Job.load({str(path)!r}))
for _ in range(100):
    groups = [g for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"]
    if not groups and ray.available_resources().get("CPU") == 4:
        print("all is free")
        break
    time.sleep(0.1)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=280)
    assert "all is free" in done.stdout, done.stderr
    assert "cut" in {trial.status for trial in Ledger(tmp_path / "digits" / "search.jsonl").trials}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("workers", "process"), [(1, "Trainable"), (2, "ray::Gate")])
def test_a_trial_whose_process_dies_goes_on(ray_cluster: None, tmp_path: Path, workers: int, process: str) -> None:
    """What runs a trial, or what its workers wait at, is killed: no trial fails, and all end as if nothing had been."""
    searched = {"trials": 3 - workers, "scheduler": "none", "concurrent_trials": 1, "max_failed_trials": 0}
    optimization = {"global_batch_size": 64, "max_epochs": 8, "learning_rate": 3e-3}
    more = {"optimization": optimization, "resources": {"workers": workers}, "early_stopping": {"rule": "none"}}
    undisturbed = tune(job(tmp_path / "undisturbed", searched, **more))
    journal = tmp_path / "disturbed" / "digits" / "search.jsonl"
    killed: list[int] = []

    def kill() -> None:
        while not journal.exists() or journal.read_text().count('"epoch"') < 3:
            time.sleep(0.01)
        while not killed:  # a process may be called otherwise between two calls
            killed.extend([pid for pid in descendants(os.getpid()) if process in command_line(pid)][:1])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    disturbed = tune(job(tmp_path / "disturbed", searched, **more))
    killer.join(1)
    assert killed
    for expected, found in zip(Ledger(undisturbed / "search.jsonl").trials, Ledger(journal).trials, strict=True):
        assert (found.status, found.reason) == (expected.status, expected.reason)
        assert [clocks_aside(r) for r in found.records] == [clocks_aside(r) for r in expected.records]
        assert len(records_of(disturbed / "trials" / f"{found.number:04d}")) == found.epochs
