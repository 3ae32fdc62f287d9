"""clusters/local.sh, really: two nodes come up, ask for a token, train what is submitted, and go without a trace."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: Ray's sockets lie in it, and the name of one holds at most 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="raynn-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def status_of(port: int, token: str | None) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/jobs/")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def processes_of(folder: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has ended meanwhile
            continue
        if str(folder) in line and int(path.parent.name) != os.getpid():
            found.append(line[:200])
    return found


def test_a_clone_trains_on_two_nodes_of_this_machine(folder: Path) -> None:
    port = 26379 + os.getpid() % 1000 * 20
    home = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    home |= {"RAYNN_LOCAL": str(folder), "RAYNN_LOCAL_PORT": str(port)}
    home["PATH"] = f"{Path(sys.executable).parent}:{home['PATH']}"
    clone = folder / "clone"
    for name in ("raynn", "jobs"):
        shutil.copytree(ROOT / name, clone / name)
    shutil.copy(ROOT / ".rayignore", clone)
    with (clone / "raynn/worker.py").open("a") as worker:  # says which raynn a worker runs
        worker.write(f"\n__import__('pathlib').Path('{folder}/seen').write_text(__file__)\n")
    train = ["jobs/digits_cnn.yaml", "optimization.max_epochs=1", f"storage={folder}/runs"]
    script = str(ROOT / "clusters/local.sh")
    try:
        said = subprocess.run([script, "up", "2", "1"], env=home, stdout=subprocess.PIPE, text=True, check=True).stdout
        user = home | dict(pair.split("=") for pair in re.findall(r"\w+=\S+", said.splitlines()[0]))
        url = re.findall(r"http://\S+", said)[0]
        token = Path(user["RAY_AUTH_TOKEN_PATH"])
        assert token.stat().st_mode & 0o077 == 0, "the token is its owner's alone"
        assert status_of(port + 1, None) in (401, 403)
        assert status_of(port + 1, "0" * 64) in (401, 403)
        assert status_of(port + 1, token.read_text()) == 200

        submit = ["ray", "job", "submit", "--address", url, "--working-dir", str(clone), "--"]
        done = subprocess.run([*submit, "python", "-m", "raynn", "train", *train], env=user, check=False)
        assert done.returncode == 0
        result = json.loads((folder / "runs/digits-cnn/result.json").read_text())
        assert (result["status"], result["workers"], result["epochs"]) == ("finished", 2, 1)
        assert "_ray_pkg_" in (folder / "seen").read_text(), "workers run the raynn that was submitted"

        there = user | {"PYTHONPATH": str(ROOT)}
        again = [sys.executable, "-m", "raynn", "train", *train]
        assert subprocess.run(again, env=there, cwd=ROOT, check=False).returncode == 0
        alone, submitted = ((folder / "runs" / name / "metrics.jsonl") for name in ("digits-cnn-2", "digits-cnn"))
        assert json.loads(alone.read_text())["val/loss"] == json.loads(submitted.read_text())["val/loss"]
    finally:
        subprocess.run([script, "down"], env=home, check=True)
    assert not processes_of(folder)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
