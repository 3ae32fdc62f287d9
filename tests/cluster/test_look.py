"""What a real cluster says of itself and its nodes, and room that it will never have."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import pytest

from raynn import probe
from raynn.capacity import Room, await_room
from raynn.errors import ResourceError

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]


def test_a_cluster_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (tmp_path / "a.csv").write_text("a\n")
    data = {"train": [str(tmp_path / "*.csv")], "test": [str(tmp_path / "gone.csv")], "validation": ["what://ever/x"]}
    asked = {"packages": ["torch", "no-such-package"], "storage": str(tmp_path / "runs"), "data": data, "name": "x"}
    seen = probe.look(asked | {"wandb_host": "api.wandb.ai"})
    (node,) = seen["nodes"]
    assert (seen["python"], seen["ray"], seen["autoscaler"]) == (platform.python_version(), version("ray"), None)
    assert (node["cpus"], node["head"], node["error"], node["storage"]) == (4.0, True, None, "shared")
    assert node["packages"] == {"torch": version("torch"), "no-such-package": None}
    assert node["object_store_bytes"] > 0
    assert node["shm_bytes"] > 0
    assert set(node["data"]) == {"test", "validation"}
    assert node["data"]["test"] == f"{tmp_path / 'gone.csv'}: no such file or folder"
    assert node["data"]["validation"].startswith("what://ever/x: ")
    assert seen["run"] is None
    assert list((tmp_path / "runs").iterdir()) == [], "the look leaves nothing behind"


def test_storage_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (node,) = probe.see(str(tmp_path / "file"), {})
    assert node["storage"] == "Not a directory"


def test_urls_are_looked_for_by_their_scheme(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n")
    urls = {"here": [f"file://{tmp_path}/a.csv"], "all": [f"file://{tmp_path}/*.csv"], "gone": [f"file://{tmp_path}/b"]}
    (node,) = probe.see(None, urls)
    assert node["data"] == {"gone": f"file://{tmp_path}/b: nothing there"}
    assert node["storage"] is None


def test_room_that_a_cluster_without_an_autoscaler_never_has() -> None:
    await_room(Room(4, 1, 0), wait_s=0)
    with pytest.raises(
        ResourceError, match=r"^resources\.workers = 5 asks for .* can hold 4: .* has no autoscaler; use"
    ):
        await_room(Room(5, 1, 0), wait_s=60)
    with pytest.raises(ResourceError, match=r"1 worker of 1 CPU and 1 GPU, and the cluster can hold 0"):
        await_room(Room(1, 1, 1), wait_s=60)
