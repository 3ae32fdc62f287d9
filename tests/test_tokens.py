from __future__ import annotations

import dataclasses
import itertools
import json
import pickle
import re
import sys
from collections import Counter
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from raynn import tokens
from raynn.errors import DataError, JobError
from raynn.tokens import (
    ByteTokenizer,
    CharacterTokenizer,
    SubwordTokenizer,
    TextSummary,
    Tokenizer,
    TokenKind,
    WordTokenizer,
    check_installed,
    fit_tokenizer,
    pieces_of,
    summarize_text,
    words_of,
)

KINDS: tuple[TokenKind, ...] = get_args(TokenKind)
LOSSLESS: tuple[TokenKind, ...] = ("bytes", "characters", "subwords")
VERSE = "The king's the thing; the thing is the king.\r\n\tNaïve 漢字 🙂\0 the 1984 kings_ don't!\n\n"
# Everything that Arrow holds: any text but for halves of surrogate pairs.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("  \r\n\0aabb'123é🙂"), max_size=60)


def fitted(texts: list[str | None], kind: TokenKind, vocabulary: int = 8192) -> Tokenizer:
    return fit_tokenizer(summarize_text(pa.array(texts, pa.string()), kind), vocabulary)


def rows(tokenizer: Tokenizer, column: Any) -> list[list[int]]:
    encoded = tokenizer.encode_column(column)
    assert encoded.type == pa.large_list(pa.int32())
    assert encoded.null_count == 0
    return encoded.to_pylist()


VERSE_TOKENIZERS = {kind: fitted([VERSE], kind, vocabulary=280) for kind in KINDS}


# What each kind is


def test_bytes_are_those_of_utf8_plus_one() -> None:
    assert ByteTokenizer().encode("Aé\0").tolist() == [66, 1 + 0xC3, 1 + 0xA9, 1]
    assert ByteTokenizer().vocabulary_size == 257


def test_characters_are_numbered_by_code_point() -> None:
    tokenizer = fitted(["ba🙂", "a\n"], "characters")
    assert tokenizer == CharacterTokenizer("\nab🙂")
    assert tokenizer.encode("ab\n🙂c\U0010ffff").tolist() == [2, 3, 1, 4, 0, 0]
    assert tokenizer.vocabulary_size == 5


def test_words_are_lower_cased_composed_and_apart_from_punctuation() -> None:
    assert words_of("Don't stop, CAFÉ! x_1 3.5\r\n(l\u2019été)") == [
        *["don't", "stop", ",", "café", "!", "x_1", "3", ".", "5", "(", "l\u2019été", ")"]
    ]
    assert words_of("cafe\u0301") == words_of("caf\u00e9") == ["café"]


def test_words_are_numbered_by_frequency_then_by_code_point() -> None:
    tokenizer = fitted(["b b a c c", "a d"], "words")
    assert tokenizer == WordTokenizer(("a", "b", "c", "d"))
    assert tokenizer.encode("D e A").tolist() == [4, 0, 1]


def test_of_many_words_those_seen_once_are_unknown() -> None:
    often = [f"w{number}" for number in range(49)]
    assert fitted([" ".join([*often, *often, "once"])], "words").vocabulary_size == 1 + 50
    assert fitted([" ".join([*often, *often, "once", "twice"])], "words").vocabulary_size == 1 + 49


@pytest.mark.parametrize(("kind", "kept"), [("characters", ["a", "b", "c"]), ("words", ["c", "a", "b"])])
def test_the_vocabulary_bounds_all_tokens_with_the_unknown_one(kind: TokenKind, kept: list[str]) -> None:
    tokenizer = fitted(["c c c d b a a b"] if kind == "words" else ["cccdbaab"], kind, vocabulary=4)
    assert tokenizer.vocabulary_size == 4
    assert [tokenizer.decode([token]) for token in range(1, 4)] == kept


def reference_merges(counts: dict[str, int], vocabulary: int) -> tuple[tuple[int, int], ...]:
    """Byte pair encoding as in Sennrich et al. 2016, algorithm 1: of the most frequent pairs, seen twice or more, the
    one of the lowest tokens is merged."""
    words = [([1 + byte for byte in piece.encode()], count) for piece, count in counts.items()]
    merges: list[tuple[int, int]] = []
    while 257 + len(merges) < vocabulary:
        pairs: Counter[tuple[int, int]] = Counter()
        for word, count in words:
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        words = [(merged(word, best, 257 + len(merges)), count) for word, count in words]
        merges.append(best)
    return tuple(merges)


def merged(word: list[int], pair: tuple[int, int], token: int) -> list[int]:
    out: list[int] = []
    for each in word:
        out[-1:] = [token] if out and (out[-1], each) == pair else [*out[-1:], each]
    return out


@given(st.lists(st.text("abé ", max_size=12), max_size=6), st.integers(257, 275))
@settings(deadline=None, max_examples=50)
def test_subwords_are_those_of_the_plain_algorithm(texts: list[str], vocabulary: int) -> None:
    tokenizer = fitted([*texts], "subwords", vocabulary)
    assert isinstance(tokenizer, SubwordTokenizer)
    counts = Counter(piece for text in texts for piece in pieces_of(text))
    assert tokenizer.merges == reference_merges(counts, vocabulary)
    expected = []
    for piece in pieces_of("".join(texts)):
        word = [1 + byte for byte in piece.encode()]
        for place, pair in enumerate(tokenizer.merges):
            word = merged(word, pair, 257 + place)
        expected += word
    assert tokenizer.encode("".join(texts)).tolist() == expected
    assert tokenizer.vocabulary_size == 257 + len(tokenizer.merges) <= vocabulary


def test_merges_to_the_same_bytes_are_one_token() -> None:
    tokenizer = SubwordTokenizer(((98, 98), (257, 98), (98, 257), (258, 258)))
    assert tokenizer.vocabulary_size == 260
    assert tokenizer.decode([257, 258, 259]) == "aa" + "aaa" + "aaaaaa"
    assert tokenizer.encode("aaa").tolist() == [258]


@given(TEXTS)
@settings(deadline=None)
def test_every_character_is_in_one_piece_of_bounded_length(text: str) -> None:
    pieces = pieces_of(text * 5)
    assert "".join(pieces) == text * 5
    assert max(map(len, pieces), default=0) <= 65


@pytest.mark.parametrize("run", ["x", "7", "-", " ", "_", "漢"])
def test_pieces_of_a_text_without_an_end_are_bounded(run: str) -> None:
    assert max(map(len, pieces_of(" " + run * 1000))) <= 65


def test_pieces_begin_with_their_blank() -> None:
    text = "I'll say  'don't' 12 times_\n\n ok?!"
    assert pieces_of(text) == [
        "I",
        "'ll",
        " say",
        " ",
        " '",
        "don",
        "'t",
        "'",
        " 12",
        " times",
        "_",
        "\n\n",
        " ok",
        "?!",
    ]


# There and back


@pytest.mark.parametrize("kind", LOSSLESS)
@given(texts=st.lists(TEXTS | st.none(), min_size=1, max_size=5))
@settings(deadline=None, max_examples=50)
def test_decoding_gives_the_text_back(kind: TokenKind, texts: list[str | None]) -> None:
    tokenizer = fitted(texts, kind, vocabulary=300)
    column = pa.array(texts, pa.string())
    encoded = rows(tokenizer, column)
    assert [tokenizer.decode(ids) for ids in encoded] == [text or "" for text in texts]
    for text, ids in zip(texts, encoded, strict=True):
        assert tokenizer.encode(text or "").tolist() == ids
        assert tokenizer.unknown(text or "") == ()
        assert tokenizer.characters_of(np.array(ids, np.int32)).sum() == len(text or "")
        assert all(0 < id < tokenizer.vocabulary_size for id in ids)


@pytest.mark.parametrize("kind", ["bytes", "subwords"])
@given(text=TEXTS)
@settings(deadline=None, max_examples=50)
def test_bytes_and_subwords_know_what_they_never_saw(kind: TokenKind, text: str) -> None:
    tokenizer = VERSE_TOKENIZERS[kind]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.unknown(text) == ()


@given(st.lists(TEXTS, max_size=5))
@settings(deadline=None, max_examples=50)
def test_words_decode_to_the_same_words(texts: list[str]) -> None:
    tokenizer = fitted([*texts], "words")
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids.tolist() == tokenizer.encode(" ".join(words_of(text))).tolist()
        assert len(ids) == len(words_of(text))


def test_decoded_words_stand_as_in_print() -> None:
    tokenizer = fitted(["the king ( of men ) , he said : is't you ? 3 . 5 % ..."], "words")
    assert tokenizer.decode(tokenizer.encode("The KING (of men), he said: Is't you?")) == (
        "the king (of men), he said: is't you?"
    )
    assert tokenizer.decode(tokenizer.encode("the queen ...")) == "the <unknown>..."


@pytest.mark.parametrize("kind", LOSSLESS)
def test_token_0_and_broken_characters_decode_to_the_replacement_character(kind: TokenKind) -> None:
    tokenizer = VERSE_TOKENIZERS[kind]
    assert tokenizer.decode([0, *tokenizer.encode("is"), 0]) == "\ufffdis\ufffd"
    if kind != "characters":
        assert tokenizer.decode([*ByteTokenizer().encode("é")[:1], *ByteTokenizer().encode("a")]) == "\ufffda"


def test_characters_of_tokens() -> None:
    ids_BT = np.stack([ByteTokenizer().encode("aé🙂")] * 2)
    assert ByteTokenizer().characters_of(ids_BT).tolist() == [[1, 1, 0, 1, 0, 0, 0]] * 2
    assert CharacterTokenizer("ab").characters_of(np.array([0, 1, 2])).tolist() == [1, 1, 1]
    assert WordTokenizer(("don't", "é")).characters_of(np.array([0, 1, 2])).tolist() == [0, 5, 1]
    assert SubwordTokenizer(((98, 98), (196, 257))).characters_of(np.array([0, 257, 258, 196, 98])).tolist() == [
        *[0, 2, 3, 1, 1]
    ]


# What is unknown


def test_what_training_never_saw_is_named_once_in_the_order_of_the_text() -> None:
    assert CharacterTokenizer("abc").unknown("zebra cab\nz") == ("z", "e", "r", " ", "\n")
    assert WordTokenizer(("the", "king")).unknown("The Queen, the queen") == ("queen", ",")
    assert WordTokenizer(("the", "king")).encode("The Queen, the king").tolist() == [1, 0, 0, 1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_half_of_a_surrogate_pair_is_no_character(kind: TokenKind) -> None:
    tokenizer = VERSE_TOKENIZERS[kind]
    assert tokenizer.unknown("the \udc80\udc80") == ("\udc80",)
    with pytest.raises(DataError) as caught:
        tokenizer.encode("the \udc80")
    assert str(caught.value) == (
        r"'\udc80' at place 4 of the text is half of a surrogate pair and no character: "
        "mostly a byte that was not UTF-8. Save the text as UTF-8, or take it out"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_that_are_not_utf8_are_refused(kind: TokenKind) -> None:
    binary = pa.array([b"the", b"\xff\xfe", b"king"])
    column = pa.StringArray.from_buffers(3, *binary.buffers()[1:])
    message = r"^text that is not UTF-8: .*; convert the file to UTF-8$"
    with pytest.raises(DataError, match=message):
        VERSE_TOKENIZERS[kind].encode_column(column)
    with pytest.raises(DataError, match=message):
        summarize_text(column, kind)


# Columns


COLUMNS = {
    "string": lambda texts: pa.array(texts, pa.string()),
    "large_string": lambda texts: pa.array(texts, pa.large_string()),
    "string_view": lambda texts: pa.array(texts, pa.string_view()),
    "dictionary": lambda texts: pa.array(texts, pa.string()).dictionary_encode(),
    "slice": lambda texts: pa.array(["before", None, *texts, "after"], pa.string()).slice(2, len(texts)),
    "chunks": lambda texts: pa.chunked_array([[], texts[:2], texts[2:]], pa.string()),
    "chunks of a slice": lambda texts: pa.chunked_array([["before", *texts]], pa.large_string()).slice(1),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", COLUMNS.values(), ids=COLUMNS)
def test_columns_of_any_type_encode_as_their_texts(kind: TokenKind, make: Any) -> None:
    tokenizer = VERSE_TOKENIZERS[kind]
    texts = ["the kings", None, "", VERSE, "🙂 the\r\n", "\0", "the kings"]
    expected = [tokenizer.encode(text or "").tolist() for text in texts]
    assert rows(tokenizer, make(texts)) == expected
    assert expected[1] == expected[2] == []
    assert summarize_text(make(texts), kind) == summarize_text(pa.array(texts), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_of_a_column_encodes_its_own_rows(kind: TokenKind) -> None:
    view = pa.array(["before", "the kings", "é", "after"], pa.large_string()).slice(1, 2)  # no null: nothing is copied
    tokenizer = VERSE_TOKENIZERS[kind]
    assert rows(tokenizer, view) == [tokenizer.encode(text).tolist() for text in ("the kings", "é")]


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_column_may_lack_its_offsets(kind: TokenKind) -> None:
    column = pa.Array.from_buffers(pa.large_string(), 0, [None, None, pa.py_buffer(b"")])
    assert rows(VERSE_TOKENIZERS[kind], column) == []


@pytest.mark.parametrize("kind", KINDS)
def test_columns_without_text_have_no_tokens(kind: TokenKind) -> None:
    tokenizer = fitted([None, ""], kind)
    assert tokenizer.vocabulary_size == {"bytes": 257, "subwords": 257}.get(kind, 1)
    assert rows(tokenizer, pa.array([], pa.string())) == []
    assert rows(tokenizer, pa.chunked_array([], pa.string())) == []
    assert rows(tokenizer, pa.nulls(2)) == [[], []]
    assert tokenizer.encode("").tolist() == []
    assert tokenizer.decode([]) == ""


# Fitting


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(TEXTS | st.none(), max_size=8), cut=st.integers(0, 8), vocabulary=st.integers(257, 300))
@settings(deadline=None, max_examples=25)
def test_a_fit_does_not_depend_on_cuts_or_order(
    kind: TokenKind, texts: list[str | None], cut: int, vocabulary: int
) -> None:
    whole = summarize_text(pa.array(texts, pa.string()), kind)
    first, second = (summarize_text(pa.array(part, pa.string()), kind) for part in (texts[:cut], texts[cut:]))
    before = pickle.dumps(first)
    assert first.merge(second) == second.merge(first) == whole
    assert pickle.dumps(first) == before
    assert fit_tokenizer(second.merge(first), vocabulary) == fit_tokenizer(whole, vocabulary)


def test_pieces_beyond_the_sample_are_thinned_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "SAMPLE_PIECES", 100)
    counts = {"aaaa": 600, "bbb": 390, "cc": 10}
    assert tokens._thinned(Counter(counts), 100) == {"aaaa": 60, "bbb": 39, "cc": 1}
    assert tokens._thinned(Counter(counts), 10) == {"aaaa": 6, "bbb": 4}
    assert tokens._thinned(Counter(counts), 1000) == counts
    tokenizer = fit_tokenizer(TextSummary("subwords", Counter(counts)), 300)
    assert isinstance(tokenizer, SubwordTokenizer)
    assert tokenizer.merges == reference_merges({"aaaa": 60, "bbb": 39, "cc": 1}, 300)


def test_subwords_need_a_token_for_each_byte() -> None:
    with pytest.raises(JobError) as caught:
        fitted([VERSE], "subwords", vocabulary=256)
    assert str(caught.value) == (
        "data.vocabulary: 256 is too small for data.tokens: subwords, which has a token for each of 256 bytes and one "
        "for padding; set it to 257 or more, or set data.tokens: characters"
    )


def test_without_the_library_subwords_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    message = re.escape(
        "data.tokens: subwords needs the package tokenizers, which is not installed; "
        "run `pip install 'raynn[text]'`, or set data.tokens: characters"
    )
    tokenizer = SubwordTokenizer(((98, 98),))
    assert tokenizer.decode([257]) == "aa"
    for needs_it in (
        lambda: tokenizer.encode("aa"),
        lambda: fitted(["aa"], "subwords"),
        lambda: check_installed("subwords"),
    ):
        with pytest.raises(JobError, match=message):
            needs_it()
    for kind in ("bytes", "characters", "words"):
        check_installed(kind)
        fitted(["aa"], kind).encode("a")


# Keeping


@dataclasses.dataclass(frozen=True)
class Holder:
    """Stands for an encoding that has a tokenizer."""

    tokenizer: Tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_json_gives_the_tokenizer_back(kind: TokenKind) -> None:
    tokenizer = VERSE_TOKENIZERS[kind]
    ids = tokenizer.encode(VERSE)  # what encoding keeps at hand must not be saved
    tokenizer.characters_of(ids)
    saved = json.loads(json.dumps(dataclasses.asdict(Holder(tokenizer)), allow_nan=False))
    assert saved["tokenizer"]["kind"] == kind
    restored = TypeAdapter(Holder).validate_python(saved).tokenizer
    assert restored == tokenizer
    assert type(restored) is type(tokenizer)
    assert restored.encode(VERSE).tolist() == ids.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_in_use_travels_between_processes(kind: TokenKind) -> None:
    tokenizer = VERSE_TOKENIZERS[kind]
    ids = tokenizer.encode(VERSE)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy == tokenizer
    assert copy.encode(VERSE).tolist() == ids.tolist()
