"""Populations: trials that take over each other's weights and change their settings while they train.

Generations are synchronous. Every `interval` epochs all members pause; when the last has arrived, the whole generation
is decided at once: the worst take over the weights of some of the best, with other settings; then all go on. So what
happens depends neither on how long an epoch takes nor on how many trials run at a time, and a search that was killed
goes on exactly as it would have: what an asynchronous population (Jaderberg et al. 2017, algorithm 1) cannot promise.
The price is that the members wait for the slowest.

A generation is compared by the value at its epoch itself, not the best so far: it is these weights that are copied.
Those that take over go on first, the worst before the others, while whom they take over from still waits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from pydantic import Field

from raynn.bandit import Bandit
from raynn.exploration import MAX_MOVES, Allowed, Space, all_are_allowed, perturbed, random_for
from raynn.ledger import Resume, Trial, Values, Verdict
from raynn.problems import show
from raynn.race import Race, Scheduler, competing, ordinal
from raynn.settings import Settings

Interval = Annotated[int, Field(ge=1, description="epochs between generations")]
QuantileFraction = Annotated[
    float, Field(gt=0.0, le=0.5, description="share of the worst that take over from as many of the best")
]


class PbtSettings(Settings):
    """Population-based training: the worst copy the best, with settings 1.2 or 0.8 times theirs."""

    kind: Literal["pbt"]
    interval: Interval = 4
    quantile_fraction: QuantileFraction = 0.25
    resample_probability: Annotated[
        float, Field(ge=0.0, le=1.0, description="of a setting being drawn anew instead")
    ] = 0.25


class Pb2Settings(Settings):
    """Population-based bandits: the worst copy the best, with settings that a Gaussian process chooses."""

    kind: Literal["pb2"]
    interval: Interval = 4
    quantile_fraction: QuantileFraction = 0.25


class Explorer(Protocol):
    """What settings a trial goes on with that has taken over a donor's weights."""

    def settings_for(self, trial: Trial, donor: Trial, epochs: int, trials: Sequence[Trial]) -> Values:
        """All of its settings, after `epochs` epochs; a function of these."""


@dataclass(frozen=True)
class Perturbing:
    """Settings moved at random (Jaderberg et al. 2017, section 4.1.1: explore by perturbing, or by resampling)."""

    space: Space
    seed: int
    resample_probability: float
    allowed: Allowed = all_are_allowed

    def settings_for(self, trial: Trial, donor: Trial, epochs: int, trials: Sequence[Trial]) -> Values:
        """The donor's, each of the space's moved, until they are allowed; the donor's own where no move is. A function
        of seed, generation and trial.
        """
        random = random_for(self.seed, epochs, trial.number)
        random.random()  # has chosen the donor
        for _ in range(MAX_MOVES):
            settings = dict(donor.settings_now)
            for path, distribution in self.space.items():
                if path in settings:
                    settings[path] = perturbed(distribution, settings[path], random, self.resample_probability)
            if self.allowed(settings):
                return settings
        return dict(donor.settings_now)


@dataclass(frozen=True)
class Population(Scheduler):
    """Generations of a population of fixed size; one that ends or fails in between leaves it."""

    race: Race
    interval: int
    quantile_fraction: float
    size: int
    seed: int
    explorer: Explorer

    def decide(self, trial: Trial, trials: Sequence[Trial]) -> Verdict:
        """At a generation's epoch all pause."""
        if trial.origin == "repeat" or trial.epochs % self.interval or trial.epochs >= self.race.max_epochs:
            return Verdict("go_on")
        return Verdict(
            "pause", f"generation {trial.epochs // self.interval}: waits for the others to have as many epochs"
        )

    def wants_new(self, trials: Sequence[Trial]) -> bool:
        """Until the population is complete."""
        return len(competing(trials)) < self.size

    def resume(self, trials: Sequence[Trial], more: bool = True) -> Resume | None:
        """The next of the generation, once all have arrived: first the worst, with a donor and new settings."""
        members = competing(trials)
        paused = [t for t in members if t.status == "paused"]
        if not paused or (more and len(members) < self.size):
            return None
        epochs = min(t.epochs for t in paused)
        if any(not t.ended and t.epochs < epochs for t in members):
            return None
        ranking = self._ranking(members, epochs)
        num = min(math.ceil(self.quantile_fraction * len(ranking)), len(ranking) // 2)
        waiting = {t.number: t for t in paused if t.epochs == epochs}
        for place in range(len(ranking), len(ranking) - num, -1):
            if ranking[place - 1] in waiting:
                return self._takes_over(waiting[ranking[place - 1]], ranking, num, epochs, members)
        number = min(waiting)
        return Resume(number, f"{self._report(waiting[number], ranking, epochs)}, goes on as it is")

    def _takes_over(self, trial: Trial, ranking: list[int], num: int, epochs: int, members: Sequence[Trial]) -> Resume:
        report = self._report(trial, ranking, epochs)
        if _before(trial, epochs) is not trial:  # killed between taking over and going on
            return Resume(trial.number, f"{report}, goes on with what it has taken over")
        choice = random_for(self.seed, epochs, trial.number).random()
        donor = next(member for member in members if member.number == ranking[int(choice * num)])
        settings = self.explorer.settings_for(trial, donor, epochs, members)
        changes = ", ".join(
            f"{path} {show(donor.settings_now.get(path))} -> {show(value)}"
            for path, value in settings.items()
            if value != donor.settings_now.get(path)
        )
        reason = f"{report}, takes over from trial {donor.number}{': ' if changes else ''}{changes}"
        return Resume(trial.number, reason, donor.number, settings)

    def _ranking(self, members: Sequence[Trial], epochs: int) -> list[int]:
        """The numbers of those who came to this generation, the best first: each as it was when it came."""
        arrived = []
        for trial in members:
            before = _before(trial, epochs)
            # One that has taken over already belongs to the generation, whatever has become of it since.
            if before is not trial or (not trial.ended and trial.epochs >= epochs):
                arrived.append((self.race.latest(before, epochs), trial.number))
        return [number for _, number in sorted(arrived)]

    def _report(self, trial: Trial, ranking: list[int], epochs: int) -> str:
        value = self.race.shown(self.race.latest(_before(trial, epochs), epochs))
        place = f"{ordinal(ranking.index(trial.number) + 1)} of {len(ranking)}"
        return f"generation {epochs // self.interval}: {value} is {place}"


def _before(trial: Trial, epochs: int) -> Trial:
    """The trial as it was before it took over another's weights after `epochs` epochs; itself where it has not."""
    return next((left for left in trial.left if left.epochs == epochs), trial)


def pbt(
    settings: PbtSettings, race: Race, size: int, seed: int, space: Space, allowed: Allowed = all_are_allowed
) -> Population:
    """The scheduler of `pbt` (Jaderberg et al. 2017): truncation selection, exploring by perturbation."""
    explorer = Perturbing(space, seed, settings.resample_probability, allowed)
    return Population(race, settings.interval, settings.quantile_fraction, size, seed, explorer)


def pb2(
    settings: Pb2Settings, race: Race, size: int, seed: int, space: Space, allowed: Allowed = all_are_allowed
) -> Population:
    """The scheduler of `pb2` (Parker-Holder et al. 2020): truncation selection, exploring by a bandit."""
    explorer = Bandit(race, space, seed, settings.interval, allowed)
    return Population(race, settings.interval, settings.quantile_fraction, size, seed, explorer)
