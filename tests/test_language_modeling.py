"""Language models from text file to perplexity: the metric by hand, training, evaluation and prediction of runs."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from refusals import Bad, assert_refused, train
from torch import Tensor, nn

from raynn.cli import main
from raynn.collectives import Workers
from raynn.corpus import prepare_corpus, understand_corpus
from raynn.drivers import LocalDriver
from raynn.errors import DataError
from raynn.job import Job
from raynn.loop import evaluate_shard, evaluation_batch_rows
from raynn.placement import place_shards
from raynn.prediction import predict
from raynn.run import evaluate, open_run
from raynn.sources import DataSettings
from raynn.trainer import train as train_job

VERSE = "the sea the sky the sea and the sky and the sea again\n"


def job_of(folder: Path, **sections: Any) -> Job:
    tree: dict[str, Any] = {
        "name": "verse",
        "data": {"train": str(folder / "verse.txt"), "test": 0.1, "window": 16},
        "network": {"kind": "lstm", "hidden": 24, "embedding": 8},
        "optimization": {"global_batch_size": 8, "max_epochs": 4, "learning_rate": 2e-2},
        "storage": str(folder / "runs"),
    }
    return Job.from_dict({**tree, **sections})


@pytest.fixture(scope="module")
def verses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with verse.txt, 2,700 characters, and a run that has learned it."""
    folder = tmp_path_factory.mktemp("verses")
    (folder / "verse.txt").write_text(VERSE * 50)
    train_job(job_of(folder))
    return folder


class Bigrams(nn.Module):
    """Logits that are the logarithms of given chances of the next token after each."""

    def __init__(self, chance_VV: np.ndarray) -> None:
        super().__init__()
        self.logits = nn.Embedding.from_pretrained(torch.tensor(np.log(chance_VV)))

    def forward(self, batch: dict[str, Tensor], key_B: Tensor | None = None) -> Tensor:
        return self.logits(batch["tokens"][:, :-1].long())


@pytest.mark.parametrize("tokens", ["characters", "bytes"])
@pytest.mark.parametrize("window", [1, 2, 5, 18])
def test_the_metric_is_that_of_counting_by_hand(tokens: str, window: int, tmp_path: Path) -> None:
    """Bigrams of the training text, each counted once more than it is there; documents apart."""
    documents = ["wäre es so ", "es wäre so, wäre es", "so?", "x", "", "wäre esß so"]
    pq.write_table(pa.table({"text": documents, "of": ["a", "a", "b", "b", "b", "b"]}), tmp_path / "t.parquet")
    data = {"train": "t.parquet", "validation": {"column": "of", "equals": "b"}, "tokens": tokens, "window": window}
    prepared = prepare_corpus(understand_corpus(DataSettings(**data), tmp_path), LocalDriver())
    read = (lambda text: list(text.encode())) if tokens == "bytes" else list
    letters = list(range(256)) if tokens == "bytes" else sorted(set("".join(documents[:2])))
    id_of = {letter: 1 + place for place, letter in enumerate(letters)}
    counts_VV = np.ones([1 + len(letters)] * 2)
    for text in documents[:2]:
        for a, b in pairwise(read(text)):
            counts_VV[id_of[a], id_of[b]] += 1
    chance_VV = counts_VV / counts_VV.sum(1, keepdims=True)
    pairs = [(id_of.get(a, 0), id_of.get(b, 0)) for text in documents[2:] for a, b in pairwise(read(text))]
    nats = -sum(math.log(chance_VV[a, b]) for a, b in pairs)
    characters = sum(max(0, len(text) - 1) for text in documents[2:])  # the first byte of each is a whole character

    job = job_of(tmp_path, task="language_modeling", optimization={"global_batch_size": 2, "max_epochs": 1})
    workers = Workers(device=torch.device("cpu"))
    shards = place_shards(prepared.encoded, lambda table: table, job, workers, 1, tmp_path)
    model = Bigrams(chance_VV)
    metrics = evaluate_shard(job, prepared.preprocessing.input_spec, model, shards.validation, workers)
    assert metrics["loss"] == pytest.approx(nats / len(pairs), rel=1e-6)
    assert metrics["perplexity"] == pytest.approx(math.exp(nats / len(pairs)), rel=1e-6)
    assert metrics["bits_per_character"] == pytest.approx(nats / math.log(2) / characters, rel=1e-6)


def test_a_run_learns_the_verse(verses: Path) -> None:
    records = [json.loads(line) for line in (verses / "runs" / "verse" / "metrics.jsonl").read_text().splitlines()]
    counts = Counter(VERSE)
    entropy = -sum(n / len(VERSE) * math.log(n / len(VERSE)) for n in counts.values())
    assert records[-1]["val/loss"] < 0.5 * entropy < records[0]["train/loss"] < math.log(1 + len(counts)) + 0.3
    metrics = json.loads((verses / "runs" / "verse" / "result.json").read_text())["metrics"]
    for split in ("val", "test"):
        assert metrics[f"{split}/perplexity"] == pytest.approx(math.exp(metrics[f"{split}/loss"]))
        assert metrics[f"{split}/bits_per_character"] == pytest.approx(metrics[f"{split}/loss"] / math.log(2))


def test_a_run_is_evaluated_on_its_own_text_and_on_another(verses: Path) -> None:
    run = verses / "runs" / "verse"
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert evaluate(run)["test/loss"] == pytest.approx(metrics["test/loss"], rel=1e-6)
    assert evaluate(run, "validation")["val/loss"] == pytest.approx(metrics["val/loss"], rel=1e-6)
    (verses / "tail.md").write_text((VERSE * 50)[int(0.9 * 2700) :])
    assert evaluate(run, str(verses / "tail.md")) == pytest.approx(evaluate(run), rel=1e-6)
    (verses / "other.txt").write_text("quite another text, with letters it has not")
    assert evaluate(run, str(verses / "other.txt"))["test/loss"] > 3 * metrics["test/loss"]
    (verses / "short.txt").write_text("t")
    with pytest.raises(
        DataError, match=r"short.txt has no document of two tokens or more, and the first of a document"
    ):
        evaluate(run, str(verses / "short.txt"))
    (verses / "bad.txt").write_bytes(b"the s\xff")
    with pytest.raises(DataError, match=r"no row could be read; the first: .*bad.txt, row 0, column text: byte 5"):
        evaluate(run, str(verses / "bad.txt"))


def test_predictions_of_documents_are_their_part_of_the_evaluation(verses: Path, tmp_path: Path) -> None:
    run = verses / "runs" / "verse"
    rows = [{"by": "a", "text": VERSE * 3}, {"by": "b", "text": "t"}, {"by": "c", "text": ""}, {"by": "d"}]
    rows += [{"by": "e", "text": "the sea is ⊥"}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert predict(run, str(tmp_path / "t.jsonl"), tmp_path / "p.parquet")["rows"] == 5
    table = pq.read_table(tmp_path / "p.parquet")
    assert table.column_names == ["by", "text", "nats", "tokens", "characters", "perplexity"]
    assert table["tokens"].to_pylist() == table["characters"].to_pylist() == [3 * len(VERSE) - 1, 0, 0, 0, 11]
    loss = evaluate(run, str(tmp_path / "t.jsonl"))["test/loss"]
    assert sum(table["nats"].to_pylist()) / (3 * len(VERSE) + 10) == pytest.approx(loss, rel=1e-6)
    known, *unknown, strange = table["perplexity"].to_pylist()
    assert unknown == [None] * 3
    assert 1 < known < 2 < strange
    in_memory = open_run(run).predict({"text": [VERSE * 3]})
    assert in_memory["nats"].to_pylist() == pytest.approx(table["nats"].to_pylist()[:1])


def test_predictions_of_a_split_are_of_its_characters(verses: Path, tmp_path: Path) -> None:
    run = verses / "runs" / "verse"
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    text = VERSE * 50
    for split, key, part in (
        ("train", "", text[: int(0.8 * 2700)]),
        ("validation", "val", text[int(0.8 * 2700) : int(0.9 * 2700)]),
        ("test", "test", text[int(0.9 * 2700) :]),
    ):
        predict(run, split, tmp_path / "p.parquet")
        (row,) = pq.read_table(tmp_path / "p.parquet").to_pylist()
        assert (row["document"], row["text"]) == ("verse.txt", part)
        assert row["characters"] == len(part) - 1
        if key:
            assert row["nats"] / row["tokens"] == pytest.approx(metrics[f"{key}/loss"], rel=1e-6)


def test_windows_are_evaluated_in_batches_that_training_has_shown_to_fit(tmp_path: Path) -> None:
    optimization = {"global_batch_size": 32, "accumulate": 4}
    job = job_of(tmp_path, task="language_modeling", optimization=optimization)
    assert evaluation_batch_rows(job) == 8
    assert evaluation_batch_rows(job.model_copy(update={"task": "classification"})) == 256


def test_check_says_how_the_text_is_read(verses: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (verses / "job.yaml").write_text(job_of(verses).to_yaml())
    assert main(["check", str(verses / "job.yaml")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0] == "verse: language_modeling (the text of column 'text' in windows of 16 of 14 different characters)"
    )
    assert [line.split()[:2] for line in lines[1:3]] == [["document", "ignore"], ["text", "text"]]
    assert lines[3:6] == [
        "135 train, 33 validation, 33 test windows, 0 bad",
        "validation: the next to last 270 characters of data.train, in their order",
        "test: the last 270 characters of data.train, in their order",
    ]


CASES = {
    "a network that is no language model": Bad(
        train("data.window=8", "network={kind: feedforward}"),
        (
            "data.window = 8 without data.time and data.horizon is language modeling, and network.kind = 'feedforward'",
            "name the column that orders the steps in data.time, or use network.kind: rnn or lstm",
        ),
    ),
    "a target": Bad(
        train("data.window=8", "data.target=label"),
        ("data.target = 'label' is there, and a language model predicts the next token of its text: remove it",),
    ),
    "a window longer than the text": Bad(
        train("data.window=5000"),
        (
            "data.window = 5000 reads more tokens than any",
            "has 2,430, the last to be predicted; set it to 2429 or less",
        ),
    ),
    "both directions": Bad(
        train("network.bidirectional=true"),
        ("network.bidirectional = true lets a language model read the tokens that it is to predict; set it to false",),
    ),
    "an empty file": Bad(
        train("data.train=empty.txt"),
        ("empty.txt: holds no rows; name a source that does",),
        lambda: Path("empty.txt").touch(),
    ),
    "a batch larger than the windows": Bad(
        train("optimization.global_batch_size=400"),
        ("global_batch_size = 400 is larger than the 152 training rows; set it to 152 or less",),
    ),
    "a metric of another task": Bad(
        train("early_stopping.monitor=val/accuracy"),
        ("'val/accuracy' is not recorded by this language_modeling job",),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("verse.txt").write_text(VERSE * 50)
    Path("job.yaml").write_text(
        "data: {train: verse.txt, window: 16}\nnetwork: {kind: lstm, hidden: 4}\n"
        "optimization: {global_batch_size: 16, max_epochs: 1}\n"
    )
    assert_refused(CASES[name], {}, capsys)
