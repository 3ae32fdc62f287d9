"""Azurite, Microsoft's emulator of Azure's storage, in a process of its own: `npm install --prefix build azurite`."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s3 import free_port

HERE = Path(__file__).parents[1] / "build" / "node_modules" / ".bin"
COMMAND = shutil.which("azurite-blob", path=f"{HERE}") or shutil.which("azurite-blob")
ACCOUNT = "devstoreaccount1"  # the emulator's own, and its key, which Microsoft publishes
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@contextmanager
def serving(log: Path) -> Iterator[str]:
    """The connection string of a server of its own."""
    assert COMMAND is not None
    port = free_port()
    options = ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--blobPort", str(port)]
    with log.open("wb") as file:
        process = subprocess.Popen([COMMAND, *options], stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 60
        while "successfully listens" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start: {log.read_text()}")
            time.sleep(0.1)
        endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        yield f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={endpoint};"
    finally:
        process.kill()
        process.wait()
