"""Commands that are refused: what a user types, what makes it wrong, and all that the message must say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from raynn.cli import main

JOB = """\
data: {train: flowers.csv, target: kind}
network: {kind: feedforward, hidden: [4]}
optimization: {global_batch_size: 16, max_epochs: 1}
"""


@dataclass(frozen=True)
class Bad:
    """What a user types, after `make` has set the table, and all that the message must say."""

    command: str | tuple[str, ...]
    says: tuple[str, ...]
    make: Callable[[], object] | None = None


def train(*overrides: str) -> tuple[str, ...]:
    """The command that trains job.yaml with overrides."""
    return ("train", "job.yaml", *overrides)


def job_file(text: str) -> Callable[[], object]:
    """Writes bad.yaml."""
    return lambda: Path("bad.yaml").write_text(text)


def table_file(table: pa.Table, path: str = "bad.csv") -> Callable[[], object]:
    """Writes a table as CSV or Parquet."""
    return lambda: (pyarrow.csv.write_csv if path.endswith(".csv") else pq.write_table)(table, path)


def assert_refused(case: Bad, names: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2; on standard error all that the case says, on standard output nothing."""
    if case.make is not None:
        case.make()
    words = case.command.split() if isinstance(case.command, str) else case.command
    arguments = [word.format(**names) for word in words] if names else words
    status = main(arguments)
    out, err = capsys.readouterr()
    assert status == 2, err
    assert out == ""
    for part in case.says:
        assert (part.format(**names) if names else part) in err
