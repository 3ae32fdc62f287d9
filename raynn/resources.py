"""What a run may use: the `resources` section. It never changes the result."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raynn.settings import Settings


class ResourcesSettings(Settings):
    """Workers and memory.

    `driver` auto: one worker without a cluster address trains in this process, anything else through Ray.
    `residence` auto: a worker's shard is held in memory where it fits `memory_gib` (a share of what is free
    when not given), else in a memory-mapped file on its disk; the batches are the same.
    """

    workers: Annotated[int, Field(ge=1)] = 1
    gpus_per_worker: Literal["auto"] | Annotated[float, Field(ge=0.0)] = "auto"
    cpus_per_worker: Annotated[int, Field(ge=1)] | None = None
    max_failures: Annotated[int, Field(ge=0)] = 3
    driver: Literal["auto", "local", "ray"] = "auto"
    residence: Literal["auto", "memory", "disk"] = "auto"
    memory_gib: Annotated[float, Field(gt=0.0)] | None = None
    timeout_s: Annotated[float, Field(gt=0.0)] = 120.0
    wait_s: Annotated[float, Field(ge=0.0, description="how long nodes that an autoscaler starts are waited for")] = (
        900.0
    )
