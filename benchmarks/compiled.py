"""Whether torch.compile pays back within a run: a training step as it is and compiled, in turn, in one process.

    .venv/bin/python benchmarks/compiled.py DATA [--only mlp cnn lstm text] [--steps 100] [--device cpu]

DATA is the folder of throughput.py, whose networks these are. Printed: milliseconds a step of each, medians of five
turns; seconds of the first compiled steps (with an empty cache: TORCHINDUCTOR_CACHE_DIR names a new folder); after how
many steps, if ever, the one has paid for the other. On a GPU `mode="reduce-overhead"`, which records CUDA graphs.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.mkdtemp(prefix="compiled-"))

import torch

sys.path.insert(0, str(Path(__file__).parent))
from comparators import tensors_of
from throughput import machine
from works import WORKS, Work, loss_of

TURNS = 5


def stepping(work: Work, data: Path, device: torch.device) -> tuple[Callable[[Any], None], torch.nn.Module]:
    """A step of the plain loop, which is given what computes the outputs; and the network."""
    arrays = work.arrays(data)
    rows = {name: x.to(device) for name, x in tensors_of(arrays).items()}
    torch.manual_seed(0)
    model = work.build(arrays).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=work.lr, fused=True)
    num_rows = len(rows["target"])

    def step(network: Callable[[Any], torch.Tensor]) -> None:
        rows_B = torch.randint(num_rows, (work.rows,), device=device)
        batch = {name: x[rows_B] for name, x in rows.items()}
        loss = loss_of(network(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, model


def seconds(step: Callable[[Any], None], network: Any, steps: int, device: torch.device) -> float:
    """Of so many steps, each."""
    started = time.perf_counter()
    for _ in range(steps):
        step(network)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / steps


def row(name: str, data: Path, steps: int, device: torch.device) -> str:
    """What was measured of one work."""
    step, model = stepping(WORKS[name], data, device)
    seconds(step, model, 5, device)
    compiled = torch.compile(model, mode="reduce-overhead" if device.type == "cuda" else "default")
    first_s = 5 * seconds(step, compiled, 5, device)
    times: dict[str, list[float]] = {"plain": [], "compiled": []}
    for _ in range(TURNS):
        times["plain"].append(seconds(step, model, steps, device))
        times["compiled"].append(seconds(step, compiled, steps, device))
    plain, fast = (statistics.median(times[way]) for way in ("plain", "compiled"))
    pays = f"{first_s / (plain - fast):,.0f}" if fast < plain else "never"
    return f"| {name} | {1000 * plain:.2f} | {1000 * fast:.2f} | {first_s:.0f} | {pays} |"


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| | ms a step | compiled | s to compile | pays back after, steps |\n|---|---|---|---|---|")
    for name in options.only:
        print(row(name, options.data.resolve(), options.steps, torch.device(options.device)), flush=True)
    print(
        f"\nOne thread; {machine()}; {datetime.date.today()}; n = 1, medians of {TURNS} turns of {options.steps} steps."
    )


if __name__ == "__main__":
    main()
