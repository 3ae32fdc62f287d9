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
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

START_S = 30.0  # for Ray to be there
END_S = 30.0  # for Ray to end all it has started


class Head:
    """The process. It ends with the command, even one that is killed: it sees its standard input end."""

    def __init__(self, options: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        """Begins; `options` are `num_cpus` and, if wanted, `object_store_memory` [bytes]; `environment` is what Ray's
        shall be where this one is silent.
        """
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


def _started(options: Mapping[str, Any]) -> Any:
    """Ray on this machine, as `ray.init` starts it, but for processes that here do nothing and would be waited for:
    those of the autoscaler, of workers' output (nobody prints it), and of a dashboard that is left with counting usage.
    """
    from ray._private import node, parameter
    from ray._private.authentication import authentication_token_setup as tokens

    class Node(node.Node):  # type: ignore[misc]
        def start_api_server(self, **options: Any) -> None:
            """None."""

        def start_ray_processes(self) -> None:
            """And waits until they are there, for which Ray looks once a second."""
            super().start_ray_processes()
            raylet, deadline = self.all_processes["raylet"][0].process, time.monotonic() + START_S
            while not self.get_gcs_client().get_all_node_info():
                if raylet.poll() is not None or time.monotonic() > deadline:
                    return  # Ray looks once more, and says it
                time.sleep(0.02)

    tokens.enable_token_auth_by_default()
    tokens.ensure_token_if_auth_enabled({}, create_token_if_missing=True)
    unwanted = {"include_log_monitor": False, "no_monitor": True}
    # a port of its own choice: by default it tries one for 4 s that another Ray on this machine has
    parameters = parameter.RayParams(dashboard_agent_listen_port=0, **unwanted, **options)
    return Node(parameters, head=True, shutdown_at_exit=False, ray_init_cluster=True)


def main() -> None:
    """In the process."""
    answer = os.dup(1)
    os.dup2(2, 1)  # whatever Ray prints is no address
    node = _started(json.loads(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes at once, they are for the command to heed
        signal.signal(number, signal.SIG_IGN)
    with suppress(BrokenPipeError), os.fdopen(answer, "w") as stream:
        stream.write(node.gcs_address)
    sys.stdin.buffer.read()
    node.destroy_external_storage()
    node.kill_all_processes(check_alive=False, allow_graceful=True)


if __name__ == "__main__":
    main()
