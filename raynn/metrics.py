"""What a run measures: every quantity, which way is better, and the tasks that have it."""

from __future__ import annotations

from typing import Literal

from raynn.problems import hinted

Task = Literal["classification", "regression", "forecasting", "language_modeling", "image_generation"]

# Every quantity a run measures: which way is better, and the tasks that have it.
QUANTITIES: dict[str, tuple[Literal["min", "max"], tuple[Task, ...]]] = {
    "loss": ("min", ("classification", "regression", "forecasting", "language_modeling", "image_generation")),
    "accuracy": ("max", ("classification",)),
    "f1_macro": ("max", ("classification",)),
    "auroc": ("max", ("classification",)),
    "rmse": ("min", ("regression", "forecasting")),
    "mae": ("min", ("regression", "forecasting")),
    "r2": ("max", ("regression", "forecasting")),
    "mse_standardized": ("min", ("regression", "forecasting")),
    "mae_standardized": ("min", ("regression", "forecasting")),
    "perplexity": ("min", ("language_modeling",)),
    "bits_per_character": ("min", ("language_modeling",)),
    "bits_per_dim": ("min", ("image_generation",)),
}


def metric_problem(metric: str, task: Task | None) -> str | None:
    """Why `metric` cannot be watched while `task` trains (None: any task), or None where it can."""
    split, slash, quantity = metric.partition("/")
    known = [name for name, (_, tasks) in QUANTITIES.items() if task is None or task in tasks]
    if not slash:
        valid = [f"val/{name}" for name in known]
        return hinted("must be <split>/<quantity>, such as 'val/loss'", f"val/{metric}", valid)
    if split == "test":
        return f"the test split is looked at once, at the end: use 'val/{quantity}'"
    if split not in ("train", "val"):
        return hinted(f"split {split!r} must be 'train' or 'val'", split, ["train", "val"])
    if quantity in known:
        return None
    of_task = f" of task {task!r}" if task and quantity in QUANTITIES else ""
    return hinted(f"{quantity!r} is not a quantity{of_task}: must be one of {', '.join(known)}", quantity, known)


def quantities_of(task: str) -> tuple[str, ...]:
    """The quantities of a task, in the order in which they are shown."""
    return tuple(name for name, (_, tasks) in QUANTITIES.items() if task in tasks)


def higher_is_better(metric: str) -> bool:
    """Whether more is better, for a key `<split>/<quantity>`."""
    return QUANTITIES[metric.rpartition("/")[2]][0] == "max"
