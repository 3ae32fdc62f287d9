"""From a file of series to a trained network, its metrics, and the steps after the end of the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from tides import START, tides, times

import raynn.forecast
from raynn.check import check_job
from raynn.cli import main
from raynn.errors import DataError, JobError, RunError
from raynn.job import Job
from raynn.prediction import predict
from raynn.run import Run, evaluate, open_run
from raynn.trainer import train

NETWORKS: dict[str, dict[str, Any]] = {
    "feedforward": {"kind": "feedforward", "hidden": [16]},
    "cnn": {"kind": "cnn", "channels": [4, 8], "head_hidden": [], "normalization": "group"},
    "rnn": {"kind": "rnn", "cell": "gru", "hidden": 16},
    "lstm": {"kind": "lstm", "hidden": 16},
}
DATA: dict[str, Any] = {
    "time": "time",
    "series": "station",
    "target": ["height", "flow"],
    "known": ["moon"],
    "calendar": ["hour"],
    "window": 12,
    "horizon": 3,
    "test": 0.2,
}
STATIONS = ("Brest", "Aden")


def job_of(folder: Path, network: str | dict[str, Any] = "feedforward", **data: Any) -> dict[str, Any]:
    return {
        "name": "tides",
        "data": {"train": str(folder / "tides.parquet"), **DATA, **data},
        "network": NETWORKS[network] if isinstance(network, str) else network,
        "optimization": {"global_batch_size": 32, "max_epochs": 3, "learning_rate": 0.01},
        "resources": {"gpus_per_worker": 0},
        "storage": str(folder / "runs"),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tides.parquet: two stations, 200 hours each, in no order."""
    folder = tmp_path_factory.mktemp("tides")
    table = tides(200, STATIONS)
    pq.write_table(table.take(np.random.default_rng(0).permutation(400)), folder / "tides.parquet", row_group_size=90)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    """Forecasts two targets at two stations, three hours ahead."""
    return open_run(train(Job.from_dict(job_of(folder))))


@pytest.fixture(scope="module")
def lone(folder: Path) -> Run:
    """Forecasts one target of one series from its past alone, two steps ahead."""
    pq.write_table(tides(120).select(["time", "height"]), folder / "lone.parquet")
    data = {"train": str(folder / "lone.parquet"), "time": "time", "target": "height", "window": 6, "horizon": 2}
    return open_run(train(Job.from_dict({**job_of(folder, "lstm"), "data": data})))


def metrics_of(run: Run) -> dict[str, float]:
    return json.loads((run.folder / "result.json").read_text())["metrics"]


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_network_learns_and_predict_says_what_evaluate_counts(kind: str, folder: Path, tmp_path: Path) -> None:
    job = Job.from_dict(job_of(folder, kind, window_normalization="last", channels="independent"))
    run = open_run(train(job))
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["train/loss"] < 0.8 * records[0]["train/loss"]
    found = evaluate(run.folder)
    assert found == pytest.approx({k: v for k, v in metrics_of(run).items() if k.startswith("test/")}, rel=1e-6)
    answer = predict(run.folder, "test", tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert answer["rows"] == table.num_rows == 2 * (40 - 2) * 3
    errors, spreads, standardized = [], [], []
    for target, encoding in zip(("height", "flow"), run.preprocessing.target_encodings, strict=True):
        actual = table[f"actual_{target}"].to_numpy()
        errors.append(table[f"prediction_{target}"].to_numpy() - actual)
        spreads.append(1 - (errors[-1] ** 2).sum() / ((actual - actual.mean()) ** 2).sum())
        standardized.append(errors[-1] / encoding.std)
    expected = {
        "test/loss": np.square(standardized).mean(),
        "test/rmse": np.sqrt(np.square(errors).mean()),
        "test/mae": np.abs(errors).mean(),
        "test/r2": np.mean(spreads),
        "test/mse_standardized": np.square(standardized).mean(),
        "test/mae_standardized": np.abs(standardized).mean(),
    }
    assert found == pytest.approx(expected, rel=1e-4)


def test_forecasts_of_a_split_are_of_all_its_windows(run: Run, tmp_path: Path) -> None:
    predict(run.folder, "test", tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    names = [
        "station",
        "origin",
        "step",
        "time",
        "actual_height",
        "actual_flow",
        "prediction_height",
        "prediction_flow",
    ]
    assert table.column_names == names
    rows = table.to_pylist()
    hours = [(row["station"], (row["origin"] - START).total_seconds() / 3600, row["step"]) for row in rows]
    assert hours == [
        (station, origin, step) for station in ("Aden", "Brest") for origin in range(159, 197) for step in (1, 2, 3)
    ]
    actual = {(row["station"], row["time"]): row["height"] for row in tides(200, STATIONS).to_pylist()}
    assert all(row["actual_height"] == actual[row["station"], str(row["time"])] for row in rows)
    predict(run.folder, "train", tmp_path / "train.parquet")
    assert pq.read_metadata(tmp_path / "train.parquet").num_rows == 2 * (140 - 14) * 3
    assert evaluate(run.folder, "validation").keys() == {key.replace("test", "val") for key in evaluate(run.folder)}


def test_many_tables_of_windows_are_one(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predict(run.folder, "test", tmp_path / "one.parquet")
    monkeypatch.setattr(raynn.forecast, "ROWS_PER_TABLE", 50)
    predict(run.folder, "test", tmp_path / "many.parquet")
    one, many = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("one", "many"))
    np.testing.assert_allclose(many["prediction_flow"].to_numpy(), one["prediction_flow"].to_numpy(), atol=1e-5)
    assert many.drop_columns(["prediction_flow", "prediction_height"]).equals(
        one.drop_columns(["prediction_flow", "prediction_height"])
    )


def future(num_steps: int, known: int = 3) -> pa.Table:
    """So many hours of both stations with targets, and after them some whose targets are empty."""
    table = tides(200, STATIONS)
    parts = []
    for start in (0, 200):
        ahead = table.slice(start + num_steps, known)
        empty = pa.nulls(known, pa.float64())
        for name in ("height", "flow", "wind"):
            ahead = ahead.set_column(ahead.column_names.index(name), name, empty)
        parts += [table.slice(start, num_steps), ahead]
    return pa.concat_tables(parts)


def test_what_comes_after_the_end_is_what_was_said_of_that_window(run: Run, tmp_path: Path) -> None:
    """The forecast from rows up to 02:00 on the eighth day is that of the test window with this origin."""
    predict(run.folder, "test", tmp_path / "test.parquet")
    windows = pq.read_table(tmp_path / "test.parquet")
    origin = times(1, 170)[0]
    expected = [row for row in windows.to_pylist() if str(row["origin"]) == origin]
    assert len(expected) == 6
    found = run.predict(future(171)).to_pylist()
    assert list(found[0]) == ["station", "time", "prediction_height", "prediction_flow"]
    for one, other in zip(found, expected, strict=True):
        assert (one["station"], one["time"]) == (other["station"], other["time"])
        assert one["prediction_height"] == pytest.approx(other["prediction_height"], abs=1e-5)
    # from a file, in any order, text or not; and only what is read matters
    rows = future(171).take(np.random.default_rng(1).permutation(348))
    pyarrow.csv.write_csv(rows, tmp_path / "rows.csv")
    answer = predict(run.folder, str(tmp_path / "rows.csv"), tmp_path / "out.parquet")
    assert answer == {"rows": 6, "bad_rows": 0, "out": str(tmp_path / "out.parquet")}
    from_file = pq.read_table(tmp_path / "out.parquet").to_pylist()
    for one, other in zip(from_file, found, strict=True):
        assert (one["station"], one["time"]) == (other["station"], other["time"])
        assert one["prediction_flow"] == pytest.approx(other["prediction_flow"], abs=1e-5)
    last = future(171).to_pandas()
    last = last[last["time"] >= times(1, 171 - 12)[0]]
    assert run.predict(last)["prediction_flow"].to_pylist() == pytest.approx(
        [row["prediction_flow"] for row in found], abs=1e-6
    )


def test_what_is_known_of_the_future_counts(run: Run) -> None:
    table = future(171)
    moon = table["moon"].to_numpy().copy()
    moon[171:174] += 5.0
    changed = run.predict(table.set_column(table.column_names.index("moon"), "moon", pa.array(moon)))
    before = run.predict(table)
    differs = np.array(changed["prediction_height"]) != np.array(before["prediction_height"])
    assert differs.tolist() == [False] * 3 + [True] * 3, "Brest, whose moon it is, comes after Aden"


def test_time_goes_on_by_the_step_of_the_series(lone: Run) -> None:
    table = tides(30).select(["time", "height"])
    found = lone.predict(table).to_pylist()
    assert list(found[0]) == ["time", "prediction"]
    assert [str(row["time"]) for row in found] == times(2, 30)
    # one row of the future gives its own time, the next goes on from there
    more = pa.concat_tables([table, pa.table({"time": ["2024-01-02 08:00"], "height": pa.nulls(1, pa.float64())})])
    again = lone.predict(more).to_pylist()
    assert [str(row["time"]) for row in again] == ["2024-01-02 08:00:00", "2024-01-02 09:00:00"]
    assert [row["prediction"] for row in again] == pytest.approx([row["prediction"] for row in found], abs=1e-6)
    assert lone.predict({"time": times(7), "height": [1, 2, 3, 4, 5, 6, 7]}).num_rows == 2


def test_columns_that_are_called_as_ours_keep_their_names(folder: Path, tmp_path: Path) -> None:
    table = tides(80).select(["height"]).append_column("step", pa.array(range(80)))
    pq.write_table(table, tmp_path / "t.parquet")
    data = {
        "train": str(tmp_path / "t.parquet"),
        "time": "step",
        "target": "height",
        "window": 3,
        "horizon": 2,
        "test": 0.2,
    }
    run = train(Job.from_dict({**job_of(tmp_path), "data": data}))
    predict(run, "test", tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["origin", "step_", "step", "actual", "prediction"]
    assert table.slice(0, 2).select(["origin", "step_", "step"]).to_pylist() == [
        {"origin": 63, "step_": 1, "step": 64},
        {"origin": 63, "step_": 2, "step": 65},
    ]


def test_another_source_is_evaluated_in_all_its_windows(run: Run, folder: Path, tmp_path: Path) -> None:
    whole = tides(200, STATIONS)
    later = pa.concat_tables([whole.slice(148, 52), whole.slice(348, 52)])
    pq.write_table(later, tmp_path / "later.parquet")
    assert evaluate(run.folder, str(tmp_path / "later.parquet")) == pytest.approx(evaluate(run.folder), rel=1e-5)


def test_a_run_repeats_bit_for_bit_wherever_its_steps_lie(folder: Path, tmp_path: Path) -> None:
    tree = {**job_of(folder, "lstm"), "storage": str(tmp_path)}
    runs = [train(Job.from_dict(tree, overrides)) for overrides in ([], ["resources.residence=disk"])]
    weights = [(run / "model" / "weights.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]


def test_check_says_what_it_sees(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tides.yaml").write_text(Job.from_dict(job_of(folder)).to_yaml())
    answer, lines = check_job(str(tmp_path / "tides.yaml"), [])
    assert answer["rows"] == {"train": 2 * 126, "validation": 2 * 18, "test": 2 * 38}
    text = "\n".join(lines)
    assert "tides: forecasting of 'height', 'flow' (2 series of 200 steps, 100 % of them 1:00:00 apart)" in text
    assert "hour of time: data.calendar" in text
    assert "252 train, 36 validation, 76 test windows, 0 bad" in text


def changed(table: pa.Table, row: int, column: str, value: Any) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = value
    return table.set_column(table.column_names.index(column), column, pa.array(values))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            future(8),
            "the data of series 'Aden' hold 8 steps with a target, and data.window = 12 are read; give more of its "
            "past, or leave the series out",
        ),
        (
            future(171, known=1),
            "data.known = ['moon'] are read for the 3 steps to predict, and the data of series 'Aden' hold 1 of them: "
            "add 2 rows behind the last, with their time, these columns and empty targets",
        ),
        (
            changed(future(171), 172, "moon", None),
            "'moon' of series 'Brest' is in data.known, and empty at 2024-01-08 04:00:00; fill it in",
        ),
        (
            changed(future(171), 168, "flow", None),
            "a target of series 'Brest' is empty at 2024-01-08, and the forecast reads it; fill it in, or leave out "
            "the rows from there on. Only rows at the end of a series may be empty, in every target: they are the "
            "future",
        ),
        (
            changed(
                future(171).cast(future(171).schema.set(2, pa.field("height", pa.string()))), 165, "height", "high"
            ),
            "the data, row 165, column height: 'high' is not a number; the forecast reads this row: mend it",
        ),
        (future(171).drop_columns("moon"), "the data have no column 'moon'"),
        (future(171).drop_columns("station"), "the data have no column 'station'"),
        (
            changed(future(171), 3, "time", "now"),
            "data.time = 'time': 1 of 348 rows hold no time, the first the data, row 3",
        ),
    ],
)
def test_data_that_cannot_be_continued_are_refused(run: Run, table: pa.Table, message: str) -> None:
    with pytest.raises(DataError) as error:
        run.predict(table)
    assert message in str(error.value)


def test_what_is_bad_before_the_window_is_named_and_does_not_matter(run: Run, tmp_path: Path) -> None:
    text = future(171).cast(future(171).schema.set(5, pa.field("wind", pa.string())))
    pq.write_table(changed(text, 20, "wind", "strong"), tmp_path / "rows.parquet")
    answer = predict(run.folder, str(tmp_path / "rows.parquet"), tmp_path / "out.parquet")
    assert (answer["rows"], answer["bad_rows"]) == (6, 1)
    assert json.loads((tmp_path / "out.parquet.bad_rows.jsonl").read_text())["row"] == 20
    with pytest.raises(
        DataError, match=r"rows\.parquet holds rows that cannot be evaluated, the first: .*row 20, column"
    ):
        evaluate(run.folder, str(tmp_path / "rows.parquet"))


def test_one_row_tells_no_step(folder: Path, tmp_path: Path) -> None:
    data = {"train": str(folder / "lone.parquet"), "time": "time", "target": "height", "window": 1, "horizon": 2}
    run = open_run(train(Job.from_dict({**job_of(tmp_path), "data": data})))
    row = {"time": ["2024-01-01"], "height": [1.0]}
    with pytest.raises(
        DataError, match=r"^the data hold one row, which tells no step in time; give two rows, or the rows"
    ):
        run.predict(row)
    ahead = {"time": ["2024-01-01", "2024-01-02", "2024-01-03"], "height": [1.0, None, None]}
    assert run.predict(ahead).num_rows == 2


def test_a_split_that_is_not_there_is_said(lone: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the job has no test set; name the data: raynn predict"):
        predict(lone.folder, "test", tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
    pq.write_table(tides(7).select(["time", "height"]), tmp_path / "short.parquet")
    with pytest.raises(DataError, match=r"short\.parquet has no 8 steps in a row to evaluate; give longer series"):
        evaluate(lone.folder, str(tmp_path / "short.parquet"))


@pytest.mark.parametrize(
    ("network", "overrides", "message"),
    [
        (
            "feedforward",
            ["task=regression"],
            "data.target names 2 columns, which forecasting alone can predict together; name one, or set data.time and "
            "data.horizon",
        ),
        (
            "feedforward",
            ["task=regression", "data.target=height"],
            "data.time = 'time' is for forecasting, and the task is regression: remove it",
        ),
        ("lstm", ["regularization.label_smoothing=0.1"], "has no meaning for forecasting; set it to 0"),
        ("cnn", ["regularization.horizontal_flip=0.5"], "regularization.horizontal_flip = 0.5 changes images"),
        ("lstm", ["early_stopping.monitor=val/accuracy"], "'val/accuracy' is not recorded by this forecasting job."),
        ("rnn", ["optimization.global_batch_size=500"], "is larger than the 252 training rows"),
    ],
)
def test_what_does_not_fit_a_forecast_is_said(
    network: str, overrides: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / f"{network}.yaml"
    path.write_text(Job.from_dict(job_of(folder, network)).to_yaml())
    assert main(["train", str(path), *overrides]) == 2
    assert message in capsys.readouterr().err


def test_a_search_keeps_the_horizon(folder: Path) -> None:
    search = {"trials": 2, "metric": "val/loss", "space": {"data.horizon": {"choice": [1, 2]}}}
    with pytest.raises(JobError, match=r"'data\.horizon' cannot be searched: every trial is scored on the same rows"):
        Job.from_dict({**job_of(folder), "search": search})
