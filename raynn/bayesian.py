"""Settings suggested by a model of the trials: Optuna's samplers, asked anew for every trial.

A sampler sees every number on the scale it is drawn on: reals by their position in [0, 1], evenly spaced values by
their index, choices as categories. How a trial counts:

- By its best value so far, also where it was cut. That is what it would at least have reached; Optuna's pruned trials
  would stand behind any trial that went on, however bad, for a Parzen estimator, and not exist for the others.
- One that failed is as bad as the worst that did not, so that its neighborhood is left alone.
- One that runs counts by its value once it has trained as long as the shortest of those that ended or pause. Before
  that only its settings are known, and what lies near them is avoided.
"""

from __future__ import annotations

import datetime
import math
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from raynn.distributions import ChoiceSettings, QrandintSettings, QuniformSettings, RandintSettings
from raynn.ledger import Trial, Values
from raynn.pareto import scores
from raynn.scales import Distribution
from raynn.search import Objective
from raynn.space import Space, key

if TYPE_CHECKING:
    import optuna

MAX_PROPOSALS = 20
FIRST_AT_RANDOM = 10  # trials, before the model is fitted
# Trials that a model is fitted to, so that a suggestion does not take longer and longer: a process is cubic in them, of
# 1,000 without a bound 4.9 s (2 cores, one run)
MODELED = {"optuna": 1000, "gp": 300}
POPULATION = 16  # of nsga2: two generations in the 32 trials that are the default
_EVENLY_SPACED = (QuniformSettings, QrandintSettings, RandintSettings)
_SOMETIME = datetime.datetime(2000, 1, 1)  # a trial must have begun and ended; when, plays no part


def model_proposals(
    algorithm: str,
    space: Space,
    objectives: Sequence[Objective],
    seed: int,
    trials: Sequence[Trial],
    earlier: Sequence[Trial],
) -> Iterator[tuple[Values, Values]]:
    """Proposals for one trial, each with what to note; a later one knows those before it to be taken.

    Args:
        seed: of this trial.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if algorithm in MODELED:
        earlier, trials = (
            telling(earlier, objectives, MODELED[algorithm]),
            telling(trials, objectives, MODELED[algorithm]),
        )
    past = past_trials(space, objectives, earlier, MAX_PROPOSALS)  # lower numbers are those of trials asked for here
    past += past_trials(space, objectives, trials, MAX_PROPOSALS + len(past))
    study = optuna.create_study(
        storage=_storage()(past),
        sampler=_sampler(algorithm, seed, conditional=bool(space.when) or _has_inner(space)),
        directions=["minimize"] * len(objectives),
    )
    for _ in range(MAX_PROPOSALS):
        asked = study.ask()
        values: Values = {}
        for name, distribution in space.axes.items():
            if space.is_active(name, values):
                values[name] = _asked(asked, name, distribution)
        yield values, _notes(study.get_trials(deepcopy=False)[-1])


def _sampler(algorithm: str, seed: int, conditional: bool) -> optuna.samplers.BaseSampler:
    from optuna import samplers

    if algorithm == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=FIRST_AT_RANDOM, warn_independent_sampling=False)
    if algorithm == "nsga2":
        return samplers.NSGAIISampler(seed=seed, population_size=POPULATION)
    with warnings.catch_warnings():  # settings that are drawn together are modeled together: `group` is experimental
        warnings.simplefilter("ignore")
        return samplers.TPESampler(
            seed=seed, n_startup_trials=FIRST_AT_RANDOM, multivariate=True, group=conditional, constant_liar=True
        )


@lru_cache
def _storage() -> Any:
    """A storage for one question. Optuna copies whatever is added to its own, 0.3 s for 1,000 trials; this reads the
    past where it lies.
    """
    import optuna

    class Storage(optuna.storages.InMemoryStorage):
        def __init__(self, past: Sequence[optuna.trial.FrozenTrial]) -> None:
            super().__init__()
            self.past = past

        def get_all_trials(
            self, study_id: int, deepcopy: bool = True, states: Any = None
        ) -> list[optuna.trial.FrozenTrial]:
            asked = super().get_all_trials(study_id, deepcopy, states)
            return [*(each for each in self.past if states is None or each.state in states), *asked]

    return Storage


def past_trials(
    space: Space, objectives: Sequence[Objective], trials: Sequence[Trial], first_number: int
) -> list[optuna.trial.FrozenTrial]:
    """The trials as Optuna knows them, numbered from `first_number`; those left out whose settings are none of the
    space's.
    """
    from optuna.trial import FrozenTrial, TrialState

    points = known_points(trials, objectives)
    found = list[FrozenTrial]()
    for trial, point in zip(trials, points, strict=True):
        encoded = _encoded(space, trial.settings)
        if encoded is None or (point is None and trial.ended):
            continue
        parameters, distributions = encoded
        notes = trial.notes.get("optuna", {})
        found.append(
            FrozenTrial(
                number=first_number + len(found),
                trial_id=first_number + len(found),
                state=TrialState.RUNNING if point is None else TrialState.COMPLETE,
                value=None,
                values=None if point is None else list(point),
                datetime_start=_SOMETIME,
                datetime_complete=None if point is None else _SOMETIME,
                params=parameters,
                distributions=distributions,
                user_attrs={},
                system_attrs=notes if isinstance(notes, dict) else {},
                intermediate_values={},
            )
        )
    return found


def known_points(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[tuple[float, ...] | None]:
    """What each trial counts as in the objectives, less being better; None where it counts by its settings alone."""
    settled = [trial.epochs for trial in trials if (trial.ended or trial.status == "paused") and trial.epochs]
    enough = min(settled, default=math.inf)
    points = [scores(trial, objectives) if trial.epochs >= enough else None for trial in trials]
    good = [
        point
        for trial, point in zip(trials, points, strict=True)
        if point is not None and trial.status != "failed" and all(map(math.isfinite, point))
    ]
    worst = tuple(max(column) for column in zip(*good, strict=True)) if good else None
    return [
        worst if trial.status == "failed" or (point is not None and not all(map(math.isfinite, point))) else point
        for trial, point in zip(trials, points, strict=True)
    ]


def telling(trials: Sequence[Trial], objectives: Sequence[Objective], most: int) -> Sequence[Trial]:
    """At most so many of the trials, in their order: the better half of them, and the newest of the others."""
    if len(trials) <= most:
        return trials
    points = known_points(trials, objectives)
    ranked = sorted((point, place) for place, point in enumerate(points) if point is not None)
    kept = {place for _, place in ranked[: most // 2]}
    newest = (place for place in reversed(range(len(trials))) if place not in kept)
    kept |= set(islice(newest, most - len(kept)))
    return [trials[place] for place in sorted(kept)]


def _has_inner(space: Space) -> bool:
    return any(isinstance(d, ChoiceSettings) and any(d.inner) for d in space.axes.values())


def _encoded(space: Space, settings: Values) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Settings as a sampler sees them, and their distributions; None of settings that are none of the space's."""
    name = key(settings)
    if name not in space.memory:
        values = space.nearest(settings)
        space.memory[name] = None if values is None else _encode(space, values)
    return space.memory[name]


def _encode(space: Space, values: Values) -> tuple[dict[str, Any], dict[str, Any]]:
    parameters: dict[str, Any] = {}
    distributions: dict[str, Any] = {}
    for name, value in values.items():
        for part, distribution, coded in _parts(name, space.axes[name], value):
            parameters[part], distributions[part] = coded, distribution
    return parameters, distributions


def _parts(name: str, distribution: Distribution, value: JsonValue) -> Iterator[tuple[str, Any, Any]]:
    """One or two parameters of a sampler: a choice, and the value within it where that is drawn itself."""
    if isinstance(distribution, ChoiceSettings):
        index = distribution.index(value)
        assert index is not None, f"{name}: {value!r} is none of {distribution.choice}"
        yield name, _categories(len(distribution.choice)), index
        inner = distribution.inner[index]
        if inner is not None:
            yield from _parts(f"{name}[{index}]", inner, value)
    elif isinstance(distribution, _EVENLY_SPACED):
        yield name, _indices(int(distribution.count)), distribution.index(value)
    else:
        yield name, _interval(), distribution.position(value)


def _asked(trial: optuna.trial.Trial, name: str, distribution: Distribution) -> JsonValue:
    """The value that the sampler has for a setting."""
    if isinstance(distribution, ChoiceSettings):
        index = int(trial.suggest_categorical(name, tuple(range(len(distribution.choice)))))
        inner = distribution.inner[index]
        return distribution.choice[index] if inner is None else _asked(trial, f"{name}[{index}]", inner)
    if isinstance(distribution, _EVENLY_SPACED):
        return distribution.at(trial.suggest_int(name, 0, int(distribution.count) - 1))
    return distribution.draw(trial.suggest_float(name, 0.0, 1.0))


@lru_cache
def _categories(count: int) -> Any:
    from optuna.distributions import CategoricalDistribution

    return CategoricalDistribution(tuple(range(count)))


@lru_cache
def _indices(count: int) -> Any:
    from optuna.distributions import IntDistribution

    return IntDistribution(0, count - 1)


@lru_cache
def _interval() -> Any:
    from optuna.distributions import FloatDistribution

    return FloatDistribution(0.0, 1.0)


def _notes(asked: optuna.trial.FrozenTrial) -> Values:
    """What a sampler has to remember of a trial: nsga2 its generation."""
    kept = {name: value for name, value in asked.system_attrs.items() if "generation" in name}
    return {"optuna": kept} if kept else {}
