"""What mirrors show of a model at its end: what its report shows, as images, numbers and texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raynn.errors import RaynnError
from raynn.feeds import Media
from raynn.findings import spread
from raynn.inspection import inspect

MAX_BYTES = 2**30  # of the sources that are read once more
NUM_WINDOWS = 3  # forecasts shown of each target


def media_of(folder: Path) -> Media:
    """Of a run that has ended; empty where nothing can be seen, for instance because the data are gone."""
    try:
        found = inspect(folder, max_bytes=MAX_BYTES)
    except RaynnError:
        return Media()
    images = dict(found.pictures)
    for case in found.worst:
        if case.picture is not None:
            images[f"{case.row}: {case.predicted}, and is {case.actual}"] = case.picture
    if found.filters is not None:
        images[f"filters of {found.filters[0]}"] = found.filters[1]
    classes = None
    if (seen := found.classes) is not None:
        classes = seen.labels, seen.actual_N.tolist(), seen.predicted_N.tolist()
    curves: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
    for target in found.forecasts:
        for place in spread(len(target.actual_NH), NUM_WINDOWS).tolist():
            name = f"{target.target}, window {place + 1}"
            curves[name] = target.actual_NH[place].tolist(), target.predicted_NH[place].tolist()
    return Media(images, classes, curves, tuple(found.texts))
