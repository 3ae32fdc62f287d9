"""What the workers of one run do together: sums, agreements, gathers. With one worker each is the identity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


def gpu_names() -> list[str]:
    """The GPUs that this process sees."""
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


@dataclass(frozen=True)
class Workers:
    """This worker's place among those of the run, and the device it computes on."""

    rank: int = 0
    count: int = 1
    device: torch.device = torch.device("cpu")

    def sum(self, x: Tensor) -> Tensor:
        """The sum of `x` over workers, any shape, the same on every worker. `x` is overwritten."""
        if self.count > 1:
            dist.all_reduce(x)
        return x

    def any(self, fact: bool) -> bool:
        """Whether `fact` holds on any worker, the same answer on every worker."""
        if self.count == 1:
            return fact
        return bool(self.sum(torch.tensor(float(fact), device=self.device)) > 0)

    def decided(self, number: float) -> float:
        """Rank 0's number, on every worker."""
        if self.count == 1:
            return number
        box = torch.tensor(number, dtype=torch.float64, device=self.device)
        dist.broadcast(box, src=0)
        return float(box)

    def max(self, number: float) -> float:
        """The largest of the workers' numbers."""
        if self.count == 1:
            return number
        box = torch.tensor(number, dtype=torch.float64, device=self.device)
        dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return float(box)

    def gathered(self, x_N: Tensor) -> Tensor:
        """The rows of all workers in rank order; their numbers of rows may differ."""
        if self.count == 1:
            return x_N
        lengths = torch.zeros(self.count, dtype=torch.int64, device=self.device)
        lengths[self.rank] = len(x_N)
        self.sum(lengths)
        padded = x_N.new_zeros((int(lengths.max()), *x_N.shape[1:]))
        padded[: len(x_N)] = x_N
        parts = [torch.empty_like(padded) for _ in range(self.count)]
        dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths.tolist(), strict=True)])

    def first_text(self, text: str) -> str:
        """The first text in rank order that is not empty, the same on every worker; empty where all are."""
        if self.count == 1:
            return text
        written = torch.frombuffer(bytearray(text.encode() + b"\0"), dtype=torch.uint8).to(self.device)
        texts = bytes(self.gathered(written).tolist()).decode().split("\0")
        return next(filter(None, texts), "")
