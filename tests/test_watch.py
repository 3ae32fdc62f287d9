"""`raynn watch`: lines and drawings of a run and of a search, from their folders alone."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from pathlib import Path

import pytest
import yaml

from raynn.cli import main
from raynn.ledger import Ledger, Verdict
from raynn.watch import View, draw, look, plot, watch

COLOR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def unadorned(lines: list[str]) -> list[str]:
    return [COLOR.sub("", line) for line in lines]


def write_epoch(folder: Path, epoch: int) -> None:
    record = {"epoch": epoch, "step": epoch, "train/loss": 1 / epoch, "val/loss": 1.2 / epoch, "val/accuracy": 0.5}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


@pytest.fixture
def going(tmp_path: Path) -> Path:
    """A run that has trained three epochs of ten."""
    job = {"name": "going", "data": {"train": "digits"}, "network": {"kind": "cnn"}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    for epoch in (1, 2, 3):
        write_epoch(tmp_path, epoch)
    state = {"epochs_done": 3, "max_epochs": 10, "step": 4, "steps_per_epoch": 8, "steps_before": 0, "training_s": 7.0}
    (tmp_path / "progress.json").write_text(json.dumps(state | {"metrics": {}, "examples_per_second": 100.0}))
    return tmp_path


def test_a_curve_is_drawn_where_its_values_are() -> None:
    lines = unadorned(plot([([0.0, 1.0, 2.0, 3.0], "\x1b[34m")], 8, 4))
    assert (lines[0][:9].strip(), lines[-1][:9].strip()) == ("3", "0")
    dots = [[x for x, mark in enumerate(line[10:]) if mark != " "] for line in lines]
    assert dots[0][-1] == 7, "the largest value is on top, at the right"
    assert dots[-1][0] == 0, "the smallest below, at the left"
    assert all(0x2800 < ord(mark) <= 0x28FF for line in lines for mark in line[10:] if mark != " ")


def test_values_that_are_not_there_leave_gaps() -> None:
    (line,) = unadorned(plot([([1.0, None, None, 1.0], "")], 12, 1))
    assert line[10] != " "
    assert " " in line[11:].rstrip()
    assert plot([([None], "")], 10, 3) == []
    assert plot([([float("inf"), 1.0], "")], 10, 2)


def test_a_run_on_a_terminal(going: Path) -> None:
    lines = unadorned(draw(look(str(going)), 100, 40))
    assert lines[0] == "going  running"
    assert lines[1].startswith("epoch 4/10  step 4/8")
    assert any("loss: training, validation" in line for line in lines)
    assert lines[-1].split() == ["3", "0.33333", "0.4", "0.5"]


@pytest.mark.parametrize("size", [(20, 10), (60, 14), (200, 60)])
def test_no_line_is_wider_and_no_drawing_higher_than_the_terminal(going: Path, size: tuple[int, int]) -> None:
    width, height = size
    lines = unadorned(draw(look(str(going)), width, height))
    assert len(lines) <= height
    assert max(map(len, lines)) <= width


def test_a_run_that_says_nothing_for_long(going: Path) -> None:
    view = look(str(going))
    assert not any("no news" in line for line in draw(view, 100, 40, 59.0))
    assert "no news for 90 s: it may have been killed; resume=true continues it" in draw(view, 100, 40, 90.0)


def test_plain_lines_until_the_run_has_ended(going: Path) -> None:
    stream = io.StringIO()
    watching = threading.Thread(target=watch, args=(str(going), stream), kwargs={"every_s": 0.01})
    watching.start()

    def wait_for(words: str) -> None:
        until = time.monotonic() + 20
        while words not in stream.getvalue():
            assert time.monotonic() < until, stream.getvalue()
            time.sleep(0.005)
        time.sleep(0.1)  # several looks at what has not changed

    wait_for("epoch 3")
    write_epoch(going, 4)
    wait_for("epoch 4")
    (going / "result.json").write_text(json.dumps({"status": "stopped_early", "epochs": 4, "stop_reason": "enough"}))
    watching.join(20)
    assert not watching.is_alive()
    assert stream.getvalue().splitlines() == [
        "going: epoch 3  train/loss 0.3333  val/loss 0.4  val/accuracy 0.5",
        "going: epoch 4  train/loss 0.25  val/loss 0.3  val/accuracy 0.5",
        "going: stopped_early after 4 epochs: enough",
    ]


def test_a_terminal_is_redrawn_in_place(going: Path) -> None:
    (going / "result.json").write_text(json.dumps({"status": "finished", "epochs": 3, "stop_reason": "the end"}))
    stream = Terminal()
    view = watch(str(going), stream)
    assert stream.getvalue().startswith("\x1b[2J\x1b[H")
    assert "the end" in stream.getvalue()
    assert view.ended


@pytest.fixture
def searching(tmp_path: Path) -> Path:
    """A search with a trial that runs, one that was cut, one that has ended."""
    space = {"regularization.dropout": {"uniform": [0.0, 0.5]}}
    job = {"name": "hunt", "data": {"train": "digits"}, "network": {"kind": "cnn"}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job | {"search": {"metric": "val/accuracy", "space": space}}))
    ledger = Ledger(tmp_path / "search.jsonl")
    for dropout, accuracy in ((0.1, 0.7), (0.25, 0.9), (0.3, 0.5)):
        trial = ledger.add({"regularization.dropout": dropout}, "search")
        ledger.report(trial, {"epoch": 1, "val/accuracy": accuracy}, lambda trial: Verdict("go_on"))
    ledger.become(ledger.trials[0], "cut", "behind")
    ledger.become(ledger.trials[1], "finished", "max_epochs reached")
    return tmp_path


def test_a_search_on_a_terminal(searching: Path) -> None:
    lines = unadorned(draw(look(str(searching)), 100, 30))
    assert "best val/accuracy by trial" in lines
    table = lines[next(i for i, line in enumerate(lines) if "dropout" in line) + 1 :]
    assert [line.split() for line in table] == [
        ["2", "runs", "1", "0.5", "0.3"],
        ["1", "done", "1", "0.9", "0.25"],
        ["0", "cut", "1", "0.7", "0.1"],
    ]


def test_a_search_in_plain_lines(searching: Path) -> None:
    (searching / "result.json").write_text(
        json.dumps({"status": "finished", "trials": {"finished": 1, "cut": 2}, "stop_reason": "all trials have ended"})
    )
    stream = io.StringIO()
    watch(str(searching), stream)
    assert stream.getvalue() == "hunt: finished after 3 trials: all trials have ended\n"


def test_a_run_behind_a_url(going: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in going.iterdir():
        memory.pipe_file(f"/runs/going/{path.name}", path.read_bytes())
    view = look("memory://runs/going")
    assert isinstance(view, View)
    assert len(view.records) == 3


def test_the_command(going: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (going / "result.json").write_text(json.dumps({"status": "finished", "epochs": 3, "stop_reason": "the end"}))
    assert main(["watch", str(going)]) == 0
    assert capsys.readouterr().out == f"going: finished after 3 epochs: the end\nnext: raynn report {going}\n"
    assert main(["watch", str(going), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stop_reason"] == "the end"
    assert main(["watch", str(tmp_path / "nowhere")]) == 2
    assert "is not a run folder: it holds no job.yaml" in capsys.readouterr().err
