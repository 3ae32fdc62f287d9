"""What the commands say of results, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def trials_line(result: Mapping[str, Any]) -> str:
    """How many trials ended how."""
    return ", ".join(f"{number} {status.replace('_', ' ')}" for status, number in result["trials"].items() if number)


def with_interval(estimate: Mapping[str, Any] | None) -> str:
    """A mean with its interval, where there is one."""
    if estimate is None:
        return "none"
    if estimate["low"] is None:
        return f"{estimate['mean']:.4g}"
    return f"{estimate['mean']:.4g} [{estimate['low']:.4g}, {estimate['high']:.4g}]"


def luck_lines(result: Mapping[str, Any]) -> list[str]:
    """The best trials over several seeds."""
    return [
        f"trial {row['number']}, {len(row['values'])} seeds: {result['metric']} {row['mean']:.4g} +- {row['sd']:.2g}"
        for row in result["repeats"]
    ]


def first_step(result: Mapping[str, Any]) -> str:
    """When the first step was; nothing of a run that was resumed after its last one."""
    seconds = result["seconds_to_first_step"]
    return "" if seconds is None else f"first step after {seconds:.1f} s, "


def refitted_lines(result: Mapping[str, Any]) -> list[str]:
    """Which of the metrics are whose, of a run that was refitted."""
    if "refit" not in result:
        return []
    return [
        f"refitted on train and validation for {result['refit']['steps']} steps: test/ is of model/, val/ of "
        "model-validated/"
    ]


def metrics_line(metrics: Mapping[str, float | None]) -> str:
    """Metrics, four digits of each."""
    return ", ".join(f"{key} {'none' if value is None else format(value, '.4g')}" for key, value in metrics.items())
