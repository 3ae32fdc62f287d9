from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raynn import splits
from raynn.errors import DataError
from raynn.sources import ColumnSplit, DataSettings
from raynn.splits import EXCLUDED, TEST, TRAIN, VALIDATION, assign_splits


def split(
    num_rows: int,
    *,
    validation: Any = 0.2,
    test: Any = None,
    sources: Any = None,
    bad: Any = None,
    seed: int = 0,
    classes: Any = None,
    groups: Any = None,
    values: dict[str, Any] | None = None,
) -> np.ndarray:
    data = DataSettings(
        train="rows.csv",
        validation=validation,
        test=test,
        target="label",
        group=None if groups is None else "subject",
    )
    return assign_splits(
        data,
        np.zeros(num_rows, np.uint8) if sources is None else np.array(sources, np.uint8),
        np.zeros(num_rows, bool) if bad is None else np.array(bad, bool),
        seed,
        None if classes is None else np.array(classes),
        None if groups is None else np.array(groups),
        {name: np.array(column) for name, column in (values or {}).items()},
    )


def counts(splits: np.ndarray) -> tuple[int, int, int]:
    return tuple(int((splits == s).sum()) for s in (TRAIN, VALIDATION, TEST))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("num_rows", "validation", "test", "expected"),
    [
        (100, 0.1, None, (90, 10, 0)),
        (100, 0.1, 0.2, (70, 10, 20)),
        (15, 0.1, None, (13, 2, 0)),  # 1.5 rounds up
        (100, 0.145, None, (85, 15, 0)),  # 14.5; in floats 14.499999999999998
        (7, 0.33, 0.33, (3, 2, 2)),
        (1_000_003, 0.1, 0.1, (800_003, 100_000, 100_000)),
    ],
)
def test_fractions_are_exact(
    num_rows: int, validation: float, test: float | None, expected: tuple[int, int, int]
) -> None:
    assert counts(split(num_rows, validation=validation, test=test)) == expected


def test_seed_decides_and_nothing_else() -> None:
    first = split(1000, seed=3)
    assert np.array_equal(first, split(1000, seed=3))
    assert not np.array_equal(first, split(1000, seed=4))


@pytest.mark.parametrize("classes", [None, [0, 1, 2, 3] * 250])
def test_test_rows_do_not_depend_on_the_validation_fraction(classes: list[int] | None) -> None:
    small, large = (split(1000, validation=v, test=0.2, classes=classes) for v in (0.1, 0.4))
    assert np.array_equal(small == TEST, large == TEST)


def test_bad_rows_are_excluded_and_fractions_are_of_the_good_ones() -> None:
    bad = np.arange(120) < 20
    splits = split(120, bad=bad)
    assert (splits[:20] == EXCLUDED).all()
    assert counts(splits) == (80, 20, 0)


def test_sources_keep_their_rows() -> None:
    sources = [0] * 5 + [1] * 3 + [2] * 2
    splits = split(10, validation="v.csv", test="t.csv", sources=sources, bad=[0, 0, 0, 1, 0, 1, 0, 0, 0, 1])
    assert splits.tolist() == [0, 0, 0, 255, 0, 255, 1, 1, 2, 255]


def test_fraction_beside_a_test_source_is_of_the_train_source() -> None:
    splits = split(150, validation=0.1, test="t.csv", sources=[0] * 100 + [2] * 50)
    assert counts(splits) == (90, 10, 50)
    assert (splits[100:] == TEST).all()


def test_sorted_classes_are_no_trap() -> None:
    classes = np.repeat([0, 1, 2], [600, 300, 100])
    splits = split(1000, validation=0.1, test=0.2, classes=classes)
    for part, expected in ((TRAIN, [420, 210, 70]), (VALIDATION, [60, 30, 10]), (TEST, [120, 60, 20])):
        assert np.bincount(classes[splits == part]).tolist() == expected
    # and within a class, rows come from everywhere
    assert np.flatnonzero((splits == VALIDATION) & (classes == 0)).mean() == pytest.approx(300, abs=90)


def test_sorted_rows_without_classes_are_no_trap() -> None:
    assert np.flatnonzero(split(10_000) == VALIDATION).mean() == pytest.approx(5000, abs=250)


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    validation=st.floats(0.05, 0.45),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=200)
def test_stratification_is_by_largest_remainder(sizes: list[int], validation: float, seed: int) -> None:
    classes = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)) * 7 - 3, sizes))
    num_rows = len(classes)
    try:
        splits = split(num_rows, validation=validation, seed=seed, classes=classes)
    except DataError:
        count = int(validation * num_rows + 0.5)
        assert count == 0 or sum(size - 1 for size in sizes) < count
        return
    _, codes = np.unique(classes, return_inverse=True)
    taken = np.bincount(codes[splits == VALIDATION], minlength=len(sizes))
    count = taken.sum()
    assert count == pytest.approx(validation * num_rows, abs=0.5 + 1e-9)
    assert (np.bincount(codes[splits == TRAIN], minlength=len(sizes)) >= 1).all()
    quotas = count * np.array(sizes) / num_rows
    roomy = np.array(sizes) - 1 >= np.ceil(quotas)
    if roomy.all():
        assert (np.abs(taken - quotas) < 1).all()
        raised, kept = taken > quotas, taken < quotas
        remainders = quotas - np.floor(quotas)
        if raised.any() and kept.any():
            assert remainders[raised].min() >= remainders[kept].max() - 1e-9


def test_a_class_of_one_row_trains() -> None:
    classes = [0] * 50 + [1] * 49 + [2]
    for seed in range(20):
        assert split(100, validation=0.3, test=0.3, seed=seed, classes=classes)[99] == TRAIN


@given(
    sizes=st.lists(st.integers(1, 30), min_size=3, max_size=30),
    test=st.one_of(st.none(), st.floats(0.1, 0.4)),
    num_classes=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=200)
def test_groups_never_straddle(sizes: list[int], test: float | None, num_classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(np.arange(len(sizes)) - 1, sizes))
    classes = rng.integers(0, num_classes, len(groups))
    try:
        splits = split(len(groups), test=test, groups=groups, classes=classes, seed=seed)
    except DataError as error:
        assert "no row at all" in str(error) or "none can go" in str(error)  # noqa: PT017
        return
    for group in np.unique(groups):
        assert len(np.unique(splits[groups == group])) == 1
    assert (splits == TRAIN).any()
    assert (splits == VALIDATION).any()
    assert set(classes[splits == VALIDATION]) <= set(classes[splits == TRAIN])


def test_group_fractions_are_near() -> None:
    groups = np.repeat(np.arange(1000), np.random.default_rng(0).integers(1, 20, 1000))
    train, validation, test = counts(split(len(groups), validation=0.1, test=0.2, groups=groups))
    assert validation / len(groups) == pytest.approx(0.1, abs=0.001)
    assert test / len(groups) == pytest.approx(0.2, abs=0.001)
    assert train + validation + test == len(groups)


def test_the_test_split_leaves_groups_for_the_others() -> None:
    splits = split(30, validation=0.1, test=0.6, groups=np.repeat([0, 1, 2], 10))
    assert counts(splits) == (10, 10, 10)


def test_a_column_names_the_splits() -> None:
    fold = ["a", "b", "c", "a", "b", "a"]
    by = {name: ColumnSplit(column="fold", equals=value) for name, value in (("v", "b"), ("t", "c"))}
    splits = split(6, validation=by["v"], test=by["t"], values={"fold": fold})
    assert splits.tolist() == [0, 1, 2, 0, 1, 0]


@pytest.mark.parametrize(
    ("equals", "written"),
    [(1, ["1", "0"]), (1, ["1.0", "0.0"]), (True, ["true", "false"]), (False, ["False", "True"])],
)
def test_column_values_match_as_they_are_written(equals: int | bool, written: list[str]) -> None:
    splits = split(2, validation=ColumnSplit(column="fold", equals=equals), values={"fold": written})
    assert splits.tolist() == [1, 0]


def test_column_split_beside_a_fraction() -> None:
    fold = np.where(np.arange(100) < 20, "test", "rest")
    splits = split(100, validation=0.1, test=ColumnSplit(column="fold", equals="test"), values={"fold": fold})
    assert counts(splits) == (70, 10, 20)
    assert (splits[:20] == TEST).all()


def test_column_split_takes_rows_of_the_train_source_only() -> None:
    by = ColumnSplit(column="fold", equals="x")
    fold = {"fold": ["x", "y", "x", "y"]}
    splits = split(4, validation=by, test="t.csv", sources=[0, 0, 2, 2], values=fold)
    assert splits.tolist() == [1, 0, 2, 2]


FOLD = ColumnSplit(column="fold", equals="tset")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"num_rows": 3, "bad": [1, 1, 1]},
            "data.train has no usable row; check the path, and the rows that were refused",
        ),
        (
            {"num_rows": 0},
            "data.train has no usable row; check the path, and the rows that were refused",
        ),
        (
            {"num_rows": 3, "validation": 0.1},
            "data.validation = 0.1 of 3 rows of data.train is no row at all; give a larger fraction, more "
            "data, "
            "or a source of its own",
        ),
        (
            {"num_rows": 10, "validation": 0.5, "test": 0.5},
            "data.validation = 0.5 of 10 rows of data.train is 5 rows, and 5 are left: none would train; "
            "give smaller fractions, or more data",
        ),
        (
            {"num_rows": 4, "validation": "v.csv", "sources": [0, 0, 1, 1], "bad": [0, 0, 1, 1]},
            "data.validation = 'v.csv' has no usable row; check the path, and the rows that were refused",
        ),
        (
            {"num_rows": 4, "test": "t.csv", "sources": [0, 0, 0, 0]},
            "data.test = 't.csv' has no usable row; check the path, and the rows that were refused",
        ),
        (
            {"num_rows": 4, "validation": FOLD, "values": {"fold": ["test", "train", "train", "dev"]}},
            "data.validation: no usable row of data.train has fold = 'tset'; its values are 'train', 'dev', "
            "'test'. Did you mean 'test'? Set `equals` to one of them",
        ),
        (
            {"num_rows": 3, "validation": FOLD, "values": {"fold": ["tset", "a", "a"]}, "bad": [1, 0, 0]},
            "data.validation: no usable row of data.train has fold = 'tset'; its values are 'a'. Set",
        ),
        (
            {"num_rows": 14, "validation": FOLD, "values": {"fold": [f"{i:02}" for i in range(14)]}},
            "its values are '00', '01', '02', '03', '04', '05', '06', '07', '08', '09', ... (4 more). Set",
        ),
        (
            {"num_rows": 2, "validation": FOLD, "values": {"fold": ["tset", "tset"]}},
            "data.train keeps no usable row to train on; check the rows that were refused, and what "
            "data.validation and data.test take",
        ),
        (
            {"num_rows": 6, "groups": [0, 0, 0, 1, 1, 1], "test": 0.3},
            "data.group = 'subject' has 2 groups to divide, and train and validation and test need 3; "
            "choose a "
            "column with more groups, or remove data.group",
        ),
        (
            {"num_rows": 6, "groups": [0] * 6},
            "data.group = 'subject' has 1 group to divide, and train and validation need 2; choose",
        ),
        (
            {"num_rows": 4, "groups": [0, 1, 1, 2], "validation": "v.csv", "sources": [0, 0, 1, 1]},
            "data.group = 'subject': 1 of 3 groups have rows in more than one split (train and validation, "
            "the first of them), and a group may be in one only; divide the sources or the split column by "
            "group, "
            "or remove data.group",
        ),
        (
            {"num_rows": 6, "groups": [0, 0, 1, 1, 2, 2], "classes": [0, 0, 1, 1, 2, 2]},
            "data.validation = 0.2 asks for 1 of 6 rows, and none can go: each group of 'subject' has a "
            "class of 'label' no other has, and it keeps a row for training; give more rows of each "
            "class, or a source of its own",
        ),
        (
            {"num_rows": 10, "validation": 0.5, "classes": [0, 0, 0, 1, 2, 3, 4, 5, 6, 7]},
            "data.validation = 0.5 asks for 5 of 10 rows, and only 2 can go: every class of 'label' keeps a "
            "row "
            "for training; give a smaller fraction, or more rows of each class",
        ),
        (
            {"num_rows": 5, "classes": [0, 1, 2, 3, 4]},
            "data.validation = 0.2 asks for 1 of 5 rows, and none can go: every class of 'label' keeps a "
            "row for "
            "training; give more rows of each class, or a source of its own",
        ),
    ],
)
def test_messages(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        split(**arguments)
    assert message in str(error.value)


@given(st.integers(0, 2**32), st.integers(1, 300), st.integers(1, 12), st.sampled_from([1, 100_000]))
def test_rows_are_drawn_in_parts_as_at_once(seed: int, num_rows: int, num_classes: int, apart: int) -> None:
    """The rule, as one sort of all rows writes it: of each class the first in shuffled order, up to its quota."""
    rng = np.random.default_rng(seed)
    classes = apart * rng.integers(num_classes, size=num_rows) - 1
    count = int(rng.integers(num_rows)) + 1
    _, codes, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    shuffled = np.random.default_rng(7).permutation(num_rows)
    by_class = shuffled[np.argsort(codes[shuffled], kind="stable")]
    rank = np.arange(num_rows) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "CHUNK_ROWS", 11)
        ranked, ranked_sizes = splits._ranked(classes)
        found = splits._draw_rows(classes, count, np.random.default_rng(7))
    np.testing.assert_array_equal(ranked, codes)
    np.testing.assert_array_equal(ranked_sizes, sizes)
    taken = np.bincount(codes[found], minlength=len(sizes))
    np.testing.assert_array_equal(found, np.sort(by_class[rank < np.repeat(taken, sizes)]))
    assert len(found) == count or (taken >= sizes - 1).all()


def test_splitting_takes_few_bytes_a_row() -> None:
    num_rows = 2_000_000
    classes, sources = np.zeros(num_rows, np.int8), np.zeros(num_rows, np.uint8)
    tracemalloc.start()
    try:
        split(num_rows, validation=0.1, test=0.1, classes=classes, sources=sources)
        assert tracemalloc.get_traced_memory()[1] < 20 * num_rows
    finally:
        tracemalloc.stop()
