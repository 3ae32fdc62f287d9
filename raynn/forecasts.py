"""What a run that forecasts says of series: the steps after their end, those of the windows of a split or a source.

Shapes: N windows, H steps forecast, K targets.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from raynn.drivers import LocalDriver
from raynn.encoded import itself
from raynn.errors import DataError, RunError
from raynn.forecast import Horizons, after_the_end, free_name, named, reading_plan, within
from raynn.outputs import SPLITS, Trained, cannot_be_evaluated, outputs_of, shard_of
from raynn.preparation import Understood
from raynn.series import Steps, encode_steps, plan_of_data, plan_windows, read_steps, sorted_steps, split_steps
from raynn.shards import Shard
from raynn.sources import find_fragments
from raynn.tasks import understand_job


def forecasts_of_table(run: Trained, table: pa.Table) -> pa.Table:
    """The steps that come after rows in memory."""
    plan = plan_of_data(reading_plan(run.preprocessing, run.job.data, targets_may_be_empty=True))

    def place_of(row: int) -> tuple[str, int]:
        return "the data", row

    return continued(run, sorted_steps(plan.cleaned(table, place_of), plan.settings, place_of))


def continued(run: Trained, steps: Steps) -> pa.Table:
    """The steps that come after the end of every series: series, time, predictions.

    Raises:
        DataError: steps that a forecast needs are missing.
    """
    return _forecasts(run, after_the_end(steps, run.preprocessing, run.job.data))


def forecasts_of_split(run: Trained, name: str) -> Iterator[pa.Table]:
    """The forecasts of every window of a split, some at a time: series, origin, step, time, actual values,
    predictions.

    Raises:
        RunError: the job has no such split.
    """
    understood, settings = understand_job(run.job, run.folder), run.job.data
    steps, read = read_steps(understood, LocalDriver())
    plans = plan_windows(steps, split_steps(steps, understood, read), settings)
    windows = encode_steps(steps, plans, run.preprocessing, LocalDriver())
    if not windows.num_rows(SPLITS[name]):
        raise RunError(f"the job has no {name} set; name the data: raynn predict {run.folder} DATA")
    for horizons in within(steps, windows, SPLITS[name], run.preprocessing, settings):
        yield _forecasts(run, horizons)


def windows_of_source(run: Trained, data: str) -> Shard:
    """All windows of a source, with what came.

    Raises:
        DataError: bad rows, or no window.
    """
    plan = reading_plan(run.preprocessing, run.job.data, targets_may_be_empty=False)
    fragments = find_fragments(data, run.folder)
    steps, read = read_steps(Understood(plan, fragments, (0,) * len(fragments)), LocalDriver())
    if read.bad_rows:
        raise cannot_be_evaluated(data, read.bad_rows[0])
    plans = plan_windows(steps, np.full(len(steps.tick_S), SPLITS["test"], np.uint8), run.job.data)
    windows = encode_steps(steps, plans, run.preprocessing, LocalDriver())
    if not (count := windows.num_rows(SPLITS["test"])):
        needed = windows.inputs.window + windows.inputs.horizon
        raise DataError(f"{data} has no {needed} steps in a row to evaluate; give longer series")
    return shard_of(run, windows.pieces(SPLITS["test"], 0, count, itself), count)


def _forecasts(run: Trained, horizons: Horizons) -> pa.Table:
    """The steps of windows, with prediction columns."""
    y_NHK = outputs_of(run, shard_of(run, horizons.windows, horizons.count))
    table = horizons.steps
    for k, spec in enumerate(run.preprocessing.targets):
        name = free_name(named("prediction", spec.name, run.preprocessing), table.column_names)
        table = table.append_column(name, run.preprocessing.decode_target(y_NHK[:, :, k].reshape(-1), k))
    return table
