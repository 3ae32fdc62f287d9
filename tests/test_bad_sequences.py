"""Sequences that a network cannot take, through the command line, like test_bad_inputs."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from flowers import flowers, paint, with_value
from refusals import Bad, assert_refused, table_file, train
from walks import walks

JOB = """\
data: {train: walks.parquet, target: place}
network: {kind: lstm, hidden: 4}
optimization: {global_batch_size: 16, max_epochs: 1}
"""


def walks_file(row: int, steps: object) -> object:
    """Writes walks.parquet with another sequence in a row."""
    return table_file(with_value(walks(60), row, "steps", steps), "walks.parquet")()


def pictures_beside() -> None:
    """Adds a picture to every walk."""
    picture = next(paint(Path("pets"), 1).glob("*/*.png")).read_bytes()
    table_file(walks(60).append_column("photo", pa.array([picture] * 60)), "walks.parquet")()


def even_walks_beside() -> None:
    """Adds a file of walks of three steps each."""
    table = walks(60)
    steps = pa.array([walk[:3] for walk in table["steps"].to_pylist()])
    table_file(table.set_column(0, "steps", steps), "even.parquet")()


CASES = {
    "rnn on a table": Bad(
        train("data={train: flowers.csv, target: kind}", "network={kind: rnn}"),
        (
            "network.kind = 'rnn' needs a sequence or a text column, and the features are categorical, date, numeric; ",
            "use network.kind: feedforward, or declare a column's kind in data.columns",
        ),
        table_file(flowers(), "flowers.csv"),
    ),
    "lstm on pictures": Bad(
        train("data={train: pets, target: label}"),
        ("network.kind = 'lstm' needs a sequence or a text column, and the features are image; ",),
        lambda: paint(Path("pets")),
    ),
    "rnn with a picture beside": Bad(
        train("network={kind: rnn}"),
        (
            "network.kind = 'rnn' takes sequence, text, numeric, categorical, date columns, and 'photo' is image; ",
            "set `data.columns: {photo: ignore}`, or use network.kind: feedforward",
        ),
        pictures_beside,
    ),
    "a length that the first rows do not tell": Bad(
        train("data={train: even.parquet, test: walks.parquet, target: place}", "network={kind: cnn, channels: [4]}"),
        (
            "sequences of different lengths: column 'steps' has 8 steps in ",
            "walks.parquet, row 1, and others have 3; ",
            "set data.any_length: true, or cut or pad them to one length",
        ),
        even_walks_beside,
    ),
    "flattened steps of different lengths": Bad(
        train("network={kind: cnn, channels: [4], head_pooling: flatten}"),
        (
            "network.head_pooling = 'flatten' needs sequences of one length, and their lengths differ; ",
            "use mean or max",
        ),
    ),
    "cnn on walks and pictures": Bad(
        train("network={kind: cnn}"),
        ("network.kind = 'cnn' takes one image, sequence or text column, and the features have ",),
        pictures_beside,
    ),
    "steps of different widths": Bad(
        train(),
        (
            "steps of different widths: column 'steps' has 3 channels in ",
            "walks.parquet, row 7, and others have 2; give every step as many",
        ),
        lambda: walks_file(7, [[1.0, 2.0], [1.0, 2.0, 3.0]]),
    ),
    "empty sequence": Bad(
        train(),
        ("1 of 60 rows (1.67%) are bad", "walks.parquet, row 7, column steps: missing sequence"),
        lambda: walks_file(7, []),
    ),
    "missing number in a sequence": Bad(
        train(),
        ("walks.parquet, row 7, column steps: nan in channel 1 of step 2",),
        lambda: walks_file(7, [[1.0, 2.0], [1.0, 2.0], [1.0, None]]),
    ),
    "only empty sequences": Bad(
        train(),
        ("column 'steps' is to be sequence, but none that was sampled holds a number; fill them, or drop it",),
        table_file(walks(60).set_column(0, "steps", pa.array([[]] * 60, pa.list_(pa.float64()))), "walks.parquet"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_sequences(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(JOB)
    table_file(walks(60), "walks.parquet")()
    assert_refused(CASES[name], {}, capsys)
    assert not list(tmp_path.glob("runs/*")), "a run folder was made"
