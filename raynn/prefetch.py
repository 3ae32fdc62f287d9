"""Batches gathered ahead: the next ones are made by a thread while the one before them is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Made = TypeVar("Made")
DEPTH = 2  # batches that are ready or in the making, beside the one that is worked on


def made_ahead(make: Callable[[Item], Made], items: Iterable[Item], device: torch.device) -> Iterator[Made]:
    """`make` of each item, in order; what it raises is raised where its result would have come. Items are taken by the
    caller's thread, at most DEPTH of them ahead of it, and made by one other, so that nothing waits for a caller that
    stops early.
    """
    waiting: deque[Future[Made]] = deque()
    initializer = None if device.type != "cuda" else lambda: torch.cuda.set_device(device)
    with ThreadPoolExecutor(1, "prefetch", initializer) as thread:
        try:
            for item in items:
                waiting.append(thread.submit(make, item))
                if len(waiting) > DEPTH:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for each in waiting:
                each.cancel()
