"""What each Ray Train worker runs: takes its rows, trains, reports."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from raynn.collectives import Workers
from raynn.data import fetch
from raynn.encoded import Encoded
from raynn.errors import RaynnError
from raynn.placement import place_shards
from raynn.training import Assignment, Shards, run_training

REPORT_EVERY_S = 2.0  # a report is a barrier of all workers and costs 0.1 to 0.2 s


def train_worker(config: dict[str, Any]) -> RaynnError | None:
    """The train function of Ray Train; `config` holds the assignment, the encoded blocks, and those for a refit.

    An error that is the user's to mend is returned: raised, it would be tried again `max_failures` times. Every worker
    meets it at the same place, because all decide on the same numbers.
    """
    try:
        _train(config["assignment"], config["encoded"], config["refit"])
    except RaynnError as error:
        return error
    return None


def _train(assignment: Assignment, encoded: Encoded, again: Encoded | None) -> None:
    context = ray.train.get_context()
    # Ray sets one thread a worker; the node's cores are shared out instead
    threads = assignment.job.resources.cpus_per_worker or (os.cpu_count() or 1) // context.get_local_world_size()
    torch.set_num_threads(max(1, threads))
    device = ray.train.torch.get_device()
    workers = Workers(context.get_world_rank(), context.get_world_size(), device)
    scratch = Path(assignment.folder) / "scratch" / f"worker-{workers.rank}"
    num_here = context.get_local_world_size()

    def place(encoded: Encoded, name: str = "") -> Shards:
        return place_shards(encoded, fetch, assignment.job, workers, num_here, scratch / name)

    place_refit = None if again is None else partial(place, again, "refit")
    reported_at = time.monotonic()
    record: dict[str, float] = {}
    for record in run_training(assignment, place(encoded), workers, place_refit):
        # every rank must report equally often: the first rank's clock decides
        if workers.decided(time.monotonic() - reported_at) >= REPORT_EVERY_S:
            ray.train.report(dict(record))
            reported_at = time.monotonic()
            record = {}
    if workers.decided(float(bool(record))):
        ray.train.report(dict(record))
