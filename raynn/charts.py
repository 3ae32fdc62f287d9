"""Charts as options of Apache ECharts: plain values that the page's script draws.

Colors are names of the page's style sheet, `var(--train)`, so that one option serves light, dark and paper; texts that
begin with `fn:` name a function of the page's script. A chart carries its numbers as a table, too, for those who do
not see it, and for paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Option = dict[str, Any]
TABLE_ROWS = 60
MAX_COLUMNS = 60  # of a heat map over epochs
MAX_CELLS_WITH_TEXT = 400  # of a heat map


@dataclass(frozen=True)
class Chart:
    """A figure: what it is called, drawn, said and counted."""

    title: str
    option: Option
    note: str = ""
    height: int = 300  # px
    wide: bool = False
    header: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    trials: bool = False  # its items carry the number of a trial and can be selected


@dataclass(frozen=True)
class Line:
    """One curve of a chart."""

    name: str
    y: Sequence[float | None]
    color: str
    dashed: bool = False
    symbol: str = "none"


@dataclass(frozen=True)
class Mark:
    """A vertical line with a word."""

    x: float | str
    text: str
    color: str = "var(--soft)"


def short(value: Any) -> Any:
    """Five significant digits, and null for what is not finite."""
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int | np.integer):
        return int(value)
    number = float(value)
    return float(f"{number:.5g}") if math.isfinite(number) else None


def shorts(values: Iterable[Any]) -> list[Any]:
    """`short` of each."""
    return [short(value) for value in values]


def pairs(x: Iterable[Any], y: Iterable[Any]) -> list[list[Any]]:
    """Points as a series has them."""
    return [[short(a), short(b)] for a, b in zip(x, y, strict=True)]


def axis(name: str, kind: str = "value", **more: Any) -> Option:
    """An axis with its name at its middle."""
    return {"type": kind, "name": name, "nameLocation": "middle", "scale": kind == "value", **more}


def _grid(x_name: str = "", *, legend: bool = True) -> Option:
    bottom = 30 if x_name else 26
    return {"left": 54, "right": 28, "top": 34 if legend else 14, "bottom": bottom, "containLabel": False}


def lines_chart(
    title: str,
    x: Sequence[Any],
    lines: Sequence[Line],
    x_name: str,
    y_name: str = "",
    *,
    gap: tuple[Sequence[float | None], Sequence[float | None]] | None = None,
    gap_name: str = "gap",
    marks: Sequence[Mark] = (),
    log_y: bool = False,
    category: bool = False,
    slanted: bool = False,
    note: str = "",
    height: int = 300,
    wide: bool = False,
) -> Chart:
    """Curves over one axis, with the space between two of them shaded where asked; `slanted` are names of categories
    of which each is to be read.
    """
    series: list[Option] = []
    if gap is not None:
        series.append({"type": "custom", "name": gap_name, "renderItem": "fn:gap", "silent": True, "z": 1})
        series[-1] |= {"data": _strips(x, gap, category), "itemStyle": {"color": "var(--band)"}}
        series[-1] |= {"tooltip": {"show": False}, "encode": {"x": [0, 3], "y": [1, 2, 4, 5]}}
    for line in lines:
        series.append(
            {
                "type": "line",
                "name": line.name,
                "data": _points(x, line.y, category),
                "symbol": line.symbol if line.symbol != "none" else ("circle" if len(x) < 3 else "none"),
                "showSymbol": line.symbol != "none" or len(x) < 3,
                "symbolSize": 5,
                "lineStyle": {"width": 2, "color": line.color, "type": "dashed" if line.dashed else "solid"},
                "itemStyle": {"color": line.color},
                "emphasis": {"disabled": True},
            }
        )
    if marks:
        series[-1]["markLine"] = {
            "symbol": "none",
            "silent": True,
            "label": {"color": "var(--soft)", "fontSize": 11},
            "data": [
                {
                    "xAxis": mark.x,
                    "label": {"formatter": mark.text, "position": "end"},
                    "lineStyle": {"color": mark.color, "type": "dashed"},
                }
                for mark in marks
            ],
        }
    names = [line.name for line in lines] + ([gap_name] if gap is not None else [])
    grid = _grid(x_name, legend=len(names) > 1 or bool(marks))
    if slanted:
        grid["bottom"] += min(80, 10 + 4 * max((len(str(word)) for word in x), default=0))
    option = {
        "grid": grid,
        "legend": {"top": 0, "left": 0, "data": names, "show": len(names) > 1},
        "tooltip": {"trigger": "axis", "valueFormatter": "fn:number"},
        "xAxis": {"type": "category", "data": list(x), "name": x_name, "nameLocation": "middle"}
        | ({"axisLabel": {"rotate": 30, "interval": 0, "hideOverlap": False}} if slanted else {})
        if category
        else axis(x_name, min="dataMin", max="dataMax", minInterval=1 if x_name == "epoch" else 0),
        "yAxis": axis(y_name, "log" if log_y else "value", nameGap=40),
        "series": series,
        "dataZoom": [{"type": "inside", "zoomOnMouseWheel": "ctrl"}],
    }
    rows = zip(x, *(shorts(line.y) for line in lines), strict=True)
    return Chart(title, option, note, height, wide, (x_name, *(line.name for line in lines)), thinned(list(rows)))


def _strips(
    x: Sequence[Any], gap: tuple[Sequence[float | None], Sequence[float | None]], category: bool
) -> list[list[Any]]:
    """The space between two curves, cut at every x: x, both y, and the same at the next x."""
    places = range(len(x)) if category else x
    corners = [[short(at), short(a), short(b)] for at, a, b in zip(places, *gap, strict=True)]
    return [left + right for left, right in pairwise(corners) if None not in left + right]


def _points(x: Sequence[Any], y: Sequence[Any], category: bool) -> list[Any]:
    return shorts(y) if category else pairs(x, y)


def thinned(rows: Sequence[tuple[Any, ...]]) -> tuple[tuple[Any, ...], ...]:
    """At most TABLE_ROWS rows, evenly spaced, the first and the last among them."""
    if len(rows) <= TABLE_ROWS:
        return tuple(rows)
    return tuple(rows[i] for i in np.linspace(0, len(rows) - 1, TABLE_ROWS).round().astype(int))


def heatmap(
    title: str, matrix: NDArray[Any], labels: Sequence[str], row_name: str, column_name: str, note: str = ""
) -> Chart:
    """A square table of counts, colored by the share of its row."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    num = len(labels)
    cells = [[j, i, short(share[i, j]), int(matrix[i, j])] for i in range(num) for j in range(num) if matrix[i, j]]
    widest = max(len(label) for label in labels)
    option = {
        "grid": {"left": min(150, 34 + 7 * widest), "right": 14, "top": 10, "bottom": 60 if widest > 4 else 44},
        "tooltip": {"formatter": "fn:cell", "position": "top"},
        "xAxis": axis(column_name, "category", data=list(labels), nameGap=42 if widest > 4 else 26)
        | {"axisLabel": {"rotate": 30 if widest > 4 else 0}, "splitArea": {"show": False}},
        "yAxis": axis(row_name, "category", data=list(labels), inverse=True, nameGap=min(130, 16 + 7 * widest)),
        "visualMap": {
            "show": False,
            "min": 0,
            "max": 1,
            "dimension": 2,
            "inRange": {"color": ["var(--heat0)", "var(--heat1)", "var(--heat2)"]},
        },
        "series": [
            {
                "type": "heatmap",
                "data": cells,
                "label": {"show": num * num <= MAX_CELLS_WITH_TEXT, "formatter": "fn:count", "color": "inherit"},
                "itemStyle": {"borderColor": "var(--card)", "borderWidth": 1},
                "emphasis": {"itemStyle": {"borderColor": "var(--text)", "borderWidth": 2}},
                "rows": row_name,
                "columns": column_name,
            }
        ],
    }
    rows = tuple((label, *map(int, matrix[i])) for i, label in enumerate(labels[:TABLE_ROWS]))
    size = max(300, min(640, 90 + 34 * num))
    return Chart(title, option, note, size, False, (f"{row_name} / {column_name}", *labels), rows)


def over_epochs(title: str, epochs: Sequence[Any], rows: Mapping[str, Sequence[Any]], unit: str, note: str) -> Chart:
    """Positive numbers of each row's name at each epoch, as colors on a logarithmic scale; at most MAX_COLUMNS epochs,
    evenly spaced. What is 0 or not finite is left blank.
    """
    chosen = np.linspace(0, len(epochs) - 1, min(len(epochs), MAX_COLUMNS)).round().astype(int).tolist()
    names = list(rows)
    known = [(str(epochs[at]), name, short(rows[name][at])) for name in names for at in chosen]
    cells = [[epoch, name, short(math.log10(value)), value] for epoch, name, value in known if value]
    levels = [cell[2] for cell in cells] or [0.0]
    widest = max(len(name) for name in names)
    left = min(210, 20 + 7 * widest)
    option = {
        "grid": {"left": left, "right": 16, "top": 10, "bottom": 78},
        "tooltip": {"formatter": "fn:level", "position": "top"},
        "xAxis": axis("epoch", "category", data=[str(epochs[at]) for at in chosen]) | {"splitArea": {"show": False}},
        "yAxis": {"type": "category", "data": names, "inverse": True}
        | {"axisLabel": {"width": left - 14, "overflow": "truncate"}},
        "visualMap": {
            "type": "continuous",
            "min": min(levels),
            "max": max(levels) if max(levels) > min(levels) else min(levels) + 1,
            "dimension": 2,
            "orient": "horizontal",
            "left": "center",
            "bottom": 0,
            "itemWidth": 12,
            "itemHeight": 120,
            "text": [f"{10 ** max(levels):.3g}", f"{10 ** min(levels):.3g}"],
            "textStyle": {"color": "var(--soft)"},
            "inRange": {"color": ["var(--heat0)", "var(--heat1)", "var(--heat2)"]},
        },
        "series": [{"type": "heatmap", "name": unit, "data": cells}],
    }
    option["series"][0]["emphasis"] = {"itemStyle": {"borderColor": "var(--text)", "borderWidth": 2}}  # type: ignore[index]
    told = zip(epochs, *(shorts(values) for values in rows.values()), strict=True)
    height = max(220, 100 + 22 * len(names))
    return Chart(title, option, note, height, True, ("epoch", *names), thinned(list(told)))


def bars(
    title: str,
    names: Sequence[str],
    values: Sequence[float],
    value_name: str,
    *,
    low: Sequence[float] | None = None,
    high: Sequence[float] | None = None,
    ends: tuple[str, str] = ("10 %", "90 %"),
    color: str = "var(--train)",
    note: str = "",
    log: bool = False,
) -> Chart:
    """Bars to the right, the first one on top, with intervals where given."""
    widest = max((len(name) for name in names), default=1)
    left = min(210, 20 + 7 * widest)
    series: list[Option] = [{"type": "bar", "data": shorts(values), "itemStyle": {"color": color}, "barMaxWidth": 18}]
    header, rows = (("", value_name), [(n, short(v)) for n, v in zip(names, values, strict=True)])
    if low is not None and high is not None:
        intervals = [[i, short(a), short(b)] for i, (a, b) in enumerate(zip(low, high, strict=True))]
        series.append({"type": "custom", "renderItem": "fn:interval", "data": intervals, "z": 5, "silent": True})
        series[-1]["encode"] = {"x": [1, 2], "y": 0}
        header = (*header, *ends)  # type: ignore[assignment]
        rows = [(*row, short(a), short(b)) for row, a, b in zip(rows, low, high, strict=True)]  # type: ignore[misc]
    option = {
        "grid": {"left": left, "right": 24, "top": 8, "bottom": 40},
        "tooltip": {"trigger": "axis", "axisPointer": {"type": "shadow"}, "valueFormatter": "fn:number"},
        "xAxis": axis(value_name, "log" if log else "value", nameGap=26) | {"scale": False},
        "yAxis": {
            "type": "category",
            "data": list(names),
            "inverse": True,
            "axisLabel": {"width": left - 14, "overflow": "truncate"},
        },
        "series": series,
    }
    return Chart(title, option, note, 70 + 24 * len(names), False, header, tuple(rows))


def histogram_chart(
    title: str, edges: NDArray[Any], counts: NDArray[Any], x_name: str, color: str = "var(--train)", note: str = ""
) -> Chart:
    """Counts in bins, as bars without gaps."""
    middles = (edges[:-1] + edges[1:]) / 2
    option = {
        "grid": _grid(x_name, legend=False),
        "tooltip": {"trigger": "axis", "axisPointer": {"type": "shadow"}, "valueFormatter": "fn:number"},
        "xAxis": axis(x_name, "category", data=[f"{m:.4g}" for m in middles]),
        "yAxis": axis("rows", nameGap=40) | {"scale": False},
        "series": [
            {
                "type": "bar",
                "name": "rows",
                "data": shorts(counts),
                "barCategoryGap": "4%",
                "itemStyle": {"color": color},
            }
        ],
    }
    rows = tuple((f"{a:.4g} to {b:.4g}", int(n)) for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True))
    return Chart(title, option, note, 260, False, (x_name, "rows"), rows)


@dataclass(frozen=True)
class Cloud:
    """Points of one color and one shape."""

    name: str
    x: Sequence[Any]
    y: Sequence[Any]
    color: str
    symbol: str = "circle"
    size: float = 6
    numbers: Sequence[int] = field(default_factory=tuple)  # of the trials they stand for


def scatter(
    title: str,
    clouds: Sequence[Cloud],
    x_name: str,
    y_name: str,
    *,
    diagonal: tuple[float, float] | None = None,
    level: float | None = None,
    log_x: bool = False,
    log_y: bool = False,
    categories: Sequence[str] | None = None,
    line: Line | None = None,
    line_x: Sequence[float] = (),
    note: str = "",
    height: int = 300,
    brush: bool = False,
) -> Chart:
    """Points, with the diagonal or a level drawn where asked. With `numbers` each point stands for a trial."""
    series: list[Option] = []
    for cloud in clouds:
        data: list[Any] = pairs(cloud.x, cloud.y)
        if cloud.numbers:
            data = [{"value": point, "trial": int(n)} for point, n in zip(data, cloud.numbers, strict=True)]
        series.append(
            {
                "type": "scatter",
                "name": cloud.name,
                "data": data,
                "symbol": cloud.symbol,
                "symbolSize": cloud.size,
                "itemStyle": {"color": cloud.color, "opacity": 0.75 if cloud.numbers else 0.5},
            }
        )
    if line is not None:
        series.append({"type": "line", "name": line.name, "data": _points(line_x, line.y, False), "symbol": "none"})
        series[-1] |= {"step": "end", "lineStyle": {"color": line.color, "width": 1.5}, "silent": True}
        series[-1]["itemStyle"] = {"color": line.color}
    if diagonal is not None:
        ends = [{"coord": [short(diagonal[0])] * 2}, {"coord": [short(diagonal[1])] * 2}]
        series[0]["markLine"] = _quiet_line([ends])
    if level is not None:
        series[0]["markLine"] = _quiet_line([{"yAxis": level}])
    x_axis = (
        axis(x_name, "category", data=list(categories)) if categories else axis(x_name, "log" if log_x else "value")
    )
    option: Option = {
        "grid": _grid(x_name, legend=len(series) > 1),
        "legend": {"top": 0, "show": len(series) > 1},
        "tooltip": {"trigger": "item", "formatter": "fn:point"},
        "xAxis": x_axis,
        "yAxis": axis(y_name, "log" if log_y else "value", nameGap=42),
        "series": series,
    }
    if brush:
        option["brush"] = {"toolbox": [], "xAxisIndex": 0, "brushStyle": {"color": "var(--band)"}, "throttleDelay": 60}
        option["brush"]["outOfBrush"] = {"colorAlpha": 1}
        option["toolbox"] = {"show": False}
    header = ("", x_name, y_name)
    rows = [(c.name, short(a), short(b)) for c in clouds for a, b in zip(c.x, c.y, strict=True)]
    return Chart(title, option, note, height, False, header, thinned(rows), trials=any(c.numbers for c in clouds))


def _quiet_line(data: list[Any]) -> Option:
    style = {"color": "var(--soft)", "type": "dashed"}
    return {"symbol": "none", "silent": True, "label": {"show": False}, "lineStyle": style, "data": data}
