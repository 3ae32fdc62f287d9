"""What a Ray cluster is, and what each of its nodes sees: one task a node, all at once.

Imported by raynn, and also sent to a cluster as a script before anything of the user's goes there, where it reads
asked.json beside it and prints what it saw. So it needs Python and Ray, and nothing of raynn.
"""

from __future__ import annotations

import importlib.metadata
import json
import netrc
import os
import platform
import re
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import Any

MARK = "RAYNN-PROBE "  # begins the line that is the answer
NODE_TIMEOUT_S = 60.0  # a node that has not started a process by then will not train
LATE_S = 5.0  # that a file may take to be seen from another node
ASKED = "asked.json"
HEAD = "node:__internal_head__"


def look(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Everything about the cluster that this process is connected to.

    `asked`: packages, their names; storage, a folder or null; data, paths by the settings that name them; name, of the
    run; wandb_host. Each may be left out.
    """
    import ray

    storage = asked.get("storage")
    return {
        "python": platform.python_version(),
        "ray": ray.__version__,
        "nodes": see(storage, asked.get("data") or {}, asked.get("packages") or (), asked.get("wandb_host")),
        "wandb_key": has_key(str(asked.get("wandb_host"))),
        "autoscaler": autoscaler(),
        "run": newest_run(Path(storage), asked["name"]) if storage and asked.get("name") else None,
    }


def alive_nodes() -> list[dict[str, Any]]:
    """Ray's own record of the nodes that are up and can hold work, the driver's first."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    able = [n for n in nodes if n["NodeID"] == here or n["Resources"].get("CPU") or n["Resources"].get("GPU")]
    return sorted(able, key=lambda node: (node["NodeID"] != here, node["NodeManagerAddress"], node["NodeID"]))


def listens(host: str, port: int, timeout_s: float) -> bool:
    """Whether somebody takes a connection there."""
    try:
        socket.create_connection((host.strip("[]"), port), timeout_s).close()
    except OSError:
        return False
    return True


def see(
    storage: str | None,
    data: Mapping[str, Sequence[str]],
    packages: Sequence[str] = (),
    wandb_host: str | None = None,
    timeout_s: float = NODE_TIMEOUT_S,
) -> list[dict[str, Any]]:
    """What each node sees, the driver's first: one task on each, all at once.

    The driver leaves a file in `storage`, which every node looks for and leaves another beside, which the driver looks
    for. `storage` of the answer is "shared", "hidden" (the node does not see the driver's file), "lost" (the driver
    does not see the node's) or the reason why it cannot be written.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = alive_nodes()
    mark, refused = _marked(storage) if storage else (None, None)
    with _sent_by_value(), _removed_afterwards(mark):
        task = ray.remote(num_cpus=0, max_retries=0)(_see_from)
        views = [
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                node["NodeID"], str(mark) if mark else None, dict(data), list(packages), wandb_host
            )
            for node in nodes
        ]
        ray.wait(views, num_returns=len(views), timeout=timeout_s)
        seen = [_answer(node, view, timeout_s) for node, view in zip(nodes, views, strict=True)]
        for answer in seen:
            if refused:
                answer["storage"] = refused
            elif mark and answer["storage"] == "shared" and not _appears(mark / answer["id"], LATE_S):
                answer["storage"] = "lost"
    return seen


@contextmanager
def _sent_by_value() -> Iterator[None]:
    """Functions of this module go to nodes as they are, so that a node without raynn can answer, too."""
    from ray import cloudpickle

    if __name__ == "__main__":  # they do anyway
        yield
        return
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@contextmanager
def _removed_afterwards(folder: Path | None) -> Iterator[None]:
    try:
        yield
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _answer(node: Mapping[str, Any], view: Any, timeout_s: float) -> dict[str, Any]:
    """A node's view with what Ray knows of it; `error` where it gave none."""
    import ray

    resources = node["Resources"]
    known = {
        "id": node["NodeID"],
        "address": node["NodeManagerAddress"],
        "cpus": resources.get("CPU", 0.0),
        "gpus": resources.get("GPU", 0.0),
        "object_store_bytes": int(resources.get("object_store_memory", 0)),
        "head": HEAD in resources,
        "error": None,
        "storage": None,
        "data": {},
    }
    try:
        return known | dict(ray.get(view, timeout=0))
    except ray.exceptions.GetTimeoutError:
        return known | {"error": f"gave no answer in {timeout_s:g} s"}
    except Exception as error:  # whatever a node can fail with
        return known | {"error": str(error).strip().splitlines()[-1]}


def _see_from(
    node_id: str, mark: str | None, data: Mapping[str, Sequence[str]], packages: Sequence[str], wandb_host: str | None
) -> dict[str, Any]:
    """What is seen from the node that this runs on."""
    try:
        shm = os.statvfs("/dev/shm")
        shm_bytes: int | None = shm.f_frsize * shm.f_blocks
    except OSError:  # macOS has none
        shm_bytes = None
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "shm_bytes": shm_bytes,
        "storage": _storage_from(Path(mark), node_id) if mark else None,
        "data": {key: why for key, paths in data.items() if (why := _unreadable(paths))},
        "wandb_key": has_key(wandb_host) if wandb_host else False,
    }


def _marked(storage: str) -> tuple[Path | None, str | None]:
    """A new folder in `storage` with the driver's file, or why it cannot be had."""
    mark = Path(storage).expanduser().absolute() / f".raynn-nodes-{uuid.uuid4().hex[:12]}"
    try:
        mark.mkdir(parents=True)
        (mark / "driver").touch()
    except OSError as error:
        return None, error.strerror or str(error)
    return mark, None


def _storage_from(mark: Path, node_id: str) -> str:
    if not _appears(mark / "driver", LATE_S):
        return "hidden"
    try:
        with (mark / node_id).open("w") as file:
            file.write(node_id)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return "shared"


def _appears(path: Path, wait_s: float) -> bool:
    """A network file system may show another node's file a little late. Nothing is waited for where there is no
    folder of the mark's parent: that storage is another one.
    """
    until = time.monotonic() + (wait_s if path.parent.parent.is_dir() else 0.0)
    while not path.exists():
        if time.monotonic() >= until:
            return False
        time.sleep(0.2)
    return True


def _unreadable(paths: Sequence[str]) -> str | None:
    """The first of the paths that cannot be read here, and why."""
    for path in paths:
        try:
            if "://" in path:
                if not _url_exists(path):
                    return f"{path}: nothing there"
            elif not (found := [path] if os.path.exists(path) else glob(path)):
                return f"{path}: no such file or folder"
            elif not os.access(found[0], os.R_OK):
                return f"{path}: permission denied"
        except Exception as error:  # of whatever file system
            return f"{path}: {str(error).strip().splitlines()[-1]}"
    return None


def _url_exists(url: str) -> bool:
    """Of a URL with a wildcard only the folder before it is looked for."""
    import pyarrow as pa
    from pyarrow.fs import FileSystem, FileType

    url, mark, query = url.partition("?")
    wild = re.search(r"[*\[]", url)
    url = url[: url.rindex("/", 0, wild.start())] if wild else url
    try:
        files, path = FileSystem.from_uri(url + mark + query)
    except pa.ArrowInvalid:  # a scheme that pyarrow leaves to fsspec
        import fsspec

        files, path = fsspec.core.url_to_fs(url + mark + query)
        return bool(files.exists(path))
    return bool(files.get_file_info(path.rstrip("/")).type != FileType.NotFound)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def has_key(wandb_host: str) -> bool:
    """Whether a process here has a key for W&B; the key itself goes nowhere."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC", str(Path.home() / ".netrc"))).authenticators(wandb_host) is not None
    except (OSError, RuntimeError, netrc.NetrcParseError):
        return False


def newest_run(storage: Path, name: str) -> dict[str, str] | None:
    """The last run folder of that name, and whether it has `ended`, `failed` or is `unfinished`."""
    numbered = {}
    for folder in [storage / name, *storage.glob(f"{name}-*")]:
        suffix = folder.name[len(name) :].removeprefix("-") or "1"
        job = folder / "job.yaml"
        if (
            suffix.isdigit()
            and job.exists()
            and re.search(rf"(?m)^name: *['\"]?{re.escape(name)}['\"]?$", job.read_text())
        ):
            numbered[int(suffix)] = folder
    if not numbered:
        return None
    run = numbered[max(numbered)]
    try:
        status = json.loads((run / "result.json").read_text()).get("status")
    except (OSError, ValueError):
        return {"folder": str(run), "state": "unfinished"}
    return {"folder": str(run), "state": "failed" if status == "failed" else "ended"}


def autoscaler() -> dict[str, Any] | None:
    """What could be added to the cluster: `groups` of nodes (name, resources, most) and `most` of all nodes; `groups`
    is null where an autoscaler is there that does not say (KubeRay's runs beside the head). None without one.

    Ray 2.60 hands node types to its monitor alone, as a file; the head node is asked which.
    """
    import ray

    with _sent_by_value():
        task = ray.remote(num_cpus=0, resources={HEAD: 0.001}, max_retries=0)(_autoscaler_of_head)
        found: dict[str, Any] | None = ray.get(task.remote(), timeout=NODE_TIMEOUT_S)
    return found


def _autoscaler_of_head() -> dict[str, Any] | None:
    import ray
    import yaml

    port = ":" + ray.get_runtime_context().gcs_address.rpartition(":")[2]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended meanwhile
            continue
        ours = any(word.startswith("--gcs-address=") and word.endswith(port) for word in words)
        if not ours or not any(word.endswith("/monitor.py") for word in words):
            continue
        config = next((w.partition("=")[2] for w in words if w.startswith("--autoscaling-config=")), "")
        if not config:
            return None  # it only reports
        return described(yaml.safe_load(Path(config).expanduser().read_text()))
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    reports = bool(_internal_kv_get(DEBUG_AUTOSCALING_STATUS)) or "KUBERAY_GEN_RAY_START_CMD" in os.environ
    return {"groups": None, "most": None} if reports else None


def described(config: Mapping[str, Any]) -> dict[str, Any]:
    """The nodes that a launcher file lets the autoscaler add; the head is there already."""
    most = config.get("max_workers")
    groups = [
        {
            "name": name,
            "resources": {key: float(value) for key, value in (kind.get("resources") or {}).items()},
            "most": int(kind.get("max_workers", most or 0)),
        }
        for name, kind in config.get("available_node_types", {}).items()
        if name != config.get("head_node_type")
    ]
    return {"groups": groups, "most": most}


def main() -> None:
    """As a script of a job."""
    import ray

    asked = json.loads(Path(__file__).with_name(ASKED).read_text())
    ray.init(log_to_driver=False, logging_level="ERROR")
    print(MARK + json.dumps(look(asked)), flush=True)  # noqa: T201 - the log is how a job answers


if __name__ == "__main__":
    main()
