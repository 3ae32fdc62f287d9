"""A machine whose clock is wrong, by libfaketime in all of its processes: the losses are the same, and so are times."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from machines import machines, needs_root
from nodes import HEALTH, Training
from test_elastic import JOB as LONG

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
JOB = LONG | {"network": {"kind": "feedforward", "hidden": [32]}}
REACHED = {"GLOO_SOCKET_IFNAME": "eth0"}


@needs_root
@pytest.mark.skipif(LIBRARY is None, reason="Debian's package faketime is not installed")
@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("wrong", ["+3600", "-3600"], ids=["ahead", "behind"])
def test_a_machine_whose_clock_is_an_hour_off(tmp_path: Path, wrong: str) -> None:
    turned = {"LD_PRELOAD": str(LIBRARY), "FAKETIME": wrong, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    found = []
    for name, clock in (("right", {}), ("turned", turned)):
        # a short path: Ray's sockets are below it
        with TemporaryDirectory(prefix="raynn-") as folder, machines(Path(folder), 3) as ours:
            head = "10.78.0.1:6379"
            ours.start(1, "--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false", more=HEALTH)
            ours.start(2, f"--address={head}", "--num-cpus=1")
            ours.start(3, f"--address={head}", "--num-cpus=1", more=clock)
            training = Training(JOB, tmp_path / name, head, at=ours.within(1), more=ours.environment | REACHED)
            assert training.ended(400) == 0, training.log.read_text()
        found.append(training)
    right, other = found
    assert other.losses() == right.losses()
    result = other.result()
    assert 0 < result["seconds_to_first_step"] < result["seconds"] < 400
