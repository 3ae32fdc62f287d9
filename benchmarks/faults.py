"""What each fault costs: from the fault to the first step after it, the steps trained twice, and whether losses change.

    python benchmarks/faults.py [-n 3] [--faults NAME ...] [--folder DIR]

Starts clusters of several nodes on this machine (`ray.cluster_utils.Cluster`), trains a CNN on images of digits and
strikes; the commands of some faults train on this machine's own Ray. Prints a Markdown table, a row a fault: each
repetition's seconds, then the steps lost. Times are as exact as progress.json, which is written every half a second.
As root; `link cut` needs iproute2.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cluster"))

from machines import NETWORK, machines
from nodes import (
    HEALTH,
    MEMORY,
    Training,
    add_node,
    drain,
    node_of,
    nodes,
    of_no_cluster,
    train_controllers,
    train_workers,
    wait_until,
)
from ray.cluster_utils import Cluster
from wandb_server import WandbServer

JOB: dict[str, Any] = {
    "name": "run",
    "data": {"train": "digits", "target": "label", "test": 0.1},
    "network": {"kind": "cnn", "channels": [16, 32], "head_hidden": [64]},
    "regularization": {"dropout": 0.2},
    "optimization": {"global_batch_size": 32, "max_epochs": 160, "learning_rate": 5e-4},
    "early_stopping": {"rule": "none"},
    "report": False,
    # one thread wherever a worker is: sums by two threads round in another way
    "resources": {"workers": 2, "cpus_per_worker": 1, "timeout_s": 20, "max_failures": 20},
}
# small steps, which enlarge the rounding of another number of workers the least
ELASTIC = JOB | {"resources": JOB["resources"] | {"workers": {"min": 1, "max": 2}}}
ELASTIC |= {"optimization": JOB["optimization"] | {"learning_rate": 5e-6}}
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


def strike(training: Training, row: Row, fault: Callable[[], Any], restarts: bool = True) -> Training:
    """Lets it train for a while, strikes, and waits for the first step after: of another group of workers, or of the
    same if none `restarts`.
    """
    epochs = training.epochs()
    training.wait_for(epochs + EPOCHS_BETWEEN)
    wait_until(lambda: reached(training) is not None, 20)
    before = reached(training)
    assert before is not None
    (training.run / "progress.json").unlink()  # the one that is written next shows life
    began = time.monotonic()
    again = fault()
    training = again if isinstance(again, Training) else training

    def alive() -> bool:
        now = reached(training)
        assert training.process.poll() is None or now is not None, training.log.read_text()[-2000:]
        if now is None:
            return False
        if not restarts:
            return now.steps > before.steps
        # before the first step, the old group's is still there
        return now.steps > now.steps_before > before.steps_before

    wait_until(alive, 240)
    now = reached(training)
    assert now is not None, training.log.read_text()
    row.seconds.append(time.monotonic() - began)
    row.lost.append(max(0, before.steps - now.steps_before) if restarts else 0)
    return training


def difference(training: Training, straight: Training) -> float:
    """The largest relative difference of a loss."""
    ours, theirs = training.losses(), straight.losses()
    assert len(ours) == len(theirs), (len(ours), len(theirs))
    pairs = [(a, b) for line, other in zip(ours, theirs, strict=True) for a, b in zip(line, other, strict=True)]
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in pairs)


@cache
def undisturbed(folder: Path, job: str) -> Training:
    """Two workers, or one for an elastic job, on this machine, which nothing happens to."""
    straight = Training(json.loads(job), folder / f"straight-{len(job)}", None)
    assert straight.ended(600) == 0, straight.log.read_text()[-2000:]
    return straight


def ended(training: Training, folder: Path, rows: list[Row], job: dict[str, Any] = JOB) -> None:
    """Waits for the end, and compares."""
    assert training.ended(600) == 0, training.log.read_text()
    straight = undisturbed(folder, json.dumps(job))
    for row in rows:
        row.largest_difference = max(row.largest_difference, difference(training, straight))


def fixed(folder: Path, rows: dict[str, Row], n: int) -> None:
    """Two workers on three nodes: the third is spare."""
    with nodes(3) as cluster:
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
            "controller killed": lambda: os.kill(train_controllers()[-1], signal.SIGKILL),
            "worker hangs": lambda: os.kill(train_workers()[-1], signal.SIGSTOP),
            "node killed, a spare": node_killed,
            "node drained": drained,
            "object store full, worker killed": lambda: os.kill(train_workers()[-1], signal.SIGKILL),
        }
        names = [name for name in FIXED if name in rows]
        for name in names * n:
            with filled(cluster) if "object store full" in name else nullcontext():
                strike(training, rows[name], faults[name])
            say(name, rows[name])
            if name.startswith("node"):
                add_node(cluster)
        ended(training, folder, [rows[name] for name in names])


def elastic(folder: Path, rows: dict[str, Row], n: int) -> None:
    """Two workers, one, two, and so on."""
    with nodes(2) as cluster:
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
        one = ELASTIC | {"resources": JOB["resources"] | {"workers": 1}}
        ended(training, folder, [rows[name] for name in faults], one)


@contextmanager
def filled(cluster: Cluster) -> Iterator[None]:
    """The object stores hold more than they have room for."""
    script = f"""
import numpy, ray, sys
ray.init({cluster.address!r}, log_to_driver=False)
@ray.remote(scheduling_strategy="SPREAD", num_cpus=0)
def put(): return [ray.put(numpy.ones({MEMORY // 80})) for _ in range(20)]
kept = ray.get([put.remote() for _ in range(8)])
print("full", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], env=of_no_cluster(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "full\n"
        yield
        process.kill()


def link(folder: Path, rows: dict[str, Row], n: int) -> None:
    """Machines of a network, one of which is cut off at a time; as many are spare."""
    head = f"{NETWORK}.1:6379"
    with machines(folder, 3 + n) as ours:
        ours.start(1, "--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false", more=HEALTH)
        for number in range(2, ours.count + 1):
            ours.start(number, f"--address={head}", "--num-cpus=1")
        how: dict[str, Any] = {"at": ours.within(1), "more": ours.environment | {"GLOO_SOCKET_IFNAME": "eth0"}}
        training = Training(JOB, folder / "link", head, **how)
        cut: list[int] = []

        def fault() -> None:
            cut.append(max(ours.that_train()))
            ours.cut(cut[-1])

        for _ in range(n):
            strike(training, rows["link cut"], fault)
            ours.switch_off(cut[-1])  # one disk is all machines': on it, one that is cut off would go on writing
            say("link cut", rows["link cut"])
        ended(training, folder, [rows["link cut"]])


def head(folder: Path, rows: dict[str, Row], n: int) -> None:
    """The head is lost: another cluster is brought up, and the command begun again there."""
    with ExitStack() as clusters:
        at = [clusters.enter_context(nodes(2))]
        training = Training(JOB, folder / "head", at[-1].address)

        def lost() -> Training:
            at[-1].remove_node(at[-1].head_node, allow_graceful=False)
            assert training.ended(180) != 0
            at.append(clusters.enter_context(nodes(2)))
            return Training(JOB, folder / "head", at[-1].address, "resume=true")

        for _ in range(n):
            training = strike(training, rows["head lost"], lost)
            say("head lost", rows["head lost"])
        ended(training, folder, [rows["head lost"]])


def command(folder: Path, rows: dict[str, Row], n: int) -> None:
    """What happens to the command itself, which is then begun again with resume=true; on this machine's own Ray."""
    small = folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(small)], check=True)
    try:
        training = Training(JOB, small, None)
        faults = {
            "command killed": partial(begun_again, sign=signal.SIGKILL, status=-9, folder=small),
            "SIGTERM": partial(begun_again, sign=signal.SIGTERM, status=130, folder=small),
            "disk full": partial(begun_with_room, folder=small),
        }
        names = [name for name in faults if name in rows]
        for name in names * n:
            training = strike(training, rows[name], partial(faults[name], training))
            say(name, rows[name])
        ended(training, folder, [rows[name] for name in names])
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)


def begun_again(training: Training, sign: signal.Signals, status: int, folder: Path) -> Training:
    """Ends the command by a signal, and begins it again."""
    training.process.send_signal(sign)
    assert training.ended(120) == status, training.log.read_text()
    return Training(JOB, folder, None, "resume=true")


def begun_with_room(training: Training, folder: Path) -> Training:
    """Fills the disk, waits for the error, makes room, and begins again."""
    with (folder / "ballast").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert training.ended(120) == 1, training.log.read_text()
    (folder / "ballast").unlink()
    return Training(JOB, folder, None, "resume=true")


def tracked(folder: Path, rows: dict[str, Row], n: int) -> None:
    """The server of W&B, a double of it on this machine, goes in the middle and comes again."""
    job = JOB | {"tracking": {"wandb": {"mode": "online"}}}
    with WandbServer() as server:
        more = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "k" * 40, "WANDB_MODE": "online"}
        training = Training(job, folder / "tracked", None, more=more)
        for _ in range(n):
            strike(training, rows["W&B down"], server.stop, restarts=False)
            say("W&B down", rows["W&B down"])
            server.start()
        ended(training, folder, [rows["W&B down"]])
    (run,) = server.runs.values()
    told = [row["epoch"] for row in run.history if "train/loss" in row]  # beside it, what a run shows at its end
    assert told == list(range(1, training.epochs() + 1)), "epochs that the server lacks"


FIXED = ("worker killed", "checkpoint damaged", "controller killed", "worker hangs", "node killed, a spare")
FIXED += (
    "node drained",
    "object store full, worker killed",
)
ELASTIC_ONES = ("node killed, elastic", "node added, elastic")
COMMAND = ("command killed", "SIGTERM", "disk full")
PARTS: tuple[tuple[Callable[[Path, dict[str, Row], int], None], tuple[str, ...]], ...] = (
    (fixed, FIXED),
    (elastic, ELASTIC_ONES),
    (command, COMMAND),
    (link, ("link cut",)),
    (tracked, ("W&B down",)),
    (head, ("head lost",)),
)
FAULTS = tuple(name for _, names in PARTS for name in names)


def say(name: str, row: Row) -> None:
    """As it goes."""
    print(f"{name}: {row.seconds[-1]:.1f} s, {row.lost[-1]} steps lost", file=sys.stderr, flush=True)


def table(rows: dict[str, Row]) -> str:
    """Markdown."""
    lines = ["| fault | seconds to the first step after it | steps trained twice | losses |", "|---|---|---|---|"]
    for name, row in rows.items():
        if row.seconds:
            seconds, lost = ", ".join(f"{s:.1f}" for s in row.seconds), ", ".join(map(str, row.lost))
            same = "equal" if not row.largest_difference else f"to {row.largest_difference:.1e}"
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
    for run, names in PARTS:
        if rows.keys() & set(names):
            run(folder, rows, options.n)
            where = f"{os.cpu_count()} CPUs, load {os.getloadavg()[1]:.1f} over 5 minutes"
            print(f"{where}, {time.strftime('%Y-%m-%d', time.gmtime())}\n{table(rows)}\n", flush=True)


if __name__ == "__main__":
    main()
