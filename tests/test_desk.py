"""How many trials run at a time on a cluster, and what each is given."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raynn.desk import Decisions, Desk, Slots
from raynn.desk import slots_for as slots_for_trials
from raynn.errors import ResourceError
from raynn.job import Job
from raynn.ledger import FILE, Ledger
from raynn.tuner import director_of


def job(search: dict[str, Any] | None = None, **resources: Any) -> Job:
    return Job.from_dict(
        {
            "data": {"train": "rows.parquet", "target": "y"},
            "network": {"kind": "feedforward"},
            "resources": resources,
            "search": {"space": {"regularization.dropout": {"uniform": [0.0, 0.5]}}, **(search or {})},
        }
    )


def slots_for(job: Job, available: dict[str, float]) -> Slots:
    assert job.search is not None
    return slots_for_trials(job.resources, job.search.concurrent_trials, job.search.trials, available=available)


@pytest.mark.parametrize(
    ("resources", "cluster", "concurrent", "gpus"),
    [
        ({}, {"CPU": 8}, 8, 0.0),
        ({"cpus_per_worker": 3}, {"CPU": 8}, 2, 0.0),
        ({"workers": 3}, {"CPU": 8}, 2, 0.0),
        ({}, {"CPU": 8, "GPU": 2}, 2, 1.0),
        ({"gpus_per_worker": 0.5}, {"CPU": 8, "GPU": 2}, 4, 0.5),
        ({"gpus_per_worker": 0.4}, {"CPU": 8, "GPU": 2}, 4, 0.4),  # of one GPU two whole trials
        ({"gpus_per_worker": 0.1}, {"CPU": 8, "GPU": 2}, 8, 0.1),  # the CPUs are fewer
        ({"gpus_per_worker": 0}, {"CPU": 8, "GPU": 2}, 8, 0.0),
        ({"workers": 2, "gpus_per_worker": 1}, {"CPU": 64, "GPU": 7}, 3, 1.0),
    ],
)
def test_as_many_trials_as_the_cluster_holds(
    resources: dict[str, Any], cluster: dict[str, float], concurrent: int, gpus: float
) -> None:
    slots = slots_for(job(**resources), cluster)
    assert (slots.concurrent, slots.gpus) == (concurrent, gpus)


def test_no_more_than_asked_for_and_no_more_than_there_are_trials() -> None:
    assert slots_for(job({"concurrent_trials": 3}), {"CPU": 8}).concurrent == 3
    assert slots_for(job({"trials": 2}), {"CPU": 8}).concurrent == 2


def test_threads_are_those_of_the_cpus_asked_for() -> None:
    assert slots_for(job(cpus_per_worker=4), {"CPU": 8}) == Slots(cpus=4.0, gpus=0.0, concurrent=2, threads=4)


@pytest.mark.parametrize(
    ("search", "resources", "message"),
    [
        ({}, {"workers": 9}, "1 trial at a time with resources.workers = 9, cpus_per_worker = 1 and 0 GPUs a worker"),
        ({"concurrent_trials": 5}, {"workers": 2}, "5 trials at a time with resources.workers = 2"),
        ({}, {"gpus_per_worker": 1}, "need more than the cluster's 8 CPUs and 0 GPUs; use fewer workers"),
    ],
)
def test_too_small_a_cluster_is_refused(search: dict[str, Any], resources: dict[str, Any], message: str) -> None:
    with pytest.raises(ResourceError) as caught:
        slots_for(job(search, **resources), {"CPU": 8})
    assert message in str(caught.value)


class Controller:
    """What is asked of Tune's."""

    def __init__(self) -> None:
        self.statuses: list[str] = []
        self._actor_cache = self

    def increase_max(self, kind: Any, number: int) -> None:
        """Of actors kept."""

    def _set_trial_status(self, trial: Any, status: str) -> None:
        self.statuses.append(status)


@pytest.mark.parametrize("status", ["cut", "paused", "finished"])
def test_only_a_running_trial_begins_again_when_its_process_dies(status: Any, tmp_path: Path) -> None:
    """Tune begins each again; one that was cut or paused just before would train on."""
    slots, controller = Slots(1.0, 0.0, 1, 1), Controller()
    desk = Desk(director_of(job(), Ledger(tmp_path / FILE), slots), tmp_path, job(), {})
    trial = desk.next()
    assert trial is not None
    decisions, of_tune = Decisions(desk, slots), SimpleNamespace(config=desk.config(trial), placement_group_factory="")
    decisions.on_trial_add(controller, of_tune)
    decisions.on_trial_add(controller, of_tune)  # its process died
    assert controller.statuses == []
    desk.director.ledger.become(trial, status)
    decisions.on_trial_add(controller, of_tune)
    assert controller.statuses == ["PAUSED"], "where it stays until it is to go on, or the search is over"
