"""Groups of workers that shrink, grow, move and start anew, on clusters of several nodes: the losses stay the same."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from nodes import Training, add_node, drain, node_of, nodes, train_workers, wait_until

from raynn.capacity import Room
from raynn.errors import ResourceError
from raynn.job import Job
from raynn.restarts import Patience, held
from raynn.trainer import train

# Small steps, so that training does not enlarge the rounding of another number of workers beyond 1e-5.
JOB: dict[str, Any] = {
    "name": "digits",
    "data": {"train": "digits", "target": "label", "test": 0.1},
    "network": {"kind": "cnn", "channels": [64, 128], "head_hidden": [64]},  # slow enough to be struck
    "regularization": {"dropout": 0.2},
    "optimization": {"global_batch_size": 8, "max_epochs": 24, "learning_rate": 1e-6},
    "early_stopping": {"rule": "none"},
    "report": False,
    "resources": {"workers": 2, "timeout_s": 30},
}


def with_resources(**resources: Any) -> dict[str, Any]:
    return JOB | {"resources": JOB["resources"] | resources}


@pytest.mark.cluster
def test_room_and_what_asks_for_more(ray_cluster: None, tmp_path: Path) -> None:
    assert [held(Room(1, cpus, 0.0)) for cpus in (1, 2, 3, 5)] == [4, 2, 1, 0]
    assert held(Room(1, 1, 0.5)) == 0
    job = with_resources(workers={"min": 5, "max": 8}) | {"storage": str(tmp_path)}
    with pytest.raises(
        ResourceError, match=r"resources\.workers\.min = 5 asks for 5 workers .* the cluster can hold 4"
    ):
        train(Job.from_dict(job))


@pytest.mark.slow
@pytest.mark.cluster
def test_patience_ends(ray_cluster: None) -> None:
    """Without room for long enough the main thread hears it, wherever it waits; with room it is left alone."""
    with Patience(Room(4, 1, 0.0), wait_s=0.4):
        time.sleep(1.0)
    patience = Patience(Room(5, 1, 0.0), wait_s=0.4)
    with patience, pytest.raises(KeyboardInterrupt):
        time.sleep(20.0)
    assert patience.found == 4


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_goes_and_another_comes(tmp_path: Path) -> None:
    """Two workers, one, two again: the losses of one worker undisturbed, in this process."""
    straight = Training(with_resources(workers=1), tmp_path / "straight", None)
    with nodes(2) as cluster:
        training = Training(with_resources(workers={"min": 1, "max": 2}), tmp_path / "struck", cluster.address)
        training.wait_for(3)
        first = train_workers()
        assert len(first) == 2
        cluster.remove_node(node_of(cluster, first[0]), allow_graceful=False)
        wait_until(lambda: len(set(train_workers()) - set(first)) == 1, 120)
        training.wait_for(training.epochs() + 2)
        add_node(cluster)
        wait_until(lambda: len(set(train_workers()) - set(first)) >= 2, 120)
        assert training.ended() == 0, training.log.read_text()
    assert training.result()["workers"] == 2
    assert straight.ended() == 0
    for ours, theirs in zip(training.losses(), straight.losses(), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nodes_with_a_spare(tmp_path: Path) -> None:
    """A worker hangs, a node dies, two more are to be taken away: the losses of undisturbed workers, bit for bit."""
    with nodes(3) as cluster:
        straight = Training(JOB, tmp_path / "straight", cluster.address)
        assert straight.ended() == 0, straight.log.read_text()
        training = Training(JOB, tmp_path / "struck", cluster.address, "resources.timeout_s=20")
        training.wait_for(2)
        os.kill(train_workers()[-1], signal.SIGSTOP)
        training.wait_for(training.epochs() + 3)
        cluster.remove_node(node_of(cluster, train_workers()[-1]), allow_graceful=False)
        training.wait_for(training.epochs() + 2)
        for _ in range(2):
            add_node(cluster)
            workers = train_workers()
            going = node_of(cluster, workers[-1])
            drain(cluster, going, 300)
            wait_until(lambda before=set(workers): len(set(train_workers()) - before) == 2, 120)
            assert all(node_of(cluster, pid) is not going for pid in set(train_workers()) - set(workers))
            training.wait_for(training.epochs() + 2)
        assert training.ended() == 0, training.log.read_text()
    assert training.losses() == straight.losses()


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_too_few_nodes_for_long(tmp_path: Path) -> None:
    """No hang: what was trained is kept, and the error says what there is."""
    with nodes(2) as cluster:
        training = Training(JOB, tmp_path / "struck", cluster.address, "resources.wait_s=10")
        training.wait_for(2)
        cluster.remove_node(node_of(cluster, train_workers()[0]), allow_graceful=False)
        assert training.ended(120) == 2
    said = training.log.read_text()
    assert "the cluster has had room for 1 workers for 10 s and resources.workers = 2" in said
    assert "Traceback" not in said
    assert training.result()["status"] == "failed"
    assert list((training.run / "checkpoints").glob("epoch-*"))


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_head_is_lost(tmp_path: Path) -> None:
    """With it the command ends, in words; on another cluster it goes on."""
    with nodes(2) as cluster:
        training = Training(JOB, tmp_path / "struck", cluster.address)
        training.wait_for(3)
        cluster.remove_node(cluster.head_node, allow_graceful=False)
        assert training.ended(180) == 1
    assert training.epochs() < JOB["optimization"]["max_epochs"]
    said = training.log.read_text()
    assert "the cluster does not answer any more" in said
    assert "Traceback" not in said
    with nodes(2) as cluster:
        again = Training(JOB, tmp_path / "struck", cluster.address, "resume=true")
        assert again.ended(300) == 0, again.log.read_text()
        straight = Training(JOB, tmp_path / "straight", cluster.address)
        assert straight.ended(300) == 0, straight.log.read_text()
    assert again.losses() == straight.losses()
