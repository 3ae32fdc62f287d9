"""Language models: the corpus and the losses are the same, whoever prepares and however many train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raynn import sources
from raynn.corpus import prepare_corpus, understand_corpus
from raynn.drivers import LocalDriver
from raynn.job import Job
from raynn.preparation import Prepared
from raynn.ragged import Ragged
from raynn.sources import DataSettings
from raynn.trainer import train

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of texts of any lengths, one of them in several fragments, and a table with a block of empty ones."""
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    for number, length in enumerate([700, 5, 3000, 40, 1]):
        (folder / f"{number}.txt").write_text("".join(rng.choice(list("abcdeé \n"), length)))
    for name, rows in (("a", ["to be", "or not"]), ("b", ["", None]), ("c", ["to be again and again", "and again"])):
        lines = [json.dumps({"text": text}) + "\n" for text in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def windows_of(prepared: Prepared, fetch: Any) -> list[list[Any]]:
    """Tokens, `skip` and `characters` of every window of every split."""
    found: list[list[Any]] = []
    for split in range(3):
        for piece in prepared.encoded.pieces(split, 0, prepared.encoded.num_rows(split), fetch):
            tokens = piece["tokens"]
            assert isinstance(tokens, Ragged)
            cut = [tokens.values[a:b].tolist() for a, b in zip(tokens.start_N, tokens.stop_N, strict=True)]
            found += zip([split] * len(cut), cut, piece["skip"].tolist(), piece["characters"].tolist(), strict=True)
    return found


@pytest.mark.slow
def test_the_corpus_does_not_depend_on_the_driver(
    texts: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raynn.data import RayDriver, fetch

    monkeypatch.setattr(sources, "SLICE_BYTES", 800)
    for train_source, validation in ((str(texts / "*.txt"), 0.2), (str(texts / "*.jsonl"), 0.3)):
        settings = DataSettings(train=train_source, validation=validation, window=12)
        understood = understand_corpus(settings, texts)
        assert len(understood.fragments) >= 3
        here = prepare_corpus(understood, LocalDriver())
        there = prepare_corpus(understood, RayDriver())
        assert there.preprocessing == here.preprocessing
        assert there.notes == here.notes
        expected = windows_of(here, lambda table: table)
        assert len(expected) > 3
        assert windows_of(there, fetch) == expected


@pytest.mark.slow
def test_losses_of_a_language_model_do_not_depend_on_the_workers(
    texts: Path, ray_cluster: None, tmp_path: Path
) -> None:
    def history(name: str, **resources: Any) -> list[dict[str, float]]:
        tree = {
            "name": name,
            "data": {"train": str(texts / "*.txt"), "test": 0.1, "window": 24},
            "network": {"kind": "lstm", "hidden": 16, "embedding": 8},
            "regularization": {"dropout": 0.2},
            "optimization": {"global_batch_size": 12, "max_epochs": 2},
            "resources": resources,
            "storage": str(tmp_path),
        }
        run = train(Job.from_dict(tree))
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [*records, json.loads((run / "result.json").read_text())["metrics"]]

    one = history("one")
    two = history("two", workers=2, driver="ray", cpus_per_worker=1)
    for alone, together in zip(one, two, strict=True):
        losses = {key: value for key, value in alone.items() if "/" in key}
        assert {key: together[key] for key in losses} == pytest.approx(losses, rel=1e-5)
