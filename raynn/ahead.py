"""What will be asked for next, made by threads while what was asked for before is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def made_ahead(
    make: Callable[[Item], Made],
    items: Iterable[Item],
    depth: int,
    threads: int = 1,
    initializer: Callable[[], None] | None = None,
) -> Iterator[Made]:
    """`make` of each item, in order; what it raises is raised where its result would have come. Items are taken by the
    caller's thread, at most `depth` of them ahead of it, and made by others, so that nothing waits for a caller that
    stops early.
    """
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(threads, "ahead", initializer) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for each in waiting:
                each.cancel()
