from __future__ import annotations

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
    faults = {
        way: int(subprocess.run([sys.executable, "-c", SCRIPT, way], capture_output=True, text=True, check=True).stdout)
        for way in ("kept", "given back")
    }
    assert faults["kept"] < 100
    assert faults["given back"] > 5 * 6 * (16 << 20) / 4096 / 2, "nothing to mend: is mallopt still needed?"
