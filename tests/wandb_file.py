"""Reads the file that W&B's client keeps of an offline run: a LevelDB log of protobuf records.

Seven bytes of header, `:W&B` first; then blocks of 32 KiB of chunks: CRC (4 bytes), length (2), kind (1: whole, 2:
first, 3: middle, 4: last part of a record), data. https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

HEADER, BLOCK = 7, 32768


@dataclass
class KeptRun:
    """What an offline file tells."""

    run_id: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    project: str = ""
    tags: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    step_metric: str = ""
    exit_code: int | None = None
    artifacts: list[str] = field(default_factory=list)  # their types


def records(path: Path) -> list[Any]:
    """The records of a file, whole."""
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    found, part, at = [], b"", HEADER
    while at + 7 <= len(content):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        data = content[at + 7 : at + 7 + length]
        assert len(data) == length, "the file ends within a record"
        at += 7 + length
        if kind in (1, 2):
            part = b""
        part += data
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            found.append(record)
    return found


def read_run(path: Path) -> KeptRun:
    """An offline file as a run."""
    kept = KeptRun()
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            kept.run_id, kept.name, kept.project = run.run_id, run.display_name, run.project
            kept.group, kept.job_type, kept.tags = run.run_group, run.job_type, list(run.tags)
            kept.settings |= _items(run.config.update)
        elif kind == "config":
            kept.settings |= _items(record.config.update)
        elif kind == "history":
            kept.history.append(_items(record.history.item))
        elif kind == "summary":
            kept.summary |= _items(record.summary.update)
        elif kind == "metric" and record.metric.glob_name == "*":
            kept.step_metric = record.metric.step_metric
        elif kind == "artifact":
            kept.artifacts.append(record.artifact.type)
        elif kind == "exit":
            kept.exit_code = record.exit.exit_code
    return kept


def _items(items: Any) -> dict[str, Any]:
    return {
        item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items if item.key != "_wandb"
    }
