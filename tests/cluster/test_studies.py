"""A tiny study on the cluster: every arm with every seed; killed and resumed it ends with the same figures."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file
from test_tune_faults import are_gone, wait_for_lines

from raynn.cluster import descendants
from raynn.errors import JobError, RunError
from raynn.job import Job
from raynn.ledger import FILE
from raynn.prediction import predict
from raynn.report import write_report
from raynn.run import open_run
from raynn.studies import study

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

CLOCKS = ("examples_per_second",)


def job(storage: Path, *overrides: str) -> Job:
    """Four arms of two seeds, of which one pair shares its runs; a trial takes less than a second."""
    tree = {
        "name": "digits",
        "data": {"train": "digits", "target": "label", "test": 0.2},
        "network": {"kind": "feedforward", "hidden": [16]},
        "regularization": {"dropout": 0.3, "weight_decay": 0.0},
        "optimization": {"global_batch_size": 64, "max_epochs": 9, "learning_rate": 3e-3},
        "study": {"seeds": 2, "knobs": ["dropout", "l2"], "epochs": 2},
        "storage": str(storage),
    }
    return Job.from_dict(tree, overrides)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "study.parquet").to_pylist()
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in rows]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_study_runs_every_arm_with_every_seed(tmp_path: Path) -> None:
    folder = study(job(tmp_path))
    rows = rows_of(folder)
    assert [(row["arm"], row["seed"]) for row in rows] == [
        (arm, seed) for seed in (0, 1) for arm in ("none", "all", "l2 alone")
    ]
    assert {(row["status"], row["epochs"]) for row in rows} == {("finished", 2)}
    arms = {arm["arm"]: arm for arm in json.loads((folder / "study.json").read_text())["arms"]}
    assert list(arms) == ["none", "all", "dropout alone", "l2 alone", "without dropout"]
    means = {arm: sum(row["test/accuracy"] for row in rows if row["arm"] == arm) / 2 for arm in ("none", "all")}
    assert arms["all"]["gain"]["mean"] == pytest.approx(means["all"] - means["none"])
    assert arms["without dropout"]["test"] == arms["none"]["test"]
    assert "Gain over no regularizer" in write_report(folder).read_text()
    # the same seed splits alike: what is left on trial may be looked at again, and gives the same figures
    row = rows[1]
    run = open_run(folder / row["run"])
    assert run.evaluate()["test/accuracy"] == pytest.approx(row["test/accuracy"], abs=1e-6)
    # dropout at work, the recorded training loss is that of another network
    result = json.loads((folder / row["run"] / "result.json").read_text())
    assert result["train"]["loss"] == row["train/loss"] < result["metrics"]["train/loss"]
    predict(folder / row["run"], "train", tmp_path / "train.parquet")
    seen = pq.read_table(tmp_path / "train.parquet").to_pandas()
    assert (seen["label"].astype(str) == seen["prediction"].astype(str)).mean() == pytest.approx(row["train/accuracy"])
    none, other = (load_file(folder / each["run"] / "model" / "weights.safetensors") for each in (rows[0], rows[3]))
    assert any((none[name] != other[name]).any() for name in none)  # another seed
    # more seeds go on from there
    more = study(job(tmp_path, "study.seeds=3", "resume=true"))
    assert more == folder
    assert rows_of(folder)[:6] == rows
    assert len(rows_of(folder)) == 9
    with pytest.raises(RunError, match=r"study.knobs: \['dropout', 'l2'\] -> 'all'"):
        study(job(tmp_path, "study.knobs=all", "study.seeds=3", "resume=true"))


@pytest.mark.usefixtures("ray_cluster")
def test_what_cannot_be_studied_is_said_before_there_is_a_folder(tmp_path: Path) -> None:
    for overrides, message in (
        (["study.knobs=[mixup,zoneout]"], r"study.knobs: regularization.zoneout is for network.kind: rnn or lstm, and"),
        (["study.knobs=job", "regularization.dropout=0"], "no knob of regularization is on, so there is nothing to"),
        (["data.test=null"], "a study reports test figures"),
    ):
        with pytest.raises(JobError, match=message):
            study(job(tmp_path, *overrides))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_figures(tmp_path: Path) -> None:
    undisturbed = rows_of(in_a_process(tmp_path / "undisturbed", kills=0))
    assert rows_of(in_a_process(tmp_path / "killed", kills=2)) == undisturbed


def in_a_process(folder: Path, kills: int) -> Path:
    folder.mkdir()
    job_file = folder / "job.yaml"
    job_file.write_text(job(folder).to_yaml())
    command = [sys.executable, "-m", "raynn", "study", str(job_file), "--quiet"]
    journal = folder / "digits" / FILE
    for _ in range(kills):
        before = journal.read_bytes().count(b"\n") if journal.exists() else 0
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_lines(journal, before + random.randint(3, 9), process)
        below = descendants(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert are_gone(below)
        command = [*command[:5], "resume=true", "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "digits"
