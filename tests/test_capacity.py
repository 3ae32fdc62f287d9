"""Room for workers: what fits on nodes and on those an autoscaler may add, and what is said where it never will."""

from __future__ import annotations

from typing import Any

import pytest

from raynn.capacity import Room, most_workers, shortage
from raynn.probe import HEAD, described
from raynn.resources import ResourcesSettings

HEAD_NODE = {"CPU": 2.0, HEAD: 1.0}
WORKER_NODE = {"CPU": 4.0, "GPU": 1.0}
LAUNCHER: dict[str, Any] = {
    "max_workers": 3,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 2}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 4}, "max_workers": 2},
        "gpu": {"resources": {"CPU": 8, "GPU": 1}},
    },
}


def room(workers: int, cpus: float = 1, gpus: float = 0) -> Room:
    return Room(workers, cpus, gpus)


@pytest.mark.parametrize(
    ("cpus", "gpus", "fits"),
    [(1, 0, 4), (3, 0, 1), (5, 0, 0), (1, 1, 1), (1, 0.25, 4), (0.1, 0, 40)],
)
def test_a_worker_is_never_split_over_nodes(cpus: float, gpus: float, fits: int) -> None:
    assert room(1, cpus, gpus).on(WORKER_NODE) == fits


def test_what_a_launcher_file_lets_the_autoscaler_add() -> None:
    assert described(LAUNCHER) == {
        "groups": [
            {"name": "cpu", "resources": {"CPU": 4.0}, "most": 2},
            {"name": "gpu", "resources": {"CPU": 8.0, "GPU": 1.0}, "most": 3},
        ],
        "most": 3,
    }


@pytest.mark.parametrize(
    ("asked", "most"),
    [
        (room(1), 2 + 3 * 8),  # the head, and three of the larger nodes: max_workers = 3 of all
        (room(1, 3), 3 * 2),  # none on the head; 8 CPUs hold two of 3
        (room(1, 1, 1), 3),
        (room(1, 16), 0),
    ],
)
def test_what_there_could_ever_be(asked: Room, most: int) -> None:
    assert most_workers(asked, [HEAD_NODE], described(LAUNCHER)) == most
    assert most_workers(asked, [HEAD_NODE, {"CPU": 8.0, "GPU": 1.0}], described(LAUNCHER)) == most, "it is of a group"


def test_nodes_beyond_the_launcher_file_count_as_they_are() -> None:
    assert most_workers(room(1), [HEAD_NODE, {"CPU": 100.0}], described(LAUNCHER)) == 102


def test_an_autoscaler_that_does_not_say_may_add_anything() -> None:
    silent = {"groups": None, "most": None}
    untold = {"groups": [{"name": "auto", "resources": {}, "most": 1}], "most": 1}
    for autoscaler in (silent, untold):
        assert most_workers(room(99), [HEAD_NODE], autoscaler) is None
        assert shortage(room(99), [HEAD_NODE], autoscaler) is None


def test_without_an_autoscaler_the_cluster_is_what_it_is() -> None:
    assert shortage(room(2), [HEAD_NODE], None) is None
    assert shortage(room(3), [HEAD_NODE], None) == (
        "resources.workers = 3 asks for 3 workers of 1 CPU each, and the cluster can hold 2: it has 2 CPUs, 0 GPUs on "
        "1 node, and it has no autoscaler; use fewer workers, or a larger cluster"
    )


def test_the_message_says_what_the_autoscaler_can_add() -> None:
    assert shortage(room(4, 1, 1), [HEAD_NODE, WORKER_NODE], described(LAUNCHER)) == (
        "resources.workers = 4 asks for 4 workers of 1 CPU and 1 GPU each, and the cluster can hold 3: it has 6 CPUs, "
        "1 GPUs on 2 nodes, and its autoscaler adds at most 2 cpu of 4 CPUs and 0 GPUs, 3 gpu of 8 CPUs and 1 GPUs, 3 "
        "nodes in all; use fewer workers, or a larger cluster"
    )


def test_trials_at_a_time_are_named() -> None:
    asked = Room.of(ResourcesSettings(workers=2, cpus_per_worker=3), {"CPU": 4}, 5)
    assert (asked.workers, asked.cpus, asked.gpus) == (10, 3, 0)
    assert str(shortage(asked, [HEAD_NODE], None)).startswith(
        "5 trials at a time with resources.workers = 2 ask for 10 workers of 3 CPUs each, and the cluster can hold 0"
    )


def test_gpus_are_taken_where_there_are_enough() -> None:
    two = ResourcesSettings(workers=2)
    assert Room.of(two, {"CPU": 8, "GPU": 2}).bundle == {"CPU": 1.0, "GPU": 1.0}
    assert Room.of(two, {"CPU": 8, "GPU": 1}).bundle == {"CPU": 1.0}
    assert Room.of(ResourcesSettings(gpus_per_worker=0.5), {"CPU": 8}).gpus == 0.5
