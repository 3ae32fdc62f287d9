"""What a machine, a job and raynn itself hold, said before anything is trained: `raynn check`, `raynn list`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raynn.catalog import CATALOG
from raynn.collectives import gpu_names
from raynn.folder import environment
from raynn.job import Job
from raynn.lanes import Lanes
from raynn.networks import NETWORKS
from raynn.preparation import LocalDriver, split_summary
from raynn.regularization import knob_specs
from raynn.rules import RULES
from raynn.shards import free_memory_bytes
from raynn.splits import NAMES, TRAIN
from raynn.storage import open_storage
from raynn.tasks import build_model, checked, prepare_job, understand_job
from raynn.trainer import uses_ray

Answer = dict[str, Any]


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


def check_job(path: str, overrides: Sequence[str]) -> tuple[Answer, list[str]]:
    """Everything of a job but the training: reads the data, infers columns, splits, fits, builds the network.

    Raises:
        UserError: what training would raise before its first step.
    """
    job = Job.load(path, overrides)
    storage = open_storage(job.storage)
    uses_ray(job)  # raises where the driver cannot be had
    understood = understand_job(job, Path(path).parent)
    prepared = prepare_job(job, understood, LocalDriver())
    job = checked(job.model_copy(update={"task": prepared.task}), prepared)
    lanes = Lanes(prepared.encoded.num_rows(TRAIN), job.optimization.global_batch_size, job.optimization.seed)
    parameters = sum(p.numel() for p in build_model(job, prepared.preprocessing).parameters())
    targets = [spec.name for spec in prepared.preprocessing.targets]
    columns = {
        spec.name: {"kind": spec.kind, "shape": list(spec.shape), "reason": spec.reason}
        for spec in (*understood.plan.features, *prepared.preprocessing.targets)
    }
    rows = {name: prepared.encoded.num_rows(split) for split, name in NAMES.items()}
    answer = {
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
    width = max(len(name) for name in columns)
    of = f" of {', '.join(map(repr, targets))}" if targets else ""
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
        f"nothing would stop it; next: {shlex.join(['raynn', 'train', path, *overrides])}",
    ]
    return answer, lines


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
