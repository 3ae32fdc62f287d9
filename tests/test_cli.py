"""The commands: what they print, where, and with which exit status."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from processes import HEARS_INTERRUPTIONS
from walks import walks

from raynn.cli import main
from raynn.regularization import knob_specs

JOB = """\
data: {train: flowers.csv, test: 0.2, target: kind}
network: {kind: feedforward, hidden: [4]}
optimization: {global_batch_size: 16, max_epochs: 2}
"""
RESULT = {
    *("name", "status", "stop_reason", "best_epoch", "epochs", "metrics", "parameters", "workers", "seconds"),
    *("seconds_to_first_step", "examples_per_second", "model"),
}


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, garden: Path) -> Path:
    """The current folder, with job.yaml and flowers.csv."""
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(JOB)
    shutil.copy(garden / "flowers.csv", "flowers.csv")
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """Standard output and standard error of a command that ends well."""
    capsys.readouterr()
    status = main(arguments)
    out, err = capsys.readouterr()
    assert status == 0, err
    return out, err


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The JSON object that a command prints with --json, alone on standard output."""
    out, _ = printed(capsys, *arguments, "--json")
    assert out.count("\n") == 1
    answer = json.loads(out)
    assert isinstance(answer, dict)
    return answer


def test_train_answers_with_the_result(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = answered(capsys, "train", "job.yaml")
    run = desk / "runs" / "job"
    assert answer == json.loads((run / "result.json").read_text()) | {"run": str(run)}
    assert set(answer) == RESULT | {"run"}
    assert (answer["name"], answer["status"], answer["epochs"], answer["workers"]) == ("job", "finished", 2, 1)
    assert answer["stop_reason"] == "max_epochs = 2 reached"
    assert answer["best_epoch"] in (1, 2)
    keys = {f"{split}/{name}" for split in ("val", "test") for name in ("loss", "accuracy", "f1_macro", "auroc")}
    assert set(answer["metrics"]) == {"train/loss", *keys}
    assert answer["parameters"] == sum(p.size for p in _weights(run).values())
    assert 0 < answer["seconds_to_first_step"] <= answer["seconds"]
    assert answer["examples_per_second"] > 0
    assert (run / answer["model"] / "weights.safetensors").exists()
    assert {path.name for path in run.iterdir()} == {
        *("job.yaml", "environment.json", "metrics.jsonl", "norms.jsonl", "result.json", "model", "checkpoints")
    }
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(record["epoch"], record["step"]) for record in records] == [(1, 10), (2, 20)]
    assert answer["metrics"].items() >= {k: v for k, v in records[answer["best_epoch"] - 1].items() if "/" in k}.items()
    resolved = yaml.safe_load((run / "job.yaml").read_text())
    assert (resolved["name"], resolved["task"], resolved["data"]["train"]) == (
        "job",
        "classification",
        str(desk / "flowers.csv"),
    )
    environment = json.loads((run / "environment.json").read_text())
    assert environment["seed"] == 0
    assert environment["packages"].keys() >= {"raynn", "ray", "torch"}


def _weights(run: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(run / "model" / "weights.safetensors")


def test_the_last_line_names_the_run_folder_and_the_next_command(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = printed(capsys, "train", "job.yaml")
    lines = out.splitlines()
    assert lines[0] == "finished after 2 epochs: max_epochs = 2 reached"
    assert lines[1].startswith("best epoch ")
    assert "test/accuracy" in lines[1]
    assert lines[-1] == "runs/job; next: raynn predict runs/job DATA --out predictions.parquet"
    assert "168 train, 24 validation, 48 test rows; classification: target 'kind' holds string" in err
    assert "epoch 2/2" in err
    next_command = lines[-1].partition("; next: raynn ")[2].replace("DATA", "flowers.csv")
    out, _ = printed(capsys, *next_command.split())
    assert out == "240 predictions in predictions.parquet\n"
    assert pq.read_table("predictions.parquet").num_rows == 240


def test_quiet_says_nothing_but_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = printed(capsys, "train", "job.yaml", "--quiet")
    assert err == ""
    assert out.splitlines()[-1].startswith("runs/job; next: ")
    out, err = printed(capsys, "train", "job.yaml", "--quiet", "--json")
    assert (json.loads(out)["name"], err) == ("job-2", "")


def test_every_run_has_a_folder_of_its_own(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("job", "job-2", "job-3"):
        assert answered(capsys, "train", "job.yaml", "optimization.max_epochs=1")["run"] == str(desk / "runs" / name)
    assert answered(capsys, "train", "job.yaml", "name=other", "storage=deep/er")["run"] == str(desk / "deep/er/other")


def test_overrides_may_follow_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert answered(capsys, "train", "job.yaml", "--quiet", "optimization.max_epochs=1")["epochs"] == 1


def test_early_stopping_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    answer = answered(
        capsys, "train", "job.yaml", "optimization.max_epochs=50", "early_stopping={patience: 1, min_delta: 9}"
    )
    assert (answer["status"], answer["epochs"]) == ("stopped_early", 2)
    assert answer["stop_reason"].startswith("val/loss has not improved by more than 9 for 1 epochs")


def test_a_training_that_fails_has_status_1(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "job.yaml", "data.target=price", "optimization.learning_rate=1e30", "--json"]
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert "the training loss stopped being finite at step 2 of epoch 1; lower optimization.learning_rate" in err
    assert json.loads(out)["kind"] == "TrainingError"
    result = json.loads((desk / "runs" / "job" / "result.json").read_text())
    assert (result["status"], result["epochs"]) == ("failed", 0)
    assert result["stop_reason"] in err


def test_evaluate(classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = answered(capsys, "evaluate", str(classifier))
    assert set(answer) == {"run", "metrics"}
    assert set(answer["metrics"]) == {"test/loss", "test/accuracy", "test/f1_macro", "test/auroc"}
    out, _ = printed(capsys, "evaluate", str(classifier))
    assert out.startswith("test/loss ")
    on_data = answered(capsys, "evaluate", str(classifier), "flowers.csv")["metrics"]
    assert on_data["test/loss"] != answer["metrics"]["test/loss"]


def test_predict(classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = answered(capsys, "predict", str(classifier), "flowers.csv", "--out", "out.parquet")
    assert answer == {"rows": 240, "bad_rows": 0, "out": "out.parquet"}
    Path("bad.csv").write_text(Path("flowers.csv").read_text() + "1,2\n")
    out, _ = printed(capsys, "predict", str(classifier), "bad.csv", "--out", "out.parquet")
    assert out == ("240 predictions in out.parquet; 1 rows could not be read: out.parquet.bad_rows.jsonl says why\n")


def test_check_a_job(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = answered(capsys, "check", "job.yaml")
    assert set(answer) == {
        *("job", "task", "target", "columns", "rows", "bad_rows", "network", "parameters", "steps_per_epoch"),
        *("lanes", "notes", "storage", "memory", "weights", "footprint", "scaling"),
    }
    assert answer["rows"] == {"train": 168, "validation": 24, "test": 48}
    kinds = {name: column["kind"] for name, column in answer["columns"].items()}
    assert kinds == {
        **dict.fromkeys(("width", "height", "garden", "price"), "numeric"),
        **dict.fromkeys(("color", "part", "kind"), "categorical"),
        "planted": "date",
    }
    assert (answer["steps_per_epoch"], answer["lanes"]) == (10, 16)
    assert not list((desk / "runs").iterdir())
    trained = answered(capsys, "train", "job.yaml", "optimization.max_epochs=1")
    assert trained["parameters"] == answer["parameters"]


def test_check_shows_columns_and_the_next_command(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = printed(capsys, "check", "job.yaml", "network={kind: feedforward, hidden: [4]}")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "job: classification of 'kind' (target 'kind' holds string)"
    assert "width numeric text that reads as numbers" in lines
    assert "planted date text that reads as ISO dates" in lines
    assert "color categorical text, 3 different values in 240 sampled" in lines
    assert "kind target text" in lines
    assert "168 train, 24 validation, 48 test rows, 0 bad" in lines
    assert any("kept in the memory that is free" in line and " bytes cleaned and " in line for line in lines)
    assert lines[-1] == "nothing would stop it; next: raynn train job.yaml 'network={kind: feedforward, hidden: [4]}'"
    printed(capsys, *shlex.split(lines[-1].partition("; next: raynn ")[2]))


@pytest.mark.parametrize(
    ("network", "shown"),
    [("lstm", "steps sequence any x 2"), ("cnn", "steps sequence 3 x 2")],
)
def test_check_shows_the_shape_of_sequences(
    network: str, shown: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = walks(60)
    if network == "cnn":
        table = table.set_column(0, "steps", pa.array([walk[:3] for walk in table["steps"].to_pylist()]))
    pq.write_table(table, "walks.parquet")
    data = "data={train: walks.parquet, target: place, columns: {distance: ignore}}"
    out, _ = printed(capsys, "check", "job.yaml", data, f"network={{kind: {network}}}")
    (line,) = [line for line in out.splitlines() if line.startswith("  steps ")]
    assert " ".join(line.split()).startswith(f"{shown} list<")


def test_check_says_where_a_worker_s_rows_will_be(capsys: pytest.CaptureFixture[str]) -> None:
    answer = answered(capsys, "check", "job.yaml", "resources.memory_gib=1")
    rows, columns = sum(answer["rows"].values()), len(answer["columns"])
    assert answer["memory"]["budget_bytes"] == 2**30
    assert answer["memory"]["where"] == "memory"
    assert 4 * rows * columns <= answer["memory"]["worker_bytes"] <= 16 * rows * columns
    out, _ = printed(capsys, "check", "job.yaml", "resources.memory_gib=1")
    assert "MiB of rows a worker, of at most 1,024.0 MiB (resources.memory_gib): held in memory" in out
    half = answered(capsys, "check", "job.yaml", "resources={memory_gib: 1, workers: 2}")["memory"]["worker_bytes"]
    assert half == -(-answer["memory"]["worker_bytes"] // 2)
    out, _ = printed(capsys, "check", "job.yaml", "resources.memory_gib=1e-7")
    assert "of at most 0.0 MiB (resources.memory_gib): read from a memory-mapped file" in out


def test_check_says_what_a_worker_has_of_the_network(capsys: pytest.CaptureFixture[str]) -> None:
    network = "network={kind: feedforward, hidden: [512, 512]}"
    found = {
        strategy: answered(capsys, "check", "job.yaml", network, f"resources={{workers: 4, strategy: {strategy}}}")
        for strategy in ("ddp", "fsdp")
    }
    whole = 4 * found["ddp"]["parameters"]
    assert found["ddp"]["weights"] == {"strategy": "ddp", "worker_bytes": whole, "gathered_bytes": 0}
    assert whole / 4 <= found["fsdp"]["weights"]["worker_bytes"] < whole / 4 + 4 * 1024
    out, _ = printed(capsys, "check", "job.yaml", network, "resources={workers: 4, strategy: fsdp}")
    size = found["fsdp"]["weights"]["worker_bytes"] / 2**20
    assert f"{size:,.1f} MiB of weights a worker, as much for their gradient and for each moment: a part of each" in out
    out, _ = printed(capsys, "check", "job.yaml", network)
    assert "for each moment: the whole network\n" in out


def test_check_says_what_a_step_holds_and_when_another_worker_stops_helping(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer = answered(capsys, "check", "job.yaml", "--link", "25 GbE")
    memory, scaling = answer["memory"], answer["scaling"]
    assert memory["gradients_bytes"] == 4 * answer["parameters"] == scaling["gradient_bytes"]
    assert memory["optimizer_bytes"] > 2 * memory["gradients_bytes"]  # AdamW's two averages
    assert memory["rows_bytes"] == memory["worker_bytes"]
    assert [step["workers"] for step in scaling["steps"]] == [1, 2, 4, 8, 16]  # as many as there are lanes
    assert [point["rows"] for point in scaling["measured"]] == [2, 4, 16]
    assert scaling["steps"][0]["step_s"] >= scaling["measured"][-1]["step_s"]
    assert scaling["link"]["bytes_per_s"] == pytest.approx(25e9 / 8 * 0.94)
    out, _ = printed(capsys, "check", "job.yaml")
    assert "speed-up  efficiency  (over 10 GbE; the same global batch)" in out
    assert "1 thread\n" in out
    assert "how many workers like this help, each on a machine of its own (on one together they gain less):\n" in out
    assert re.search(r"times as fast: \d+ over 1 GbE.*, \d+ over 10 GbE.*, \d+ over 100 GbE.*, \d+ over NVLink", out)
    assert "memory of a worker, about" in out


def test_check_warns_of_a_worker_that_does_not_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "WARNING" not in printed(capsys, "check", "job.yaml")[0]
    monkeypatch.setattr("raynn.check.free_memory_bytes", lambda: 0)
    out, _ = printed(capsys, "check", "job.yaml")
    assert re.search(r"\nWARNING: this machine has [\d,.]+ [MG]iB for it\. To hold less: resources.memory_gib", out)
    assert "nothing else would stop it" in out
    memory = answered(capsys, "check", "job.yaml")["memory"]
    assert memory["room_bytes"] == memory["process_bytes"] < memory["total_bytes"]


@pytest.mark.parametrize("command", ["check", "train"])
def test_a_bound_on_a_worker_s_memory_refuses_what_would_not_stay_within(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "job.yaml", "resources.worker_memory_gib=0.01"]) == 2
    said = capsys.readouterr().err
    assert "resources.worker_memory_gib = 0.01 is less than the" in said
    assert "the process and its rows" in said
    assert main([command, "job.yaml", "resources.worker_memory_gib=64"]) == 0


def test_rows_get_half_of_what_the_bound_on_a_worker_leaves(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raynn.placement.held_bytes", lambda: 2**30)

    def budget(resources: str) -> int:
        return answered(capsys, "check", "job.yaml", f"resources={{{resources}}}")["memory"]["budget_bytes"]

    monkeypatch.setattr("raynn.placement.free_memory_bytes", lambda: 2**40)
    assert budget("worker_memory_gib: 5") == 2 * 2**30
    assert budget("worker_memory_gib: 5, memory_gib: 1") == 2**30
    assert budget("worker_memory_gib: 5, memory_gib: 4") == 2 * 2**30
    monkeypatch.setattr("raynn.placement.free_memory_bytes", lambda: 2**30)
    assert budget("worker_memory_gib: 5") == 2**29


def test_check_tries_rows_mixed_inside_the_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert answered(capsys, "check", "job.yaml", "regularization.manifold_mixup=0.5")["memory"]["activations_bytes"] > 0


def test_check_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    answer = answered(capsys, "check")
    assert set(answer) == {"python", "packages", "cpus", "free_memory_gib", "gpus", "cluster"}
    assert answer["python"] == sys.version.split()[0]
    assert answer["cpus"] >= 1
    assert answer["cluster"] is None
    out, _ = printed(capsys, "check")
    assert out.splitlines()[-1].startswith("cluster: none (RAY_ADDRESS is not set)")


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    schema = answered(capsys, "schema")
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(yaml.safe_load(JOB))
    assert [error.json_path for error in validator.iter_errors(yaml.safe_load(JOB) | {"optimisation": {}})] == ["$"]
    out, _ = printed(capsys, "schema")
    assert json.loads(out) == schema


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    answer = answered(capsys, "list")
    assert set(answer) == {"networks", "regularizers", "stopping_rules", "datasets"}
    assert answer["networks"].keys() >= {"feedforward", "cnn"}
    assert answer["regularizers"].keys() >= {"dropout", "weight_decay", "label_smoothing"}
    assert answer["stopping_rules"].keys() >= {"patience", "gl", "pq", "up", "time", "none"}
    assert "alpha" in answer["stopping_rules"]["gl"]
    assert "Prechelt 1998" in answer["stopping_rules"]["gl"]
    assert answer["datasets"].keys() >= {"digits", "breast_cancer", "wine", "diabetes", "fashion_mnist_train"}
    assert all(text for entries in answer.values() for text in entries.values())
    assert answer["datasets"]["wine"].endswith("3 classes (target: cultivar)")
    assert "target" not in answer["datasets"]["python_text"]
    out, _ = printed(capsys, "list")
    assert [block.partition("\n")[0] for block in out.split("\n\n")] == list(answer)


def test_list_cost_says_what_was_measured_where(capsys: pytest.CaptureFixture[str]) -> None:
    for measurement in answered(capsys, "list", "--cost")["cost"]:
        assert measurement["n"] >= 3
        assert measurement["ratios"].keys() == knob_specs().keys()
        assert all(measurement["ratios"].values())  # each on one network at least
        # two gradients instead of one
        assert 1.5 < measurement["ratios"]["sam"]["feedforward"]["ratio"] < 2.5
    out, _ = printed(capsys, "list", "--cost")
    first, *lines = out.splitlines()
    assert first.startswith("step time over that without, ")
    assert " n = " in first
    assert len(lines) == len(knob_specs())


def test_python_m_raynn_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "raynn", "train", "nowhere.yaml", "--json"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert json.loads(done.stdout)["kind"] == "JobError"
    assert done.stderr.startswith("raynn train: nowhere.yaml: no such file")
    assert "Traceback" not in done.stderr


def test_help_has_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out, _ = capsys.readouterr()
    assert all(command in out for command in ("train", "evaluate", "predict", "check", "schema", "list"))


def test_ctrl_c_prints_the_line_that_resumes(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["network={kind: feedforward, hidden: [8]}", "optimization.max_epochs=100", "early_stopping.rule=none"]
    arguments = ["train", "job.yaml", *overrides]
    process = subprocess.Popen(
        [*HEARS_INTERRUPTIONS, sys.executable, "-m", "raynn", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = desk / "runs" / "job" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    said, line = err.splitlines()[-2:]
    assert said == "interrupted; what was trained is saved, continue with:"
    assert shlex.split(line) == ["raynn", *arguments, "resume=true"]
    assert not (desk / "runs" / "job" / "result.json").exists()
    before = metrics.read_text().splitlines()
    assert 2 <= len(before) < 100

    answer = answered(capsys, *shlex.split(line)[1:])
    assert (answer["run"], answer["epochs"]) == (str(desk / "runs" / "job"), 100)
    assert metrics.read_text().splitlines()[: len(before)] == before
    straight = answered(capsys, *arguments)
    assert straight["name"] == "job-2"
    assert straight["metrics"] == answer["metrics"]
