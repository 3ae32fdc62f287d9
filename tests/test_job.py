"""Job: loading, overrides, messages, round trip, fingerprint, schema."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import numpy as np
import pytest
import yaml

from raynn.errors import JobError
from raynn.job import Job, cross_check, differences
from raynn.jobfile import Document
from raynn.networks import NETWORKS
from raynn.problems import dotted

HEAD = "data: {train: a.parquet, target: y}\nnetwork: {kind: cnn}\n"

# The example of the contract, with all that a network of this house trains.
EXAMPLE = """\
name: fashion-cnn
data:
  train: data/fashion_mnist_train.parquet   # file, folder, glob, list, URL
  validation: 0.1
  test: data/fashion_mnist_test.parquet
  target: label
  features: [image]
  columns: {zip: categorical}
  group: subject
  max_bad_rows: 0.0
task: classification
network: {kind: cnn, channels: [32, 64, 64]}
regularization: {dropout: 0.25, weight_decay: 1e-4, label_smoothing: 0.0}
optimization: {optimizer: adamw, learning_rate: 1e-3, schedule: cosine, global_batch_size: 256, max_epochs: 20, seed: 0}
early_stopping: {monitor: val/loss, rule: patience, patience: 5, min_delta: 0.0}
resources: {workers: 2, gpus_per_worker: auto, max_failures: 3}    # never changes the result
search:
  trials: 32
  algorithm: optuna
  scheduler: asha
  metric: val/accuracy
  space:
    regularization.dropout: {uniform: [0.0, 0.6]}
    regularization.weight_decay: {loguniform: [1e-6, 1e-1]}
    early_stopping.patience: {randint: [2, 8]}
tracking: {wandb: {project: raynn, mode: auto}}
storage: runs
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobs").mkdir()
    monkeypatch.chdir(tmp_path)


def load(text: str, *overrides: str) -> Job:
    Path("jobs/x.yaml").write_text(text, encoding="utf-8")
    return Job.load("jobs/x.yaml", overrides)


def test_the_contracts_example_loads() -> None:
    job = load(EXAMPLE)
    assert (job.name, job.task, job.network.kind, job.resources.workers) == ("fashion-cnn", "classification", "cnn", 2)
    assert job.data.features == ("image",)
    assert job.regularization.weight_decay == 1e-4
    assert job.search is not None
    assert job.search.direction == "max"
    assert job.tracking.wandb is not None
    assert cross_check(job) == []


@pytest.mark.parametrize("kind", NETWORKS)
def test_tuned_defaults_of_the_kind_fill_in_below_the_file(kind: str) -> None:
    needed = ", target: a:b" if kind == "custom" else ""
    head = f"data: {{train: x}}\nnetwork: {{kind: {kind}{needed}}}\n"
    for section, values in NETWORKS[kind].defaults.items():
        for key, value in values.items():
            assert getattr(getattr(load(head), section), key) == value
    assert load(head + "regularization: {weight_decay: 0.5}\n").regularization.weight_decay == 0.5


def test_a_name_comes_from_the_file_and_is_safe() -> None:
    Path("jobs/my first job.v2.yaml").write_text(HEAD)
    assert Job.load("jobs/my first job.v2.yaml").name == "my-first-job.v2"
    assert load(HEAD).name == "x"
    assert load(HEAD + "name: y\n").name == "y"


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("network={kind: feedforward, residual: true}",),
        ("data.train=[a.csv, b.csv]", "data.test={column: split, equals: test}"),
        ("regularization.gradient_clip_norm=null", "resources.memory_gib=0.5", "optimization.learning_rate=1e-30"),
        ("data.columns={1: text, yes: date, a.b: image}", "data.test={column: s, equals: '1e-4'}"),
        ("tracking.wandb.tags=['yes', '1.5', 2020-01-01, 'null', ':', '*x', über]",),
        ("search.space.network.channels={choice: [[8, 8], [16]]}", "search.algorithm=grid", "search.trials=3"),
    ],
    ids=range(7),
)
def test_written_and_read_again_it_is_the_same_job(overrides: tuple[str, ...]) -> None:
    text = EXAMPLE if "grid" not in "".join(overrides) else HEAD
    job = load(text, *overrides)
    again = load(job.to_yaml())
    assert again == job
    assert again.to_yaml() == job.to_yaml()
    assert again.fingerprint() == job.fingerprint()
    assert Job.model_validate_json(job.model_dump_json()) == job
    assert Job.from_dict(job.model_dump()) == job


def test_what_is_written_is_complete_and_plain() -> None:
    written = load(EXAMPLE).to_yaml()
    assert "  channels: [32, 64, 64]\n" in written
    assert "    regularization.dropout: {uniform: [0.0, 0.6]}\n" in written
    assert "null" not in written
    tree = yaml.safe_load(written)  # a reader of YAML 1.1 sees the same
    assert tree["optimization"]["momentum"] == 0.9
    assert tree["search"]["space"]["regularization.weight_decay"] == {"loguniform": [1e-6, 0.1]}


def test_null_is_written_where_the_kind_has_another_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS["cnn"].defaults["regularization"], "gradient_clip_norm", 1.0)
    assert load(HEAD).regularization.gradient_clip_norm == 1.0
    job = load(HEAD, "regularization.gradient_clip_norm=null")
    assert job.regularization.gradient_clip_norm is None
    assert load(job.to_yaml()) == job


def test_overrides_win_over_the_file_and_the_last_over_the_first() -> None:
    job = load(
        EXAMPLE,
        "regularization.dropout=0.5",
        "regularization.dropout=0.1",
        "data.validation.column=split",  # a section in place of the file's number
        "data.validation.equals=val",
        "resources={workers: 3}",
        "data.columns.a.b=numeric",
        "search.space.regularization.dropout.uniform=[0, 0.3]",
        "search.space.regularization.weight_decay={uniform: [0, 1]}",
    )
    assert job.regularization.dropout == 0.1
    assert (
        job.data.validation
        == Job.from_dict(
            {"data": {"train": "x", "validation": {"column": "split", "equals": "val"}}, "network": {"kind": "cnn"}}
        ).data.validation
    )
    assert (job.resources.workers, job.resources.max_failures) == (3, 3)
    assert job.data.columns == {"zip": "categorical", "a.b": "numeric"}
    assert job.search is not None
    space = {name: distribution.model_dump() for name, distribution in job.search.space.items()}
    assert space["regularization.dropout"] == {"uniform": (0.0, 0.3)}
    assert space["regularization.weight_decay"] == {"uniform": (0.0, 1.0)}
    assert load(EXAMPLE, "search=null").search is None


def test_an_override_mends_the_file() -> None:
    assert load(HEAD + "regularization: {dropout: 7}\n", "regularization.dropout=0.7").regularization.dropout == 0.7
    assert load(HEAD + "regularization: 3\n", "regularization.dropout=0.7").regularization.dropout == 0.7


def test_from_dict_takes_what_python_has() -> None:
    job = Job.from_dict(
        {
            "data": {"train": Path("a") / "b.csv", "max_bad_rows": np.float32(0.5)},
            "network": {"kind": "cnn", "channels": (np.int64(8), 16)},
        },
        ["optimization.seed=3"],
    )
    assert job.data.train == str(Path("a/b.csv"))
    assert job.data.max_bad_rows == 0.5
    assert job.network == load(HEAD, "network.channels=[8, 16]").network
    assert (job.name, job.optimization.seed) == ("job", 3)


def test_from_dict_names_problems_without_a_place() -> None:
    tree = {"data": {"train": {1, 2}}, "network": {"kind": "cnn", "chanels": 3}}
    with pytest.raises(JobError) as caught:
        Job.from_dict(tree)
    assert str(caught.value).splitlines()[0] == (
        "data.train: a set cannot stand in a job, only numbers, text, booleans, None, lists and mappings"
    )
    assert "\nnetwork.chanels: unknown key. Did you mean 'channels'?" in str(caught.value)


def test_loading_changes_no_argument() -> None:
    tree = {"data": {"train": "x"}, "network": {"kind": "cnn"}, "regularization": {"dropout": 0.5}}
    Job.from_dict(tree, ["regularization.dropout=0.1"])
    assert tree["regularization"] == {"dropout": 0.5}
    assert "name" not in tree


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "resources.workers=7",
        "tracking.wandb.project=other",
        "storage=other",
        "resume=true",
        "search=null",
        "regularization.dropout=0.25",
    ],
)
def test_the_fingerprint_stays_where_the_result_does(override: str) -> None:
    assert load(EXAMPLE, override).fingerprint() == load(EXAMPLE).fingerprint()


@pytest.mark.parametrize(
    "override",
    [
        "data.train=other",
        "regularization.dropout=0.26",
        "optimization.seed=1",
        "network.channels=[32, 64, 65]",
        "task=null",
    ],
)
def test_the_fingerprint_changes_with_the_result(override: str) -> None:
    assert load(EXAMPLE, override).fingerprint() != load(EXAMPLE).fingerprint()


def test_the_fingerprint_is_of_values_not_of_text() -> None:
    short, long = load(HEAD), load(load(HEAD).to_yaml())
    assert short.fingerprint() == long.fingerprint()
    assert len(short.fingerprint()) == 64
    assert int(short.fingerprint(), 16) > 0


def test_differences_are_named() -> None:
    a = load(EXAMPLE)
    b = load(EXAMPLE, "regularization.dropout=0.5", "network.channels=[8]", "data.group=null", "search=null")
    assert differences(a, a) == []
    assert differences(a, b)[:3] == [
        "data.group: 'subject' -> null",
        "network.channels: [32, 64, 64] -> [8]",
        "regularization.dropout: 0.25 -> 0.5",
    ]
    assert differences(a, b)[3].startswith("search: {trials: 32, algorithm: 'optuna'")
    tags = ["t" * 50, "u" * 50]
    longer = [f"tracking.wandb.tags=[{tags[0]}, {tags[1]}{end}]" for end in "ab"]  # they differ past what is shown
    assert len(differences(load(HEAD, longer[0]), load(HEAD, longer[1]))) == 1


def test_the_schema_takes_what_load_takes() -> None:
    schema = Job.schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for text in (HEAD, EXAMPLE, load(EXAMPLE).to_yaml(), HEAD.replace("cnn", "feedforward")):
        assert list(validator.iter_errors(Document.parse(text, "x").root.plain())) == []


@pytest.mark.parametrize(
    "line",
    [
        "regularization: {droput: 0.3}",
        "regularization: {dropout: 1.5}",
        "optimization: {optimizer: adamm}",
        "network: {kind: cn}",
        "name: a/b",
        "search: {space: {a: {uniform: [0]}}}",
    ],
)
def test_the_schema_refuses_what_load_refuses(line: str) -> None:
    tree = {**yaml.safe_load(HEAD), **yaml.safe_load(line)}
    assert list(jsonschema.Draft202012Validator(Job.schema()).iter_errors(tree))
    with pytest.raises(JobError):
        Job.from_dict(tree)


def test_the_schema_explains_itself() -> None:
    schema = Job.schema()
    undescribed = [name for name, part in schema["$defs"].items() if not part.get("description")]
    assert undescribed == ["JsonValue"]
    assert schema["$defs"]["DataSettings"]["properties"]["image_size"]["anyOf"][0]["type"] == "array"


def test_a_problems_path_reads_as_one_writes_it() -> None:
    assert dotted(("data", "train", 1)) == "data.train[1]"
    assert dotted(()) == ""


SHIPPED = sorted((Path(__file__).parents[1] / "jobs").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_job_that_ships_is_valid_and_says_its_command(path: Path) -> None:
    job = Job.load(path)
    assert job.data.target or job.network.kind == "text_generator"
    command = "study" if job.study else "tune" if job.search else "train"
    assert path.read_text().startswith(f"# raynn {command} jobs/{path.name}\n")
