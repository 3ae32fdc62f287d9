"""What share of what a device can do each network trains at: raynn's own loop beside a product of large matrices and a
copy of a large memory, all measured in this process.

    .venv/bin/python benchmarks/peak.py [--device cuda] [--only NAME ...] [--precision float32 bf16]
        [--compile reduce-overhead] [--seconds 10] [--out docs/benchmarks.md]

On rows that are made up and live on the device; evaluation is left out. A step's operations are those of its matrix
products and convolutions, forward and backward, as torch's counter has them (a multiplication and an addition are two);
its bytes are those that each of its operations reads and writes, as if none found any of them in a cache, so that small
networks may exceed what memory gives. Both are counted on the network as it is written, also where it is compiled. A
network is at its limit where either share is near 100 %; where both are small, its steps wait for being asked for.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
from made_up import CLASSES, COLORS, Bench, epochs_of, hardware_of, job_for, shard_for
from throughput import put_into

from raynn.allocator import keep_freed_memory
from raynn.loop import Record
from raynn.preprocessing import InputSpec

TABLE = InputSpec(num_numeric=64, **CLASSES)
IMAGES = InputSpec(image_CHW=(3, 32, 32), **COLORS, **CLASSES)
SEQUENCES = InputSpec(sequence_TC=(0, 16), **CLASSES)
DRAWN = InputSpec(image_CHW=(3, 32, 32), task="image_generation", **COLORS)


def texts(window: int) -> InputSpec:
    """Of characters."""
    return InputSpec(vocabulary_size=66, window=window, task="language_modeling")


def sizes(small: bool) -> dict[str, Bench]:
    """Every network type, as small as the jobs for a CPU have it or large enough to fill a GPU."""
    if small:
        return {
            "feedforward": Bench({"kind": "feedforward", "hidden": [256] * 3}, TABLE, ("numeric",), 256),
            "cnn": Bench({"kind": "cnn", "channels": [32, 64, 64]}, IMAGES, ("image",), 256),
            "rnn": Bench({"kind": "rnn", "hidden": 128}, SEQUENCES, ("sequence",), 128),
            "lstm": Bench({"kind": "lstm", "hidden": 128}, SEQUENCES, ("sequence",), 128),
            "image_generator": Bench({"kind": "image_generator", "channels": [32, 64]}, DRAWN, ("image",), 64),
            "text_generator": Bench(
                {"kind": "text_generator", "width": 128, "layers": 4, "heads": 4}, texts(128), ("text",), 32
            ),
        }
    resnet = {"channels": [64, 128, 256, 512], "block": "residual", "blocks_per_stage": 2, "pooling": "stride"}
    return {
        "feedforward, wide": Bench({"kind": "feedforward", "hidden": [4096] * 3}, TABLE, ("numeric",), 8192),
        "cnn, ResNet-18": Bench({"kind": "cnn", "head_pooling": "mean", **resnet}, IMAGES, ("image",), 1024),
        "rnn, wide": Bench({"kind": "rnn", "hidden": 1024, "layers": 2}, SEQUENCES, ("sequence",), 1024),
        "lstm, wide": Bench({"kind": "lstm", "hidden": 1024, "layers": 2}, SEQUENCES, ("sequence",), 1024),
        "image_generator, wide": Bench({"kind": "image_generator", "channels": [128, 256]}, DRAWN, ("image",), 256),
        "text_generator, nanoGPT": Bench(
            {"kind": "text_generator", "width": 384, "layers": 6, "heads": 6}, texts(256), ("text",), 64
        ),
        "text_generator, GPT-2 small": Bench(
            {"kind": "text_generator", "width": 768, "layers": 12, "heads": 12}, texts(1024), ("text",), 16
        ),
    }


BENCHES = sizes(small=True) | sizes(small=False)
FEW, MOST_STEPS = 4, 100  # of an epoch
GATHERS = ("index_select", "index.Tensor", "embedding.default", "gather")  # read as much as they write


class Bytes(TorchDispatchMode):
    """What operations read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = op(*args, **(kwargs or {}))
        read, written = _tensors((args, kwargs)), _tensors(given)
        changes = op._schema.is_mutable
        before = {x.untyped_storage().data_ptr() for x in read}
        views = all(x.untyped_storage().data_ptr() in before for x in written)
        if (written or changes) and (changes or not views) and "empty" not in str(op):
            written = [x for x in written if x.untyped_storage().data_ptr() not in before]
            size = sum(map(_bytes, written))
            if any(name in str(op) for name in GATHERS):
                self.count += 2 * size
            else:
                self.count += size + sum(map(_bytes, read)) * (2 if changes else 1)
        return given


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _bytes(x: Tensor) -> int:
    """Of an expanded tensor those that are there."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def recurrent_flops(passes: int) -> Callable[..., int]:
    """Of the recurrent layers of oneDNN and cuDNN, which torch's counter does not know: each of the weight matrices,
    which follow the input [B, T, F] or [T, B, F], with every step of every row; a backward pass is two forward ones.
    """

    def count(input_shape: torch.Size, *shapes: Any, out_shape: Any = None, **more: Any) -> int:
        weights = tree_leaves(shapes[:4], is_leaf=lambda x: isinstance(x, torch.Size))
        matrices = sum(x.numel() for x in weights if isinstance(x, torch.Size) and len(x) == 2)
        return passes * 2 * matrices * (input_shape.numel() // input_shape[-1])

    return count


RECURRENT = {
    getattr(torch.ops.aten, name): recurrent_flops(passes)
    for name, passes in (
        ("mkldnn_rnn_layer", 1),
        ("mkldnn_rnn_layer_backward", 2),
        ("_cudnn_rnn", 1),
        ("_cudnn_rnn_backward", 2),
    )
}


@dataclass(frozen=True)
class Peaks:
    """What a device did, operations and bytes a second."""

    flops: dict[str, float]  # by precision
    bandwidth: float


def best_s(work: Callable[[], object], device: torch.device, seconds: float = 2.0) -> float:
    """Of the fastest of all repetitions within so many seconds."""
    found = []
    until = time.perf_counter() + seconds
    while len(found) < 3 or time.perf_counter() < until:
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        found.append(time.perf_counter() - started)
    return min(found)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peaks(device: torch.device) -> Peaks:
    """Products of two square matrices, and a copy."""
    n = 8192 if device.type == "cuda" else 2048
    flops = {}
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        flops[name] = 2 * n**3 / best_s(lambda a=a, b=b: a @ b, device)
    source = torch.ones(2 ** (30 if device.type == "cuda" else 26), device=device)
    target = torch.empty_like(source)
    return Peaks(flops, 2 * source.nbytes / best_s(lambda: target.copy_(source), device))


def epochs_on(bench: Bench, steps: int, device: torch.device, **optimization: Any) -> Iterator[Record]:
    """Epochs of so many steps, the first, which warms up, behind them; hardly anything is evaluated."""
    rows, few = (shard_for(bench, number, device) for number in (bench.rows * steps, 1))
    epochs = epochs_of(bench, job_for(bench, 100_000, **optimization), rows, few, device)
    next(epochs)
    return epochs


def rate_of(bench: Bench, device: torch.device, seconds: float, **optimization: Any) -> float:
    """Examples a second: the median of epochs that are so long that their ends do not count."""
    step_s = next(epochs_on(bench, FEW, device, **optimization))["seconds"] / FEW
    epochs = epochs_on(bench, max(FEW, min(MOST_STEPS, round(seconds / 10 / step_s))), device, **optimization)
    rates, until = list[float](), time.perf_counter() + seconds
    while time.perf_counter() < until or len(rates) < 3:
        rates.append(next(epochs)["examples_per_second"])
    return statistics.median(rates)


def counted(bench: Bench, device: torch.device, precision: str) -> tuple[float, float]:
    """Operations and bytes of a step, as the network is written."""
    epochs = epochs_on(bench, FEW, device, precision=precision)
    operations, traffic = FlopCounterMode(display=False, custom_mapping=RECURRENT), Bytes()
    with operations, traffic:
        next(epochs)
    return operations.get_total_flops() / FEW, traffic.count / FEW


def row(name: str, device: torch.device, precision: str, compile: bool | str, seconds: float, peak: Peaks) -> str:
    """What was measured of one network."""
    bench = BENCHES[name]
    flops, traffic = counted(bench, device, precision)
    rate = rate_of(bench, device, seconds, precision=precision, compile=compile)
    step_s = bench.rows / rate
    cells = [name, precision + (f", {compile}" if isinstance(compile, str) else ", compiled" if compile else "")]
    cells += [f"{bench.rows:,}", f"{rate:,.0f}", f"{1000 * step_s:.3g}"]
    cells += [f"{flops / step_s / 1e12:.3g}", f"{100 * flops / step_s / peak.flops[precision]:.0f} %"]
    cells += [f"{traffic / step_s / 1e9:,.3g}", f"{100 * traffic / step_s / peak.bandwidth:.0f} %"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=list(BENCHES))
    parser.add_argument("--precision", nargs="+", choices=["float32", "bf16"], default=["float32", "bf16"])
    parser.add_argument("--compile", choices=["no", "default", "reduce-overhead"], default="no")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each network")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
        keep_freed_memory()
    peak = peaks(device)
    matrix = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in peak.flops.items())
    lines = [
        f"{hardware_of(device)}; torch {torch.__version__}; {datetime.date.today()}; medians over {options.seconds:g} "
        f"s. Measured peaks: matrices {matrix} TFLOP/s, a copy {peak.bandwidth / 1e9:,.0f} GB/s.",
        "",
        "| | precision | rows a step | examples/s | ms a step | TFLOP/s | of peak | GB/s | of peak |",
        "|---" * 9 + "|",
    ]
    print("\n".join(lines), flush=True)
    compile = {"no": False, "default": True}.get(options.compile, options.compile)
    for name in options.only or (sizes(small=True) if device.type == "cpu" else BENCHES):
        for precision in options.precision:
            lines.append(row(name, device, precision, compile, options.seconds, peak))
            print(lines[-1], flush=True)
    if options.out:
        put_into(options.out, f"peak {device.type}", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
