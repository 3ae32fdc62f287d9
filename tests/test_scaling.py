"""When another worker stops helping: the model against closed forms."""

from __future__ import annotations

import pytest

from raynn.errors import JobError
from raynn.scaling import LINKS, Compute, Link, Traffic, link_of, scaling_lines, steps, worthwhile

INSTANT = Link("instant", float("inf"), 0.0)
LINEAR = Compute(((1, 0.001), (64, 0.064)))  # a millisecond a row


def test_a_ring_sends_every_byte_twice_but_for_a_worker_s_own_part() -> None:
    link = Link("", 1e9, 0.0)
    assert [Traffic(8_000_000).seconds(n, link) for n in (1, 2, 4)] == pytest.approx([0.0, 0.008, 0.012])
    assert Traffic(8_000_000).seconds(10_000, link) == pytest.approx(0.016, rel=1e-3)


def test_every_sum_waits_for_each_of_its_rounds() -> None:
    link = Link("", float("inf"), 1e-5)
    assert Traffic(8, small_sums=3).seconds(5, link) == pytest.approx((1 + 3) * 2 * (5 - 1) * 1e-5)


def test_a_step_lies_on_lines_between_what_was_measured() -> None:
    compute = Compute(((4, 0.010), (16, 0.016), (64, 0.064)))
    assert [compute.seconds(rows) for rows in (4, 10, 16, 40, 64)] == pytest.approx([0.010, 0.013, 0.016, 0.040, 0.064])
    assert compute.seconds(1) == 0.010  # what a step costs beside its rows is not less
    assert compute.seconds(128) == pytest.approx(0.128)
    assert Compute(((16, 0.016),)).seconds(64) == pytest.approx(0.064)
    assert Compute(((4, 0.010), (16, 0.009))).seconds(32) == 0.010  # a clock that trembles


def test_without_communication_and_without_fixed_costs_n_workers_are_n_times_as_fast() -> None:
    for step in steps(LINEAR, Traffic(10**9), INSTANT, 64, 64):
        assert step.speedup == pytest.approx(step.workers)
        assert (step.share, step.weak_efficiency) == (0.0, 1.0)
        assert step.efficiency == pytest.approx(1.0)


def test_a_fixed_cost_bounds_the_speedup() -> None:
    compute = Compute(((1, 0.011), (64, 0.074)))  # 10 ms, and one a row
    assert [step.speedup for step in steps(compute, Traffic(0), INSTANT, 64, 64)][-1] == pytest.approx(74 / 11)


def test_the_step_of_several_workers() -> None:
    link = Link("", 1e9, 1e-4)
    two = steps(LINEAR, Traffic(4_000_000, small_sums=1), link, 64, 2)[1]
    communication = 4e6 / 1e9 + 2 * 2 * 1e-4
    assert two.seconds == pytest.approx(0.032 + communication)
    assert two.share == pytest.approx(communication / (0.032 + communication))
    assert two.speedup == pytest.approx(0.064 / (0.032 + communication))
    assert two.efficiency == pytest.approx(two.speedup / 2)
    assert two.weak_efficiency == pytest.approx(0.064 / (0.064 + communication))


def test_another_worker_stops_helping_where_a_step_no_longer_gets_a_quarter_faster() -> None:
    # 64 ms of rows; a message of l s in each of 2 (n - 1) rounds: t(n) = 64 / n + 2 (n - 1) l
    table = steps(LINEAR, Traffic(0), Link("", float("inf"), 1e-3), 64, 64)
    assert [step.seconds for step in table[:4]] == pytest.approx([0.064, 0.034, 0.022, 0.022])
    assert worthwhile(table) == 4
    assert worthwhile(steps(LINEAR, Traffic(0), INSTANT, 64, 64)) == 64
    assert worthwhile(steps(LINEAR, Traffic(10**9), LINKS["1 GbE"], 64, 64)) == 1


def test_a_slower_link_never_helps_more() -> None:
    found = [worthwhile(steps(LINEAR, Traffic(4_000_000, 2), link, 64, 64)) for link in LINKS.values()]
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_links_by_name() -> None:
    assert link_of("10 gbe") is LINKS["10 GbE"]
    assert link_of("25 GbE").bytes_per_s == pytest.approx(2.5 * LINKS["10 GbE"].bytes_per_s)
    assert link_of("25GbE").latency_s == LINKS["10 GbE"].latency_s
    for name in ("0 GbE", "fast", "GbE"):
        with pytest.raises(JobError, match=f"--link '{name}' is none of 1 GbE, .* is named by its rate, as 25 GbE"):
            link_of(name)


def test_the_lines_say_where_it_ends_for_each_link() -> None:
    lines = scaling_lines(LINEAR, Traffic(4_000_000), LINKS["10 GbE"], 64, 8)
    assert [line.split()[0] for line in lines[1:5]] == ["1", "2", "4", "8"]
    assert lines[-1].endswith(
        "8 over 100 GbE (as many as the batch allows), 8 over NVLink (as many as the batch allows)"
    )
