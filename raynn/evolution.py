"""CMA-ES: a normal distribution over the space that moves to where trials are better (Hansen 2016, "The CMA Evolution
Strategy: A Tutorial"), with a margin for evenly spaced values (Hamano et al. 2022).

Its state is not kept: a trial's notes say where it was drawn and, at the first of a generation, which trials the
distribution learned from, and the whole is gone through again for every suggestion.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raynn.bayesian import known_points
from raynn.distributions import ChoiceSettings, QrandintSettings, QuniformSettings, RandintSettings
from raynn.ledger import Trial, Values
from raynn.search import Objective
from raynn.space import Space

MAX_PROPOSALS = 100
SIGMA = 0.25  # of the first generation; the space is the unit cube

_EVENLY_SPACED = (QuniformSettings, QrandintSettings, RandintSettings)


def cmaes_proposals(
    space: Space,
    objectives: Sequence[Objective],
    search_seed: int,
    seed: int,
    trials: Sequence[Trial],
    earlier: Sequence[Trial],
) -> Iterator[tuple[Values, Values]]:
    """Proposals for one trial, each with where it lies in the unit cube, in the notes. Choices have no order,
    and are drawn at random.

    Args:
        search_seed: of the search.
        seed: of this trial.
    """
    names = [name for name, distribution in space.axes.items() if not isinstance(distribution, ChoiceSettings)]
    random = np.random.default_rng(seed)
    optimizer = _replayed(_begun(space, names, objectives, search_seed, earlier), trials)
    told = _generation_to_tell(optimizer, trials, objectives)
    if told:
        _tell(optimizer, told, _drawn_at(trials))
    optimizer.reseed_rng(seed)
    for _ in range(MAX_PROPOSALS):
        at_D, raw_D = optimizer.ask()
        u = {name: float(random.random()) for name in space.axes}
        u |= {name: min(max(float(x), 0.0), math.nextafter(1, 0)) for name, x in zip(names, at_D, strict=True)}
        notes: dict[str, Any] = {"generation": optimizer.generation, "x": [float(x) for x in raw_D]}
        if told:
            notes["told"] = told
        yield space.draw(u), {"cmaes": notes}


def _begun(
    space: Space, names: Sequence[str], objectives: Sequence[Objective], seed: int, earlier: Sequence[Trial]
) -> Any:
    """The distribution before any trial: half way from the middle of the space to the job's own settings, or where an
    earlier search was good (Nomura et al. 2021).
    """
    import cmaes

    dim = len(names)
    mean_D, sigma, cov_DD = 0.25 + 0.5 * _positions(space, names, space.own), SIGMA, None
    points = zip(earlier, known_points(earlier, objectives), strict=True)
    known = [(_positions(space, names, trial.settings), point[0]) for trial, point in points if point is not None]
    if len(known) > dim:
        mean_D, sigma, cov_DD = cmaes.get_warm_start_mgd(known)
    steps_D = np.array([_step(space, name) for name in names])
    return cmaes.CMAwM(
        mean=np.clip(mean_D, 0.05, 0.95),  # a mean on the border would have half of its draws drawn again
        sigma=float(sigma),
        bounds=np.array([[0.5 * step, 1.0 - 0.5 * step] for step in steps_D]),
        steps=steps_D,
        cov=cov_DD,
        seed=seed,
        n_max_resampling=10 * dim,
    )


def _step(space: Space, name: str) -> float:
    """The width of a value's cell in [0, 1]; 0 of reals, and where cells have different widths."""
    distribution = space.axes[name]
    return 1.0 / distribution.count if isinstance(distribution, _EVENLY_SPACED) else 0.0


def _positions(space: Space, names: Sequence[str], values: Mapping[str, Any]) -> NDArray[np.float64]:
    """Where settings lie in the unit cube; what is not among them, or no number, in the middle."""
    found = []
    for name in names:
        nearest = space.axes[name].nearest(values.get(name, space.own[name]))
        inside = space.axes[name].contains(nearest)
        found.append(space.axes[name].position(nearest) if inside else 0.5)
    return np.array(found)


def _generation_to_tell(
    optimizer: Any, trials: Sequence[Trial], objectives: Sequence[Objective]
) -> list[tuple[int, float]]:
    """The numbers and values of as many trials of this generation as it takes, the first of those that have ended."""
    told = []
    for trial, point in zip(trials, known_points(trials, objectives), strict=True):
        notes = trial.notes.get("cmaes")
        settled = trial.ended or trial.status == "paused"
        if settled and isinstance(notes, dict) and notes["generation"] == optimizer.generation and point is not None:
            told.append((trial.number, point[0]))
    return told[: optimizer.population_size] if len(told) >= optimizer.population_size else []


def _replayed(optimizer: Any, trials: Sequence[Trial]) -> Any:
    """The optimizer after all generations that trials have noted."""
    drawn_at = _drawn_at(trials)
    for trial in trials:
        notes = trial.notes.get("cmaes")
        if isinstance(notes, dict) and notes["generation"] > optimizer.generation:
            _tell(optimizer, notes["told"], drawn_at)
    return optimizer


def _drawn_at(trials: Sequence[Trial]) -> dict[int, Any]:
    """Where in the unit cube trials lie, by number."""
    notes = {trial.number: trial.notes.get("cmaes") for trial in trials}
    return {number: note["x"] for number, note in notes.items() if isinstance(note, dict)}


def _tell(optimizer: Any, told: Any, drawn_at: Mapping[int, Any]) -> None:
    optimizer.tell([(np.array(drawn_at[number]), value) for number, value in told])
