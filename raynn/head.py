"""A Ray of a command's own on this machine, kept by a process beside it: it starts while the command loads torch.

This file is also what that process runs (`python head.py OPTIONS`), and therefore imports nothing of raynn.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

END_S = 30.0  # for Ray to end all it has started


class Head:
    """The process. It ends with the command, even one that is killed: it sees its standard input end."""

    def __init__(self, options: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        """Begins; `options` are `ray.init`'s, and `environment` is what Ray's shall be where this one is silent."""
        self.options = dict(options)
        self._said = tempfile.TemporaryFile()
        # -P: beside this file there are modules, whose names are not to hide those of others
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, json.dumps(self.options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**environment, **os.environ},
            start_new_session=True,  # Ctrl-C is the command's, which needs Ray to save what was trained
        )

    def address(self) -> str:
        """Where Ray is, once it has started.

        Raises:
            RuntimeError: it could not; its last line of words.
        """
        assert self._process.stdout is not None
        address = self._process.stdout.read().decode()
        if not address:
            self._process.wait()
            self._said.seek(0)
            raise RuntimeError(self._said.read().decode(errors="replace").strip().rpartition("\n")[2])
        return address

    def let_go(self) -> None:
        """Has it end, without waiting for that."""
        threading.Thread(target=self.end, daemon=True).start()

    def end(self) -> None:
        """Has it end, and waits for that."""
        with self._said, self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()  # and with it what it has started


def main() -> None:
    """In the process."""
    import ray

    answer = os.dup(1)
    os.dup2(2, 1)  # whatever Ray prints is no address
    ray.init(**json.loads(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes at once, they are for the command to heed
        signal.signal(number, signal.SIG_IGN)
    with suppress(BrokenPipeError), os.fdopen(answer, "w") as stream:
        stream.write(ray.get_runtime_context().gcs_address)
    sys.stdin.buffer.read()
    ray.shutdown()


if __name__ == "__main__":
    main()
