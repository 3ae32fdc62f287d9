"""A run or search seen in the terminal while it goes on, from its folder alone: local, or behind a URL.

The curves are drawn in Braille, two by four dots a character (Unicode 2800 to 28FF): twenty lines here, for which a
plotting package would be a dependency.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import yaml
from pyarrow.fs import FileType

from raynn.errors import RunError
from raynn.fragments import open_file_system
from raynn.ledger import ENDED
from raynn.ledger import FILE as JOURNAL
from raynn.progress import FILE, describe
from raynn.trial_table import is_higher_better, rows_of_journal

EVERY_S = 1.0
SILENT_S = 60.0  # a run writes its progress twice a second; one that was killed stops
BLUE, ORANGE, FAINT, BOLD, PLAIN = "\x1b[34m", "\x1b[33m", "\x1b[2m", "\x1b[1m", "\x1b[0m"
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of a Braille character, by column and row
MARKS = {"finished": "done", "stopped_early": "early", "cut": "cut", "failed": "FAILED", "running": "runs"}


@dataclass(frozen=True)
class View:
    """What a run folder says at one moment."""

    name: str
    state: dict[str, Any]  # progress.json
    records: tuple[dict[str, Any], ...]  # epochs of a run
    trials: tuple[dict[str, Any], ...]  # rows of a search
    metric: str
    higher: bool
    result: dict[str, Any]

    @property
    def ended(self) -> bool:
        """Whether there is a result."""
        return bool(self.result)


def look(run: str) -> View:
    """Reads the folder once.

    Raises:
        RunError: it is no run folder.
    """
    try:
        files, root = open_file_system(run if "://" in run else Path(run).absolute().as_uri())
        root = root.rstrip("/")
        if files.get_file_info(f"{root}/job.yaml").type == FileType.NotFound:
            raise RunError(f"{run} is not a run folder: it holds no job.yaml; name a folder that `raynn train` made")
    except (pa.ArrowException, OSError, ValueError, ImportError) as error:
        raise RunError(f"{run} cannot be read: {error}; name a run folder, or mend the access to it") from None

    def text(name: str) -> str:
        try:
            with files.open_input_stream(f"{root}/{name}") as stream:
                return str(stream.read().decode())
        except (pa.ArrowException, OSError):  # not there yet, just replaced, or the server is away
            return ""

    job = yaml.safe_load(text("job.yaml")) or {}
    search = job.get("search") or {}
    journal = text(JOURNAL)
    rows = rows_of_journal(journal, search) if journal else []
    metric = search.get("metric", "val/loss") if journal else job.get("early_stopping", {}).get("monitor", "val/loss")
    return View(
        str(job.get("name", root.rpartition("/")[2])),
        _object(text(FILE)),
        tuple(_lines(text("metrics.jsonl"))),
        tuple(rows),
        str(metric),
        is_higher_better(str(metric), search),
        _object(text("result.json")),
    )


def _object(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _lines(text: str) -> list[dict[str, Any]]:
    records = []
    for line in text.splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:  # being written
            break
    return records


def watch(run: str, stream: TextIO | None = None, *, every_s: float = EVERY_S) -> View:
    """Shows the run until it has ended; redrawn in place on a terminal, else a plain line for what is new.

    Raises:
        RunError: it is no run folder.
    """
    stream = stream or sys.stdout
    shown, quiet_since, state = "", time.monotonic(), None
    while True:
        began = time.monotonic()
        view = look(run)
        if view.state != state:
            state, quiet_since = view.state, time.monotonic()
        silent_s = 0.0 if view.ended else time.monotonic() - quiet_since
        if stream.isatty():
            size = shutil.get_terminal_size()
            lines = draw(view, size.columns, size.lines - 1, silent_s)
            text = "\n".join(f"{line}\x1b[K" for line in lines)
            stream.write(f"\x1b[H{text}\n\x1b[J" if shown else f"\x1b[2J\x1b[H{text}\n")
            shown = text
        else:
            line = plain_line(view)
            if line != shown:
                stream.write(line + "\n")
                shown = line
        stream.flush()
        if view.ended:
            return view
        # a search of 10,000 trials takes most of a second to read
        time.sleep(max(every_s, 4 * (time.monotonic() - began)))


def plain_line(view: View) -> str:
    """Where it stands, in a line that changes once an epoch or a trial."""
    if view.ended:
        trials = view.result.get("trials")
        what = f"{sum(trials.values())} trials" if isinstance(trials, dict) else f"{view.result.get('epochs')} epochs"
        return f"{view.name}: {view.result.get('status')} after {what}: {view.result.get('stop_reason')}"
    if view.trials:
        done = sum(row["status"] in ENDED for row in view.trials)
        best = _best_first(view)[:1]
        so_far = f"; best {view.metric} {best[0]['value']:.4g} (trial {best[0]['number']})" if best else ""
        return f"{view.name}: {done} of {len(view.trials)} trials so far have ended{so_far}"
    if not view.records:
        return f"{view.name}: before the end of the first epoch"
    last = view.records[-1]
    metrics = "  ".join(f"{k} {v:.4g}" for k, v in last.items() if "/" in k and isinstance(v, int | float))
    return f"{view.name}: epoch {last['epoch']}  {metrics}"


def draw(view: View, width: int, height: int, silent_s: float = 0.0) -> list[str]:
    """The lines of a terminal of that size."""
    status = str(view.result.get("status", "")) or ("running" if view.state else "between epochs, or not running")
    lines = [f"{BOLD}{view.name}{PLAIN}  {status}"]
    if view.ended:
        lines.append(str(view.result.get("stop_reason")))
    elif view.state:
        lines.append(describe(view.state))
    if silent_s > SILENT_S:
        lines.append(f"no news for {silent_s:.0f} s: it may have been killed; resume=true continues it")
    body = _trials(view, width, height - len(lines)) if view.trials else _run(view, width, height - len(lines))
    return [_fitted(line, width) for line in [*lines, *body]][:height]


def _run(view: View, width: int, height: int) -> list[str]:
    """The loss of both splits, and the figures of the last epochs."""
    if not view.records:
        return []
    rows = max(4, min(14, height - 8))
    train, val = ([record.get(f"{split}/loss") for record in view.records] for split in ("train", "val"))
    lines = ["", f"loss: {BLUE}training{PLAIN}, {ORANGE}validation{PLAIN}"]
    lines += plot([(train, BLUE), (val, ORANGE)], min(width, 100) - 10, rows)
    keys = [key for key in view.records[-1] if "/" in key]
    lines += ["", FAINT + "epoch  " + "  ".join(f"{key:>14}" for key in keys) + PLAIN]
    for record in view.records[-3:]:
        cells = "  ".join(f"{record[key]:>14.5g}" if record.get(key) is not None else " " * 14 for key in keys)
        lines.append(f"{int(record['epoch']):>5}  {cells}")
    return lines


def _best_first(view: View) -> list[dict[str, Any]]:
    known = [row for row in view.trials if row["value"] is not None and row["value"] == row["value"]]
    return sorted(known, key=lambda row: -row["value"] if view.higher else row["value"])


def _trials(view: View, width: int, height: int) -> list[str]:
    """The best so far by trial, those that run, and the best ones."""
    ordered = _best_first(view)
    best: list[float | None] = []
    for row in view.trials:
        value, last = row["value"], best[-1] if best else None
        better = value is not None and (last is None or (value > last) == view.higher)
        best.append(value if better else last)
    lines = ["", f"best {view.metric} by trial"] if any(b is not None for b in best) else []
    if lines:
        lines += plot([(best, BLUE)], min(width, 100) - 10, max(3, min(8, height // 3)))
    names = [name for name in view.trials[0] if "." in name]
    head = f"{'trial':>5} {'fate':<7}{'epochs':>6} {view.metric:>13}  "
    lines += ["", FAINT + head + "  ".join(f"{name.rpartition('.')[2]:>14}" for name in names) + PLAIN]
    running = [row for row in view.trials if row["status"] == "running"]
    rest = [row for row in ordered if row["status"] != "running"]
    for row in [*running, *rest][: max(1, height - len(lines))]:
        value = f"{row['value']:.5g}" if row["value"] is not None else ""
        cells = "  ".join(f"{_cell(row.get(name)):>14}" for name in names)
        lines.append(
            f"{row['number']:>5} {MARKS.get(row['status'], row['status']):<7}{row['epochs']:>6} {value:>13}  {cells}"
        )
    return lines


def _cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else "" if value is None else str(value)[:14]


def plot(curves: Sequence[tuple[Sequence[float | None], str]], columns: int, rows: int) -> list[str]:
    """Curves in Braille, each in its color, one x for each value; the ends of the y axis stand at the left."""
    known = [y for values, _ in curves for y in values if y is not None and math.isfinite(y)]
    if not known or columns < 2:
        return []
    low, high = min(known), max(known)
    span = (high - low) or 1.0
    cells = [[0] * columns for _ in range(rows)]
    colors = [[""] * columns for _ in range(rows)]
    longest = max(len(values) for values, _ in curves)
    for values, color in curves:
        for x in range(2 * columns):  # every dot column, between two values on the line that joins them
            place = x / (2 * columns - 1) * (longest - 1)
            left = int(place)
            a, b = (values[i] if i < len(values) else None for i in (left, min(left + 1, longest - 1)))
            if a is None or (b is None and place > left):
                continue
            y = a if b is None else a + (b - a) * (place - left)
            if not math.isfinite(y):
                continue
            dot = round((1 - (y - low) / span) * (4 * rows - 1))
            cells[dot // 4][x // 2] |= DOTS[x % 2][dot % 4]
            colors[dot // 4][x // 2] = color
    lines = []
    for r, row in enumerate(cells):
        label = f"{high:>9.4g}" if r == 0 else f"{low:>9.4g}" if r == rows - 1 else " " * 9
        drawn, last = "", ""
        for bits, color in zip(row, colors[r], strict=True):
            if bits and color != last:
                drawn, last = drawn + color, color
            drawn += chr(0x2800 + bits) if bits else " "
        lines.append(f"{label} {drawn.rstrip()}{PLAIN}")
    return lines


def _fitted(line: str, width: int) -> str:
    """Cut to the width of the terminal, colors not counted."""
    kept, used, i = "", 0, 0
    while i < len(line):
        if line[i] == "\x1b":
            end = line.index("m", i) + 1
            kept, i = kept + line[i:end], end
        elif used < width:
            kept, used, i = kept + line[i], used + 1, i + 1
        else:
            i += 1
    return kept
