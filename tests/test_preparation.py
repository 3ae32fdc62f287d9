"""From sources to encoded blocks: the task, the splits, the bad rows, and blocks that are cut anyhow."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from flowers import flowers, with_value
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from raynn.drivers import LocalDriver
from raynn.encoded import EncodedBlocks
from raynn.errors import DataError
from raynn.job import Job
from raynn.preparation import Prepared, choose_task, located, prepare, split_summary, understand
from raynn.preprocessing import InputSpec
from raynn.ragged import Ragged
from raynn.sources import DataSettings
from raynn.splits import TEST, TRAIN, VALIDATION
from raynn.trainer import train


def prepared(folder: Path, task: str | None = None, seed: int = 0, **data: Any) -> Prepared:
    """The data of a job in `folder`, ready for training."""
    settings = DataSettings(**{"target": "kind", **data})
    return prepare(understand(settings, folder), task, seed, LocalDriver())


def rows_of(encoded: EncodedBlocks, split: int) -> dict[str, NDArray[Any]]:
    """All rows of a split, by column."""
    pieces = list(encoded.pieces(split, 0, encoded.num_rows(split), lambda table: table))
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


@pytest.mark.parametrize(
    ("values", "task", "expected"),
    [
        (["a", "b"], None, ("classification", "target 'y' holds string")),
        ([1, 2] * 30, None, ("classification", "target 'y' holds 2 different whole numbers")),
        ([1.0, 2.0] * 30, None, ("classification", "target 'y' holds 2 different whole numbers")),
        ([0.5, 1.5] * 30, None, ("regression", "target 'y' holds 2 different numbers")),
        (list(range(51)) * 4, None, ("regression", "target 'y' holds 51 different numbers")),
        (list(range(10)), None, ("regression", "target 'y' holds 10 different numbers")),
        ([1, 2] * 30, "regression", ("regression", "as the job says")),
        (list(range(10)), "classification", ("classification", "as the job says")),
    ],
)
def test_the_task_is_inferred(values: list[Any], task: str | None, expected: tuple[str, str]) -> None:
    assert choose_task(task, pa.chunked_array([values]), "y") == expected


def test_a_regression_of_text_is_refused() -> None:
    with pytest.raises(
        DataError, match="task = 'regression' needs numbers, but target 'y' holds string; use task: class"
    ):
        choose_task("regression", pa.chunked_array([["a", "b"]]), "y")


@pytest.mark.parametrize("task", ["kind", "price"])
def test_rows_do_not_depend_on_how_blocks_are_cut(task: str, tmp_path: Path) -> None:
    for size in (7, 50, 240):
        pq.write_table(flowers(), tmp_path / f"{size}.parquet", row_group_size=size)
    pyarrow.csv.write_csv(flowers(), tmp_path / "flowers.csv")
    ways = [
        prepared(tmp_path, train=name, test=0.2, target=task) for name in ("240.parquet", "50.parquet", "7.parquet")
    ]
    ways.append(prepared(tmp_path, train="flowers.csv", test=0.2, target=task))
    assert [len(way.encoded.blocks) for way in ways] == [1, 5, 35, 1]
    for split in (TRAIN, VALIDATION, TEST):
        whole = rows_of(ways[0].encoded, split)
        assert set(whole) == {"numeric", "categorical", "target"}
        for way in ways[1:]:
            others = rows_of(way.encoded, split)
            np.testing.assert_array_equal(others["categorical"], whole["categorical"])
            np.testing.assert_allclose(others["target"], whole["target"], rtol=1e-6)
            # means are summed block by block, so the last bit may differ
            np.testing.assert_allclose(others["numeric"], whole["numeric"], rtol=1e-6, atol=1e-6)


def test_rows_stay_in_their_order(tmp_path: Path) -> None:
    pq.write_table(flowers(), tmp_path / "flowers.parquet", row_group_size=50)
    ready = prepared(tmp_path, train="flowers.parquet", test=0.3, columns={"planted": "ignore"})
    width = np.array(flowers()["width"])
    part = np.concatenate(ready.splits)
    mean, std = width[part == TRAIN].mean(), width[part == TRAIN].std()
    for split in (TRAIN, VALIDATION, TEST):
        encoded = rows_of(ready.encoded, split)["numeric"][:, 0]
        np.testing.assert_allclose(encoded, (width[part == split] - mean) / std, rtol=1e-5, atol=1e-6)
    assert split_summary(ready) == "144 train, 24 validation, 72 test rows"


@pytest.mark.parametrize("target", ["kind", "price"])
def test_sorted_input_is_no_trap(target: str, tmp_path: Path) -> None:
    pq.write_table(flowers().sort_by(target), tmp_path / "sorted.parquet", row_group_size=60)
    ready = prepared(tmp_path, train="sorted.parquet", validation=0.2, test=0.2, target=target)
    means = [rows_of(ready.encoded, split)["target"].mean() for split in (TRAIN, VALIDATION, TEST)]
    if target == "kind":  # stratified: proportions as good as whole rows allow
        assert max(means) - min(means) < 1 / 48
    else:
        assert max(means) - min(means) < 0.5  # standard deviations; the last fifth of sorted rows is 1.4 above the mean
    assert all(0 < (part == TRAIN).sum() < len(part) for part in ready.splits)


def test_separate_files_are_separate_splits(tmp_path: Path) -> None:
    pyarrow.csv.write_csv(flowers(100, seed=1), tmp_path / "train.csv")
    pq.write_table(flowers(30, seed=2), tmp_path / "validation.parquet")
    pq.write_table(flowers(50, seed=3), tmp_path / "test.parquet", row_group_size=20)
    ready = prepared(tmp_path, train="train.csv", validation="validation.parquet", test="test.parquet", target="price")
    assert [ready.encoded.num_rows(split) for split in (TRAIN, VALIDATION, TEST)] == [100, 30, 50]
    mean, std = np.array(flowers(100, seed=1)["price"]).mean(), np.array(flowers(100, seed=1)["price"]).std()
    expected = (np.array(flowers(50, seed=3)["price"]) - mean) / std  # fitted on the training file alone
    np.testing.assert_allclose(rows_of(ready.encoded, TEST)["target"], expected, rtol=1e-5, atol=1e-6)


def test_files_of_one_source_may_differ_in_type(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    pyarrow.csv.write_csv(flowers(100, seed=1), tmp_path / "data" / "a.csv")
    pq.write_table(flowers(100, seed=2), tmp_path / "data" / "b.parquet")
    ready = prepared(tmp_path, train="data", group="garden", validation=0.25)
    part = np.concatenate(ready.splits)
    gardens = np.concatenate([np.array(flowers(100, seed=seed)["garden"]) for seed in (1, 2)])
    assert not set(gardens[part == TRAIN]) & set(gardens[part == VALIDATION])
    assert set(part) == {TRAIN, VALIDATION}


def test_a_column_names_the_split(tmp_path: Path) -> None:
    pq.write_table(flowers(), tmp_path / "flowers.parquet")
    ready = prepared(tmp_path, train="flowers.parquet", test={"column": "part", "equals": "north"})
    north = np.array(flowers()["part"]) == "north"
    np.testing.assert_array_equal(np.concatenate(ready.splits) == TEST, north)
    assert "part" not in [spec.name for spec in ready.preprocessing.features]


def test_bad_rows_within_the_limit_are_left_out(tmp_path: Path) -> None:
    table = with_value(with_value(flowers(), 5, "width", "wide"), 9, "kind", None)
    pyarrow.csv.write_csv(table, tmp_path / "bad.csv")
    text = (tmp_path / "bad.csv").read_text().splitlines()
    (tmp_path / "bad.csv").write_text("\n".join([*text[:3], "1,2,3", *text[3:]]) + "\n")
    ready = prepared(tmp_path, train="bad.csv", max_bad_rows=3 / 241)
    assert ready.num_source_rows == 241
    assert ready.encoded.num_rows(TRAIN) + ready.encoded.num_rows(VALIDATION) == 238
    found = sorted((row.row, row.column) for row in ready.bad_rows if row.column)
    assert found == [(6, "width"), (10, "kind")]
    (unread,) = [row for row in ready.bad_rows if row.column is None]
    assert (unread.file, unread.row) == (str(tmp_path / "bad.csv"), 2)
    assert unread.reason.startswith("3 fields, the header has 8")


@pytest.mark.parametrize("limit", [0.0, 0.012])
def test_bad_rows_past_the_limit_fail(limit: float, tmp_path: Path) -> None:
    table = flowers()
    for row in range(10, 17):
        table = with_value(table, row, "width", f"wide{row}")
    pyarrow.csv.write_csv(table, tmp_path / "bad.csv")
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, train="bad.csv", columns={"width": "numeric"}, max_bad_rows=limit)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"7 of 240 rows (2.92%) are bad, and data.max_bad_rows = {limit:g} allows fewer:"
    assert lines[1] == f"  {tmp_path / 'bad.csv'}, row 10, column width: 'wide10' is not a number"
    assert lines[6] == "  and 2 more"
    assert lines[7] == "Mend them, or quarantine them with data.max_bad_rows=0.03"
    enough = prepared(tmp_path, train="bad.csv", columns={"width": "numeric"}, max_bad_rows=0.03)
    assert enough.encoded.counts.sum() == 233


def test_bad_rows_are_quarantined_in_the_run_folder(tmp_path: Path) -> None:
    pq.write_table(with_value(flowers(), 77, "price", float("nan")), tmp_path / "bad.parquet", row_group_size=50)
    tree = {
        "data": {"train": str(tmp_path / "bad.parquet"), "target": "price", "max_bad_rows": 0.01},
        "network": {"kind": "feedforward", "hidden": [4]},
        "optimization": {"max_epochs": 1, "global_batch_size": 16},
        "storage": str(tmp_path / "runs"),
    }
    run = train(Job.from_dict(tree))
    (row,) = [json.loads(line) for line in (run / "bad_rows.jsonl").read_text().splitlines()]
    assert row == {
        "file": str(tmp_path / "bad.parquet"),
        "row": 77,
        "column": "price",
        "reason": "missing target: nan",
    }


def test_a_trained_preprocessing_is_used_as_it_is(tmp_path: Path) -> None:
    pq.write_table(flowers(), tmp_path / "a.parquet")
    wider = flowers().set_column(0, "width", pa.array(np.array(flowers()["width"]) * 10))
    pq.write_table(wider, tmp_path / "b.parquet")
    first = prepared(tmp_path, train="a.parquet")
    again = prepare(
        understand(DataSettings(train="b.parquet", target="kind"), tmp_path),
        None,
        0,
        LocalDriver(),
        first.preprocessing,
    )
    assert again.preprocessing is first.preprocessing
    fitted_anew = prepared(tmp_path, train="b.parquet")
    widths = [rows_of(each.encoded, TRAIN)["numeric"][:, 0].std() for each in (first, again, fitted_anew)]
    assert widths == pytest.approx([1.0, 10.0, 1.0], rel=0.05)


NUM_BLOCKS = 4


@given(
    st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=NUM_BLOCKS),
    st.sampled_from([TRAIN, VALIDATION, TEST]),
    st.data(),
)
def test_any_slice_of_the_pieces_is_that_of_the_whole(
    counts: list[tuple[int, int, int]], split: int, data: st.DataObject
) -> None:
    """Row r of split s in block b is the number 1000 b + 100 s + r; its sequence holds it twice."""
    blocks, whole = [], []
    for b, sizes in enumerate(counts):
        values = [1000 * b + 100 * s + r for s, size in enumerate(sizes) for r in range(size)]
        whole += [value for value in values if value % 1000 // 100 == split]
        pairs = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(values, 2), pa.float32()), 2)
        blocks.append(pa.table({"target": pa.array(values, pa.int64()), "sequence": pairs}))
    encoded = EncodedBlocks(blocks, np.array(counts, np.int64), InputSpec(sequence_TC=(2, 1)))
    assert encoded.num_rows(split) == len(whole)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    fetched = []

    def fetch(block: pa.Table) -> pa.Table:
        fetched.append(block)
        return block

    pieces = list(encoded.pieces(split, start, stop, fetch))
    assert [value for piece in pieces for value in piece["target"].tolist()] == whole[start:stop]
    assert all(piece["sequence"].shape == (len(piece["target"]), 2, 1) for piece in pieces)
    assert all((piece["sequence"][:, 1, 0] == piece["target"]).all() for piece in pieces)
    assert all(len(piece["target"]) for piece in pieces)
    assert len(fetched) == len({value // 1000 for value in whole[start:stop]})


@given(
    st.lists(st.tuples(*[st.lists(st.integers(0, 3), max_size=4)] * 3), min_size=1, max_size=NUM_BLOCKS),
    st.sampled_from([TRAIN, VALIDATION, TEST]),
    st.data(),
)
def test_any_slice_of_ragged_pieces_is_that_of_the_whole(
    lengths: list[tuple[list[int], list[int], list[int]]], split: int, data: st.DataObject
) -> None:
    """Steps of two channels count up through all blocks and splits."""
    blocks, whole, first = [], [], 0
    for parts in lengths:
        values = np.arange(first, first + 2 * sum(map(sum, parts)), dtype=np.float32)
        first += len(values)
        lists = pa.LargeListArray.from_arrays(2 * np.cumsum([0, *chain(*parts)]), pa.array(values))
        blocks.append(pa.table({"sequence": lists, "target": pa.array(np.arange(len(lists)))}))
        start = sum(map(len, parts[:split]))
        whole += lists.to_pylist()[start : start + len(parts[split])]
    counts = np.array([[len(part) for part in parts] for parts in lengths], np.int64)
    encoded = EncodedBlocks(blocks, counts, InputSpec(sequence_TC=(0, 2)))
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    found = []
    for piece in encoded.pieces(split, start, stop, lambda block: block):
        ragged = piece["sequence"]
        assert isinstance(ragged, Ragged)
        assert ragged.values.shape == (ragged.stop_N[-1], 2)
        assert len(ragged) == len(piece["target"]) > 0
        found += [ragged.values[a:b].reshape(-1).tolist() for a, b in zip(ragged.start_N, ragged.stop_N, strict=True)]
    assert found == whole[start:stop]


def test_sources_are_located_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, here = tmp_path / "jobs", tmp_path / "here"
    for folder in (jobs, here):
        folder.mkdir()
    (jobs / "a.csv").touch()
    (jobs / "both.csv").touch()
    (here / "both.csv").touch()
    (here / "part-1.csv").touch()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(jobs))
    settings = DataSettings(train=("a.csv", "both.csv", "part-*.csv", "~/a.csv"), validation="digits", test="s3://b/c")
    found = located(settings, jobs)
    assert found.train == (
        str(jobs / "a.csv"),
        str(here / "both.csv"),
        str(here / "part-*.csv"),
        str(jobs / "a.csv"),
    )
    assert (found.validation, found.test) == ("digits", "s3://b/c")
    assert located(DataSettings(train="nowhere.csv", test=0.1), jobs).train == "nowhere.csv"
