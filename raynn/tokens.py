"""Text as integers, and back: bytes, characters, words or subwords, from a vocabulary fitted on the training rows.

Token 0 is <unknown>, what no training row has, and padding. Bytes, characters and subwords keep a text as it is (no
Unicode normalization; "\\r\\n", NUL and blanks are text like any other), so that decoding gives it back. Words do not:
they are lower-cased, composed (Unicode NFC) and parted from their blanks. A null and an empty text have no tokens.
Shapes: N texts, S tokens of all of them, T tokens of one, V vocabulary.
"""

from __future__ import annotations

import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, repeat
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raynn.errors import DataError, JobError

TokenKind = Literal["bytes", "characters", "words", "subwords"]
Tokens = npt.NDArray[np.int32]
Integers = npt.NDArray[np.int64]

UNKNOWN = "\ufffd"  # how token 0 is written where characters are joined: Unicode's own replacement character
UNKNOWN_WORD = "<unknown>"
RARE_WORDS = 50
NUM_BYTES = 256
MIN_SUBWORDS = 1 + NUM_BYTES
SAMPLE_PIECES = 2**21  # subwords are fitted to at most so many, in two or three seconds
_BYTES = (b"", *(bytes([byte]) for byte in range(NUM_BYTES)))  # the text of each token; none of token 0
_SURROGATE = re.compile("[\ud800-\udfff]")
# Don't, rock'n'roll; a number; one mark of punctuation.
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")
# The pieces that a subword never crosses, as in GPT-2 (Radford et al. 2019, section 2.2, and its encoder.py): a short
# ending, a run of letters, of digits or of marks with the blank before it, blanks. They end after 64 characters, so
# that text without blanks (a genome, base64) is many pieces of bounded cost, too. Every character is in one piece.
_PIECE = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]{1,64}| ?\d{1,64}| ?(?:[^\w\s]|_){1,64}|\s{1,64}(?!\S)|\s{1,64}")


class _Tokenizer(ABC):
    """What the four kinds have in common."""

    @property
    @abstractmethod
    def vocabulary_size(self) -> int:
        """V: ids are 0 .. V - 1."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids [T]; padding is for the caller to cut off. Bytes that are no whole character become U+FFFD,
        and so does token 0; among words it is `<unknown>`.
        """

    @abstractmethod
    def unknown(self, text: str) -> tuple[str, ...]:
        """What the text has and no token stands for: characters or words, each once, in the order of the text.

        Bytes and subwords know every character; what is left are halves of surrogate pairs, which are none.
        """

    @abstractmethod
    def _encode(self, text: pa.LargeStringArray) -> tuple[Tokens, Integers]:
        """Tokens of all texts [S], none of them null, and how many each has [N]."""

    @property
    @abstractmethod
    def _num_characters_V(self) -> Integers: ...

    def encode(self, text: str) -> Tokens:
        """Tokens [T]. DataError for half of a surrogate pair, which is no character; see `unknown`."""
        if found := _SURROGATE.search(text):
            raise DataError(
                f"{found[0]!a} at place {found.start()} of the text is half of a surrogate pair and no character: "
                "mostly a byte that was not UTF-8. Save the text as UTF-8, or take it out"
            )
        return self._encode(pa.array([text], pa.large_string()))[0]

    def encode_column(self, column: pa.Array | pa.ChunkedArray) -> pa.LargeListArray:
        """Lists of int32 tokens, one for each text of a string column of any type.

        DataError for bytes that are not UTF-8, which some Parquet files hold.
        """
        ids_S, lengths_N = self._encode(_strings(column))
        return pa.LargeListArray.from_arrays(pa.array(_offsets(lengths_N)), pa.array(ids_S))

    def characters_of(self, ids: npt.NDArray[np.integer[Any]]) -> Integers:
        """How many characters each token stands for, in the shape of `ids`: their sum is that of the text.

        Of the bytes of a character the first counts 1 and the others 0. A word counts its own, without the blank.
        Token 0 counts 1 among characters and 0 elsewhere, so padding has to be cut off or weighted by 0.
        """
        return self._num_characters_V[ids]


@dataclass(frozen=True)
class ByteTokenizer(_Tokenizer):
    """1 + each byte of the text's UTF-8."""

    kind: Literal["bytes"] = "bytes"

    @property
    def vocabulary_size(self) -> int:
        """257."""
        return len(_BYTES)

    def decode(self, ids: Iterable[int]) -> str:
        """See `_Tokenizer`."""
        return _join_bytes(_BYTES, ids)

    def unknown(self, text: str) -> tuple[str, ...]:
        """See `_Tokenizer`."""
        return _once(_SURROGATE.findall(text))

    def _encode(self, text: pa.LargeStringArray) -> tuple[Tokens, Integers]:
        bytes_S = np.frombuffer(_joined(text), np.uint8)
        return bytes_S.astype(np.int32) + 1, pc.binary_length(text).to_numpy()

    @cached_property
    def _num_characters_V(self) -> Integers:
        return _num_first_bytes(_BYTES)


@dataclass(frozen=True)
class CharacterTokenizer(_Tokenizer):
    """1 + a character's place in the alphabet, which is sorted by code point."""

    alphabet: str
    kind: Literal["characters"] = "characters"

    @property
    def vocabulary_size(self) -> int:
        """1 + the alphabet's."""
        return 1 + len(self.alphabet)

    def decode(self, ids: Iterable[int]) -> str:
        """See `_Tokenizer`."""
        tokens = UNKNOWN + self.alphabet
        return "".join([tokens[id] for id in ids])

    def unknown(self, text: str) -> tuple[str, ...]:
        """See `_Tokenizer`."""
        known = set(self.alphabet)
        return tuple(character for character in _once(text) if character not in known)

    def _encode(self, text: pa.LargeStringArray) -> tuple[Tokens, Integers]:
        codes_S = _code_points(str(_joined(text), "utf-8"))
        known = _code_points(self.alphabet)
        id_of = np.zeros(known.max(initial=0) + 2, np.int32)  # the last one is every code point beyond the alphabet
        id_of[known] = np.arange(1, len(known) + 1)
        return id_of[np.minimum(codes_S, len(id_of) - 1)], pc.utf8_length(text).to_numpy()

    @cached_property
    def _num_characters_V(self) -> Integers:
        return np.ones(self.vocabulary_size, np.int64)


@dataclass(frozen=True)
class WordTokenizer(_Tokenizer):
    """1 + the place of a lower-cased word or mark of punctuation among `words`, most frequent first.

    A word is a run of letters and digits, apostrophes within it included. Scripts that put no blanks between words, or
    write vowels as marks, are better served by subwords.
    """

    words: tuple[str, ...]
    kind: Literal["words"] = "words"

    @property
    def vocabulary_size(self) -> int:
        """1 + the number of words."""
        return 1 + len(self.words)

    def decode(self, ids: Iterable[int]) -> str:
        """See `_Tokenizer`. Blanks stand between words, none before a comma or after an opening bracket."""
        tokens = (UNKNOWN_WORD, *self.words)
        text = " ".join(tokens[id] for id in ids)
        return re.sub(r" (?=[,.;:!?%)\]}…”](?: |$))|(?<=[(\[{“¿¡]) ", "", text)

    def unknown(self, text: str) -> tuple[str, ...]:
        """See `_Tokenizer`; in lower case."""
        return tuple(word for word in _once(words_of(text)) if word not in self._id_of)

    def _encode(self, text: pa.LargeStringArray) -> tuple[Tokens, Integers]:
        words_N = [words_of(each) for each in text.to_pylist()]
        return _looked_up(self._id_of, words_N)

    @cached_property
    def _id_of(self) -> dict[str, int]:
        return {word: id for id, word in enumerate(self.words, start=1)}

    @cached_property
    def _num_characters_V(self) -> Integers:
        return np.array([0, *map(len, self.words)], np.int64)


@dataclass(frozen=True)
class SubwordTokenizer(_Tokenizer):
    """Byte pair encoding (Sennrich et al. 2016, section 3.2) of bytes: tokens 1 .. 256 are the bytes, and each merge
    of two tokens is the next one, unless an earlier merge made the same bytes.

    The merges are kept rather than the library's own file: they are numbers, the same in every version of it, and
    decoding needs no library. Encoding needs `tokenizers`; JobError where it is not installed.
    """

    merges: tuple[tuple[int, int], ...]
    kind: Literal["subwords"] = "subwords"

    @property
    def vocabulary_size(self) -> int:
        """1 + 256 + the number of different merged tokens."""
        return len(self._tokens)

    def decode(self, ids: Iterable[int]) -> str:
        """See `_Tokenizer`."""
        return _join_bytes(self._tokens, ids)

    def unknown(self, text: str) -> tuple[str, ...]:
        """See `_Tokenizer`."""
        return _once(_SURROGATE.findall(text))

    def _encode(self, text: pa.LargeStringArray) -> tuple[Tokens, Integers]:
        pieces_N = [pieces_of(each) for each in text.to_pylist()]
        place_of = {piece: place for place, piece in enumerate(_once(piece for row in pieces_N for piece in row))}
        ids_D = [self._ids_of_piece(piece) for piece in place_of]  # each different piece once
        lengths_D = np.array([len(ids) for ids in ids_D], np.int64)
        flat = np.array([id for ids in ids_D for id in ids], np.int32)
        places_P, num_pieces_N = _looked_up(place_of, pieces_N)
        lengths_P = lengths_D[places_P]
        # token k of all is number k - (the tokens before its piece) of the ids of its piece
        shifts_P = _offsets(lengths_D)[places_P] - _offsets(lengths_P)[:-1]
        ids_S = flat[np.repeat(shifts_P, lengths_P) + np.arange(lengths_P.sum())]
        return ids_S, np.diff(_offsets(lengths_P)[_offsets(num_pieces_N)])

    def _ids_of_piece(self, piece: str) -> list[int]:
        return [1 + token.id for token in self._model.tokenize(_symbols(piece.encode()))]

    @cached_property
    def _model(self) -> Any:
        symbols = [_symbols(token) for token in self._tokens]
        vocabulary = {symbol: id for id, symbol in enumerate(symbols[1:])}
        return _library().models.BPE(vocabulary, [(symbols[a], symbols[b]) for a, b in self.merges])

    @cached_property
    def _tokens(self) -> tuple[bytes, ...]:
        tokens, known = list(_BYTES), set(_BYTES)
        for a, b in self.merges:
            merged = tokens[a] + tokens[b]
            if merged not in known:
                known.add(merged)
                tokens.append(merged)
        return tuple(tokens)

    @cached_property
    def _num_characters_V(self) -> Integers:
        return _num_first_bytes(self._tokens)


Tokenizer = ByteTokenizer | CharacterTokenizer | WordTokenizer | SubwordTokenizer


@dataclass(frozen=True)
class TextSummary:
    """How often each character, word or piece occurs in some training rows; nothing of bytes."""

    kind: TokenKind
    counts: Counter[str] = field(default_factory=Counter)

    def merge(self, other: TextSummary) -> TextSummary:
        """Of both sets of rows."""
        counts = Counter(self.counts)
        counts.update(other.counts)
        return TextSummary(self.kind, counts)


def words_of(text: str) -> list[str]:
    """The words and marks of punctuation of a text, in lower case."""
    return _WORD.findall(unicodedata.normalize("NFC", text.lower()))


def pieces_of(text: str) -> list[str]:
    """A text cut into the pieces that no subword crosses; joined they are the text."""
    return _PIECE.findall(text)


_COUNTED: dict[TokenKind, Callable[[str], Iterable[str]]] = {
    "bytes": lambda text: (),
    "characters": iter,
    "words": words_of,
    "subwords": pieces_of,
}


def summarize_text(column: pa.Array | pa.ChunkedArray, kind: TokenKind) -> TextSummary:
    """Summary of the training rows of a string column; it does not depend on which rows lie in one fragment.

    DataError for bytes that are not UTF-8.
    """
    counts: Counter[str] = Counter()
    for text in _strings(column).to_pylist():
        counts.update(_COUNTED[kind](text))
    return TextSummary(kind, counts)


def fit_tokenizer(summary: TextSummary, vocabulary: int) -> Tokenizer:
    """The tokenizer of the training rows, with at most `vocabulary` tokens, token 0 included; bytes are always 257.

    The most frequent characters and words are kept, of equal ones the first in order of code points. Of more than 50
    words those seen once are unknown, as with categories: so training meets token 0.

    JobError for fewer subwords than bytes, and for subwords without the library.
    """
    if summary.kind == "bytes":
        return ByteTokenizer()
    if summary.kind == "subwords":
        return _fit_subwords(summary.counts, vocabulary)
    counts = summary.counts
    if summary.kind == "words" and len(counts) > RARE_WORDS:
        counts = Counter({word: count for word, count in counts.items() if count > 1})
    kept = sorted(counts, key=lambda text: (-counts[text], text))[: vocabulary - 1]
    return WordTokenizer(tuple(kept)) if summary.kind == "words" else CharacterTokenizer("".join(sorted(kept)))


def check_installed(kind: TokenKind) -> None:
    """JobError when the library that `kind` needs is not installed."""
    if kind == "subwords":
        _library()


def _fit_subwords(counts: Counter[str], vocabulary: int) -> SubwordTokenizer:
    if vocabulary < MIN_SUBWORDS:
        raise JobError(
            f"data.vocabulary: {vocabulary} is too small for data.tokens: subwords, which has a token for each of "
            f"{NUM_BYTES} bytes and one for padding; set it to {MIN_SUBWORDS} or more, or set data.tokens: characters"
        )
    library = _library()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary - 1,
        min_frequency=2,
        initial_alphabet=[_symbols(byte) for byte in _BYTES[1:]],
        show_progress=False,
    )
    trained = library.Tokenizer(library.models.BPE())
    # The library counts text and takes no counts, so each piece is repeated; in one order, whatever that of the rows.
    thinned = sorted(_thinned(counts, SAMPLE_PIECES).items())
    trained.train_from_iterator(([_symbols(piece.encode())] * count for piece, count in thinned), trainer)
    return SubwordTokenizer(_merges_of(trained))


def _merges_of(trained: Any) -> tuple[tuple[int, int], ...]:
    model = json.loads(trained.to_str())["model"]
    id_of = model["vocab"]
    return tuple((1 + id_of[a], 1 + id_of[b]) for a, b in model["merges"])


def _thinned(counts: Counter[str], limit: int) -> dict[str, int]:
    """Counts in proportion, rounded, of about `limit` in sum; a sample without a draw."""
    total = max(counts.total(), limit)
    thinned = {text: (2 * count * limit + total) // (2 * total) for text, count in counts.items()}
    return {text: count for text, count in thinned.items() if count}


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise JobError(
            "data.tokens: subwords needs the package tokenizers, which is not installed; "
            "run `pip install 'raynn[text]'`, or set data.tokens: characters"
        ) from None
    return tokenizers


def _symbols(some_bytes: bytes) -> str:
    """One character for each byte: the library's model works on characters."""
    return some_bytes.decode("latin-1")


def _strings(column: pa.Array | pa.ChunkedArray) -> pa.LargeStringArray:
    """In one chunk, nulls as empty texts."""
    text = pc.cast(column, pa.large_string())
    if isinstance(text, pa.ChunkedArray):
        text = text.combine_chunks()
    try:
        text.validate(full=True)
    except pa.ArrowInvalid as error:
        raise DataError(f"text that is not UTF-8: {error}; convert the file to UTF-8") from None
    return pc.fill_null(text, "")


def _joined(text: pa.LargeStringArray) -> pa.Buffer:
    """The UTF-8 of all texts, one after the other, not copied."""
    if not len(text):  # then there may be no offsets
        return pa.py_buffer(b"")
    offsets = np.frombuffer(text.buffers()[1], np.int64)[text.offset : text.offset + len(text) + 1]
    return text.buffers()[2].slice(offsets[0], offsets[-1] - offsets[0])


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _looked_up(id_of: Mapping[str, int], texts_N: Sequence[Sequence[str]]) -> tuple[Tokens, Integers]:
    """The id of each, 0 where it has none [S], and how many there are in each row [N]."""
    lengths_N = np.fromiter(map(len, texts_N), np.int64, len(texts_N))
    ids = map(id_of.get, chain.from_iterable(texts_N), repeat(0))
    return np.fromiter(ids, np.int32, lengths_N.sum()), lengths_N


def _offsets(lengths_N: Integers) -> Integers:
    """Where each row begins, and where the last one ends [N + 1]."""
    return np.concatenate([[0], np.cumsum(lengths_N)])


def _join_bytes(tokens: Sequence[bytes], ids: Iterable[int]) -> str:
    return b"".join([tokens[id] or UNKNOWN.encode() for id in ids]).decode(errors="replace")


def _num_first_bytes(tokens: Iterable[bytes]) -> Integers:
    """Bytes of each token that begin a character; those that continue one are 10xxxxxx."""
    return np.array([sum(byte & 0xC0 != 0x80 for byte in token) for token in tokens], np.int64)


def _once(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))
