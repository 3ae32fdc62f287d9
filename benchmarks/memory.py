"""Peak resident memory of `raynn train` against what `raynn check` says before, by the number of rows.

    .venv/bin/python benchmarks/memory.py [--rows 10000 100000 1000000] [--out FILE.md]

Tables of 20 numbers and a class, made here; one epoch of a feedforward network in batches of 4,096 and one of a CNN
over images of digits in batches of 1,024, the cache of prepared data off. `check` runs in a process of its own.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from throughput import machine


def measured(command: str, job: Path) -> tuple[dict[str, Any], int]:
    """What a command answers, and the most memory that its process had."""
    script = "import resource, sys; from raynn.cli import main; code = main(sys.argv[1:]); "
    script += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)"
    env = os.environ | {"RAYNN_CACHE": "off", "RAYNN_REPORT": "off", "OMP_NUM_THREADS": "1"}
    quiet = ["--quiet"] if command == "train" else []
    arguments = [sys.executable, "-c", script, command, str(job), "--json", *quiet]
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout), 1024 * int(done.stderr.splitlines()[-1])


def row_of(name: str, job: dict[str, Any], size: int, folder: Path) -> str:
    """One line of the table."""
    path = folder / "job.yaml"
    path.write_text(yaml.dump(job))
    said, _ = measured("check", path)
    _, peak = measured("train", path)
    memory = said["memory"]
    cells = [memory[f"{part}_bytes"] for part in ("rows", "activations", "optimizer")]
    total = memory["total_bytes"]
    shown = " | ".join(f"{each / 2**20:,.0f}" for each in (size, *cells, total, peak))
    print(name, shown, file=sys.stderr, flush=True)
    return f"| {name} | {shown} | {total / peak:.2f} |"


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = [f"{machine()}; {datetime.date.today()}; MiB; n = 1.", ""]
    lines += ["| | file | rows | activations | optimizer | said in all | true peak | ratio |", "|---" * 8 + "|"]
    with tempfile.TemporaryDirectory() as name:
        folder, random = Path(name), np.random.default_rng(0)
        for num_rows in options.rows:
            x_NF = random.normal(size=(num_rows, 20)).astype(np.float32)
            table = {f"x{i}": x_NF[:, i] for i in range(20)} | {"y": (x_NF[:, 0] > 0).astype(np.int64)}
            pq.write_table(pa.table(table), folder / "rows.parquet")
            job = {
                "data": {"train": str(folder / "rows.parquet"), "target": "y"},
                "network": {"kind": "feedforward", "hidden": [256, 256]},
                "optimization": {"max_epochs": 1, "global_batch_size": 4096},
                "storage": str(folder / "runs"),
            }
            size = (folder / "rows.parquet").stat().st_size
            lines.append(row_of(f"feedforward, {num_rows:,} rows", job, size, folder))
        job = {
            "data": {"train": "digits", "target": "label"},
            "network": {"kind": "cnn", "channels": [64, 128]},
            "optimization": {"max_epochs": 1, "global_batch_size": 1024},
            "storage": str(folder / "runs"),
        }
        lines.append(row_of("cnn, 1,797 images of 8 x 8", job, 0, folder))
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
