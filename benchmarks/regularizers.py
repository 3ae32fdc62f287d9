"""What each regularizer costs: the time of a training step with it over that without, network by network.

    .venv/bin/python benchmarks/regularizers.py [--only KNOB ...] [--repeats 7] [--out raynn/costs.json [--page MD]]

Both train in one process, in turn, an epoch of 8 steps each, through the loop that all training goes through; the first
epoch of each warms up. The ratio is the median over the repeats of the ratio of an epoch to the one just before it,
low and high are their quartiles. Knobs are at the middle of their search range. On a CPU it is the time that the
process computed, with one thread, which a busy machine changes little; on a GPU that which passed, the device waited
for. The networks are small, so what a step costs beside its arithmetic weighs more than in large ones.
`raynn list --cost` prints what the file holds; a run replaces what was measured on the same hardware.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from made_up import CLASSES, COLORS, Bench, epochs_of, hardware_of, job_for, shard_for

from raynn.ablation import StudySettings, arms_of
from raynn.networks import NETWORKS
from raynn.preprocessing import InputSpec
from raynn.regularization import knob_specs

STEPS = 8  # an epoch
WORDS: dict[str, Any] = {"vocabulary_size": 256, "window": 64, "task": "language_modeling"}
ANY_LENGTH: dict[str, Any] = {"sequence_TC": (0, 8), **CLASSES}  # as recurrent networks take them
DENSE = {"kind": "feedforward", "hidden": [256, 256]}
CONVOLUTIONS = {"kind": "cnn", "channels": [16, 32]}
WRITER = {"kind": "text_generator", "width": 64, "layers": 2, "heads": 4}
TABLE = InputSpec(num_numeric=32, **CLASSES)
IMAGES = InputSpec(image_CHW=(3, 32, 32), **COLORS, **CLASSES)
SEQUENCES = InputSpec(sequence_TC=(50, 8), **CLASSES)
TEXTS = InputSpec(vocabulary_size=256, **CLASSES)
# A knob is measured on the first bench of each kind of network for which it is defined.
BENCHES = (
    Bench(DENSE, TABLE, ("numeric",), 256),
    Bench(DENSE | {"residual": True}, TABLE, ("numeric",), 256),
    Bench(DENSE | {"activation": "selu"}, TABLE, ("numeric",), 256),
    Bench(DENSE, IMAGES, ("image",), 64),
    Bench(DENSE, SEQUENCES, ("sequence",), 64),
    Bench(DENSE, TEXTS, ("text",), 64),
    Bench(CONVOLUTIONS, IMAGES, ("image",), 64),
    Bench(CONVOLUTIONS | {"block": "residual"}, IMAGES, ("image",), 64),
    Bench(CONVOLUTIONS, SEQUENCES, ("sequence",), 64),
    Bench(CONVOLUTIONS, TEXTS, ("text",), 64),
    Bench({"kind": "rnn", "hidden": 64}, InputSpec(**ANY_LENGTH), ("sequence",), 64),
    Bench({"kind": "rnn", "hidden": 64}, TEXTS, ("text",), 64),
    Bench({"kind": "rnn", "hidden": 64}, InputSpec(**WORDS), ("text",), 16),
    Bench({"kind": "lstm", "hidden": 64}, InputSpec(**ANY_LENGTH), ("sequence",), 64),
    Bench({"kind": "lstm", "hidden": 64}, TEXTS, ("text",), 64),
    Bench({"kind": "lstm", "hidden": 64}, InputSpec(**WORDS), ("text",), 16),
    Bench(WRITER, InputSpec(**WORDS), ("text",), 16),
    Bench(WRITER | {"architecture": "lstm"}, InputSpec(**WORDS), ("text",), 16),
    Bench(
        {"kind": "image_generator", "channels": [16], "condition_width": 16, "attention": False},
        InputSpec(image_CHW=(3, 16, 16), task="image_generation", **COLORS),
        ("image",),
        16,
    ),
)


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds."""
    if device.type == "cpu":
        return time.process_time

    def passed() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return passed


def measured(bench: Bench, knob: str, repeats: int, device: torch.device) -> dict[str, float]:
    """The ratio of a knob on a bench: median and quartiles."""
    job = job_for(bench, repeats + 1)
    arm = next(a for a in arms_of(StudySettings(knobs=(knob,)), job.regularization, ()) if a.kind == "alone")
    rows = bench.rows * STEPS

    train, validation, clock = shard_for(bench, rows, device), shard_for(bench, 2, device), clock_of(device)
    pair = [epochs_of(bench, each, train, validation, device) for each in (job, job.with_settings(arm.settings))]
    ratios = []
    for repeat in range(repeats + 1):
        seconds = []
        for epochs in pair:
            start = clock()
            next(epochs)
            seconds.append(clock() - start)
        if repeat:
            ratios.append(seconds[1] / seconds[0])
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"ratio": round(middle, 3), "low": round(low, 3), "high": round(high, 3)}


def benches_of(knob: str) -> dict[str, Bench]:
    """The first bench of each kind of network for which a knob is defined."""
    found: dict[str, Bench] = {}
    for bench in BENCHES:
        kind, inputs = bench.network["kind"], bench.inputs
        where = (kind, job_for(bench, 1).network, inputs.task, bench.columns, inputs.any_length)
        if kind not in found and knob_specs()[knob].misuse(*where) is None:
            found[kind] = bench
    return found


def page(measurements: list[dict[str, Any]]) -> str:
    """docs/costs.md."""
    lines = [
        "# What each regularizer costs",
        "",
        "The time of a training step with it over that without, small networks of each kind, the knob at the middle of",
        "its range; the median of n, and its quartiles in brackets. The same as `raynn list --cost`; measured anew by",
        "",
        "    python benchmarks/regularizers.py --out raynn/costs.json --page docs/costs.md",
    ]
    for each in measurements:
        kinds = [kind for kind in NETWORKS if any(kind in found for found in each["ratios"].values())]
        n, (before, after), cpus = each["n"], each["load"], each["cpus"]
        lines += [
            f"\n## {each['hardware']}\n",
            f"{each['date']}, torch {each['torch']}, n = {n}, load {before:g} to {after:g} on {cpus} CPUs.\n",
            f"| | {' | '.join(kinds)} |",
            "|---" * (len(kinds) + 1) + "|",
        ]
        for knob, found in each["ratios"].items():
            cells = [
                "{ratio:.2f} [{low:.2f}, {high:.2f}]".format(**found[kind]) if kind in found else "" for kind in kinds
            ]
            lines.append(f"| {knob} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="KNOB")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", type=Path, help="docs/costs.md, of all that --out then holds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ratios: dict[str, dict[str, dict[str, float]]] = {}
    load = os.getloadavg()[0]
    for knob in options.only or knob_specs():
        ratios[knob] = {
            kind: measured(bench, knob, options.repeats, device) for kind, bench in benches_of(knob).items()
        }
        print(knob, ", ".join(f"{kind} {found['ratio']:.2f}" for kind, found in ratios[knob].items()), flush=True)
    measurement = {
        "hardware": hardware_of(device),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "n": options.repeats,
        "steps": STEPS,
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "cpus": os.cpu_count(),
        "ratios": ratios,
    }
    if options.out:
        earlier = json.loads(options.out.read_text()) if options.out.exists() else []
        others = [each for each in earlier if each["hardware"] != measurement["hardware"]]
        options.out.write_text(json.dumps([*others, measurement], indent=1) + "\n")
        if options.page:
            options.page.write_text(page([*others, measurement]))


if __name__ == "__main__":
    main()
