"""Training on more rows than memory is to hold: accuracy, rates, and resident memory by part, over time.

    python benchmarks/larger_than_memory.py [--rows 1000000 10000000] [--data FOLDER] [--picture docs/pictures/X.svg]
        [--object-store GIB] [--worker GIB] [--set KEY=VALUE ...]

Two workers on Ray, on this machine, train a small network on twonorm, whose best accuracy is known: 97.725 %. The rows
are made block by block and written as Parquet, in row groups of 65,536. The object store and each worker's rows are
bounded by the job (`resources.object_store_gib`, `resources.memory_gib`); every half second the memory of each process
below the command is read from /proc/PID/smaps_rollup, in four parts: anonymous pages, which nothing but the process's
end gives back; pages of the object store; pages of the shards' files, which the system takes back when it needs them;
other files, that is libraries. First comes a run of 20,000 rows: what processes take that hold hardly any data.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from raynn.cluster import descendants
from raynn.generators import twonorm

BAYES = 0.97725
FLOOR_ROWS = 20_000
ROWS_PER_FILE = 1_000_000
ROWS_PER_GROUP = 65_536
EVERY_S = 0.5
PARTS = ("driver", "workers", "tasks, actors", "object store", "shard files")
COLORS = ("#4e79a7", "#f28e2b", "#bab0ac", "#59a14f", "#edc948")
OTHER = ("ray's own", "libraries")
WORKERS: set[int] = set()
CAP_BYTES = 2 * 2.0**30  # for data
Sample = dict[str, float]  # bytes by part, and `t` [s], `spilled` [bytes]


@dataclass
class Measured:
    """One training."""

    rows: int
    samples: list[Sample] = field(default_factory=list)
    result: dict[str, object] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    total_s: float = 0.0

    def peak(self, *parts: str) -> float:
        """The largest sum of these parts at one time, bytes."""
        return max(sum(sample[part] for part in parts) for sample in self.samples)


def write_rows(folder: Path, num_rows: int) -> Path:
    """twonorm as Parquet files of a million rows at most; what is there already is left."""
    place = folder / f"twonorm-{num_rows}"
    place.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, num_rows, ROWS_PER_FILE)):
        path = place / f"{number:04d}.parquet"
        if not path.exists():
            table = twonorm(min(ROWS_PER_FILE, num_rows - start), seed=1000 + number)
            pq.write_table(table, path.with_suffix(".part"), row_group_size=ROWS_PER_GROUP, use_dictionary=["label"])
            path.with_suffix(".part").rename(path)
    return place


def part_of(pid: int, root: int) -> str:
    """What a process is for."""
    if pid == root:
        return "driver"
    line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    if not line.startswith("ray::") or "IDLE" in line:
        return "ray's own"
    if "RayTrainWorker" in line:
        WORKERS.add(pid)  # whose title tells of other calls at times
    return "workers" if pid in WORKERS else "tasks, actors"


def memory_now(root: int, spill: Path) -> Sample:
    """Bytes by part, over all processes below `root`; shared pages are divided by those who share them."""
    sample: Sample = dict.fromkeys((*PARTS, *OTHER), 0.0)
    for pid in [root, *descendants(root)]:
        try:
            part = part_of(pid, root)
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            sizes = {line.split()[0]: int(line.split()[1]) * 1024 for line in rollup.splitlines()[1:]}
            shard = shard_pages(pid) if part in ("driver", "workers") else 0
        except (OSError, IndexError, ValueError):  # it has ended meanwhile
            continue
        sample[part] += sizes["Pss_Anon:"]
        sample["object store"] += sizes["Pss_Shmem:"]
        sample["shard files"] += shard
        sample["libraries"] += sizes["Pss_File:"] - shard
    sample["spilled"] = float(
        sum(path.stat().st_size for path in spill.glob("ray/session_2*/ray_spilled_objects*/*") if path.exists())
    )
    return sample


def shard_pages(pid: int) -> int:
    """Bytes of the shards' files that a process has in memory."""
    total, ours = 0, False
    with open(f"/proc/{pid}/smaps") as maps:
        for line in maps:
            if line[0] in "0123456789abcdef" and "-" in line.split(" ", 1)[0]:
                ours = "/scratch/" in line
            elif ours and line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def job_of(source: Path, storage: Path, rows: int, arguments: argparse.Namespace) -> dict[str, object]:
    """Two workers, a small network, an epoch (ten of the few rows)."""
    resources = {"workers": 2, "driver": "ray", "cpus_per_worker": 1, "memory_gib": arguments.worker}
    if arguments.object_store:
        resources["object_store_gib"] = arguments.object_store
    return {
        "name": f"twonorm-{rows}",
        "data": {"train": str(source), "target": "label", "validation": 0.1},
        "network": {"kind": "feedforward", "hidden": [32]},
        "optimization": {
            "global_batch_size": 4096 if rows > FLOOR_ROWS else 256,
            "learning_rate": 3e-3,
            "max_epochs": arguments.epochs,
            "schedule": "cosine",
        },
        "resources": resources,
        "report": False,
        "storage": str(storage),
    }


def train(source: Path, rows: int, folder: Path, arguments: argparse.Namespace) -> Measured:
    """`raynn train` in a process of its own, looked at while it runs."""
    measured = Measured(rows)
    path = folder / f"{rows}.yaml"
    path.write_text(yaml.dump(job_of(source, folder / "runs", rows, arguments)))
    env = os.environ | {"OMP_NUM_THREADS": "1", "RAYNN_REPORT": "off", "RAY_TMPDIR": str(folder)}
    (folder / "ray").mkdir(exist_ok=True)
    started = time.time()
    command = [sys.executable, "-m", "raynn", "train", str(path), *arguments.set, "--json"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            measured.told.append(line.rstrip())

    listener = threading.Thread(target=listen)
    listener.start()
    while process.poll() is None:
        measured.samples.append(memory_now(process.pid, folder) | {"t": time.time() - started})
        time.sleep(EVERY_S)
    listener.join()
    measured.total_s = time.time() - started
    assert process.stdout is not None
    output = process.stdout.read()
    if process.returncode:
        raise SystemExit("\n".join([*measured.told, output]))
    measured.result = json.loads(next(line for line in reversed(output.splitlines()) if line.startswith("{")))
    return measured


def table_of(runs: list[Measured], floor: Measured) -> str:
    """The table of the page: peaks in MiB, of each part, of all at once, and of that beyond what few rows took."""
    mib = 2.0**20
    lines = [
        "| rows | accuracy | to the first step | rows/s | in all | "
        + " | ".join(PARTS)
        + " | at once | beyond | spilled |",
        "|" + "---:|" * (8 + len(PARTS)),
    ]
    for run in runs:
        metrics = run.result["metrics"]
        assert isinstance(metrics, dict)
        cells = [
            f"{run.rows:,}",
            f"{100 * metrics['val/accuracy']:.3f} %",
            f"{run.result['seconds_to_first_step']:.1f} s",
            f"{run.result['examples_per_second']:,.0f}",
            f"{run.total_s:.0f} s",
            *(f"{run.peak(part) / mib:,.0f}" for part in PARTS),
            f"{run.peak(*PARTS) / mib:,.0f}",
            f"{(run.peak(*PARTS) - floor.peak(*PARTS)) / mib:,.0f}",
            f"{run.peak('spilled') / mib:,.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture_of(runs: list[Measured], floor: Measured) -> str:
    """Resident memory by part over time, a panel a run, as SVG; dashed: what there is with hardly any data, and 2 GiB
    more than that.
    """
    width, height, left, top = 420, 260, 60, 40
    gib = 2.0**30
    most = (floor.peak(*PARTS) + CAP_BYTES) * 1.1
    shapes = []
    for panel, run in enumerate(runs):
        x0 = left + panel * (width + left)
        end = max(sample["t"] for sample in run.samples)

        def at(t: float, size: float, x0: float = x0, end: float = end) -> str:
            return f"{x0 + width * t / end:.1f},{top + height * (1 - size / most):.1f}"

        below = [0.0] * len(run.samples)
        for part, color in zip(PARTS, COLORS, strict=True):
            above = [low + sample[part] for low, sample in zip(below, run.samples, strict=True)]
            edge = [at(sample["t"], size) for sample, size in zip(run.samples, above, strict=True)]
            back = [at(sample["t"], size) for sample, size in zip(run.samples, below, strict=True)]
            shapes.append(f'<polygon fill="{color}" points="{" ".join([*edge, *reversed(back)])}"/>')
            below = above
        for size, text in ((floor.peak(*PARTS), "20,000 rows"), (floor.peak(*PARTS) + CAP_BYTES, "2 GiB more")):
            a, b = at(0, size).split(","), at(end, size).split(",")
            shapes.append(f'<path d="M{a[0]} {a[1]}H{b[0]}" stroke="#444" stroke-dasharray="4 3"/>')
            shapes.append(f'<text x="{float(b[0]) - 4}" y="{float(a[1]) - 4}" text-anchor="end">{text}</text>')
        for tick in range(int(most / gib) + 1):
            place = at(0, tick * gib).split(",")
            shapes.append(f'<text x="{x0 - 6}" y="{float(place[1]) + 4}" text-anchor="end">{tick} GiB</text>')
        shapes.append(f'<path d="M{x0} {top}V{top + height}H{x0 + width}" stroke="#444" fill="none"/>')
        shapes.append(f'<text x="{x0}" y="{top - 8}" font-weight="bold">{run.rows:,} rows</text>')
        shapes.append(f'<text x="{x0 + width}" y="{top + height + 16}" text-anchor="end">{end:.0f} s</text>')
    for place, (part, color) in enumerate(zip(PARTS, COLORS, strict=True)):
        x = left + place * 120
        shapes.append(f'<rect x="{x}" y="{top + height + 28}" width="12" height="12" fill="{color}"/>')
        shapes.append(f'<text x="{x + 18}" y="{top + height + 38}">{part}</text>')
    size = f'width="{len(runs) * (width + left) + 20}" height="{top + height + 50}"'
    style = 'font-family="sans-serif" font-size="12"'
    body = "\n".join(shapes)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n<rect {size} fill="#fff"/>\n{body}\n</svg>\n'


def main() -> None:
    """Measures, prints the table, draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--data", type=Path, help="where the rows are written, and left; by default a folder that goes")
    parser.add_argument("--object-store", type=float, default=0.25, help="GiB")
    parser.add_argument("--worker", type=float, default=0.25, help="GiB of rows a worker holds in memory at most")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the job")
    parser.add_argument("--picture", type=Path, help="an SVG file: memory over time")
    parser.add_argument("--samples", type=Path, help="where all samples are written, as JSON")
    arguments = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory(prefix="ltm-", dir="/tmp") as name:
        folder = Path(name)
        for rows in [FLOOR_ROWS, *arguments.rows]:
            runs.append(train(write_rows(arguments.data or folder, rows), rows, folder, arguments))
            print("\n".join(runs[-1].told[:12]), flush=True)
            print(table_of(runs[-1:], runs[0]), flush=True)
    print(table_of(runs, runs[0]))
    if arguments.picture:
        arguments.picture.write_text(picture_of(runs[1:], runs[0]))
    if arguments.samples:
        arguments.samples.write_text(json.dumps([run.__dict__ for run in runs]))


if __name__ == "__main__":
    main()
