"""Bad inputs through the command line: exit status 2, no traceback, and a message that names the field, the value,
what is wrong with it and the way out. None leaves a run folder behind.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flowers import flowers, paint, with_value
from refusals import JOB, Bad, assert_refused, job_file, table_file, train

from raynn.cli import main

PETS = "data={train: pets, target: label}"
CNN = "network={kind: cnn, channels: [4]}"


def pets(change: Callable[[Path], object], num_images: int = 20) -> Callable[[], object]:
    """An image folder with something wrong in it."""
    return lambda: change(paint(Path("pets"), num_images))


JOB_FILES = {
    "job file that does not exist": Bad(
        "train jbo.yaml", ("raynn train: jbo.yaml: no such file", "Did you mean 'job.yaml'?")
    ),
    "job file that is a folder": Bad(
        "train jobs", ("jobs: is a folder, not a job file",), lambda: Path("jobs").mkdir()
    ),
    "empty job file": Bad(
        "train bad.yaml", ("bad.yaml:1:1: the file is empty", "the sections `data` and `network`"), job_file("")
    ),
    "job file that is a list": Bad(
        "train bad.yaml", ("bad.yaml:1:1: the file is a list; a job is a mapping",), job_file("- data\n- network\n")
    ),
    "job file indented with a tab": Bad(
        "train bad.yaml",
        ("bad.yaml:2:1: not YAML", "indent with spaces, not tabs"),
        job_file("data:\n\ttrain: flowers.csv\n"),
    ),
    "misspelt section": Bad(
        "train bad.yaml",
        ("bad.yaml:4:1: regularisation: unknown key. Did you mean 'regularization'? Valid keys: name, data,",),
        job_file(JOB + "regularisation: {dropout: 0.1}\n"),
    ),
    "misspelt key": Bad(
        "train bad.yaml",
        ("bad.yaml:5:3: regularization.droput: unknown key. Did you mean 'dropout'?", "Valid keys: dropout,"),
        job_file(JOB + "regularization:\n  droput: 0.1\n"),
    ),
    "misspelt key two levels down": Bad(
        "train bad.yaml",
        ("bad.yaml:4:20: tracking.wandb.projct: unknown key. Did you mean 'project'?",),
        job_file(JOB + "tracking: {wandb: {projct: a}}\n"),
    ),
    "several mistakes at once": Bad(
        "train bad.yaml",
        ("bad.yaml:4:27: regularization.dropout = 2: must be less than 1", "bad.yaml:5:1: rsources: unknown key"),
        job_file(JOB + "regularization: {dropout: 2}\nrsources: {workers: 1}\n"),
    ),
    "misspelt network": Bad(train("network={kind: cn}"), ("network.kind = 'cn': must be one of", "'cnn'")),
    "text for a number": Bad(
        train("optimization.max_epochs=ten"),
        ("override 'optimization.max_epochs=ten': optimization.max_epochs = 'ten': must be an integer",),
    ),
    "quoted number": Bad(
        train("optimization.learning_rate='0.1'"),
        ("optimization.learning_rate = '0.1': must be a number: write 0.1 without quotes",),
    ),
    "dropout of one": Bad(train("regularization.dropout=1"), ("regularization.dropout = 1: must be less than 1",)),
    "no epochs": Bad(train("optimization.max_epochs=0"), ("optimization.max_epochs = 0: must be at least 1",)),
    "learning rate that is no number": Bad(
        train("optimization.learning_rate=.nan"), ("learning_rate = .nan: must be a finite number",)
    ),
    "override without a value": Bad(train("workers"), ("override 'workers': must have the form dotted.key=value",)),
    "override of an unknown key": Bad(
        train("resources.wrkers=2"), ("resources.wrkers: unknown key. Did you mean 'workers'?",)
    ),
    "override that is not YAML": Bad(train("data.train=[a,"), ("override 'data.train=[a,': not YAML",)),
    "option that does not exist": Bad(train("--fast"), ("unrecognized arguments: --fast", "usage: raynn")),
    "command that does not exist": Bad("tran job.yaml", ("invalid choice: 'tran' (choose from 'train',",)),
    "monitor of another task": Bad(
        train("early_stopping.monitor=val/rmse"),
        ("early_stopping.monitor = 'val/rmse' is not recorded by this classification job", "val/accuracy"),
    ),
    "misspelt monitor": Bad(
        train("early_stopping.monitor=val/acuracy"),
        ("early_stopping.monitor = 'val/acuracy'", "Did you mean 'accuracy'?"),
    ),
    "monitor of the test set": Bad(
        train("early_stopping.monitor=test/loss"), ("the test split is looked at once, at the end: use 'val/loss'",)
    ),
    "task that the network is not for": Bad(
        train("task=image_generation"),
        ("task = 'image_generation': a network of kind 'feedforward' is for classification and regression",),
    ),
    "label smoothing of a regression": Bad(
        train("data.target=price", "regularization.label_smoothing=0.1"),
        ("regularization.label_smoothing = 0.1 has no meaning for regression; set it to 0",),
    ),
    "cnn on a table": Bad(
        train("network={kind: cnn}"),
        ("network.kind = 'cnn' needs an image or a sequence or a text column", "use network.kind: feedforward"),
    ),
    "batch larger than the data": Bad(
        train("optimization.global_batch_size=500"),
        ("optimization.global_batch_size = 500 is larger than the 216 training rows; set it to 216 or less",),
    ),
    "more workers than lanes": Bad(
        train("optimization.global_batch_size=7", "resources.workers=9"),
        ("resources.workers = 9: must be at most 7, the lanes that optimization.global_batch_size = 7 is cut into",),
    ),
    "more elastic workers than lanes": Bad(
        train("optimization.global_batch_size=7", "resources.workers={min: 1, max: 9}"),
        ("resources.workers.max = 9: must be at most 7, the lanes that optimization.global_batch_size = 7 is",),
    ),
    "fewest workers above most": Bad(
        train("resources.workers={min: 3, max: 2}"),
        ("resources.workers.min = 3: must be at most resources.workers.max = 2",),
    ),
    "elastic workers without a most": Bad(
        train("resources.workers={min: 1}"), ("resources.workers.max: required key is missing",)
    ),
    "elastic trials": Bad(
        train(
            "resources.workers={min: 1, max: 2}",
            "search={space: {optimization.learning_rate: {loguniform: [0.001, 0.1]}}}",
        ),
        ("must be a number in a job with `search`, which shares the cluster among trials",),
    ),
    "local driver with elastic workers": Bad(
        train("resources={driver: local, workers: {min: 1, max: 2}}"),
        ("resources.workers = {min: 1, max: 2}; set resources.workers=1, or",),
    ),
    "local driver with two workers": Bad(
        train("resources={driver: local, workers: 2}"),
        (
            "resources.driver = 'local' trains one worker",
            "resources.workers = 2; set resources.workers=1, or",
        ),
    ),
    "storage that is a file": Bad(
        train("storage=flowers.csv"),
        ("storage = 'flowers.csv' cannot be written: File exists; choose a folder you may write",),
    ),
    "storage below a file": Bad(
        train("storage=flowers.csv/runs"), ("storage = 'flowers.csv/runs' cannot be written: Not a directory",)
    ),
    "storage at a URL of an unknown kind": Bad(
        train("storage=gopher://host/runs"), ("storage = 'gopher://host/runs' cannot be written: Protocol not known",)
    ),
    "storage at a URL with a password": Bad(
        train("storage=s3://me:secret@bucket/runs"), ("storage holds a password", "in the environment")
    ),
    "resume of nothing": Bad(
        train("resume=true"), ("resume = true, but", "holds no run named 'job'", "run without resume=true")
    ),
    "check finds what training would": Bad(
        ("check", "job.yaml", "resources={driver: local, workers: 2}"), ("raynn check: resources.driver = 'local'",)
    ),
}

SOURCES = {
    "file that does not exist": Bad(
        train("data.train=flower.csv"),
        ("flower.csv: no such file, folder or data set; looked for", "Did you mean 'flowers.csv'?"),
    ),
    "misspelt name of the catalog": Bad(
        train("data.train=digit"), ("digit: no such file, folder or data set", "Did you mean 'digits'?")
    ),
    "glob that matches nothing": Bad(
        train("data.train=flower-*.csv"),
        ("flower-*.csv: no file matches; looked for", "there are flowers.csv, job.yaml"),
    ),
    "folder with nothing in it": Bad(
        train("data.train=empty"), ("empty: an empty folder; put data into it",), lambda: Path("empty").mkdir()
    ),
    "file of an unknown format": Bad(
        train("data.train=notes.docx"),
        ("notes.docx: raynn does not read notes.docx; convert to one of .parquet",),
        lambda: Path("notes.docx").write_text("rose"),
    ),
    "address of an unknown scheme": Bad(
        train("data.train=gopher://host/a.csv"), ("gopher://host/a.csv: cannot be read as address",)
    ),
    "empty file": Bad(
        train("data.train=bad.csv"),
        ("bad.csv: an empty file; a CSV file begins with",),
        lambda: Path("bad.csv").touch(),
    ),
    "table without rows": Bad(
        train("data.train=bad.csv"),
        ("bad.csv: holds no rows; name a source that does",),
        table_file(flowers().slice(0, 0)),
    ),
    "corrupt Parquet": Bad(
        train("data.train=bad.parquet"),
        ("bad.parquet: cannot be read as parquet", "mend or replace it"),
        lambda: Path("bad.parquet").write_bytes(b"PAR1" + bytes(100)),
    ),
    "column that is there twice": Bad(
        train("data.train=bad.csv"),
        ("bad.csv: column 'width' is there twice; rename one",),
        lambda: Path("bad.csv").write_text("width,width,kind\n1,2,rose\n"),
    ),
    "row with a field too many": Bad(
        train("data.train=bad.csv", "data.features=[width]"),
        ("bad.csv, row 1: 3 fields, the header has 2: '2,rose,3'", "data.max_bad_rows=0.02"),
        lambda: Path("bad.csv").write_text("width,kind\n1,iris\n2,rose,3\n" + "3,rose\n4,iris\n" * 30),
    ),
}

COLUMNS = {
    "no target": Bad(
        "train bad.yaml",
        ("data.target is missing: name the column to predict, for instance `target: label`",),
        job_file("data: {train: flowers.csv}\nnetwork: {kind: feedforward}\n"),
    ),
    "misspelt target": Bad(
        train("data.target=kidn"),
        ("data.target names 'kidn', which is not a column. Did you mean 'kind'? The columns: width, height, color",),
    ),
    "misspelt feature": Bad(train("data.features=[widht]"), ("data.features names 'widht'", "Did you mean 'width'?")),
    "feature that is the target": Bad(
        train("data.features=[width, kind]"), ("data.features names 'kind', which is data.target", "take it out")
    ),
    "no features at all": Bad(train("data.features=[]"), ("data.features = []: must have at least 1 value",)),
    "group that is not a column": Bad(
        train("data.group=gardn"), ("data.group names 'gardn'", "Did you mean 'garden'?")
    ),
    "group of lists": Bad(
        train("data.train=bad.parquet", "data.group=lists"),
        ("column 'lists' holds list<", "groups and splits go by text or whole numbers; name another column"),
        table_file(flowers().append_column("lists", pa.array([[1]] * 240)), "bad.parquet"),
    ),
    "split by a value that no row has": Bad(
        train("data.test={column: part, equals: nort}"),
        ("data.test: no usable row of data.train has part = 'nort'; its values are", "Did you mean 'north'?"),
    ),
    "split by a column that is not there": Bad(
        train("data.test={column: prt, equals: north}"), ("data.test.column names 'prt'", "Did you mean 'part'?")
    ),
    "unknown kind of column": Bad(
        train("data.columns={color: number}"), ("data.columns.color = 'number': must be one of", "'numeric'")
    ),
    "text declared a number": Bad(
        train("data.columns={color: numeric}"),
        ("column 'color' is to be numeric, but 240 of 240 sampled values are not a number", "{color: categorical}"),
    ),
    "one class only": Bad(
        train("data.train=bad.csv"),
        ("target 'kind' is 'rose' in every training row, and a classifier needs two classes",),
        table_file(flowers().set_column(6, "kind", pa.array(["rose"] * 240))),
    ),
    "regression of text": Bad(
        train("task=regression"),
        ("task = 'regression' needs numbers, but target 'kind' holds string", "classification"),
    ),
    "labels that training never saw": Bad(
        train("data.test=bad.csv"),
        ("target 'kind': 'rsoe' in 1 rows is none of the 2 classes of the training rows", "Did you mean 'rose'?"),
        table_file(with_value(flowers(), 3, "kind", "rsoe")),
    ),
    "fraction too small for a row": Bad(
        train("data.validation=0.001"), ("data.validation = 0.001 of 240 rows of data.train is no row at all",)
    ),
    "fractions that leave nothing to train": Bad(
        train("data={validation: 0.5, test: 0.5, train: flowers.csv, target: kind}"), ("none would train",)
    ),
}

ROWS = {
    "NaN target in CSV": Bad(
        train("data.train=bad.csv", "data.target=price"),
        ("1 of 240 rows (0.42%) are bad", "bad.csv, row 7, column price: missing target", "max_bad_rows=0.005"),
        table_file(with_value(flowers(), 7, "price", float("nan"))),
    ),
    "infinite target in Parquet": Bad(
        train("data.train=bad.parquet", "data.target=price"),
        ("bad.parquet, row 9, column price: missing target: inf",),
        table_file(with_value(flowers(), 9, "price", float("inf")), "bad.parquet"),
    ),
    "word among numbers": Bad(
        train("data.train=bad.csv"),
        ("bad.csv, row 5, column width: 'wide' is not a number",),
        table_file(with_value(flowers(), 5, "width", "wide")),
    ),
    "picture that cannot be decoded": Bad(
        train(PETS, CNN),
        (
            "1 of 40 rows (2.50%)",
            "pets/dog/004.png, row 0, column image: not an image: 7 bytes that begin with b'no pict",
        ),
        pets(lambda folder: (folder / "dog" / "004.png").write_bytes(b"no pict")),
    ),
    "picture cut short": Bad(
        train(PETS, CNN),
        ("pets/cat/002.png, row 0, column image: undecodable image",),
        pets(lambda folder: (folder / "cat" / "002.png").write_bytes((folder / "cat" / "002.png").read_bytes()[:60])),
    ),
    "pictures of different sizes": Bad(
        train(PETS, CNN),
        (
            "images of different sizes: column 'image' holds 9 x 7 in",
            "pets/dog/000.png, row 0",
            "data.image_size: [H, W]",
        ),
        pets(lambda folder: shutil.copy(paint(Path("odd"), 1, (9, 7)) / "dog" / "000.png", folder / "dog" / "000.png")),
    ),
    "picture in no class folder": Bad(
        train(PETS, CNN),
        ("the image 000.png lies in no class folder, whose name would be its label", "root/class_name/photo.png"),
        pets(lambda folder: shutil.copy(folder / "cat" / "000.png", folder / "000.png")),
    ),
    "table among pictures": Bad(
        train(PETS, CNN),
        ("holds tables (", "labels.csv) and images", "name the tables with a glob"),
        pets(lambda folder: (folder / "labels.csv").write_text("a,b\n1,2\n")),
    ),
    "all pictures broken": Bad(
        train(PETS, CNN),
        ("column 'image' is to be image, but none of its first 4 values is one that can be decoded",),
        pets(lambda folder: [file.write_bytes(b"no") for file in folder.glob("*/*.png")], 2),
    ),
}

# {run} is a run that ended and has no test set, {garden} the folder that its data are in.
RUNS = {
    "run that does not exist": Bad(
        "evaluate {run}r",
        ("there is no run folder {run}r. Did you mean 'regressor'? `raynn train JOB.yaml` makes one",),
    ),
    "folder that is not a run": Bad(
        "evaluate {garden}", ("{garden} is not a run folder: it holds no job.yaml; name a folder that",)
    ),
    "run that has not ended": Bad(
        "predict runs/job flowers.csv --out out.parquet",
        ("job has no model yet: its training has not ended well; continue it with its job file and resume=true",),
        lambda: (Path("runs/job").mkdir(parents=True), Path("runs/job/job.yaml").write_text(JOB)),
    ),
    "run with damaged weights": Bad(
        "evaluate damaged flowers.csv",
        ("damaged/model is damaged", "restore its files, or train again"),
        lambda: Path("damaged/model/weights.safetensors").write_bytes(b"short"),
    ),
    "run without its preprocessing": Bad(
        "evaluate damaged flowers.csv",
        ("damaged/model is damaged", "preprocessing.json", "or train again"),
        lambda: Path("damaged/model/preprocessing.json").unlink(),
    ),
    "evaluation without a test set": Bad(
        "evaluate {run}", ("the job has no test set; name the data: raynn evaluate {run} DATA",)
    ),
    "prediction of a test set that is not": Bad(
        "predict {run} test --out out.parquet", ("the job has no test set; name the data: raynn predict {run} DATA",)
    ),
    "column missing at predict time": Bad(
        "predict {run} bad.csv --out out.parquet",
        ("column 'width', on which the model was trained, is missing from the data", "Did you mean 'widht'?", "rename"),
        table_file(flowers().rename_columns({"width": "widht"})),
    ),
    "target missing at evaluation": Bad(
        "evaluate {run} bad.csv", ("bad.csv: no column 'price'",), table_file(flowers().drop_columns("price"))
    ),
    "bad row at evaluation": Bad(
        "evaluate {run} bad.csv",
        ("rows that cannot be evaluated, the first:", "bad.csv, row 2, column price: 'free' is not a number"),
        table_file(with_value(flowers(), 2, "price", "free")),
    ),
    "files of different columns at predict time": Bad(
        "predict {run} many --out out.parquet",
        ("many/b.csv has other columns than", "many/a.csv: smell; predict one after the other"),
        lambda: (
            Path("many").mkdir(),
            table_file(flowers(), "many/a.csv")(),
            table_file(flowers().append_column("smell", pa.array(["good"] * 240)), "many/b.csv")(),
        ),
    ),
    "out in a folder that is a file": Bad(
        "predict {run} flowers.csv --out job.yaml/out.parquet",
        ("--out job.yaml/out.parquet cannot be written: File exists; name a file in a folder you may write",),
    ),
    "out that is a folder": Bad(
        "predict {run} flowers.csv --out out.parquet",
        ("--out out.parquet cannot be written: it is a folder",),
        lambda: Path("out.parquet").mkdir(),
    ),
    "out that is not Parquet": Bad("predict {run} flowers.csv --out out.csv", ("--out out.csv must end in .parquet",)),
    "no workers to predict": Bad(
        "predict {run} flowers.csv --out out.parquet --workers 0",
        ("argument --workers: must be an integer of at least 1, not '0'",),
    ),
    "no out": Bad("predict {run} flowers.csv", ("the following arguments are required: --out", "usage: raynn predict")),
    "resume of a run that ended": Bad(
        "train {run}/job.yaml resume=true", ("{run} has ended: nothing to resume; `raynn predict {run} DATA --out",)
    ),
    "resume with a changed setting": Bad(
        "train {run}/job.yaml resume=true optimization.learning_rate=0.5 tracking={{}}",
        (
            "the job differs from the one that {run} was started with:",
            "optimization.learning_rate: 0.01 -> 0.5",
            "undo",
        ),
    ),
    "resume of a misspelt run": Bad(
        "train {run}/job.yaml resume=true name=regresor", ("holds no run named 'regresor'", "Did you mean 'regressor'?")
    ),
}

CASES = {**JOB_FILES, **SOURCES, **COLUMNS, **ROWS}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, garden: Path) -> Path:
    """The current folder, with job.yaml and flowers.csv."""
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(JOB)
    shutil.copy(garden / "flowers.csv", "flowers.csv")
    return tmp_path


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(CASES[name], {}, capsys)
    assert not list(desk.glob("runs/*")), "a run folder was made"


@pytest.mark.parametrize("name", RUNS)
def test_bad_input_to_a_run(
    name: str, desk: Path, regressor: Path, garden: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "damaged" in RUNS[name].command:
        shutil.copytree(regressor, "damaged")
    before = sorted(regressor.rglob("*")), (regressor / "result.json").read_bytes()
    assert_refused(RUNS[name], {"run": str(regressor), "garden": str(garden)}, capsys)
    assert (sorted(regressor.rglob("*")), (regressor / "result.json").read_bytes()) == before
    assert not [path for path in desk.rglob("*") if path.is_file() and path.name.startswith("out.")]


def test_enough_bad_inputs() -> None:
    assert len(CASES) + len(RUNS) >= 35


def test_a_cluster_that_does_not_answer(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert_refused(
        Bad(train(), ("RAY_ADDRESS = '127.0.0.1:1' names a cluster that does not answer", "unset")), {}, capsys
    )


@pytest.mark.parametrize("arguments", [train("data.target=kidn"), ("evaluate", "nowhere"), ("evaluate",)])
def test_an_error_as_json_is_one_object(
    arguments: tuple[str, ...], desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--json"]) == 2
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert set(answer) == {"error", "kind"}
    assert answer["kind"] in ("DataError", "RunError", "UsageError")
    assert answer["error"] in err


def test_unseen_and_missing_categories_are_predicted(desk: Path, classifier: Path) -> None:
    unseen = with_value(with_value(flowers(), 0, "color", "green"), 1, "color", None)
    table_file(unseen)()
    assert main(["predict", str(classifier), "bad.csv", "--out", "out.parquet"]) == 0
    predicted = pq.read_table("out.parquet")
    assert predicted.num_rows == 240
    assert predicted["prediction"].null_count == 0
    assert not Path("out.parquet.bad_rows.jsonl").exists()
