"""Every knob against overfitting, in one table for all networks: the `regularization` section.

An entry is a field: its range, a description, and a `Knob` that says who found it, where it is defined and what a
search tries. 0 (or null) turns a knob off. A strength may ramp: `dropout: {from: 0.0, to: 0.3, over: 0.5}`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cache, cached_property
from typing import Annotated, Any

from pydantic import Field

from raynn.distributions import ChoiceSettings, LoguniformSettings, QuniformSettings, RandintSettings, UniformSettings
from raynn.knobs import TASKS, Knob, KnobSpec, Ramp, Share, Strength, knobs_of, peak, problem_of, value_at
from raynn.metrics import Task
from raynn.settings import Settings

Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Limit = Annotated[float, Field(gt=0.0)]

LABELS: tuple[Task, ...] = ("classification", "language_modeling")
ROWS: tuple[Task, ...] = ("classification", "regression")
REAL = ("numeric", "date", "image", "sequence")
RECURRENT: dict[str, dict[str, Any]] = {"rnn": {}, "lstm": {}}
READERS: dict[str, dict[str, Any]] = {**RECURRENT, "text_generator": {}}
RECURRENT_LAYERS: dict[str, dict[str, Any]] = {**RECURRENT, "text_generator": {"architecture": "lstm"}}
INPUTS: dict[str, dict[str, Any]] = {
    kind: {} for kind in ("feedforward", "cnn", "rnn", "lstm", "text_generator", "custom")
}
WITH_SHORTCUTS: dict[str, dict[str, Any]] = {
    "feedforward": {"residual": True},
    "cnn": {"block": "residual"},
    "text_generator": {},
}


class RegularizationSettings(Settings):
    """What keeps the network from learning its training rows by heart. 0 turns a knob off."""

    # units
    dropout: Annotated[
        Share,
        Field(description="share of hidden units silenced, a row at a time; recurrent: at all steps alike (locked)"),
        Knob(
            "Srivastava et al. 2014, section 4; recurrent: Gal & Ghahramani 2016, section 4.1",
            UniformSettings(uniform=(0.0, 0.6)),
            always=True,
        ),
    ] = 0.0
    input_dropout: Annotated[
        Share,
        Field(description="share of inputs (of text: of different tokens) silenced, a row at a time"),
        Knob(
            "Srivastava et al. 2014, section 4; text: Gal & Ghahramani 2016, section 4.2",
            UniformSettings(uniform=(0.0, 0.4)),
            INPUTS,
        ),
    ] = 0.0
    spatial_dropout: Annotated[
        Share,
        Field(description="share of the channels of every convolutional map silenced, a row at a time"),
        Knob("Tompson et al. 2015, section 3.2", UniformSettings(uniform=(0.0, 0.3)), {"cnn": {}}),
    ] = 0.0
    alpha_dropout: Annotated[
        Share,
        Field(description="share of selu units set to their negative limit, mean and variance kept"),
        Knob(
            "Klambauer et al. 2017, section 3, 'New dropout technique'",
            UniformSettings(uniform=(0.0, 0.2)),
            {"feedforward": {"activation": "selu", "residual": False}},
        ),
    ] = 0.0
    locked_dropout: Annotated[
        Share,
        Field(description="share of features silenced in all layers, at all tokens of a row alike"),
        Knob("Gal & Ghahramani 2016, section 4.1", UniformSettings(uniform=(0.0, 0.5)), {"text_generator": {}}),
    ] = 0.0
    embedding_dropout: Annotated[
        Share,
        Field(description="share of different tokens silenced, a row at a time, wherever the row has them"),
        Knob(
            "Gal & Ghahramani 2016, section 4.2; Merity et al. 2018, section 4.3",
            UniformSettings(uniform=(0.0, 0.3)),
            READERS,
            ("language_modeling",),
        ),
    ] = 0.0
    stochastic_depth: Annotated[
        Share,
        Field(description="share of rows that skip the last residual block; less for earlier ones, linearly"),
        Knob("Huang et al. 2016, eq. 2 to 5", UniformSettings(uniform=(0.0, 0.5)), WITH_SHORTCUTS),
    ] = 0.0

    # recurrent weights and states
    weight_drop: Annotated[
        Share,
        Field(description="share of recurrent weights left out of a step of training"),
        Knob(
            "Wan et al. 2013, section 3; Merity et al. 2018, section 2",
            UniformSettings(uniform=(0.0, 0.6)),
            RECURRENT_LAYERS,
        ),
    ] = 0.0
    zoneout: Annotated[
        Probability,
        Field(description="share of hidden states that keep their value over a step; on a CPU steps take longer"),
        Knob("Krueger et al. 2017, section 3", UniformSettings(uniform=(0.0, 0.3)), RECURRENT),
    ] = 0.0
    zoneout_cell: Annotated[
        Probability,
        Field(description="share of memory cells that keep their value over a step; on a CPU steps take longer"),
        Knob("Krueger et al. 2017, section 3", UniformSettings(uniform=(0.0, 0.5)), {"lstm": {}}),
    ] = 0.0
    activation_penalty: Annotated[
        Strength,
        Field(description="times the mean square of the last layer's states, as they are after dropout (AR)"),
        Knob("Merity et al. 2018, section 4.6, AR", LoguniformSettings(loguniform=(1e-2, 1e1)), RECURRENT),
    ] = 0.0
    temporal_activation_penalty: Annotated[
        Strength,
        Field(description="times the mean square of the last layer's change from one step to the next (TAR)"),
        Knob("Merity et al. 2018, section 4.6, TAR", LoguniformSettings(loguniform=(1e-2, 1e1)), RECURRENT),
    ] = 0.0

    # weights
    weight_decay: Annotated[
        Strength,
        Field(description="decoupled decay of weight matrices; biases and norms exempt"),
        Knob(
            "Loshchilov & Hutter 2019, algorithm 2 (adamw, muon); with sgd and adam added to the gradient",
            LoguniformSettings(loguniform=(1e-6, 1e-1)),
            always=True,
        ),
    ] = 1e-4
    l1: Annotated[
        Strength,
        Field(description="adds l1 * sign(w) to the gradient of weight matrices"),
        Knob("Tibshirani 1996, eq. 1, in Lagrangian form", LoguniformSettings(loguniform=(1e-7, 1e-3))),
    ] = 0.0
    l2: Annotated[
        Strength,
        Field(description="adds l2 * w to the gradient of weight matrices: coupled, the optimizer scales it too"),
        Knob("Krogh & Hertz 1992, eq. 1 and 2", LoguniformSettings(loguniform=(1e-7, 1e-2))),
    ] = 0.0
    max_norm: Annotated[
        Limit | None,
        Field(description="largest Euclidean norm of the weights into a unit; after each step it is scaled back to it"),
        Knob("Srivastava et al. 2014, section 5.1", LoguniformSettings(loguniform=(0.5, 5.0))),
    ] = None
    spectral_norm: Annotated[
        Limit | None,
        Field(description="largest singular value of a weight matrix; after each step it is scaled back to it"),
        Knob(
            "Gouk et al. 2021, section 4; kernels as Miyato et al. 2018",
            LoguniformSettings(loguniform=(0.5, 10.0)),
        ),
    ] = None

    # targets and outputs
    label_smoothing: Annotated[
        Share,
        Field(description="share of the target spread over all classes"),
        Knob("Szegedy et al. 2016, section 7", UniformSettings(uniform=(0.0, 0.2)), tasks=LABELS),
    ] = 0.0
    confidence_penalty: Annotated[
        Strength,
        Field(description="times the negative entropy of the predicted distribution"),
        Knob("Pereyra et al. 2017, section 3", LoguniformSettings(loguniform=(1e-2, 1.0)), tasks=LABELS),
    ] = 0.0
    r_drop: Annotated[
        Strength,
        Field(description="times the divergence of two passes over a row with different masks; twice the work"),
        Knob(
            "Wu et al. 2021, eq. 2 to 4; regression: squared difference",
            LoguniformSettings(loguniform=(0.1, 10.0)),
            tasks=tuple(task for task in TASKS if task != "image_generation"),
        ),
    ] = 0.0

    # rows
    mixup: Annotated[
        Strength,
        Field(description="alpha: rows and targets are mixed in pairs, their shares drawn from Beta(alpha, alpha)"),
        Knob(
            "Zhang et al. 2018, eq. 1 and 2",
            UniformSettings(uniform=(0.05, 1.0)),
            {"feedforward": {}, "cnn": {}, "custom": {}},
            tasks=ROWS,
            needs=REAL,
            only=REAL,
            one_length=True,
        ),
    ] = 0.0
    cutmix: Annotated[
        Strength,
        Field(description="alpha: a box of another image is pasted in, its area drawn from Beta(alpha, alpha)"),
        Knob(
            "Yun et al. 2019, eq. 1 and 2",
            UniformSettings(uniform=(0.1, 1.0)),
            tasks=("classification",),
            needs=("image",),
        ),
    ] = 0.0
    manifold_mixup: Annotated[
        Strength,
        Field(description="alpha: as mixup, of what the network makes of rows, at a depth of each; twice the work"),
        Knob(
            "Verma et al. 2019, section 2",
            UniformSettings(uniform=(0.2, 2.0)),
            {"feedforward": {}, "cnn": {}, **RECURRENT},
            tasks=ROWS,
            only=("categorical", *REAL),
            one_length=True,
            excludes=("mixup", "cutmix", "r_drop"),
        ),
    ] = 0.0
    input_noise: Annotated[
        Strength,
        Field(description="standard deviation of the noise added to numbers, in standard deviations of the column"),
        Knob(
            "Bishop 1995, section 2", LoguniformSettings(loguniform=(1e-2, 0.5)), tasks=ROWS, needs=("numeric", "date")
        ),
    ] = 0.0

    # images
    horizontal_flip: Annotated[
        Share,
        Field(description="share of training images mirrored left to right"),
        Knob("Krizhevsky et al. 2012, section 4.1", ChoiceSettings(choice=(0.5,)), needs=("image",)),
    ] = 0.0
    crop_padding: Annotated[
        int,
        Field(ge=0, description="largest shift of a training image in pixels, each way; borders are reflected"),
        Knob("He et al. 2016, section 4.2", RandintSettings(randint=(1, 4)), needs=("image",)),
    ] = 0
    random_erasing: Annotated[
        Share,
        Field(description="share of images of which a box, 2 to 40 % of the area, becomes noise"),
        Knob("Zhong et al. 2020, algorithm 1", UniformSettings(uniform=(0.1, 0.5)), tasks=ROWS, needs=("image",)),
    ] = 0.0
    trivial_augment: Annotated[
        bool,
        Field(description="one of 14 operations on each image, its strength drawn from the whole range"),
        Knob(
            "Mueller & Hutter 2021, algorithm 1, wide space",
            ChoiceSettings(choice=(True,)),
            tasks=ROWS,
            needs=("image",),
            group="image operations",
        ),
    ] = False
    rand_augment: Annotated[
        int,
        Field(ge=0, le=14, description="this many of 14 operations on each image, one after the other"),
        Knob(
            "Cubuk et al. 2020, section 3",
            RandintSettings(randint=(1, 3)),
            tasks=ROWS,
            needs=("image",),
            group="image operations",
        ),
    ] = 0
    rand_augment_magnitude: Annotated[
        Annotated[float, Field(gt=0.0, le=30.0)] | None,
        Field(description="strength of rand_augment's operations, of at most 30; default: 9"),
        Knob(
            "Cubuk et al. 2020, section 3",
            QuniformSettings(quniform=(3.0, 15.0, 1.0)),
            tasks=ROWS,
            needs=("image",),
            when="rand_augment",
        ),
    ] = None
    aug_mix: Annotated[
        int,
        Field(ge=0, le=10, description="images mixed of three chains of operations; the largest strength, of 10"),
        Knob(
            "Hendrycks et al. 2020, algorithm 1, without its divergence",
            RandintSettings(randint=(1, 10)),
            tasks=ROWS,
            needs=("image",),
            group="image operations",
        ),
    ] = 0

    # sequences and text
    jitter: Annotated[
        Strength,
        Field(description="standard deviation of the noise added to each step of a sequence"),
        Knob("Um et al. 2017 (jittering)", LoguniformSettings(loguniform=(1e-2, 0.3)), tasks=ROWS, needs=("sequence",)),
    ] = 0.0
    scaling: Annotated[
        Strength,
        Field(description="standard deviation of the factor, around 1, of each channel of a sequence"),
        Knob("Um et al. 2017 (scaling)", LoguniformSettings(loguniform=(1e-2, 0.5)), tasks=ROWS, needs=("sequence",)),
    ] = 0.0
    time_masking: Annotated[
        Share,
        Field(description="longest run of steps set to 0, as a share of the sequence; its length is uniform"),
        Knob("Park et al. 2019, section 2", UniformSettings(uniform=(0.05, 0.3)), tasks=ROWS, needs=("sequence",)),
    ] = 0.0
    time_warping: Annotated[
        Share,
        Field(description="farthest that the middle of a sequence moves, as a share of half its length"),
        Knob("Park et al. 2019, section 2", UniformSettings(uniform=(0.05, 0.5)), tasks=ROWS, needs=("sequence",)),
    ] = 0.0
    token_masking: Annotated[
        Share,
        Field(description="share of the places of a text whose token becomes the unknown one"),
        Knob(
            "Xie et al. 2017, section 3 (blank noising)",
            UniformSettings(uniform=(0.0, 0.3)),
            tasks=ROWS,
            needs=("text",),
        ),
    ] = 0.0
    token_swapping: Annotated[
        Share,
        Field(description="share of the places of a text whose token changes places with its neighbor"),
        Knob(
            "Wei & Zou 2019, section 2; neighbors: Artetxe et al. 2018",
            UniformSettings(uniform=(0.0, 0.3)),
            tasks=ROWS,
            needs=("text",),
        ),
    ] = 0.0

    # gradients and steps
    weight_noise: Annotated[
        Strength,
        Field(description="standard deviation of the noise added to weight matrices while a gradient is computed"),
        Knob("Graves et al. 2013, section 3.3", LoguniformSettings(loguniform=(1e-4, 1e-1))),
    ] = 0.0
    gradient_noise: Annotated[
        Strength,
        Field(description="eta: noise of variance eta / (1 + step)**0.55 is added to the gradient"),
        Knob("Neelakantan et al. 2015, eq. 1", LoguniformSettings(loguniform=(1e-6, 1e-1))),
    ] = 0.0
    gradient_clip_norm: Annotated[
        Limit | None,
        Field(description="largest Euclidean norm of the whole gradient"),
        Knob("Pascanu et al. 2013, algorithm 1", LoguniformSettings(loguniform=(0.1, 10.0))),
    ] = None
    gradient_clip_value: Annotated[
        Limit | None,
        Field(description="largest absolute value of any component of the gradient"),
        Knob("Mikolov 2012; Pascanu et al. 2013, section 3.2", LoguniformSettings(loguniform=(1e-3, 1.0))),
    ] = None
    gradient_clip_adaptive: Annotated[
        Limit | None,
        Field(description="largest norm of a unit's gradient over that of its weights; the head is exempt"),
        Knob("Brock et al. 2021, eq. 3", LoguniformSettings(loguniform=(1e-2, 0.5))),
    ] = None
    sam: Annotated[
        Strength,
        Field(description="rho: the gradient is taken where the loss is highest within this distance; twice the work"),
        Knob("Foret et al. 2021, eq. 2 and 3", LoguniformSettings(loguniform=(1e-2, 0.3)), group="sharpness"),
    ] = 0.0
    asam: Annotated[
        Strength,
        Field(description="rho: as sam, distances measured in units of each weight; twice the work"),
        Knob("Kwon et al. 2021, algorithm 1", LoguniformSettings(loguniform=(0.1, 3.0)), group="sharpness"),
    ] = 0.0

    # averages of weights, which are scored and kept
    ema_decay: Annotated[
        Annotated[float, Field(gt=0.0, lt=1.0)] | None,
        Field(description="weights averaged over steps, with this decay, are scored and kept"),
        Knob(
            "Polyak & Juditsky 1992; decaying: Ho et al. 2020, appendix B",
            ChoiceSettings(choice=(0.99, 0.995, 0.999, 0.9995)),
            group="averaging",
        ),
    ] = None
    swa_start: Annotated[
        Annotated[float, Field(gt=0.0, lt=1.0)] | None,
        Field(description="weights at the ends of epochs are averaged from this share of max_epochs on"),
        Knob("Izmailov et al. 2018, algorithm 1", UniformSettings(uniform=(0.5, 0.9)), group="averaging"),
    ] = None
    average_last: Annotated[
        Annotated[int, Field(ge=2)] | None,
        Field(description="weights averaged over the ends of this many last epochs"),
        Knob("Vaswani et al. 2017, section 6.1", RandintSettings(randint=(2, 10)), group="averaging"),
    ] = None

    @cached_property
    def ramps(self) -> bool:
        """Whether any knob changes during training."""
        return any(isinstance(value, Ramp) for _, value in self)

    def at(self, done: float) -> RegularizationSettings:
        """The knobs when the share `done` of all steps lies behind: each a number."""
        if not self.ramps:
            return self
        return self.model_copy(update={name: value_at(value, done) for name, value in self if isinstance(value, Ramp)})

    def peak(self) -> RegularizationSettings:
        """Each knob at its largest: what a network is built for."""
        changing = {name: peak(value) for name, value in self if isinstance(value, Ramp)}
        return self.model_copy(update=changing) if changing else self


@cache
def knob_specs() -> dict[str, KnobSpec]:
    """The table's knobs by name."""
    return knobs_of(RegularizationSettings.model_fields)


def applicable(
    network: str, task: Task, columns: Iterable[str], settings: Settings | None = None, any_length: bool = False
) -> tuple[KnobSpec, ...]:
    """The knobs that mean something for a kind of network, a task and the kinds of the features' columns, and that a
    search may vary. `settings`, of the network, admits those that need one of its settings; `any_length` says that
    sequences among the features differ in length.
    """
    kinds = tuple(columns)
    defined = (spec for spec in knob_specs().values() if spec.search is not None)
    return tuple(spec for spec in defined if spec.misuse(network, settings, task, kinds, any_length) is None)


def misuse(
    regularization: RegularizationSettings,
    network: str,
    settings: Settings | None,
    task: Task,
    columns: Collection[str],
    any_length: bool = False,
) -> str | None:
    """What is wrong with the first knob that is on where it means nothing, and the way out; None where none is.

    `any_length` says that the sequences among the features differ in length.
    """
    return problem_of(knob_specs(), dict(regularization), network, settings, task, columns, any_length)
