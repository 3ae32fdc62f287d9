"""The table of regularizers: every knob with every network for which it is defined keeps the same contract."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from knob_cases import BENCHES, OFF, ON, WITH, batch_of, defined, fresh, job_for, train, weights
from processes import run_on_workers
from pydantic import ValidationError
from torch import Tensor

from raynn.checkpoint import load_newest, save_checkpoint
from raynn.collectives import Workers
from raynn.errors import JobError
from raynn.job import Job
from raynn.knobs import Ramp, ShareRamp, value_at
from raynn.networks import NETWORKS
from raynn.randomness import row_keys
from raynn.regularization import RegularizationSettings, applicable, knob_specs, misuse

PAIRS = defined()
RAMPS = [(name, knob) for name, knob in PAIRS if "may ramp" in knob_specs()[knob].bounds]
# Knobs that live in the layers of a network.
LAYERS = ("dropout", "input_dropout", "spatial_dropout", "alpha_dropout", "locked_dropout", "embedding_dropout")
LAYERS += ("stochastic_depth",)
pairs = pytest.mark.parametrize(("name", "knob"), PAIRS, ids=[f"{knob}-{name}" for name, knob in PAIRS])


def ramp(first: float, last: float, over: float = 1.0, kind: Any = ShareRamp) -> Any:
    return kind.model_validate({"from": first, "to": last, "over": over})


def knobs(knob: str, value: Any) -> dict[str, Any]:
    return {**WITH.get(knob, {}), knob: value}


@dataclass(frozen=True)
class Course:
    """A run of two epochs: the weights after each, and after the first the state to resume from and the loss."""

    ends: list[dict[str, Tensor]]
    state: dict[str, Any]
    loss: float


@cache
def course(name: str, **regularization: Any) -> Course:
    """The run of a bench."""
    job, bench = job_for(BENCHES[name], **regularization), BENCHES[name]
    state = train(job, bench, epochs=1)
    first, saved, loss = weights(state), copy.deepcopy(state.to_dict()), state.history[0]["train/loss"]
    return Course([first, weights(train(job, bench, state))], saved, loss)


def is_in_layers(knob: str) -> bool:
    """Whether it has an effect of its own in each kind of network."""
    return bool(knob_specs()[knob].knob.networks)


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_knob_is_tried_somewhere() -> None:
    assert ON.keys() == knob_specs().keys() == RegularizationSettings.model_fields.keys()
    assert {knob for _, knob in PAIRS} == ON.keys()
    assert {BENCHES[name].network["kind"] for name, _ in PAIRS} == NETWORKS.keys()


@pytest.mark.parametrize("knob", ON)
def test_an_entry_says_all_there_is_to_say(knob: str) -> None:
    spec = knob_specs()[knob]
    assert spec.description
    assert not spec.description.endswith(".")
    assert spec.knob.source[0].isupper()
    assert set(spec.knob.networks) <= set(NETWORKS)
    for kind, needed in spec.knob.networks.items():
        assert needed.keys() <= NETWORKS[kind].settings.model_fields.keys()
    assert not spec.knob.when or spec.knob.when in ON
    assert spec.is_on(ON[knob])
    assert not spec.is_on(spec.off)
    assert spec.search is not None
    for value in spec.search.outermost:
        assert getattr(RegularizationSettings(**{knob: value}), knob) == value  # what a search draws fits
    drawn = spec.search_with_off
    assert drawn is not None
    assert spec.knob.always or spec.off in drawn.outermost
    assert set(drawn.outermost) == {*spec.search.outermost, *([] if spec.knob.always else [spec.off])}
    assert spec.name in spec.about or spec.description in spec.about


@pairs
def test_on_differs_from_off(name: str, knob: str) -> None:
    on, off = course(name, **knobs(knob, ON[knob])), course(name, **WITH.get(knob, {}))
    assert not same_bits(on.ends[-1], off.ends[-1])


@pytest.mark.parametrize(("name", "knob"), RAMPS, ids=[f"{knob}-{name}" for name, knob in RAMPS])
def test_a_strength_of_zero_changes_no_bit(name: str, knob: str) -> None:
    """A ramp that starts at 0 and has yet to rise: the knob is there, and off."""
    still = {"from": 0.0, "to": min(ON[knob], 0.9), "over": 1.0}
    bench, on = BENCHES[name], job_for(BENCHES[name], **knobs(knob, still))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RegularizationSettings, "at", at_the_start)
        state = train(on, bench, epochs=1)
    off = course(name, **WITH.get(knob, {}))
    assert same_bits(weights(state), off.ends[0])
    assert state.history[0]["train/loss"] == off.loss


def at_the_start(settings: RegularizationSettings, done: float) -> RegularizationSettings:
    """`RegularizationSettings.at` before the first step, whatever the step."""
    starts = {name: value_at(value, 0.0) for name, value in settings if isinstance(value, Ramp)}
    return settings.model_copy(update=starts) if starts else settings


@pairs
def test_a_resumed_run_is_the_run_bit_for_bit(name: str, knob: str, tmp_path: Path) -> None:
    bench, whole = BENCHES[name], course(name, **knobs(knob, ON[knob]))
    save_checkpoint(tmp_path, 1, whole.state)
    saved, _ = load_newest(tmp_path)
    job = job_for(bench, **knobs(knob, ON[knob]))
    resumed = fresh(job, bench)
    assert saved is not None
    resumed.restore(saved)
    assert same_bits(weights(train(job, bench, resumed)), whole.ends[-1])


@pytest.mark.parametrize(
    ("name", "knob"), [pair for pair in PAIRS if pair[1] in LAYERS], ids=lambda text: text.replace(" ", "_")
)
def test_a_layer_acts_in_training_alone(name: str, knob: str) -> None:
    bench = BENCHES[name]
    plain, changed = (fresh(job_for(bench, **on), bench).model for on in ({}, {knob: ON[knob]}))
    changed.load_state_dict(plain.state_dict())
    batch, key_B = batch_of(bench), keys(21)
    if bench.inputs.task == "image_generation":  # whose last layer starts at zero, where nothing shows
        for model in (plain, changed):
            torch.manual_seed(0)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
    assert torch.equal(plain.eval()(batch, key_B), changed.eval()(batch, key_B))
    assert not torch.equal(plain.train()(batch, key_B), changed.train()(batch, key_B))


def keys(num: int, epoch: int = 0) -> Tensor:
    return torch.from_numpy(row_keys(0, epoch, torch.arange(num).numpy()))


# A knob that every network has acts behind the networks: in the quick tests a few of them will do.
FEW = ("table", "images", "lstm")
QUICK = [(name, knob) for name, knob in PAIRS if name in FEW or is_in_layers(knob)]


def on_a_worker(workers: Workers, chosen: list[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Tensor]]:
    """One epoch of every pair, trained by several."""
    return {
        (name, knob): weights(
            train(job_for(BENCHES[name], **knobs(knob, ON[knob])), BENCHES[name], epochs=1, workers=workers)
        )
        for name, knob in chosen
    }


@pytest.mark.parametrize("chosen", [QUICK, pytest.param(PAIRS, marks=pytest.mark.slow)], ids=["most", "all"])
def test_two_workers_train_as_one(tmp_path: Path, chosen: list[tuple[str, str]]) -> None:
    first, second = run_on_workers(on_a_worker, 2, tmp_path, chosen)
    differ = []
    for name, knob in chosen:
        found, alone = first[name, knob], course(name, **knobs(knob, ON[knob])).ends[0]
        assert same_bits(found, second[name, knob])
        differ += [
            (name, knob, key) for key in alone if not torch.allclose(found[key], alone[key], rtol=1e-4, atol=1e-5)
        ]
    assert not differ


def test_off_is_absent() -> None:
    """All knobs written out at their off values give the settings' own defaults, but for weight_decay."""
    assert RegularizationSettings(**{**OFF, "weight_decay": 1e-4}) == RegularizationSettings()


@pytest.mark.parametrize(
    "fields",
    [
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"weight_decay": -1.0},
        {"gradient_clip_norm": 0.0},
        {"drop": 0.1},
        {"dropout": {"from": 0.0, "to": 1.0}},
        {"zoneout": ramp(0.0, 0.5)},
        {"average_last": 1},
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        RegularizationSettings(**fields)


def test_a_ramp_moves_linearly_and_stays() -> None:
    settings = RegularizationSettings(dropout=ramp(0.1, 0.5, 0.5), l1=ramp(2.0, 0.0, kind=Ramp), weight_decay=0.3)
    assert [settings.at(done).dropout for done in (0.0, 0.25, 0.5, 0.9)] == pytest.approx([0.1, 0.3, 0.5, 0.5])
    assert [settings.at(done).l1 for done in (0.0, 0.75)] == [2.0, 0.5]
    assert settings.at(0.5).weight_decay == 0.3
    assert (settings.peak().dropout, settings.peak().l1) == (0.5, 2.0)
    plain = RegularizationSettings(dropout=0.2)
    assert plain.at(0.5) is plain


def test_a_ramp_reaches_layers_and_optimizer() -> None:
    bench = BENCHES["numbers"]
    state = train(job_for(bench, dropout=ramp_dict(0.0, 0.6), weight_decay=ramp_dict(0.0, 0.3)), bench)
    last_step = 3 / 4  # of four steps
    strengths = {module.p for module in state.model.modules() if getattr(module, "knob", "") == "dropout"}
    assert list(strengths) == [pytest.approx(0.6 * last_step)]
    decays = {group["decays"]: group["weight_decay"] for group in state.optimizer.param_groups}
    assert decays == {True: pytest.approx(0.3 * last_step), False: 0.0}


def ramp_dict(first: float, last: float, over: float = 1.0) -> dict[str, float]:
    return {"from": first, "to": last, "over": over}


MISUSES: dict[str, tuple[dict[str, Any], tuple[Any, ...], str]] = {
    "network": (
        {"zoneout": 0.1},
        ("cnn", "classification", ["image"]),
        "regularization.zoneout = 0.1 is for network.kind: rnn or lstm, and network.kind = 'cnn'; set it to 0",
    ),
    "network's setting": (
        {"stochastic_depth": 0.1},
        ("feedforward", "classification", ["numeric"]),
        "regularization.stochastic_depth = 0.1 needs network.residual: true; set that, or leave it out",
    ),
    "task": (
        {"confidence_penalty": 0.1},
        ("cnn", "regression", ["image"]),
        "regularization.confidence_penalty = 0.1 has no meaning for regression; set it to 0",
    ),
    "columns": (
        {"random_erasing": 0.5},
        ("feedforward", "regression", ["numeric", "categorical"]),
        "regularization.random_erasing = 0.5 changes images, and the features are categorical, numeric; set it to 0",
    ),
    "columns beside": (
        {"mixup": 0.2},
        ("feedforward", "regression", ["numeric", "categorical"]),
        "regularization.mixup = 0.2 is defined for numeric, date, image, sequence columns, and the features have "
        "categorical; set it to 0",
    ),
    "lengths": (
        {"mixup": 0.2},
        ("cnn", "classification", ["sequence"], True),
        "regularization.mixup = 0.2 needs sequences of one length, and their lengths differ; set it to 0",
    ),
    "alone": (
        {"rand_augment_magnitude": 5.0},
        ("cnn", "classification", ["image"]),
        "regularization.rand_augment_magnitude = 5 changes what regularization.rand_augment does, which is off; set "
        "that, or remove it",
    ),
    "two of a kind": (
        {"sam": 0.1, "asam": 0.5},
        ("cnn", "classification", ["image"]),
        "regularization.asam = 0.5 and regularization.sam exclude each other; remove one of them",
    ),
    "two that mix rows": (
        {"mixup": 0.1, "manifold_mixup": 0.5},
        ("cnn", "classification", ["image"]),
        "regularization.manifold_mixup = 0.5 and regularization.mixup exclude each other; remove one of them",
    ),
    "a ramp": (
        {"weight_drop": ramp(0.0, 0.5)},
        ("feedforward", "regression", ["numeric"]),
        "regularization.weight_drop = {from: 0, to: 0.5, over: 1} is for network.kind: rnn or lstm or text_generator, "
        "and network.kind = 'feedforward'; set it to 0",
    ),
    "a flag": (
        {"trivial_augment": True},
        ("lstm", "classification", ["sequence"]),
        "regularization.trivial_augment = true changes images, and the features are sequence; set it to false",
    ),
}


@pytest.mark.parametrize(("fields", "where", "message"), MISUSES.values(), ids=MISUSES)
def test_a_knob_that_means_nothing_there_is_an_error(
    fields: dict[str, Any], where: tuple[Any, ...], message: str
) -> None:
    kind, task, columns, *rest = where
    network = NETWORKS[kind].settings(kind=kind)
    assert misuse(RegularizationSettings(**fields), kind, network, task, columns, *rest) == message
    assert misuse(RegularizationSettings(), kind, network, task, columns, *rest) is None


def test_what_a_search_may_vary() -> None:
    found = {spec.name for spec in applicable("lstm", "classification", ["sequence"])}
    assert {"dropout", "zoneout", "zoneout_cell", "weight_drop", "jitter", "label_smoothing", "sam"} <= found
    assert not found & {"mixup", "trivial_augment", "spatial_dropout", "token_masking", "embedding_dropout"}
    plain, deep = (NETWORKS["cnn"].settings(kind="cnn", block=block) for block in ("plain", "residual"))
    for settings, there in ((None, False), (plain, False), (deep, True)):
        names = {spec.name for spec in applicable("cnn", "regression", ["image"], settings)}
        assert ("stochastic_depth" in names) == there
    assert "mixup" in {spec.name for spec in applicable("cnn", "regression", ["sequence"])}
    assert "mixup" not in {spec.name for spec in applicable("cnn", "regression", ["sequence"], any_length=True)}


RAMP_ERRORS = {
    "too far": ("{from: 0, to: 2}", "regularization.dropout.to = 2: must be less than 1"),
    "a typo": ("{form: 0, to: 0.2}", "regularization.dropout.form: unknown key. Did you mean 'from'?"),
    "no end": ("{from: 0}", "regularization.dropout.to: required key is missing"),
    "no number": (
        "fast",
        "regularization.dropout = 'fast': must be a number or a section with 'from', 'to', 'over'",
    ),
    "no share": ("{from: 0, to: 0.5, over: 2}", "regularization.dropout.over = 2: must be at most 1"),
}


@pytest.mark.parametrize(("text", "message"), RAMP_ERRORS.values(), ids=RAMP_ERRORS)
def test_a_bad_ramp_is_named_with_its_key(text: str, message: str) -> None:
    tree = {"data": {"train": "x"}, "network": {"kind": "cnn"}}
    with pytest.raises(JobError) as caught:
        Job.from_dict(tree, [f"regularization.dropout={text}"])
    assert message in str(caught.value)


def test_a_ramp_is_written_and_read_back() -> None:
    job = job_for(BENCHES["table"], dropout=ramp_dict(0.0, 0.3, 0.5))
    assert Job.from_dict(yaml.safe_load(job.to_yaml())) == job
    assert Job.model_validate_json(job.model_dump_json()) == job
