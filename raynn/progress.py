"""One progress line, drawn from the run folder: whoever trains writes progress.json there, whoever watches reads it."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

FILE = "progress.json"
WRITE_EVERY_S = 0.5
PLAIN_EVERY_S = 20.0


class _Ticker:
    """Calls `tick` every so often in a thread of its own, and once more at the end."""

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def tick(self) -> None:
        """What is done each time."""

    def _run(self) -> None:
        while not self._done.wait(self.every_s):
            self.tick()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self.tick()


class ProgressWriter(_Ticker):
    """Keeps RUN/progress.json up to date with what `state` returns; the file is replaced whole."""

    def __init__(self, folder: Path, state: Callable[[], dict[str, Any]]) -> None:
        super().__init__(WRITE_EVERY_S)
        self.folder, self.state = folder, state

    def tick(self) -> None:
        """Writes the file; a full disk must not stop training."""
        try:
            partial = self.folder / (FILE + ".partial")
            partial.write_text(json.dumps(self.state()))
            partial.replace(self.folder / FILE)
        except OSError:
            pass


def duration(seconds: float) -> str:
    """m:ss, or h:mm:ss."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def eta_seconds(state: dict[str, Any]) -> float | None:
    """Time left at the pace so far if no epoch is spared by stopping early; None before the first step."""
    reached = state["epochs_done"] * state["steps_per_epoch"] + state["step"]
    done, left = reached - state["steps_before"], state["max_epochs"] * state["steps_per_epoch"] - reached
    if done <= 0 or state["training_s"] <= 0:
        return None
    return float(state["training_s"] / done * left)


def describe(state: dict[str, Any]) -> str:
    """The line: epoch, step, losses, rate, time left at most; of a search: trials, the best so far, time left."""
    if "trials" in state:
        return _describe_search(state)
    parts = [f"epoch {state['epochs_done']}/{state['max_epochs']}"]
    if state["step"]:
        parts = [
            f"epoch {state['epochs_done'] + 1}/{state['max_epochs']}",
            f"step {state['step']}/{state['steps_per_epoch']}",
        ]
    if state.get("refit"):
        parts[0] = f"refit {parts[0]}"
    parts += [f"{key} {value:.4g}" for key, value in state["metrics"].items()]
    if state["examples_per_second"]:
        parts.append(f"{state['examples_per_second']:,.0f} examples/s")
    left = eta_seconds(state)
    if left is not None:
        parts.append(f"at most {duration(left)} left")
    return "  ".join(parts)


def _describe_search(state: dict[str, Any]) -> str:
    words = {"stopped_early": "stopped early"}
    found = [f"{number} {words.get(status, status)}" for status, number in state["search"].items() if number]
    parts = [f"{state['trials_done']}/{state['trials']} trials: {', '.join(found) or 'none begun'}"]
    if state["best"] is not None:
        parts.append(f"best {state['metric']} {state['best']:.4g} (trial {state['best_trial']})")
    if state["seconds_left"] is not None:
        parts.append(f"about {duration(state['seconds_left'])} left")
    return "  ".join(parts)


class Counter:
    """Counts what is done, in parts of about equal size: one line with rate and time left, once a second at most."""

    def __init__(self, noun: str, num_parts: int, stream: TextIO | None = None, quiet: bool = False) -> None:
        self.noun, self.num_parts, self.quiet = noun, num_parts, quiet
        self.stream = stream or sys.stderr
        self.done, self.parts_done = 0, 0
        self._started = self._shown_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def add(self, number: int) -> None:
        """One more part, of `number` things, is done."""
        self.done, self.parts_done = self.done + number, self.parts_done + 1
        if time.monotonic() - self._shown_at >= 1.0 and not self.quiet:
            self._show()

    def _show(self) -> None:
        elapsed = time.monotonic() - self._started
        left = elapsed / self.parts_done * (self.num_parts - self.parts_done)
        line = f"{self.done:,} {self.noun}  {self.done / elapsed:,.0f} {self.noun}/s  {duration(left)} left"
        self.stream.write(f"\r\x1b[2K{line}" if self.stream.isatty() else line + "\n")
        self.stream.flush()
        self._shown_at = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.stream.isatty() and not self.quiet and self.parts_done:
            self._show()
            self.stream.write("\n")


class ProgressLine(_Ticker):
    """Shows a run's progress on `stream`: one line rewritten in place on a terminal, else a plain line an epoch."""

    def __init__(self, folder: Path, stream: TextIO | None = None, quiet: bool = False) -> None:
        super().__init__(0.25)
        self.folder, self.quiet = folder, quiet
        self.stream = stream or sys.stderr
        self.on_terminal = self.stream.isatty()
        self._shown: tuple[int, str] = (-1, "")
        self._shown_at = 0.0

    def tick(self) -> None:
        """Draws what is new."""
        try:
            state = json.loads((self.folder / FILE).read_text())
        except (OSError, ValueError):
            return
        line = describe(state)
        done = state["trials_done"] if "trials" in state else state["epochs_done"]
        if self.quiet or line == self._shown[1]:
            return
        if self.on_terminal:
            self.stream.write("\r\x1b[2K" + line)
        elif done == self._shown[0] and time.monotonic() - self._shown_at < PLAIN_EVERY_S:
            return
        else:
            self.stream.write(line + "\n")
        self.stream.flush()
        self._shown, self._shown_at = (done, line), time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, value, trace)
        if self.on_terminal and self._shown[1]:
            self.stream.write("\n")
