"""When to stop: pure rules over the history. The `early_stopping` section."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from raynn.errors import JobError, did_you_mean
from raynn.settings import Settings


class EarlyStoppingSettings(Settings):
    """Stop when `monitor` has not improved by more than `min_delta` for `patience` epochs; the best weights return."""

    monitor: str = "val/loss"
    rule: Annotated[Literal["patience", "none"], Field(description="none: all epochs; the best weights return")] = (
        "patience"
    )
    patience: Annotated[int, Field(ge=1)] = 5
    min_delta: Annotated[float, Field(ge=0.0)] = 0.0


@dataclass(frozen=True)
class Decision:
    """Whether to stop after the last epoch of a history, why, and the epoch (from 1) whose weights are the best."""

    stop: bool
    reason: str
    best_epoch: int


def decide(settings: EarlyStoppingSettings, history: Sequence[Mapping[str, float]], higher_is_better: bool) -> Decision:
    """The decision after the epochs in `history`, a function of it alone.

    The best epoch is the first with the best value. `min_delta` bears on stopping only: an epoch that is better by less
    still gives the best weights, but does not renew patience (Prechelt 1998 keeps the same distinction).

    Raises:
        JobError: the monitored metric is not among those recorded.
    """
    values = []
    for record in history:
        if settings.monitor not in record:
            known = sorted(key for key in record if "/" in key)
            raise JobError(
                f"early_stopping.monitor = {settings.monitor!r} is not recorded by this job."
                f"{did_you_mean(settings.monitor, known)} Recorded: {', '.join(known)}"
            )
        value = record[settings.monitor]
        values.append(-math.inf if math.isnan(value) else value if higher_is_better else -value)
    best_epoch = max(range(len(values)), key=lambda i: (values[i], -i)) + 1
    renewed, reference = 1, -math.inf
    for epoch, value in enumerate(values, start=1):
        if value > reference + settings.min_delta:
            renewed, reference = epoch, value
    waited = len(values) - renewed
    if settings.rule == "patience" and waited >= settings.patience:
        best = history[best_epoch - 1][settings.monitor]
        reason = (
            f"{settings.monitor} has not improved by more than {settings.min_delta:g} for {waited} epochs "
            f"(best {best:.6g} at epoch {best_epoch})"
        )
        return Decision(True, reason, best_epoch)
    return Decision(False, "", best_epoch)
