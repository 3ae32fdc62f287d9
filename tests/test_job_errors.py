"""Job: every bad input by its message, with place, path, value and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from raynn.errors import JobError
from raynn.job import Job
from raynn.networks import NETWORKS

KINDS = ", ".join(map(repr, sorted(NETWORKS)))

HEAD = "data: {train: a.parquet, target: y}\nnetwork: {kind: cnn}\n"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobs").mkdir()
    monkeypatch.chdir(tmp_path)


def load(text: str, *overrides: str) -> Job:
    Path("jobs/x.yaml").write_text(text, encoding="utf-8")
    return Job.load("jobs/x.yaml", overrides)


def lines_of_error(text: str, *overrides: str) -> list[str]:
    with pytest.raises(JobError) as caught:
        load(text, *overrides)
    return str(caught.value).splitlines()


# Each adds to HEAD, whose two lines put it on line 3.
BAD_SETTINGS = {
    "misspelt key": (
        "regularization: {droput: 0.3}",
        "3:18: regularization.droput: unknown key. Did you mean 'dropout'? Valid keys: dropout, input_dropout,",
    ),
    "misspelt section": (
        "regularisation: {dropout: 0.3}",
        "3:1: regularisation: unknown key. Did you mean 'regularization'? Valid keys: name, data, task,",
    ),
    "key of another section": (
        "learning_rate: 0.1",
        "3:1: learning_rate: unknown key. It belongs to 'optimization.learning_rate'. Valid keys: name,",
    ),
    "key far from all": ("zebra: 1", "3:1: zebra: unknown key. Valid keys: name,"),
    "too large": ("regularization: {dropout: 1.5}", "3:27: regularization.dropout = 1.5: must be less than 1"),
    "too small": ("optimization: {max_epochs: 0}", "3:28: optimization.max_epochs = 0: must be at least 1"),
    "not above": ("optimization: {learning_rate: -1}", "3:31: optimization.learning_rate = -1: must be greater than 0"),
    "large bound": ("optimization: {seed: 2147483648}", "optimization.seed = 2147483648: must be less than 2147483648"),
    "real for integer": ("optimization: {max_epochs: 2.5}", "optimization.max_epochs = 2.5: must be an integer"),
    "whole real for integer": ("optimization: {seed: 1.0}", "optimization.seed = 1.0: must be an integer: write 1"),
    "boolean for integer": ("optimization: {seed: true}", "optimization.seed = true: must be an integer"),
    "text for integer": (
        "optimization: {max_epochs: 1_000}",
        "optimization.max_epochs = '1_000': must be an integer: write 1000 without quotes",
    ),
    "text for real": (
        "regularization: {weight_decay: '1e-3'}",
        "3:32: regularization.weight_decay = '1e-3': must be a number or a section with 'from', 'to', 'over': write "
        "0.001 without quotes",
    ),
    "infinite": (
        "data.x: 1\nregularization: {weight_decay: .inf}",
        "4:32: regularization.weight_decay = .inf: must be a finite",
    ),
    "not a number": (
        "regularization: {weight_decay: .nan}",
        "regularization.weight_decay = .nan: must be a finite number",
    ),
    "integer for text": ("storage: 3", '3:10: storage = 3: must be text: write "3"'),
    "null for text": ("storage: null", "3:10: storage = null: must be text"),
    "empty text": ("storage: ''", "3:10: storage = '': must not be empty"),
    "yes for true": ("resume: yes", "3:9: resume = 'yes': must be true or false: write true"),
    "no choice": (
        "optimization: {optimizer: adamm}",
        "3:27: optimization.optimizer = 'adamm': must be one of 'sgd', 'adam', 'adamw', 'muon'. Did you mean 'adam'?",
    ),
    "capitals": (
        "optimization: {optimizer: SGD}",
        "must be one of 'sgd', 'adam', 'adamw', 'muon'. Did you mean 'sgd'?",
    ),
    "neither of a union": (
        "resources: {gpus_per_worker: auot}",
        "3:30: resources.gpus_per_worker = 'auot': must be 'auto' or a number. Did you mean 'auto'?",
    ),
    "one of a union, out of range": (
        "resources: {gpus_per_worker: -1}",
        "3:30: resources.gpus_per_worker = -1: must be at least 0, or be 'auto'",
    ),
    "scalar for section": ("regularization: 3", "3:17: regularization = 3: must be a section of `key: value` lines"),
    "no space after colon": (
        "regularization: dropout:0.3",
        "regularization = 'dropout:0.3': must be a section of `key: value` lines: put a space after the ':'",
    ),
    "list for section": (
        "regularization:\n- dropout: 0.3",
        "4:1: regularization = [{dropout: 0.3}]: must be a section of `key: value` lines, not a list",
    ),
    "empty section": ("regularization:", "3:16: regularization = null: must be a section, not empty: indent its keys"),
    "unsafe name": ("name: a/b", "3:7: name = 'a/b': must be safe as a folder name: letters, digits"),
    "hidden name": ("name: .git", "name = '.git': must be safe as a folder name"),
    "deep": (
        "tracking: {wandb: {mode: onlin}}",
        "3:26: tracking.wandb.mode = 'onlin': must be one of 'auto', 'online', 'offline', 'disabled'. "
        "Did you mean 'online'?",
    ),
    "item for list": (
        "tracking: {wandb: {tags: a}}",
        "3:26: tracking.wandb.tags = 'a': must be a list of text: write [a]",
    ),
    "twice": ("storage: a\nresume: false\nstorage: b", "5:1: key 'storage' is given twice, on lines 3 and 5"),
    "monitor without split": (
        "early_stopping: {monitor: loss}",
        "3:27: early_stopping.monitor = 'loss': must be <split>/<quantity>, such as 'val/loss'. "
        "Did you mean 'val/loss'?",
    ),
    "monitor of test": (
        "early_stopping: {monitor: test/loss}",
        "early_stopping.monitor = 'test/loss': the test split is looked at once, at the end: use 'val/loss'",
    ),
    "monitor of no split": (
        "early_stopping: {monitor: valid/loss}",
        "early_stopping.monitor = 'valid/loss': split 'valid' must be 'train' or 'val'. Did you mean 'val'?",
    ),
    "monitor of nothing": (
        "early_stopping: {monitor: val/acuracy}",
        "early_stopping.monitor = 'val/acuracy': 'acuracy' is not a quantity: must be one of loss, accuracy, f1_macro,",
    ),
    "monitor of another task": (
        "task: regression\nearly_stopping: {monitor: val/accuracy}",
        "4:27: early_stopping.monitor = 'val/accuracy': 'accuracy' is not a quantity of task 'regression': must",
    ),
    "task of other networks": (
        "task: language_modeling",
        "3:7: task = 'language_modeling': a network of kind 'cnn' is for classification and regression",
    ),
    "uneven pieces": (
        "optimization: {accumulate: 100, global_batch_size: 256}",
        "3:28: optimization.accumulate = 100: must divide global_batch_size = 256, as 128 does",
    ),
    "batch normalization of one row": (
        "optimization: {global_batch_size: 1}",
        "3:35: optimization.global_batch_size = 1: must be at least 2 with network.normalization = 'batch'",
    ),
    "more workers than lanes": (
        "resources: {workers: 3}\noptimization: {global_batch_size: 2}",
        "3:22: resources.workers = 3: must be at most 2, the lanes that optimization.global_batch_size = 2 is cut into",
    ),
    "batch normalization in pieces": (
        "optimization: {accumulate: 2}",
        "3:28: optimization.accumulate = 2: must be 1 with network.normalization = 'batch', whose statistics are of "
        "the whole global batch: set network.normalization to 'group'",
    ),
}


@pytest.mark.parametrize(("text", "message"), BAD_SETTINGS.values(), ids=BAD_SETTINGS.keys())
def test_a_bad_setting_is_named_with_place_value_and_remedy(text: str, message: str) -> None:
    lines = lines_of_error(HEAD + text + "\n")
    assert any(message in line for line in lines), "\n".join(lines)
    assert all(line.startswith("jobs/x.yaml:") for line in lines)


# Whole files.
BAD_FILES = {
    "nothing required": (
        "name: a\n",
        ["1:1: data: required section is missing", "1:1: network: required section is missing"],
    ),
    "no source": ("# a job\ndata: {}\nnetwork: {kind: cnn}\n", ["2:1: data.train: required key is missing"]),
    "misspelt source": (
        "data:\n  trian: x\nnetwork: {kind: cnn}\n",
        [
            "1:1: data.train: required key is missing",
            "2:3: data.trian: unknown key. Did you mean 'train'? Valid keys: train",
        ],
    ),
    "no kind": (
        "data: {train: x}\nnetwork: {}\n",
        [f"2:1: network.kind: required key is missing: one of {KINDS}"],
    ),
    "wrong kind": (
        "data: {train: x}\nnetwork: {kind: cn}\n",
        [f"2:17: network.kind = 'cn': must be one of {KINDS}. Did you mean 'cnn'?"],
    ),
    "number for kind": (
        "data: {train: x}\nnetwork: {kind: 3}\n",
        [f"2:17: network.kind = 3: must be one of {KINDS}"],
    ),
    "kind for network": (
        "data: {train: x}\nnetwork: cnn\n",
        ["2:10: network = 'cnn': must be a section of `key: value` lines"],
    ),
    "key of another kind": (
        "data: {train: x}\nnetwork: {kind: cnn, hidden: [3]}\n",
        [
            "2:22: network.hidden: unknown key. It belongs to 'network.hidden' of kind 'feedforward', 'rnn', 'lstm'. "
            "Valid keys: kind, channels,"
        ],
    ),
    # A key called like the tag of the union, whose name is in pydantic's location too.
    "key called like the kind": (
        "data: {train: x}\nnetwork: {kind: cnn, cnn: 2, channels: [32, 0, x]}\n",
        [
            "2:22: network.cnn: unknown key. Valid keys: kind, channels,",
            "2:45: network.channels[1] = 0: must be at least 1",
            "2:48: network.channels[2] = 'x': must be an integer",
        ],
    ),
    "union of four": (
        "data: {train: x, validation: 1.5}\nnetwork: {kind: cnn}\n",
        [
            "1:30: data.validation = 1.5: must be less than 1, or be text, a list of text or a section with one of "
            "the keys 'column', 'equals', 'since', 'until'"
        ],
    ),
    "section of a union": (
        "data: {train: x, test: {colum: split}}\nnetwork: {kind: cnn}\n",
        [
            "1:24: data.test: must be a number, text, a list of text or a section with one of the keys 'column', "
            "'equals', 'since', 'until'. Did you mean 'column'?",
        ],
    ),
    "the section meant of a union": (
        "data: {train: x, test: {column: split, equal: 1}}\nnetwork: {kind: cnn}\n",
        [
            "1:18: data.test.equals: required key is missing",
            "1:40: data.test.equal: unknown key. Did you mean 'equals'? Valid keys: column, equals",
        ],
    ),
    "list of a union": (
        "data: {train: [a, 1]}\nnetwork: {kind: cnn}\n",
        ['1:19: data.train[1] = 1: must be text: write "1"'],
    ),
    "no member of a union": (
        "data: {train: 3}\nnetwork: {kind: cnn}\n",
        ["1:15: data.train = 3: must be text or a list of text"],
    ),
    "value of a mapping": (
        "data:\n  train: x\n  columns: {zip: number}\nnetwork: {kind: cnn}\n",
        ["3:18: data.columns.zip = 'number': must be one of 'numeric',"],
    ),
    "list of another length": (
        "data: {train: x, image_size: [32]}\nnetwork: {kind: cnn}\n",
        ["1:30: data.image_size = [32]: must be a list of 2 integers"],
    ),
    "longer list": (
        "data: {train: x, image_size: [32, 32, 3]}\nnetwork: {kind: cnn}\n",
        ["1:30: data.image_size = [32, 32, 3]: must be a list of 2 integers"],
    ),
}


@pytest.mark.parametrize(("text", "messages"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_all_problems_of_a_file_come_at_once_in_its_order(text: str, messages: list[str]) -> None:
    lines = lines_of_error(text)
    assert len(lines) == len(messages), "\n".join(lines)
    for line, message in zip(lines, messages, strict=True):
        assert line.startswith(f"jobs/x.yaml:{message}"), line


def test_pydantics_own_words_do_not_show() -> None:
    text = "data: {validation: {a: 1}, features: 3}\nnetwork: {kind: cnn, channels: 3}\nsearch: {space: {a: 1}}\n"
    error = "\n".join(lines_of_error(text))
    for word in ("Input", "constrained", "tuple[", "ColumnSplit", "Settings", "pydantic", "https"):
        assert word not in error


BAD_OVERRIDES = {
    "no value": ("regularization.dropout", "must have the form dotted.key=value"),
    "no key": ("=3", "must have the form dotted.key=value"),
    "empty step": ("a..b=3", "must have the form dotted.key=value"),
    "misspelt key": ("regularization.droput=3", "regularization.droput: unknown key. Did you mean 'dropout'?"),
    "misspelt section": ("regularisation.dropout=3", "regularisation: unknown key. Did you mean 'regularization'?"),
    "misspelt inside": ("regularization={droput: 3}", "regularization.droput: unknown key. Did you mean 'dropout'?"),
    "out of range": ("regularization.dropout=3", "regularization.dropout = 3: must be less than 1"),
    "wrong type": ("network.channels=3", "network.channels = 3: must be a list of integers: write [3]"),
    "null section": ("tracking=null", "tracking = null: must be a section, not empty"),
    "null": ("data.train=", "data.train = null: must be text or a list of text"),
    "scalar for section": ("regularization=3", "regularization = 3: must be a section of `key: value` lines"),
    "glob": ("data.train=*.csv", "(quote text that begins with * or &)"),
    "open bracket": ("data.train=[1", "(close the bracket)"),
    "cross check": ("early_stopping.monitor=test/loss", "early_stopping.monitor = 'test/loss': the test split"),
}


@pytest.mark.parametrize(("override", "message"), BAD_OVERRIDES.values(), ids=BAD_OVERRIDES.keys())
def test_a_bad_override_is_named_instead_of_a_line(override: str, message: str) -> None:
    (line,) = lines_of_error(HEAD, override)
    assert line.startswith(f"override {override!r}: ")
    assert message in line


def test_problems_of_file_and_overrides_come_together() -> None:
    lines = lines_of_error(HEAD + "resume: 1\nzebra: 2\nresume: 3\n", "regularization.dropout=3", "b", "storage=1")
    assert [line.partition(": ")[0] for line in lines] == [
        "jobs/x.yaml:3:9",
        "jobs/x.yaml:4:1",
        "jobs/x.yaml:5:1",
        "override 'regularization.dropout=3'",
        "override 'b'",
        "override 'storage=1'",
    ]
