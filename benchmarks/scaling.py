"""What a second worker brings, measured, and what the model of raynn/scaling.py says of it.

    .venv/bin/python benchmarks/scaling.py DATA [--rounds 3] [--only link averaging mlp cnn] [--out FILE.md]

DATA is a folder with adult_train.parquet and fashion_mnist_test.parquet. `link`: an all-reduce of two gloo processes on
this machine, by size, from which its bandwidth and latency follow. `averaging`: a step of two processes, as torchrun
starts them, whose gradients are averaged in several ways. `mlp`, `cnn`: `raynn train` with one worker in its own
process, with Ray's two workers over the same global batch (strong scaling) and over one twice as large (weak), in turn;
beside them what the model says, from the steps that `raynn check` times and from the link. One torch thread a worker.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from throughput import machine
from works import WORKS

from raynn.scaling import Compute, Link, Traffic, steps

SIZES = (4, 65_536, 1_048_576, 4_194_304, 16_777_216)  # bytes


def all_reduces() -> dict[int, float]:
    """Seconds of an all-reduce by its bytes, medians, as rank 0 saw it."""
    found = {}
    for size in SIZES:
        x, times = torch.ones(size // 4), []
        for _ in range(60 if size < 4_000_000 else 20):
            dist.barrier()
            started = time.perf_counter()
            dist.all_reduce(x)
            times.append(time.perf_counter() - started)
        found[size] = statistics.median(times[5:])
    return found


def averagings() -> dict[str, dict[str, float]]:
    """Milliseconds of a step by network and by how gradients are averaged, the ways taken in turn."""
    widths = {"MLP 3 x 256 (0.6 MB)": 256, "MLP 3 x 768 (5 MB)": 768}
    found: dict[str, dict[str, float]] = {}
    for name, width in widths.items():
        x_BF, y_B = torch.randn(128, 100), torch.randint(0, 2, (128,))
        ways = {
            "DDP, its own buckets": step_of(width, x_BF, y_B, gradient_as_bucket_view=True),
            "DDP, one bucket": step_of(width, x_BF, y_B, gradient_as_bucket_view=True, bucket_cap_mb=1000),
            "DDP, static graph": step_of(width, x_BF, y_B, gradient_as_bucket_view=True, static_graph=True),
            "one flat all-reduce after the backward pass": flat_step_of(width, x_BF, y_B),
            "none (no communication)": flat_step_of(width, x_BF, y_B, averages=False),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(6):
            for way, step in ways.items():
                dist.barrier()
                started = time.perf_counter()
                for _ in range(60):
                    step()
                if turn:
                    times[way].append((time.perf_counter() - started) / 60)
        found[name] = {way: 1000 * statistics.median(seconds) for way, seconds in times.items()}
    return found


def network(width: int) -> nn.Module:
    """An MLP of 100 numbers."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((100, width), (width, width), (width, width)):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 2))


def step_of(width: int, x_BF: torch.Tensor, y_B: torch.Tensor, **ddp: Any) -> Callable[[], None]:
    """A training step of DDP."""
    model = nn.parallel.DistributedDataParallel(network(width), **ddp)
    model.broadcast_buffers = False
    return stepping(model, x_BF, y_B, lambda: None)


def flat_step_of(width: int, x_BF: torch.Tensor, y_B: torch.Tensor, averages: bool = True) -> Callable[[], None]:
    """A training step whose gradients lie in one piece of memory, added up at once."""
    model = network(width)
    parameters = list(model.parameters())
    flat_P = torch.zeros(sum(p.numel() for p in parameters))
    for parameter, part in zip(parameters, flat_P.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)

    def average() -> None:
        if averages:
            dist.all_reduce(flat_P)
            flat_P.div_(dist.get_world_size())

    return stepping(model, x_BF, y_B, average, keeps=True)


def stepping(
    model: nn.Module, x_BF: torch.Tensor, y_B: torch.Tensor, average: Callable[[], None], keeps: bool = False
) -> Callable[[], None]:
    """Forward, backward, average, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)

    def step() -> None:
        nn.functional.cross_entropy(model(x_BF), y_B).backward()
        average()
        optimizer.step()
        optimizer.zero_grad(set_to_none=not keeps)

    return step


def two_processes(what: str) -> Any:
    """What rank 0 of two processes of this file says."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    done = subprocess.run(
        [*command, "DATA", "--as-worker", what],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def loopback(seconds: dict[str, float]) -> Link:
    """The link that explains two processes' all-reduces: G / w + 2 l, from those of 64 KiB and 16 MiB. One of 4 bytes
    takes a tenth of the time of the former: gloo sends it at once.
    """
    least, most = seconds[str(SIZES[1])], seconds[str(SIZES[-1])]
    rate = (SIZES[-1] - SIZES[1]) / (most - least)
    return Link("gloo on one machine", rate, max(0.0, least - SIZES[1] / rate) / 2)


def raynn(command: str, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a command answers."""
    path = folder / f"{job['name']}.yaml"
    path.write_text(yaml.dump(job))
    env = os.environ | {"OMP_NUM_THREADS": "1", "RAYNN_REPORT": "off"}
    done = subprocess.run(
        [sys.executable, "-m", "raynn", command, str(path), "--json", *(["--quiet"] if command == "train" else [])],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return dict(json.loads(done.stdout))


def work_table(work: str, data: Path, rounds: int, link: Link) -> str:
    """Measured and modelled, of one work."""
    batch = WORKS[work].rows
    cases = {"1 worker": (1, batch), "2 workers, strong": (2, batch), "2 workers, weak": (2, 2 * batch)}
    rates: dict[str, list[float]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def job_of(workers: int, rows: int) -> dict[str, Any]:
            job = WORKS[work].job(data, folder / "runs", f"{work}-{time.time_ns()}")
            job["resources"] = {"workers": workers, "cpus_per_worker": 1}
            job["optimization"]["global_batch_size"] = rows
            return job

        told = raynn("check", job_of(1, batch), folder)["scaling"]
        for turn in range(rounds):
            for case, (workers, rows) in cases.items() if turn % 2 == 0 else reversed(cases.items()):
                rates[case].append(raynn("train", job_of(workers, rows), folder)["examples_per_second"])
                print(f"{work} {case}: {rates[case][-1]:,.0f} examples/s", file=sys.stderr, flush=True)
    compute = Compute(tuple((point["rows"], point["step_s"]) for point in told["measured"]))
    traffic = Traffic(told["gradient_bytes"], told["small_sums"])
    one, two = steps(compute, traffic, link, batch, 2)
    modelled = {
        "1 worker": batch / one.seconds,
        "2 workers, strong": batch / two.seconds,
        "2 workers, weak": 2 * batch / two.weak_s,
    }
    first = statistics.median(rates["1 worker"])
    lines = [f"### {work}", "", "| | examples/s | range | speed-up | model: examples/s | model: speed-up |"]
    lines.append("|---|---|---|---|---|---|")
    for case, measured in rates.items():
        middle, told_rate = statistics.median(measured), modelled[case]
        spread = f"{min(measured):,.0f} .. {max(measured):,.0f}"
        lines.append(
            f"| {case} | {middle:,.0f} | {spread} | {middle / first:.2f} | {told_rate:,.0f} | "
            f"{told_rate / modelled['1 worker']:.2f} |"
        )
    lines.append(f"\nGradient {told['gradient_bytes'] / 1e6:.2f} MB; {told['small_sums']:.2f} small sums a step.\n")
    return "\n".join(lines)


def main() -> None:
    """Measures, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=("link", "averaging", "mlp", "cnn"))
    parser.add_argument("--as-worker", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.as_worker:
        dist.init_process_group("gloo")
        found = all_reduces() if options.as_worker == "link" else averagings()
        if dist.get_rank() == 0:
            print(json.dumps(found))
        dist.destroy_process_group()
        return
    chosen = options.only or ("link", "averaging", "mlp", "cnn")
    parts = [f"One thread a process; {machine()}; {datetime.date.today()}; medians of {options.rounds} rounds.\n"]
    seconds = two_processes("link")
    link = loopback(seconds)
    parts.append(
        "All-reduce of two gloo processes: "
        + ", ".join(f"{int(size):,} bytes {1000 * each:.3g} ms" for size, each in seconds.items())
        + f"; that is {link.bytes_per_s / 1e9:.2f} GB/s and {1e6 * link.latency_s:.0f} us a message.\n"
    )
    if "averaging" in chosen:
        for name, ways in two_processes("averaging").items():
            parts += [f"{name}, ms a step: " + "; ".join(f"{way} {ms:.2f}" for way, ms in ways.items()) + "\n"]
    parts += [work_table(work, options.data.resolve(), options.rounds, link) for work in chosen if work in WORKS]
    text = "\n".join(parts)
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
