"""A search in W&B's words: the sweep's configuration, and the view that is its dashboard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from followed import SearchFolder

from raynn.sweeps import SearchPlan, parameter, sweep_config, workspace_of


@pytest.mark.parametrize(
    ("distribution", "wanted"),
    [
        ({"uniform": [0.0, 0.5]}, {"distribution": "uniform", "min": 0.0, "max": 0.5}),
        ({"loguniform": [1e-4, 0.1]}, {"distribution": "log_uniform_values", "min": 1e-4, "max": 0.1}),
        ({"quniform": [0, 1, 0.25]}, {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.25}),
        ({"randint": [2, 8]}, {"distribution": "int_uniform", "min": 2, "max": 8}),
        ({"lograndint": [2, 8]}, {"distribution": "q_log_uniform_values", "min": 2, "max": 8, "q": 1}),
        ({"normal": [0.5, 0.1]}, {"distribution": "normal", "mu": 0.5, "sigma": 0.1}),
        ({"choice": ["a", [1, 2]]}, {"values": ["a", [1, 2]]}),
        ("default", {"distribution": "normal", "mu": 0.0, "sigma": 1.0}),
    ],
)
def test_distributions(distribution: Any, wanted: dict[str, Any]) -> None:
    assert parameter(distribution) == wanted


def test_a_sweep_has_the_settings_of_the_space_and_those_that_trials_were_given(tmp_path: Path) -> None:
    search = SearchFolder(tmp_path / "roses", {})
    search.ledger.add({"regularization.weight_decay": 0.1, "optimization.seed": 3}, "search")
    config = sweep_config(SearchPlan.of(search.folder), "d")
    assert (config["method"], config["name"]) == ("custom", "roses")
    assert config["metric"] == {"name": "val/loss", "goal": "minimize"}
    assert set(config["parameters"]) == {
        "regularization.dropout",
        "optimization.learning_rate",
        "regularization.weight_decay",
    }


@pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")  # wandb-workspaces 0.4.13, on import
def test_the_view_shows_what_matters_curves_with_their_gap_and_a_slice_a_setting(tmp_path: Path) -> None:
    pytest.importorskip("wandb_workspaces")
    search = SearchFolder(tmp_path / "roses", {})
    workspace = workspace_of(SearchPlan.of(search.folder), "gardener", "garden")
    section = json.loads(workspace._to_model().model_dump_json(by_alias=True, exclude_none=True))["spec"]["section"]
    panels = [panel for part in section["panelBankConfig"]["sections"] for panel in part["panels"]]
    assert [panel["viewType"] for panel in panels] == [
        "Parallel Coordinates Plot",
        "Parameter Importance",
        *["Run History Line Plot"] * 3,
        *["Scatter Plot"] * 2,
    ]
    coordinates, importance, metric, both, gap, dropout, rate = (panel["config"] for panel in panels)
    assert [(column["accessor"], column.get("log")) for column in coordinates["columns"]] == [
        ("config:regularization.dropout.value", False),
        ("config:optimization.learning_rate.value", True),
        ("summary:val/loss", None),
    ]
    assert importance["targetKey"] == "val/loss"
    assert (metric["xAxis"], metric["metrics"]) == ("epoch", ["val/loss"])
    assert both["metrics"] == ["train/loss", "val/loss"]
    assert gap["expressions"] == ["${val/loss} - ${train/loss}"]
    assert (dropout["xAxis"], dropout["yAxis"]) == ("config:regularization.dropout.value", "summary:val/loss")
    assert rate["xAxisLogScale"]
    (group,) = section["runSets"][0]["filters"]["filters"]
    assert (group["key"]["name"], group["value"]) == ("group", "roses")
