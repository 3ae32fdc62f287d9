"""What is said of nodes that do not see what the others see."""

from __future__ import annotations

from typing import Any

from raynn.nodes import data_problems, node_problems, storage_problems


def view(number: int, storage: str | None = "shared", **more: Any) -> dict[str, Any]:
    return {"id": f"{number}" * 56, "address": f"10.0.0.{number}", "error": None, "storage": storage, "data": {}} | more


def test_nodes_that_see_the_same_have_no_problem() -> None:
    views = [view(1), view(2), view(3, None)]
    assert node_problems(views) == storage_problems(views, "/shared/runs") == data_problems(views) == []


def test_a_folder_of_its_own_on_a_node() -> None:
    views = [view(1), view(2, "hidden"), view(3), view(4, "lost")]
    assert storage_problems(views, "/scratch/runs") == [
        "storage = '/scratch/runs' is not one folder for all nodes: what is written there on the driver's node "
        "10.0.0.1 (111111) is not seen on nodes 10.0.0.2 (222222), 10.0.0.4 (444444); name a folder that every node "
        "mounts (storage=/shared/runs), or train in one process with resources.workers=1 resources.driver=local"
    ]


def test_a_folder_that_a_node_may_not_write() -> None:
    views = [view(1), view(2, "Read-only file system")]
    assert storage_problems(views, "/shared/runs") == [
        "storage = '/shared/runs' cannot be written on node 10.0.0.2 (222222): Read-only file system; choose a folder "
        "that every node may write"
    ]


def test_data_that_nodes_cannot_read() -> None:
    gone = {"train": "/data/a.parquet: no such file or folder"}
    views = [view(1), *(view(number, data=gone) for number in range(2, 8))]
    assert data_problems(views) == [
        "data.train cannot be read on nodes 10.0.0.2 (222222), 10.0.0.3 (333333), 10.0.0.4 (444444), 10.0.0.5 (555555) "
        "and 2 more: /data/a.parquet: no such file or folder; put it where every node reads it "
        "(data.train=/shared/data/FILE, or a URL)"
    ]


def test_a_node_without_an_answer_is_named_once() -> None:
    views = [view(1), view(2, None, error="gave no answer in 60 s")]
    assert node_problems(views) == [
        "node 10.0.0.2 (222222) gave no answer in 60 s; look at its logs, or take it out of the cluster"
    ]
    assert storage_problems(views, "/shared/runs") == []
