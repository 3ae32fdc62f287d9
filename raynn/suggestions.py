"""What a search tries next: a function of its space, its settings and its trials, with nothing kept in between.

An algorithm proposes; a proposal that breaks a constraint, or repeats a trial, gives way to the next. Random numbers
are a function of the search's seed, the trial's number and the place they are used at, so a search that is killed and
resumed goes on with the very trials that it would have had.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import JsonValue

from raynn.bayesian import model_proposals
from raynn.errors import JobError
from raynn.evolution import cmaes_proposals
from raynn.ledger import Trial, Values
from raynn.search import SearchSettings
from raynn.space import Space, key

Suggestion = tuple[Values, Values]  # settings by dotted path, and what the algorithm notes with them

MAX_DRAWS = 1000  # at random, before the constraints are taken for ones that nothing meets
LEARNING = ("optuna", "gp", "cmaes", "nsga2")  # algorithms to which earlier trials say something


def uniform(*place: JsonValue) -> float:
    """A number in [0, 1), a function of where it is used: 53 bits of a hash of the place."""
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def seed_for(*place: JsonValue) -> int:
    """A seed of 31 bits, likewise."""
    return int(uniform(*place, "seed") * 2**31)


@dataclass(frozen=True)
class Question:
    """What an algorithm is asked: the trial of this number of the search, given those before it."""

    space: Space
    search: SearchSettings
    number: int
    trials: Sequence[Trial]
    earlier: Sequence[Trial] = ()  # of the search that `warm_start` names

    @property
    def seed(self) -> int:
        """Another for each trial."""
        return seed_for(self.search.seed, self.number)


def suggest(
    space: Space, search: SearchSettings, number: int, trials: Sequence[Trial], earlier: Sequence[Trial] = ()
) -> Suggestion | None:
    """The settings of the search's trial `number`, counted from 0, and what the algorithm notes with them; None where
    nothing is left that has not been tried.

    Args:
        trials: those before it, in their order, without repetitions.
        earlier: trials of an earlier search that the algorithm learns from, as `earlier_trials` gives them.

    Raises:
        JobError: constraints that (nearly) nothing meets.
    """
    if number == 0 and search.first == "job":
        return space.own_values(), {"origin": "job"}
    countable = math.isfinite(space.count)
    tried = {key(trial.settings) for trial in trials} if countable else set()
    left = None if space.listed is None else [values for values in space.listed if key(values) not in tried]
    if left is not None and not left:
        if not space.listed:
            raise JobError(f"search.constraints: no combination of the space meets {_quoted(space)}; loosen them")
        return None
    question = Question(space, search, number, trials, earlier)
    for values, notes in ALGORITHMS[search.algorithm](question):
        if space.broken(values) is None and key(values) not in tried:
            return values, notes
    if search.algorithm == "grid":
        return None
    return _fallback(question, tried), {}


def _fallback(question: Question, tried: set[str]) -> Values:
    """A random draw that meets the constraints and repeats nothing, where the algorithm's own proposals do not.

    Raises:
        JobError: none of many does.
    """
    space = question.space
    if space.listed is not None:
        left = [values for values in space.listed if key(values) not in tried]
        return left[int(uniform(question.seed, "fallback") * len(left))]
    broken: dict[str, int] = {}
    for values, _ in random_proposals(question):
        constraint = space.broken(values)
        if constraint is None:
            return values
        broken[constraint.text] = broken.get(constraint.text, 0) + 1
    text, often = max(broken.items(), key=lambda item: item[1])
    raise JobError(
        f"search.constraints: none of {MAX_DRAWS} draws meets {_quoted(space)}; {text!r} failed {often} times: loosen "
        "it, or narrow the distributions of search.space to where it holds"
    )


def _quoted(space: Space) -> str:
    return " and ".join(repr(constraint.text) for constraint in space.constraints)


def random_proposals(question: Question) -> Iterator[Suggestion]:
    """Independent draws. A setting's draw depends on no other setting of the space."""
    space, search, number = question.space, question.search, question.number
    for attempt in range(MAX_DRAWS):
        yield space.draw({name: uniform(search.seed, number, attempt, name) for name in space.names}), {}


def quasi_random_proposals(question: Question) -> Iterator[Suggestion]:
    """Sobol's sequence, scrambled (Owen 1998; Joe & Kuo 2008): its points fill the space more evenly than random ones.

    A suggestion goes on after the point of the one before, which is in its notes.
    """
    from scipy.stats import qmc  # takes half a second to load

    begin = _after(question.trials, "point")
    sobol = qmc.Sobol(len(question.space.axes), scramble=True, rng=np.random.default_rng(question.search.seed))
    if begin:
        sobol.fast_forward(begin)
    for index in range(begin, begin + MAX_DRAWS):
        yield question.space.draw(sobol.random(1)[0].tolist()), {"point": index}


def grid_proposals(question: Question) -> Iterator[Suggestion]:
    """Every combination in order, from the one after the last that was taken."""
    begin = _after(question.trials, "point")
    for index, values in enumerate(question.space.enumerated.since(begin), begin):
        yield values, {"point": index}


def _after(trials: Sequence[Trial], note: str) -> int:
    """One more than the largest that trials have noted."""
    return 1 + max((int(str(trial.notes[note])) for trial in trials if note in trial.notes), default=-1)


def _by_model(question: Question) -> Iterator[Suggestion]:
    space, search = question.space, question.search
    return model_proposals(
        search.algorithm, space, search.all_objectives, question.seed, question.trials, question.earlier
    )


def _by_cmaes(question: Question) -> Iterator[Suggestion]:
    space, search = question.space, question.search
    objective = search.all_objectives[:1]
    return cmaes_proposals(space, objective, search.seed, question.seed, question.trials, question.earlier)


ALGORITHMS: dict[str, Callable[[Question], Iterator[Suggestion]]] = {
    "optuna": _by_model,
    "gp": _by_model,
    "nsga2": _by_model,
    "cmaes": _by_cmaes,
    "random": random_proposals,
    "quasi_random": quasi_random_proposals,
    "grid": grid_proposals,
}
