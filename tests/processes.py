"""A function run by several gloo processes on this machine."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raynn.collectives import Workers


def run_on_workers(function: Callable[..., Any], count: int, folder: Path, *arguments: Any) -> list[Any]:
    """What `function(workers, *arguments)` returned in each of `count` processes, in rank order."""
    mp.spawn(_work, (function, count, folder, arguments), nprocs=count)
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


def _work(rank: int, function: Callable[..., Any], count: int, folder: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder / 'rendezvous'}", rank=rank, world_size=count)
    torch.save(function(Workers(rank, count), *arguments), folder / f"{rank}.pt")
    dist.destroy_process_group()


def hears_interruptions() -> None:
    """Run in a child before its program: what a shell starts in the background is deaf to Ctrl-C, its children too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
