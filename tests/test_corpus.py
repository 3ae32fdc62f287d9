"""Text to learn a language from: the held-out tail, the documents, the windows, and what is said of texts that do not
do.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raynn import sources
from raynn.corpus import EncodedCorpus, cut_texts, encoding_of, prepare_corpus, scoring_windows, training_windows
from raynn.corpus import understand_corpus as understand
from raynn.drivers import LocalDriver
from raynn.errors import DataError, JobError
from raynn.preparation import Prepared, split_summary
from raynn.preprocessing import Preprocessing
from raynn.ragged import Ragged
from raynn.sources import DataSettings
from raynn.splits import TEST, TRAIN, VALIDATION

LETTERS = "abcdefghij \n"


def text_of(length: int, seed: int = 0, letters: str = LETTERS) -> str:
    return "".join(np.random.default_rng(seed).choice(list(letters), length))


def prepared(folder: Path, **data: Any) -> Prepared:
    return prepare_corpus(understand(DataSettings(**data), folder), LocalDriver())


def message(folder: Path, **data: Any) -> str:
    with pytest.raises((DataError, JobError)) as caught:
        prepared(folder, **data)
    return str(caught.value)


def windows_of(ready: Prepared, split: int) -> list[tuple[str, int, int]]:
    """Text, `skip` and `characters` of every window."""
    encoded = ready.encoded
    assert isinstance(encoded, EncodedCorpus)
    tokenizer, found = encoding_of(ready.preprocessing).tokenizer, []
    for piece in encoded.pieces(split, 0, encoded.num_rows(split), lambda table: table):
        tokens = piece["tokens"]
        assert isinstance(tokens, Ragged)
        texts = [tokenizer.decode(tokens.values[a:b]) for a, b in zip(tokens.start_N, tokens.stop_N, strict=True)]
        found += zip(texts, piece["skip"], piece["characters"], strict=True)
    return found


def scored(windows: list[tuple[str, int, int]]) -> str:
    """The predicted characters, one window behind the other."""
    return "".join(text[1 + skip :] for text, skip, _ in windows)


# Splits


@pytest.mark.parametrize("length", [20, 29, 30, 111, 1003, 1115, 11154])
def test_the_tail_of_the_text_is_held_out_as_in_nanogpt(length: int, tmp_path: Path) -> None:
    text = text_of(length)
    (tmp_path / "t.txt").write_text(text)
    ready = prepared(tmp_path, train="t.txt", window=4)
    cut = int(0.9 * length)  # karpathy/nanoGPT, data/shakespeare_char/prepare.py
    assert scored(windows_of(ready, TRAIN)) == text[1:cut]
    assert scored(windows_of(ready, VALIDATION)) == text[cut + 1 :]
    assert not windows_of(ready, TEST)
    assert ready.notes[0] == f"validation: the last {length - cut:,} characters of data.train, in their order"


def test_training_validation_and_test_follow_one_another(tmp_path: Path) -> None:
    text = text_of(1003)
    (tmp_path / "t.txt").write_text(text)
    ready = prepared(tmp_path, train="t.txt", validation=0.145, test=0.1, window=8)
    train, validation, test = (scored(windows_of(ready, split)) for split in (TRAIN, VALIDATION, TEST))
    assert train == text[1 : int(0.755 * 1003)]
    assert validation == text[int(0.755 * 1003) + 1 : int(0.9 * 1003)]
    assert test == text[int(0.9 * 1003) + 1 :]
    assert ready.notes == (
        "validation: the next to last 145 characters of data.train, in their order",
        "test: the last 101 characters of data.train, in their order",
    )
    assert split_summary(ready) == "95 train, 35 validation, 24 test windows"
    assert [part.tolist() for part in ready.splits] == [[TRAIN]]
    assert [cut.tolist() for cut in ready.cuts] == [[[757, 145, 101]]]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("ab\n€", max_size=40), min_size=1, max_size=6), st.integers(4, 60), st.data())
def test_documents_stay_apart_wherever_files_are_cut(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str], part_bytes: int, data: st.DataObject
) -> None:
    """The whole of the text is cut at fractions of its characters, and each part of each document is a text."""
    documents = [f"{text}ab" for text in documents]
    folder = tmp_path_factory.mktemp("texts")
    for number, text in enumerate(documents):
        (folder / f"{number}.txt").write_text(text)
    whole = "".join(documents)
    validation, test = 0.3, data.draw(st.sampled_from([None, 0.25]))
    test_at = int(0.75 * len(whole)) if test else len(whole)
    validation_at = int((0.45 if test else 0.7) * len(whole))
    bounds = np.cumsum([0, *map(len, documents)])
    expected = {
        split: [whole[max(a, low) : min(b, high)] for a, b in pairwise(bounds) if max(a, low) < min(b, high)]
        for split, (low, high) in enumerate(pairwise([0, validation_at, test_at, len(whole)]))
    }
    if validation_at == 0 or not all(any(len(t) > 1 for t in expected[s]) for s in range(3 if test else 2)):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "SLICE_BYTES", part_bytes)
        ready = prepared(folder, train=str(folder), validation=validation, test=test, window=1)
    known = set(whole[:validation_at])
    for split in range(3):
        pairs = [a + b for text in expected[split] for a, b in pairwise(text)]
        pairs = ["".join(c if c in known else "\ufffd" for c in pair) for pair in pairs]
        assert windows_of(ready, split) == [(pair, 0, 1) for pair in pairs]


def test_separate_sources_are_separate_splits(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("abcabcabc")
    pq.write_table(pa.table({"id": [1, 2], "text": ["abca", "bcx"]}), tmp_path / "v.parquet")
    pyarrow.csv.write_csv(pa.table({"text": ["cab", "?"]}), tmp_path / "t.csv")
    ready = prepared(tmp_path, train="train.txt", validation="v.parquet", test="t.csv", window=3)
    assert encoding_of(ready.preprocessing).tokenizer.decode(range(1, 4)) == "abc"
    assert [windows_of(ready, split) for split in range(3)] == [
        [("abca", 0, 3), ("abca", 0, 3), ("abc", 0, 2)],
        [("abca", 0, 3), ("bc\ufffd", 0, 2)],
        [("cab", 0, 2)],
    ]
    assert ready.notes == (
        "validation: 1 of 7 tokens (0.14) are <unknown>: the vocabulary of the training text has none",
    )
    assert ready.task_reason == "the text of column 'text' in windows of 3 of 4 different characters"


def test_a_column_names_the_documents_of_a_split(tmp_path: Path) -> None:
    table = pa.table({"text": ["aaaa", "bbbb", "abab", None, "baba"], "part": ["x", "test", "x", "x", "x"]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    test = {"column": "part", "equals": "test"}
    ready = prepared(tmp_path, train="t.parquet", validation=0.25, test=test, window=3)
    assert [scored(windows_of(ready, split)) for split in range(3)] == ["aaabab", "ba", "bbb"]
    assert [spec.kind for spec in ready.preprocessing.features] == ["text"]


def test_every_kind_of_table_can_hold_the_documents(tmp_path: Path) -> None:
    texts = ["to be or not to be", "that is the question", "whether 'tis nobler in the mind"]
    table = pa.table({"speaker": ["H", "H", "H"], "verse": texts})
    pq.write_table(table, tmp_path / "t.parquet")
    pyarrow.csv.write_csv(table, tmp_path / "t.csv")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    for name in ("t.parquet", "t.csv", "t.jsonl"):
        for more in ({}, {"features": ("verse",)}, {"columns": {"verse": "text"}}):
            ready = prepared(tmp_path, train=name, window=8, **more)
            assert scored(windows_of(ready, TRAIN)) == "".join(text[1:] for text in texts)[:-7]


def test_the_catalog_has_text(tmp_path: Path) -> None:
    ready = prepared(tmp_path, train="markov_text", validation=0.1, window=64)
    assert encoding_of(ready.preprocessing).tokenizer.vocabulary_size == 65


# Tokens


def test_the_vocabulary_is_that_of_the_training_text(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("ab" * 45 + "bazzz" * 2)
    ready = prepared(tmp_path, train="t.txt", window=5)
    assert windows_of(ready, VALIDATION)[0] == ("ba\ufffd\ufffd\ufffdb", 0, 5)
    assert ready.notes[1] == (
        "validation: 6 of 10 tokens (0.6) are <unknown>: the vocabulary of the training text has none"
    )
    few = prepared(tmp_path, train="t.txt", window=5, vocabulary=2)
    assert few.notes[1] == "train: 45 of 90 tokens (0.5) are <unknown>: too rare for the vocabulary"


@pytest.mark.parametrize(
    ("tokens", "size"), [("characters", 256), ("characters", 300), ("bytes", 257), ("subwords", 300), ("words", 42)]
)
def test_every_kind_of_token(tokens: str, size: int, tmp_path: Path) -> None:
    alphabet = "".join(chr(0x4E00 + i) for i in range(size - 1)) if tokens == "characters" else "äbc def,"
    text = alphabet + text_of(3000, letters=alphabet)
    (tmp_path / "t.txt").write_text(text)
    ready = prepared(tmp_path, train="t.txt", tokens=tokens, vocabulary=size, window=16)
    assert ready.preprocessing.input_spec.vocabulary_size == size
    kept = next(iter(ready.encoded.pieces(TRAIN, 0, 1, lambda table: table)))["tokens"]
    assert isinstance(kept, Ragged)
    assert kept.values.dtype == (np.uint8 if size <= 256 else np.int16)
    validation = text[int(0.9 * len(text)) :]
    tokenizer = encoding_of(ready.preprocessing).tokenizer
    ids = tokenizer.encode(validation)
    windows = windows_of(ready, VALIDATION)
    assert sum(characters for _, _, characters in windows) == tokenizer.characters_of(ids[1:]).sum()
    if tokens == "characters":
        assert sum(characters for _, _, characters in windows) == len(validation) - 1
    assert Preprocessing.from_json(ready.preprocessing.to_json()) == ready.preprocessing


def test_a_trained_vocabulary_and_window_are_used_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc" * 20)
    (tmp_path / "b.txt").write_text("cdcdcdcd" * 5)
    first = prepared(tmp_path, train="a.txt", window=7)
    understood = understand(DataSettings(train="b.txt"), tmp_path)
    again = prepare_corpus(understood, LocalDriver(), first.preprocessing)
    assert again.preprocessing is first.preprocessing
    assert windows_of(again, TRAIN)[0] == ("c\ufffdc\ufffdc\ufffdc\ufffd", 0, 7)
    assert first.preprocessing.input_spec.window == 7


def test_the_default_window_fits_the_longest_document(tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("text\n" + "".join(f"{text_of(5, i, 'abc')}\n" for i in range(40)))
    assert prepared(tmp_path, train="names.csv").preprocessing.window == 4
    (tmp_path / "t.txt").write_text(text_of(400))
    assert prepared(tmp_path, train="t.txt").preprocessing.window == 256


def test_texts_are_cut_by_characters() -> None:
    column = pa.chunked_array([["aäb", None], ["€uro"]])
    cut = cut_texts(column, np.array([0, 0, 1, 2]), np.array([0, 1, 0, 0]), np.array([1, 3, 0, 4]))
    assert cut.to_pylist() == ["a", "äb", "", "€uro"]


# Windows

Runs = st.lists(st.integers(0, 30), max_size=8)


@given(Runs, st.integers(1, 12), st.data())
def test_training_predicts_every_token(lengths: list[int], window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    stop_R = np.cumsum([3, *lengths])[1:]
    start_R = stop_R - np.array(lengths, np.int64)
    plan = training_windows(start_R, stop_R, window, stride)
    counts = np.zeros(stop_R.max(initial=3), int)
    for start, stop in zip(plan.start_N, plan.stop_N, strict=True):
        assert 2 <= stop - start <= window + 1
        assert any(a <= start and stop <= b for a, b in zip(start_R, stop_R, strict=True)), "within one document"
        counts[start + 1 : stop] += 1
    expected = np.zeros(len(counts), bool)
    for start, stop in zip(start_R, stop_R, strict=True):
        expected[start + 1 : stop] = True
    assert ((counts > 0) == expected).all()
    assert stride < window or counts.max(initial=0) <= 1
    assert not plan.columns["skip"].any()


@given(Runs, st.integers(1, 12))
def test_scoring_predicts_every_token_once_with_half_a_window_before_it(lengths: list[int], window: int) -> None:
    stop_R = np.cumsum([3, *lengths])[1:]
    start_R = stop_R - np.array(lengths, np.int64)
    plan = scoring_windows(start_R, stop_R, window)
    begin = {place: start for start, stop in zip(start_R, stop_R, strict=True) for place in range(start, stop)}
    found = []
    for start, stop, skip in zip(plan.start_N, plan.stop_N, plan.columns["skip"], strict=True):
        assert stop - start <= window + 1
        assert begin[start] == begin[stop - 1], "within one document"
        for place in range(start + 1 + skip, stop):
            found.append(place)
            assert place - start >= min(place - begin[place], window / 2)
    assert found == [place for place in begin if place != begin[place]]


# What is said


def test_settings_that_a_language_model_cannot_have(tmp_path: Path) -> None:
    text = {"train": "t.txt"}
    assert message(tmp_path, **text, target="label") == (
        "data.target = 'label' is there, and a language model predicts the next token of its text: remove it; or, to "
        "predict the column from text, use network.kind: lstm without data.window"
    )
    assert message(tmp_path, **text, group="author") == (
        "data.group = 'author' is not for language modeling, which holds out the end of the text: remove it, or name "
        "files or a column for data.validation and data.test"
    )
    assert message(tmp_path, **text, test={"since": "2024-01-01"}) == (
        "data.test: a range of time is not for language modeling; give a fraction, a source, or {column: ..., "
        "equals: ...}"
    )
    assert message(tmp_path, **text, window=8, stride=9) == (
        "data.stride = 9 is larger than data.window = 8: tokens between two windows would never be learned; set it to "
        "8 or less"
    )
    assert message(tmp_path, **text, stride=257).startswith("data.stride = 257 is larger than data.window = 256: ")


def test_tables_without_one_column_of_text(tmp_path: Path) -> None:
    long = [f"this is the long review number {number} of many" for number in range(10)]
    pq.write_table(pa.table({"a": long, "b": long, "c": ["x"] * 10, "n": range(10)}), tmp_path / "two.parquet")
    pq.write_table(pa.table({"c": ["x"] * 10, "n": range(10)}), tmp_path / "none.parquet")
    pq.write_table(pa.table({"n": range(10)}), tmp_path / "numbers.parquet")
    assert message(tmp_path, train="two.parquet") == (
        "two.parquet: columns 'a', 'b' all hold text, and a language model reads one; name it: `data.features: [a]` "
        "(or b)"
    )
    assert message(tmp_path, train="none.parquet") == (
        "none.parquet: no column reads like text, and a language model reads one; name it: `data.features: [c]`"
    )
    assert message(tmp_path, train="numbers.parquet") == (
        "numbers.parquet: no column reads like text, and a language model reads one; name a text file, or a table with "
        "a column of text"
    )
    for features in (("n",), ("a", "b")):
        assert message(tmp_path, train="two.parquet", features=features) == (
            f"data.features names {', '.join(map(repr, features))}, and a language model reads one column of text; "
            "name it: `data.features: [a]` (or b, c)"
        )


def test_texts_too_short_for_their_windows_and_splits(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a" * 20)
    assert message(tmp_path, train="t.txt", window=18) == (
        "data.window = 18 reads more tokens than any training document can give, of which the longest has 18, the last "
        "to be predicted; set it to 17 or less"
    )
    assert prepared(tmp_path, train="t.txt", window=17).encoded.num_rows(TRAIN) == 1
    assert message(tmp_path, train="t.txt", validation=0.01, test=0.01) == (
        "data.validation = 0.01 of 20 characters of data.train is no character at all; give a larger fraction, more "
        "text, or a source of its own"
    )
    assert message(tmp_path, train="t.txt", validation=0.5, test=0.5) == (
        "data.validation = 0.5 of 20 characters of data.train leaves none to train on; give smaller fractions, or more "
        "text"
    )
    assert message(tmp_path, train="t.txt", validation=0.05) == (
        "data.validation: none of its documents has two tokens, and the first of a document cannot be predicted; give "
        "longer texts, or a larger fraction"
    )
    (tmp_path / "one.csv").write_text("text\na\nb\nc\n")
    assert message(tmp_path, train="one.csv", validation="t.txt") == (
        "data.train: its longest document has 1 tokens for training, and the first of a document cannot be predicted; "
        "give longer texts"
    )
    (tmp_path / "empty.txt").touch()
    assert message(tmp_path, train="empty.txt") == "empty.txt: holds no rows; name a source that does"
    (tmp_path / "blank.jsonl").write_text('{"text": ""}\n{"text": null}\n')
    assert message(tmp_path, train="blank.jsonl") == (
        "data.train holds no text: every document is empty; name text to learn from"
    )


def test_what_is_not_utf_8_is_a_bad_row(tmp_path: Path) -> None:
    for name in ("a", "c"):
        (tmp_path / f"{name}.txt").write_text("abc" * 10)
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    said = f"{tmp_path / 'b.txt'}, row 0, column text: byte 3 (0xe9) is not UTF-8"
    assert message(tmp_path, train=str(tmp_path), window=4) == (
        "1 of 3 rows (33.33%) are bad, and data.max_bad_rows = 0 allows fewer:\n  "
        f"{said}\nMend them, or quarantine them with data.max_bad_rows=0.4"
    )
    ready = prepared(tmp_path, train=str(tmp_path), max_bad_rows=0.4, window=4)
    assert scored(windows_of(ready, TRAIN)) == "bc" + "abc" * 9 + "bc" + "abc" * 7
    assert [row.file for row in ready.bad_rows] == [str(tmp_path / "b.txt")]
    assert message(tmp_path, train=str(tmp_path / "b.txt"), max_bad_rows=1.0) == (
        f"no row could be read; the first: {said}"
    )
