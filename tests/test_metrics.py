"""The table of quantities."""

from __future__ import annotations

import pytest

from raynn.metrics import QUANTITIES, higher_is_better, quantities_of


@pytest.mark.parametrize(
    ("metric", "higher"),
    [("val/loss", False), ("val/accuracy", True), ("test/auroc", True), ("val/rmse", False), ("val/r2", True)],
)
def test_the_direction_of_a_metric(metric: str, higher: bool) -> None:
    assert higher_is_better(metric) is higher


def test_every_task_has_a_loss_and_every_quantity_a_task() -> None:
    assert quantities_of("classification") == ("loss", "accuracy", "f1_macro", "auroc")
    assert all(tasks for _, tasks in QUANTITIES.values())
    assert quantities_of("regression")[0] == quantities_of("image_generation")[0] == "loss"
