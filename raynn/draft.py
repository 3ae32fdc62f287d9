"""A first job file for data that were looked at: what they hold, which network fits, settings that train."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raynn.catalog import CATALOG
from raynn.columns import ColumnSpec, infer_columns, parse_dates, parse_numbers, plain_text
from raynn.errors import DataError
from raynn.fragments import Fragment, sample_rows, schema_of
from raynn.jobfile import dump
from raynn.metrics import Task
from raynn.preparation import SAMPLE_ROWS, choose_task, codes_of
from raynn.sources import DataSettings, find_fragments

SMALL_ROWS, MEDIUM_ROWS = 2_000, 20_000
LIKELY_TARGETS = ("target", "label", "class", "outcome", "price", "value", "y")
GROUP_NAMES = re.compile(
    r"(^|_)(subject|patient|user|customer|person|session|group|speaker|site)(_?id)?$", re.IGNORECASE
)


@dataclass(frozen=True)
class Look:
    """What a source holds: a sample of its rows, and about how many there are."""

    source: str
    schema: pa.Schema
    sample: pa.Table
    num_rows: int
    is_exact: bool

    @property
    def rows(self) -> str:
        """How many, in words."""
        return f"{self.num_rows:,} rows" if self.is_exact else f"about {self.num_rows:,} rows"


@dataclass(frozen=True)
class Draft:
    """A job file, and what it is for."""

    name: str
    task: Task
    kind: str
    text: str


def draft_job(source: str, target: str | None = None, name: str | None = None) -> Draft:
    """Looks at a source and drafts a job file that trains as it is.

    Args:
        source: file, folder, glob, URL or catalog name.
        target: the column to predict; text and images need none.
        name: of the job; default: made of the source's name.

    Raises:
        DataError: the source cannot be read, or the target is missing or is none of its columns.
    """
    look = look_at(source)
    target = target or _target_of_catalog(source)
    if target is None:
        return _without_target(look, name or _job_name(source))
    settings = DataSettings(train=source, target=target)
    features, (spec,) = infer_columns(look.schema, look.sample, settings)
    time, series = _time_and_series(look, features, spec)
    name = name or _job_name(source)
    if time is not None:
        return _forecasting(look, name, target, time, series)
    return _prediction(look, name, features, spec)


def look_at(source: str) -> Look:
    """The schema, the first rows and the number of rows of a source.

    Raises:
        DataError: it cannot be read.
    """
    fragments = find_fragments(source, Path())
    alike = [f for f in fragments if f.format == fragments[0].format]
    sample = sample_rows(alike, SAMPLE_ROWS)
    num_rows, is_exact = _count(fragments, sample)
    return Look(source, schema_of(fragments), sample, num_rows, is_exact)


def _count(fragments: Sequence[Fragment], sample: pa.Table) -> tuple[int, bool]:
    """Rows of all fragments; of text files the sample tells, or else gives a lower bound."""
    if all(fragment.files for fragment in fragments):
        return sum(len(fragment.files) for fragment in fragments), True
    if all(fragment.stop is not None for fragment in fragments):
        return sum((fragment.stop or 0) - fragment.start for fragment in fragments), True
    return sample.num_rows, sample.num_rows < SAMPLE_ROWS


def _target_of_catalog(source: str) -> str | None:
    return CATALOG[source].target if source in CATALOG else None


def _job_name(source: str) -> str:
    stem = re.split(r"[/\\]", source.rstrip("/"))[-1].partition(".")[0]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "job"


# Which task, which network


def _without_target(look: Look, name: str) -> Draft:
    """Text or images alone; a table needs a target."""
    features, _ = infer_columns(look.schema, look.sample, DataSettings(train=look.source))
    kinds = {spec.kind for spec in features}
    text = [spec.name for spec in features if spec.kind == "text"]
    if "image" in kinds:
        return _image_generation(look, name, features)
    if text and (len(kinds) == 1 or look.schema.names[:2] == ["document", "text"]):
        return _language_modeling(look, name, text[-1])
    likely = next((c for wanted in LIKELY_TARGETS for c in look.schema.names if c.lower() == wanted), None)
    example = likely or look.schema.names[-1]
    raise DataError(
        f"{look.source} is a table: name the column to predict, for instance `--target {example}`. Its columns: "
        f"{', '.join(look.schema.names[:30])}"
    )


def _time_and_series(look: Look, features: Sequence[ColumnSpec], target: ColumnSpec) -> tuple[str | None, str | None]:
    """The column of times, and the one that tells series apart, where a numeric target is measured in even steps."""
    if target.kind != "numeric":
        return None, None
    if choose_task(None, _as_numbers(look.sample[target.name], target).drop_null(), target.name)[0] != "regression":
        return None, None
    for spec in features:
        if spec.kind != "date":
            continue
        column = look.sample[spec.name]
        times = parse_dates(plain_text(column)) if pa.types.is_string(column.type) else column
        ticks = pc.cast(times, pa.timestamp("us"), safe=False).cast(pa.int64()).fill_null(-1).to_numpy()
        for series in (None, *(other.name for other in features if other.kind == "categorical")):
            codes = np.zeros(len(ticks), np.int64) if series is None else codes_of(look.sample[series])
            if _is_even(ticks, codes):
                return spec.name, series
    return None, None


def _is_even(ticks: Any, codes: Any) -> bool:
    """Whether times never repeat within a series, and most steps are alike (weekends and holidays may be left out)."""
    order = np.lexsort((ticks, codes))
    steps = np.diff(ticks[order])[np.diff(codes[order]) == 0]
    if len(steps) < 20 or (steps <= 0).any():
        return False
    return bool(np.mean(steps == np.median(steps)) > 0.7)


# Job files


def _prediction(look: Look, name: str, features: Sequence[ColumnSpec], target: ColumnSpec) -> Draft:
    task, reason = choose_task(None, _as_numbers(look.sample[target.name], target).drop_null(), target.name)
    kinds = [spec.kind for spec in features if spec.kind != "ignore"]
    kind, why = "feedforward", "a table"
    if "image" in kinds:
        kind, why = "cnn", "images"
    elif "sequence" in kinds:
        kind, why = ("cnn", "sequences of one length") if _one_length(look, features) else ("lstm", "sequences")
    elif "text" in kinds:
        kind, why = "lstm", "text"
    network = {
        "feedforward": "{kind: feedforward, hidden: [256, 256], number_embedding: piecewise_linear}",
        "cnn": "{kind: cnn, channels: [32, 64, 64]}",
        "lstm": "{kind: lstm, hidden: 128, pooling: mean}",
    }[kind]
    groups = [spec.name for spec in features if GROUP_NAMES.search(spec.name)]
    data = [
        f"  train: {_quoted(look.source)}",
        "  validation: 0.1          # a fraction, or a source of its own",
        "  test: 0.1                # looked at once, at the end",
        f"  target: {_quoted(target.name)}",
    ]
    if groups:
        data.append(
            f"  # group: {_quoted(groups[0])}   # if rows of one {groups[0]} belong together, none straddles a split"
        )
    return _written(
        look,
        name,
        task,
        kind,
        [f"{task}: {reason}; {why}: {'an' if kind == 'lstm' else 'a'} {kind}", *_column_lines(features, target)],
        data,
        network,
        {"dropout": 0.2, "weight_decay": 1e-3},
        "val/accuracy" if task == "classification" else "val/loss",
    )


def _forecasting(look: Look, name: str, target: str, time: str, series: str | None) -> Draft:
    of = f" of each {series}" if series else ""
    data = [
        f"  train: {_quoted(look.source)}",
        "  validation: 0.1          # the end of the series but for the test steps; or {since: DATE, until: DATE}",
        "  test: 0.1                # the end; looked at once",
        f"  target: {_quoted(target)}           # several are forecast together: [a, b]",
        f"  time: {_quoted(time)}",
        *([f"  series: {_quoted(series)}"] if series else []),
        f"  window: {max(1, min(24, look.num_rows // 20)):<16} # steps that are read",
        "  horizon: 1               # steps that are forecast",
        "  window_normalization: last   # less each window's last value; none, revin",
        "  # known: [holiday]       # features that are known for the steps to forecast",
        "  # calendar: [weekday]    # features made of the time",
    ]
    return _written(
        look,
        name,
        "forecasting",
        "lstm",
        [
            f"forecasting: {target!r} is measured in even steps of {time!r}{of}",
            "for regression remove time, window, horizon",
        ],
        data,
        "{kind: lstm, hidden: 64}",
        {"dropout": 0.1, "weight_decay": 1e-3},
        "val/loss",
    )


def _language_modeling(look: Look, name: str, column: str) -> Draft:
    data = [
        f"  train: {_quoted(look.source)}",
        "  validation: 0.1          # the end of the text, or a source of its own",
        f"  features: [{_quoted(column)}]",
        "  tokens: characters       # bytes, characters, words, subwords",
        "  window: 128              # tokens that are read at once",
    ]
    return _written(
        look,
        name,
        "language_modeling",
        "text_generator",
        [f"language modeling of the text in column {column!r}"],
        data,
        "{kind: text_generator, width: 192, layers: 4, heads: 4}",
        {"dropout": 0.1, "weight_decay": 0.1},
        "val/loss",
    )


def _image_generation(look: Look, name: str, features: Sequence[ColumnSpec]) -> Draft:
    image = next(spec for spec in features if spec.kind == "image")
    label = next((spec.name for spec in features if spec.kind == "categorical" or spec.name == "label"), None)
    data = [
        f"  train: {_quoted(look.source)}",
        "  validation: 0.1",
        f"  features: [{_quoted(image.name)}]",
        *([f"  target: {_quoted(label)}           # images are generated by class"] if label else []),
    ]
    return _written(
        look,
        name,
        "image_generation",
        "image_generator",
        [f"images of {image.shape[1]} x {image.shape[2]}; to classify them: raynn init {look.source} --target COLUMN"],
        data,
        "{kind: image_generator, architecture: flow_matching}",
        {"ema_decay": 0.999},
        "val/loss",
    )


def _written(
    look: Look,
    name: str,
    task: Task,
    kind: str,
    seen: Sequence[str],
    data: Sequence[str],
    network: str,
    regularization: dict[str, float],
    monitor: str,
) -> Draft:
    """The job file; every line that is not a setting says what was seen, or what else could stand there."""
    rows = 32 if look.num_rows < SMALL_ROWS else 128 if look.num_rows < MEDIUM_ROWS else 256
    epochs = 60 if look.num_rows < SMALL_ROWS else 30 if look.num_rows < MEDIUM_ROWS else 20
    knobs = dump({"regularization": regularization}).splitlines()[1:]
    lines = [
        f"# raynn train {name}.yaml",
        "#",
        f"# {look.rows} of {look.source}",
        *(f"# {line}" for line in seen),
        f"name: {name}",
        "data:",
        *data,
        f"network: {network}",
        "regularization:            # against learning the training rows by heart; `raynn list` names all knobs",
        *knobs,
        f"optimization: {{learning_rate: 1e-3, global_batch_size: {rows}, max_epochs: {epochs}}}",
        f"early_stopping: {{monitor: {monitor}, patience: 8}}   # the best epoch's weights are kept",
        "resources: {workers: 1}    # never changes the result",
    ]
    return Draft(name, task, kind, "\n".join(lines) + "\n")


def _column_lines(features: Sequence[ColumnSpec], target: ColumnSpec) -> list[str]:
    """What each column was taken for; `data.columns` corrects it."""
    shown = [spec for spec in features if spec.name != target.name][:40]
    width = max((len(spec.name) for spec in shown), default=0)
    lines = [f"  {spec.name:<{width}}  {spec.kind:<11} {spec.reason}".rstrip() for spec in shown]
    if len(features) > len(shown):
        lines.append(f"  and {len(features) - len(shown)} more")
    return ["columns, to be corrected with data.columns: {name: kind}:", *lines]


def _as_numbers(column: Any, spec: ColumnSpec) -> Any:
    """A target as the task is chosen by: text that reads as numbers is numbers."""
    if spec.kind == "numeric" and pa.types.is_string(column.type):
        numbers = parse_numbers(plain_text(column))
        return pa.chunked_array([numbers]) if isinstance(numbers, pa.Array) else numbers
    return column


def _one_length(look: Look, features: Sequence[ColumnSpec]) -> bool:
    name = next(spec.name for spec in features if spec.kind == "sequence")
    return int(pc.count_distinct(pc.list_value_length(look.sample[name].drop_null())).as_py()) == 1


def _quoted(text: str) -> str:
    """As YAML writes it, so that it reads back as text."""
    return dump({"x": text}).removeprefix("x: ").rstrip("\n")
