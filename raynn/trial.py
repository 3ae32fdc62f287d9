"""What a Tune actor runs: one trial after another, an epoch a step, on data that all actors of a node share."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raynn import progress
from raynn.cache import RememberingDriver
from raynn.encoded import Encoded, itself
from raynn.errors import RaynnError
from raynn.folder import read_result
from raynn.job import Job
from raynn.loop import Record
from raynn.preparation import Prepared
from raynn.shards import Shard, as_arrays, from_arrays
from raynn.stopping import decide
from raynn.tasks import build_model, prepare_job, understand_job
from raynn.training import Assignment, Shards, run_training

POLL_S = 0.2  # between looks at whether a group of workers has failed


@dataclass(frozen=True)
class SharedData:
    """A job's prepared data as trials take them: in the object store, read in place, or as blocks for many workers."""

    key: str
    preprocessing_json: str
    train: Any = None  # references to PlainShard
    validation: Any = None
    test: Any = None  # only where trials are to be measured on it
    encoded: Encoded | None = None

    @classmethod
    def of(cls, job: Job, prepared: Prepared, shards: Shards | None) -> SharedData:
        """A job's data, put into the object store; without shards, which are of one worker, as blocks."""
        key, preprocessing = preparation_key(job), prepared.preprocessing.to_json()
        if shards is None:
            return cls(key, preprocessing, encoded=prepared.encoded)
        placed = (shards.train.shard, shards.validation, shards.test)
        return cls(key, preprocessing, *(None if shard is None else ray.put(as_arrays(shard)) for shard in placed))


def preparation_key(job: Job) -> str:
    """Equal for jobs whose prepared data are the same: same sources, columns, splits and task."""
    parts = [job.data.model_dump(mode="json"), job.task, job.optimization.seed, job.network.kind]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class TrialActor(tune.Trainable):  # type: ignore[misc]
    """Runs the trial that its config names, from its run folder's newest checkpoint on; then the next, in the same
    process.

    The config has `job` (JSON), `folder` (the trial's run folder), `told` (epochs the search knows of already) and
    `counts` (whether each record is to say how many parameters the network has, as an objective), `all` (whether the
    trial is measured on the training rows and on the test set in the end).
    A step's result has `record` (JSON) and `last` (whether the trial's own rule ends it there); at the end, `done`,
    `status` and `reason`.
    """

    def setup(self, config: dict[str, Any], shared: SharedData | None = None, threads: int = 1) -> None:
        """Once per actor."""
        import torch

        assert shared is not None
        torch.set_num_threads(threads)
        self.shared = shared
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.data: dict[str, tuple[str, Shard, Shard, Shard | None]] = {}  # by preparation: preprocessing, each split
        self.records: Generator[Record, None, None] | None = None
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Another trial, or this one again after a pause."""
        self._leave()
        self.job = Job.model_validate_json(new_config["job"])
        self.folder = Path(new_config["folder"])
        self.told = int(new_config["told"])
        self.measures_all = bool(new_config["all"])
        self.counts, self.parameters = bool(new_config["counts"]), 0
        self.history: list[Record] = []
        return True

    def step(self) -> dict[str, Any]:
        """One epoch, or the end."""
        try:
            if self.records is None:
                self.records = self._begun()
            record = next(self.records, None)
            if record is None:
                self.records = None
                result = read_result(self.folder)
                return {"done": True, "status": result["status"], "reason": result["stop_reason"]}
            counted = {"parameters": self.parameters} if self.parameters else {}
            return {"record": json.dumps(record | counted), "last": self._is_last(record)}
        except Exception as error:  # whatever a trial's settings break is that trial's failure, and the search goes on
            self.records = None
            if _is_a_loss(error):
                raise  # Tune begins the trial again, from its newest checkpoint
            reason = str(error) if isinstance(error, RaynnError) else f"{type(error).__name__}: {error}"
            return {"done": True, "status": "failed", "reason": reason}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a trial's state is in its run folder."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing, likewise."""

    def cleanup(self) -> None:
        """The actor ends."""
        self._leave()

    def _leave(self) -> None:
        """Ends the trial that was run, wherever it stands."""
        if getattr(self, "records", None) is not None:
            self.records.close()  # type: ignore[union-attr]
        self.records = None

    def _begun(self) -> Generator[Record, None, None]:
        many = self.job.resources.workers > 1
        key = preparation_key(self.job)
        if many:
            preprocessing_json, encoded = self._blocks(key)
        elif key not in self.data:
            self.data = {key: self._placed(key)}  # the one before is let go
        if not many:
            preprocessing_json, train, validation, test = self.data[key]
        assignment = Assignment(
            self.job.model_dump_json(),
            preprocessing_json,
            str(self.folder),
            time.time(),
            self.told,
            tests=self.measures_all,
            measures_train=self.measures_all,
        )
        if self.counts:
            model = build_model(self.job, assignment.preprocessing)
            self.parameters = sum(weights.numel() for weights in model.parameters())
        if many:
            return _group(assignment, encoded)
        return _alone(assignment, train, validation, test, self.device)

    def _blocks(self, key: str) -> tuple[str, Encoded]:
        """Encoded blocks in the object store, for a group of workers."""
        if key == self.shared.key:
            assert self.shared.encoded is not None
            return self.shared.preprocessing_json, self.shared.encoded
        from raynn.data import RayDriver

        prepared = _prepared(self.job, RayDriver())
        return prepared.preprocessing.to_json(), prepared.encoded

    def _placed(self, key: str) -> tuple[str, Shard, Shard, Shard | None]:
        """The rows of each split for one worker: those that all trials share, or this trial's own."""
        if key == self.shared.key and self.shared.train is not None:
            train, validation, test = (
                None if kept is None else from_arrays(ray.get(kept), self.device)
                for kept in (self.shared.train, self.shared.validation, self.shared.test)
            )
            assert train is not None
            assert validation is not None
            return self.shared.preprocessing_json, train, validation, test
        from raynn.collectives import Workers
        from raynn.data import fetch
        from raynn.placement import place_shards

        if key == self.shared.key:
            assert self.shared.encoded is not None
            preprocessing_json, encoded = self.shared.preprocessing_json, self.shared.encoded
            of_block: Callable[[Any], Any] = fetch
        else:
            prepared = _prepared(self.job, RememberingDriver())
            preprocessing_json, encoded = prepared.preprocessing.to_json(), prepared.encoded
            of_block = itself
        scratch = self.folder / "scratch"
        workers, tests = Workers(device=self.device), self.measures_all
        shards = place_shards(encoded, of_block, self.job, workers, 1, scratch, tests)
        return preprocessing_json, shards.train.shard, shards.validation, shards.test

    def _is_last(self, record: Record) -> bool:
        """Whether the trial's own stopping rule, or its number of epochs, ends it here."""
        epoch = int(record["epoch"])
        if len(self.history) + 1 != epoch:  # resumed, or another's weights: begin with what is kept
            path = self.folder / "metrics.jsonl"
            lines = path.read_text().splitlines()[: epoch - 1]
            kept: list[dict[str, float | None]] = [json.loads(line) for line in lines]
            # null stands for NaN
            self.history = [{k: math.nan if v is None else v for k, v in each.items()} for each in kept]
        self.history.append(record)
        job = self.job.after(len(self.history) - 1)
        stopped = decide(job.early_stopping, self.history).stop
        return stopped or len(self.history) >= job.optimization.max_epochs


def _is_a_loss(error: Exception) -> bool:
    """Whether a process, a node or what it held is gone: nothing that a trial's settings have to do with."""
    return isinstance(error, RayError) and not isinstance(error, RayTaskError)


def _prepared(job: Job, driver: Any) -> Prepared:
    return prepare_job(job, understand_job(job, Path()), driver)


def _alone(
    assignment: Assignment, train: Shard, validation: Shard, test: Shard | None, device: Any
) -> Generator[Record, None, None]:
    """The records of a trial trained in this process."""
    from raynn.batches import TrainingShard
    from raynn.collectives import Workers
    from raynn.lanes import Lanes

    optimization = assignment.job.optimization
    lanes = Lanes(train.num_rows, optimization.global_batch_size, optimization.seed)
    try:
        shards = Shards(TrainingShard(train, lanes), validation, test)
        yield from run_training(assignment, shards, Workers(device=device))
    finally:
        (Path(assignment.folder) / progress.FILE).unlink(missing_ok=True)


def _group(assignment: Assignment, encoded: Encoded) -> Generator[Record, None, None]:
    """The records of a trial trained by a group of workers, one epoch ahead of whoever reads them and no more.

    Closed, it sends the workers home and returns once Ray Train has freed what they held.
    """
    from raynn.trainer import fit_workers
    from raynn.worker import Gate

    assert assignment.told is not None
    # Ray puts what asks for nothing on any node; on this one it cannot be lost alone
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    gate = Gate.options(scheduling_strategy=here).remote(assignment.told)  # type: ignore[attr-defined]
    errors: list[BaseException] = []

    def fit() -> None:
        try:
            fit_workers(assignment, encoded, gate)
        except BaseException as error:
            errors.append(error)

    workers = threading.Thread(target=fit, daemon=True)
    workers.start()
    try:
        yield from _through(gate, workers)
    finally:
        with suppress(RayActorError):  # it has died: whoever waits there learns it from Ray
            ray.get(gate.close.remote())
        workers.join()
        ray.kill(gate)
        shutil.rmtree(Path(assignment.folder) / "scratch", ignore_errors=True)
        (Path(assignment.folder) / progress.FILE).unlink(missing_ok=True)
    if errors:
        raise errors[0]


def _through(gate: Any, workers: threading.Thread) -> Iterator[Record]:
    """Records as they arrive at the gate, each let through when the next is asked for; ends with the workers."""
    arriving = gate.next.remote()
    while True:
        done, _ = ray.wait([arriving], timeout=POLL_S)
        if done:
            record = ray.get(arriving)
            yield record
            ray.get(gate.open.remote(int(record["epoch"])))
            arriving = gate.next.remote()
        elif not workers.is_alive():
            return
