"""What a search leaves: a table, a job file that trains the same, and whether the winner was luck."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from raynn.job import Job
from raynn.ledger import Trial
from raynn.outcome import best_epoch, best_job_text, counts, repeated, trials_table, winner

DROPOUT = "regularization.dropout"


def trial(number: int, *values: float, status: str = "finished", **more: object) -> Trial:
    records = [{"epoch": i + 1, "val/loss": value, "train/loss": 1.0, "seconds": 0.5} for i, value in enumerate(values)]
    origin = "repeat" if "notes" in more else "search"
    return Trial(number, {DROPOUT: number / 10}, origin, records=records, status=status, **more)  # type: ignore[arg-type]


def test_one_row_a_trial() -> None:
    trials = [trial(0, 3.0, 1.0, 2.0), trial(1, 4.0, status="cut", reason="behind"), trial(2, status="failed")]
    table = trials_table(trials, "val/loss", "min", {n: f"trials/{n:04d}" for n in range(3)})
    first, second, third = table.to_pylist()
    assert first["best_epoch"] == 2
    assert first["value"] == first["val/loss"] == 1.0
    assert first["seconds"] == 1.5
    assert first["run"] == "trials/0000"
    assert first[DROPOUT] == 0.0
    assert (second["status"], second["reason"], second["epochs"]) == ("cut", "behind", 1)
    assert third["value"] is third["best_epoch"] is third["val/loss"] is None
    assert counts(trials) == {"finished": 1, "stopped_early": 0, "cut": 1, "failed": 1}


def test_settings_of_several_types_are_written_as_text() -> None:
    trials = [trial(0, 1.0), trial(1, 1.0)]
    trials[0].settings, trials[1].settings = {"network.hidden": [4]}, {"network.hidden": "deep"}
    table = trials_table(trials, "val/loss", "min", {0: "a", 1: "b"})
    assert table["network.hidden"].to_pylist() == ["[4]", "deep"]


def test_the_best_epoch_is_the_first_of_the_best() -> None:
    assert best_epoch(trial(0, 3.0, 1.0, 1.0), "val/loss", "min") == 2
    assert best_epoch(trial(0, 3.0, 1.0, 1.0), "val/loss", "max") == 1
    assert best_epoch(trial(0, math.nan, 2.0), "val/loss", "min") == 2
    assert best_epoch(trial(0), "val/loss", "min") is None


def test_the_winner_is_the_best_over_seeds_where_the_best_were_repeated() -> None:
    """Trial 0 was lucky: its repetitions are worse than trial 1's."""
    trials = [trial(0, 1.0), trial(1, 1.1), trial(2, 5.0)]
    trials += [trial(3, 2.0, notes={"of": 0}), trial(4, 3.0, notes={"of": 0})]
    trials += [trial(5, 1.2, notes={"of": 1}), trial(6, 1.3, notes={"of": 1})]
    ranked = trials[:3]
    rows = repeated(trials, ranked, "val/loss", "min")
    assert [row["number"] for row in rows] == [1, 0]
    assert rows[0]["values"] == [1.1, 1.2, 1.3]
    assert rows[0]["mean"] == pytest.approx(1.2)
    assert rows[0]["sd"] == pytest.approx(0.1)
    assert winner(ranked, rows) is trials[1]
    assert winner(ranked, []) is trials[0]
    assert winner([], []) is None


def test_the_job_file_holds_what_differs_from_the_defaults(tmp_path: Path) -> None:
    """Those of the section, and those that the kind of network brings."""
    job = Job.from_dict(
        {
            "data": {"train": "rows.parquet", "target": "y"},
            "network": {"kind": "rnn", "hidden": 32},
            "regularization": {"dropout": 0.1, "weight_decay": 0.0},
            "optimization": {"max_epochs": 7},
            "search": {"space": {DROPOUT: {"uniform": [0.0, 0.5]}}},
        }
    )
    text = best_job_text(job, "Found so.\nIn two lines.")
    assert text.startswith("# Found so.\n# In two lines.\n")
    assert yaml.safe_load(text) == {
        "data": {"train": "rows.parquet", "target": "y"},
        "network": {"kind": "rnn", "hidden": 32},
        "regularization": {"weight_decay": 0.0},
        "optimization": {"max_epochs": 7},
    }
    (tmp_path / "best.yaml").write_text(text)
    assert Job.load(tmp_path / "best.yaml").fingerprint() == job.fingerprint()
