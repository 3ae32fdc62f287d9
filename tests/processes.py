"""A function run by several gloo processes on this machine, and what commands that tests start run in."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raynn.collectives import Workers


def run_on_workers(function: Callable[..., Any], count: int, folder: Path, *arguments: Any) -> list[Any]:
    """What `function(workers, *arguments)` returned in each of `count` processes, in rank order."""
    # forked from a process that has torch loaded, which spawned ones would each spend seconds on
    mp.set_forkserver_preload(["torch.distributed", "raynn.loop"])
    mp.start_processes(_work, (function, count, folder, arguments), nprocs=count, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


def _work(rank: int, function: Callable[..., Any], count: int, folder: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder / 'rendezvous'}", rank=rank, world_size=count)
    torch.save(function(Workers(rank, count), *arguments), folder / f"{rank}.pt")
    dist.destroy_process_group()


# In front of a command: what a shell starts in the background is deaf to Ctrl-C, its children too.
HEARS_INTERRUPTIONS = ("env", "--default-signal=INT")


def slowly(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """An environment in which each epoch takes a moment, so that a run can be killed between two of them."""
    folder.mkdir(exist_ok=True)
    # a checkpoint is flushed to the disk file by file
    (folder / "sitecustomize.py").write_text(
        "import os, time\nflush = os.fsync\nos.fsync = lambda handle: (flush(handle), time.sleep(0.2))[0]\n"
    )
    return {**environment, "PYTHONPATH": os.pathsep.join([str(folder), environment.get("PYTHONPATH", "")])}
