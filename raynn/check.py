"""What a machine, a job and raynn itself hold, said before anything is trained: `raynn check`, `raynn list`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raynn.catalog import CATALOG
from raynn.collectives import gpu_names
from raynn.connection import look_at
from raynn.folder import environment
from raynn.footprint import in_words
from raynn.hosts import expected_preparing, preparing_here, uses_ray
from raynn.job import Job
from raynn.lanes import Lanes
from raynn.networks import NETWORKS
from raynn.placement import require_scratch
from raynn.preparation import located, split_summary
from raynn.readiness import Finding, asked_of, cluster_lines, findings_here, findings_there, packages
from raynn.regularization import knob_specs
from raynn.rehearsal import Rehearsal, rehearse
from raynn.rules import RULES
from raynn.scaling import DEFAULT_LINK, Link, link_of, scaling_lines, steps, worthwhile
from raynn.sharding import weight_bytes
from raynn.shards import free_memory_bytes
from raynn.splits import NAMES, TRAIN
from raynn.storage import address_of, open_storage
from raynn.submit import require_right
from raynn.tasks import build_model, checked, prepare_job, understand_job
from raynn.upload import measured

Answer = dict[str, Any]


def check(
    address: str | None, path: str | None, overrides: Sequence[str], link: str = DEFAULT_LINK
) -> tuple[Answer, list[str]]:
    """This machine or a job; and the cluster at the address, RAY_ADDRESS by default.

    Args:
        link: what joins the workers that the estimate is for.

    Raises:
        UserError: something would fail.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if path is None:
        answer, lines = check_machine()
    elif address and address.startswith("http"):
        answer, lines = {}, []  # data and storage are the cluster's: its nodes are asked for them
    else:
        answer, lines = check_job(path, overrides, link)
    if address:
        more, found = check_cluster(address, path, overrides)
        answer, lines = answer | more, [*lines, *found]
    return answer, lines


def check_cluster(address: str, path: str | None, overrides: Sequence[str]) -> tuple[Answer, list[str]]:
    """The nodes of the cluster at an address: a dashboard's URL, or Ray's own where this is one of its nodes.

    With a job file, what of the job would fail there: submitted to the dashboard, or started on this node.

    Raises:
        ResourceError: the cluster does not answer, or something would fail.
    """
    job, submitted = Job.load(path, overrides) if path is not None else None, address.startswith("http")
    if job is not None and path is not None and not submitted:
        here = {"storage": address_of(open_storage(job.storage)), "data": located(job.data, Path(path).parent)}
        job = job.model_copy(update=here)
    seen = look_at(address, {"packages": packages()} if job is None else asked_of(job))
    answer, lines = {"nodes": seen["nodes"], "autoscaler": seen["autoscaler"]}, cluster_lines(seen)
    if job is None:
        return answer, lines
    assert path is not None
    folder = Path.cwd()
    findings: list[Finding] = []
    carries = not submitted
    if submitted and Path(path).absolute().is_relative_to(folder):
        upload = measured(folder)
        carries = "raynn/__init__.py" in upload.files
        findings += findings_here(job, Path(path).absolute(), folder, upload)
    findings += findings_there(job, seen, tune=False, carries_raynn=carries, passes_key=False)
    require_right(findings)
    return answer | {"checks": [asdict(each) for each in findings]}, [*lines, *map(str, findings)]


def check_machine() -> tuple[Answer, list[str]]:
    """Versions, cores, memory and devices of this machine."""
    gpus = gpu_names()
    found = environment(0, gpus)
    memory_gib = round(free_memory_bytes() / 2**30, 1)
    answer = {
        "python": found["python"],
        "packages": found["packages"],
        "cpus": os.cpu_count(),
        "free_memory_gib": memory_gib,
        "gpus": gpus,
        "cluster": os.environ.get("RAY_ADDRESS"),
    }
    versions = ", ".join(f"{name} {number}" for name, number in found["packages"].items() if number)
    lines = [
        f"Python {found['python']}; {versions}",
        f"{os.cpu_count()} CPUs, {memory_gib} GiB of memory free; GPUs: {', '.join(gpus) or 'none'}",
        f"cluster: {answer['cluster'] or 'none (RAY_ADDRESS is not set): several workers run on this machine'}",
    ]
    return answer, lines


def check_job(path: str, overrides: Sequence[str], link: str = DEFAULT_LINK) -> tuple[Answer, list[str]]:
    """Everything of a job but the training: reads the data, infers columns, splits, fits, builds the network, and tries
    a few steps for what they take.

    Raises:
        UserError: what training would raise before its first step.
    """
    job, over = Job.load(path, overrides), link_of(link)
    storage = open_storage(job.storage)
    uses_ray(job)  # raises where the driver cannot be had
    understood = understand_job(job, Path(path).parent)
    preparing = preparing_here(job, understood)
    prepared = prepare_job(job, understood, preparing.driver)
    job = checked(job.model_copy(update={"task": prepared.task}), prepared)
    lanes = Lanes(prepared.encoded.num_rows(TRAIN), job.optimization.global_batch_size, job.optimization.seed)
    model = build_model(job, prepared.preprocessing)
    parameters = sum(p.numel() for p in model.parameters())
    targets = [spec.name for spec in prepared.preprocessing.targets]
    columns = {
        spec.name: {"kind": spec.kind, "shape": list(spec.shape), "reason": spec.reason}
        for spec in (*understood.plan.features, *prepared.preprocessing.targets)
    }
    rows = {name: prepared.encoded.num_rows(split) for split, name in NAMES.items()}
    answer: Answer = {
        "job": job.name,
        "task": prepared.task,
        "target": targets[0] if len(targets) == 1 else targets,
        "columns": columns,
        "rows": rows,
        "bad_rows": len(prepared.bad_rows),
        "notes": list(prepared.notes),
        "network": job.network.kind,
        "parameters": parameters,
        "steps_per_epoch": lanes.steps_per_epoch,
        "lanes": lanes.count,
        "storage": str(storage),
    }
    residence = require_scratch(prepared.encoded, preparing.fetch, job, storage)
    share = weight_bytes(model, job.resources.strategy, job.resources.min_workers)
    answer["weights"] = {"strategy": job.resources.strategy, "worker_bytes": share[0], "gathered_bytes": share[1]}
    told = expected_preparing(job, understood)
    if understood.footprint is not None:
        answer["footprint"] = asdict(understood.footprint) | {"table_bytes": understood.footprint.table_bytes}
    tried = rehearse(job, prepared.preprocessing, prepared.encoded, residence, fetch=preparing.fetch)
    held = {f"{name}_bytes": size for name, size in asdict(tried.memory).items()}
    room = tried.memory.process + free_memory_bytes()
    answer["memory"] = asdict(residence) | held | {"total_bytes": tried.memory.total, "room_bytes": room}
    batch_rows = job.optimization.global_batch_size
    answer["scaling"] = _scaling(tried, over, batch_rows, lanes.count)
    size, step_s = tried.compute.points[-1]
    # not in the model: the bandwidth of a memory that several workers share
    apart = ", each on a machine of its own (on one together they gain less)" if tried.device == "cpu" else ""
    with_what = f"{tried.threads} thread{'s' if tried.threads > 1 else ''}" if tried.device == "cpu" else "a GPU"
    width = max(len(name) for name in columns)
    of = f" of {', '.join(map(repr, targets))}" if targets else ""
    too_much = _beyond(tried, room)
    lines = [f"{job.name}: {prepared.task}{of} ({prepared.task_reason})"]
    for name, spec in columns.items():
        shape = " x ".join(str(size or "any") for size in spec["shape"])  # 0: lengths may differ
        role = "target" if name in targets else f"{spec['kind']} {shape}"
        lines.append(f"  {name:<{width}}  {role:<16}  {spec['reason']}".rstrip())
    lines += [
        f"{split_summary(prepared)}, {len(prepared.bad_rows)} bad",
        *prepared.notes,
        f"{job.network.kind} with {parameters:,} parameters; {lanes.steps_per_epoch} steps an epoch of "
        f"{job.optimization.global_batch_size} rows, from {lanes.count} lanes",
        *([told] if told else []),
        str(residence),
        _weights_line(job, *share),
        str(tried.memory),
        *too_much,
        f"a step of {size} rows takes {1000 * step_s:.3g} ms here, with {with_what}",
        f"how many workers like this help{apart}:",
        *scaling_lines(tried.compute, tried.traffic, over, batch_rows, lanes.count),
        f"nothing {'else ' if too_much else ''}would stop it; next: {shlex.join(['raynn', 'train', path, *overrides])}",
    ]
    return answer, lines


def _scaling(tried: Rehearsal, over: Link, batch_rows: int, num_lanes: int) -> Answer:
    """What was measured, and what it says of more workers."""
    table = steps(tried.compute, tried.traffic, over, batch_rows, num_lanes)
    return {
        "measured": [{"rows": rows, "step_s": seconds} for rows, seconds in tried.compute.points],
        "threads": tried.threads,
        "device": tried.device,
        "gradient_bytes": tried.traffic.gradient_bytes,
        "small_sums": tried.traffic.small_sums,
        "link": asdict(over),
        "steps": [
            {
                "workers": step.workers,
                "step_s": step.seconds,
                "communication_share": step.share,
                "speedup": step.speedup,
                "efficiency": step.efficiency,
                "weak_efficiency": step.weak_efficiency,
            }
            for step in table
        ],
        "worthwhile_workers": worthwhile(table),
    }


def _beyond(tried: Rehearsal, room: int) -> list[str]:
    """What to do where one worker would hold more than this machine has for it."""
    if tried.device != "cpu" or tried.memory.total <= room:
        return []
    return [
        f"WARNING: this machine has {in_words(room)} for it. To hold less: resources.memory_gib bounds the rows, "
        "optimization.accumulate the activations, resources.strategy=fsdp on more workers the network and its moments; "
        "resources.worker_memory_gib has a job refused that would hold more"
    ]


def _weights_line(job: Job, held: int, gathered: int) -> str:
    """What a worker has of the network."""
    line = f"{held / 2**20:,.1f} MiB of weights a worker, as much for their gradient and for each moment"
    if job.resources.strategy == "fsdp" and job.resources.min_workers > 1:
        return f"{line}: a part of each (strategy: fsdp), and up to {gathered / 2**20:,.1f} MiB whole for a while"
    return f"{line}: the whole network" + (" (strategy: ddp)" if job.resources.min_workers > 1 else "")


def catalogue() -> dict[str, dict[str, str]]:
    """Names and one line on each: networks, regularizers, stopping rules with their keys and sources, data sets."""
    return {
        "networks": {name: spec.description for name, spec in NETWORKS.items()},
        "regularizers": {name: spec.about for name, spec in knob_specs().items()},
        "stopping_rules": {
            name: f"{spec.description}; keys: {', '.join(spec.keys) or 'none'} [{spec.source}]"
            for name, spec in RULES.items()
        },
        "datasets": {
            name: spec.description + (f" (target: {spec.target})" if spec.target else "")
            for name, spec in CATALOG.items()
        },
    }
