from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raynn.checkpoint import (
    CheckpointSettings,
    epochs_to_keep,
    load_checkpoint,
    load_newest,
    restore_optimizer,
    save_checkpoint,
)
from raynn.optimization import OptimizationSettings, build_optimizer


def same(a: Any, b: Any) -> bool:
    """Bit-equal, of the same types and keys."""
    if isinstance(a, Tensor):
        return (
            a.dtype == b.dtype and a.shape == b.shape and a.numpy(force=True).tobytes() == b.numpy(force=True).tobytes()
        )
    if isinstance(a, dict):
        return (
            list(a) == list(b)
            and all(type(p) is type(q) for p, q in zip(a, b, strict=True))
            and all(same(a[k], b[k]) for k in a)
        )
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def test_a_round_trip_changes_no_bit(tmp_path: Path) -> None:
    state = {
        "model": {"w": torch.randn(3, 4), "nan": torch.tensor([float("nan"), -0.0, float("inf")])},
        "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "transposed": torch.arange(6).reshape(2, 3).T,
        "types": [torch.tensor(3), torch.tensor([True, False]), torch.zeros(0, 2), torch.ones(2, dtype=torch.float64)],
        "optimizer": {"state": {0: {"step": torch.tensor(7.0)}, 11: {"step": torch.tensor(1.0)}}, "1": 1},
        "history": [{"val/loss": 0.1 + 0.2, "epoch": 1}, {"val/loss": float("nan")}],
        "plain": [None, True, "text", -(2**60), 1e-300, (1, 2)],
        "empty": [{}, []],
    }
    bits = torch.randn(5).bfloat16()
    path = save_checkpoint(tmp_path, 3, {**state, "bf16": bits})
    loaded = load_checkpoint(path)
    assert path == tmp_path / "epoch-00003"
    loaded_bits = loaded.pop("bf16")
    assert loaded_bits.dtype == torch.bfloat16
    assert torch.equal(loaded_bits.view(torch.int16), bits.view(torch.int16))
    assert same(state, loaded)


def test_the_newest_keep_remain(tmp_path: Path) -> None:
    for epoch in (1, 2, 9, 10, 100):
        save_checkpoint(tmp_path, epoch, {"epoch": epoch}, CheckpointSettings(latest=3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-00009", "epoch-00010", "epoch-00100"]
    assert load_newest(tmp_path) == ({"epoch": 100}, [])


HISTORY = [{"val/loss": loss, "val/accuracy": 1 - loss} for loss in (0.5, 0.2, math.nan, 0.4, 0.2, 0.6, 0.7)]


@pytest.mark.parametrize(
    ("latest", "best", "monitor", "kept"),
    [
        (2, 0, "val/loss", {6, 7}),
        (1, 1, "val/loss", {2, 7}),  # of two equal ones the earlier
        (2, 3, "val/loss", {2, 4, 5, 6, 7}),
        (2, 3, "val/accuracy", {2, 4, 5, 6, 7}),  # the other way round
        (3, 1, "val/loss", {2, 5, 6, 7}),
        (1, 9, "val/loss", {1, 2, 4, 5, 6, 7}),  # NaN is never among the best
        (1, 2, "val/auroc", {7}),  # nothing is known of it
    ],
)
def test_the_best_are_kept_besides_the_latest(latest: int, best: int, monitor: str, kept: set[int]) -> None:
    assert epochs_to_keep(CheckpointSettings(latest=latest, best=best), range(1, 8), HISTORY, monitor) == kept


def test_a_run_keeps_its_best_and_latest(tmp_path: Path) -> None:
    """Epoch by epoch, what is no longer among the best goes; the state that was the best is there whole."""
    for epoch in range(1, 8):
        save_checkpoint(tmp_path, epoch, {"history": HISTORY[:epoch], "epoch": epoch})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-00002", "epoch-00006", "epoch-00007"]
    assert load_checkpoint(tmp_path / "epoch-00002")["epoch"] == 2


def test_an_epoch_can_be_written_again(tmp_path: Path) -> None:
    for value in (1, 2):
        save_checkpoint(tmp_path, 5, {"value": value})
    assert load_newest(tmp_path) == ({"value": 2}, [])


def test_without_checkpoints_there_is_none(tmp_path: Path) -> None:
    assert load_newest(tmp_path) == (None, [])
    assert load_newest(tmp_path / "absent") == (None, [])


def damage(path: Path, how: str) -> None:
    tensors = path / "tensors.safetensors"
    content = tensors.read_bytes()
    if how == "truncated":
        tensors.write_bytes(content[:-3])
    elif how == "one bit":
        tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "state":
        (path / "state.json").write_text((path / "state.json").read_text().replace("2", "3"))
    elif how == "checksums":
        (path / "checksums.json").write_text('{"tensors')
    else:
        (path / how).unlink()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("truncated", "tensors.safetensors differs from its checksum"),
        ("one bit", "tensors.safetensors differs from its checksum"),
        ("state", "state.json differs from its checksum"),
        ("checksums", "Unterminated string"),
        ("tensors.safetensors", "No such file"),
        ("state.json", "No such file"),
        ("checksums.json", "No such file"),
    ],
)
def test_a_damaged_newest_gives_way_to_the_one_before(tmp_path: Path, how: str, said: str) -> None:
    for epoch in (1, 2):
        save_checkpoint(tmp_path, epoch, {"epoch": epoch, "w": torch.full((4,), float(epoch))})
    damage(tmp_path / "epoch-00002", how)
    state, problems = load_newest(tmp_path)
    assert state is not None
    assert state["epoch"] == 1
    assert state["w"].tolist() == [1.0] * 4
    assert len(problems) == 1
    assert problems[0].startswith(f"{tmp_path / 'epoch-00002'}: ")
    assert said in problems[0]
    with pytest.raises(ValueError, match=said):
        load_checkpoint(tmp_path / "epoch-00002")


def test_no_whole_checkpoint_is_none_with_every_reason(tmp_path: Path) -> None:
    for epoch in (1, 2):
        damage(save_checkpoint(tmp_path, epoch, {"w": torch.ones(2)}), "truncated")
    state, problems = load_newest(tmp_path)
    assert state is None
    assert ["epoch-00002" in problems[0], "epoch-00001" in problems[1]] == [True, True]


def test_what_was_not_finished_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 1, {"epoch": 1})

    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, 2, {"epoch": 2})
    assert (tmp_path / "partial-00002").is_dir()
    assert load_newest(tmp_path) == ({"epoch": 1}, [])
    save_checkpoint(tmp_path, 2, {"epoch": 2})
    assert load_newest(tmp_path) == ({"epoch": 2}, [])
    assert not (tmp_path / "partial-00002").exists()


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="state/a/b"):
        save_checkpoint(tmp_path, 1, {"a/b": torch.ones(1), "a": {"b": torch.zeros(1)}})


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {"w": torch.ones(2)})
    assert sorted(file.name for file in path.iterdir()) == ["checksums.json", "state.json", "tensors.safetensors"]
    assert json.loads((path / "state.json").read_text())


def small_cnn() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 2), nn.Flatten(), nn.Linear(8, 1))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x_BCHW = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(step))
        loss = model(x_BCHW.contiguous(memory_format=torch.channels_last)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_training_continues_bit_equal_in_channels_last_layout(tmp_path: Path, kind: str) -> None:
    settings = OptimizationSettings(optimizer=kind, learning_rate=0.01)
    model = small_cnn()
    optimizer = build_optimizer(settings, model, 0.1)
    train(model, optimizer, range(4))
    save_checkpoint(tmp_path, 1, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    train(model, optimizer, range(4, 8))

    resumed = small_cnn()
    state, _ = load_newest(tmp_path)
    assert state is not None
    resumed.load_state_dict(state["model"])
    second = build_optimizer(settings, resumed, 0.1)
    restore_optimizer(second, state["optimizer"])
    kernel = next(resumed.parameters())
    for name, moment in second.state[kernel].items():
        if moment.dim() == 4:
            assert moment.stride() == kernel.stride(), name
    train(resumed, second, range(4, 8))
    assert same(model.state_dict(), resumed.state_dict())
    assert same(optimizer.state_dict()["state"], second.state_dict()["state"])
