"""What a run may use: the `resources` section. It never changes the result."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raynn.settings import Settings


class WorkerRange(Settings):
    """As many workers as there is room for, within bounds; the batches, hence the losses, are the same."""

    min: Annotated[int, Field(ge=1, description="with less room training waits, and in the end fails")]
    max: Annotated[int, Field(ge=1, description="never more, whatever room there is")]


class ResourcesSettings(Settings):
    """Workers and memory.

    `workers` is a number, or `{min: 1, max: 8}`: the group shrinks when a node goes and grows when one comes.

    `driver` auto: one worker without a cluster address trains in this process, anything else through Ray.
    `strategy` ddp: each worker has the whole network. fsdp: a part of every weight, of its gradient and moments, for
    networks that do not fit on one device; one worker has all of it, as there is nothing to share.
    `residence` auto: a worker's shard is held in memory where it fits `memory_gib` (a share of what is free
    when not given), else in a memory-mapped file on its disk; the batches are the same.

    `preparation` auto: cleaned and encoded tables are kept until the workers have their rows where they fill at most
    half of the object store (without Ray, of the memory that is free); else none is kept, and the sources are read
    again instead. Tables of up to 64 MiB the command prepares itself, while Ray starts. `object_store_gib` bounds the
    store of a Ray that is started here; a cluster's is as it is.

    `worker_memory_gib` bounds all that a worker's process holds and the system cannot take back: rows get half of what
    it leaves, and a job that would not stay within it is refused before its first step.

    `scratch` is a folder on each node's own disk for rows that do not fit in memory; by default they are in the run
    folder, which on a cluster is often across a network.
    """

    workers: Annotated[int, Field(ge=1)] | WorkerRange = 1
    gpus_per_worker: Literal["auto"] | Annotated[float, Field(ge=0.0)] = "auto"
    cpus_per_worker: Annotated[int, Field(ge=1)] | None = None
    max_failures: Annotated[int, Field(ge=0)] = 3
    driver: Literal["auto", "local", "ray"] = "auto"
    strategy: Annotated[
        Literal["ddp", "fsdp"],
        Field(description="how several workers share the network: each has all of it, or a part"),
    ] = "ddp"
    residence: Literal["auto", "memory", "disk"] = "auto"
    memory_gib: Annotated[float, Field(gt=0.0, description="what a worker's rows may take")] | None = None
    worker_memory_gib: (
        Annotated[float, Field(gt=0.0, description="what a worker's process may hold, its network and activations too")]
        | None
    ) = None
    scratch: str | None = None
    preparation: Literal["auto", "keep", "stream"] = "auto"
    object_store_gib: Annotated[float, Field(ge=0.08, description="Ray takes no smaller one")] | None = None
    timeout_s: Annotated[float, Field(gt=0.0)] = 120.0
    wait_s: Annotated[float, Field(ge=0.0, description="how long nodes that an autoscaler starts are waited for")] = (
        900.0
    )

    def wants_ray(self, has_address: bool) -> bool:
        """Whether one training goes through Ray; `has_address` if the environment names a cluster."""
        return self.driver == "ray" or (self.driver == "auto" and (self.max_workers > 1 or has_address))

    @property
    def logical_cpus(self) -> int:
        """That all workers of one training take of a Ray."""
        return self.max_workers * (self.cpus_per_worker or 1)

    @property
    def min_workers(self) -> int:
        """The fewest that train."""
        return self.workers if isinstance(self.workers, int) else self.workers.min

    @property
    def max_workers(self) -> int:
        """The most that train."""
        return self.workers if isinstance(self.workers, int) else self.workers.max
