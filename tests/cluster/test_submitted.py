"""`raynn submit`, really: two nodes that ask for a token, Ray's CLI and SDK beside it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from processes import HEARS_INTERRUPTIONS

ROOT = Path(__file__).parents[2]
KEY = "0123456789abcdef0123456789abcdef01234567"  # of no one
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]


class Cluster:
    """Two nodes by clusters/local.sh, a clone to submit, and a place for runs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clone = folder, folder / "clone"
        self.port = 26379 + os.getpid() % 1000 * 20
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "WANDB_", "PYTHONPATH"))}
        kept |= {"RAYNN_LOCAL": str(folder / "ray"), "RAYNN_LOCAL_PORT": str(self.port), "OMP_NUM_THREADS": "1"}
        self.environment = kept | {"PATH": f"{Path(sys.executable).parent}:{kept['PATH']}"}
        self.url = f"http://127.0.0.1:{self.port + 1}"
        shutil.copytree(ROOT / "raynn", self.clone / "raynn", ignore=shutil.ignore_patterns("__pycache__"))
        (self.clone / "job.yaml").write_text(
            "name: far\ndata: {train: digits, target: label}\nnetwork: {kind: feedforward}\nreport: false\n"
            f"tracking: {{wandb: null}}\nstorage: {folder}/runs\noptimization: {{max_epochs: 1}}\n"
        )

    def script(self, *words: str) -> str:
        command = [str(ROOT / "clusters/local.sh"), *words]
        return subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, text=True, check=True).stdout

    @property
    def user(self) -> dict[str, str]:
        token = str(self.folder / "ray/token")
        return self.environment | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token}

    def command(self, *more: str) -> list[str]:
        return [sys.executable, "-m", "raynn", "submit", "job.yaml", "--address", self.url, *more]

    def submit(self, *more: str, user: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*more),
            cwd=self.clone,
            env=dict(user or self.user),
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )


@pytest.fixture(scope="module")
def far() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="raynn-", dir="/tmp"))
    ours = Cluster(folder)
    try:
        ours.script("up", "2", "1")
        yield ours
    finally:
        ours.script("down")
        shutil.rmtree(folder, ignore_errors=True)


def test_a_job_goes_there_and_back(far: Cluster) -> None:
    done = far.submit("--json", "name=there")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["status"] == "succeeded"
    assert {c["about"] for c in answer["checks"]} == {
        *("upload", "address", "token", "versions", "nodes", "storage", "resources")
    }
    assert "finished after 1 epochs" in done.stderr, "the job's log"
    again = far.submit("--no-wait", "name=there")
    assert f"{far.folder}/runs/there has ended: this is a new run of that name" in again.stderr
    assert re.search(r"^job raysubmit_\w+ is on its way; next: ray job logs", again.stdout)


def test_what_the_user_can_mend_comes_back_as_such(far: Cluster) -> None:
    done = far.submit("name=wrong", "data.target=no_such_column")
    assert done.returncode == 2, done.stderr
    assert "no_such_column" in done.stdout
    assert re.search(
        r"raynn submit: job raysubmit_\w+ ended with exit status 2: its log above says what to", done.stderr
    )


def test_a_wrong_token_is_not_accepted(far: Cluster) -> None:
    without = far.submit(user=far.environment)
    assert (without.returncode, "export RAY_AUTH_MODE=token" in without.stderr) == (2, True)
    other = far.user | {"RAY_AUTH_TOKEN": "d" * 64}
    wrong = far.submit(user=other)
    assert (wrong.returncode, "does not accept the token of RAY_AUTH_TOKEN" in wrong.stderr) == (2, True)
    token = (far.folder / "ray/token").read_text()
    assert token not in without.stderr + wrong.stderr + far.submit("storage=runs").stderr


def test_left_alone_stopped_and_continued(far: Cluster) -> None:
    long = ("name=long", "optimization.max_epochs=10000", "early_stopping={rule: none}")
    checkpoints, said = far.folder / "runs/long/checkpoints", far.folder / "said"

    def interrupted(*more: str) -> tuple[int, str]:
        with said.open("wb") as errors:
            process = subprocess.Popen(
                [*HEARS_INTERRUPTIONS, *far.command(*long, *more)],
                cwd=far.clone,
                env=far.user,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        try:
            wait_for(lambda: "is on its way" in said.read_text() and any(checkpoints.glob("epoch-*")))
            process.send_signal(signal.SIGINT)
            return process.wait(120), said.read_text()
        finally:
            process.kill()
            process.wait()

    code, text = interrupted()
    assert code == 130
    job = re.findall(r"detached: job (\w+) goes on\n  to come back: ray job logs \w+ --follow --address", text)[0]
    refused = far.submit(*long)
    assert refused.returncode == 2
    assert f"job {job} is running as 'long' already" in refused.stderr

    stop = ["ray", "job", "stop", job, "--address", far.url]
    subprocess.run(stop, env=far.user, capture_output=True, check=True, timeout=120)
    code, text = interrupted("--stop-on-interrupt")
    assert code == 130
    assert f"note   run        {far.folder}/runs/long is unfinished: continued (resume=true)" in text
    assert "detached" not in text
    status = subprocess.run(["ray", "job", "list", "--address", far.url], env=far.user, capture_output=True, text=True)
    assert "RUNNING" not in status.stdout


def test_the_key_of_wandb_goes_unseen(far: Cluster) -> None:
    user = far.user | {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    done = far.submit("--pass-wandb-key", "name=keyed", "tracking={wandb: {mode: online, wait_s: 0}}", user=user)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No API key" not in done.stdout
    state = json.loads((far.folder / "runs/keyed/wandb.json").read_text())
    assert state["mode"] == "online"
    listed = subprocess.run(["ray", "job", "list", "--address", far.url], env=far.user, capture_output=True, text=True)
    assert "keyed" in listed.stdout
    assert KEY not in listed.stdout + done.stdout + done.stderr
    holders = {path.name for path in files_with(far.folder, KEY)}
    assert holders == {".raynn-netrc"}


LOOKS_TWICE = """
import json, sys
from raynn.connection import connected, look_through
client, _ = connected(sys.argv[1])
asked = {"packages": ["torch", "docopt"]}
for environment in ({}, {"pip": ["docopt==0.6.2"]}):
    nodes = look_through(client, asked, environment)["nodes"]
    print(json.dumps([[node["packages"][name] for name in asked["packages"]] for node in nodes]))
"""


def test_a_package_for_one_job_by_pip(far: Cluster) -> None:
    # in a process of its own: Ray asks its environment for a token once, when it is loaded
    command = [sys.executable, "-c", LOOKS_TWICE, far.url]
    done = subprocess.run(command, env=far.user, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    without, having = map(json.loads, done.stdout.splitlines()[-2:])
    assert [docopt for _, docopt in without] == [None, None]
    assert [docopt for _, docopt in having] == ["0.6.2", "0.6.2"]
    assert all(torch for torch, _ in having), "what is installed on the nodes stays"


def wait_for(happened: Callable[[], bool], timeout_s: float = 240.0) -> None:
    until = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.5)


def files_with(folder: Path, text: str) -> list[Path]:
    found = subprocess.run(["grep", "-rl", text, str(folder)], capture_output=True, text=True, check=False).stdout
    return [Path(line) for line in found.splitlines()]
