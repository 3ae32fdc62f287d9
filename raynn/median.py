"""The median rule: a trial is cut whose best is worse than the median of what the others were on average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field

from raynn.ledger import Trial, Verdict
from raynn.race import Others, Race, Scheduler, Standings
from raynn.settings import Settings


class MedianSettings(Settings):
    """Cuts a trial whose best value so far is worse than the median of the others' averages so far."""

    kind: Literal["median"]
    grace_period: Annotated[int, Field(ge=1, description="epochs that every trial trains")] = 3
    min_trials: Annotated[int, Field(ge=1, description="others that must have come as far before one is cut")] = 3


@dataclass(frozen=True)
class Median(Scheduler):
    """The median stopping rule (Golovin et al. 2017, section 3.2.2): at epoch s a trial is cut if its best value is
    strictly worse than the median of the running averages of the others' values over their first s epochs.

    The paper compares with trials that have completed; here with all that have come as far, completed or not, as Ray
    Tune does: among trials that run side by side none would be cut for long. One that has ended by its own rule
    before s counts with its best value for the epochs that it did not train.
    """

    race: Race
    grace_period: int
    min_trials: int

    @cached_property
    def _standings(self) -> Standings:
        return Standings(self.race, range(self.grace_period, self.race.max_epochs), self.race.average)

    def decide(self, trial: Trial, trials: Sequence[Trial]) -> Verdict:
        """From `grace_period` epochs on, after every epoch."""
        epochs = trial.epochs
        own = self.race.score(trial, epochs)
        if trial.origin == "repeat" or not self.grace_period <= epochs < self.race.max_epochs or own is None:
            return Verdict("go_on")
        standing = self._standings.of(trials)[epochs]
        entry = self._standings.entry(trial.number, epochs)
        others = Others(standing, entry and self._standings.place(entry, epochs))
        if len(others) < self.min_trials:
            return Verdict("go_on", f"epoch {epochs}: {len(others)} others have come as far, of {self.min_trials}")
        middle = (others[(len(others) - 1) // 2] + others[len(others) // 2]) / 2
        report = f"epoch {epochs}: {self.race.shown(own)} against the median of {len(others)} others' averages"
        verdict = f"{report}, {self.race.shown(middle).removeprefix(self.race.metric + ' ')}"
        return Verdict("cut" if own > middle else "go_on", verdict)
