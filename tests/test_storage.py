"""Runs at a URL of a real S3 server: claimed, sent while they train, read, resumed elsewhere, whatever happens."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from processes import slowly
from s3 import Bucket, Line, environment

from raynn import storage, training
from raynn.cli import main
from raynn.errors import JobError, RunError, TrainingError
from raynn.job import Job
from raynn.prediction import predict
from raynn.run import evaluate
from raynn.storage import address_of, as_path, claim, copies, copy_of, kept, local_run, newest, open_storage, url_of
from raynn.trainer import train

JOB: dict[str, Any] = {
    "name": "digits",
    "data": {"train": "digits", "target": "label", "test": 0.1},
    "network": {"kind": "feedforward", "hidden": [32]},
    "regularization": {"dropout": 0.2},
    "optimization": {"global_batch_size": 64, "max_epochs": 3, "learning_rate": 2e-3},
    "early_stopping": {"rule": "none"},
}
LOSSES = ("epoch", "step", "train/loss", "val/loss", "val/accuracy", "learning_rate")


def job_at(place: str, **sections: Any) -> Job:
    return Job.from_dict(JOB | {"storage": place} | sections)


def losses(metrics: bytes | None) -> list[list[float]]:
    """What must not change, epoch by epoch."""
    return [[json.loads(line)[key] for key in LOSSES] for line in (metrics or b"").splitlines()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same job in a local folder, undisturbed."""
    return train(job_at(str(tmp_path_factory.mktemp("straight")), optimization=LONG))


LONG = JOB["optimization"] | {"max_epochs": 12}


def test_a_run_at_a_url_is_the_local_one(bucket: Bucket, tmp_path: Path) -> None:
    local = train(job_at(str(tmp_path / "runs")))
    url = bucket.url("runs/digits")
    copy = train(job_at(bucket.url("runs")))
    assert address_of(copy) == url
    assert losses(bucket.read("runs/digits/metrics.jsonl")) == losses((local / "metrics.jsonl").read_bytes())
    expected = {str(path.relative_to(local)) for path in local.rglob("*") if path.is_file()}
    assert set(bucket.names("runs/digits")) == expected | {"manifest.json"}
    weights = "model/weights.safetensors"
    assert bucket.read(f"runs/digits/{weights}") == (local / weights).read_bytes()
    shutil.rmtree(copies())  # another machine
    assert evaluate(url) == evaluate(local)
    answers = [predict(run, "test", tmp_path / f"{number}.parquet") for number, run in enumerate((url, local))]
    assert answers[0]["rows"] == answers[1]["rows"] == 180
    tables = [pq.read_table(tmp_path / f"{number}.parquet") for number in (0, 1)]
    assert tables[0].equals(tables[1])
    assert not list(copies().rglob("checkpoints/*")), "to predict needs no checkpoint"


def test_the_commands_speak_of_the_url(
    bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job_file, url = tmp_path / "digits.yaml", bucket.url("runs/digits")
    job_file.write_text(job_at(bucket.url("runs")).to_yaml())
    assert main(["train", str(job_file), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["run"] == url
    assert f"run folder {url}\n" in captured.err
    assert main(["train", str(job_file), "resume=true"]) == 2
    assert f"{url} has ended: nothing to resume" in capsys.readouterr().err
    shutil.rmtree(copies())
    assert main(["evaluate", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == url
    assert main(["watch", url]) == 0
    assert "digits: finished after 3 epochs" in capsys.readouterr().out
    assert main(["report", url]) == 0
    assert capsys.readouterr().out.startswith(url.replace("runs/digits", "runs/digits/report.html"))
    assert b"<html" in (bucket.read("runs/digits/report.html") or b"")
    assert main(["export", url, "--format", "torch_export"]) == 0
    assert bucket.read("runs/digits/model/model.pt2")
    assert main(["evaluate", bucket.url("runs/digit")]) == 2
    assert f"there is no run folder {bucket.url('runs/digit')}. Did you mean 'digits'?" in capsys.readouterr().err
    assert not list(copies().rglob("digit")), "what is not there leaves nothing here"


def test_names_are_counted_on(bucket: Bucket) -> None:
    place = open_storage(bucket.url("runs"))
    folders = [claim(place, "digits") for _ in range(3)]
    assert [folder.name for folder in folders] == ["digits", "digits-2", "digits-3"]
    for folder in folders:
        (folder / "job.yaml").write_text("name: digits")
        with kept(folder):
            pass
    assert newest(place, "digits") == folders[2]
    shutil.rmtree(copies())
    assert newest(open_storage(bucket.url("runs")), "digits") == folders[2]
    assert (folders[2] / "job.yaml").read_text() == "name: digits"
    with pytest.raises(RunError, match=r"holds no run named 'digit'.*Did you mean 'digits'\?"):
        newest(place, "digit")


def test_places() -> None:
    assert as_path("file:///mnt/nfs/runs") == Path("/mnt/nfs/runs")
    assert local_run("runs/x") == Path("runs/x")
    assert url_of(Path("/mnt/nfs/runs")) is None
    assert address_of(Path("runs/x")) == "runs/x"


def test_a_folder_as_a_url_is_a_folder(tmp_path: Path) -> None:
    run = train(job_at(f"file://{tmp_path}/runs"))
    assert run == tmp_path / "runs" / "digits"
    assert evaluate(f"file://{run}") == evaluate(run)


def test_storage_that_is_not_there(bucket: Bucket, tmp_path: Path) -> None:
    url = bucket.url("runs").replace(bucket.name, "no-such-bucket")
    with pytest.raises(JobError, match=r"cannot be written: .*bucket does not exist.*; mend the address"):
        open_storage(url)
    with pytest.raises(JobError, match="storage holds a password"):
        open_storage("s3://me:secret@bucket/runs")


def test_no_room_for_copies(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(JobError, match=r"needs room on this machine, and .* name another place in XDG_CACHE_HOME"):
        open_storage(bucket.url("runs"))


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [True, False], ids=["elsewhere", "same machine"])
def test_killed_and_resumed(bucket: Bucket, tmp_path: Path, straight: Path, elsewhere: bool) -> None:
    """SIGKILL, the copy gone, and resumed on another machine: the losses of the undisturbed run, bit for bit."""
    job_file = tmp_path / "job.yaml"
    job_file.write_text(job_at(bucket.url("runs"), optimization=LONG).to_yaml())
    command = [sys.executable, "-m", "raynn", "train", str(job_file), "--quiet"]
    process = subprocess.Popen(
        command, env=slowly(environment(tmp_path / "a"), tmp_path / "slow"), stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(losses(bucket.read("runs/digits/metrics.jsonl"))) < 3:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if elsewhere:
        shutil.rmtree(tmp_path / "a")
    cache = tmp_path / ("b" if elsewhere else "a")
    subprocess.run([*command, "resume=true"], env=environment(cache), check=True, stdout=subprocess.DEVNULL)
    assert losses(bucket.read("runs/digits/metrics.jsonl")) == losses((straight / "metrics.jsonl").read_bytes())
    results = [json.loads(text) for text in (bucket.read("runs/digits/result.json") or b"", straight_result(straight))]
    assert results[0]["metrics"] == results[1]["metrics"]


def straight_result(run: Path) -> bytes:
    return (run / "result.json").read_bytes()


@pytest.mark.parametrize("how", ["truncated", "changed", "missing"])
def test_a_damaged_checkpoint_is_passed_over(bucket: Bucket, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In the bucket: the one before is taken, that is said, and the losses are those of the undisturbed run."""
    train(job_at(bucket.url("runs")))
    expected = losses(bucket.read("runs/digits/metrics.jsonl"))
    path = "runs/digits/checkpoints/epoch-00003/tensors.safetensors"
    content = bucket.read(path) or b""
    if how == "missing":
        bucket.files.delete_file(f"{bucket.name}/{path}")
    else:
        bucket.write(path, content[:-100] if how == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    bucket.files.delete_file(f"{bucket.name}/runs/digits/result.json")
    shutil.rmtree(copies())
    train(job_at(bucket.url("runs"), resume=True))
    said = capsys.readouterr().err
    assert "damaged, so the checkpoint before it is taken" in said
    assert "epoch-00003: " in said
    assert losses(bucket.read("runs/digits/metrics.jsonl")) == expected


def after_epochs(monkeypatch: pytest.MonkeyPatch, **actions: Callable[[], object]) -> None:
    """Has something happen once the checkpoint of an epoch is written: `epoch_2=...`."""
    save = training.save_checkpoint

    def saved(folder: Path, epoch: int, *rest: Any) -> Path:
        path = save(folder, epoch, *rest)
        actions.get(f"epoch_{epoch}", lambda: None)()
        return path

    monkeypatch.setattr(training, "save_checkpoint", saved)


def test_an_outage_stops_no_training(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, straight: Path) -> None:
    """The server is away from epoch 2 to 9: the run goes on, says so once, and all of it arrives in the end."""
    monkeypatch.setattr(storage, "SEND_EVERY_S", 0.05)
    line = Line(bucket.port)
    said: list[str] = []
    monkeypatch.setattr(storage, "_say", said.append)

    def mend_once_it_is_noticed() -> None:
        deadline = time.monotonic() + 90
        while not said and time.monotonic() < deadline:
            time.sleep(0.05)
        line.mend()

    after_epochs(monkeypatch, epoch_2=line.cut, epoch_9=mend_once_it_is_noticed)
    train(job_at(Bucket(bucket.name, line.port).url("runs"), optimization=LONG))
    line.cut()
    assert losses(bucket.read("runs/digits/metrics.jsonl")) == losses((straight / "metrics.jsonl").read_bytes())
    assert "takes nothing" in said[0]
    assert "the run goes on, and what could not be sent is kept in" in said[0]
    assert len(said) == 1 or "answers again" in said[1]


@pytest.mark.slow
def test_what_could_not_be_sent_is_kept_and_sent_later(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server does not come back: one clear error at the end, which says where the run is and how it is sent."""
    monkeypatch.setattr(storage, "SEND_EVERY_S", 0.05)
    monkeypatch.setattr(storage, "PATIENCE_S", 1.0)
    line = Line(bucket.port)
    far = Bucket(bucket.name, line.port)
    after_epochs(monkeypatch, epoch_2=line.cut)
    with pytest.raises(
        TrainingError, match=r"did not take all of the run \(.+\)\. It is whole in (\S+): once"
    ) as caught:
        train(job_at(far.url("runs")))
    copy = Path(str(caught.value).partition("whole in ")[2].partition(": once")[0])
    assert json.loads((copy / "result.json").read_text())["status"] == "finished"
    assert bucket.read("runs/digits/result.json") is None
    assert set(evaluate(copy)) >= {"test/loss"}
    line.mend()
    with pytest.raises(RunError, match="has ended: nothing to resume"):
        train(job_at(far.url("runs"), resume=True))
    assert json.loads(bucket.read("runs/digits/result.json") or b"")["status"] == "finished"
    line.cut()


def test_a_server_that_neither_answers_nor_hangs_up(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection and says nothing: the command ends all the same."""
    monkeypatch.setattr(storage, "SEND_EVERY_S", 0.05)
    monkeypatch.setattr(storage, "PATIENCE_S", 2.0)
    line = Line(bucket.port)
    far = Bucket(bucket.name, line.port)
    after_epochs(monkeypatch, epoch_2=line.hold)
    started = time.monotonic()
    with pytest.raises(TrainingError, match="did not take all of the run"):
        train(job_at(far.url("runs")))
    assert time.monotonic() - started < 60
    line.cut()


def test_one_process_of_a_machine_trains_a_run(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """And who reads it meanwhile reads what is here."""
    monkeypatch.setattr(storage, "LOCK_TIMEOUT_S", 0.2)
    folder = claim(open_storage(bucket.url("runs")), "digits")
    with kept(folder):
        (folder / "job.yaml").write_text("name: digits")
        with pytest.raises(RunError, match="is being trained by another process of this machine"), kept(folder):
            pass
        assert local_run(bucket.url("runs/digits")) == folder
        assert (folder / "job.yaml").exists()


def test_a_run_taken_over_by_another_machine(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(storage, "SEND_EVERY_S", 3600.0)
    folder = claim(open_storage(bucket.url("runs")), "digits")
    (folder / "job.yaml").write_text("name: digits")
    keeping = kept(folder)
    keeping.__enter__().send_now()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    other = newest(open_storage(bucket.url("runs")), "digits")
    with kept(other):
        (other / "metrics.jsonl").write_text("theirs")
    (folder / "metrics.jsonl").write_text("ours")
    with pytest.raises(TrainingError, match="another process has written there since"):
        keeping.__exit__(None, None, None)
    assert bucket.read("runs/digits/metrics.jsonl") == b"theirs"


def test_two_threads_train_two_runs_of_one_name(bucket: Bucket) -> None:
    runs: list[Path] = []
    place = open_storage(bucket.url("runs"))
    threads = [threading.Thread(target=lambda: runs.append(claim(place, "a"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({run.name for run in runs}) == 4


def test_copies_of_different_urls_are_apart(bucket: Bucket) -> None:
    names = {copy_of(url) for url in ("s3://a/b", "s3://a/b?region=x", "s3://a-b", "gs://a/b", "s3://a/b/")}
    assert len(names) == 4  # a slash at the end says nothing
