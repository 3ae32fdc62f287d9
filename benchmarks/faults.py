"""What each fault costs: from the fault to the first step after it, the steps trained twice, and whether losses change.

    python benchmarks/faults.py [-n 3] [--faults NAME ...] [--folder DIR]

Starts clusters of several nodes on this machine (`ray.cluster_utils.Cluster`), trains a CNN on images of digits and
strikes. Prints a Markdown table, a row a fault: each repetition's seconds, then the steps lost. Times are as exact as
progress.json, which is written every half a second. As root; `link cut` needs iproute2.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cluster"))

from nodes import Training, add_node, drain, node_of, nodes, train_workers, wait_until

JOB: dict[str, Any] = {
    "name": "run",
    "data": {"train": "digits", "target": "label", "test": 0.1},
    "network": {"kind": "cnn", "channels": [16, 32], "head_hidden": [64]},
    "regularization": {"dropout": 0.2},
    "optimization": {"global_batch_size": 32, "max_epochs": 80, "learning_rate": 5e-4},
    "early_stopping": {"rule": "none"},
    "report": False,
    "resources": {"workers": 2, "timeout_s": 20, "max_failures": 20},
}
ELASTIC = JOB | {"resources": JOB["resources"] | {"workers": {"min": 1, "max": 2}}}
EPOCHS_BETWEEN = 2


@dataclass
class Row:
    """One fault."""

    seconds: list[float] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    largest_difference: float = 0.0  # of any loss from the undisturbed run's, relative


@dataclass
class Reached:
    """How far a training is."""

    steps: int
    steps_before: int  # that the workers at work now began with


def reached(training: Training) -> Reached | None:
    """From progress.json."""
    try:
        state = json.loads((training.run / "progress.json").read_text())
    except (OSError, ValueError):
        return None
    steps = state["epochs_done"] * state["steps_per_epoch"] + state["step"]
    return Reached(steps, state["steps_before"])


def strike(training: Training, row: Row, fault: Callable[[], Any]) -> Training:
    """Lets it train for a while, strikes, and waits for the first step after."""
    epochs = training.epochs()
    training.wait_for(epochs + EPOCHS_BETWEEN)
    wait_until(lambda: bool(train_workers()) and reached(training) is not None, 20)
    before = reached(training)
    assert before is not None
    (training.run / "progress.json").unlink()  # the one that is written next shows life
    began = time.monotonic()
    again = fault()
    training = again if isinstance(again, Training) else training

    def alive() -> bool:
        now = reached(training)
        if now is None or training.process.poll() is not None:
            return now is not None
        return (
            now.steps > now.steps_before > before.steps_before
        )  # before the first step, the old group's is still there

    wait_until(alive, 240)
    now = reached(training)
    assert now is not None, training.log.read_text()
    row.seconds.append(time.monotonic() - began)
    row.lost.append(max(0, before.steps - now.steps_before))
    return training


def difference(training: Training, straight: Training) -> float:
    """The largest relative difference of a loss."""
    ours, theirs = training.losses(), straight.losses()
    assert len(ours) == len(theirs), (len(ours), len(theirs))
    pairs = [(a, b) for line, other in zip(ours, theirs, strict=True) for a, b in zip(line, other, strict=True)]
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in pairs)


def ended(training: Training, straight: Training, rows: list[Row]) -> None:
    """Waits for the end, and compares."""
    assert training.ended(300) == 0, training.log.read_text()
    for row in rows:
        row.largest_difference = max(row.largest_difference, difference(training, straight))


def fixed(folder: Path, rows: dict[str, Row], n: int) -> None:
    """Two workers on three nodes: the third is spare."""
    with nodes(3) as cluster:
        straight = Training(JOB, folder / "straight", cluster.address)
        assert straight.ended(400) == 0, straight.log.read_text()
        training = Training(JOB, folder / "struck", cluster.address)

        def damaged() -> None:
            newest = max((training.run / "checkpoints").glob("epoch-*")) / "tensors.safetensors"
            newest.write_bytes(newest.read_bytes()[:100])
            os.kill(train_workers()[-1], signal.SIGKILL)

        def node_killed() -> None:
            cluster.remove_node(node_of(cluster, train_workers()[-1]), allow_graceful=False)

        def drained() -> None:
            drain(cluster, node_of(cluster, train_workers()[-1]), 60)

        faults: dict[str, Callable[[], None]] = {
            "worker killed": lambda: os.kill(train_workers()[-1], signal.SIGKILL),
            "checkpoint damaged": damaged,
            "worker hangs": lambda: os.kill(train_workers()[-1], signal.SIGSTOP),
            "node killed, a spare": node_killed,
            "node drained": drained,
        }
        for name in [name for _ in range(n) for name in FAULTS[:5] if name in rows]:
            strike(training, rows[name], faults[name])
            say(name, rows[name])
            if name.startswith("node"):
                add_node(cluster)
        ended(training, straight, [rows[name] for name in FAULTS[:5] if name in rows])


def elastic(folder: Path, rows: dict[str, Row], n: int) -> None:
    """Two workers, one, two, and so on."""
    with nodes(2) as cluster:
        straight = Training(JOB, folder / "elastic-straight", cluster.address)
        assert straight.ended(400) == 0, straight.log.read_text()
        training = Training(ELASTIC, folder / "elastic-struck", cluster.address)
        faults: dict[str, Callable[[], Any]] = {
            "node killed, elastic": lambda: cluster.remove_node(
                node_of(cluster, train_workers()[-1]), allow_graceful=False
            ),
            "node added, elastic": lambda: add_node(cluster),
        }
        for name in [name for _ in range(n) for name in faults]:
            strike(training, rows.setdefault(name, Row()), faults[name])
            say(name, rows[name])
        ended(training, straight, [rows[name] for name in faults])


def command(folder: Path, rows: dict[str, Row], n: int) -> None:
    """What happens to the command itself, which is then begun again with resume=true; on this machine's own Ray."""
    straight = Training(JOB, folder / "command-straight", None)
    assert straight.ended(400) == 0, straight.log.read_text()
    training = Training(JOB, folder / "command", None)
    names = [name for name in FAULTS[7:] if name in rows]
    for name in names * n:
        sign, status = (signal.SIGKILL, -9) if name == "command killed" else (signal.SIGTERM, 130)
        training = strike(training, rows[name], partial(begun_again, training, sign, status, folder / "command"))
        say(name, rows[name])
    ended(training, straight, [rows[name] for name in names])


def begun_again(training: Training, sign: signal.Signals, status: int, folder: Path) -> Training:
    """Ends the command by a signal, and begins it again."""
    training.process.send_signal(sign)
    assert training.ended(120) == status, training.log.read_text()
    return Training(JOB, folder, None, "resume=true")


FAULTS = (
    *("worker killed", "checkpoint damaged", "worker hangs", "node killed, a spare", "node drained"),
    *("node killed, elastic", "node added, elastic", "command killed", "SIGTERM"),
)


def say(name: str, row: Row) -> None:
    """As it goes."""
    print(f"{name}: {row.seconds[-1]:.1f} s, {row.lost[-1]} steps lost", file=sys.stderr, flush=True)


def table(rows: dict[str, Row]) -> str:
    """Markdown."""
    lines = ["| fault | seconds to the first step after it | steps trained twice | losses |", "|---|---|---|---|"]
    for name, row in rows.items():
        if row.seconds:
            seconds, lost = ", ".join(f"{s:.1f}" for s in row.seconds), ", ".join(map(str, row.lost))
            same = "equal" if not row.largest_difference else f"to {row.largest_difference:.0e}"
            lines.append(f"| {name} | {seconds} | {lost} | {same} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=3)
    parser.add_argument("--faults", nargs="*", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="faults-"))
    rows = {name: Row() for name in options.faults}
    for run, names in ((fixed, FAULTS[:5]), (elastic, FAULTS[5:7]), (command, FAULTS[7:])):
        if rows.keys() & set(names):
            run(folder, rows, options.n)
            date = time.strftime("%Y-%m-%d", time.gmtime())
            print(
                f"{os.cpu_count()} CPUs, load {os.getloadavg()[1]:.1f} over 5 minutes, {date}\n{table(rows)}\n",
                flush=True,
            )


if __name__ == "__main__":
    main()
