from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from raynn.progress import FILE, Counter, ProgressLine, ProgressWriter, describe, duration, eta_seconds

STATE: dict[str, Any] = {
    "epochs_done": 2,
    "max_epochs": 10,
    "step": 5,
    "steps_per_epoch": 20,
    "steps_before": 0,
    "training_s": 9.0,
    "metrics": {"train/loss": 0.51234, "val/loss": 0.6},
    "examples_per_second": 12345.6,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def write(folder: Path, **fields: Any) -> None:
    (folder / FILE).write_text(json.dumps({**STATE, **fields}))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599, "59:59"), (3599.7, "1:00:00"), (36_061, "10:01:01")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_time_left_is_at_the_pace_so_far() -> None:
    # 45 steps in 9 s, 155 of 200 to go
    assert eta_seconds(STATE) == pytest.approx(31.0)


def test_time_left_after_a_resume_counts_this_process_alone() -> None:
    # 40 steps were done before: 5 steps in 9 s, 155 to go
    assert eta_seconds({**STATE, "steps_before": 40}) == pytest.approx(279.0)


def test_no_time_left_is_told_before_the_first_step() -> None:
    fresh = {**STATE, "epochs_done": 0, "step": 0, "metrics": {}, "examples_per_second": None}
    assert eta_seconds(fresh) is None
    assert eta_seconds({**STATE, "training_s": 0.0}) is None
    assert "left" not in describe(fresh)


def test_the_line() -> None:
    assert describe(STATE) == (
        "epoch 3/10  step 5/20  train/loss 0.5123  val/loss 0.6  12,346 examples/s  at most 0:31 left"
    )


def test_the_line_at_the_end() -> None:
    line = describe({**STATE, "epochs_done": 10, "step": 0})
    assert line.startswith("epoch 10/10")
    assert line.endswith("at most 0:00 left")


def test_the_writer_leaves_the_last_state(tmp_path: Path) -> None:
    state = {"step": 0}
    with ProgressWriter(tmp_path, lambda: dict(state)):
        state["step"] = 7
    assert json.loads((tmp_path / FILE).read_text()) == {"step": 7}
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_the_writer_writes_while_work_goes_on(tmp_path: Path) -> None:
    writer = ProgressWriter(tmp_path, lambda: {"step": 1})
    writer.every_s = 0.01
    with writer:
        deadline = time.monotonic() + 10
        while not (tmp_path / FILE).exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_folder_that_is_gone_does_not_stop_training(tmp_path: Path) -> None:
    with ProgressWriter(tmp_path / "gone", dict) as writer:
        writer.tick()
    assert not (tmp_path / "gone").exists()


def test_without_a_terminal_each_epoch_is_a_plain_line(tmp_path: Path) -> None:
    stream = io.StringIO()
    line = ProgressLine(tmp_path, stream)
    line.tick()  # nothing to show yet
    for fields in ({}, {"step": 6}, {"step": 7}, {"epochs_done": 3, "step": 0}, {"epochs_done": 3, "step": 1}):
        write(tmp_path, **fields)
        line.tick()
        line.tick()
    assert [text.split("  ")[0] for text in stream.getvalue().splitlines()] == ["epoch 3/10", "epoch 3/10"]
    assert not re.search(r"[\r\x1b]", stream.getvalue())


def test_without_a_terminal_a_long_epoch_is_told_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raynn.progress.PLAIN_EVERY_S", 0.0)
    stream = io.StringIO()
    line = ProgressLine(tmp_path, stream)
    for step in (1, 2):
        write(tmp_path, step=step)
        line.tick()
    assert len(stream.getvalue().splitlines()) == 2


def test_on_a_terminal_one_line_is_rewritten(tmp_path: Path) -> None:
    stream = Terminal()
    with ProgressLine(tmp_path, stream):
        write(tmp_path)
    assert stream.getvalue() == f"\r\x1b[2K{describe(STATE)}\n"


@pytest.mark.parametrize("content", ["", "{", None])
def test_a_file_that_cannot_be_read_shows_nothing(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / FILE).write_text(content)
    stream = Terminal()
    with ProgressLine(tmp_path, stream):
        pass
    assert stream.getvalue() == ""


def test_quiet_is_silent(tmp_path: Path) -> None:
    write(tmp_path)
    stream = Terminal()
    with ProgressLine(tmp_path, stream, quiet=True), Counter("rows", 1, stream, quiet=True) as counter:
        counter.add(10)
    assert stream.getvalue() == ""


def test_the_counter_tells_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 100.5, 102.0, 102.0, 102.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    stream = io.StringIO()
    with Counter("rows", 4, stream) as counter:
        counter.add(1000)  # after half a second: not yet
        assert stream.getvalue() == ""
        counter.add(1000)
    assert stream.getvalue() == "2,000 rows  1,000 rows/s  0:02 left\n"


def test_a_short_count_is_told_at_the_end_on_a_terminal_alone() -> None:
    plain, terminal = io.StringIO(), Terminal()
    for stream in (plain, terminal):
        with Counter("rows", 1, stream) as counter:
            counter.add(1234)
    assert plain.getvalue() == ""
    assert terminal.getvalue().startswith("\r\x1b[2K1,234 rows  ")
    assert terminal.getvalue().endswith("0:00 left\n")
