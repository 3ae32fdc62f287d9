"""Tables of series: sorted, split by time, normalized by training steps alone, and cut into windows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tides import data_of, steps_of, tides, times, understood

import raynn.series
from raynn.batches import TrainingShard
from raynn.collectives import Workers
from raynn.drivers import LocalDriver
from raynn.errors import DataError, JobError
from raynn.job import Job
from raynn.placement import place_shards
from raynn.preparation import Prepared
from raynn.preprocessing import ForecastSpec, Preprocessing
from raynn.ragged import Ragged
from raynn.series import prepare_series, understand_series
from raynn.splits import EXCLUDED, TEST, TRAIN, VALIDATION
from raynn.tasks import prepare_job, task_of, understand_job


def prepared(table: Any, folder: Path, preprocessing: Preprocessing | None = None, **fields: Any) -> Prepared:
    return prepare_series(understood(table, folder, **fields), LocalDriver(), preprocessing)


def windows(prepared: Prepared, split: int, column: str = "target") -> np.ndarray:
    """Windows [N, W + H, ...] of a split."""
    found = []
    for piece in prepared.encoded.pieces(split, 0, prepared.encoded.num_rows(split), lambda block: block):
        ragged = piece[column]
        assert isinstance(ragged, Ragged)
        found += [ragged.values[a:b] for a, b in zip(ragged.start_N, ragged.stop_N, strict=True)]
    return np.array(found)


def heights(prepared: Prepared, split: int) -> np.ndarray:
    """Windows of the target in its own unit."""
    (encoding,) = prepared.preprocessing.target_encodings
    return windows(prepared, split)[:, :, 0] * encoding.std + encoding.mean


def shuffled(table: pa.Table, seed: int = 0) -> pa.Table:
    return table.take(np.random.default_rng(seed).permutation(table.num_rows))


def test_steps_are_sorted_by_series_and_time_however_rows_lie(tmp_path: Path) -> None:
    table = tides(60, ("Brest", "Aden"))
    steps = steps_of(shuffled(table), tmp_path, series="station", calendar=["hour"])
    assert steps.names == ("Aden", "Brest")
    assert steps.series_S.tolist() == [0] * 60 + [1] * 60
    assert np.flatnonzero(steps.new_S).tolist() == [0, 60]
    expected = pa.concat_tables([table.slice(60), table.slice(0, 60)])
    assert steps.table["height"].to_pylist() == expected["height"].to_pylist()
    assert steps.table["wind"].to_pylist() == expected["wind"].to_pylist()
    assert steps.table["time.hour"].to_pylist() == [str(hour % 24) for hour in range(60)] * 2
    assert not steps.bad_S.any()


def test_everything_else_is_the_same_however_rows_lie(tmp_path: Path) -> None:
    table = tides(120, ("Brest", "Aden"))
    fields: dict[str, Any] = {"series": "station", "known": ["moon"], "calendar": ["hour"], "test": 0.2}
    one, other = (prepared(each, tmp_path, **fields) for each in (table, shuffled(table)))
    assert one.preprocessing == other.preprocessing
    for split in (TRAIN, VALIDATION, TEST):
        for column in ("numeric", "categorical", "target"):
            np.testing.assert_array_equal(windows(one, split, column), windows(other, split, column))


@pytest.mark.parametrize("kind", ["date", "timestamp", "zone", "text", "number", "csv"])
def test_times_of_any_type(kind: str, tmp_path: Path) -> None:
    table = tides(40)
    hours = np.arange(40)
    column = {
        "date": pa.array(hours + 19_000, pa.int32()).cast(pa.date32()),
        "timestamp": pa.array(hours * 60, pa.timestamp("s")),
        "zone": pa.array(hours * 60, pa.timestamp("s", "UTC")),
        "number": pa.array(hours * 3),
    }.get(kind, table["time"])
    table = table.set_column(0, "time", column)
    if kind == "csv":
        pyarrow.csv.write_csv(table, tmp_path / "tides.csv")
        data = data_of(table, tmp_path / "tides.parquet").model_copy(update={"train": str(tmp_path / "tides.csv")})
        found = prepare_series(understand_series(data, tmp_path), LocalDriver())
    else:
        found = prepared(table, tmp_path)
    apart = {"date": "1 day", "number": "3", "timestamp": "0:01:00", "zone": "0:01:00"}.get(kind, "1:00:00")
    assert found.task_reason == f"1 series of 40 steps, 100 % of them {apart} apart"
    np.testing.assert_allclose(heights(found, TRAIN)[0], table["height"].to_numpy()[:6], rtol=1e-5)


@given(
    st.lists(st.lists(st.sampled_from("good bad".split()), min_size=1, max_size=25), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
)
@settings(max_examples=30, deadline=None)
def test_windows_are_those_of_brute_force(kinds: list[list[str]], window: int, horizon: int, stride: int) -> None:
    """Series of any length, with bad rows in them: no window spans one, none trains on what is evaluated."""
    rows = [(f"s{n}", t, kind == "good") for n, series in enumerate(kinds) for t, kind in enumerate(series)]
    names, ticks, good = (list(column) for column in zip(*rows, strict=True))
    heights_N = [float(i) if is_good else None for i, is_good in enumerate(good)]
    table = {"time": ticks, "station": names, "height": pa.array(heights_N, pa.float64())}
    cut = 0.6 * max(ticks)
    since = int(cut) + 1
    fields: dict[str, Any] = {"window": window, "horizon": horizon, "stride": stride, "validation": {"since": since}}
    expected: dict[int, list[list[int]]] = {TRAIN: [], VALIDATION: []}
    run = 0
    for start in range(len(rows) - window - horizon + 1):
        part = range(start, start + window + horizon)
        whole = all(good[i] and names[i] == names[start] for i in part)
        trains = whole and all(ticks[i] < since for i in part)
        run = run + 1 if trains else 0
        if trains and (run - 1) % stride == 0:
            expected[TRAIN].append(list(part))
        if whole and all(ticks[i] >= since for i in part[window:]):
            expected[VALIDATION].append(list(part))
    with TemporaryDirectory() as folder:
        try:
            found = prepared(table, Path(folder), series="station", max_bad_rows=1.0, **fields)
        except DataError:
            assert not expected[TRAIN] or not expected[VALIDATION]
            return
    for split, parts in expected.items():
        np.testing.assert_allclose(heights(found, split), parts, atol=1e-4)


def test_normalization_is_that_of_training_steps_alone(tmp_path: Path) -> None:
    table = tides(100)
    later = table.slice(70).to_pydict()
    changed = {name: [v * 1000 if isinstance(v, float) else v for v in values] for name, values in later.items()}
    changed["sky"] = ["green"] * 30
    other = pa.concat_tables([table.slice(0, 70), pa.table(changed)])
    fields: dict[str, Any] = {"validation": {"since": times(1, 70)[0]}}
    one, two = prepared(table, tmp_path, **fields), prepared(other, tmp_path, **fields)
    one_features, two_features = (
        [replace(spec, reason="") for spec in each.preprocessing.features] for each in (one, two)
    )
    assert one_features == two_features
    assert one.preprocessing.encodings == two.preprocessing.encodings
    assert one.preprocessing.target_encodings == two.preprocessing.target_encodings
    (encoding,) = one.preprocessing.target_encodings
    height_S = table["height"].to_numpy()[:70]
    assert (encoding.mean, encoding.std) == (pytest.approx(height_S.mean()), pytest.approx(height_S.std()))
    np.testing.assert_array_equal(windows(one, TRAIN, "numeric"), windows(two, TRAIN, "numeric"))
    assert one.preprocessing.input_spec.cardinalities == (2, 3), "station, sky; each with the unknown"


def test_evaluation_windows_read_what_lies_before_their_split(tmp_path: Path) -> None:
    """The standard protocol of the ETT data: each step of a split is predicted, the first ones from earlier splits."""
    table = tides(100)
    found = prepared(table, tmp_path, validation=0.2, test=0.3, window=10, horizon=5)
    sizes = [found.encoded.num_rows(split) for split in (TRAIN, VALIDATION, TEST)]
    assert sizes == [50 - 14, 20 - 4, 30 - 4]
    height_S = table["height"].to_numpy()
    np.testing.assert_allclose(heights(found, TEST)[0], height_S[60:75], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(heights(found, VALIDATION)[-1], height_S[55:70], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(heights(found, TRAIN)[-1], height_S[35:50], rtol=1e-4, atol=1e-4)


def test_a_source_of_its_own_goes_on_where_training_ends(tmp_path: Path) -> None:
    data = data_of(tides(60), tmp_path / "a.parquet", validation=str(tmp_path / "b.parquet"))
    data_of(tides(20, first=60), tmp_path / "b.parquet")
    found = prepare_series(understand_series(data, tmp_path), LocalDriver())
    assert found.encoded.num_rows(VALIDATION) == 20 - 1, "each horizon of 2 within, read from what was before"
    assert [part.tolist() for part in found.splits] == [[TRAIN] * 60, [VALIDATION] * 20]


def test_splits_are_said_in_the_order_of_the_rows(tmp_path: Path) -> None:
    table = tides(20)
    values = table["height"].to_pylist()
    values[5] = None
    table = table.set_column(2, "height", pa.array(values)).take(list(range(19, -1, -1)))
    found = prepared(table, tmp_path, validation=0.25, max_bad_rows=0.1)
    assert np.concatenate(found.splits).tolist() == [VALIDATION] * 5 + [TRAIN] * 9 + [EXCLUDED] + [TRAIN] * 5
    assert [row.row for row in found.bad_rows] == [14]
    assert found.num_source_rows == 20


def test_blocks_are_of_steps_and_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tides(90, ("Brest", "Aden"))
    fields: dict[str, Any] = {"series": "station", "target": ["height", "flow"], "test": 0.2}
    one = prepared(table, tmp_path, **fields)
    monkeypatch.setattr(raynn.series, "STEPS_PER_BLOCK", 7)
    many = prepared(table, tmp_path, one.preprocessing, **fields)
    assert len(many.encoded.blocks) == 26  # type: ignore[attr-defined]
    for split in (TRAIN, VALIDATION, TEST):
        np.testing.assert_array_equal(windows(one, split), windows(many, split))
    fitted = prepared(table, tmp_path, **fields).preprocessing
    for mine, theirs in zip(fitted.target_encodings, one.preprocessing.target_encodings, strict=True):
        assert (mine.mean, mine.std) == pytest.approx((theirs.mean, theirs.std), rel=1e-12)


@pytest.mark.parametrize("num_workers", [2, 3])
def test_workers_share_the_batches_of_one(num_workers: int, tmp_path: Path) -> None:
    found = prepared(tides(150), tmp_path, window=5, horizon=3)
    optimization = {"global_batch_size": 24}
    tree = {"data": {"train": "t"}, "network": {"kind": "rnn"}, "optimization": optimization}
    job = Job.from_dict({**tree, "resources": {"gpus_per_worker": 0}})

    def training(rank: int, count: int) -> TrainingShard:
        return place_shards(found.encoded, lambda block: block, job, Workers(rank, count), 1, tmp_path).train

    shards = [training(rank, num_workers) for rank in range(num_workers)]
    for epoch in (0, 1):
        whole = list(training(0, 1).batches(epoch, Workers()))
        parts = [list(shard.batches(epoch, Workers(r, num_workers))) for r, shard in enumerate(shards)]
        for step, (batch, keys) in enumerate(whole):
            assert set(batch) == {"numeric", "categorical", "target", "length"}
            assert batch["target"].shape == (len(keys), 8, 1)
            order = torch.cat([part[step][1] for part in parts]).argsort()
            for name, values in batch.items():
                theirs = torch.cat([part[step][0][name] for part in parts])
                assert torch.equal(values[keys.argsort()], theirs[order]), name


def test_what_a_network_is_told(tmp_path: Path) -> None:
    found = prepared(
        tides(80), tmp_path, target=["height", "flow"], known=["moon", "sky"], calendar=["hour", "weekday"]
    )
    assert found.task == "forecasting"
    names = [spec.name for spec in found.preprocessing.features]
    assert names == ["station", "moon", "wind", "sky", "time.hour", "time.weekday"]
    spec = found.preprocessing.input_spec
    assert (spec.window, spec.horizon, spec.num_targets, spec.num_outputs) == (4, 2, 2, 4)
    assert (spec.num_numeric, spec.known_numeric) == (2, (0,))
    assert (spec.cardinalities, spec.known_categorical) == ((2, 3, 25, 4), (1, 2, 3)), (
        "72 training hours, three weekdays"
    )
    assert len(spec.target_mean) == 2
    forecast = ForecastSpec(4, 2, ("moon", "sky", "time.hour", "time.weekday"))
    assert found.preprocessing.forecast == forecast
    assert Preprocessing.from_json(found.preprocessing.to_json()) == found.preprocessing


def test_known_dates_and_gaps_are_known_in_all_their_columns(tmp_path: Path) -> None:
    table = tides(30).append_column("spring", pa.array([f"2024-01-{1 + i:02d}" for i in range(30)]))
    moon = [None if i == 3 else value for i, value in enumerate(table["moon"].to_pylist())]
    wind = [None if i == 4 else value for i, value in enumerate(table["wind"].to_pylist())]
    table = table.set_column(4, "moon", pa.array(moon)).set_column(5, "wind", pa.array(wind))
    spec = prepared(table, tmp_path, known=["spring", "moon"]).preprocessing.input_spec
    # flow, moon, wind, spring and its four cycles, then whether moon and whether wind is missing
    assert spec.num_numeric == 10
    assert spec.known_numeric == (1, 3, 4, 5, 6, 7, 8)


def test_weekdays_are_remembered(tmp_path: Path) -> None:
    days = np.arange(40)
    weekdays = days[np.isin((days + 3) % 7, range(5))]
    table = {"time": pa.array(weekdays, pa.int32()).cast(pa.date32()), "height": weekdays * 1.0}
    forecast = prepared(table, tmp_path).preprocessing.forecast
    assert forecast is not None
    assert forecast.weekdays
    table = {"time": pa.array(days, pa.int32()).cast(pa.date32()), "height": days * 1.0}
    forecast = prepared(table, tmp_path).preprocessing.forecast
    assert forecast is not None
    assert not forecast.weekdays


def test_no_feature_but_the_target_is_needed(tmp_path: Path) -> None:
    found = prepared(tides(40).select(["time", "height"]), tmp_path)
    assert found.preprocessing.features == ()
    assert set(next(found.encoded.pieces(0, 0, 3, lambda block: block))) == {"target"}


def test_a_job_with_a_time_forecasts(tmp_path: Path) -> None:
    data = data_of(tides(60), tmp_path / "t.parquet").model_dump(mode="json", exclude_defaults=True)
    job = Job.from_dict({"data": data, "network": {"kind": "lstm"}})
    assert task_of(job) == "forecasting"
    found = prepare_job(job, understand_job(job, tmp_path), LocalDriver())
    assert found.task == "forecasting"


TABLE = tides(60)


def replaced(column: str, row: int, value: Any) -> pa.Table:
    values = TABLE[column].to_pylist()
    values[row] = value
    return TABLE.set_column(TABLE.column_names.index(column), column, pa.array(values))


@pytest.mark.parametrize(
    ("table", "fields", "kind", "message"),
    [
        (
            TABLE,
            {"time": None},
            JobError,
            "data.time is missing: forecasting needs the column that orders the steps, for instance `time: date`",
        ),
        (
            TABLE,
            {"horizon": None},
            JobError,
            "data.horizon is missing: forecasting needs how many steps to predict, for instance `horizon: 24`",
        ),
        (
            TABLE,
            {"window": None, "horizon": 6},
            JobError,
            "data.window is missing: forecasting needs how many past steps are read, for instance `window: 30`",
        ),
        (
            TABLE,
            {"target": None},
            JobError,
            "data.target is missing: forecasting needs the column to predict, or several, for instance `target: [load, "
            "price]`",
        ),
        (
            TABLE,
            {"group": "station"},
            JobError,
            "data.group = 'station' is not for forecasting, whose splits are by time: remove it, or name the column "
            "that tells series apart in data.series",
        ),
        (
            TABLE,
            {"target": "sky"},
            DataError,
            "data.target names 'sky', which is categorical (text), and forecasts are "
            "numbers; choose another column, or task: classification",
        ),
        (TABLE, {"time": "tiem"}, DataError, "data.time names 'tiem', which is not a column. Did you mean 'time'?"),
        (
            TABLE,
            {"known": ["moon"], "features": ["wind", "sky"]},
            JobError,
            "data.known names 'moon', which is not a feature. The features: wind, sky",
        ),
        (TABLE, {"known": ["height"]}, JobError, "data.known names 'height', which is not a feature"),
        (
            TABLE.append_column("waves", pa.array([[1.0, 2.0]] * 60)),
            {"features": ["waves"]},
            DataError,
            "column 'waves' is sequence, and a forecast reads numeric, categorical, date columns; set `data.columns: "
            "{waves: ignore}`",
        ),
        (
            TABLE.append_column("time.hour", TABLE["wind"]),
            {"calendar": ["hour"]},
            DataError,
            "column 'time.hour' is also what data.calendar makes of the time; rename the column",
        ),
        (
            TABLE.set_column(0, "time", pa.array(range(60))),
            {"calendar": ["hour", "day"]},
            DataError,
            "data.calendar = ['hour', 'day'] are fields of dates, and data.time = 'time' holds whole numbers; remove "
            "data.calendar",
        ),
        (
            replaced("time", 3, "tomorrow"),
            {},
            DataError,
            "data.time = 'time': 1 of 60 rows hold no time, the first {file}, row 3: 'tomorrow'; write dates as "
            "2024-05-31 or 2024-05-31 12:00, or whole numbers, in every row",
        ),
        (
            replaced("time", 3, None),
            {},
            DataError,
            "1 of 60 rows hold no time, the first {file}, row 3: nothing; write",
        ),
        (
            replaced("time", 3, times(5)[4]),
            {},
            DataError,
            "data.time = 'time': 1 times are there twice, the first 2024-01-01 04:00:00 in {file}, row 3, and {file}, "
            "row 4; drop one of them, or name the column that tells series apart in data.series",
        ),
        (
            replaced("time", 3, times(5)[4]),
            {"series": "station"},
            DataError,
            "data.time = 'time': 1 times of series 'Brest' are there twice, the first 2024-01-01 04:00:00 in {file}, "
            "row 3, and {file}, row 4; drop one of them",
        ),
        (
            replaced("station", 7, None),
            {"series": "station"},
            DataError,
            "data.series = 'station' is empty in 1 rows, the first {file}, row 7; fill it in, or drop these rows",
        ),
        (
            TABLE,
            {"window": 60},
            DataError,
            "data.window = 60 and data.horizon = 2 take 62 steps in a row, and the longest run of training steps is "
            "54; set data.window to at most 52",
        ),
        (
            TABLE,
            {"horizon": 60},
            DataError,
            "data.window = 4 and data.horizon = 60 take 64 steps in a row, and the longest run of training steps is "
            "54; shorten both, or give longer series",
        ),
        (
            TABLE,
            {"horizon": 10},
            DataError,
            "data.validation holds no window: data.horizon = 10 of its steps in a row are predicted, from the 4 before "
            "them, and its longest run is 6; make it longer, or set data.horizon to at most 6",
        ),
        (
            TABLE,
            {"validation": 0.2, "test": 0.02},
            DataError,
            "data.test holds no window: data.horizon = 2 of its steps in a row are predicted, from the 4 before them, "
            "and its longest run is 1; make it longer, or set data.horizon to at most 1",
        ),
        (
            replaced("height", 30, None),
            {},
            DataError,
            "1 of 60 rows (1.67%) are bad, and data.max_bad_rows = 0 allows fewer:\n  {file}, row 30, column height: "
            "missing target",
        ),
    ],
)
def test_what_cannot_be_is_said(
    table: pa.Table, fields: dict[str, Any], kind: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind) as error:
        prepared(table, tmp_path, **fields)
    assert message.replace("{file}", str(tmp_path / "tides.parquet")) in str(error.value)


def test_a_row_that_cannot_be_read_has_no_place(tmp_path: Path) -> None:
    """Whatever max_bad_rows says: a window could span the hole it leaves."""
    pyarrow.csv.write_csv(TABLE, tmp_path / "t.csv")
    lines = (tmp_path / "t.csv").read_text().splitlines()
    (tmp_path / "t.csv").write_text("\n".join([*lines[:20], "2024-01-01,too,few", *lines[21:]]))
    data = data_of(TABLE, tmp_path / "t.parquet", max_bad_rows=0.5).model_copy(
        update={"train": str(tmp_path / "t.csv")}
    )
    with pytest.raises(DataError) as error:
        prepare_series(understand_series(data, tmp_path), LocalDriver())
    assert str(error.value) == (
        f"{tmp_path / 't.csv'}, row 19: 3 fields, the header has 7: '2024-01-01,too,few': a row that cannot be read "
        "has no place in a series, so that data.max_bad_rows cannot help; mend the row"
    )
