"""What is wrong with a cluster's nodes as each of them sees data and storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raynn import probe
from raynn.errors import ResourceError

MOST_PATHS = 200  # of a source, looked for from each node
Views = Sequence[Mapping[str, Any]]


def require_shared(storage: Path | None, sources: Mapping[str, Sequence[str]]) -> None:
    """Before training: every node of the cluster that this process works on reads the data and writes the storage. One
    round of tasks, and none where there is one node.

    Raises:
        ResourceError: a node that does not answer, data it cannot read, a folder of its own in the storage's place.
    """
    if len(probe.alive_nodes()) < 2:
        return
    wanted = {key: list(paths[:: max(1, len(paths) // MOST_PATHS)]) for key, paths in sources.items()}
    views = probe.see(None if storage is None else str(storage), wanted)
    problems = [*node_problems(views), *storage_problems(views, str(storage)), *data_problems(views)]
    if problems:
        raise ResourceError("; ".join(problems))


def name_of(view: Mapping[str, Any]) -> str:
    """A node as people tell it from others."""
    return f"{view['address']} ({view['id'][:6]})"


def node_problems(views: Views) -> list[str]:
    """Nodes that answered nothing."""
    return [
        f"node {name_of(view)} {view['error']}; look at its logs, or take it out of the cluster"
        for view in views
        if view["error"]
    ]


def storage_problems(views: Views, storage: str) -> list[str]:
    """Nodes that do not see, or cannot write, the folder that runs go to."""
    answered = [view for view in views if not view["error"]]
    apart = [view for view in answered if view["storage"] in ("hidden", "lost")]
    refused = [view for view in answered if view["storage"] not in ("hidden", "lost", "shared", None)]
    problems = []
    if apart:
        problems.append(
            f"storage = {storage!r} is not one folder for all nodes: what is written there on {_where(views[0])} is "
            f"not seen on {_named(apart)}; name a folder that every node mounts (storage=/shared/runs), or train in "
            "one process with resources.workers=1 resources.driver=local"
        )
    if refused:
        problems.append(
            f"storage = {storage!r} cannot be written on {_named(refused)}: {refused[0]['storage']}; choose a folder "
            "that every node may write"
        )
    return problems


def data_problems(views: Views) -> list[str]:
    """Sources that some node cannot read."""
    keys = {key for view in views for key in view["data"]}
    problems = []
    for key in sorted(keys):
        blind = [view for view in views if key in view["data"]]
        problems.append(
            f"data.{key} cannot be read on {_named(blind)}: {blind[0]['data'][key]}; put it where every node reads it "
            f"(data.{key}=/shared/data/FILE, or a URL)"
        )
    return problems


def _named(views: Views) -> str:
    names = ", ".join(name_of(view) for view in views[:4])
    more = f" and {len(views) - 4} more" if len(views) > 4 else ""
    return f"node{'s' if len(views) > 1 else ''} {names}{more}"


def _where(view: Mapping[str, Any]) -> str:
    return f"the driver's node {name_of(view)}"
