"""Which trial goes on: halving and the median rule, against the papers' numbers, Ray Tune and brute force."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import mean, median
from typing import Any

import numpy as np
import pytest
from simulated_search import Simulation, interrupted, outcome, spread

from raynn.errors import JobError
from raynn.halving import AshaSettings, Promoting, bracket_sizes, hyperband, rungs_below
from raynn.job import Job
from raynn.ledger import Ledger, Trial, value_at
from raynn.race import Race, Scheduler, Standings, ordinal, stands
from raynn.schedulers import SchedulerKind, SchedulerSettings, scheduler_of, written_out

KINDS: tuple[SchedulerKind, ...] = ("asha", "asha_promote", "hyperband", "median", "none")


def scheduler(settings: SchedulerSettings | dict[str, Any], max_epochs: int = 9, direction: Any = "min") -> Scheduler:
    if isinstance(settings, dict):
        settings = written_out(settings["kind"]).model_validate(settings)
    return scheduler_of(settings, Race("val/loss", direction, max_epochs), num_trials=8, seed=0, space={})


def trial(number: int, values: Sequence[float], status: Any = "running", **more: Any) -> Trial:
    records = [{"epoch": float(i), "val/loss": value} for i, value in enumerate(values, start=1)]
    return Trial(number, {}, more.pop("origin", "search"), records=records, status=status, **more)


def curve(trial: Trial) -> float:
    """Falls towards a level of the trial's own, with some noise."""
    level = spread(trial.number)
    return level + (1.5 + spread(trial.number, 7)) / (1 + trial.epochs) + 0.2 * spread(trial.number, trial.epochs, 3)


def simulated(
    kind: Any, num_trials: int, max_epochs: int = 9, slots: int = 1, path: Path | None = None, **more: Any
) -> list[Trial]:
    more = {"curve": curve} | more
    return Simulation(Ledger(path), scheduler(kind, max_epochs), num_trials, max_epochs, slots=slots, **more).run()


# asha


@pytest.mark.parametrize(
    ("max_epochs", "grace_period", "reduction_factor", "expected"),
    [(9, 1, 3, (1, 3)), (10, 1, 3, (1, 3, 9)), (20, 2, 4, (2, 8)), (1, 1, 3, ()), (5, 5, 2, ())],
)
def test_rungs(max_epochs: int, grace_period: int, reduction_factor: int, expected: tuple[int, ...]) -> None:
    assert rungs_below(max_epochs, grace_period, reduction_factor) == expected


def test_asha_cuts_what_is_not_in_the_best_third() -> None:
    others = [trial(number, [value, 5.0, value]) for number, value in enumerate([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])]
    good, bad = trial(7, [0.9, 0.8, 0.29]), trial(8, [0.9, 0.55, 0.6])
    asha = scheduler("asha")
    at_three = asha.decide(good, [*others, good])
    # 7 others: the third of them is up to 0.1 + 2 * 0.1 = 0.3
    assert (at_three.kind, at_three.reason) == (
        "go_on",
        "rung 3 epochs: val/loss 0.29 is 3rd of 8, the best third goes on",
    )
    at_three = asha.decide(bad, [*others, bad])
    assert at_three.kind == "cut"  # by its best so far, 0.55
    assert at_three.reason == ("rung 3 epochs: val/loss 0.55 is 6th of 8, the best third goes on, up to val/loss 0.3")
    assert asha.decide(trial(8, [9.0, 9.0]), others).kind == "go_on"  # no rung
    assert asha.decide(trial(8, [9.0]), [trial(8, [9.0])]).reason == "rung 1 epochs: the first there goes on"


def test_values_that_are_higher_the_better_are_compared_the_other_way() -> None:
    others = [trial(number, [value]) for number, value in enumerate([0.1, 0.2, 0.9])]
    for value, kind in ((0.95, "go_on"), (0.3, "cut")):
        own = trial(3, [value])
        verdict = scheduler("asha", direction="max").decide(own, [*others, own])
        assert verdict.kind == kind
        assert f"val/loss {value} is" in verdict.reason


def test_nan_is_the_worst() -> None:
    best, nan = trial(0, [1.0]), trial(1, [math.nan])
    verdict = scheduler("asha").decide(nan, [best, nan])
    assert (verdict.kind, verdict.reason.split(",")[0]) == (
        "cut",
        "rung 1 epochs: val/loss that is no number is 2nd of 2",
    )
    assert scheduler("asha").decide(best, [best, nan]).kind == "go_on"
    worse = trial(2, [math.nan, 3.0, 3.0])
    assert scheduler("asha").decide(worse, [trial(0, [math.nan] * 3), trial(1, [math.nan] * 3), worse]).kind == "go_on"


def test_asha_decides_as_ray_tune_does() -> None:
    from ray.tune.schedulers.async_hyperband import _Bracket

    for seed in range(30):
        random = Random(seed)
        eta, grace = random.choice([2, 3, 4]), random.choice([1, 2])
        theirs = _Bracket(min_t=grace, max_t=30, reduction_factor=eta, s=0)
        ours = scheduler({"kind": "asha", "grace_period": grace, "reduction_factor": eta}, max_epochs=30)
        trials = [trial(number, []) for number in range(12)]
        values = {t.number: sorted((random.random() for _ in range(30)), reverse=True) for t in trials}
        going = list(trials)
        while going:
            one = random.choice(going)
            one.records.append({"epoch": one.epochs + 1, "val/loss": values[one.number][one.epochs]})

            class Named:  # all that Tune's bracket reads of a trial
                trial_id = str(one.number)

            action = theirs.on_result(Named(), one.epochs, -one.records[-1]["val/loss"])
            verdict = ours.decide(one, trials)
            assert (action == "STOP") == (verdict.kind == "cut")
            if verdict.kind == "cut" or one.epochs == 29:
                going.remove(one)
                one.status = "cut"


# promotions


def test_three_of_nine_go_on_and_one_of_three() -> None:
    """Successive halving with n = 9, r = 1, R = 9, eta = 3 (Li et al. 2020, figure 1): 9, 3 and 1 trials."""
    trials = simulated("asha_promote", 9)
    assert Counter(t.epochs for t in trials) == {1: 6, 3: 2, 9: 1}
    assert [t.number for t in trials if t.status == "finished"] == [
        min(trials, key=lambda t: value_at(t, 3, "val/loss", "min") if t.epochs > 1 else 9.0).number
    ]
    cut = [t for t in trials if t.status == "cut"]
    assert len(cut) == 8
    assert all("the best third went on" in t.reason for t in cut)


def test_promotions_go_before_new_trials() -> None:
    """One worker, values that only get better: as get_job of algorithm 2 would say by hand."""
    values = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    seen: list[tuple[int, int]] = []

    def told(t: Trial) -> float:
        seen.append((t.number, t.epochs + 1))
        return values[t.number]

    simulated("asha_promote", 9, curve=told)
    # the third of three is at once promoted, then the sixth of six, then the ninth of nine, of three at rung 3 the best
    assert seen == [
        *[(0, 1), (1, 1), (2, 1), (2, 2), (2, 3)],
        *[(3, 1), (3, 2), (3, 3)],  # two of six at most: of four one, but 3 is better than 2, which has gone
        *[(4, 1), (4, 2), (4, 3), (4, 4), (4, 5), (4, 6), (4, 7), (4, 8), (4, 9)],
        *[(5, 1), (5, 2), (5, 3), (5, 4), (5, 5), (5, 6), (5, 7), (5, 8), (5, 9)],
        *[(6, 1), (6, 2), (6, 3), (6, 4), (6, 5), (6, 6), (6, 7), (6, 8), (6, 9)],
        *[(7, 1), (7, 2), (7, 3), (7, 4), (7, 5), (7, 6), (7, 7), (7, 8), (7, 9)],
        *[(8, 1), (8, 2), (8, 3), (8, 4), (8, 5), (8, 6), (8, 7), (8, 8), (8, 9)],
    ]


@pytest.mark.parametrize("slots", [1, 2, 5, 8])
@pytest.mark.parametrize("num_trials", [9, 27, 40])
def test_no_promotion_is_outside_the_best_third_of_its_moment(num_trials: int, slots: int) -> None:
    ledger = Ledger()
    promote = scheduler("asha_promote", 27)
    promoted: Counter[int] = Counter()

    class Watched(Scheduler):
        def decide(self, trial: Trial, trials: Sequence[Trial]) -> Any:
            verdict = promote.decide(trial, trials)
            if trial.epochs in (1, 3, 9) and verdict.kind == "go_on":
                self.check(trial, trial.epochs, trials)
            return verdict

        def resume(self, trials: Sequence[Trial], more: bool = True) -> Any:
            chosen = promote.resume(trials, more)
            if chosen is not None:
                self.check(trials[chosen.number], trials[chosen.number].epochs, trials, last=not more)
            return chosen

        def wants_new(self, trials: Sequence[Trial]) -> bool:
            return promote.wants_new(trials)

        def check(self, trial: Trial, rung: int, trials: Sequence[Trial], last: bool = False) -> None:
            there = sorted(min(r["val/loss"] for r in t.records[:rung]) for t in trials if t.epochs >= rung)
            num = max(len(there) // 3, int(last))
            assert min(r["val/loss"] for r in trial.records[:rung]) <= there[num - 1]
            promoted[rung] += 1

    trials = Simulation(ledger, Watched(), num_trials, 27, curve, slots=slots).run()
    at = {rung: sum(t.epochs >= rung for t in trials) for rung in (1, 3, 9, 27)}
    assert at[1] == num_trials
    assert [promoted[rung] for rung in (1, 3, 9)] == [at[3], at[9], at[27]]
    # at least as many as in successive halving, of which asynchrony adds some that only seemed good
    assert all(at[3 * rung] >= at[rung] // 3 for rung in (1, 3, 9))
    assert any(t.status == "finished" for t in trials)


def test_values_in_the_worst_order_train_no_more_than_successive_halving() -> None:
    """The best first: no promotion is regretted, so the counts are exactly those of the paper."""
    trials = simulated("asha_promote", 81, 81, curve=lambda t: float(t.number))
    assert [sum(t.epochs >= rung for t in trials) for rung in (1, 3, 9, 27, 81)] == [81, 27, 9, 3, 1]
    assert sum(t.epochs for t in trials) == 54 * 1 + 18 * 3 + 6 * 9 + 2 * 27 + 81  # resumed, not trained anew


def test_the_last_promotion_trains_one_to_the_end() -> None:
    trials = simulated("asha_promote", 4)
    assert Counter(t.epochs for t in trials) == {1: 3, 9: 1}
    best = next(t for t in trials if t.status == "finished")
    assert value_at(best, 1, "val/loss", "min") == min(t.records[0]["val/loss"] for t in trials)


# hyperband


def test_brackets_of_81_epochs() -> None:
    """Li et al. 2018, algorithm 1 with R = 81 and eta = 3."""
    race = Race("val/loss", "min", 81)
    band = hyperband(written_out("hyperband"), race)  # type: ignore[arg-type]
    assert bracket_sizes(81, 1, 3) == (81, 34, 15, 8, 5)
    assert [bracket.rungs for bracket in band.brackets] == [(1, 3, 9, 27), (3, 9, 27), (9, 27), (27,), ()]
    assert [Counter(band.deal)[i] for i in range(5)] == [81, 34, 15, 8, 5]
    first = Counter(band.deal[:29])  # a fifth of all: a fifth of each
    assert [first[i] for i in range(5)] == [pytest.approx(n / 143 * 29, abs=1) for n in (81, 34, 15, 8, 5)]


def test_each_bracket_halves_among_its_own() -> None:
    trials = simulated("hyperband", 143, 81, curve=lambda t: float(t.number), slots=3)
    band = scheduler("hyperband", 81)
    assert isinstance(band, Promoting)
    table = {0: [81, 27, 9, 3, 1], 1: [34, 11, 3, 1], 2: [15, 5, 1], 3: [8, 2], 4: [5]}
    for i, bracket in enumerate(band.brackets):
        members = [t for t in trials if band.deal[t.number] == i]
        assert [sum(t.epochs >= rung for t in members) for rung in (*bracket.rungs, 81)] == table[i]


def test_rungs_of_hyperband_end_at_epochs_that_are_no_power() -> None:
    band = scheduler("hyperband", 20)
    assert isinstance(band, Promoting)
    assert [bracket.rungs for bracket in band.brackets] == [(2, 7), (7,), ()]
    assert bracket_sizes(243, 1, 3)[0] == 243  # log(243) / log(3) is 4.999...
    assert bracket_sizes(20, 5, 2) == (4, 3, 3)[: len(bracket_sizes(20, 5, 2))]


# median


@pytest.mark.parametrize("seed", range(20))
def test_median_against_brute_force(seed: int) -> None:
    random = Random(seed)
    rule = scheduler({"kind": "median", "grace_period": 2, "min_trials": 2}, max_epochs=12)
    trials = []
    for number in range(9):
        length = random.randint(1, 10)
        status = random.choice(["running", "cut", "finished", "stopped_early", "failed", "paused"])
        trials.append(trial(number, [random.random() for _ in range(length)], status))
    trials.append(trial(9, [random.random()] * 12, "running", origin="repeat"))
    one = trial(10, [random.random() for _ in range(random.randint(1, 8))])
    s = one.epochs
    averages = []
    for other in trials[:-1]:
        values = [r["val/loss"] for r in other.records]
        if other.status in ("finished", "stopped_early"):
            values += [min(values)] * (s - len(values))
        if len(values) >= s and other.status != "failed":
            averages.append(mean(values[:s]))
    best = min(r["val/loss"] for r in one.records)
    expected = s >= 2 and len(averages) >= 2 and best > median(averages)
    verdict = rule.decide(one, [*trials, one])
    assert (verdict.kind == "cut") == expected
    if expected:
        report = f"epoch {s}: val/loss {best:.4g} against the median of {len(averages)} others' averages, "
        assert verdict.reason == f"{report}{median(averages):.4g}"


# all


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_what_stopped_by_itself_is_never_cut_and_still_stands(kind: SchedulerKind, slots: int) -> None:
    def ends(t: Trial) -> bool:
        return t.number % 2 == 0 and t.epochs >= 2 + t.number % 3

    trials = simulated(kind, 30, 27, slots, ends=ends)
    early = [t for t in trials if t.status == "stopped_early"]
    assert early
    assert all(ends(t) and t.reason == "own rule" for t in early)
    assert {t.status for t in trials} <= {"stopped_early", "finished", "cut"}
    assert not [t for t in trials if t.status == "cut" and ends(t)]


def test_one_that_stopped_early_stands_at_all_later_rungs() -> None:
    early = trial(0, [0.5, 0.1, 0.2], "stopped_early")
    failed = trial(1, [0.01] * 9, "failed")
    repeat = trial(2, [0.01] * 9, "finished", origin="repeat")
    own = trial(3, [0.4] * 9)
    verdict = scheduler("asha", 20).decide(own, [early, failed, repeat, own])
    assert verdict.reason == "rung 9 epochs: val/loss 0.4 is 2nd of 2, the best third goes on, up to val/loss 0.1"
    assert scheduler("asha", 20).decide(repeat, [own, repeat]).kind == "go_on"


@pytest.mark.parametrize("kind", KINDS)
def test_killed_after_any_event_it_decides_the_same(kind: SchedulerKind, tmp_path: Path) -> None:
    def search(path: Path, ledger: Ledger | None = None) -> list[Trial]:
        more: dict[str, Any] = {"ends": lambda t: t.number == 5 and t.epochs >= 4}
        more["fails"] = lambda t: t.number == 2 and t.epochs == 1
        ledger = ledger or Ledger(path)
        return Simulation(ledger, scheduler(kind, 6), 10, 6, curve, **more).run()

    undisturbed = outcome(search(tmp_path / "whole.jsonl"))
    whole = (tmp_path / "whole.jsonl").read_bytes()
    for at in range(whole.count(b"\n")):
        path = tmp_path / "killed.jsonl"
        assert outcome(search(path, interrupted(path, at, whole))) == undisturbed, f"killed after {at} events"
    assert outcome(Ledger(tmp_path / "whole.jsonl").trials) == undisturbed


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_search_goes_on_with_more_trials(kind: SchedulerKind, tmp_path: Path) -> None:
    simulated(kind, 8, path=tmp_path / "s.jsonl")
    before = outcome(Ledger(tmp_path / "s.jsonl").trials)
    trials = simulated(kind, 20, path=tmp_path / "s.jsonl")
    assert (len(trials), outcome(trials)[:8]) == (20, before)
    assert all(t.ended for t in trials)


def test_what_is_remembered_of_a_trial_is_what_it_says() -> None:
    """One race reads trials of the same numbers of different searches, and records taken back and replaced."""
    race = Race("val/loss", "min", 9)
    random = np.random.default_rng(0)
    lists: list[list[dict[str, float]]] = [[], []]
    for _ in range(300):
        records = lists[random.integers(2)]
        if records and random.random() < 0.3:
            records.pop()
        else:
            records.append({"val/loss": math.nan if random.random() < 0.1 else float(random.random())})
        one = Trial(0, {}, "search", records=records)
        for epochs in range(1, len(records) + 2):
            assert race.score(one, epochs) == value_at(one, epochs, "val/loss", "min")


def standing(race: Race, trials: Sequence[Trial], epochs: int) -> list[tuple[float, int]]:
    """By definition."""
    standing = [(race.score(trial, epochs), trial.number) for trial in trials if stands(trial, epochs)]
    return sorted((score, number) for score, number in standing if score is not None)


def test_standings_kept_sorted_are_those_made_anew() -> None:
    race = Race("val/loss", "min", 9)
    kept = Standings(race, (1, 3))
    random = Random(0)
    searches: list[list[Trial]] = [[], []]
    for _ in range(400):
        trials = searches[random.random() < 0.1]
        if len(trials) < 6 or random.random() < 0.05:
            trials.append(trial(len(trials), []))
        one = random.choice(trials)
        one.status = random.choice(["running", "running", "paused", "failed", "stopped_early", "cut"])
        if one.records and random.random() < 0.2:
            one.records[-1] = {"val/loss": random.random()}
        elif random.random() < 0.1:
            one.records = [{"val/loss": random.random()}]
        else:
            one.records.append({"val/loss": random.choice([0.5, math.nan, random.random()])})
        assert kept.of(trials) == {rung: standing(race, trials, rung) for rung in (1, 3)}


def test_ordinals() -> None:
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 102, 111)] == (
        ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "111th"]
    )


# settings

SPACE = {"regularization.dropout": {"uniform": [0.0, 0.5]}}


def job(scheduler: Any, space: dict[str, Any] = SPACE) -> Job:
    search = {"space": space, "scheduler": scheduler}
    return Job.from_dict({"data": {"train": "x"}, "network": {"kind": "cnn"}, "search": search})


def refusal(scheduler: Any, space: dict[str, Any] = SPACE) -> list[str]:
    with pytest.raises(JobError) as caught:
        job(scheduler, space)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("kind", [*KINDS, "pbt", "pb2"])
def test_a_kind_or_a_section_is_written_and_read_back(kind: str, tmp_path: Path) -> None:
    for written in (kind, {"kind": kind}):
        one = job(written)
        (tmp_path / "job.yaml").write_text(one.to_yaml())
        assert Job.load(tmp_path / "job.yaml") == one
    alone, section = job(kind).search, job({"kind": kind}).search
    assert alone is not None
    assert section is not None
    assert written_out(alone.scheduler) == section.scheduler


def test_sections_have_settings() -> None:
    search = job({"kind": "asha", "grace_period": 2}).search
    assert search is not None
    assert search.scheduler == AshaSettings(kind="asha", grace_period=2, reduction_factor=3)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ("ashaa", "must be one of 'asha', 'asha_promote', 'hyperband', 'median', 'pbt', 'pb2', 'none'"),
        ({"kind": "pbd"}, "search.scheduler.kind = 'pbd': must be one of 'asha', 'asha_promote', 'hyperband'"),
        ({"grace_period": 2}, "search.scheduler.kind: required key is missing: one of 'asha'"),
        ({"kind": "pbt", "intervall": 3}, "search.scheduler.intervall: unknown key. Did you mean 'interval'?"),
        ({"kind": "median", "grace_period": 0}, "search.scheduler.grace_period = 0: must be at least 1"),
        ({"kind": "asha", "reduction_factor": 1}, "search.scheduler.reduction_factor = 1: must be at least 2"),
    ],
)
def test_wrong_settings_are_named(scheduler: Any, message: str) -> None:
    [line] = refusal(scheduler)
    assert message in line


@pytest.mark.parametrize("kind", ["pbt", "pb2"])
def test_a_population_searches_what_may_change(kind: str) -> None:
    space = {"optimization.global_batch_size": {"randint": [2, 64]}, **SPACE}
    [line] = refusal(kind, space)
    assert "search.space.optimization.global_batch_size" in line
    assert "'optimization.global_batch_size' cannot change while a trial trains, as pbt and pb2 would have it" in line
    assert "search regularization.*, early_stopping.* or optimization.learning_rate, " in line
    assert job("asha", space)


def test_pb2_needs_a_number() -> None:
    [line] = refusal("pb2", {"optimization.schedule": {"choice": ["constant", "cosine"]}})
    assert "search.space: pb2 models numbers, and the space has only choices: use pbt" in line


@pytest.mark.parametrize(
    ("settings", "max_epochs", "message"),
    [
        ({"kind": "asha", "grace_period": 5}, 4, "grace_period = 5 must be at most optimization.max_epochs = 4"),
        ("pbt", 4, "interval = 4 must be less than optimization.max_epochs = 4"),
        ("median", 2, "search.scheduler = 'median': grace_period = 3 must be at most optimization.max_epochs = 2"),
    ],
)
def test_a_scheduler_that_would_never_act_is_refused(settings: Any, max_epochs: int, message: str) -> None:
    with pytest.raises(JobError) as caught:
        scheduler(settings, max_epochs)
    assert message in str(caught.value)
