"""What a search costs besides training: decisions, journal, folders, report, and Ray Tune, by the number of trials.

    .venv/bin/python benchmarks/control_plane.py [--trials 10 1000 10000] [--slots 64] [--out FILE.md]
        [--only director suggestions files tune preparation]

The search is raynn's own but for the training: the director, its ledger with the journal on disk, suggestions,
schedulers, and the desk that makes run folders are the real ones; trials train in simulated time, each epoch a second
or so, and report made-up values. What is timed is therefore all that one process must do for all trials: where it is
slower than the trials ask, more nodes help no more. `tune` is not simulated: raynn's desk in Ray Tune on this machine's
Ray, with actors that report made-up values at once, or after a second's sleep.
"""

from __future__ import annotations

import argparse
import datetime
import heapq
import itertools
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from raynn.desk import Desk, Slots, run_trials
from raynn.director import Director
from raynn.estimate import Pace, seconds_left
from raynn.folder import processor_name
from raynn.job import Job
from raynn.ledger import FILE, Ledger, Trial
from raynn.outcome import counts, repeated, trials_table, write_trials
from raynn.search_report import search_page
from raynn.trial import TrialActor
from raynn.trial_table import read_search
from raynn.tuner import director_of
from raynn.watch import draw, look

SPACE = {
    "optimization.learning_rate": {"loguniform": [1e-4, 1e-1]},
    "regularization.dropout": {"uniform": [0.0, 0.6]},
    "regularization.weight_decay": {"loguniform": [1e-6, 1e-1]},
    "regularization.label_smoothing": {"uniform": [0.0, 0.2]},
    "regularization.gradient_clip_norm": {"loguniform": [0.1, 10.0]},
    "optimization.momentum": {"uniform": [0.5, 0.99]},
}
SCHEDULERS = ("none", "asha", "asha_promote", "hyperband", "median", "pbt")
ALGORITHMS = ("random", "quasi_random", "optuna", "gp", "cmaes", "nsga2")
MAX_EPOCHS = 9
Row = tuple[str, ...]


def job_of(num_trials: int, scheduler: str = "asha", algorithm: str = "random", **sections: Any) -> Job:
    """A search of six settings."""
    return Job.from_dict(
        {
            "name": "simulated",
            "data": {"train": "wine"},
            "network": {"kind": "feedforward"},
            "optimization": {"max_epochs": MAX_EPOCHS, "optimizer": "sgd", "global_batch_size": 32},
            "report": False,
            "search": {
                "space": SPACE,
                "trials": num_trials,
                "scheduler": scheduler,
                "algorithm": algorithm,
                "first": "none",
                "max_failed_trials": num_trials,
            },
            **sections,
        }
    )


def loss(trial: Trial, epoch: int) -> float:
    """Made up: falls with the epochs, to a floor that depends on the settings."""
    dropout = float(str(trial.settings["regularization.dropout"]))
    rate = float(str(trial.settings["optimization.learning_rate"]))
    noise = Random(f"{trial.number} {epoch}").random()
    return 0.3 + (dropout - 0.2) ** 2 + abs(rate - 1e-2) + 1.0 / epoch + 0.05 * noise


def simulate(director: Director, max_epochs: int, begin: Callable[[Trial], None] = lambda trial: None) -> int:
    """Runs a search in simulated time; how many decisions that took: answers to what next and to each epoch."""
    clock, decisions = 0.0, 0
    due: list[tuple[float, int]] = []

    def later(trial: Trial) -> None:
        heapq.heappush(due, (clock + 0.5 + Random(f"{trial.number}-{trial.epochs}").random(), trial.number))

    while True:
        while (trial := director.next()) is not None:
            decisions += 1
            begin(trial)
            later(trial)
        if not due:
            return decisions
        clock, number = heapq.heappop(due)
        trial = director.trials[number]
        epoch = trial.epochs + 1
        record = {"epoch": epoch, "step": 10 * epoch, "train/loss": loss(trial, epoch), "val/loss": loss(trial, epoch)}
        record |= {"val/accuracy": 0.5, "learning_rate": 0.01, "seconds": 1.0, "examples_per_second": 1000.0}
        verdict = director.reported(trial, record, last=epoch == max_epochs)
        decisions += 1
        if verdict.kind != "go_on":
            continue
        if epoch == max_epochs:
            director.ended(trial, "finished", f"max_epochs = {max_epochs} reached")
        else:
            later(trial)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came of it."""
    started = time.perf_counter()
    done = work()
    return time.perf_counter() - started, done


def directed(num_trials: int, slots: int, scheduler: str, path: Path | None = None) -> tuple[float, int, Ledger]:
    """A whole simulated search: seconds, decisions, and its ledger."""
    job = job_of(num_trials, scheduler)
    ledger = Ledger(path)
    director = director_of(job, ledger, Slots(1.0, 0.0, slots, 1))
    ledger.begin_session()
    seconds, decisions = timed(lambda: simulate(director, MAX_EPOCHS))
    return seconds, decisions, ledger


def director_rows(sizes: list[int], slots: int) -> Iterator[Row]:
    """Decisions a second, by scheduler: random settings, no journal."""
    for scheduler in SCHEDULERS:
        cells = []
        for size in sizes:
            if scheduler == "pbt" and size > 1000:  # a population is as large as its slots
                cells.append("")
                continue
            seconds, decisions, _ = directed(size, size if scheduler == "pbt" else slots, scheduler)
            cells.append(f"{decisions / seconds:,.0f} ({decisions:,} in {seconds:.1f} s)")
            say(f"director {scheduler} {size}: {cells[-1]}")
        yield f"decisions a second, {scheduler}", *cells


def suggestion_rows(sizes: list[int], slots: int) -> Iterator[Row]:
    """Seconds of one suggestion after so many trials, by algorithm."""
    for algorithm in ALGORITHMS:
        cells = []
        for size in sizes:
            *_, ledger = directed(size, slots, "asha")
            job = job_of(size + 100, "asha", algorithm)
            if algorithm in ("quasi_random", "cmaes", "nsga2"):  # they read their own notes
                cells.append(own_notes(job, size))
            else:
                director = director_of(job, ledger, Slots(1.0, 0.0, slots, 1))
                cells.append(each_of(director, ledger))
            say(f"suggestion {algorithm} {size}: {cells[-1]}")
        yield f"seconds of a suggestion, {algorithm}", *cells


def own_notes(job: Job, size: int) -> str:
    """An algorithm that reads what it noted before is asked for its own trials; the last ones are timed."""
    ledger = Ledger()
    director = director_of(job, ledger, Slots(1.0, 0.0, 1, 1))
    started = time.perf_counter()
    for number in range(size):
        found = director.suggest(number, ledger.trials)
        assert found is not None
        trial = ledger.add(found[0], "search", found[1])
        ledger.become(trial, "running")
        ledger.report(trial, {"epoch": 1, "val/loss": loss(trial, 1)}, lambda _: verdict_go_on())
        ledger.become(trial, "finished")
        if time.perf_counter() - started > 120.0:
            return f"more than 120 s for the first {number + 1:,}"
    return each_of(director, ledger)


def verdict_go_on() -> Any:
    """A trial goes on."""
    from raynn.ledger import Verdict

    return Verdict("go_on")


def each_of(director: Director, ledger: Ledger) -> str:
    """The first suggestion, which reads all trials for the first time, and the mean of those after it."""
    first, found = timed(lambda: director.suggest(len(ledger.trials), ledger.trials))
    if first > 20.0:
        return f"{first:.3g}"
    num = 5
    seconds = 0.0
    for _ in range(num):
        ledger.add(found[0], "search", found[1])
        more, found = timed(lambda: director.suggest(len(ledger.trials), ledger.trials))
        seconds += more
    return f"{seconds / num:.3g} (the first {first:.3g})"


def file_rows(sizes: list[int], slots: int) -> Iterator[Row]:
    """What is written, read back and drawn."""
    names = (
        "search with its journal, s",
        "journal, MB",
        "journal replayed (resume), s",
        "a trial made ready: run folder and what its actor is told, ms",
        "progress line, ms",
        "raynn watch: a look and a drawing, s",
        "trials.parquet, s",
        "trials.parquet, MB",
        "report.html, s",
        "report.html, MB",
        "ranking with repeats, s",
    )
    columns = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            columns.append(files_of(size, slots, Path(name)))
        say(f"files {size}: {dict(zip(names, columns[-1], strict=True))}")
    for row, cells in zip(names, zip(*columns, strict=True), strict=True):
        yield row, *cells


def files_of(size: int, slots: int, folder: Path) -> list[str]:
    """Of a search of that size."""
    job = job_of(size)
    (folder / "job.yaml").write_text(job.to_yaml())
    seconds, *_ = directed(size, slots, "asha", folder / FILE)
    found = [f"{seconds:.1f}", f"{(folder / FILE).stat().st_size / 1e6:.1f}"]
    replay, again = timed(lambda: Ledger(folder / FILE))
    found.append(f"{replay:.2f}")
    director = director_of(job, again, Slots(1.0, 0.0, slots, 1))
    desk = Desk(director, folder, job, {})
    num = min(size, 200)
    prepare, _ = timed(lambda: [(desk._prepare(trial), desk.config(trial)) for trial in again.trials[:num]])
    found.append(f"{1000 * prepare / num:.1f}")
    pace = Pace(1.0, 3.0)
    director.ranked()  # what has not changed since is not worked out again
    progress, _ = timed(
        lambda: (director.ranked(), counts(again.trials), seconds_left(again, pace, size, slots, MAX_EPOCHS))
    )
    found.append(f"{1000 * progress:.1f}")
    seen, _ = timed(lambda: draw(look(str(folder)), 120, 40))
    found.append(f"{seen:.2f}")
    folders = {trial.number: f"trials/{trial.number:04d}" for trial in again.trials}
    table, _ = timed(
        lambda: write_trials(folder / "trials.parquet", trials_table(again.trials, "val/loss", "min", folders))
    )
    found += [f"{table:.2f}", f"{(folder / 'trials.parquet').stat().st_size / 1e6:.2f}"]
    for trial in again.trials:
        run = desk.run_folder(trial)
        run.mkdir(parents=True, exist_ok=True)
        (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in trial.records))
    (folder / "result.json").write_text(json.dumps({"status": "finished", "name": "simulated"}))
    drawn, page = timed(lambda: search_page(read_search(folder)).html())
    found += [f"{drawn:.1f}", f"{len(page.encode()) / 1e6:.1f}"]
    ranked = director.ranked()
    ranking, _ = timed(lambda: repeated(again.trials, ranked, "val/loss", "min"))
    found.append(f"{ranking:.2f}")
    return found


def preparation_rows(sizes: list[int], slots: int) -> Iterator[Row]:
    """Rows of a table read, cleaned, split and encoded by one process: MB of them in memory a second."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from raynn.preparation import LocalDriver
    from raynn.tasks import prepare_job, understand_job

    x_NF = np.random.default_rng(0).normal(size=(1_000_000, 20)).astype(np.float32)
    table = pa.table({f"x{i}": x_NF[:, i] for i in range(20)} | {"y": (x_NF[:, 0] > 0).astype(np.int64)})
    with tempfile.TemporaryDirectory() as name:
        pq.write_table(table, Path(name) / "rows.parquet")
        job = Job.from_dict(
            {"data": {"train": str(Path(name) / "rows.parquet"), "target": "y"}, "network": {"kind": "feedforward"}}
        )
        seconds, _ = timed(lambda: prepare_job(job, understand_job(job, Path(name)), LocalDriver()))
    cell = f"{table.nbytes / 1e6 / seconds:.0f} MB/s ({table.nbytes / 1e6:.0f} MB in {seconds:.1f} s)"
    yield "preparation of 1,000,000 rows of 21 numbers, both cores", cell, *[""] * (len(sizes) - 1)


class Idle(TrialActor):
    """Trains nothing: one epoch a trial, after a sleep."""

    def setup(self, config: dict[str, Any], shared: Any = None, threads: int = 1) -> None:
        """Once per actor."""
        self.sleep_s = float(shared)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Another trial."""
        self.epoch = 0
        return True

    def step(self) -> dict[str, Any]:
        """The epoch, then the end."""
        if self.epoch:
            return {"done": True, "status": "finished", "reason": "max_epochs = 1 reached"}
        self.epoch = 1
        time.sleep(self.sleep_s)
        return {"record": json.dumps({"epoch": 1, "step": 1, "val/loss": 1.0, "seconds": 1.0}), "last": True}

    def cleanup(self) -> None:
        """Nothing."""


def tune_rows(sizes: list[int], slots: int) -> Iterator[Row]:
    """Ray Tune with raynn's desk: trials of no work, and of a second's sleep, by number; and what is lost of each."""
    import raynn.desk
    from raynn.cluster import cluster

    raynn.desk.TrialActor = Idle  # type: ignore[misc]
    with cluster(slots):
        for sleep_s in (0.0, 1.0):
            cells = []
            for size in sizes:
                if sleep_s * size / slots > 100.0:
                    cells.append("")
                    continue
                job = job_of(size, "none", optimization={"max_epochs": 1, "optimizer": "sgd", "global_batch_size": 32})
                with tempfile.TemporaryDirectory() as name:
                    ledger = Ledger(Path(name) / FILE)
                    places = Slots(1.0, 0.0, slots, 1)
                    desk = Desk(director_of(job, ledger, places), Path(name), job, {})
                    ledger.begin_session()
                    started = time.perf_counter()
                    run_trials(desk, sleep_s, places)  # type: ignore[arg-type]
                    seconds = time.perf_counter() - started
                    events = [json.loads(line) for line in (Path(name) / FILE).read_text().splitlines()]
                ended = [event["at"] for event in events if event.get("status") == "finished"]
                warm = len(ended) // 5  # until all actors are there
                each = (ended[-1] - ended[warm]) / (len(ended) - 1 - warm)
                floor = sleep_s / slots
                cells.append(f"{1000 * each:.1f} (floor {1000 * floor:.1f}; {seconds:.0f} s in all)")
                say(f"tune {sleep_s} {size}: {cells[-1]}")
            yield f"Ray Tune, {slots} slots, ms from trial to trial, each of {sleep_s:g} s", *cells


def say(text: str) -> None:
    """On standard error, as it goes."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 1000, 10000])
    parser.add_argument("--slots", type=int, default=64)
    kinds = {
        "director": director_rows,
        "suggestions": suggestion_rows,
        "files": file_rows,
        "tune": tune_rows,
        "preparation": preparation_rows,
    }
    parser.add_argument("--only", nargs="+", choices=list(kinds), default=list(kinds))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    head = f"{os.cpu_count()} cores ({processor_name()}), Python {platform.python_version()}, {datetime.date.today()}"
    lines = [f"{head}; {options.slots} slots.", ""]
    lines += ["| by number of trials | " + " | ".join(f"{size:,}" for size in options.trials) + " |"]
    lines += ["|---|" + "---|" * len(options.trials)]
    rows = itertools.chain(*(kinds[kind](options.trials, options.slots) for kind in options.only))
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
