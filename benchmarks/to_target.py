"""How long a job takes to reach a figure: its seconds of training until then, and from start to end, seed by seed.

    .venv/bin/python benchmarks/to_target.py JOB.yaml METRIC TARGET [dotted.key=value ...] [--seeds 3] [--out PAGE.md]

METRIC is one of every epoch (val/accuracy) or of the end (test/accuracy, which is looked at once). Where the job is to
measure the test set, its settings were not chosen by it. Seconds of training are those of all epochs up to the first
that reached the figure, evaluation and the process's start left out, as those who publish such seconds count them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from throughput import machine, put_into, told_by

from raynn.metrics import higher_is_better


def trained(job: Path, overrides: list[str], seed: int, folder: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """What a run answers, and the records of its epochs."""
    more = [f"optimization.seed={seed}", f"storage={folder}", f"name=seed-{seed}", *overrides]
    command = [sys.executable, "-m", "raynn", "train", str(job), *more, "--json", "--quiet"]
    told, total_s = told_by(command, dict(os.environ))
    lines = (folder / told["name"] / "metrics.jsonl").read_text().splitlines()
    return told | {"total_s": total_s}, [json.loads(line) for line in lines]


def row(seed: int, metric: str, target: float, told: dict[str, Any], records: list[dict[str, float]]) -> str:
    """What was measured of a seed."""
    higher = higher_is_better(metric)

    def reaches(value: float) -> bool:
        return value >= target if higher else value <= target

    of_end = metric not in records[0]
    last = told["metrics"][metric] if of_end else records[-1][metric]
    epochs = len(records) if of_end and reaches(last) else 0
    epochs = epochs or next((n for n, each in enumerate(records, 1) if not of_end and reaches(each[metric])), 0)
    cells = [f"{sum(each['seconds'] for each in records[:epochs]):,.1f}", f"{epochs}"] if epochs else ["never", ""]
    rate = f"{told['examples_per_second']:,.0f}"
    return f"| {seed} | {' | '.join(cells)} | {len(records)} | {last:.4f} | {rate} | {told['total_s']:,.1f} |"


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("metric")
    parser.add_argument("target", type=float)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    command = shlex.join([str(options.job), options.metric, f"{options.target:g}", *options.overrides])
    lines = [
        f"### {options.job.stem}: {options.metric} {options.target:g}",
        "",
        f"`benchmarks/to_target.py {command}`; {machine()}; {datetime.date.today()}.",
        "",
        f"| seed | s of training until then | epochs | of | {options.metric} at last | examples/s | start to end, s |",
        "|---" * 7 + "|",
    ]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            told = trained(options.job.resolve(), options.overrides, seed, Path(folder))
            lines.append(row(seed, options.metric, options.target, *told))
            print(lines[-1], flush=True)
    if options.out:
        put_into(options.out, f"{options.job.stem} to {options.target:g}", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
