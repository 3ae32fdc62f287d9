"""Whether a cluster is ready for a job: what is right, worth knowing or wrong, a line each, before anything is sent."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from raynn.capacity import Room, most_workers, shortage
from raynn.catalog import CATALOG
from raynn.job import Job
from raynn.nodes import data_problems, name_of, node_problems, storage_problems
from raynn.probe import HEAD
from raynn.tracking import SERVER
from raynn.upload import MOST_BYTES, Upload

Seen = Mapping[str, Any]  # what probe.look answers
SMALL_SHM_FRACTION = 0.95  # of the object store: Ray then keeps objects on disk, which is many times slower


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    about: str
    state: Literal["ok", "note", "wrong"]
    text: str

    def __str__(self) -> str:
        return f"{self.state:<5}  {self.about:<9}  {self.text}"


def asked_of(job: Job) -> dict[str, Any]:
    """What the nodes of a cluster are asked about a job; its relative sources go along with it."""
    server = urlsplit(SERVER).hostname
    return {
        "packages": packages(),
        "storage": None if "://" in job.storage or not Path(job.storage).is_absolute() else job.storage,
        "data": {key: there for key, entries in sources(job).items() if (there := [*filter(_is_there, entries)])},
        "name": job.name,
        "wandb_host": server,
    }


def packages() -> list[str]:
    """raynn, and what it cannot run without."""
    try:
        required = importlib.metadata.requires("raynn") or []
    except importlib.metadata.PackageNotFoundError:  # a clone on the path
        required = ["ray", "torch", "pyarrow", "numpy", "pandas", "pydantic", "safetensors"]
    return ["raynn", *(re.split(r"[^\w.-]", text)[0] for text in required if "extra ==" not in text)]


def sources(job: Job) -> dict[str, tuple[str, ...]]:
    """Files, folders, globs and URLs by the key under `data`; data sets of the catalog need none."""
    found = {}
    for key in ("train", "validation", "test"):
        source = getattr(job.data, key)
        entries = (source,) if isinstance(source, str) else source if isinstance(source, tuple) else ()
        if kept := tuple(entry for entry in entries if entry not in CATALOG):
            found[key] = kept
    return found


def _is_there(entry: str) -> bool:
    """Whether a source is where the cluster has it, rather than in the upload."""
    return "://" in entry or Path(entry).is_absolute()


def findings_here(job: Job, job_file: Path, folder: Path, upload: Upload) -> Iterator[Finding]:
    """What can be said without the cluster: the upload, and what the job expects in it."""
    folder = folder.absolute()
    mib, most = upload.num_bytes / 2**20, MOST_BYTES / 10**6
    parts = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in upload.largest())
    size = f"{len(upload.files)} files, {mib:.1f} MiB of {folder}; the most of it: {parts or 'nothing'}"
    if upload.num_bytes > MOST_BYTES:
        remedy = f"more than the {most:g} MB that Ray takes; list in .rayignore what the job does not need"
        yield Finding("upload", "wrong", f"{size}: {remedy}")
    else:
        yield Finding("upload", "ok", size)
    if not upload.holds(job_file.relative_to(folder)):
        yield Finding(
            "job file",
            "wrong",
            f"{job_file.relative_to(folder)} is left out of the upload by .rayignore or .gitignore; take it out there, "
            "or move the job file",
        )
    for key, entries in sources(job).items():
        for entry in entries:
            if not _is_there(entry) and not _goes_along(entry, job_file, folder, upload):
                yield Finding(
                    "data",
                    "wrong",
                    f"data.{key} = {entry!r} is relative, and not in the upload; give the path that the cluster's "
                    f"nodes have (data.{key}=/shared/data/{Path(entry).name}), a URL, or let it go along: .rayignore",
                )
    if "://" not in job.storage and not Path(job.storage).is_absolute():
        yield Finding(
            "storage",
            "wrong",
            f"storage = {job.storage!r} is relative: on the cluster it would lie in the job's upload, which goes away; "
            "give a folder that all its nodes mount, for instance storage=/shared/runs",
        )


def _goes_along(entry: str, job_file: Path, folder: Path, upload: Upload) -> bool:
    """Whether a relative source is in the upload; of one with a wildcard, the folder before it."""
    wild = re.search(r"[*?\[]", entry)
    entry = entry[: entry.rfind("/", 0, wild.start()) + 1] or "." if wild else entry
    for start in (folder, job_file.parent):
        path = Path(start / entry)
        if path.exists() and path.resolve().is_relative_to(folder.resolve()):
            relative = path.resolve().relative_to(folder.resolve())
            if relative == Path() or upload.holds(relative):
                return True
    return False


def findings_there(job: Job, seen: Seen, *, tune: bool, carries_raynn: bool, passes_key: bool) -> Iterator[Finding]:
    """What the cluster says. `carries_raynn`: the upload brings it; `passes_key`: W&B's key goes with the job."""
    nodes = seen["nodes"]
    yield from _version_findings(seen, carries_raynn)
    if problems := node_problems(nodes):
        yield from (Finding("nodes", "wrong", text) for text in problems)
    else:
        yield Finding("nodes", "ok", f"all {len(nodes)} answer" if len(nodes) > 1 else "the one node answers")
    if there := asked_of(job)["data"]:
        yield from _judged(
            "data", data_problems(nodes), f"{', '.join(map('data.{}'.format, there))}: read on every node"
        )
    if asked_of(job)["storage"]:
        right = f"{job.storage}: written on every node" + (", seen from every other" if len(nodes) > 1 else "")
        yield from _judged("storage", storage_problems(nodes, job.storage), right)
    yield _room_finding(job, seen, tune)
    yield from _wandb_findings(job, seen, passes_key)


def _judged(about: str, problems: list[str], right: str) -> Iterator[Finding]:
    yield from (Finding(about, "wrong", text) for text in problems)
    if not problems:
        yield Finding(about, "ok", right)


def _version_findings(seen: Seen, carries_raynn: bool) -> Iterator[Finding]:
    answered = [node for node in seen["nodes"] if not node["error"]]
    versions: dict[str, set[str | None]] = {"python": {node["python"] for node in answered}}
    for node in answered:
        for name, version in node["packages"].items():
            versions.setdefault(name, set()).add(version)
    problems = []
    if missing := [n for n, found in versions.items() if None in found and not (n == "raynn" and carries_raynn)]:
        bare = [node for node in answered if any(node["packages"][name] is None for name in missing)]
        problems.append(
            f"{', '.join(missing)} not installed on node{'s' if len(bare) > 1 else ''} "
            f"{', '.join(map(name_of, bare[:4]))}; install it in the nodes' image, or for this job with "
            "--pip requirements.txt (docs/clusters.md, Dependencies)"
        )
    for name in ("python", "ray", "torch", *(() if carries_raynn else ("raynn",))):
        if len(found := {v for v in versions.get(name, ()) if v}) > 1:
            problems.append(f"{name} is {' and '.join(sorted(found))} on different nodes; install one everywhere")
    here = {"python": platform.python_version()} | {name: _version_here(name) for name in ("ray", "torch", "raynn")}
    there = {name: next(iter(versions.get(name, ())), None) for name in here}
    if carries_raynn:
        there["raynn"] = here["raynn"]
    told = ", ".join(f"{name} {version or 'none'}" for name, version in there.items())
    told += " (raynn goes along)" if carries_raynn else ""
    other = [f"{name} {here[name]}" for name in here if there[name] and here[name] and here[name] != there[name]]
    if other and not problems:
        yield Finding("versions", "note", f"{told}; here {', '.join(other)}: figures may differ in the last digits")
    else:
        yield from _judged("versions", problems, told)


def _version_here(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _room_finding(job: Job, seen: Seen, tune: bool) -> Finding:
    nodes = [{"CPU": n["cpus"], "GPU": n["gpus"]} | ({HEAD: 1.0} if n["head"] else {}) for n in seen["nodes"]]
    totals = {key: sum(node[key] for node in nodes) for key in ("CPU", "GPU")}
    trials = job.search.concurrent_trials if tune and job.search is not None else 1
    room = Room.of(job.resources, totals, trials if isinstance(trials, int) else 1)
    if (reason := shortage(room, nodes, seen["autoscaler"])) is not None:
        return Finding("resources", "wrong", reason)
    now = sum(room.on(node) for node in nodes)
    if now >= room.workers:
        return Finding("resources", "ok", f"{room}: the cluster holds {now} such")
    if most_workers(room, nodes, seen["autoscaler"]) is None:
        text = f"{room}: the cluster holds {now} such, and its autoscaler does not say what it can add; the job waits"
        return Finding("resources", "note", f"{text} for {job.resources.wait_s:g} s (resources.wait_s)")
    return Finding("resources", "ok", f"{room}: the cluster holds {now} such, its autoscaler adds the others")


def _wandb_findings(job: Job, seen: Seen, passes_key: bool) -> Iterator[Finding]:
    settings = job.tracking.wandb
    if settings is None or settings.mode in ("disabled", "offline"):
        return
    if passes_key:
        text = "the key goes with the job, as a file that whoever holds the cluster's token can read"
        yield Finding("W&B", "note", text)
    elif seen["wandb_key"]:
        yield Finding("W&B", "ok", "the driver's node has a key")
    else:
        remedy = (
            "set WANDB_API_KEY in the environment of the cluster's nodes, or pass it from yours with --pass-wandb-key"
        )
        if settings.mode == "online":
            yield Finding("W&B", "wrong", f"tracking.wandb.mode = 'online' and the driver's node has no key; {remedy}")
        else:
            yield Finding("W&B", "note", f"no key on the driver's node: the run is written offline; {remedy}")


def cluster_lines(seen: Seen) -> list[str]:
    """A cluster in words: its nodes, and what is odd about them."""
    nodes = seen["nodes"]
    cpus, gpus = (sum(node[key] for node in nodes) for key in ("cpus", "gpus"))
    lines = [f"{len(nodes)} node{'s' if len(nodes) != 1 else ''}, {cpus:g} CPUs, {gpus:g} GPUs; Ray {seen['ray']}"]
    for node in nodes:
        head = " (head)" if node["head"] else ""
        if node["error"]:
            lines.append(f"  {name_of(node)}{head}: {node['error']}")
            continue
        versions = ", ".join(f"{name} {node['packages'].get(name) or 'none'}" for name in ("torch", "raynn"))
        shm = node["shm_bytes"]
        shown = "none" if shm is None else f"{shm / 2**30:.1f} GiB"
        memory_gib, store_gib = node["memory_bytes"] / 2**30, node["object_store_bytes"] / 2**30
        lines.append(
            f"  {name_of(node)}{head}: {node['cpus']:g} CPUs, {node['gpus']:g} GPUs, {memory_gib:.1f} GiB of memory, "
            f"object store {store_gib:.1f} GiB, /dev/shm {shown}; Python {node['python']}, {versions}"
        )
        if shm is not None and shm < node["object_store_bytes"] * SMALL_SHM_FRACTION:
            lines.append(
                "    /dev/shm is smaller than the object store, which is then on disk, and slow: give the container "
                "more (docker run --shm-size, or an emptyDir of medium Memory)"
            )
    adds = seen["autoscaler"]
    if adds is None:
        lines.append("no autoscaler")
    elif adds["groups"] is None:
        lines.append("an autoscaler that does not say what it can add")
    else:
        lines.append("autoscaler: " + ", ".join(f"{g['most']} x {g['name']} {g['resources']}" for g in adds["groups"]))
    return lines
