"""When another worker stops helping: a step's computation against its communication, told before it is paid for.

n workers share a global batch of B rows. Each computes B / n of them, then all add up their gradients, G bytes, in a
ring (Patarasu & Yuan 2009): every worker sends and receives 2 (n - 1) messages of G / n bytes, so over a link of
bandwidth w and latency l

    t(n) = c(B / n) + 2 (n - 1) / n * G / w + (1 + k) * 2 (n - 1) * l

where c is the time of a step of so many rows on one worker, measured, and k the number of small sums besides (two a
layer of batch normalization). Nothing is taken to be hidden behind the computation: on CPUs it is not, as who sends
needs a core; on GPUs torch sends what is ready while it computes the rest, and the estimate is the worse case.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from raynn.errors import JobError

WORTHWHILE = 1.25  # how many times as fast a step must become for twice the workers to be worth it
_USABLE_SHARE = 0.94  # of Ethernet's rate: what the headers of its packets, of IP and of TCP leave


@dataclass(frozen=True)
class Link:
    """What joins two workers: bytes a second one way, and seconds until a message of no bytes is there."""

    name: str
    bytes_per_s: float
    latency_s: float


def ethernet(gigabits: float, latency_s: float) -> Link:
    """A network of so many gigabits a second."""
    return Link(f"{gigabits:g} GbE", gigabits * 1e9 / 8 * _USABLE_SHARE, latency_s)


# Latencies of a message between two processes, software included: usual values, not measured here
LINKS = {
    link.name: link
    for link in (
        ethernet(1, 100e-6),
        ethernet(10, 50e-6),
        ethernet(100, 20e-6),
        Link("NVLink", 370e9, 10e-6),  # of an H100: 450 GB/s a direction, of which all-reduces reach about 370
    )
}
DEFAULT_LINK = "10 GbE"


def link_of(name: str) -> Link:
    """A link by its name: one of LINKS, or Ethernet of any rate, `25 GbE`.

    Raises:
        JobError: no such link.
    """
    known = {other.casefold(): link for other, link in LINKS.items()}
    if (found := known.get(name.casefold())) is not None:
        return found
    if (rate := re.fullmatch(r"(\d+(?:\.\d+)?) ?gbe", name.casefold())) and float(rate[1]) > 0:
        gigabits = float(rate[1])
        return ethernet(gigabits, LINKS["10 GbE" if gigabits < 40 else "100 GbE"].latency_s)
    raise JobError(f"--link {name!r} is none of {', '.join(LINKS)}; another Ethernet is named by its rate, as 25 GbE")


@dataclass(frozen=True)
class Compute:
    """Seconds of a step on one worker by its number of rows: straight lines between what was measured."""

    points: tuple[tuple[int, float], ...]  # rows and seconds, ascending

    def seconds(self, rows: float) -> float:
        """Of so many rows. Below the fewest measured a step takes no less; above the most, the last line goes on."""
        sizes = [size for size, _ in self.points]
        if len(sizes) == 1:
            return self.points[0][1] * max(1.0, rows / sizes[0])
        right = min(max(1, bisect_left(sizes, rows)), len(sizes) - 1)
        (r0, s0), (r1, s1) = self.points[right - 1 : right + 1]
        return max(s0, s0 + (s1 - s0) * (rows - r0) / (r1 - r0))


@dataclass(frozen=True)
class Traffic:
    """What the workers of a run add up in each step: their gradients, and small sums besides."""

    gradient_bytes: int
    small_sums: float = 0.0

    def seconds(self, workers: int, link: Link) -> float:
        """A step's, over a link."""
        if workers == 1:
            return 0.0
        rounds = 2 * (workers - 1)
        return (
            rounds / workers * self.gradient_bytes / link.bytes_per_s + (1 + self.small_sums) * rounds * link.latency_s
        )


@dataclass(frozen=True)
class Step:
    """A step of a group of workers."""

    workers: int
    compute_s: float
    communication_s: float
    alone_s: float  # the same global batch on one worker
    weak_s: float  # a step of a global batch as many times as large as there are workers

    @property
    def seconds(self) -> float:
        """In all."""
        return self.compute_s + self.communication_s

    @property
    def share(self) -> float:
        """Of communication."""
        return self.communication_s / self.seconds

    @property
    def speedup(self) -> float:
        """How many times as fast as one worker, over the same batches."""
        return self.alone_s / self.seconds

    @property
    def efficiency(self) -> float:
        """The speed-up a worker."""
        return self.speedup / self.workers

    @property
    def weak_efficiency(self) -> float:
        """Rows a second and worker beside those of one worker, where the global batch grows with the workers."""
        return self.alone_s / self.weak_s


def steps(compute: Compute, traffic: Traffic, link: Link, batch_rows: int, most: int) -> list[Step]:
    """Of 1, 2, 4, 8, ... workers, up to `most`."""
    found, alone_s, workers = [], compute.seconds(batch_rows), 1
    while workers <= most:
        sent_s = traffic.seconds(workers, link)
        compute_s = compute.seconds(batch_rows / workers)
        found.append(Step(workers, compute_s, sent_s, alone_s, alone_s + sent_s))
        workers *= 2
    return found


def worthwhile(of_workers: Sequence[Step]) -> int:
    """The number of workers whose double is no longer worth it."""
    for fewer, more in pairwise(of_workers):
        if fewer.seconds < WORTHWHILE * more.seconds:
            return fewer.workers
    return of_workers[-1].workers


def scaling_lines(compute: Compute, traffic: Traffic, link: Link, batch_rows: int, most: int) -> list[str]:
    """The table of a link, and in words where another worker stops helping over each."""
    table = steps(compute, traffic, link, batch_rows, most)
    lines = [f"  workers  step, ms  communication  speed-up  efficiency  (over {link.name}; the same global batch)"]
    lines += [
        f"  {step.workers:>7}  {1000 * step.seconds:>8.3g}  {step.share:>13.0%}  {step.speedup:>8.2f}  "
        f"{step.efficiency:>10.0%}"
        for step in table
    ]
    found = []
    for other in dict.fromkeys([*LINKS.values(), link]):
        enough = worthwhile(steps(compute, traffic, other, batch_rows, most))
        limit = " (as many as the batch allows)" if enough * 2 > most else ""
        found.append(f"{enough} over {other.name}{limit}")
    lines.append(f"  more workers than this do not make a step {WORTHWHILE:g} times as fast: {', '.join(found)}")
    return lines
