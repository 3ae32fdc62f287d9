"""Weights & Biases, by the real client: offline files read back whole, and a server on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from followed import KEY, RunFolder, SearchFolder, StudyFolder, descendants, until
from wandb_file import KeptRun, read_run
from wandb_server import WandbServer

from raynn.errors import RunError, TrainingError
from raynn.feeds import settings_of
from raynn.folder import read_result
from raynn.job import Job
from raynn.ledger import Trial
from raynn.sync import sync
from raynn.tracking import Mirroring, read_state, told
from raynn.trainer import train

WANDB = {"wandb": {"project": "garden", "tags": ["roses"], "wait_s": 60.0}}  # a busy machine is no outage


@pytest.fixture
def keyless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, keyless: None) -> Iterator[WandbServer]:
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server
        assert server.unknown == []


def kept(run: Path) -> KeptRun:
    (path,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    return read_run(path)


def epochs(rows: list[dict[str, float]]) -> list[float]:
    return [row["epoch"] for row in rows if "val/loss" in row]


@pytest.mark.usefixtures("keyless")
def test_offline_a_run_that_was_interrupted_and_resumed_is_one_file_with_all_of_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a", WANDB)
    with Mirroring(run.folder, run.job.tracking):
        run.train(1, 3)
    assert (kept(run.folder).exit_code, epochs(kept(run.folder).history)) == (1, [1, 2, 3])
    with Mirroring(run.folder, run.job.tracking):
        run.train(4, 40)
        run.end(**{"val/loss": 0.5, "test/loss": 0.25})
    whole = kept(run.folder)
    assert epochs(whole.history) == list(range(1, 41))
    assert [row["val/loss"] for row in whole.history] == [1 / epoch for epoch in range(1, 41)]
    assert [row["_step"] for row in whole.history] == list(range(1, 41))
    assert [row["norms/weight/head"] for row in whole.history] == list(range(1, 41))
    assert whole.settings == settings_of(run.folder)
    assert whole.settings["optimization.max_epochs"] == run.job.optimization.max_epochs
    assert (whole.run_id, whole.name) == ((run.folder / "wandb_id").read_text(), "a")
    assert (whole.project, whole.tags, whole.job_type, whole.group) == ("garden", ["roses"], "train", "")
    assert (whole.summary["val/loss"], whole.summary["test/loss"], whole.exit_code) == (0.5, 0.25, 0)
    assert whole.step_metric == "epoch"
    assert told(run.folder, run.job.tracking) == ([], True)


@pytest.mark.usefixtures("keyless")
def test_offline_a_search_keeps_every_trial_and_syncs_as_a_sweep_with_its_dashboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = SearchFolder(tmp_path / "roses", WANDB)
    with Mirroring(search.folder, search.job.tracking):
        first, second = search.begin(0.1), search.begin(0.2)
        search.train(first, 1, 2, "pause")
        search.train(second, 1, 2)
        search.ledger.become(second, "finished", "max_epochs")
        search.train(first, 3, 5, "cut")
        search.ledger.become(search.begin(0.2, "repeat"), "failed", "out of memory")
        search.end(first, **{"val/loss": 0.2, "test/loss": 0.3})
    files = [kept(search.folder / "trials" / f"{number:04d}") for number in range(3)]
    assert [file.name for file in files] == ["roses-0000", "roses-0001", "roses-0002"]
    assert [(file.group, file.job_type) for file in files] == [("roses", k) for k in ("trial", "trial", "repeat")]
    assert [epochs(file.history) for file in files] == [[1, 2, 3, 4, 5], [1, 2], []]
    assert [file.settings["regularization.dropout"] for file in files] == [0.1, 0.2, 0.2]
    assert [file.exit_code for file in files] == [0, 0, 1]
    assert [file.summary.get("winner_of") for file in files] == [3, None, None]
    assert files[0].summary["test/loss"] == 0.3
    with pytest.raises(RunError, match="there is no key for W&B: set WANDB_API_KEY"):
        sync(search.folder)
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        state = sync(search.folder, project="meadow")
        assert [server.runs[file.run_id].fields["sweep"] for file in files] == ["sweep0"] * 3
        assert [epochs(server.runs[file.run_id].history) for file in files] == [[1, 2, 3, 4, 5], [1, 2], []]
        assert {run.fields["project"] for run in server.runs.values()} == {"meadow"}
        assert [len(server.sweeps), len(server.views)] == [1, 1]
        assert (state["sent"], state["runs"]) == (3, 3)
        assert server.sweeps["sweep0"]["states"] == ["FINISHED"]
        assert state["url"] == f"{server.url}/gardener/meadow/sweeps/sweep0"
        asked = len(server.asked)
        sync(search.folder, project="meadow")  # nothing is left: nothing is sent twice
        assert [operation for operation in server.asked[asked:] if operation != "Viewer"] == []


@pytest.mark.slow  # the client sends a live history every 15 s
def test_a_server_that_is_killed_and_comes_back_has_it_all(server: WandbServer, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a", WANDB)
    with Mirroring(run.folder, run.job.tracking):
        run.train(1, 3)
        until(lambda: any(len(served.lines) == 3 for served in server.runs.values()))
        server.stop()
        run.train(4, 6)
        time.sleep(1.0)  # the client meets an outage
        server.start()
        run.train(7, 8)
        run.end(**{"val/loss": 0.125})
    (served,) = server.runs.values()
    assert epochs(served.history) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [row["_step"] for row in served.history] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (served.complete, served.exit_code, served.summary["val/loss"]) == (True, 0, 0.125)
    assert served.settings == settings_of(run.folder)
    lines, left = told(run.folder, run.job.tracking)
    assert (lines, left) == ([f"W&B: {server.url}/gardener/garden/runs/{served.name}"], False)


@pytest.mark.slow  # the client sends a live history every 15 s
def test_an_outage_holds_the_end_up_for_its_time_and_sync_appends_what_is_missing(
    server: WandbServer, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "a", {"wandb": {"wait_s": 1.0}})
    with Mirroring(run.folder, run.job.tracking):
        run.train(1, 2)
        until(lambda: any(len(served.lines) == 2 for served in server.runs.values()))
        server.stop()
        run.train(3, 4)
        run.end()
        left_at = time.monotonic()
    assert time.monotonic() - left_at < 15.0  # not the client's own patience, which is days
    (served,) = server.runs.values()
    assert epochs(served.history) == [1, 2]
    assert told(run.folder, run.job.tracking) == (
        [
            f"W&B: {server.url}/gardener/raynn/runs/{served.name}",
            "W&B: nothing was sent whole (the server did not answer in time); all of it is kept",
        ],
        True,
    )
    server.start()
    assert sync(run.folder)["sent"] == 1
    assert list(server.runs) == [served.name]
    assert epochs(served.history) == [1, 2, 3, 4]
    assert served.starts == 2


def test_a_search_is_a_sweep_from_its_first_trial_on(server: WandbServer, tmp_path: Path) -> None:
    search = SearchFolder(tmp_path / "roses", WANDB)
    with Mirroring(search.folder, search.job.tracking):
        trials = [search.begin(0.1), search.begin(0.3)]
        for trial in trials:
            search.train(trial, 1, 2, "pause")
        until(lambda: sum(served.complete for served in server.runs.values()) == 2)
        search.ledger.exploit(
            trials[1], trials[0], {"regularization.dropout": 0.15, "optimization.learning_rate": 0.02}
        )
        for trial in trials:
            search.ledger.become(trial, "running")
            search.train(trial, 3, 4, "cut")
    names = [(search.folder / "trials" / f"{number:04d}" / "wandb_id").read_text() for number in range(2)]
    first, second = (server.runs[name] for name in names)
    assert [first.starts, second.starts] == [2, 2]
    assert epochs(first.history) == epochs(second.history) == [1, 2, 3, 4]
    # what the trial itself measured, then where it went on from
    assert [row["val/loss"] for row in second.history] == [2.0, 1.0, 2 / 3, 0.5]
    assert [row.get("donor") for row in second.history] == [None, None, 0, None]
    assert (second.settings["regularization.dropout"], first.settings["regularization.dropout"]) == (0.15, 0.1)
    assert {served.fields["sweep"] for served in server.runs.values()} == {"sweep0"}
    assert server.sweeps["sweep0"]["states"] == []  # it has no result: it was interrupted, and goes on being expected
    assert {served.fields["groupName"] for served in server.runs.values()} == {"roses"}
    assert read_state(search.folder)["view"].startswith(f"{server.url}/gardener/garden?nw=")


@pytest.mark.slow
def test_the_winner_shows_what_it_predicts_its_model_is_kept_and_the_sweep_ends(
    server: WandbServer, classifier: Path, tmp_path: Path
) -> None:
    search = SearchFolder(tmp_path / "roses", {"wandb": {"log_model": True, "wait_s": 60.0}})

    def tried(dropout: float) -> Trial:
        """A trial, with the model and the data of a run that tells flowers."""
        trial = search.begin(dropout)
        run = search.folder / "trials" / f"{trial.number:04d}"
        shutil.copytree(classifier, run, dirs_exist_ok=True)
        search.train(trial, 1, 2, "cut")
        return trial

    with Mirroring(search.folder, search.job.tracking):
        first, second = tried(0.1), tried(0.2)
        until(lambda: sum(served.complete for served in server.runs.values()) == 2)
        assert server.artifacts == []
        search.end(second, **{"test/accuracy": 0.75})
    runs = [
        server.runs[(search.folder / "trials" / f"{trial.number:04d}" / "wandb_id").read_text()]
        for trial in (first, second)
    ]
    shown = [
        [row["media/confusion_table"]["nrows"] for row in run.history if "media/confusion_table" in row] for run in runs
    ]
    assert shown == [[], [4]]  # two kinds against two
    assert [epochs(run.history) for run in runs] == [[1, 2], [1, 2]]
    assert [run.summary.get("winner_of") for run in runs] == [None, 2]
    assert (runs[1].summary["test/accuracy"], runs[1].starts) == (0.75, 2)
    models = [artifact for artifact in server.artifacts if artifact["artifactTypeName"] == "model"]
    assert [artifact["artifactCollectionName"] for artifact in models] == ["roses-model"]
    assert f"a{server.artifacts.index(models[0])}" in server.committed
    assert (read_state(search.folder)["sweep_ended"], server.sweeps["sweep0"]["states"]) == (True, ["FINISHED"])
    (search.folder / "result.json").unlink()  # extended by a trial, which wins
    with Mirroring(search.folder, search.job.tracking):
        third = tried(0.3)
        until(lambda: server.sweeps["sweep0"]["states"] == ["FINISHED", "RUNNING"])
        search.end(third)
    assert server.sweeps["sweep0"]["states"] == ["FINISHED", "RUNNING", "FINISHED"]
    assert sorted(run.summary.get("winner_of", 0) for run in server.runs.values()) == [0, 2, 3]
    assert (runs[1].starts, len(server.sweeps)) == (2, 1)  # what was sent is not sent again


@pytest.mark.usefixtures("keyless")
def test_a_study_is_a_group_whose_job_types_are_its_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = StudyFolder(tmp_path / "worth", WANDB)
    with Mirroring(study.folder, study.job.tracking):
        study.run("none", 0, metrics={"test/accuracy": 0.5})
        study.run("dropout alone", 0, metrics={"test/accuracy": 0.75})
        study.end(study.ledger.trials[0])
    files = [kept(study.folder / "trials" / f"{number:04d}") for number in range(2)]
    assert [(file.group, file.job_type) for file in files] == [("worth", "none"), ("worth", "dropout alone")]
    assert [file.tags for file in files] == [["roses"], ["roses", "dropout"]]
    assert [epochs(file.history) for file in files] == [[1, 2], [1, 2]]
    assert [file.summary["test/accuracy"] for file in files] == [0.5, 0.75]
    assert [file.settings["regularization.dropout"] for file in files] == [0.0, 0.3]
    assert told(study.folder, study.job.tracking) == ([], True)
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        state = sync(study.folder)
        assert (state["sent"], state["runs"]) == (2, 2)
        assert {run.fields["jobType"] for run in server.runs.values()} == {"none", "dropout alone"}
        assert (server.sweeps, server.views, server.unknown) == ({}, [], [])  # its list is fixed: nothing is searched


@pytest.mark.slow
def test_a_server_that_takes_its_time_slows_and_fails_no_training(
    server: WandbServer, garden: Path, tmp_path: Path
) -> None:
    server.pause_s = 600.0  # before every answer
    job = {
        "name": "a",
        "data": {"train": str(garden / "flowers.parquet"), "target": "kind"},
        "network": {"kind": "feedforward", "hidden": [4]},
        "optimization": {"max_epochs": 3, "global_batch_size": 32},
        "tracking": {"wandb": {"wait_s": 1.0}},
        "storage": str(tmp_path),
        "report": False,
    }
    run = train(Job.from_dict(job))  # its end waited for a second and the grace of the process, not for an answer
    assert read_result(run)["status"] == "finished"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
    assert told(run, Job.from_dict(job).tracking) == (
        ["W&B: nothing was sent whole (the server did not answer in time); all of it is kept"],
        True,
    )
    server.pause_s = 0.3
    assert sync(run)["sent"] == 1
    assert [epochs(served.history) for served in server.runs.values()] == [[1, 2, 3]]


def test_a_server_that_never_answers_takes_nothing_but_its_time(server: WandbServer, tmp_path: Path) -> None:
    server.stop()
    run = RunFolder(tmp_path / "a", {"wandb": {"wait_s": 0.5}})
    with Mirroring(run.folder, run.job.tracking):
        run.train(1, 2)
        run.end()
    lines, left = told(run.folder, run.job.tracking)
    assert left
    assert lines == ["W&B: nothing was sent whole (the server did not answer in time); all of it is kept"]
    with pytest.raises(TrainingError, match=r"1 of 1 runs are not sent whole: .*; all of it is kept: try `raynn sync"):
        sync(run.folder, wait_s=0.5)


def test_the_key_is_in_the_environment_alone(server: WandbServer, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a", WANDB)
    with Mirroring(run.folder, run.job.tracking) as mirroring:
        run.train(1, 2)
        until(lambda: bool(server.runs))
        assert mirroring.process is not None
        family = descendants(os.getpid())
        assert mirroring.process.pid in family
        told_to = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in family]
        assert any(b"wandb-core" in words for words in told_to)
        run.end()
    assert [words for words in told_to if KEY.encode() in words] == []
    assert all(headers["Authorization"] for headers in server.headers)  # the server was given it
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_a_mirror_that_is_killed_leaves_a_history_that_its_successor_continues(
    server: WandbServer, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "a", WANDB)
    with Mirroring(run.folder, run.job.tracking) as mirroring:
        run.train(1, 2)
        until(lambda: bool(server.runs))
        assert mirroring.process is not None
        os.killpg(mirroring.process.pid, signal.SIGKILL)
    (served,) = server.runs.values()
    assert not served.complete
    with Mirroring(run.folder, run.job.tracking):
        run.train(3, 4)
        run.end()
    assert list(server.runs.values()) == [served]
    assert [row["_step"] for row in served.history] == epochs(served.history) == [1, 2, 3, 4]
    assert (served.starts, served.complete) == (2, True)


@pytest.mark.slow
def test_a_full_disk_fails_nothing_and_sync_sends_it_when_there_is_room(server: WandbServer, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a", {"wandb": {"wait_s": 2.0}})
    disk = run.folder / "wandb"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        (disk / "full").write_bytes(b"x" * 4096)
        with Mirroring(run.folder, run.job.tracking):
            run.train(1, 4)
            run.end()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    lines, left = told(run.folder, run.job.tracking)
    assert left
    assert "nothing was sent whole" in lines[-1]
    assert sync(run.folder)["sent"] == 1
    (served,) = server.runs.values()
    assert epochs(served.history) == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_trained_run_shows_its_confusion_and_leaves_its_model_as_an_artifact(
    server: WandbServer, garden: Path, tmp_path: Path
) -> None:
    tracking = {"wandb": {"log_model": True, "wait_s": 60.0}, "tensorboard": True}
    job = {
        "data": {"train": str(garden / "flowers.parquet"), "target": "kind"},
        "network": {"kind": "feedforward", "hidden": [4]},
        "optimization": {"max_epochs": 3, "global_batch_size": 32},
        "tracking": tracking,
        "storage": str(tmp_path),
        "report": False,
    }
    run = train(Job.from_dict(job))
    (served,) = server.runs.values()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    sent = [{key: row[key] for key in lines[0] if key != "step"} for row in served.history[:3]]
    assert sent == [{key: value for key, value in line.items() if key != "step"} for line in lines]
    assert served.history[3]["media/confusion_table"]["nrows"] == 4
    assert served.summary["val/loss"] == read_result(run)["metrics"]["val/loss"]
    models = [i for i, artifact in enumerate(server.artifacts) if artifact["artifactTypeName"] == "model"]
    (place,) = models
    assert f"a{place}" in server.committed
    weights = server.files[f"artifacts/a{place}/weights.safetensors"]
    assert weights == (run / "model" / "weights.safetensors").read_bytes()
    assert list((run / "tensorboard").glob("events.*"))
