"""Machines of a cluster on this one: network namespaces, each with an address and a /local of its own. Needs root."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from nodes import command_line

BIN = Path(sys.executable).parent
BRIDGE = "raynn0"
NETWORK = "10.78.0"

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip"), reason="network namespaces need root and iproute2"
)


def run(*command: str, **options: object) -> None:
    subprocess.run(command, check=True, **options)  # type: ignore[call-overload]


class Machines:
    """Namespaces raynn1, raynn2, ... at 10.78.0.1, ...; this machine is at 10.78.0.254."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self.local = folder / "local"  # the same path, another folder on each
        self.token = folder / "token"
        # a short path: Ray's sockets lie in it, and the name of one holds at most 107 bytes
        self.rays = Path(tempfile.mkdtemp(prefix="raynn-", dir="/tmp"))
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.apart: set[int] = set()

    @property
    def environment(self) -> dict[str, str]:
        """Of Ray's nodes and of a client."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "WANDB_"))}
        kept |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token), "RAY_USAGE_STATS_ENABLED": "0"}
        return kept | {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def up(self) -> None:
        """Lays the network."""
        self.local.mkdir()
        self.token.write_text("c" * 64)
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        for number in range(1, self.count + 1):
            name = f"raynn{number}"
            run("ip", "netns", "add", name)
            run("ip", "link", "add", f"raynnv{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            run("ip", "link", "set", f"raynnv{number}", "master", BRIDGE, "up")
            run("ip", "-n", name, "address", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")

    def within(self, number: int, *command: str) -> list[str]:
        """A command on one machine; /local there is a file system of its own (`ip netns exec` unshares mounts)."""
        script = f'mount -t tmpfs none {self.local} && exec "$@"'
        return ["ip", "netns", "exec", f"raynn{number}", "sh", "-c", script, "sh", *command]

    def that_train(self) -> set[int]:
        """Machines, but the first and those that were cut off, with a worker that trains."""
        found = set()
        for number in set(range(2, self.count + 1)) - self.apart:
            pids = subprocess.run(
                ["ip", "netns", "pids", f"raynn{number}"], capture_output=True, text=True, check=True
            ).stdout.split()
            if any("TrainWorker" in command_line(int(pid)) for pid in pids):
                found.add(number)
        return found

    def cut(self, number: int) -> None:
        """Takes a machine's cable out."""
        run("ip", "link", "set", f"raynnv{number}", "down")
        self.apart.add(number)

    def start(self, number: int, *options: str, more: Mapping[str, str] | None = None) -> None:
        """Ray on one machine."""
        address = f"{NETWORK}.{number}"
        command = ["ray", "start", "--block", f"--node-ip-address={address}", "--object-store-memory=200000000"]
        command += [f"--temp-dir={self.rays}/{number}", *options]
        with (self.folder / f"{number}.log").open("wb") as log:
            self.nodes.append(
                subprocess.Popen(
                    self.within(number, *command),
                    stdout=log,
                    stderr=log,
                    env=self.environment | {"GLOO_SOCKET_IFNAME": "eth0"} | (more or {}),
                    start_new_session=True,
                )
            )
        self.wait_for(self.folder / f"{number}.log", "Ray runtime started")

    def wait_for(self, file: Path, text: str, timeout_s: float = 120.0) -> None:
        """Until a file holds a text."""
        until = time.monotonic() + timeout_s
        while not file.exists() or text not in file.read_text():
            assert time.monotonic() < until, (
                f"no {text!r} in {file}: {file.read_text() if file.exists() else 'no file'}"
            )
            time.sleep(0.3)

    def raynn(self, *arguments: str, cwd: Path, on: int | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        """The command, on this machine or on one of ours."""
        command: Sequence[str] = (sys.executable, "-m", "raynn", *arguments)
        if on is not None:
            command = self.within(on, *command)
        environment = self.environment | more
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=400
        )

    def switch_off(self, number: int) -> None:
        """Ends every process of a machine, which says no goodbye."""
        left = subprocess.run(["ip", "netns", "pids", f"raynn{number}"], capture_output=True, text=True, check=False)
        for pid in left.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def down(self) -> None:
        """Switches all machines off, and ends the network."""
        for number in range(1, self.count + 1):
            self.switch_off(number)
        for node in self.nodes:
            node.wait()
        for number in range(1, self.count + 1):
            subprocess.run(["ip", "netns", "delete", f"raynn{number}"], stderr=subprocess.DEVNULL, check=False)
            # which takes its end of the link along in its own time
            subprocess.run(["ip", "link", "delete", f"raynnv{number}"], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["ip", "link", "delete", BRIDGE], stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(self.rays, ignore_errors=True)


@contextmanager
def machines(folder: Path, count: int) -> Iterator[Machines]:
    """Machines for as long as a test needs them."""
    ours = Machines(folder, count)
    try:
        ours.up()
        yield ours
    finally:
        ours.down()
