"""The process that mirrors a folder: what it tells a mirror, in which order, and what it tries again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from followed import SearchFolder

import raynn.sync
from raynn.feeds import Media, Tracked
from raynn.sync import Follower


class Notebook:
    """A mirror that writes down what it is told, and is away so many times before it takes the end."""

    name = "notebook"

    def __init__(self, away: int) -> None:
        self.away, self.told, self.problems = away, list[str](), list[str]()

    def update(self, run: Tracked, media: Callable[[], Media]) -> None:
        """A run."""
        self.told.append(f"{run.name} {run.state}")

    def conclude(self) -> None:
        """The end."""
        if self.away:
            self.away -= 1
            raise ConnectionError("away")
        self.told.append("the end")

    def problem(self, reason: str) -> None:
        """What went wrong."""
        self.problems.append(reason)


@pytest.fixture
def search(tmp_path: Path) -> SearchFolder:
    search = SearchFolder(tmp_path / "roses", {})
    for dropout in (0.1, 0.2):
        search.train(search.begin(dropout), 1, 2, "cut")
    return search


@pytest.fixture
def over() -> threading.Event:
    stop = threading.Event()
    stop.set()
    return stop


def test_the_end_is_told_last_and_once(search: SearchFolder, over: threading.Event) -> None:
    first, second = Notebook(0), Notebook(0)
    assert Follower(search.folder, [first, second], 60.0).run(over)
    for mirror in (first, second):
        assert sorted(mirror.told[:-1]) == ["roses-0000 ended", "roses-0001 ended"]
        assert mirror.told[-1] == "the end"


def test_an_end_that_is_not_taken_is_told_again_until_patience_is_over(
    search: SearchFolder, over: threading.Event, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(raynn.sync, "RETRY_S", 0.0)
    patient = Notebook(2)
    assert Follower(search.folder, [patient], 60.0).run(over)
    assert (patient.told[-1], patient.problems) == ("the end", ["ConnectionError: away"] * 2)
    assert "notebook: roses: ConnectionError: away" in capsys.readouterr().out
    monkeypatch.setattr(raynn.sync, "RETRY_S", 600.0)
    assert not Follower(search.folder, [Notebook(1)], 0.2).run(over)
