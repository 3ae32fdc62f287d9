"""Successive halving: at each rung, a number of epochs, the best share of the trials goes on.

`asha` lets a trial go on at once where it is among the best so far, and cuts it where it is not. `asha_promote` pauses
every trial at a rung and promotes the best of those that wait. `hyperband` deals the trials to brackets which begin
at different rungs, each promoting among its own.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Annotated, Literal

from pydantic import Field

from raynn.ledger import Resume, Searched, Trial, Verdict
from raynn.race import Entry, News, Others, Race, Scheduler, Standings, competing, ordinal, place_of
from raynn.settings import Settings

GracePeriod = Annotated[int, Field(ge=1, description="epochs that every trial trains: the lowest rung")]
ReductionFactor = Annotated[int, Field(ge=2, description="of so many trials, one goes on; rungs are so far apart")]


class AshaSettings(Settings):
    """Asynchronous successive halving that cuts: what is not among the best at a rung ends there."""

    kind: Literal["asha"]
    grace_period: GracePeriod = 1
    reduction_factor: ReductionFactor = 3


class AshaPromoteSettings(Settings):
    """Asynchronous successive halving that promotes: all wait at a rung, the best go on when a slot is free."""

    kind: Literal["asha_promote"]
    grace_period: GracePeriod = 1
    reduction_factor: ReductionFactor = 3


class HyperbandSettings(Settings):
    """Brackets of successive halving which begin at different rungs, from the lowest to no halving at all."""

    kind: Literal["hyperband"]
    grace_period: GracePeriod = 1
    reduction_factor: ReductionFactor = 3


def rungs_below(max_epochs: int, grace_period: int, reduction_factor: int) -> tuple[int, ...]:
    """grace_period * reduction_factor**k, as long as it is less than max_epochs, where a trial ends anyway."""
    rungs = []
    rung = grace_period
    while rung < max_epochs:
        rungs.append(rung)
        rung *= reduction_factor
    return tuple(rungs)


@dataclass(frozen=True)
class Asha(Scheduler):
    """The stopping form of ASHA (Li et al. 2020), with the cutoff of Ray Tune's AsyncHyperBandScheduler: at a rung a
    trial goes on if it is not worse than the 1 / reduction_factor quantile of the others that stand there. The first
    goes on; none waits for another, so what is decided depends on the order in which trials arrive.
    """

    race: Race
    rungs: tuple[int, ...]
    reduction_factor: int

    @cached_property
    def _standings(self) -> Standings:
        return Standings(self.race, self.rungs)

    def decide(self, trial: Trial, trials: Sequence[Trial]) -> Verdict:
        """At a rung: whether the trial is among the best so far."""
        rung = trial.epochs
        if rung not in self.rungs or trial.origin == "repeat":
            return Verdict("go_on")
        standing = self._standings.of(trials)[rung]
        own = self.race.score(trial, rung)
        place = None if own is None else _place_of(standing, (own, trial.number))
        others = Others(standing, place)
        if own is None or not len(others):
            return Verdict("go_on", f"rung {rung} epochs: the first there goes on")
        cutoff = _quantile(others, self.reduction_factor)
        report = _report(self.race, standing, place, rung)
        share = _share(self.reduction_factor)
        if own > cutoff:
            return Verdict("cut", f"{report}, the best {share} goes on, up to {self.race.shown(cutoff)}")
        return Verdict("go_on", f"{report}, the best {share} goes on")


@dataclass(frozen=True)
class Bracket:
    """Trials that are promoted among each other: get_job of algorithm 2 in Li et al. 2020."""

    race: Race
    rungs: tuple[int, ...]  # below the last, max_epochs
    reduction_factor: int

    @cached_property
    def _standings(self) -> Standings:
        return Standings(self.race, self.rungs)

    def promotion(
        self, trials: Sequence[Trial], last: bool, deciding: Trial | None = None
    ) -> tuple[int, Resume] | None:
        """Rung and trial of the next promotion: from the highest rung where one of the best 1 / reduction_factor still
        waits, the best of those.

        Args:
            trials: of this bracket.
            last: no other trial will come. Then a rung of fewer than reduction_factor trials, where the algorithm
                would wait for others for ever, sends its best on: the search ends with a trial trained to the end.
            deciding: a trial that has just come to a rung, and counts as one that waits.
        """
        standings = self._standings
        standings.of(trials)
        for rung in reversed(self.rungs):
            standing, waiting = standings.at[rung], standings.waiting[rung][:1]
            if deciding is not None and deciding.epochs == rung and (own := standings.entry(deciding.number, rung)):
                waiting.append(own)
            if not waiting:
                continue
            num = max(len(standing) // self.reduction_factor, int(last))
            best = min(waiting)
            place = standings.place(best, rung)
            if place < num:
                share = _share(self.reduction_factor) if num * self.reduction_factor <= len(standing) else "one"
                report = _report(self.race, standing, place, rung)
                return rung, Resume(best[1], f"{report}, the best {share} goes on")
        return None

    def decide(self, trial: Trial, trials: Sequence[Trial]) -> Verdict:
        """At a rung all pause, but for one that would be promoted at once."""
        rung = trial.epochs
        if rung not in self.rungs:
            return Verdict("go_on")
        next_one = self.promotion(trials, last=False, deciding=trial)
        if next_one is not None and next_one[1].number == trial.number:
            return Verdict("go_on", next_one[1].reason)
        return Verdict(
            "pause", f"{self._report(trial, trials)}, waits to be among the best {_share(self.reduction_factor)}"
        )

    def left_behind(self, trial: Trial, trials: Sequence[Trial]) -> str:
        """Why a paused trial will not go on."""
        return f"{self._report(trial, trials)}, the best {_share(self.reduction_factor)} went on"

    def going(self, trials: Sequence[Trial]) -> bool:
        """Whether one of the trials runs, or waits to be begun."""
        self._standings.of(trials)
        return bool(self._standings.going)

    def _report(self, trial: Trial, trials: Sequence[Trial]) -> str:
        """Where a trial stands at the rung it has come to."""
        standing = self._standings.of(trials)[trial.epochs]
        entry = self._standings.entry(trial.number, trial.epochs)
        return _report(self.race, standing, entry and _place_of(standing, entry), trial.epochs)


@dataclass(frozen=True)
class Promoting(Scheduler):
    """ASHA as in the paper, and HyperBand: brackets that the trials are dealt to, promotions before new trials.

    A trial's bracket follows from its number alone. The rungs' counts are those of successive halving: of n trials at
    a rung n // reduction_factor are promoted, at most.
    """

    brackets: tuple[Bracket, ...]
    deal: tuple[int, ...]  # the bracket of each of the first trials; then it begins again

    def decide(self, trial: Trial, trials: Sequence[Trial]) -> Verdict:
        """At a rung of its bracket: it waits, or goes on at once."""
        if trial.origin == "repeat":
            return Verdict("go_on")
        trying = competing(trials)
        place = place_of(trial, trying)
        bracket, members = self._dealt(trying)[self.deal[place % len(self.deal)]]
        return bracket.decide(trial, members)

    def resume(self, trials: Sequence[Trial], more: bool = True) -> Resume | None:
        """The next promotion, from the highest rung of all brackets."""
        found = []
        for bracket, members in self._dealt(trials):
            last = not more and not bracket.going(members)
            if (next_one := bracket.promotion(members, last)) is not None:
                found.append(next_one)
        return max(found, key=lambda one: (one[0], -one[1].number))[1] if found else None

    def wants_new(self, trials: Sequence[Trial]) -> bool:
        """Only when there is no one to promote."""
        return self.resume(trials) is None

    def retire(self, trials: Sequence[Trial]) -> list[tuple[int, str]]:
        """All that wait, once there is nothing left that could promote them."""
        trying = competing(trials)
        if any(t.status in ("running", "waiting") for t in trying) or self.resume(trying, more=False) is not None:
            return []
        return sorted(
            (trial.number, bracket.left_behind(trial, members))
            for bracket, members in self._dealt(trying)
            for trial in members
            if trial.status == "paused"
        )

    @cached_property
    def _hands(self) -> Hands:
        return Hands(self.deal, len(self.brackets))

    def _dealt(self, trials: Sequence[Trial]) -> list[tuple[Bracket, Sequence[Trial]]]:
        trying = competing(trials)
        if len(self.brackets) == 1:
            return [(self.brackets[0], trying)]
        return list(zip(self.brackets, self._hands.of(trying), strict=True))


class Hands:
    """Trials dealt to brackets by their places; of a search's own only what has changed is dealt again."""

    def __init__(self, deal: Sequence[int], num: int) -> None:
        self.deal, self.num = deal, num
        self._news, self._hands = News(), [Searched() for _ in range(num)]

    def of(self, trials: Sequence[Trial]) -> Sequence[Sequence[Trial]]:
        """The trials of each bracket, in their order."""
        places = self._news.of(trials)
        if len(places) == len(trials):  # seen for the first time, or no search's own
            self._hands = [Searched() for _ in range(self.num)]
        for place in sorted(places):
            hand = self._hands[self.deal[place % len(self.deal)]]
            hand.changed(trials[place]) if trials[place].number in hand.places else hand.add(trials[place])
        return self._hands


def asha(settings: AshaSettings, race: Race) -> Asha:
    """The scheduler of `asha`."""
    rungs = rungs_below(race.max_epochs, settings.grace_period, settings.reduction_factor)
    return Asha(race, rungs, settings.reduction_factor)


def asha_promote(settings: AshaPromoteSettings, race: Race) -> Promoting:
    """The scheduler of `asha_promote`: one bracket."""
    rungs = rungs_below(race.max_epochs, settings.grace_period, settings.reduction_factor)
    return Promoting((Bracket(race, rungs, settings.reduction_factor),), deal=(0,))


def hyperband(settings: HyperbandSettings, race: Race) -> Promoting:
    """HyperBand (Li et al. 2018, algorithm 1) with asynchronous brackets (Li et al. 2020, section 3.2).

    Bracket s = s_max .. 0 has ceil((s_max + 1) / (s + 1) * eta**s) trials, the first rung at max_epochs / eta**s, and
    s rungs below max_epochs. Trials are dealt to the brackets in these proportions from the first trial on, rather
    than one bracket after the other: a search of any length has some of each, and after as many trials as all
    brackets hold together each has exactly its own; then the deal begins again.
    """
    eta, epochs = settings.reduction_factor, race.max_epochs
    sizes = bracket_sizes(epochs, settings.grace_period, eta)
    brackets = []
    for s in reversed(range(len(sizes))):
        rungs = tuple((2 * epochs * eta**i + eta**s) // (2 * eta**s) for i in range(s))  # rounded to the nearest epoch
        brackets.append(Bracket(race, rungs, eta))
    return Promoting(tuple(brackets), deal=_deal(sizes))


def bracket_sizes(max_epochs: int, grace_period: int, reduction_factor: int) -> tuple[int, ...]:
    """Trials of each bracket of HyperBand, the one with the most rungs first (Li et al. 2018, algorithm 1, line 3)."""
    s_max = 0
    while grace_period * reduction_factor ** (s_max + 1) <= max_epochs:
        s_max += 1
    return tuple(-(-(s_max + 1) * reduction_factor**s // (s + 1)) for s in range(s_max, -1, -1))


@cache
def _deal(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Which bracket each of sum(sizes) trials goes to: the trials of each spread evenly over all of them."""
    places = [((2 * j + 1) / (2 * size), i) for i, size in enumerate(sizes) for j in range(size)]
    return tuple(i for _, i in sorted(places))


def _quantile(scores: Others, reduction_factor: int) -> float:
    """Of sorted scores, the one that the best 1 / reduction_factor are up to, interpolated linearly."""
    below, fraction = divmod(len(scores) - 1, reduction_factor)
    low = scores[below]
    if fraction == 0 or math.isinf(scores[below + 1]):
        return low
    return low + (scores[below + 1] - low) * (fraction / reduction_factor)


def _place_of(standing: Sequence[Entry], entry: Entry) -> int | None:
    """The place, from 0, of an entry; None where it is not there."""
    place = bisect_left(standing, entry)
    return place if place < len(standing) and standing[place] == entry else None


def _report(race: Race, standing: Sequence[Entry], place: int | None, rung: int) -> str:
    """`rung 4 epochs: val/loss 0.61 is 7th of 9`."""
    if place is None:
        return f"rung {rung} epochs: nothing is recorded of {race.metric}"
    return f"rung {rung} epochs: {race.shown(standing[place][0])} is {ordinal(place + 1)} of {len(standing)}"


def _share(reduction_factor: int) -> str:
    return {2: "half", 3: "third", 4: "quarter", 5: "fifth"}.get(reduction_factor, f"1/{reduction_factor}")
