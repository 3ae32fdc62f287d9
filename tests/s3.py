"""A server that speaks S3, in a process of its own: moto's. Requests are real HTTP, and the line to it can be cut."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pyarrow.fs import FileSelector, FileType, S3FileSystem

MISSING = [name for name in ("moto", "flask", "flask_cors") if find_spec(name) is None]
needs_moto = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

KEY: Any = {"access_key": "raynn", "secret_key": "raynn"}
PLAIN: Any = {"scheme": "http", "region": "us-east-1"}
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "raynn", "AWS_SECRET_ACCESS_KEY": "raynn", "AWS_EC2_METADATA_DISABLED": "true"}


@dataclass
class Bucket:
    """A bucket of its own on the server."""

    name: str
    port: int  # of the server itself, or of the line to it

    @property
    def files(self) -> Any:
        """What looks at it past raynn."""
        return S3FileSystem(**KEY, endpoint_override=f"127.0.0.1:{self.port}", **PLAIN)

    def url(self, path: str) -> str:
        """The address of what is in it, as pyarrow writes it."""
        query = f"endpoint_override=127.0.0.1%3A{self.port}&scheme=http&region=us-east-1"
        return f"s3://{self.name}/{path}?{query}"

    def read(self, path: str) -> bytes | None:
        """An object; None where there is none."""
        try:
            with self.files.open_input_stream(f"{self.name}/{path}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def write(self, path: str, content: bytes) -> None:
        """Puts an object there."""
        with self.files.open_output_stream(f"{self.name}/{path}") as stream:
            stream.write(content)

    def upload(self, folder: Path, path: str = "") -> None:
        """All files of a folder."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.write("/".join(filter(None, [path, str(file.relative_to(folder))])), file.read_bytes())

    def names(self, path: str) -> list[str]:
        """Objects below a path, without it."""
        found = self.files.get_file_info(FileSelector(f"{self.name}/{path}", recursive=True, allow_not_found=True))
        start = len(f"{self.name}/{path}/")
        return sorted(info.path[start:] for info in found if info.type == FileType.File)


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(log: Path) -> Iterator[int]:
    """The port of a server of its own."""
    port = free_port()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=file, stderr=file
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not start: {log.read_text()}") from None
                time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


def bucket(port: int, name: str) -> Bucket:
    """A new, empty one."""
    files: Any = S3FileSystem(**KEY, endpoint_override=f"127.0.0.1:{port}", **PLAIN, allow_bucket_creation=True)
    files.create_dir(name)
    return Bucket(name, port)


class Line:
    """A line to a port that can be cut: connections are then refused and open ones end."""

    def __init__(self, port: int) -> None:
        self.target, self.port = port, free_port()
        self.held = False
        self.lock = threading.Lock()
        self.open: list[socket.socket] = []
        self.listener: socket.socket | None = None
        self.mend()

    def mend(self) -> None:
        """Lets through."""
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def hold(self) -> None:
        """Keeps connections and lets nothing through them."""
        self.held = True

    def cut(self) -> None:
        """Lets nothing through, and hangs up."""
        with self.lock:
            assert self.listener is not None
            for end in [self.listener, *self.open]:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                end.close()
            self.open.clear()
            self.listener = None

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            with self.lock:
                if self.listener is not listener:  # cut between the call and its answer
                    near.close()
                    return
                far = socket.create_connection(("127.0.0.1", self.target))
                self.open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                if not self.held:
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def environment(cache: Path) -> dict[str, str]:
    """Of a command on a machine whose copies are in `cache`."""
    return {**os.environ, **CREDENTIALS, "XDG_CACHE_HOME": str(cache)}
