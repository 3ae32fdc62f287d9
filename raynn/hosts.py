"""Whether this process or a Ray cluster works on a job, and what that means for its tables."""

from __future__ import annotations

import os
from dataclasses import dataclass

from raynn.cache import RememberingDriver
from raynn.drivers import Driver, StreamingDriver
from raynn.encoded import Fetch, itself
from raynn.errors import ResourceError
from raynn.job import Job
from raynn.preparation import Understood
from raynn.problems import show
from raynn.resources import ResourcesSettings

RAYS_SHARE = 0.3  # of memory, that Ray takes for its object store unless told otherwise


def uses_ray(job: Job) -> bool:
    """Whether Ray trains this job: several workers, a cluster's address in the environment, or as asked."""
    if job.resources.driver == "auto":
        return job.resources.max_workers > 1 or bool(os.environ.get("RAY_ADDRESS"))
    if job.resources.driver == "local" and job.resources.max_workers > 1:
        raise ResourceError(
            f"resources.driver = 'local' trains one worker in this process, and resources.workers = "
            f"{asked_workers(job.resources)}; set resources.workers=1, or resources.driver=ray"
        )
    return job.resources.driver == "ray"


def asked_workers(resources: ResourcesSettings) -> str:
    """`workers` as the job says it."""
    return show(resources.model_dump()["workers"])


@dataclass(frozen=True)
class Preparing:
    """Who prepares a job's data, and how a process comes by a block of theirs."""

    driver: Driver
    fetch: Fetch
    told: str = ""  # what it means for memory, in a line


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
    store_gib = job.resources.object_store_gib
    room = store_gib * 2**30 if store_gib is not None else RAYS_SHARE * free_memory_bytes()
    return footprint.said(footprint.kept(room, job.resources.preparation), "Ray's object store", room)


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
