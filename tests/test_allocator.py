from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from raynn.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()

def step():
    activations = [torch.ones(4 << 20) for _ in range(6)]  # 16 MiB each

for _ in range(4):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_a_step_frees_the_next_one_finds() -> None:
    """Where glibc would give everything back: by itself it does so or not, as small blocks happen to lie."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}

    def faults(way: str) -> int:
        command = [sys.executable, "-c", SCRIPT, way]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    assert faults("given back") >= 5 * 6 * (16 << 20) / 4096
    assert faults("kept") < 100
