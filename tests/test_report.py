"""Reports of tiny runs, one a task, and of made-up searches: what stands in them, and that it agrees with result.json.

What a browser makes of them is in test_report_in_browser.py.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from searches import write_search

from raynn.charts import over_epochs
from raynn.cli import main
from raynn.errors import RunError
from raynn.folder import read_result
from raynn.inspection import bytes_of_sources, inspect
from raynn.job import Job
from raynn.report import conclude, write_report
from raynn.run_report import run_page, settings_against_defaults
from raynn.trainer import train
from raynn.trial_table import read_search

VOID = {"meta", "link", "img", "br", "hr", "input"}
RUNS = ("classifier", "regressor", "image_classifier", "forecaster", "writer", "painter")


class Outline(HTMLParser):
    """Sections and charts of a page; fails where an element is not closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.titles: list[str] = []
        self.text: list[str] = []
        self.attributes: list[dict[str, str | None]] = []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append({"": tag, **dict(attrs)})
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append({"": tag, **dict(attrs)})

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h2", "h3"):
            self.titles.append(data)
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def outline(page: Any) -> Outline:
    return Outline(page.html())


def data_of(text: str, key: str) -> Any:
    found = re.search(f'<script type="application/json" id="{key}">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Path:
    folder = request.getfixturevalue(request.param)
    assert isinstance(folder, Path)
    return folder


EXPECTED = {
    "classifier": ["Confusion", "ROC", "Calibration", "Class by class", "Rows of each class", "The worst errors"],
    "regressor": ["Predicted against actual", "Residuals", "How large the residuals are", "The worst errors"],
    "image_classifier": ["Confusion", "Filters of stages.0.conv.convolution"],
    "forecaster": ["Error by step ahead", "Errors of height", "Errors of flow"],
    "writer": ["How surprising each token was", "The hardest window that was held out"],
    "painter": ["Drawn by the network, one column a class: cat, dog", "Real images (validation)"],
}


@pytest.mark.parametrize("run", RUNS, indirect=True)
def test_a_report_holds_what_its_task_has(run: Path, request: pytest.FixtureRequest) -> None:
    found = inspect(run)
    assert not found.missing
    page = outline(run_page(found))
    common = ["Weight norms, layer by layer", "Gradient norms, layer by layer"]
    common += ["Learning", "Network", "Layer by layer, of the best weights", "Data", "Columns", "Settings"]
    expected = [*common, *EXPECTED[request.node.callspec.params["run"]], "Predict and repeat"]
    if len(found.records) > 1:
        expected.append("Loss, training and validation")
    assert set(expected) <= set(page.titles)
    assert found.result["stop_reason"] in page.words
    assert sum(layer.parameters for layer in found.layers) == found.result["parameters"]


@pytest.mark.parametrize("run", RUNS, indirect=True)
def test_a_report_is_one_file_below_6_mb_that_names_no_other(run: Path) -> None:
    path = write_report(run)
    text = path.read_text()
    assert path.stat().st_size < 6e6
    assert not list(run.glob("*.partial*"))
    for attributes in Outline(text).attributes:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), attributes
    assert "default-src 'none'" in text


def test_norms_are_drawn_layer_by_layer_epoch_by_epoch(classifier: Path) -> None:
    found = inspect(classifier)
    charts = data_of(run_page(found).html(), "chart-data")
    (option,) = (chart["option"] for chart in charts.values() if chart["label"].startswith("Gradient norms"))
    names = [layer.name for layer in found.layers]
    assert option["yAxis"]["data"] == names
    cells = {(epoch, name): value for epoch, name, _, value in option["series"][0]["data"]}
    assert cells == {
        (str(record["epoch"]), name): pytest.approx(record[f"norms/gradient/{name}"], rel=1e-4)
        for record in found.norms
        for name in names
    }
    assert len(found.norms) == found.result["epochs"]


def test_of_many_epochs_a_chart_shows_some_and_what_has_no_logarithm_is_blank() -> None:
    rows = {"a": [0.0, math.nan, *(10.0**-e for e in range(298))], "b": [1.0] * 300}
    option = over_epochs("t", range(1, 301), rows, "u", "").option
    epochs = option["xAxis"]["data"]
    assert (len(epochs), epochs[0], epochs[-1]) == (60, "1", "300")
    cells = option["series"][0]["data"]
    assert ["1", "b", 0.0, 1.0] in cells
    assert not any(cell[:2] == ["1", "a"] for cell in cells)
    assert (option["visualMap"]["min"], option["visualMap"]["max"]) == (-297.0, pytest.approx(0.0))


def test_class_figures_are_those_of_result_json(classifier: Path) -> None:
    found, metrics = inspect(classifier), read_result(classifier)["metrics"]
    assert found.classes is not None
    assert found.split == "test"
    assert found.classes.accuracy == metrics["test/accuracy"]
    assert found.classes.f1_macro == pytest.approx(metrics["test/f1_macro"], rel=1e-12)
    assert found.classes.loss_N.mean() == pytest.approx(metrics["test/loss"], rel=1e-5)
    words = outline(run_page(found)).words
    assert f"accuracy {metrics['test/accuracy']:.4g}; shade" in words
    assert f"{metrics['test/accuracy']:.4g} test/accuracy" in words
    assert sum(found.rows_of_splits.values()) == sum(map(sum, found.class_counts.values()))


def test_two_classes_have_the_auroc_of_result_json(image_classifier: Path) -> None:
    found, metrics = inspect(image_classifier), read_result(image_classifier)["metrics"]
    assert found.split == "validation"
    charts = data_of(run_page(found).html(), "chart-data")
    (roc,) = [c for c in charts.values() if c["label"].startswith("ROC")]
    assert roc["option"]["series"][0]["name"] == f"dog ({metrics['val/auroc']:.4g})"


def test_errors_of_a_regression_are_those_of_result_json(regressor: Path) -> None:
    found, metrics = inspect(regressor), read_result(regressor)["metrics"]
    assert found.values is not None
    assert found.values.rmse == pytest.approx(metrics["val/rmse"], rel=1e-6)
    assert found.values.mae == pytest.approx(metrics["val/mae"], rel=1e-6)
    assert f"RMSE {metrics['val/rmse']:.4g}, MAE {metrics['val/mae']:.4g}" in outline(run_page(found)).words


def test_errors_of_a_forecast_are_those_of_result_json(forecaster: Path) -> None:
    found, metrics = inspect(forecaster), read_result(forecaster)["metrics"]
    assert [forecast.target for forecast in found.forecasts] == ["height", "flow"]
    mean_square = np.mean([(forecast.rmse_H**2).mean() for forecast in found.forecasts])
    assert mean_square**0.5 == pytest.approx(metrics["test/rmse"], rel=1e-5)
    assert found.series_N is not None
    assert set(found.series_N) == {"Brest", "Aden"}
    assert any("height of Aden from" in title for title in outline(run_page(found)).titles)


def test_the_worst_errors_are_shown_with_their_rows(classifier: Path, regressor: Path) -> None:
    found = inspect(regressor)
    assert found.values is not None
    errors = [abs(case.error) for case in found.worst]
    assert errors == sorted(np.abs(found.values.residual_N), reverse=True)[: len(errors)]
    classes = inspect(classifier)
    assert classes.classes is not None
    wrong = int((classes.classes.predicted_N != classes.classes.actual_N).sum())
    assert len(classes.worst) == min(12, wrong)


def test_the_inputs_of_an_error_are_those_of_its_row(regressor: Path) -> None:
    """Each case's actual value is the target of the row of the source that it names."""
    found = inspect(regressor)
    table = pq.read_table(Job.load(regressor / "job.yaml").data.train)
    for case in found.worst:
        row = table.slice(int(case.row.rpartition(" ")[2]), 1).to_pylist()[0]
        assert float(case.actual) == pytest.approx(row["price"], rel=1e-3)
        for name, shown in case.inputs:
            assert shown == (f"{row[name]:.5g}" if isinstance(row[name], float) else str(row[name]))


def test_settings_stand_against_the_defaults(classifier: Path) -> None:
    rows = settings_against_defaults(Job.load(classifier / "job.yaml"))
    changed = {key: (value, default) for key, value, default in rows if value != default}
    assert changed["optimization.global_batch_size"][0] == 16
    assert "regularization.dropout" not in changed
    flags = [value != default for _, value, default in rows]
    assert flags == sorted(flags, reverse=True), "those that differ come first"


@pytest.fixture
def moved(classifier: Path, tmp_path: Path) -> Path:
    """The run, its data gone."""
    folder = tmp_path / "moved"
    shutil.copytree(classifier, folder)
    for path in (folder / "job.yaml", folder / "model" / "job.yaml"):
        path.write_text(path.read_text().replace("flowers.parquet", "gone.parquet"))
    return folder


def test_without_its_data_a_run_still_has_a_report_that_says_so(moved: Path) -> None:
    found = inspect(moved)
    (missing,) = found.missing
    assert "gone.parquet" in missing
    assert missing.startswith("Predictions, errors and the sizes of the splits: ")
    page = outline(run_page(found))
    assert {"Loss, training and validation", "Layer by layer, of the best weights", "Columns"} <= set(page.titles)
    assert "Confusion" not in page.titles
    assert missing in page.words


def test_without_its_model_too(moved: Path) -> None:
    shutil.rmtree(moved / "model")
    found = inspect(moved)
    assert "has no model yet" in found.missing[0]
    assert {"Loss, training and validation", "Settings"} <= set(outline(run_page(found)).titles)


def test_large_sources_are_left_alone(classifier: Path) -> None:
    job = Job.load(classifier / "job.yaml")
    size = bytes_of_sources(job)
    assert size == Path(str(job.data.train)).stat().st_size
    found = inspect(classifier, max_bytes=size - 1)
    assert "too much to read again at the end of a run; `raynn report" in found.missing[0]
    assert found.classes is None
    assert inspect(classifier, max_bytes=size).classes is not None


def test_rows_that_a_refit_trained_on_are_not_shown_as_held_out(regressor: Path, tmp_path: Path) -> None:
    folder = tmp_path / "refitted"
    shutil.copytree(regressor, folder)
    (folder / "model-validated").mkdir()
    found = inspect(folder)
    assert "its model has trained on the validation rows, and there is no test set to show" in found.missing[0]
    assert found.values is None


def test_bad_rows_and_markup_are_shown_as_text(moved: Path) -> None:
    bad = {"file": "a.csv", "row": 3, "column": "<b>", "reason": "</script><script>alert(1)</script>"}
    (moved / "bad_rows.jsonl").write_text(json.dumps(bad) + "\n")
    page = outline(run_page(inspect(moved)))
    assert "1 rows could not be used" in page.titles
    assert "</script><script>alert(1)</script>" in page.words


def test_what_a_chart_says_cannot_end_its_script(tmp_path: Path) -> None:
    folder = write_search(tmp_path, 8)  # too few to rank settings, which takes a second
    table = pq.read_table(folder / "trials.parquet")
    place = table.column_names.index("network.normalization")
    bad = pa.array(["</script><img src=x>"] * len(table))
    pq.write_table(table.set_column(place, "network.normalization", bad), folder / "trials.parquet")
    path = write_report(folder)
    assert "<img src=x>" not in path.read_text()
    Outline(path.read_text())


def test_reports_at_the_end_of_a_run(
    garden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAYNN_REPORT", "on")
    job = {
        "name": "seen",
        "data": {"train": str(garden / "flowers.parquet"), "target": "kind"},
        "network": {"kind": "feedforward", "hidden": [4]},
        "optimization": {"global_batch_size": 64, "max_epochs": 1},
        "storage": str(tmp_path),
    }
    run = train(Job.from_dict(job))
    assert {"report.html", "README.md"} <= {path.name for path in run.iterdir()}
    assert Job.from_dict(job).fingerprint() == Job.from_dict({**job, "report": False}).fingerprint()
    run = train(Job.from_dict({**job, "report": False}))
    assert not {"report.html", "README.md"} & {path.name for path in run.iterdir()}
    assert capsys.readouterr().err == ""


def test_a_report_that_fails_fails_no_run(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYNN_REPORT", "on")
    said: list[str] = []
    (moved / "model" / "preprocessing.json").write_text("{}")
    (moved / "environment.json").write_text("[")
    (moved / "metrics.jsonl").write_text('{"no": "epoch"}\n{"no": "epoch"}\n')
    conclude(moved, said.append)
    assert [line.partition(" could not be written")[0] for line in said] == ["README.md", "report.html"]
    assert all(line.endswith("the run itself is whole") for line in said)


def test_the_command(classifier: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["report", str(classifier), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] == str(classifier / "report.html")
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "raynn report: there is no run folder" in capsys.readouterr().err


# ---- searches ---------------------------------------------------------------------------------------------------


def test_a_search_is_read_as_it_was_written(tmp_path: Path) -> None:
    search = read_search(write_search(tmp_path, 30))
    result = json.loads((tmp_path / "result.json").read_text())
    assert (search.metric, search.higher, len(search.trials)) == ("val/accuracy", True, 30)
    logs = dict(zip(search.settings, search.logs, strict=True))
    assert logs["optimization.learning_rate"]
    assert not logs["regularization.dropout"]
    best = search.trials[result["best"]["number"]]
    of_lists = {"network.hidden": best.settings["network.hidden"]}
    assert of_lists.items() <= result["best"]["settings"].items()
    assert best.settings | of_lists == {
        name: value if isinstance(value, str | list) else pytest.approx(value)
        for name, value in result["best"]["settings"].items()
    }
    assert {n: len(c) for n, c in search.curves.items()} == {t.number: t.epochs for t in search.trials}


def test_what_repeats_differ_in_is_no_setting_of_the_search(tmp_path: Path) -> None:
    write_search(tmp_path, 8)
    table = pq.read_table(tmp_path / "trials.parquet")
    seeds = pa.array([None] * 7 + [1], pa.int64())
    pq.write_table(table.append_column("optimization.seed", seeds), tmp_path / "trials.parquet")
    assert "optimization.seed" not in read_search(tmp_path).settings
    job = yaml.safe_load((tmp_path / "job.yaml").read_text())
    job["search"]["space"]["optimization.seed"] = {"randint": [0, 9]}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    assert "optimization.seed" in read_search(tmp_path).settings


def test_the_report_of_a_search(tmp_path: Path) -> None:
    path = write_report(write_search(tmp_path, 40, objectives=True))
    page, result = Outline(path.read_text()), json.loads((tmp_path / "result.json").read_text())
    expected = [
        "Parallel coordinates",
        "Trial after trial",
        "Learning curves of all trials",
        "All trials, the best first",
    ]
    expected += ["Importance of each setting", "Pareto front: val/accuracy and val/parameters"]
    assert {*expected, *result["best"]["settings"]} <= set(page.titles)
    assert f"Trial {result['best']['number']}, " in page.words
    for status, count in result["trials"].items():
        assert not count or f"{count} {status.replace('_', ' ').replace('cut', 'cut by the scheduler')}" in page.words
    rows = data_of(path.read_text(), "trial-data")["rows"]
    assert sorted(row["number"] for row in rows) == list(range(40))


def test_a_search_that_goes_on_is_read_from_its_journal(tmp_path: Path) -> None:
    from raynn.ledger import Ledger, Verdict

    space = {"regularization.dropout": {"uniform": [0.0, 0.5]}}
    job = {"name": "live", "data": {"train": "digits"}, "network": {"kind": "cnn"}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**job, "search": {"metric": "val/accuracy", "space": space}}))
    ledger = Ledger(tmp_path / "search.jsonl")
    ledger.begin_session()
    for dropout, accuracy in ((0.1, 0.7), (0.2, 0.9), (0.3, 0.5)):
        trial = ledger.add({"regularization.dropout": dropout}, "search")
        ledger.report(trial, {"epoch": 1, "val/accuracy": accuracy, "seconds": 2.0}, lambda trial: Verdict("go_on"))
    ledger.become(ledger.trials[2], "cut", "behind")
    with (tmp_path / "search.jsonl").open("a") as file:
        file.write('{"event": "epo')  # being written
    before = (tmp_path / "search.jsonl").read_bytes()
    search = read_search(tmp_path)
    assert [(t.number, t.status, t.value, t.best_epoch) for t in search.trials] == [
        (0, "running", 0.7, 1),
        (1, "running", 0.9, 1),
        (2, "cut", 0.5, 1),
    ]
    assert search.higher
    assert "not ended" in Outline(write_report(tmp_path).read_text()).words
    assert (tmp_path / "search.jsonl").read_bytes() == before, "who looks changes nothing"


def test_a_damaged_table_of_trials(tmp_path: Path) -> None:
    (write_search(tmp_path, 12) / "trials.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match=r"trials\.parquet is damaged"):
        write_report(tmp_path)
