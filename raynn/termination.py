"""What a process does when it is told to end."""

from __future__ import annotations

import signal
import threading
from types import FrameType


def heed_termination() -> None:
    """SIGTERM, as clusters send it before they take a machine, does what Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        answer = signal.getsignal(signal.SIGINT)
        if not callable(answer):  # a program begun in the background is deaf to Ctrl-C
            raise KeyboardInterrupt
        answer(number, frame)

    in_main = threading.current_thread() is threading.main_thread()
    if in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, interrupt)
