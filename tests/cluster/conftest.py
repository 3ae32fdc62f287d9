"""One Ray cluster on this machine for all tests in this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from raynn.cluster import cluster


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One thread a process: threads that wait for each other stall on a machine that is busy with something else."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray with four logical CPUs, started by the tests and ended with them."""
    with cluster(4):
        yield
