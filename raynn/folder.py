"""The run folder: claimed, described, found again. What a run leaves is plain files."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from raynn.errors import JobError, RunError, did_you_mean
from raynn.fragments import BadRow

NORMS = "norms.jsonl"  # of a run: norms of its layers, one record an epoch
STUDY = "study.json"  # of a study
WINNER = "winner"  # of a search: the run folder of its winner, where that was trained once more
PACKAGES = ("raynn", "ray", "torch", "pyarrow", "numpy", "pandas", "pydantic", "wandb")


def finite(content: Any) -> Any:
    """`content` with NaN and infinities, which JSON does not know, as null."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(finite(content), indent=2) + "\n")
    partial.replace(path)


def check_storage(storage: str) -> Path:
    """The folder that holds runs, made if need be.

    Raises:
        JobError: it cannot be written.
    """
    folder = Path(storage)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise JobError(
            f"storage = {storage!r} cannot be written: {error.strerror or error}; choose a folder you may write, "
            "for instance storage=runs"
        ) from None
    return folder.resolve()


def claim(storage: Path, name: str) -> Path:
    """A new run folder: `storage/name`, or `name-2`, `name-3`, ... where runs of that name are already."""
    number = 1
    while True:
        folder = storage / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            (folder / "checkpoints").mkdir()
            return folder


def newest(storage: Path, name: str) -> Path:
    """The last run folder of that name.

    Raises:
        RunError: there is none.
    """
    names = [folder.name for folder in storage.iterdir() if folder.is_dir()]
    return storage / newest_name(names, name, lambda run: _job_name(storage / run), str(storage))


def newest_name(names: Iterable[str], name: str, job_name: Callable[[str], str | None], storage: str) -> str:
    """The last of the run folders of that name.

    Args:
        names: of the folders there are.
        name: of the job.
        job_name: of a folder's job; None where it says none.
        storage: where they are, as the user knows it.

    Raises:
        RunError: there is none.
    """
    numbered, others = {}, []
    for run in names:
        suffix = run[len(name) :].removeprefix("-") or "1"
        if (run == name or run.startswith(f"{name}-")) and suffix.isdigit() and job_name(run) in (name, None):
            numbered[int(suffix)] = run
        else:
            others.append(run)
    if not numbered:
        near = did_you_mean(name, [run for run in others if job_name(run) is not None])
        raise RunError(
            f"resume = true, but {storage} holds no run named {name!r}; run without resume=true to start one.{near}"
        )
    return numbered[max(numbered)]


def _job_name(run: Path) -> str | None:
    """The name of the job that a run folder was made for: `a-2` is the second run of `a`, or the first of `a-2`."""
    description = run / "job.yaml"
    return job_name_in(description.read_text()) if description.exists() else None


def job_name_in(job_yaml: str | bytes) -> str:
    """The name in a job.yaml."""
    return str((yaml.safe_load(job_yaml) or {}).get("name"))


def _nearest_run(storage: Path, name: str) -> str:
    return did_you_mean(name, [p.name for p in storage.iterdir() if (p / "job.yaml").exists()])


def check_run(folder: Path) -> Path:
    """`folder` itself, if it is a run folder.

    Raises:
        RunError: it is not there, or not a run folder.
    """
    if not folder.exists():
        near = _nearest_run(folder.parent, folder.name) if folder.parent.is_dir() else ""
        raise RunError(f"there is no run folder {folder}.{near} `raynn train JOB.yaml` makes one")
    if not (folder / "job.yaml").exists():
        raise RunError(f"{folder} is not a run folder: it holds no job.yaml; name a folder that `raynn train` made")
    return folder


def read_result(folder: Path) -> dict[str, Any]:
    """result.json of a run that ended.

    Raises:
        RunError: the run has not ended.
    """
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    except ValueError as error:
        raise RunError(f"{folder / 'result.json'} is damaged ({error}); restore it, or train again") from None
    except FileNotFoundError:
        raise RunError(
            f"{folder} has no result.json: the run has not ended; continue it with its job file and resume=true"
        ) from None
    return result


def write_bad_rows(path: Path, rows: Iterable[BadRow]) -> None:
    """Quarantined rows, one JSON object a line; no file where there are none, not even an earlier one."""
    lines = [json.dumps(row.to_json()) + "\n" for row in rows]
    if lines:
        path.write_text("".join(lines))
    else:
        path.unlink(missing_ok=True)


def describe(folder: Path, job_yaml: str, seed: int, gpus: list[str], bad_rows: Iterable[BadRow]) -> dict[str, Any]:
    """Writes what a run folder holds before the first step; returns what environment.json says."""
    found = environment(seed, gpus)
    (folder / "job.yaml").write_text(job_yaml)
    write_json(folder / "environment.json", found)
    write_bad_rows(folder / "bad_rows.jsonl", bad_rows)
    return found


def environment(seed: int, gpus: list[str]) -> dict[str, Any]:
    """Versions, machine and its GPUs, git commit of the current folder, seed."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "processor": processor_name(),
        "gpus": gpus,
        "packages": {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
        "seed": seed,
    }


def processor_name() -> str:
    """What the processor calls itself; of systems that do not tell, its architecture."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
