"""What `raynn submit` refuses before anything is sent, and how it follows a log."""

from __future__ import annotations

import io
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raynn.cli import main
from raynn.connection import connected
from raynn.errors import Detached, JobError, ResourceError, TrainingError, UserError
from raynn.job import Job
from raynn.probe import newest_run
from raynn.submit import Submission, _continued, follow, read_environment, submit

JOB = "name: flowers\ndata: {train: digits, target: label}\nnetwork: {kind: feedforward}\nstorage: /shared/runs\n"
TOKEN = "a" * 64


class Dashboard(BaseHTTPRequestHandler):
    """Answers for /api/version as Ray's dashboard does (ray 2.60: 401 without a token, 403 with a wrong one)."""

    def do_GET(self) -> None:
        sent = self.headers.get("Authorization")
        status = 401 if sent is None else 403 if sent != f"Bearer {TOKEN}" else 200
        if self.path != "/api/version":
            status = 404
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b'{"ray_version": "2.60.0", "version": "4"}' if status == 200 else b"no")

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "WANDB_API_KEY", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path


def test_an_address_where_nothing_answers() -> None:
    with pytest.raises(ResourceError) as error:
        connected("127.0.0.1:1")
    assert str(error.value) == (
        "http://127.0.0.1:1 does not answer ([Errno 111] Connection refused); is the cluster up, and the tunnel to its "
        "dashboard open (`ray dashboard CLUSTER.yaml`, `kubectl port-forward`)?"
    )


def test_an_address_of_something_else(url: str) -> None:
    with pytest.raises(
        ResourceError, match=r"answers, but not as Ray's dashboard does \(status 404\); its port is 8265"
    ):
        connected(f"{url}/elsewhere")
    with pytest.raises(ResourceError, match=r"^--address ray://head:10001 is not the URL of a dashboard; give that"):
        connected("ray://head:10001")


def test_a_dashboard_is_no_place_to_train(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    assert main(["train", "job.yaml", "storage=runs"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "raynn train: RAY_ADDRESS = 'http://127.0.0.1:8265' is a dashboard's, where jobs are submitted: raynn submit "
        "JOB.yaml --address http://127.0.0.1:8265; or unset RAY_ADDRESS to train here"
    )


def test_a_token_that_ray_would_not_send(url: str) -> None:
    with pytest.raises(ResourceError) as error:
        connected(url)
    assert str(error.value) == (
        "the cluster asks for a token, and Ray sends none unless told to: export RAY_AUTH_MODE=token; the token is "
        "taken from RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token"
    )


def test_a_token_that_is_not_there(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "gone")
    with pytest.raises(
        ResourceError, match=r"asks for a token, and gone cannot be read \(No such file or directory\); put"
    ):
        connected(url)


def test_a_token_that_is_another_cluster_s(url: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    (folder / "token").write_text("b" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
    with pytest.raises(ResourceError) as error:
        connected(url)
    assert str(error.value) == (
        f"{url} does not accept the token of {folder / 'token'}; put the cluster's own there: `ray get-auth-token` on "
        "its head prints it"
    )


def test_a_job_file_outside_of_what_is_uploaded(folder: Path) -> None:
    (folder / "inside").mkdir()
    with pytest.raises(JobError) as error:
        submit(Submission(Path("job.yaml"), (), "http://127.0.0.1:1", folder=Path("inside")), print)
    assert str(error.value) == (
        f"job.yaml is outside of {folder / 'inside'}, the folder that is uploaded; go to the folder that holds both "
        "the job file and what it needs, or name it with --working-dir"
    )


def test_a_search_that_is_not_there() -> None:
    with pytest.raises(JobError, match=r"^--tune runs the job's `search` section, and it has none: add one, or leave"):
        submit(Submission(Path("job.yaml"), (), "http://127.0.0.1:1", "tune"), print)


def test_a_key_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"^--pass-wandb-key passes WANDB_API_KEY on, and it is not set here; set it"):
        submit(Submission(Path("job.yaml"), (), "http://127.0.0.1:1", pass_wandb_key=True), print)


def test_the_command_says_what_it_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "job.yaml", "--address", "http://127.0.0.1:1", "storage=runs"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert [line[:16] for line in said.err.splitlines()[:2]] == ["ok     upload   ", "wrong  storage  "]
    assert said.err.splitlines()[2].startswith("raynn submit: http://127.0.0.1:1 does not answer")


def test_environments_for_a_job(folder: Path) -> None:
    (folder / "requirements.txt").write_text("# ours\ntorch==2.13.0  # pinned\n\npyarrow\n")
    (folder / "env.yaml").write_text("env_vars: {A: b}\n")
    assert read_environment(None, (), ()) == {}
    assert read_environment("env.yaml", ("requirements.txt", "fsspec"), ()) == {
        "env_vars": {"A": "b"},
        "pip": ["torch==2.13.0", "pyarrow", "fsspec"],
    }
    assert read_environment(None, (), ("requirements.txt",)) == {"uv": ["torch==2.13.0", "pyarrow"]}


@pytest.mark.parametrize(
    ("content", "pip", "uv", "message"),
    [
        (None, (), (), r"^--runtime-env env\.yaml cannot be read: .*; name a YAML or JSON file$"),
        ("a: [", (), (), r"^--runtime-env env\.yaml cannot be read"),
        ("- a", (), (), r"^--runtime-env env\.yaml holds no mapping; write keys as pip: \[package\]"),
        ("working_dir: x", (), (), r"^--runtime-env env\.yaml holds working_dir; name the folder .* --working-dir"),
        ("{}", ("a",), ("b",), r"^pip and uv cannot both make the job's environment; give one of them$"),
        (
            "{}",
            ("gone.txt",),
            (),
            r"^gone\.txt cannot be read: No such file or directory; name a file of requirements$",
        ),
    ],
)
def test_environments_that_cannot_be(
    folder: Path, content: str | None, pip: tuple[str, ...], uv: tuple[str, ...], message: str
) -> None:
    if content is not None:
        (folder / "env.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        read_environment("env.yaml", pip, uv)


def test_a_run_of_the_same_name(folder: Path) -> None:
    job = Job.load("job.yaml", [])
    waits, done = {"folder": "/runs/flowers", "state": "unfinished"}, {"folder": "/runs/flowers", "state": "ended"}
    assert _continued(job, ["a=1"], None, None) == (["a=1"], [])
    overrides, (finding,) = _continued(job, ["a=1"], waits, None)
    assert overrides == ["a=1", "resume=true"]
    assert (finding.state, finding.text) == ("note", "/runs/flowers is unfinished: continued (resume=true)")
    overrides, (finding,) = _continued(job, ["a=1"], done, None)
    assert overrides == ["a=1"]
    assert finding.text == "/runs/flowers has ended: this is a new run of that name"
    assert _continued(Job.load("job.yaml", ["resume=true"]), ["resume=true"], waits, None) == (["resume=true"], [])
    _, (finding,) = _continued(job, [], waits, "raysubmit_1")
    assert (finding.state, finding.text) == (
        "wrong",
        "job raysubmit_1 is running as 'flowers' already; follow it with `ray job logs raysubmit_1 --follow`, stop it "
        "with `ray job stop raysubmit_1`, or give this one another name=...",
    )


@pytest.mark.parametrize(("result", "state"), [(None, "unfinished"), ("failed", "failed"), ("finished", "ended")])
def test_the_newest_run_is_found_as_resume_finds_it(folder: Path, result: str | None, state: str) -> None:
    from raynn.folder import newest

    assert newest_run(folder, "flowers") is None
    for name, inside in (
        ("flowers", "flowers"),
        ("flowers-2", "flowers"),
        ("flowers-3", "flowers-3"),
        ("flowers-x", "y"),
    ):
        (folder / name).mkdir()
        (folder / name / "job.yaml").write_text(f"name: {inside}\n")
    if result:
        (folder / "flowers-2/result.json").write_text(f'{{"status": "{result}"}}')
    assert newest_run(folder, "flowers") == {"folder": str(newest(folder, "flowers")), "state": state}
    assert newest(folder, "flowers").name == "flowers-2"


class Client(SimpleNamespace):
    """Ray's client, of a job whose log comes in parts and whose link breaks between them."""

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        self.tries += 1
        if "interrupt" in self.parts:
            raise KeyboardInterrupt
        yield "".join(self.parts[: self.tries])  # a new link begins with all that was
        if self.tries < len(self.parts):
            raise RuntimeError("closed early")

    def get_job_info(self, job_id: str) -> SimpleNamespace:
        ended = self.tries >= len(self.parts)
        return SimpleNamespace(
            status=SimpleNamespace(value=self.status if ended else "RUNNING"),
            driver_exit_code=self.code,
            message="gone",
        )

    def stop_job(self, job_id: str) -> None:
        self.status, self.parts, self.tries = "STOPPED", ["one\n"], 0


def job(status: str = "SUCCEEDED", code: int | None = 0, parts: tuple[str, ...] = ("one\n",)) -> Client:
    return Client(status=status, code=code, parts=parts, tries=0)


def test_a_log_over_a_link_that_breaks_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raynn.submit.time.sleep", lambda seconds: None)
    log = io.StringIO()
    follow("URL", job(parts=("one\n", "two\n", "three\n")), "id", log, stop_on_interrupt=False)
    assert log.getvalue() == "one\ntwo\nthree\n"


@pytest.mark.parametrize(
    ("status", "code", "error", "message"),
    [
        ("FAILED", 2, UserError, r"^job id ended with exit status 2: its log above says what to mend$"),
        ("FAILED", 1, TrainingError, r"^job id failed: exit status 1; its log: ray job logs id --address URL$"),
        ("FAILED", None, TrainingError, r"^job id failed: gone; its log"),
        ("FAILED", 130, KeyboardInterrupt, "^$"),
        ("STOPPED", None, KeyboardInterrupt, "^$"),
    ],
)
def test_the_exit_status_is_the_job_s(status: str, code: int | None, error: type[BaseException], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        follow("URL", job(status, code), "id", io.StringIO(), stop_on_interrupt=False)
    assert raised.type is error


def test_ctrl_c_leaves_the_job_or_stops_it() -> None:
    with pytest.raises(Detached) as left:
        follow("URL", job(parts=("interrupt",)), "id", io.StringIO(), stop_on_interrupt=False)
    assert str(left.value) == (
        "detached: job id goes on\n  to come back: ray job logs id --follow --address URL\n"
        "  to stop it:   ray job stop id --address URL"
    )
    stopped = job(parts=("interrupt",))
    with pytest.raises(KeyboardInterrupt) as interrupted:
        follow("URL", stopped, "id", io.StringIO(), stop_on_interrupt=True)
    assert (interrupted.type, stopped.status) == (KeyboardInterrupt, "STOPPED")
