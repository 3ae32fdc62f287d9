"""How long a search will take: before it starts, from a timed probe; while it runs, from what its trials took."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from raynn.ledger import Ledger
from raynn.progress import duration


@dataclass(frozen=True)
class Pace:
    """What is known of a trial before any has ended: seconds an epoch, and epochs that a scheduler lets it train."""

    epoch_s: float
    epochs: float
    start_s: float = 0.0  # of each trial, before its first step

    @property
    def trial_s(self) -> float:
        """Seconds of a trial."""
        return self.start_s + self.epochs * self.epoch_s


@dataclass(frozen=True)
class Estimate:
    """Seconds of a trial, seconds of the whole search, and the hours of devices it uses."""

    trial_s: float
    total_s: float
    device_hours: float

    def __str__(self) -> str:
        return (
            f"about {duration(self.trial_s)} a trial, {duration(self.total_s)} in all, "
            f"{self.device_hours:.2g} device-hours"
        )


def expected_epochs(max_epochs: int, kind: str, grace_period: int = 1, reduction_factor: float = 4.0) -> float:
    """Epochs that a trial trains on average, its own stopping rule aside.

    Successive halving lets one of `reduction_factor` trials past each rung (Li et al. 2020, section 3), which lie at
    grace_period * reduction_factor^k epochs; the median rule halves those that are left.
    """
    if kind in ("asha", "asha_promote", "hyperband"):
        epochs, share, rung = 0.0, 1.0, float(grace_period)
        before = 0.0
        while before < max_epochs:
            reached = min(rung, float(max_epochs))
            epochs += share * (reached - before)
            before, rung, share = reached, rung * reduction_factor, share / reduction_factor
        return epochs
    return max_epochs * (0.75 if kind == "median" else 1.0)


def estimate(pace: Pace, num_trials: int, concurrent: int, devices: float, repeats: int, max_epochs: int) -> Estimate:
    """Before the search: rows of as many trials as run at a time, then the repetitions, trained to their own end."""
    rows = -(-num_trials // concurrent)
    repeated_s = pace.start_s + max_epochs * pace.epoch_s
    total = rows * pace.trial_s + -(-repeats // concurrent) * repeated_s
    busy = num_trials * pace.trial_s + repeats * repeated_s
    return Estimate(pace.trial_s, total, busy * devices / 3600)


def seconds_left(
    ledger: Ledger, pace: Pace, num_trials: int, concurrent: int, max_epochs: int, repeats: int = 0
) -> float:
    """While it runs: epochs that are still to come, at the pace of those so far.

    A trial is expected to train as long as those that ended did. Few say little, and the first of a race go further
    than those that have others to be measured by: what was expected before counts as a quarter of all trials do.
    """
    searched = [trial for trial in ledger.trials if trial.origin != "repeat"]
    ended = [trial.epochs for trial in searched if trial.ended and trial.status != "failed"]
    enough = len(ended) >= max(2, concurrent)
    before = num_trials / 4
    epochs = (sum(ended) + before * pace.epochs) / (len(ended) + before)
    trained = sum(trial.epochs for trial in ledger.trials)
    epoch_s = ledger.busy_seconds / trained if trained >= max(2, concurrent) else pace.epoch_s
    going = [trial for trial in searched if not trial.ended]
    further = Further(ended, max_epochs)
    to_come = sum(max(further.of(trial.epochs) if enough else epochs - trial.epochs, 0.5) for trial in going)
    to_come += max(0, num_trials - len(searched)) * epochs
    repeated = [trial for trial in ledger.trials if trial.origin == "repeat"]
    own_end = [trial.epochs for trial in searched if trial.status in ("finished", "stopped_early")]
    full = max(own_end, default=max_epochs)
    to_come += max(0, repeats - len(repeated)) * full
    to_come += sum(max(full - trial.epochs, 0.5) for trial in repeated if not trial.ended)
    return to_come * epoch_s / max(1, min(concurrent, num_trials + repeats))


class Further:
    """Epochs that a trial still trains, given how many it has: as those that came as far did.

    Args:
        ended: epochs of the trials that have ended.
    """

    def __init__(self, ended: Sequence[int], max_epochs: int) -> None:
        self.ended, self.max_epochs = sorted(ended), max_epochs
        self.up_to = [0, *itertools.accumulate(self.ended)]  # the sum of the first so many

    def of(self, epochs: int) -> float:
        """For one that has so many."""
        first = bisect_right(self.ended, epochs)
        as_far = len(self.ended) - first
        return (self.up_to[-1] - self.up_to[first]) / as_far - epochs if as_far else (self.max_epochs - epochs) / 2
