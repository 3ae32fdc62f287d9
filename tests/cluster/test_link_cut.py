"""A node that trains can no longer be reached: it is given up, and a spare takes its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from machines import machines, needs_root
from nodes import HEALTH, Training
from test_elastic import JOB

REACHED = {"GLOO_SOCKET_IFNAME": "eth0"}


@needs_root
@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_link_cut(tmp_path: Path) -> None:
    with machines(tmp_path, 4) as ours:
        head = "10.78.0.1:6379"
        ours.start(1, "--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false", more=HEALTH)
        for number in (2, 3, 4):
            ours.start(number, f"--address={head}", "--num-cpus=1")
        how = {"at": ours.within(1), "more": ours.environment | REACHED}
        struck = Training(JOB, tmp_path / "struck", head, **how)
        struck.wait_for(3)
        ours.cut(max(ours.that_train()))
        assert struck.ended(400) == 0, struck.log.read_text()
        straight = Training(JOB, tmp_path / "straight", head, **how)
        assert straight.ended(400) == 0, straight.log.read_text()
    assert struck.losses() == straight.losses()
