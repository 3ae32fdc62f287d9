"""A search as a sweep in W&B, with its dashboard already there.

The sweep is created with `method: custom`: its settings come from outside, from raynn's own search. The dashboard is a
saved view of the project, made by the package wandb-workspaces.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from raynn.feeds import read_job
from raynn.ledger import FILE
from raynn.metrics import QUANTITIES
from raynn.tracking import WandbSettings

PANELS_SHOWN = 500  # runs a panel draws; W&B's own default is 10


@dataclass(frozen=True)
class SweepState:
    """What has arrived of a search."""

    sweep: str | None = None
    url: str | None = None
    view: str | None = None
    view_problem: str | None = None
    sweep_ended: bool = False

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> SweepState:
        """As a state file says."""
        return cls(**{name: state[name] for name in cls.__dataclass_fields__ if name in state})

    def to_dict(self) -> dict[str, Any]:
        """For a state file."""
        return asdict(self)


@dataclass(frozen=True)
class SearchPlan:
    """What is said of a search before it has any trial."""

    name: str
    metric: str
    goal: str  # minimize or maximize
    space: Mapping[str, Mapping[str, Any]]  # W&B's distributions by dotted path

    @classmethod
    def of(cls, folder: Path) -> SearchPlan:
        """As the search's folder says: settings that its trials have, with their distributions where they are known."""
        search = read_job(folder)["search"]
        metric = str(search.get("metric", "val/loss"))
        mode = search.get("mode", "auto")
        mode = QUANTITIES[metric.partition("/")[2]][0] if mode == "auto" else mode
        space = search.get("space", {})
        given = space if isinstance(space, dict) else {}
        names = dict.fromkeys([*(name for name in given if "." in name), *_searched(folder)])
        return cls(
            folder.name,
            metric,
            "minimize" if mode == "min" else "maximize",
            {name: parameter(given.get(name)) for name in names},
        )


def _searched(folder: Path) -> list[str]:
    """Settings that trials have been given so far, in the order of their appearance."""
    names: dict[str, None] = {}
    for line in (folder / FILE).read_text().splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # a last line that is being written
            break
        if event["event"] == "trial":
            names |= dict.fromkeys(name for name in event["settings"] if name != "optimization.seed")
    return list(names)


def parameter(distribution: Any) -> dict[str, Any]:
    """A distribution of a job file in W&B's words; what W&B has no word for is some real number."""
    given = distribution if isinstance(distribution, dict) else {}
    match given:
        case {"uniform": [lo, hi]}:
            return {"distribution": "uniform", "min": lo, "max": hi}
        case {"loguniform": [lo, hi]}:
            return {"distribution": "log_uniform_values", "min": lo, "max": hi}
        case {"quniform": [lo, hi, q]}:
            return {"distribution": "q_uniform", "min": lo, "max": hi, "q": q}
        case {"randint": [lo, hi]}:
            return {"distribution": "int_uniform", "min": lo, "max": hi}
        case {"lograndint": [lo, hi]}:
            return {"distribution": "q_log_uniform_values", "min": lo, "max": hi, "q": 1}
        case {"normal": [mean, sd]}:
            return {"distribution": "normal", "mu": mean, "sigma": sd}
        case {"choice": [*values]}:
            return {"values": values}
    return {"distribution": "normal", "mu": 0.0, "sigma": 1.0}


def sweep_config(plan: SearchPlan, description: str) -> dict[str, Any]:
    """What W&B is told of the sweep."""
    return {
        "name": plan.name,
        "description": description,
        "method": "custom",
        "metric": {"name": plan.metric, "goal": plan.goal},
        "parameters": {name: dict(value) for name, value in plan.space.items()},
    }


def arrive(folder: Path, settings: WandbSettings, before: SweepState) -> SweepState:
    """Creates the sweep of a search and its view, each where it is not there yet.

    Raises:
        Exception: the server cannot be had.
    """
    import wandb

    plan = SearchPlan.of(folder)
    sweep, url = before.sweep, before.url
    entity = settings.entity or wandb.Api().default_entity
    if sweep is None:
        config = sweep_config(plan, "raynn chooses the settings; see report.html in the search's folder")
        sweep = wandb.sweep(config, entity=settings.entity, project=settings.project)
        site = wandb.util.app_url(wandb.Api().settings["base_url"])
        url = f"{site}/{entity}/{settings.project}/sweeps/{sweep}"
    elif before.sweep_ended:  # the search is extended
        _set_state(sweep, "RUNNING", str(entity), settings.project)
    if before.view is not None:
        return SweepState(sweep, url, before.view)
    try:
        view, problem = saved_view(plan, str(entity), settings.project), None
    except ImportError:
        problem = "the dashboard needs the package wandb-workspaces: pip install 'raynn[wandb-view]', then raynn sync"
        view = None
    except Exception as error:  # a sweep without its view is worth having
        view, problem = None, f"the dashboard could not be saved ({type(error).__name__}: {error})"
    return SweepState(sweep, url, view, problem)


def conclude(settings: WandbSettings, before: SweepState) -> SweepState:
    """Sets the sweep of a search that has ended to finished; W&B would show it as running for ever.

    Raises:
        Exception: the server cannot be had.
    """
    import wandb

    if not before.sweep_ended:
        assert before.sweep is not None
        entity = settings.entity or wandb.Api().default_entity
        _set_state(before.sweep, "FINISHED", str(entity), settings.project)
    return replace(before, sweep_ended=True)


def _set_state(sweep: str, state: Literal["RUNNING", "FINISHED"], entity: str, project: str) -> None:
    """What `wandb sweep --resume` and `--stop` do; a sweep that is in the state already is left alone."""
    import wandb
    from wandb.apis.public import sweeps

    api = wandb.Api()
    if sweeps._get_sweep_state(api, sweep, entity=entity, project=project).upper() != state:
        sweeps._set_sweep_state(api, sweep, state, entity=entity, project=project)


def saved_view(plan: SearchPlan, entity: str, project: str) -> str:
    """Saves the view; its address."""
    workspace = workspace_of(plan, entity, project)
    workspace.save()
    return str(workspace.url)


class _Whole(str):
    """The name of a setting as one key. wandb-workspaces takes a name with dots for a path into nested settings, and
    writes config:a.value.b, where the key a.b is config:a.b.value.
    """

    def split(self, *_: Any) -> list[str]:
        return [str(self)]


def workspace_of(plan: SearchPlan, entity: str, project: str) -> Any:
    """A view of the search: what is important and what is best, curves with the gap, a slice a setting."""
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    names = list(plan.space)
    is_log = {name: "log" in str(spec.get("distribution")) for name, spec in plan.space.items()}

    def flat(name: str) -> Any:
        setting = wr.Config("")
        object.__setattr__(setting, "name", _Whole(name))
        return setting

    columns = [wr.ParallelCoordinatesPlotColumn(metric=flat(name), log=is_log[name]) for name in names]
    columns.append(wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(plan.metric)))
    curves = [
        wr.LinePlot(title=plan.metric, x="epoch", y=[plan.metric], max_runs_to_show=PANELS_SHOWN),
        wr.LinePlot(
            title="training and validation loss",
            x="epoch",
            y=["train/loss", "val/loss"],
            max_runs_to_show=PANELS_SHOWN,
        ),
        wr.LinePlot(
            title="gap: validation - training loss",
            x="epoch",
            y=["val/loss", "train/loss"],
            custom_expressions=["${val/loss} - ${train/loss}"],
            max_runs_to_show=PANELS_SHOWN,
        ),
    ]
    regularizers_first = sorted(names, key=lambda name: not name.startswith("regularization."))
    slices = [
        wr.ScatterPlot(title=name, x=flat(name), y=wr.SummaryMetric(plan.metric), log_x=is_log[name])
        for name in regularizers_first
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"raynn: {plan.name}",
        sections=[
            ws.Section(
                name="What matters",
                panels=[
                    wr.ParallelCoordinatesPlot(title=plan.name, columns=columns),
                    wr.ParameterImportancePlot(with_respect_to=plan.metric),
                ],
                is_open=True,
            ),
            ws.Section(name="Learning curves and their gap", panels=curves, is_open=True),
            ws.Section(name="Slices", panels=slices, is_open=True),
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=PANELS_SHOWN),
        runset_settings=ws.RunsetSettings(filters=f"Group = '{plan.name}'"),
    )
