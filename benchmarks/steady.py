"""raynn's loop beside the hand-written one, epoch by epoch in turn in one process: what a step costs, and nothing else.

    .venv/bin/python benchmarks/steady.py DATA [--only mlp cnn cnn_bf16 lstm text] [--epochs 20] [--device cuda]

DATA is a folder as for throughput.py, whose works these are. There each contestant has a process of its own, and the
machine changes from one to the next by more than they differ; here a ratio is of two neighbouring epochs, of which
every second pair begins with the other. raynn's evaluation and checkpoints are not in it. One thread. raynn's way with
freed memory (allocator.py) is the process's, so that the hand-written loop has it, too. On a GPU both have their rows
in its memory.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from comparators import an_epoch, shuffled, tensors_of
from throughput import machine
from works import WORKS, Work

from raynn.allocator import keep_freed_memory
from raynn.cache import RememberingDriver
from raynn.collectives import Workers
from raynn.encoded import itself
from raynn.job import Job
from raynn.loop import TrainingState, train_epochs
from raynn.placement import place_shards
from raynn.tasks import build_model, checked, prepare_job, understand_job

CONTESTS = {"mlp": "mlp", "cnn": "cnn", "cnn_bf16": "cnn", "lstm": "lstm", "text": "text"}


def ours(work: Work, data: Path, folder: Path, precision: str, device: torch.device) -> Iterator[float]:
    """Examples a second of raynn's epochs."""
    tree = work.job(data, folder, "steady")
    tree["optimization"] |= {"max_epochs": 10_000, "precision": precision}
    job = Job.from_dict(tree)
    prepared = prepare_job(job, understand_job(job, Path()), RememberingDriver())
    job = checked(job.model_copy(update={"task": prepared.task}), prepared)
    workers = Workers(device=device)
    shards = place_shards(prepared.encoded, itself, job, workers, 1, folder)
    state = TrainingState.fresh(job, build_model(job, prepared.preprocessing), workers)
    inputs = prepared.preprocessing.input_spec
    for record in train_epochs(job, inputs, state, shards.train, shards.validation, workers):
        yield record["examples_per_second"]


def theirs(work: Work, data: Path, device: torch.device) -> Iterator[float]:
    """Those of the loop that people write."""
    arrays = work.arrays(data)
    rows, model = tensors_of(arrays, device), work.build(arrays).to(device)
    optimizer, num_rows = torch.optim.AdamW(model.parameters(), lr=work.lr), len(arrays["target"])
    while True:
        yield num_rows / an_epoch(model, optimizer, shuffled(rows, work.rows), lambda: None)


def contest(name: str, data: Path, epochs: int, device: torch.device) -> str:
    """A row of the table."""
    work = WORKS[CONTESTS[name]]
    with tempfile.TemporaryDirectory() as folder:
        mine = ours(work, data, Path(folder), "bf16" if name.endswith("bf16") else "float32", device)
        plain = theirs(work, data, device)
        next(mine), next(plain)  # the first epoch warms up
        pairs = []
        for number in range(epochs):
            if number % 2:
                second, first = next(plain), next(mine)
            else:
                first, second = next(mine), next(plain)
            pairs.append((first, second))
    low, middle, high = statistics.quantiles([first / second for first, second in pairs], n=4)
    rates = " | ".join(f"{statistics.median(side):,.0f}" for side in zip(*pairs, strict=True))
    return f"| {name} | {rates} | {middle:.2f} | {low:.2f} .. {high:.2f} | {epochs} |"


def main() -> None:
    """A line a work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="*", choices=list(CONTESTS), default=list(CONTESTS))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--device", type=torch.device, default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.device.type == "cpu":
        keep_freed_memory()
    print(f"{machine()}; {datetime.date.today()}\n")
    print("| | raynn, examples/s | hand-written | ratio | quartiles | epochs |\n|---|---|---|---|---|---|", flush=True)
    for name in options.only:
        print(contest(name, options.data, options.epochs, options.device), flush=True)


if __name__ == "__main__":
    main()
