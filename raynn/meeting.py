"""Work that takes each worker another time, while the others wait for it; and errors that one of them meets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from raynn import errors
from raynn.collectives import Workers
from raynn.errors import RaynnError

EVERY_S = 10.0  # far below `resources.timeout_s`, after which a collective that waits is taken for one that hangs
DONE, GOING, FAILED = 0.0, 1.0, 2.0


@contextmanager
def meeting(workers: Workers) -> Iterator[Callable[[], None]]:
    """Gives what to call between two pieces of the work. The workers then meet every 10 s until all have done, and
    where one raises an error that is the user's to mend, all raise it: an error that one of them alone returned would
    leave the others waiting for it.

    Raises:
        RaynnError: what the first of them raised.
    """
    if workers.count == 1:
        yield lambda: None
        return
    met = time.monotonic()

    def meet() -> None:
        nonlocal met
        if time.monotonic() - met >= EVERY_S:
            if workers.max(GOING) == FAILED:
                raise _ElsewhereError
            met = time.monotonic()

    own, state = "", GOING
    try:
        yield meet
    except _ElsewhereError:
        state = FAILED
    except RaynnError as error:
        own = f"{type(error).__name__}\n{error}"
    while state == GOING:
        state = workers.max(FAILED if own else DONE)
    if state == FAILED:
        name, _, text = workers.first_text(own).partition("\n")
        raise getattr(errors, name, RaynnError)(text)


class _ElsewhereError(Exception):
    """Another worker has failed."""
