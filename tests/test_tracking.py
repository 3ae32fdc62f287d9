"""metrics.jsonl always; which mirrors are asked for, and what is said of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from followed import job

from raynn.errors import JobError
from raynn.folder import write_json
from raynn.tracking import (
    LOG,
    STATE,
    Mirroring,
    MlflowSettings,
    Tracker,
    TrackingSettings,
    WandbSettings,
    check_tracking,
    told,
    wandb_mode,
)


@pytest.fixture(autouse=True)
def _keyless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_records_are_lines_of_json_and_a_resumed_file_starts_with_the_epochs_kept(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, [])
    tracker.write({"epoch": 1, "val/loss": 0.5})
    tracker.write({"epoch": 2, "val/loss": math.nan})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"epoch": 1, "val/loss": 0.5}, {"epoch": 2, "val/loss": None}]
    Tracker(tmp_path, lines[:1])
    assert (tmp_path / "metrics.jsonl").read_text() == '{"epoch": 1, "val/loss": 0.5}\n'


def test_auto_is_online_with_a_key_wherever_that_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert wandb_mode(WandbSettings()) == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password k\n")
    assert wandb_mode(WandbSettings()) == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com")  # another server: that key is not for it
    assert wandb_mode(WandbSettings()) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert wandb_mode(WandbSettings()) == "online"


@pytest.mark.parametrize(
    ("mode", "variable", "wanted"),
    [
        ("auto", "offline", "offline"),
        ("auto", "disabled", "disabled"),
        ("online", "offline", "online"),
        ("online", "disabled", "disabled"),
        ("offline", "online", "offline"),
        ("disabled", "online", "disabled"),
    ],
)
def test_the_environment_says_what_auto_is_and_may_forbid(
    monkeypatch: pytest.MonkeyPatch, mode: str, variable: str, wanted: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k")
    monkeypatch.setenv("WANDB_MODE", variable)
    assert wandb_mode(WandbSettings.model_validate({"mode": mode})) == wanted


def test_online_without_a_key_is_refused_before_training() -> None:
    settings = TrackingSettings(wandb=WandbSettings(mode="online"))
    with pytest.raises(JobError, match=r"tracking.wandb.mode = 'online' needs a key: set WANDB_API_KEY .*`raynn sync`"):
        check_tracking(settings)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raynn.tracking.find_spec", lambda name: None)
    with pytest.raises(JobError, match=r"tracking.tensorboard needs the package tensorboard.*'raynn\[tensorboard\]'"):
        check_tracking(TrackingSettings(tensorboard=True))
    with pytest.raises(JobError, match=r"tracking.mlflow needs the package mlflow.*pip install 'raynn\[mlflow\]'"):
        check_tracking(TrackingSettings(mlflow=MlflowSettings(uri="sqlite:///x")))


def test_where_nothing_is_asked_for_there_is_no_process(tmp_path: Path) -> None:
    for settings in (TrackingSettings(), TrackingSettings(wandb=WandbSettings(mode="disabled"))):
        with Mirroring(tmp_path, settings) as mirroring:
            assert mirroring.process is None
        assert told(tmp_path, settings) == ([], False)
    assert list(tmp_path.iterdir()) == []


def test_what_is_said_at_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k")
    settings = job(tracking={"wandb": {}, "mlflow": {"uri": "http://x"}}).tracking
    write_json(tmp_path / STATE, {"url": "U", "runs": 8, "sent": 8, "view": "V"})
    assert told(tmp_path, settings) == (["W&B: U", "W&B: V"], False)
    write_json(tmp_path / STATE, {"url": "U", "runs": 8, "sent": 5, "problem": "CommError: away"})
    assert told(tmp_path, settings)[0][-1] == "W&B: 3 of 8 runs are not sent whole (CommError: away); all of it is kept"
    write_json(tmp_path / STATE, {"url": "U", "runs": 8, "sent": 8, "problem": "CommError: away"})
    assert told(tmp_path, settings) == (
        ["W&B: U", "W&B: all runs are sent, but not that the search has ended (CommError: away)"],
        True,
    )
    (tmp_path / LOG).write_text("MLflow: a: no answer\n")
    assert told(tmp_path, settings)[0][0] == "MLflow: a: no answer; all of it is kept"
    assert told(tmp_path, settings)[1]
