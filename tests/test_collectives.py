from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from processes import run_on_workers

from raynn import meeting as meetings
from raynn.collectives import Workers
from raynn.errors import ResourceError
from raynn.meeting import meeting


def everything(workers: Workers) -> dict[str, Any]:
    """Each collective once, on what differs between ranks."""
    rank = workers.rank
    return {
        "sum": workers.sum(torch.tensor([[rank, 1]])).tolist(),
        "any of one": workers.any(rank == 1),
        "any of none": workers.any(False),
        "decided": workers.decided(rank + 1 / 3),
        "max": workers.max(-rank - 1 / 3),
        "gathered": workers.gathered(torch.full((2 * rank + 1, 2), float(rank))).tolist(),
        "gathered from one": workers.gathered(torch.ones(rank, 3)).tolist(),
        "first text": workers.first_text("" if rank == 0 else "a worker's word"),
        "errors of uneven work": unevenly(workers),
    }


def unevenly(workers: Workers) -> list[str]:
    """The first worker has 6 pieces of work, the second 2; then one of them, or both, fail."""
    meetings.EVERY_S = 0.0  # at every piece
    said = []
    with meeting(workers) as meet:
        for _ in range(6 if workers.rank == 0 else 2):
            meet()
    for failing in ((1,), (0,), (0, 1)):
        try:
            with meeting(workers) as meet:
                for piece in range(6 if workers.rank == 0 else 2):
                    if piece == 1 and workers.rank in failing:
                        raise ResourceError(f"worker {workers.rank} has no room")
                    meet()
        except ResourceError as error:
            said.append(str(error))
    return said


def test_two_workers_agree(tmp_path: Path) -> None:
    first, second = run_on_workers(everything, 2, tmp_path)
    assert first == second
    assert first == {
        "sum": [[1, 2]],
        "any of one": True,
        "any of none": False,
        "decided": 1 / 3,  # in float64
        "max": -1 / 3,
        "gathered": [[0.0, 0.0]] + [[1.0, 1.0]] * 3,
        "gathered from one": [[1.0, 1.0, 1.0]],
        "first text": "a worker's word",
        "errors of uneven work": ["worker 1 has no room", "worker 0 has no room", "worker 0 has no room"],
    }


def test_one_worker_needs_no_group() -> None:
    alone, x = Workers(), torch.ones(3)
    assert alone.sum(x) is x
    assert alone.gathered(x) is x
    assert (alone.any(True), alone.any(False)) == (True, False)
    assert (alone.decided(2.5), alone.max(-1.5)) == (2.5, -1.5)
