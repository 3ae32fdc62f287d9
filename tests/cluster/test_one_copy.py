"""The rows of a search are in memory once per node, however many trials read them."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from raynn.cache import RememberingDriver
from raynn.collectives import Workers
from raynn.encoded import itself
from raynn.job import Job
from raynn.placement import place_shards
from raynn.tasks import prepare_job, understand_job
from raynn.trial import SharedData

pytestmark = pytest.mark.cluster
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find the tests

NUM_ROWS = 200_000


@ray.remote(num_cpus=1)
class Reader:
    """What an actor of a search does with the rows that all share; then it touches each of them."""

    def read(self, shared: SharedData) -> tuple[bool, int, float]:
        """Whether the rows lie in the object store's memory, bytes that are this process's own because of them, and
        their sum.
        """
        import torch

        from raynn.shards import from_arrays

        own_before = own_bytes()
        train = from_arrays(ray.get(shared.train), torch.device("cpu"))
        total = sum(float(x.double().sum()) for x in train.tensors.values() if x.is_floating_point())
        address = next(x for x in train.tensors.values() if x.is_floating_point()).data_ptr()
        return "plasma" in mapping_of(address), own_bytes() - own_before, total


def mapping_of(address: int) -> str:
    """The line of /proc/self/maps that an address lies in."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= address < last:
            return line
    return ""


def own_bytes() -> int:
    """Memory that no other process shares, of this one."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Anonymous")))


@pytest.mark.usefixtures("ray_cluster")
def test_trials_read_the_same_memory(tmp_path: Path) -> None:
    numbers = {f"x{i}": [float((n * (i + 3)) % 1013) for n in range(NUM_ROWS)] for i in range(20)}
    pq.write_table(pa.table(numbers | {"y": [n % 2 for n in range(NUM_ROWS)]}), tmp_path / "rows.parquet")
    job = Job.from_dict(
        {"data": {"train": str(tmp_path / "rows.parquet"), "target": "y"}, "network": {"kind": "feedforward"}}
    )
    prepared = prepare_job(job, understand_job(job, tmp_path), RememberingDriver())
    shards = place_shards(prepared.encoded, itself, job, Workers(), 1, tmp_path / "scratch", tests=False)
    rows = sum(x.nbytes for shard in (shards.train.shard, shards.validation) for x in shard.tensors.values())
    free_before = ray.available_resources()["object_store_memory"]
    shared = SharedData.of(job, prepared, shards)
    readers = [Reader.remote() for _ in range(3)]  # type: ignore[attr-defined]
    found = ray.get([reader.read.remote(shared) for reader in readers])
    assert [in_store for in_store, _, _ in found] == [True] * 3
    assert len({total for _, _, total in found}) == 1
    # a sum needs some memory of its own; the rows are 20 MB
    assert all(own < rows / 2 for _, own, _ in found), found
    for reader in readers:
        ray.kill(reader)
    assert free_before - ray.available_resources().get("object_store_memory", free_before) <= 1.1 * rows
