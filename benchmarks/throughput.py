"""How fast raynn trains beside others: the same work, the same threads, in turn, in one session.

    .venv/bin/python benchmarks/throughput.py DATA [--rounds 3] [--only mlp cnn lstm text]
        [--lightning PYTHON] [--ludwig PYTHON] [--device cuda] [--out docs/benchmarks.md]

DATA is a folder with adult_train.parquet, fashion_mnist_test.parquet, japanesevowels_train.parquet and
tiny_shakespeare.txt. Each round runs every contestant once, raynn as a user does (`raynn train`), the others as
comparators.py has them, each in a process of its own; a round's ratio is raynn's rate over the other's in the same
round, and its number raynn's seed. The table holds medians over the rounds and their range; `--out` puts it into a page
between two marks. Lightning and Ludwig are run by the Python of an environment that has them (Ludwig brings a torch and
a pandas of its own), and left out without. On a GPU Ludwig and Ray's recipe are left out, and what needs more GPUs than
there are.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent))
from works import WORKS

from raynn.collectives import gpu_names
from raynn.folder import processor_name

HERE = Path(__file__).parent
Figures = dict[str, float]


@dataclass(frozen=True)
class Contestant:
    """Who trains, with how many workers; `sections` are of raynn's job."""

    name: str
    kind: str
    workers: int = 1
    sections: tuple[tuple[str, str, Any], ...] = ()


RAYNN = Contestant("raynn", "raynn")
BF16 = Contestant("raynn, bf16", "raynn", sections=(("optimization", "precision", "bf16"),))
TWO = Contestant("raynn, 2 workers", "raynn", workers=2)
PLAIN = Contestant("hand-written loop, rows in memory", "plain")
OTHERS = (
    Contestant("DataLoader", "loader"),
    Contestant("Lightning", "lightning"),
    Contestant("Ludwig", "ludwig"),
    Contestant("Ray's recipe", "ray"),
    Contestant("Ray's recipe, data materialized", "ray_materialized"),
)
DDP = Contestant("torchrun DDP, 2 processes", "ddp", workers=2)
# Who is compared with whom: of each pair the first's rate over the second's
FIELD: dict[str, list[tuple[Contestant, Contestant]]] = {
    "mlp": [(RAYNN, PLAIN), *((RAYNN, other) for other in OTHERS), (TWO, DDP)],
    "cnn": [(RAYNN, PLAIN), (BF16, PLAIN), (RAYNN, OTHERS[0]), (RAYNN, OTHERS[1]), (TWO, DDP)],
    "lstm": [(RAYNN, PLAIN), (RAYNN, OTHERS[0]), (RAYNN, OTHERS[1])],
    "text": [(RAYNN, PLAIN), (RAYNN, OTHERS[0])],
}
TITLES = {
    "mlp": "Adult, MLP 3 x 256, batches of 256, 5 epochs",
    "cnn": "10,000 images of Fashion-MNIST, CNN 32, 64, 64 and a layer of 128, batches of 256, 3 epochs",
    "lstm": "JapaneseVowels, LSTM of 128, batches of 32, 30 epochs",
    "text": "tiny Shakespeare, Transformer of 2 layers of 128, windows of 128, batches of 32, 2 epochs",
}


@dataclass(frozen=True)
class Place:
    """Where all of them run.

    Attributes:
        pythons: of comparators that have environments of their own, None where there is none.
    """

    data: Path
    device: str
    pythons: dict[str, str | None]

    def has(self, contestant: Contestant) -> bool:
        """Whether it can run here."""
        if self.pythons.get(contestant.kind, sys.executable) is None:
            return False
        if self.device == "cpu":
            return True
        return contestant.kind not in ("ludwig", "ray", "ray_materialized") and contestant.workers <= len(gpu_names())


def run(contestant: Contestant, work: str, place: Place, folder: Path, seed: int) -> Figures:
    """One training in a process of its own: its figures, and `total_s` from the process's start to its end."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "RAYNN_REPORT": "off", "BENCH_STARTED_AT": str(time.time())}
    if contestant.kind == "raynn":
        command = _raynn(contestant, work, place, folder, seed)
    else:
        script = [str(HERE / "comparators.py"), contestant.kind, work, str(place.data), "--storage", str(folder)]
        script += ["--device", place.device]
        python = place.pythons.get(contestant.kind) or sys.executable
        command = [python, *script]
        if contestant.kind == "ddp":
            command = [python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={contestant.workers}"]
            command += script
    told, total = told_by(command, env)
    first = told.get("first_step_s") or told["seconds_to_first_step"]
    return {
        "rate": told["examples_per_second"],
        "first_step_s": first,
        "total_s": total,
        "parameters": told["parameters"],
        "accuracy": told.get("metrics", {}).get("val/accuracy", float("nan")),
    }


def told_by(command: list[str], env: dict[str, str]) -> tuple[dict[str, Any], float]:
    """The last JSON object that a command prints, and its seconds from start to end."""
    started = time.perf_counter()
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    total = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))), total


def _raynn(contestant: Contestant, work: str, place: Place, folder: Path, seed: int) -> list[str]:
    job = WORKS[work].job(place.data, folder / "runs", f"{work}-{time.time_ns()}")
    gpus = 0.0 if place.device == "cpu" else 1.0
    job["resources"] = {"workers": contestant.workers, "cpus_per_worker": 1, "gpus_per_worker": gpus}
    job["optimization"]["seed"] = seed
    for section, key, value in contestant.sections:
        job[section][key] = value
    path = folder / f"{job['name']}.yaml"
    path.write_text(yaml.dump(job))
    return [sys.executable, "-m", "raynn", "train", str(path), "--json", "--quiet"]


def measured(work: str, place: Place, rounds: int) -> dict[str, list[Figures]]:
    """Figures of every contestant, one a round."""
    contestants = [each for each in dict.fromkeys(each for pair in FIELD[work] for each in pair) if place.has(each)]
    found: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for contestant in contestants if number % 2 == 0 else reversed(contestants):
                figures = run(contestant, work, place, Path(folder), number)
                found.setdefault(contestant.name, []).append(figures)
                print(f"{work} round {number + 1}: {contestant.name}: {figures}", file=sys.stderr, flush=True)
    return found


def table(work: str, found: dict[str, list[Figures]]) -> str:
    """What was measured of a work, as Markdown."""

    def middle(name: str, key: str) -> float:
        return statistics.median(figures[key] for figures in found[name])

    lines = [f"### {TITLES[work]}", ""]
    lines += ["| | examples/s | first step, s | start to end, s | best val/accuracy |", "|---|---|---|---|---|"]
    for name in found:
        figures = f"{middle(name, 'rate'):,.0f} | {middle(name, 'first_step_s'):.1f} | {middle(name, 'total_s'):.1f}"
        accuracy = middle(name, "accuracy")
        lines.append(f"| {name} | {figures} | {'' if math.isnan(accuracy) else f'{accuracy:.4f}'} |")
    lines += ["", "| ratio of rates | median | range |", "|---|---|---|"]
    for ours, other in FIELD[work]:
        if ours.name in found and other.name in found:
            pairs = zip(found[ours.name], found[other.name], strict=True)
            ratios = [a["rate"] / b["rate"] for a, b in pairs]
            spread = f"{min(ratios):.2f} .. {max(ratios):.2f}"
            lines.append(f"| {ours.name} / {other.name} | {statistics.median(ratios):.2f} | {spread} |")
    return "\n".join(lines) + "\n"


def put_into(page: Path, name: str, text: str) -> None:
    """Writes a text into a page of the documentation, in the place of what stands between the marks of that name; a
    page without marks ends with it.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    written = page.read_text() if page.exists() else ""
    before, marked, rest = written.partition(begin)
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2] if marked else ''}")


def machine() -> str:
    """What it was measured on."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "ray"))
    gpus = ", ".join(gpu_names()) or "no GPU"
    return f"{os.cpu_count()} cores ({processor_name()}), {gpus}, Python {platform.python_version()}, {versions}"


def main() -> None:
    """Measures, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(WORKS), default=list(WORKS))
    for name in ("lightning", "ludwig"):
        parser.add_argument(f"--{name}", metavar="PYTHON", help=f"of an environment with {name.title()}")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    place = Place(options.data.resolve(), options.device, {"lightning": options.lightning, "ludwig": options.ludwig})
    head = f"One thread a process; {machine()}; {datetime.date.today()}; medians of {options.rounds} rounds, in turn.\n"
    parts = [head]
    for work in options.only:
        parts.append(table(work, measured(work, place, options.rounds)))
    text = "\n".join(parts)
    print(text)
    if options.out:
        put_into(options.out, "throughput" if options.device == "cpu" else "throughput on a GPU", text)


if __name__ == "__main__":
    main()
