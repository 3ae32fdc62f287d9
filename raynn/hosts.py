"""Whether this process or a Ray cluster works on a job, who prepares its data, and where the tables are meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pyarrow as pa

from raynn.cache import RememberingDriver
from raynn.drivers import Driver, StreamingDriver
from raynn.encoded import EncodedBlocks, Fetch, itself
from raynn.errors import ResourceError
from raynn.job import Job
from raynn.preparation import Prepared, Understood
from raynn.problems import show
from raynn.resources import ResourcesSettings
from raynn.tasks import prepare_job

RAYS_SHARE = 0.3  # of memory, that Ray takes for its object store unless told otherwise
SMALL_BYTES = 64 * 2**20  # tables that this process prepares in less time than Ray takes to start others that could


def uses_ray(job: Job) -> bool:
    """Whether Ray trains this job: several workers, a cluster's address in the environment, or as asked."""
    if job.resources.driver == "local" and job.resources.max_workers > 1:
        raise ResourceError(
            f"resources.driver = 'local' trains one worker in this process, and resources.workers = "
            f"{asked_workers(job.resources)}; set resources.workers=1, or resources.driver=ray"
        )
    return job.resources.wants_ray(bool(os.environ.get("RAY_ADDRESS")))


def asked_workers(resources: ResourcesSettings) -> str:
    """`workers` as the job says it."""
    return show(resources.model_dump()["workers"])


@dataclass(frozen=True)
class Preparing:
    """Who prepares a job's data, and how a process comes by a block of theirs."""

    driver: Driver
    fetch: Fetch
    told: str = ""  # what it means for memory, in a line
    prepared: Callable[[], Prepared] | None = None  # where it has begun


def preparing_here(job: Job, understood: Understood) -> Preparing:
    """In this process: tables are kept where they fit."""
    from raynn.shards import free_memory_bytes

    footprint, room = understood.footprint, free_memory_bytes()
    if footprint is None:
        return Preparing(RememberingDriver(), itself)
    kept = footprint.kept(room, job.resources.preparation)
    driver = RememberingDriver() if kept else StreamingDriver()
    return Preparing(driver, itself, footprint.said(kept, "the memory that is free", room))


def expected_preparing(job: Job, understood: Understood) -> str:
    """What training will do with the tables on this machine, in a line or none: said where Ray is not started."""
    from raynn.shards import free_memory_bytes

    footprint = understood.footprint
    if footprint is None or not uses_ray(job):
        return preparing_here(job, understood).told
    if (told := _small(job, understood)) is not None:
        return told
    store_gib = job.resources.object_store_gib
    room = store_gib * 2**30 if store_gib is not None else RAYS_SHARE * free_memory_bytes()
    return footprint.said(footprint.kept(room, job.resources.preparation), "Ray's object store", room)


@contextmanager
def begun_early(job: Job, understood: Understood) -> Iterator[Preparing | None]:
    """Small tables are prepared by this process, by a thread beside the start of Ray, and put into the object store
    before they are handed out. None where Ray is to prepare them.
    """
    if (told := _small(job, understood)) is None:
        yield None
        return
    driver = RememberingDriver()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(prepare_job, job, understood, driver)
        yield Preparing(driver, itself, told, future.result)


def _small(job: Job, understood: Understood) -> str | None:
    """What is said of tables that this process prepares for Ray; None where they are large, or a way is asked for."""
    footprint = understood.footprint
    if footprint is None or footprint.table_bytes > SMALL_BYTES or job.resources.preparation != "auto":
        return None
    return f"{footprint.size()}: prepared by this process, and kept in Ray's object store until training begins"


def into_store(prepared: Prepared) -> Prepared:
    """The same with tables of this process in Ray's object store, where every worker's node finds them."""
    import ray

    encoded, refit = prepared.encoded, prepared.refit
    if not isinstance(encoded, EncodedBlocks) or not all(isinstance(block, pa.Table) for block in encoded.blocks):
        return prepared
    blocks = tuple(map(ray.put, encoded.blocks))
    again = replace(refit, blocks=blocks) if isinstance(refit, EncodedBlocks) else None
    return replace(prepared, encoded=replace(encoded, blocks=blocks), refit=again)


def preparing_on_ray(job: Job, understood: Understood) -> Preparing:
    """On the cluster that this process works on: blocks are kept in the object store where they fit."""
    import ray

    from raynn.data import RayDriver, RayStreamingDriver, fetch

    footprint, room = understood.footprint, ray.cluster_resources().get("object_store_memory", 0.0)
    if footprint is None:
        return Preparing(RayDriver(), fetch)
    kept = footprint.kept(room, job.resources.preparation)
    driver = RayDriver() if kept else RayStreamingDriver()
    return Preparing(driver, fetch, footprint.said(kept, "Ray's object store", room))
