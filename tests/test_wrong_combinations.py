"""Networks, tasks, data and options that do not go together: exit status 2, no traceback, no run folder, and what the
message must say.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from flowers import flowers, paint
from refusals import JOB, Bad, assert_refused, table_file, train
from tides import tides
from walks import walks

SEA = "data={{train: tides.csv, time: time, series: station, target: height, window: 6, horizon: 2{}}}"
VERSE = "data={train: verse.txt, window: 8}"
PETS = "data={train: pets, target: label}"
WALKS = "data={train: walks.parquet, target: place}"
PAINTER = "network={kind: image_generator, channels: [4]}"
WRITER = "network={kind: text_generator, width: 8, layers: 1, heads: 1}"
LSTM = "network={kind: lstm, hidden: 4}"
OWN = "network={kind: custom, target: 'own_network:build'}"

NETWORKS = {
    "image generator on a table": Bad(
        train(PAINTER), ("no feature is left beside data.target = 'kind'", "the task reads image columns alone")
    ),
    "text generator on a table": Bad(
        train(WRITER, "data={train: flowers.csv, window: 8}"),
        ("no column reads like text, and a language model reads one; name it: `data.features: [width]`",),
    ),
    "text generator that is to predict a column": Bad(
        train(WRITER, "data={train: texts.parquet, target: label}"),
        ("data.target = 'label' is there, and a language model", "use network.kind: lstm without data.window"),
    ),
    "language model of pictures": Bad(train(LSTM, "data={train: pets, window: 8}"), ("no column reads like text",)),
    "cnn on a table": Bad(
        train("network={kind: cnn}"), ("network.kind = 'cnn' needs an image or a sequence or a text",)
    ),
    "rnn on pictures": Bad(
        train("network={kind: rnn}", PETS), ("network.kind = 'rnn' needs a sequence or a text column",)
    ),
    "lstm on a table": Bad(train(LSTM), ("use network.kind: feedforward, or declare a column's kind in data.columns",)),
    "cnn as a language model": Bad(
        train("network={kind: cnn}", VERSE),
        ("network.kind = 'cnn' is for classification and regression and forecasting",),
    ),
    "language model in both directions": Bad(
        train("network={kind: lstm, bidirectional: true}", VERSE),
        ("network.bidirectional = true lets", "set it to false"),
    ),
    "own network asked for two targets": Bad(
        train(OWN, "data={train: flowers.csv, target: [kind, price]}"), ("data.target names 2 columns",)
    ),
    "guidance of an autoencoder": Bad(
        train("network={kind: image_generator, architecture: vae, guidance: 3.0}", PETS),
        ("network.guidance = 3.0 is a setting of architecture: flow_matching", "leave it out"),
    ),
}

TASKS = {
    "forecasting without a time column": Bad(
        train("data={train: tides.csv, target: height, window: 6, horizon: 2}"),
        ("data.time is missing: forecasting needs",),
    ),
    "forecasting without a horizon": Bad(
        train("data={train: tides.csv, time: time, target: height, window: 6}"),
        ("data.horizon is missing: forecasting needs how many steps to predict, for instance `horizon: 24`",),
    ),
    "forecasting without a window": Bad(
        train("data={train: tides.csv, time: time, target: height, horizon: 2}"), ("data.window is missing",)
    ),
    "forecasting without a target": Bad(
        train("data={train: tides.csv, time: time, window: 6, horizon: 2}"),
        ("data.target is missing: forecasting needs the column to predict, or several",),
    ),
    "window longer than the series": Bad(
        train("data={train: tides.csv, time: time, series: station, target: height, window: 600, horizon: 2}"),
        ("take 602 steps in a row, and the longest run of training steps is 54; set data.window to at most 52",),
    ),
    "window longer than the text": Bad(
        train(LSTM, "data={train: verse.txt, window: 9000}"),
        ("data.window = 9000 reads more tokens than any training document can give", "set it to 1133 or less"),
    ),
    "forecast of words": Bad(
        train(SEA.format("").replace("height", "sky")),
        ("data.target names 'sky', which is categorical (text), and forecasts",),
    ),
    "time that is none": Bad(
        train(SEA.format("").replace("time: time", "time: sky")), ("data.time = 'sky': 60 of 60 rows hold no time",)
    ),
    "known column that is not there": Bad(
        train(SEA.format(", known: [mon]")), ("data.known names 'mon', which is not a column. Did you mean 'moon'?",)
    ),
    "groups of series": Bad(
        train(SEA.format(", group: station")), ("data.group = 'station' is not for forecasting", "in data.series")
    ),
    "calendar of a table": Bad(
        train("data.calendar=[weekday]"),
        ("data.calendar = ('weekday',) is for forecasting, and the task is classification",),
    ),
    "independent channels of a table": Bad(train("data.channels=independent"), ("is for forecasting", "remove it")),
    "stride of a table": Bad(train("data.stride=2"), ("data.stride = 2 is for forecasting and language_modeling",)),
    "window of a table": Bad(
        train("data.window=3"), ("data.window = 3 without data.time and data.horizon is language modeling",)
    ),
    "tokens of a table": Bad(
        train("data.vocabulary=100"),
        ("data.vocabulary = 100 is for text, and the features are categorical, date, numeric: remove it",),
    ),
    "pictures from a classifier's network": Bad(
        train("task=image_generation"), ("task = 'image_generation': a network of kind 'feedforward' is for",)
    ),
    "classes from a generator": Bad(
        train(PAINTER, PETS, "task=classification"), ("a network of kind 'image_generator' is for image_generation",)
    ),
    "regression of names": Bad(
        train("task=regression"), ("task = 'regression' needs numbers, but target 'kind' holds",)
    ),
    "pictures without a target": Bad(
        train("network={kind: cnn}", "data={train: pets}"), ("data.target is missing: name the column to predict",)
    ),
}

KNOBS = {
    "label smoothing of a regression": Bad(
        train("data.target=price", "regularization.label_smoothing=0.1"),
        ("has no meaning for regression; set it to 0",),
    ),
    "label smoothing of a forecast": Bad(
        train(SEA.format(""), "regularization.label_smoothing=0.1"), ("has no meaning for forecasting; set it to 0",)
    ),
    "label smoothing of pictures": Bad(
        train(PAINTER, PETS, "regularization.label_smoothing=0.1"),
        ("has no meaning for image_generation; set it to 0",),
    ),
    "flips of a table": Bad(
        train("regularization.horizontal_flip=0.5"),
        ("changes images, and the features are categorical, date, numeric",),
    ),
    "flips of sequences": Bad(
        train("network={kind: cnn, channels: [4]}", WALKS, "regularization.horizontal_flip=0.5"), ("changes images",)
    ),
    "crops of text": Bad(
        train(LSTM, VERSE, "regularization.crop_padding=2"),
        ("crop_padding = 2 changes images, and the features are text",),
    ),
    "input dropout of a generator": Bad(
        train(PAINTER, PETS, "regularization.input_dropout=0.1"), ("would learn to draw the gaps; set it to 0",)
    ),
    "accuracy of a regression": Bad(
        train("data.target=price", "early_stopping.monitor=val/accuracy"),
        ("'val/accuracy' is not recorded by this regression job. Recorded: train/loss, val/loss",),
    ),
    "perplexity of a classifier": Bad(train("early_stopping.monitor=val/perplexity"), ("is not recorded by this",)),
    "likelihood of flow matching": Bad(
        train(PAINTER, PETS, "early_stopping.monitor=val/bits_per_dim"),
        ("'val/bits_per_dim' is not recorded by this image_generation job. Recorded: train/loss, val/loss\n",),
    ),
}

FSDP = "resources={workers: 4, strategy: fsdp}"
CHECKS = {  # by `raynn check`, which needs no cluster for several workers
    "a weight that cannot be cut": Bad(
        ("check", "job.yaml", "network={kind: custom, target: 'own_network:scaled'}", FSDP),
        ("resources.strategy = 'fsdp' cuts every weight along its first axis", "'scale' is a single number", "or use"),
    ),
    "workers without a row to evaluate": Bad(
        ("check", "job.yaml", "data.validation=0.01", FSDP),
        ("needs a validation row on each worker, and there are 2 rows for 4 workers; use fewer workers, more rows",),
    ),
    "a strategy that does not exist": Bad(
        ("check", "job.yaml", "resources.strategy=zero"), ("resources.strategy = 'zero': must be one of 'ddp', 'fsdp'",)
    ),
}

RUNS = {
    "prompt with unknown characters": Bad(
        ("generate", "{writer}", "--prompt", "4€x"),
        ("the prompt holds '€', 'x', which training never saw; leave them out",),
    ),
    "classes from a writer": Bad(
        "generate {writer} --steps 3", ("generates texts, and --steps is for others: leave it out",)
    ),
    "prompt to a painter": Bad(
        "generate {painter} --prompt x", ("generates images, and --prompt is for others: leave it out",)
    ),
    "class that a painter has not seen": Bad(
        "generate {painter} --class dgo", ("no class 'dgo' among the training images. Did you mean 'dog'?",)
    ),
    "texts from a classifier": Bad(
        "generate {classifier}", ("is a run of task classification, which generates nothing; `raynn predict",)
    ),
    "predictions of a painter": Bad(
        "predict {painter} pets --out out.parquet",
        ("generates images, and has nothing to predict; `raynn generate",),
    ),
    "a judge of what is no picture": Bad(
        "evaluate {classifier} --judge {pets}", ("--judge is for image generators, and", "leave it out")
    ),
    "a judge that has seen no picture": Bad(
        "evaluate {painter} validation --judge {classifier}",
        ("cannot judge images: it has network.kind = 'feedforward', and must be 'cnn'",),
    ),
    "a table to a writer": Bad("evaluate {writer} flowers.csv", ("no column 'text'",)),
    "a table to a judge of pictures": Bad("predict {pets} flowers.csv --out out.parquet", ("column 'image'",)),
}


@pytest.fixture(scope="module")
def supplies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data of every sort, and job.yaml, a feedforward network on flowers."""
    folder = tmp_path_factory.mktemp("supplies")
    (folder / "job.yaml").write_text(JOB)
    table_file(flowers(), str(folder / "flowers.csv"))()
    table_file(tides(60), str(folder / "tides.csv"))()
    table_file(walks(60), str(folder / "walks.parquet"))()
    texts = [f"word {i % 7} and {i % 3} more words here, {i} of them" for i in range(60)]
    table_file(pa.table({"text": texts, "label": ["a", "b"] * 30}), str(folder / "texts.parquet"))()
    (folder / "verse.txt").write_text("the sea is calm tonight, the tide is full\n" * 30)
    paint(folder / "pets")
    return folder


@pytest.mark.parametrize("name", [*NETWORKS, *TASKS, *KNOBS, *CHECKS])
def test_a_job_is_refused(
    name: str, supplies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(supplies)
    assert_refused({**NETWORKS, **TASKS, **KNOBS, **CHECKS}[name], {}, capsys)
    assert not list(supplies.glob("runs/*")), "a run folder was made"


@pytest.mark.parametrize("name", RUNS)
def test_a_command_to_a_run_is_refused(
    name: str,
    supplies: Path,
    writer: Path,
    painter: Path,
    classifier: Path,
    image_classifier: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(supplies)
    runs = {"writer": writer, "painter": painter, "classifier": classifier, "pets": image_classifier}
    assert_refused(RUNS[name], {key: str(run) for key, run in runs.items()}, capsys)
    assert not list(supplies.glob("out.parquet*"))
