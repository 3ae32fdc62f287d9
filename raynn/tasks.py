"""What a job's task asks of its data and its network: which preparation, which columns, which settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from functools import partial
from pathlib import Path

import torch

from raynn.columns import ColumnSpec
from raynn.corpus import prepare_corpus, understand_corpus
from raynn.drivers import Driver
from raynn.errors import DataError, JobError, did_you_mean
from raynn.job import Job
from raynn.lanes import Lanes
from raynn.metrics import Task, quantities_of
from raynn.networks import NETWORKS
from raynn.networks.forecasting import Forecaster
from raynn.preparation import Prepared, Understood, prepare, understand
from raynn.preprocessing import Preprocessing
from raynn.regularization import misuse
from raynn.series import prepare_series, understand_series
from raynn.sharding import uncuttable
from raynn.sources import DataSettings
from raynn.splits import NAMES, TEST, TRAIN, VALIDATION
from raynn.stopping import monitors

# Keys of `data` that only some tasks have.
_FORECASTING, _WINDOWS = ("forecasting",), ("forecasting", "language_modeling")
KEYS_OF_TASKS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("time", "series", "horizon", "known", "calendar"), _FORECASTING),
    **dict.fromkeys(("window_normalization", "channels"), _FORECASTING),
    **dict.fromkeys(("window", "stride"), _WINDOWS),
}


def task_of(job: Job) -> Task | None:
    """The task, from the job alone; None where the target's values tell classification from regression."""
    if job.task is not None:
        return job.task
    tasks = NETWORKS[job.network.kind].tasks
    if len(tasks) == 1:
        return tasks[0]
    if job.data.time or job.data.horizon:
        return "forecasting"
    return "language_modeling" if job.data.window else None


def understand_job(job: Job, folder: Path) -> Understood:
    """Finds the sources and infers the columns, as the task reads them.

    Raises:
        JobError: a key that the task needs is missing.
        DataError: a source, a column or the target is not there, or of a kind that cannot be.
    """
    task = task_of(job)
    if task == "forecasting":
        return understand_series(job.data, folder)
    if task == "language_modeling":
        _check_reads_windows(job)
        return understand_corpus(job.data, folder)
    if task == "image_generation":
        return understand(job.data, folder, kinds=("image",))
    if not job.data.targets:
        raise DataError("data.target is missing: name the column to predict, for instance `target: label`")
    if len(job.data.targets) > 1:
        raise DataError(
            f"data.target names {len(job.data.targets)} columns, which forecasting alone can predict together; name "
            "one, or set data.time and data.horizon"
        )
    return understand(job.data, folder, any_length=NETWORKS[job.network.kind].any_length)


def prepare_job(
    job: Job, understood: Understood, driver: Driver, preprocessing: Preprocessing | None = None
) -> Prepared:
    """Reads, cleans, splits, fits and encodes, as the task does it; with `preprocessing` nothing is fitted.

    Raises:
        DataError: too many bad rows, a split or class that cannot be, labels that training never saw.
    """
    task, seed = task_of(job), job.optimization.seed
    if task == "forecasting":
        return prepare_series(understood, driver, preprocessing, job.refit)
    if task == "language_modeling":
        return prepare_corpus(understood, driver, preprocessing, job.refit)
    return prepare(understood, task, seed, driver, preprocessing, job.refit)


def build_model(job: Job, preprocessing: Preprocessing) -> torch.nn.Module:
    """The network of a job, its initial weights a function of the seed."""
    torch.manual_seed(job.optimization.seed)
    network, inputs, knobs = NETWORKS[job.network.kind], preprocessing.input_spec, job.regularization.peak()
    if inputs.task == "forecasting":
        build = partial(network.build, job.network, regularization=knobs)
        return Forecaster(build, inputs, job.data.window_normalization, independent=job.data.channels == "independent")
    return network.build(job.network, inputs, knobs)


def checked(job: Job, prepared: Prepared) -> Job:
    """The job itself, if its network and metric can be had for these data.

    Raises:
        JobError: they cannot.
        DataError: a global batch larger than the training rows.
    """
    Lanes(prepared.encoded.num_rows(TRAIN), job.optimization.global_batch_size, job.optimization.seed)
    kinds = {spec.kind for spec in prepared.preprocessing.features}
    if prepared.task not in ("forecasting", "language_modeling"):  # whose networks read windows alone
        _check_features(job.network.kind, prepared.preprocessing.features)
    # built and forgotten, so that what cannot be built is said before there is a run folder
    model = build_model(job.model_copy(update={"task": prepared.task}), prepared.preprocessing)
    if job.resources.strategy == "fsdp" and job.resources.max_workers > 1:
        _check_can_be_cut(job, model, {split: prepared.encoded.num_rows(split) for split in (VALIDATION, TEST)})
    _check_keys(job, prepared.task, kinds)
    known = [f"{split}/{quantity}" for split in ("train", "val") for quantity in quantities_of(prepared.task)]
    recorded = [k for k in known if k == "train/loss" or k.startswith("val/")]
    if prepared.task == "classification" and prepared.preprocessing.input_spec.num_outputs != 2:
        recorded.remove("val/auroc")
    if getattr(job.network, "architecture", None) == "flow_matching":
        recorded.remove("val/bits_per_dim")  # it has no likelihood
    for name, monitor in monitors(job.early_stopping):
        if monitor not in recorded:
            raise JobError(
                f"{name} = {monitor!r} is not recorded by this {prepared.task} job."
                f"{did_you_mean(monitor, recorded)} Recorded: {', '.join(recorded)}"
            )
    any_length = prepared.preprocessing.input_spec.any_length
    reason = misuse(job.regularization, job.network.kind, job.network, prepared.task, kinds, any_length)
    if reason:
        raise JobError(reason)
    return job


def _check_can_be_cut(job: Job, model: torch.nn.Module, rows: Mapping[int, int]) -> None:
    """That the weights can be cut over the workers, and that each has a row to show the network when it is evaluated,
    which takes all of them.
    """
    if (name := uncuttable(model)) is not None:
        raise JobError(
            f"resources.strategy = 'fsdp' cuts every weight along its first axis, and the network's {name!r} is a "
            "single number without one; make it a vector of one, torch.ones(1), or use strategy: ddp"
        )
    for split, num_rows in rows.items():
        if 0 < num_rows < job.resources.max_workers:
            raise JobError(
                f"resources.strategy = 'fsdp' needs a {NAMES[split]} row on each worker, and there are {num_rows} rows "
                f"for {job.resources.max_workers} workers; use fewer workers, more rows, or strategy: ddp"
            )


def _check_keys(job: Job, task: Task, kinds: Set[str]) -> None:
    """That no key of `data` is of another task or of columns that are not there."""
    for key, tasks in KEYS_OF_TASKS.items():
        value = getattr(job.data, key)
        if task not in tasks and value != DataSettings.model_fields[key].default:
            raise JobError(f"data.{key} = {value!r} is for {' and '.join(tasks)}, and the task is {task}: remove it")
    for key in ("tokens", "vocabulary", "max_tokens"):
        value = getattr(job.data, key)
        if "text" not in kinds and value != DataSettings.model_fields[key].default:
            raise JobError(
                f"data.{key} = {value!r} is for text, and the features are {', '.join(sorted(kinds))}: remove it, or "
                "set `data.columns: {NAME: text}`"
            )


def _check_reads_windows(job: Job) -> None:
    """That the network can be a language model, where data.window says that it is one."""
    if "language_modeling" not in NETWORKS[job.network.kind].tasks:
        able = [kind for kind, spec in NETWORKS.items() if "language_modeling" in spec.tasks and kind != "custom"]
        raise JobError(
            f"data.window = {job.data.window} without data.time and data.horizon is language modeling, and "
            f"network.kind = {job.network.kind!r} is for {' and '.join(NETWORKS[job.network.kind].tasks)}; name the "
            f"column that orders the steps in data.time, or use network.kind: {' or '.join(able)}"
        )


def _check_features(network_kind: str, features: Sequence[ColumnSpec]) -> None:
    """That the network has the columns it needs, and takes all there are."""
    network = NETWORKS[network_kind]
    kinds = {spec.kind for spec in features}
    if network.needs and not kinds & set(network.needs):
        needs = " or ".join(f"an {kind}" if kind[0] in "aeiou" else f"a {kind}" for kind in network.needs)
        raise JobError(
            f"network.kind = {network_kind!r} needs {needs} column, and the features are {', '.join(sorted(kinds))}; "
            "use network.kind: feedforward, or declare a column's kind in data.columns"
        )
    for spec in features:
        if spec.kind not in network.inputs:
            raise JobError(
                f"network.kind = {network_kind!r} takes {', '.join(network.inputs)} columns, and {spec.name!r} is "
                f"{spec.kind}; set `data.columns: {{{spec.name}: ignore}}`, or use network.kind: feedforward"
            )
