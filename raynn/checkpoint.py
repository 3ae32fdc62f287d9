"""Checkpoints: whole or not at all, checked by checksum, without pickle.

A checkpoint is a folder `epoch-00007` with `tensors.safetensors`, `state.json` (everything that is not a tensor) and
`checksums.json`, written under another name, flushed to disk, and renamed when complete.

The newest are kept to resume from, where one may be damaged, and the best by the metric that is watched. The best
weights of all are part of every checkpoint, so no weights are lost with `best: 0`; what is kept is the whole state, to
compare or to go on from.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from raynn.metrics import higher_is_better
from raynn.settings import Settings
from raynn.sharding import cut

PREFIX = "epoch-"
_TENSOR = "__tensor__"


class CheckpointSettings(Settings):
    """The `checkpoints` section: which of a run's checkpoints are kept, one an epoch. It never changes the result."""

    latest: Annotated[int, Field(ge=1, description="of the last epochs; 2 outlast one that is damaged")] = 2
    best: Annotated[int, Field(ge=0, description="of the best epochs by early_stopping.monitor, besides")] = 1


_DEFAULT = CheckpointSettings()


def epochs_to_keep(
    settings: CheckpointSettings, epochs: Collection[int], history: Sequence[Mapping[str, float]], monitor: str
) -> set[int]:
    """Which of the epochs (from 1) whose checkpoints are there keep theirs; of equal values the earlier is better.
    Where nothing is known of the metric, as in a refit, the latest do.
    """
    sign = -1.0 if higher_is_better(monitor) else 1.0
    values = {epoch: sign * history[epoch - 1].get(monitor, math.nan) for epoch in epochs if epoch <= len(history)}
    known = sorted((value, epoch) for epoch, value in values.items() if not math.isnan(value))
    return {*sorted(epochs)[-settings.latest :], *(epoch for _, epoch in known[: settings.best])}


def _flattened(tree: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`tree` as JSON, its tensors moved into `tensors` under their path."""
    if isinstance(tree, Tensor):
        assert path not in tensors, f"two tensors are called {path}"
        tensors[path] = tree.detach().cpu().contiguous()
        return {_TENSOR: path}
    if isinstance(tree, dict):
        # keys keep their type (an optimizer's are integers): pairs, not an object
        return {"pairs": [[key, _flattened(value, f"{path}/{key}", tensors)] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return [_flattened(value, f"{path}/{i}", tensors) for i, value in enumerate(tree)]
    return tree


def _rebuilt(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `_flattened`; tuples come back as lists."""
    if isinstance(tree, dict):
        if _TENSOR in tree:
            return tensors[tree[_TENSOR]]
        return {key: _rebuilt(value, tensors) for key, value in tree["pairs"]}
    if isinstance(tree, list):
        return [_rebuilt(value, tensors) for value in tree]
    return tree


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a .safetensors file.

    Raises:
        OSError: it cannot be written; the library has an error of its own for that, too.
    """
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def save_checkpoint(
    folder: Path,
    epoch: int,
    state: dict[str, Any],
    settings: CheckpointSettings = _DEFAULT,
    monitor: str = "val/loss",
) -> Path:
    """Writes `folder/epoch-<epoch>`, tensors of any device and layout, and removes what need not be kept.

    Args:
        folder: `checkpoints` of a run.
        epoch: from 1.
        state: of the training; its `history` says how good the epochs were.
        settings: which are kept.
        monitor: the metric by which the best are.
    """
    tensors: dict[str, Tensor] = {}
    tree = _flattened(state, "state", tensors)
    target = folder / f"{PREFIX}{epoch:05d}"
    partial = folder / f"partial-{epoch:05d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write(partial, tensors, tree)
    except OSError:  # a full disk, say: the room that this one takes is needed
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    there = {int(path.name.removeprefix(PREFIX)): path for path in folder.glob(f"{PREFIX}*")}
    kept = epochs_to_keep(settings, there, state.get("history", ()), monitor)
    for old in set(there) - kept:
        shutil.rmtree(there[old], ignore_errors=True)
    return target


def _write(partial: Path, tensors: dict[str, Tensor], tree: Any) -> None:
    save_tensors(tensors, partial / "tensors.safetensors")
    (partial / "state.json").write_text(json.dumps(tree))
    sums = {name: _sha256(partial / name) for name in ("tensors.safetensors", "state.json")}
    (partial / "checksums.json").write_text(json.dumps(sums))
    for path in [*partial.iterdir(), partial]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state in one checkpoint folder, tensors on the CPU.

    Raises:
        ValueError: a file is missing or differs from its checksum.
    """
    try:
        sums = json.loads((path / "checksums.json").read_text())
        damaged = [name for name, expected in sums.items() if _sha256(path / name) != expected]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if damaged:
        raise ValueError(f"{path}: {', '.join(damaged)} differs from its checksum")
    tree = json.loads((path / "state.json").read_text())
    state: dict[str, Any] = _rebuilt(tree, load_file(path / "tensors.safetensors"))
    return state


def load_newest(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest whole checkpoint of a run (None: there is none), and what was wrong with newer ones."""
    problems: list[str] = []
    for path in sorted(folder.glob(f"{PREFIX}*"), reverse=True):
        try:
            return load_checkpoint(path), problems
        except ValueError as error:
            problems.append(str(error))
    return None, problems


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads an optimizer's moments, each in its parameter's memory layout, which fused optimizers rely on.

    Rates and decays stay those that the optimizer was built with: the job may have changed them since. Of moments of a
    weight that is cut each worker takes its part.
    """
    now = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(_in_parts(optimizer, state))
    for group, options in zip(optimizer.param_groups, now, strict=True):
        group.update(options)
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(value)


def _in_parts(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The state of an optimizer, or of one made of several, each moment cut as its parameter is."""
    if "parts" in state:
        parts = zip(optimizer.parts, state["parts"], strict=True)  # type: ignore[attr-defined]
        return state | {"parts": [_in_parts(part, each) for part, each in parts]}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        place: {
            name: cut(value, parameters[place])
            if isinstance(value, Tensor) and value.shape == parameters[place].shape
            else value
            for name, value in of_parameter.items()
        }
        for place, of_parameter in state["state"].items()
    }
    return state | {"state": moments}
