"""Job: what a job file says, as one value. Load, override, check, write back, fingerprint, schema."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path as FilePath
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, Field, JsonValue

from raynn.ablation import StudySettings, study_problems
from raynn.checkpoint import CheckpointSettings
from raynn.errors import JobError, RunError
from raynn.jobfile import Document, dump
from raynn.lanes import MAX_LANES, lane_count
from raynn.metrics import Task, metric_problem
from raynn.networks import NETWORKS, NetworkSettings, defaults_for
from raynn.optimization import OptimizationSettings
from raynn.problems import Path, Problem, problems_in, show, split
from raynn.regularization import RegularizationSettings
from raynn.resources import ResourcesSettings
from raynn.rules import RuleSettings
from raynn.search import SearchSettings
from raynn.searchable import Searched, search_problems, within
from raynn.settings import Settings
from raynn.sources import DataSettings
from raynn.space import Space
from raynn.stopping import EarlyStoppingSettings, monitors, rule_problems, unused_keys
from raynn.tracking import TrackingSettings

# Sections and keys that say where and how a job runs, not what comes out.
NOT_THE_RESULT = ("name", "resources", "checkpoints", "tracking", "report", "storage", "resume", "search", "study")

# What a search may not vary, and why; of a whole section, or of one key.
_SAME_ROWS = "every trial is scored on the same rows and the same target"
NOT_SEARCHED: dict[str, str] = {
    **dict.fromkeys(NOT_THE_RESULT, "it never changes the result"),
    **dict.fromkeys(("task", "data.train", "data.validation", "data.test", "data.target"), _SAME_ROWS),
    **dict.fromkeys(("data.group", "data.time", "data.horizon", "data.max_bad_rows"), _SAME_ROWS),
    "refit": "a trial is scored by its validation rows, before it would be refitted",
    "network.kind": "the other keys of `network` depend on it; search each kind with a job of its own",
}

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"


# What may change while a network trains: neither its weights' shapes nor the rows and their order depend on it.
MAY_CHANGE = ("regularization", "early_stopping", "optimization.learning_rate", "optimization.momentum")


class ChangeSettings(Settings):
    """Settings that take the place of others once so many epochs are trained."""

    after_epoch: Annotated[int, Field(ge=1)]
    settings: Annotated[dict[str, JsonValue], Field(min_length=1, description="dotted path: value")]


def _folder_name(name: str) -> str:
    if not re.fullmatch(_NAME, name):
        raise ValueError(
            "must be safe as a folder name: letters, digits, '.', '_' or '-', at most 100, the first a letter or digit"
        )
    return name


class Job(Settings):
    """One job. Everything but `data` and `network.kind` has a default, tuned for the kind of network."""

    name: Annotated[
        str,
        AfterValidator(_folder_name),
        Field(
            description="of the run folder; default: the job file's name",
            json_schema_extra={"pattern": f"^{_NAME}$"},
        ),
    ] = "job"
    data: DataSettings
    task: Annotated[Task | None, Field(description="default: inferred from the target")] = None
    network: NetworkSettings
    regularization: RegularizationSettings = RegularizationSettings()
    optimization: OptimizationSettings = OptimizationSettings()
    early_stopping: EarlyStoppingSettings = EarlyStoppingSettings()
    refit: Annotated[
        bool, Field(description="once stopping has found the steps to train, train anew on train and validation")
    ] = False
    resources: ResourcesSettings = ResourcesSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    search: SearchSettings | None = None
    study: StudySettings | None = None
    changes: Annotated[
        tuple[ChangeSettings, ...], Field(description="settings that change during training, as a search found them")
    ] = ()
    tracking: TrackingSettings = TrackingSettings()
    report: Annotated[bool, Field(description="write report.html and README.md, the model's card, at the end")] = True
    storage: Annotated[str, Field(min_length=1, description="folder or URL that run folders go to")] = "runs"
    resume: Annotated[bool, Field(description="continue the run of this name instead of starting another")] = False

    @classmethod
    def load(cls, path: str | FilePath, overrides: Sequence[str] = ()) -> Job:
        """The job in a YAML file, with overrides `dotted.key=value` on top of it, the last one winning.

        Raises:
            JobError: everything that is wrong, a line each: file:line:column, dotted key, value, remedy.
        """
        path = FilePath(path)
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:100]
        return cls._from_document(Document.read(path), overrides, name=stem or "job")

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], overrides: Sequence[str] = ()) -> Job:
        """The same from plain values, as a job file would have them.

        Raises:
            JobError: everything that is wrong, a line each.
        """
        return cls._from_document(Document.of(tree), overrides, name="job")

    @classmethod
    def _from_document(cls, document: Document, overrides: Sequence[str], name: str) -> Job:
        for number, override in enumerate(overrides):
            document.override(override, number, partial(split, cls))
        tree = _with_tuned_defaults({"name": name, **_as_mapping(document.root.plain())})
        problems = problems_in(cls, tree)
        if problems:
            raise document.error(problems)
        job = cls.model_validate_json(json.dumps(tree))
        resolved = job.model_dump(mode="json")
        for name, message in cross_check(job):
            path = split(cls, name)
            problems.append(Problem(path, "cross_check", message, _value_at(resolved, path)))
        if problems or document.complaints:
            raise document.error(problems)
        return job

    def with_settings(self, settings: Mapping[str, JsonValue]) -> Job:
        """The job with these values at their dotted paths, and without a search or study.

        Raises:
            JobError: what no longer fits, a line each.
        """
        tree = self.model_dump(mode="json", exclude={"search", "study"})
        for name, value in settings.items():
            path = split(Job, name)
            _value_at(tree, path[:-1])[path[-1]] = value
        return Job.from_dict(tree)

    def after(self, epochs: int) -> Job:
        """The job as it is in force once so many epochs are trained.

        Raises:
            JobError: a change that does not fit.
        """
        changed: dict[str, JsonValue] = {}
        for change in self.changes:
            if change.after_epoch <= epochs:
                changed |= change.settings
        return self.with_settings(changed) if changed else self

    def space(self, columns: Collection[str] | None = None, any_length: bool = False) -> Space:
        """What the job's search varies.

        Args:
            columns: kinds of the features; None where they are not known yet, and all may be there.
            any_length: sequences among the features differ in length.
        """
        assert self.search is not None, "the job has no search"
        return Space.of(self.search, self.model_dump(mode="json", exclude={"search"}), columns, any_length)

    def to_yaml(self) -> str:
        """The job fully resolved, defaults written out: `load` gives the same job back."""
        return dump(_written(self, defaults_for(self.network.kind)))

    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that changes the result: two jobs with the same one give the same weights."""
        resolved = self.model_dump(mode="json", exclude=set(NOT_THE_RESULT))
        return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()

    @staticmethod
    def schema() -> dict[str, Any]:  # type: ignore[override]
        """JSON Schema (draft 2020-12) of a job file, for completion in editors."""
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Job.model_json_schema()}
        return {**schema, "title": "raynn job file"}


def differences(a: Job, b: Job) -> list[str]:
    """What differs between two jobs, a line each: `dotted.key: value in a -> value in b`."""
    return list(_differences(a.model_dump(mode="json"), b.model_dump(mode="json"), ""))


def refuse_changes(job: Job, folder: FilePath, may_differ: tuple[str, ...], noun: str = "run") -> None:
    """That a job is the one that the run in `folder` began with, but for dotted keys that begin with `may_differ`.

    Raises:
        RunError: it is not; all that differs, a line each.
    """
    before = Job.load(folder / "job.yaml")
    now = job.model_copy(update={"task": job.task or before.task})
    changed = [line for line in differences(before, now) if not line.startswith(may_differ)]
    if changed:
        listed = "\n  ".join(changed)
        raise RunError(
            f"resume = true, but the job differs from the one that {folder} was started with:\n  {listed}\n"
            f"undo the change, or run without resume=true to start a new {noun}"
        )


def cross_check(job: Job) -> list[tuple[str, str]]:
    """What does not fit together although each value is valid: (dotted path, message) of each problem."""
    return [*((path, message) for path, message, _ in _relations(job)), *_rest(job)]


def _rest(job: Job) -> Iterator[tuple[str, str]]:
    yield from _change_problems(job)
    if not isinstance(job.resources.workers, int) and (job.search or job.study):
        section = "search" if job.search else "study"
        yield "resources.workers", f"must be a number in a job with `{section}`, which shares the cluster among trials"
    yield from _search_problems(job)
    yield from study_problems(job.study, job.task) if job.study else ()


def may_change(name: str) -> bool:
    """Whether the setting at a dotted path may change while a network trains."""
    return any(within(name, able) for able in MAY_CHANGE) and name not in MAY_CHANGE[:2]


def _change_problems(job: Job) -> Iterator[tuple[str, str]]:
    before = 0
    for change in job.changes:
        if not before < change.after_epoch < job.optimization.max_epochs:
            bounds = f"more than {before} and less than optimization.max_epochs = {job.optimization.max_epochs}"
            yield "changes", f"after_epoch = {change.after_epoch} must be {bounds}"
        before = change.after_epoch
        rules = [name for name in change.settings if within(name, "early_stopping")]
        if rules and (job.early_stopping.reductions or "early_stopping.reductions" in rules):
            yield "changes", f"{rules[0]!r} cannot change with early_stopping.reductions, which earlier epochs decided"
            continue
        fixed = [name for name in change.settings if not may_change(name)]
        if fixed:
            able = ", ".join([*(f"{section}.*" for section in MAY_CHANGE[:2]), *MAY_CHANGE[2:]])
            yield "changes", f"{fixed[0]!r} cannot change during training; what can: {able}"
            continue
        try:
            job.model_copy(update={"changes": ()}).with_settings(change.settings)
        except (JobError, KeyError) as error:
            yield "changes", f"after epoch {change.after_epoch}: {error}"


def _relations(job: Job) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """What does not fit together outside of `search`: path, message, and the other paths that have a part in it."""
    for where, monitor in monitors(job.early_stopping):
        if message := metric_problem(monitor, job.task):
            yield where, message, ("task",)
    yield from rule_problems(job.early_stopping)
    tasks = NETWORKS[job.network.kind].tasks
    if job.task is not None and job.task not in tasks:
        yield "task", f"a network of kind {job.network.kind!r} is for {' and '.join(tasks)}", ("network.kind",)
    rows, pieces = job.optimization.global_batch_size, job.optimization.accumulate
    if rows % pieces:
        divisors = [n for n in range(1, rows + 1) if rows % n == 0]
        nearest = min(divisors, key=lambda n: abs(n - pieces))
        message = f"must divide global_batch_size = {rows}, as {nearest} does"
        yield "optimization.accumulate", message, ("optimization.global_batch_size",)
    fewest, most = job.resources.min_workers, job.resources.max_workers
    elastic = not isinstance(job.resources.workers, int)
    if fewest > most:
        yield "resources.workers.min", f"must be at most resources.workers.max = {most}", ()
    if most > lane_count(rows):
        yield (
            "resources.workers.max" if elastic else "resources.workers",
            f"must be at most {lane_count(rows)}, the lanes that optimization.global_batch_size = {rows} is cut into: "
            f"use fewer workers, or a batch with a larger divisor up to {MAX_LANES}",
            ("optimization.global_batch_size",),
        )
    batch_norm = getattr(job.network, "normalization", None) == "batch"
    if job.optimization.compile and job.resources.strategy == "fsdp":
        yield "optimization.compile", "must be false with resources.strategy = 'fsdp'", ("resources.strategy",)
    if rows == 1 and batch_norm:
        message = "must be at least 2 with network.normalization = 'batch': one row has no variance"
        yield "optimization.global_batch_size", message, ("network.normalization",)
    if pieces > 1 and batch_norm:
        choices = get_args(type(job.network).model_fields["normalization"].annotation)
        others = " or ".join(repr(choice) for choice in choices if choice not in ("none", "batch"))
        yield (
            "optimization.accumulate",
            "must be 1 with network.normalization = 'batch', whose statistics are of the whole global batch: "
            f"set network.normalization to {others}",
            ("network.normalization",),
        )


def _search_problems(job: Job) -> Iterator[tuple[str, str]]:
    if job.search is not None:
        tree = job.model_dump(mode="json", exclude={"search"})
        yield from search_problems(Searched(job.search, tree, partial(split, Job), _tree_problems, NOT_SEARCHED))


def _tree_problems(tree: dict[str, JsonValue]) -> list[tuple[Problem, tuple[str, ...]]]:
    """All that is wrong with a job as plain data, with the other settings that have a part in each."""
    if problems := problems_in(Job, tree):
        return [(problem, ()) for problem in problems]
    return [
        (Problem(split(Job, name), "cross_check", message, _value_at(tree, split(Job, name))), also)
        for name, message, also in _relations(Job.model_validate_json(json.dumps(tree)))
    ]


def _with_tuned_defaults(tree: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """The tree with the defaults of its kind of network filled in; what the tree itself says wins."""
    network = tree.get("network")
    kind = network.get("kind") if isinstance(network, dict) else None
    for section, tuned in defaults_for(kind).items() if isinstance(kind, str) else ():
        own = tree.get(section, {})
        if isinstance(own, dict):
            tree[section] = {**tuned, **own}
    return tree


def _written(settings: Settings, tuned: Mapping[str, Any]) -> dict[str, Any]:
    """A section as it is written; null only where leaving the key out would mean something else."""
    tree = {}
    unused = unused_keys(settings) if isinstance(settings, RuleSettings) else ()
    for key, field in type(settings).model_fields.items():
        value = getattr(settings, key)
        if key in unused and value == field.default:
            continue
        if value is not None or field.default is not None or key in tuned:
            inner = tuned.get(key)
            tree[key] = _plain(value, inner if isinstance(inner, dict) else {})
    return tree


def _plain(value: Any, tuned: Mapping[str, Any]) -> Any:
    if isinstance(value, Settings):
        return _written(value, tuned)
    if isinstance(value, dict):
        return {key: _plain(item, {}) for key, item in value.items()}
    return [_plain(item, {}) for item in value] if isinstance(value, list | tuple) else value


def _differences(a: JsonValue, b: JsonValue, name: str) -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {**a, **b}:
            yield from _differences(a.get(key), b.get(key), f"{name}.{key}" if name else key)
    elif json.dumps(a) != json.dumps(b):
        yield f"{name}: {show(a)} -> {show(b)}"


def _value_at(tree: Any, path: Path) -> Any:
    """The value at a path; KeyError where there is none."""
    for step in path:
        if isinstance(tree, list) and isinstance(step, int) and step < len(tree):
            tree = tree[step]
        elif isinstance(tree, dict):
            tree = tree[step]
        else:
            raise KeyError(step)
    return tree


def _as_mapping(value: JsonValue) -> dict[str, JsonValue]:
    assert isinstance(value, dict)
    return value
