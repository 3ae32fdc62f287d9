"""Text to learn a language from: documents in their order, the tail of them held out, cut into windows of tokens.

A document is a row: of a table, or a text file, which may lie in several fragments. No window holds tokens of two
documents. The first token of a document is read and never predicted, for there is nothing to predict it from.

Shapes: D rows as the sources hold them, P pieces of rows that belong to one split, R runs (the tokens of one document
in one split), S tokens of all runs, N windows, V vocabulary.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raynn.columns import ColumnSpec, family_of, infer_columns
from raynn.drivers import BLOCK, Driver
from raynn.encoded import Blocks
from raynn.encodings import TextEncoding, fit_text
from raynn.errors import DataError, JobError
from raynn.fragments import Fragment, schema_of
from raynn.metrics import Task
from raynn.preparation import Prepared, ReadPlan, ReadRows, Understood, read_rows, sample_of
from raynn.preprocessing import InputSpec, Preprocessing
from raynn.ragged import Ragged
from raynn.sources import ColumnSplit, DataSettings, TimeSplit, find_sources
from raynn.splits import EXCLUDED, NAMES, TEST, TRAIN, VALIDATION, assign_splits
from raynn.tokens import TextSummary, TokenKind, summarize_text
from raynn.windows import EncodedWindows, WindowPlan

DEFAULT_WINDOW = 256  # tokens
TEXT = "text"  # the column of text files, and the one taken where a table has several
LANGUAGE: Task = "language_modeling"

Integers = NDArray[np.int64]


def understand_corpus(settings: DataSettings, folder: Path) -> Understood:
    """Finds the sources, and the column that holds the text.

    Raises:
        JobError: a key that a language model cannot have.
        DataError: a source is not there, or no column or several may be the text.
    """
    _check_settings(settings)
    fragments, roles = find_sources(settings, folder)
    splits = [split.column for split in (settings.validation, settings.test) if isinstance(split, ColumnSplit)]
    features = _text_column(fragments, roles, settings)
    return Understood(ReadPlan(settings, features, (), tuple(dict.fromkeys(splits))), fragments, roles)


def _check_settings(settings: DataSettings) -> None:
    if settings.target is not None:
        raise JobError(
            f"data.target = {settings.target!r} is there, and a language model predicts the next token of its text: "
            "remove it; or, to predict the column from text, use network.kind: lstm without data.window"
        )
    if settings.group is not None:
        raise JobError(
            f"data.group = {settings.group!r} is not for language modeling, which holds out the end of the text: "
            "remove it, or name files or a column for data.validation and data.test"
        )
    for name in ("validation", "test"):
        if isinstance(getattr(settings, name), TimeSplit):
            raise JobError(
                f"data.{name}: a range of time is not for language modeling; give a fraction, a source, or "
                "{column: ..., equals: ...}"
            )
    window, stride = settings.window or DEFAULT_WINDOW, settings.stride
    if stride is not None and stride > window:
        raise JobError(
            f"data.stride = {stride} is larger than data.window = {window}: tokens between two windows would never be "
            f"learned; set it to {window} or less"
        )


def _text_column(fragments: Sequence[Fragment], roles: Sequence[int], settings: DataSettings) -> tuple[ColumnSpec, ...]:
    """All columns, one of them the text and the others ignored.

    The text is the column that `data.features` or `data.columns` names; else `text`; else the only one that reads like
    free text.
    """
    schema = schema_of(fragments)
    strings = [field.name for field in schema if family_of(field.type) == "text"]
    named = [name for name in settings.features or () if name in strings and name not in settings.columns]
    if not settings.features and TEXT not in settings.columns and TEXT in strings:
        named = [TEXT]
    if fragments[0].format == "text":
        sample = pa.table({name: [name] for name in schema.names})
    else:
        sample = sample_of(fragments, roles)
    declared: dict[str, Any] = {**settings.columns, **dict.fromkeys(named, "text")}
    features, _ = infer_columns(schema, sample, settings.model_copy(update={"columns": declared}), kinds=("text",))
    texts = [spec.name for spec in features if spec.kind == "text"]
    if settings.features and (len(settings.features) > 1 or not texts):
        raise DataError(
            f"data.features names {', '.join(map(repr, settings.features))}, and a language model reads one column of "
            f"text; {_choose(strings)}"
        )
    if len(texts) > 1 and TEXT in texts:
        texts = [TEXT]
    if len(texts) != 1:
        found = f"columns {', '.join(map(repr, texts))} all hold text" if texts else "no column reads like text"
        raise DataError(f"{fragments[0].source}: {found}, and a language model reads one; {_choose(texts or strings)}")
    return tuple(
        spec if spec.name in texts or spec.kind == "ignore" else ColumnSpec(spec.name, "ignore", (), "not the text")
        for spec in features
    )


def _choose(names: Sequence[str]) -> str:
    if not names:
        return "name a text file, or a table with a column of text"
    return f"name it: `data.features: [{names[0]}]`" + (f" (or {', '.join(names[1:5])})" if len(names) > 1 else "")


def prepare_corpus(
    understood: Understood, driver: Driver, preprocessing: Preprocessing | None = None, refit: bool = False
) -> Prepared:
    """Reads, splits, fits the vocabulary on the training text, encodes and plans windows; with `preprocessing` (a
    trained run's) nothing is fitted. With `refit` the text is also given without validation, which joins training.

    Raises:
        DataError: too many bad rows, a split without text, a window longer than the text.
    """
    plan = understood.plan
    column = _column_of(plan)
    read = read_rows(understood, driver)
    lengths = driver.tables(driver.map(read.blocks, partial(_lengths, column=column.name)))
    cuts_D3 = characters_by_split(understood, read, np.concatenate([table["length"].to_numpy() for table in lengths]))
    cuts = tuple(cuts_D3[a:b] for a, b in pairwise(np.cumsum([0, *read.counts])))
    preprocessing = preprocessing or _fitted(plan, read.blocks, cuts, driver)
    texts = encoded_texts(understood.fragments, plan, read.blocks, cuts, preprocessing, driver)
    if not preprocessing.window:
        preprocessing = replace(preprocessing, window=_window(texts, plan.settings))
    window = preprocessing.window
    windows = _windows_of_splits(texts, window, plan.settings)
    _check_windows(windows, plan.settings)
    corpus = texts.in_windows(windows, preprocessing, driver)
    all_text = None
    if refit:
        whole = replace(texts, split_P=np.where(texts.split_P == VALIDATION, TRAIN, texts.split_P))
        planned = replace(corpus.windows, windows=_windows_of_splits(whole, window, plan.settings))
        all_text = replace(corpus, windows=planned)
    tokenizer = encoding_of(preprocessing).tokenizer
    split_D = np.where(cuts_D3.any(1), cuts_D3.argmax(1), EXCLUDED).astype(np.uint8)
    return Prepared(
        LANGUAGE,
        f"the text of column {column.name!r} in windows of {window} of {tokenizer.vocabulary_size:,} different "
        f"{tokenizer.kind}",
        preprocessing,
        corpus,
        tuple(np.split(split_D, np.cumsum(read.counts)[:-1])),
        read.bad_rows,
        read.num_source_rows,
        tuple(_notes(plan.settings, cuts_D3, texts)),
        cuts,
        refit=all_text,
    )


def _windows_of_splits(texts: Texts, window: int, settings: DataSettings) -> tuple[WindowPlan, WindowPlan, WindowPlan]:
    return (
        training_windows(*texts.runs(TRAIN), window, settings.stride or window),
        scoring_windows(*texts.runs(VALIDATION), window),
        scoring_windows(*texts.runs(TEST), window),
    )


def characters_by_split(understood: Understood, read: ReadRows, length_D: Integers) -> Integers:
    """How many characters of each row [D, 3] belong to training, validation and test, in that order.

    A fraction is the tail of all characters of `data.train`, but for documents that a column names for another split;
    the test set lies behind the validation set. With validation = 0.1 training ends before character int(0.9 * n) of n.

    Raises:
        DataError: a split without a row or a character.
    """
    settings = understood.plan.settings
    wanted = {TEST: settings.test, VALIDATION: settings.validation}
    fractions = {split: Decimal(repr(value)) for split, value in wanted.items() if isinstance(value, float)}
    by_row = settings.model_copy(update={NAMES[split]: None for split in fractions})
    roles = np.repeat(np.array(understood.roles, np.uint8), read.counts)
    extra = understood.plan.extra
    named = {name: np.asarray(read.facts[name].cast(pa.string()).fill_null("").to_pylist(), np.str_) for name in extra}
    split_D = assign_splits(by_row, roles, read.bad, 0, column_values=named)
    cuts_D3 = np.where(split_D[:, None] == np.arange(3), length_D[:, None], 0)
    stop_D = np.cumsum(cuts_D3[:, TRAIN])
    start_D, total = stop_D - cuts_D3[:, TRAIN], int(stop_D[-1])
    end, kept = total, Decimal(1)
    for split, fraction in fractions.items():
        kept -= fraction
        start = max(0, int(kept * total))
        if start == 0 or start == end:
            raise DataError(_no_character(NAMES[split], fraction, total, nothing_left=start == 0))
        cuts_D3[:, split] += np.maximum(np.minimum(stop_D, end) - np.maximum(start_D, start), 0)
        end = start
    cuts_D3[:, TRAIN] = np.maximum(np.minimum(stop_D, end) - start_D, 0)
    return cuts_D3


def _no_character(name: str, fraction: Decimal, total: int, nothing_left: bool) -> str:
    if not total:
        return "data.train holds no text: every document is empty; name text to learn from"
    text = f"data.{name} = {fraction:g} of {total} characters of data.train"
    if nothing_left:
        return f"{text} leaves none to train on; give smaller fractions, or more text"
    return f"{text} is no character at all; give a larger fraction, more text, or a source of its own"


@dataclass(frozen=True)
class Texts:
    """Pieces of rows as lists of tokens, in blocks, and what is known of each piece."""

    blocks: Blocks
    block_P: Integers
    document_P: Integers
    split_P: Integers
    length_P: Integers  # tokens
    unknown_P: Integers  # of them token 0

    def runs(self, split: int) -> tuple[Integers, Integers]:
        """First token and one past the last of each run of a split, among the tokens of all [R]: the pieces of a
        document that lies in several fragments follow one another.
        """
        stop_P = np.cumsum(self.length_P)
        new_P = (np.diff(self.document_P, prepend=-1) != 0) | (np.diff(self.split_P, prepend=-1) != 0)
        first_P, last_P = np.flatnonzero(new_P), np.append(np.flatnonzero(new_P)[1:], len(new_P)) - 1
        of_split = self.split_P[first_P] == split
        return (stop_P - self.length_P)[first_P[of_split]], stop_P[last_P[of_split]]

    def tokens(self, split: int) -> int:
        """Tokens of a split."""
        return int(self.length_P[self.split_P == split].sum())

    def in_windows(
        self, windows: tuple[WindowPlan, WindowPlan, WindowPlan], preprocessing: Preprocessing, driver: Driver
    ) -> EncodedCorpus:
        """The tokens one behind the other, and windows over them."""
        per_block = np.bincount(self.block_P, self.length_P, len(self.blocks)).astype(np.int64)
        blocks = driver.map(self.blocks, _flattened)
        encoded = EncodedWindows(blocks, np.cumsum([0, *per_block]), windows, preprocessing.input_spec)
        return EncodedCorpus(encoded, encoding_of(preprocessing))


@dataclass(frozen=True)
class EncodedCorpus:
    """Windows of tokens, and the characters that the scored ones of each stand for."""

    windows: EncodedWindows
    encoding: TextEncoding

    @property
    def inputs(self) -> InputSpec:
        """What a network is told of them."""
        return self.windows.inputs

    def num_rows(self, split: int) -> int:
        """Windows of a split (0 train, 1 validation, 2 test)."""
        return self.windows.num_rows(split)

    def pieces(
        self, split: int, start: int, stop: int, fetch: Callable[[Any], pa.Table]
    ) -> Iterator[dict[str, NDArray[Any] | Ragged]]:
        """Windows start .. stop of a split, a block at a time: `tokens` (ragged), `skip` and `characters` [n]."""
        for piece in self.windows.pieces(split, start, stop, fetch):
            tokens, skip_N = piece["tokens"], piece["skip"]
            assert isinstance(tokens, Ragged)
            assert isinstance(skip_N, np.ndarray)
            yield piece | {"characters": scored_characters(self.encoding, tokens, skip_N)}


def scored_characters(encoding: TextEncoding, tokens: Ragged, skip_N: Integers) -> Integers:
    """Characters of the scored tokens of each window [N]: those behind the first, which nothing predicts, and behind
    the `skip` ones that are context alone.
    """
    before_S = np.concatenate([[0], np.cumsum(encoding.tokenizer.characters_of(tokens.values))])
    first_N = np.minimum(tokens.start_N + 1 + skip_N, tokens.stop_N)
    return before_S[tokens.stop_N] - before_S[first_N]


def training_windows(start_R: Integers, stop_R: Integers, window: int, stride: int) -> WindowPlan:
    """Windows over each run, one every `stride` tokens, that predict `window` tokens or what is left: with a stride of
    at most the window, every token but the first of a run at least once.
    """
    return _windows(start_R, stop_R, window, stride, overlap=0)


def scoring_windows(start_R: Integers, stop_R: Integers, window: int) -> WindowPlan:
    """Windows over each run that predict every token but the first exactly once: all but the first of a run read half
    a window of what was predicted before.
    """
    stride = max(1, window // 2)
    return _windows(start_R, stop_R, window, stride, overlap=window - stride)


def _windows(start_R: Integers, stop_R: Integers, window: int, stride: int, overlap: int) -> WindowPlan:
    targets_R = stop_R - start_R - 1
    count_R = np.where(targets_R > 0, 1 + -(-np.maximum(targets_R - window, 0) // stride), 0)
    place_N = np.arange(count_R.sum()) - np.repeat(np.cumsum(count_R) - count_R, count_R)
    start_N = np.repeat(start_R, count_R) + place_N * stride
    stop_N = np.minimum(start_N + window + 1, np.repeat(stop_R, count_R))
    return WindowPlan(start_N, stop_N, {"skip": np.where(place_N > 0, overlap, 0)})


def scored_source(
    plan: ReadPlan, fragments: Sequence[Fragment], blocks: Blocks, preprocessing: Preprocessing, driver: Driver
) -> EncodedCorpus:
    """Cleaned blocks of one fragment each as a trained run scores them: all are of the test split.

    Raises:
        DataError: no document has two tokens.
    """
    column = _column_of(plan).name
    lengths = [
        table["length"].to_numpy() for table in driver.tables(driver.map(blocks, partial(_lengths, column=column)))
    ]
    cuts = [np.where(np.arange(3) == TEST, length_D[:, None], 0) for length_D in lengths]
    texts = encoded_texts(fragments, plan, blocks, cuts, preprocessing, driver)
    runs = [texts.runs(split) for split in (TRAIN, VALIDATION, TEST)]
    train, validation, test = (scoring_windows(*bounds, preprocessing.window) for bounds in runs)
    if not len(test):
        raise DataError(
            f"{fragments[0].source} has no document of two tokens or more, and the first of a document cannot be "
            "predicted; name longer texts"
        )
    return texts.in_windows((train, validation, test), preprocessing, driver)


def encoded_texts(
    fragments: Sequence[Fragment],
    plan: ReadPlan,
    blocks: Blocks,
    cuts: Sequence[Integers],
    preprocessing: Preprocessing,
    driver: Driver,
) -> Texts:
    """Cleaned blocks, cut into splits at `cuts` ([D, 3] characters of a block's rows), as tokens."""
    encode = partial(_pieces, column=_column_of(plan).name, cuts=cuts, encoding=encoding_of(preprocessing))
    pieces = driver.map(blocks, encode)
    facts = list(driver.tables(driver.map(pieces, _facts)))
    # a part of a text file that is not its first goes on with the document of the row before
    goes_on = [fragment.format == "text" and fragment.start > 0 for fragment in fragments]
    new = [np.arange(len(cut)) >= (1 if more else 0) for cut, more in zip(cuts, goes_on, strict=True)]
    document_D = np.cumsum(np.concatenate(new))
    first_row = np.cumsum([0, *map(len, cuts)])
    document_P = [document_D[first + table["row"].to_numpy()] for first, table in zip(first_row, facts, strict=False)]
    return Texts(
        pieces,
        np.repeat(np.arange(len(facts)), [table.num_rows for table in facts]),
        np.concatenate(document_P),
        *(np.concatenate([table[name].to_numpy() for table in facts]) for name in ("split", "length", "unknown")),
    )


def _column_of(plan: ReadPlan) -> ColumnSpec:
    return next(spec for spec in plan.features if spec.kind == "text")


def encoding_of(preprocessing: Preprocessing) -> TextEncoding:
    """How a language model's text becomes tokens."""
    (encoding,) = preprocessing.encodings
    assert isinstance(encoding, TextEncoding)
    return encoding


def _fitted(plan: ReadPlan, blocks: Blocks, cuts: Sequence[Integers], driver: Driver) -> Preprocessing:
    """The vocabulary of the training text; the window is not known yet."""
    column, kind = _column_of(plan), plan.settings.tokens or "characters"
    summary = TextSummary(kind)
    for table in driver.tables(driver.map(blocks, partial(_counted, column=column.name, cuts=cuts, kind=kind))):
        summary = summary.merge(pickle.loads(table["summary"][0].as_py()))
    return Preprocessing(LANGUAGE, (column,), (fit_text(summary, column, plan.settings.vocabulary),), (), ())


# What is done to a block: cleaned rows -> pieces -> tokens


def _lengths(table: pa.Table, column: str) -> pa.Table:
    """Characters of each row."""
    return pa.table({"length": pc.fill_null(pc.utf8_length(table[column]), 0).cast(pa.int64())})


def _counted(table: pa.Table, column: str, cuts: Sequence[Integers], kind: TokenKind) -> pa.Table:
    """One row: the pickled summary of a block's training text."""
    stop_D = cuts[table[BLOCK][0].as_py()][:, TRAIN] if table.num_rows else np.zeros(0, np.int64)
    summary = summarize_text(cut_texts(table[column], np.arange(len(stop_D)), 0 * stop_D, stop_D), kind)
    return pa.table({"summary": pa.array([pickle.dumps(summary)], pa.large_binary())})


def _pieces(table: pa.Table, column: str, cuts: Sequence[Integers], encoding: TextEncoding) -> pa.Table:
    """Pieces in the order of the text: `row` of the block, `split` and `tokens`, a list."""
    cuts_D3 = cuts[table[BLOCK][0].as_py()] if table.num_rows else np.zeros((0, 3), np.int64)
    row_P, split_P = np.nonzero(cuts_D3)
    stop_P = np.cumsum(cuts_D3, axis=1)[row_P, split_P]
    lists = encoding(cut_texts(table[column], row_P, stop_P - cuts_D3[row_P, split_P], stop_P))
    size = encoding.tokenizer.vocabulary_size
    kept = lists.cast(pa.large_list(pa.uint8() if size <= 2**8 else pa.int16() if size <= 2**15 else pa.int32()))
    return pa.table({"row": row_P, "split": split_P, "tokens": kept})


def cut_texts(column: pa.ChunkedArray, row_P: Integers, start_P: Integers, stop_P: Integers) -> pa.Array:
    """Characters start .. stop of those rows; a missing text is empty."""
    text = pc.fill_null(column.cast(pa.large_string()), "").combine_chunks().take(pa.array(row_P))
    cut_P = (start_P > 0) | (stop_P < pc.utf8_length(text).to_numpy())
    cut = [text[p].as_py()[start_P[p] : stop_P[p]] for p in np.flatnonzero(cut_P)]
    return pc.replace_with_mask(text, pa.array(cut_P), pa.array(cut, pa.large_string()))


def _facts(pieces: pa.Table) -> pa.Table:
    """Of each piece: its row, split, length and unknown tokens."""
    tokens = pieces["tokens"].combine_chunks()
    length_P = tokens.value_lengths().to_numpy().astype(np.int64)
    unknown_S = np.concatenate([[0], np.cumsum(tokens.flatten().to_numpy() == 0)])
    stop_P = np.cumsum(length_P)
    unknown_P = unknown_S[stop_P] - unknown_S[stop_P - length_P]
    return pieces.select(["row", "split"]).append_column("length", [length_P]).append_column("unknown", [unknown_P])


def _flattened(pieces: pa.Table) -> pa.Table:
    """One row a token."""
    return pa.table({"tokens": pieces["tokens"].combine_chunks().flatten()})


# What is said


def _window(texts: Texts, settings: DataSettings) -> int:
    """Tokens that are read at once, as the job says; else 256, or what the longest document has.

    Raises:
        DataError: more than any document of the training text has.
    """
    start_R, stop_R = texts.runs(TRAIN)
    longest = int((stop_R - start_R).max(initial=0))
    if longest < 2:
        raise DataError(
            f"data.train: its longest document has {longest} tokens for training, and the first of a document cannot "
            "be predicted; give longer texts"
        )
    if settings.window is not None and settings.window >= longest:
        raise DataError(
            f"data.window = {settings.window} reads more tokens than any training document can give, of which the "
            f"longest has {longest:,}, the last to be predicted; set it to {longest - 1} or less"
        )
    return settings.window or min(DEFAULT_WINDOW, longest - 1)


def _check_windows(windows: Sequence[WindowPlan], settings: DataSettings) -> None:
    """Every split that was asked for has a token to predict."""
    wanted = {TRAIN: settings.train, VALIDATION: settings.validation, TEST: settings.test}
    for split, plan in enumerate(windows):
        if wanted[split] is not None and not len(plan):
            raise DataError(
                f"data.{NAMES[split]}: none of its documents has two tokens, and the first of a document cannot be "
                "predicted; give longer texts, or a larger fraction"
            )


def _notes(settings: DataSettings, cuts_D3: Integers, texts: Texts) -> Iterator[str]:
    """What the split is, and what of it no token stands for."""
    for split in (VALIDATION, TEST):
        value = getattr(settings, NAMES[split])
        if isinstance(value, float):
            place = "last" if split == TEST or not isinstance(settings.test, float) else "next to last"
            yield f"{NAMES[split]}: the {place} {cuts_D3[:, split].sum():,} characters of data.train, in their order"
    for split, name in NAMES.items():
        unknown, total = int(texts.unknown_P[texts.split_P == split].sum()), texts.tokens(split)
        if unknown:
            why = "too rare for the vocabulary" if split == TRAIN else "the vocabulary of the training text has none"
            yield f"{name}: {unknown:,} of {total:,} tokens ({unknown / total:.2g}) are <unknown>: {why}"
