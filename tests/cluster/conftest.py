"""One Ray cluster on this machine for all tests in this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from nodes import Training

from raynn.cluster import cluster


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray with four logical CPUs, started by the tests and ended with them."""
    with cluster(4):
        yield


@pytest.fixture(autouse=True)
def _no_training_outlives_its_test() -> Iterator[None]:
    yield
    Training.end_all()
