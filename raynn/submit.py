"""A job sent to a cluster: looked over first, then `ray job submit`, its log followed to its end."""

from __future__ import annotations

import asyncio
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

import yaml

from raynn.connection import ENDED, connected, look_through, requests_to
from raynn.errors import Detached, JobError, ResourceError, TrainingError, UserError
from raynn.job import Job
from raynn.readiness import Finding, asked_of, findings_here, findings_there
from raynn.tracking import SERVER
from raynn.upload import Upload, measured

AWAY_S = 300.0  # that the cluster may be away while its log is followed
NAME = "raynn"  # key of a job's name in Ray's metadata of it
KEY_FILE = ".raynn-netrc"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Submission:
    """What is asked for."""

    job_file: Path
    overrides: tuple[str, ...]
    address: str
    verb: str = "train"
    folder: Path = Path()  # what is uploaded
    runtime_env: Mapping[str, Any] | None = None  # beside the folder
    pass_wandb_key: bool = False
    quiet: bool = False


def submit(asked: Submission, say: Say) -> tuple[Any, str, list[Finding]]:
    """Looks everything over, telling `say` each finding, and starts the job.

    Returns:
        Ray's client, its id of the job, and what was found.

    Raises:
        UserError: something is wrong; nothing of the user's was sent.
    """
    folder, job_file = Path(os.path.abspath(asked.folder)), Path(os.path.abspath(asked.job_file))
    if not job_file.is_relative_to(folder):
        raise JobError(
            f"{asked.job_file} is outside of {folder}, the folder that is uploaded; go to the folder "
            "that holds both the job file and what it needs, or name it with --working-dir"
        )
    job = Job.load(str(asked.job_file), list(asked.overrides))
    if asked.verb == "tune" and job.search is None:
        raise JobError("--tune runs the job's `search` section, and it has none: add one, or leave --tune out")
    if asked.pass_wandb_key and not os.environ.get("WANDB_API_KEY"):
        raise UserError("--pass-wandb-key passes WANDB_API_KEY on, and it is not set here; set it, or leave that out")
    upload = measured(asked.folder, (asked.runtime_env or {}).get("excludes", ()))
    found: list[Finding] = []

    def note(findings: Iterator[Finding]) -> None:
        for finding in findings:
            found.append(finding)
            say(str(finding))

    note(findings_here(job, job_file, folder, upload))
    client, answered = connected(asked.address)
    note(iter(answered))
    seen = look_through(client, asked_of(job), asked.runtime_env or {})
    carries, passes = "raynn/__init__.py" in upload.files, asked.pass_wandb_key
    note(findings_there(job, seen, tune=asked.verb == "tune", carries_raynn=carries, passes_key=passes))
    overrides, about_run = _continued(job, asked.overrides, seen["run"], _running(client, job.name))
    note(iter(about_run))
    require_right(found)
    command = ["python", "-m", "raynn", asked.verb, job_file.relative_to(folder).as_posix(), *overrides]
    with requests_to(asked.address), _carried(asked, upload) as environment:
        job_id = client.submit_job(
            entrypoint=shlex.join([*command, *(["--quiet"] if asked.quiet else [])]),
            runtime_env=environment,
            metadata={NAME: job.name},
        )
    return client, str(job_id), found


def send(
    asked: Submission, say: Say, log: TextIO, *, wait: bool, stop_on_interrupt: bool
) -> tuple[dict[str, Any], str]:
    """Submits, and with `wait` follows: the answer and the last line of the command."""
    client, job_id, findings = submit(asked, say)
    answer = {"job": job_id, "address": asked.address, "checks": [asdict(finding) for finding in findings]}
    at = shlex.join(["ray", "job", "logs", job_id, "--address", asked.address])
    if not wait:
        return answer, f"job {job_id} is on its way; next: {at} --follow"
    say(f"job {job_id} is on its way; Ctrl-C {'stops it' if stop_on_interrupt else 'leaves it running'}")
    follow(asked.address, client, job_id, log, stop_on_interrupt=stop_on_interrupt)
    return answer | {"status": "succeeded"}, f"job {job_id} succeeded; its log: {at}"


def require_right(findings: Sequence[Finding]) -> None:
    """Raises:
    ResourceError: something is wrong; all of it, in one message.
    """
    wrong = [finding.text for finding in findings if finding.state == "wrong"]
    if wrong:
        raise ResourceError("\n  ".join([f"{len(wrong)} of {len(findings)} checks failed:", *wrong]))


@contextmanager
def _carried(asked: Submission, upload: Upload) -> Iterator[dict[str, Any]]:
    """Ray's runtime environment of the job, and what is uploaded, for as long as that takes.

    W&B's key goes as a file among the uploaded ones, which W&B's client is told of. In `env_vars` of the runtime
    environment it would stand in `ray job list`, in the dashboard's answers and in runtime_env_agent.log of a node
    (seen with Ray 2.60). Whoever holds the cluster's token can run code there, and find it in either place.
    """
    environment = dict(asked.runtime_env or {})
    if not asked.pass_wandb_key:
        yield environment | {"working_dir": str(asked.folder.absolute())}
        return
    server = urlsplit(os.environ.get("WANDB_BASE_URL", SERVER))
    machines = sorted({server.netloc, str(server.hostname)})  # W&B looks for the first, with its port
    told = {"NETRC": KEY_FILE} | {k: os.environ[k] for k in ("WANDB_BASE_URL",) if k in os.environ}
    with tempfile.TemporaryDirectory() as folder:
        for name in upload.files:
            link = Path(folder) / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((asked.folder / name).absolute())
        key = f"login user password {os.environ['WANDB_API_KEY']}"
        (Path(folder) / KEY_FILE).write_text("".join(f"machine {machine} {key}\n" for machine in machines))
        yield environment | {"working_dir": folder, "env_vars": dict(environment.get("env_vars", {})) | told}


def read_environment(file: str | None, pip: Sequence[str], uv: Sequence[str]) -> dict[str, Any]:
    """A runtime environment from a YAML or JSON file, with packages that pip or uv installs for the job.

    Raises:
        UserError: a file that cannot be read, or keys that do not go together.
    """
    environment: Any = {}
    if file is not None:
        try:
            environment = yaml.safe_load(Path(file).read_text())
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"--runtime-env {file} cannot be read: {error}; name a YAML or JSON file") from None
        if not isinstance(environment, dict):
            raise UserError(
                f"--runtime-env {file} holds no mapping; write keys as pip: [package] or env_vars: {{A: b}}"
            )
    if "working_dir" in environment:
        raise UserError(f"--runtime-env {file} holds working_dir; name the folder to upload with --working-dir instead")
    for name, packages in (("pip", pip), ("uv", uv)):
        if packages:
            environment[name] = [line for package in packages for line in _requirements(package)]
    if (given := sorted({"pip", "uv", "conda"} & set(environment))) and len(given) > 1:
        raise UserError(f"{' and '.join(given)} cannot both make the job's environment; give one of them")
    return environment


def _requirements(text: str) -> list[str]:
    """One requirement, or those of a file of them."""
    if not text.endswith(".txt"):
        return [text]
    try:
        lines = [line.partition(" #")[0].strip() for line in Path(text).read_text().splitlines()]
    except OSError as error:
        raise UserError(f"{text} cannot be read: {error.strerror}; name a file of requirements") from None
    return [line for line in lines if line and not line.startswith("#")]


def _continued(
    job: Job, overrides: Sequence[str], run: Mapping[str, str] | None, running: str | None
) -> tuple[list[str], list[Finding]]:
    """The overrides, with resume=true where a run of that name waits to be continued; and what is said of it."""
    given = list(overrides)
    if running is not None:
        text = (
            f"job {running} is running as {job.name!r} already; follow it with `ray job logs {running} --follow`, stop "
            f"it with `ray job stop {running}`, or give this one another name=..."
        )
        return given, [Finding("run", "wrong", text)]
    if run is None or job.resume:
        return given, []
    if run["state"] == "ended":
        return given, [Finding("run", "note", f"{run['folder']} has ended: this is a new run of that name")]
    return [*given, "resume=true"], [
        Finding("run", "note", f"{run['folder']} is {run['state']}: continued (resume=true)")
    ]


def _running(client: Any, name: str) -> str | None:
    """The job of that name that has not ended."""
    for details in client.list_jobs():
        if (details.metadata or {}).get(NAME) == name and str(details.status.value) not in ENDED:
            return str(details.submission_id)
    return None


def follow(address: str, client: Any, job_id: str, log: TextIO, *, stop_on_interrupt: bool) -> None:
    """Writes the job's log as it comes, until the job has ended.

    Raises:
        UserError: the job ended with status 2.
        TrainingError: it failed otherwise.
        Detached: Ctrl-C; the job goes on.
        KeyboardInterrupt: Ctrl-C with `stop_on_interrupt`, the job is stopped; or someone else stopped it.
    """
    told = f"--address {address}"
    try:
        details = _ended(client, job_id, log)
    except KeyboardInterrupt:
        if not stop_on_interrupt:
            raise Detached(
                f"detached: job {job_id} goes on\n  to come back: ray job logs {job_id} --follow {told}\n"
                f"  to stop it:   ray job stop {job_id} {told}"
            ) from None
        client.stop_job(job_id)
        details = _ended(client, job_id, log)
    status, code = str(details.status.value), details.driver_exit_code
    if status == "STOPPED" or code == 130:
        raise KeyboardInterrupt
    if code == 2:
        raise UserError(f"job {job_id} ended with exit status 2: its log above says what to mend")
    if status != "SUCCEEDED":
        reason = f"exit status {code}" if code is not None else str(details.message)
        raise TrainingError(f"job {job_id} failed: {reason}; its log: ray job logs {job_id} {told}")


def _ended(client: Any, job_id: str, log: TextIO) -> Any:
    """The job's details once it has ended. Its log is written meanwhile, each part once, even if the link breaks."""
    written, lost = 0, None
    while True:
        try:
            written = asyncio.run(_tail(client, job_id, log, written))
            details = client.get_job_info(job_id)
            if str(details.status.value) in ENDED:
                return details
            lost = None
        except (OSError, RuntimeError) as error:
            lost = lost or time.monotonic()
            if time.monotonic() - lost > AWAY_S:
                raise ResourceError(
                    f"the cluster has been away for {AWAY_S:g} s ({error}); job {job_id} may go on: `ray job logs "
                    f"{job_id} --follow` comes back to it"
                ) from None
        time.sleep(1.0)


async def _tail(client: Any, job_id: str, log: TextIO, written: int) -> int:
    """Writes what comes after the first `written` characters, until the link ends; returns how many there were."""
    seen = 0
    try:
        async for text in client.tail_job_logs(job_id):
            new = text[max(0, written - seen) :]
            seen += len(text)
            if new:
                log.write(new)
                log.flush()
    except RuntimeError:  # closed early; whether the job has ended is asked for next
        pass
    return max(written, seen)
