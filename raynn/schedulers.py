"""Which trial goes on: the schedulers of a search, in one table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, assert_never, get_args

from pydantic import Field

from raynn.errors import JobError
from raynn.exploration import Allowed, Space, all_are_allowed, may_change, position
from raynn.halving import AshaPromoteSettings, AshaSettings, HyperbandSettings, asha, asha_promote, hyperband
from raynn.ledger import Trial, Verdict
from raynn.median import Median, MedianSettings
from raynn.population import Pb2Settings, PbtSettings, pb2, pbt
from raynn.race import Race, Scheduler
from raynn.settings import Settings


class NoneSettings(Settings):
    """Every trial trains to its end."""

    kind: Literal["none"]


SchedulerKind = Literal["asha", "asha_promote", "hyperband", "median", "pbt", "pb2", "none"]
KindSettings = (
    AshaSettings | AshaPromoteSettings | HyperbandSettings | MedianSettings | PbtSettings | Pb2Settings | NoneSettings
)
# A kind alone stands for its defaults.
SchedulerSettings = SchedulerKind | Annotated[KindSettings, Field(discriminator="kind")]


@dataclass(frozen=True)
class Undisturbed(Scheduler):
    """None: every trial goes on."""

    def decide(self, trial: Trial, trials: Sequence[Trial]) -> Verdict:
        """It goes on."""
        return Verdict("go_on")


def written_out(settings: SchedulerSettings) -> KindSettings:
    """The settings, with the defaults of a kind that stands alone."""
    if not isinstance(settings, str):
        return settings
    kinds: dict[str, type[KindSettings]] = {
        get_args(kind.model_fields["kind"].annotation)[0]: kind for kind in get_args(KindSettings)
    }
    return kinds[settings].model_validate({"kind": settings})


def space_problems(settings: SchedulerSettings, space: Space) -> Iterator[tuple[str, str]]:
    """What a scheduler cannot take of a space: (path, message); path "" where it is the whole."""
    kind = written_out(settings).kind
    if kind not in ("pbt", "pb2"):
        return
    for path in space:
        if message := may_change(path):
            yield path, message
    if kind == "pb2" and all(position(distribution, 0) is None for distribution in space.values()):
        yield "", "pb2 models numbers, and the space has only choices: use pbt"


def scheduler_of(
    settings: SchedulerSettings,
    race: Race,
    num_trials: int,
    seed: int,
    space: Space,
    allowed: Allowed = all_are_allowed,
) -> Scheduler:
    """The scheduler of a search of `num_trials` trials, which is the size of a population.

    Args:
        allowed: whether settings that a population would change to meet the constraints.

    Raises:
        JobError: settings with which it would never act, in trials of so few epochs or a population so small.
    """
    chosen = written_out(settings)
    if message := _never_acts(chosen, race.max_epochs, num_trials):
        raise JobError(f"search.scheduler = {chosen.kind!r}: {message}")
    match chosen:
        case AshaSettings():
            return asha(chosen, race)
        case AshaPromoteSettings():
            return asha_promote(chosen, race)
        case HyperbandSettings():
            return hyperband(chosen, race)
        case MedianSettings():
            return Median(race, chosen.grace_period, chosen.min_trials)
        case PbtSettings():
            return pbt(chosen, race, num_trials, seed, space, allowed)
        case Pb2Settings():
            return pb2(chosen, race, num_trials, seed, space, allowed)
        case NoneSettings():
            return Undisturbed()
    assert_never(chosen)


def _never_acts(settings: KindSettings, max_epochs: int, num_trials: int) -> str | None:
    epochs = f"optimization.max_epochs = {max_epochs}"
    if isinstance(settings, PbtSettings | Pb2Settings):
        if settings.interval >= max_epochs:
            return f"interval = {settings.interval} must be less than {epochs}, or there is no second generation"
        if num_trials < 2:
            return f"search.trials = {num_trials} is the size of the population: at least 2"
    elif not isinstance(settings, NoneSettings) and settings.grace_period > max_epochs:
        return f"grace_period = {settings.grace_period} must be at most {epochs}, or every trial trains to its end"
    return None
