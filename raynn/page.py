"""One HTML file: what is in it needs no network, and no other file.

Apache ECharts 6.1.0 (`browser/echarts.min.js`, as in its npm package, Apache-2.0) draws. It was weighed against others,
2026-11: plotly.js, 4.8 MB a page against 1.1 MB, draws parallel coordinates by WebGL, which paper and machines without
a GPU lack; Bokeh, 1.3 MB, has none, and makes a Python model for each figure; Vega-Lite, 0.9 MB, cannot brush their
axes, and comes in a package of 33 MB. ECharts has parallel coordinates that can be brushed, draws SVG, which prints,
describes its charts to screen readers, and is the Apache Foundation's. No package on PyPI that is kept up carries the
file, so it lies here as it was published.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from raynn.charts import Chart, short

# Even if something in the page wanted to, the browser would not ask the network for anything.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass
class Page:
    """Collects sections in the order in which they are read."""

    title: str
    sections: list[tuple[str, str, str]] = field(default_factory=list)  # id, title, HTML
    charts: dict[str, dict[str, Any]] = field(default_factory=dict)
    trials: list[dict[str, Any]] = field(default_factory=list)
    head: str = ""

    def add(self, key: str, title: str, *parts: str) -> None:
        """A section, left out where all its parts are empty."""
        if any(parts):
            self.sections.append((key, title, "\n".join(part for part in parts if part)))

    def figure(self, chart: Chart) -> str:
        """A card with a chart, and its numbers as a table."""
        key = f"chart-{len(self.charts)}"
        label = f"{chart.title}. {chart.note}".strip()
        self.charts[key] = {"option": chart.option, "label": label, "trials": chart.trials}
        numbers = ""
        if chart.rows:
            inner = table(chart.header, chart.rows)
            numbers = f'<details><summary>Numbers</summary><div class="scroll">{inner}</div></details>'
        note = f"<figcaption>{text(chart.note)}</figcaption>" if chart.note else ""
        return (
            f'<figure class="card{" wide" if chart.wide else ""}"><h3>{text(chart.title)}</h3>'
            f'<div class="pan"><div class="chart{" roomy" if "parallel" in chart.option else ""}" id="{key}" '
            f'style="height:{chart.height}px" tabindex="0" role="img" aria-label="{text(label)}"></div></div>'
            f"{note}{numbers}</figure>"
        )

    def figures(self, charts: Iterable[Chart], *, large: bool = False) -> str:
        """Charts side by side where there is room: up to three, or two large ones."""
        drawn = "".join(map(self.figure, charts))
        return f'<div class="grid{" large" if large else ""}">{drawn}</div>' if drawn else ""

    def html(self) -> str:
        """The whole file."""
        links = "".join(f'<a href="#{key}">{text(title)}</a>' for key, title, _ in self.sections)
        body = "".join(
            f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{text(title)}</h2>{inner}'
            "</section>"
            for key, title, inner in self.sections
        )
        part = files("raynn") / "browser"
        return (
            f'<!doctype html>\n<html lang="en" data-theme="light"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{text(self.title)}</title>'
            f'<link rel="icon" href="data:,"><style>{(part / "page.css").read_text()}</style></head><body>'
            f'<a class="skip" href="#main">Skip to the report</a>'
            f'<nav aria-label="Sections"><b>raynn</b>{links}<span class="space"></span>'
            f'<button id="print" type="button">Print</button><button id="theme" type="button">Dark</button></nav>'
            f'<main id="main">{self.head}{body}<footer>Written by raynn from the run folder alone. Charts: Apache '
            f"ECharts 6.1.0, Apache License 2.0.</footer></main>"
            f'<script type="application/json" id="chart-data">{_json(self.charts)}</script>'
            f'<script type="application/json" id="trial-data">{_json({"rows": self.trials})}</script>'
            f"<script>{(part / 'echarts.min.js').read_text()}</script>"
            f"<script>{(part / 'page.js').read_text()}</script></body></html>\n"
        )


def _json(content: Any) -> str:
    """JSON that cannot end the script it stands in."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def text(value: Any) -> str:
    """Escaped for HTML, in elements and in quoted attributes."""
    return html.escape(str(value))


def shown(value: Any) -> str:
    """A cell: numbers short, nothing as a dash."""
    if value is None:
        return "\u2013"
    if isinstance(value, bool | str):
        return text(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        number = short(value)
        return "\u2013" if number is None else f"{number:.4g}"
    return text(value)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], classes: Sequence[str] = ()) -> str:
    """Numbers to the right, anything else to the left; `classes` are those of the rows."""
    rows = [tuple(row) for row in rows]
    right = [bool(rows) and all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(header))]
    marks = [' class="n"' if number else "" for number in right]
    head = "".join(f'<th scope="col"{mark}>{text(name)}</th>' for name, mark in zip(header, marks, strict=True))
    body = []
    for i, row in enumerate(rows):
        cells = "".join(f"<td{mark}>{shown(value)}</td>" for value, mark in zip(row, marks, strict=True))
        kind = f' class="{classes[i]}"' if classes and classes[i] else ""
        body.append(f"<tr{kind}>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def card(inner: str, title: str = "", *, wide: bool = True) -> str:
    """A box around anything."""
    heading = f"<h3>{text(title)}</h3>" if title else ""
    return f'<div class="card{" wide" if wide else ""}">{heading}{inner}</div>' if inner else ""


def scrolled(inner: str) -> str:
    """What may be larger than the page scrolls within it; the keyboard reaches it."""
    return f'<div class="scroll" tabindex="0" role="group" aria-label="Table">{inner}</div>' if inner else ""


def tiles(entries: Mapping[str, str]) -> str:
    """The figures one looks at first."""
    boxes = (
        f'<div class="tile"><b>{text(value)}</b><span>{text(name)}</span></div>' for name, value in entries.items()
    )
    return f'<div class="tiles">{"".join(boxes)}</div>'


def picture(content: bytes, alt: str, kind: str = "sheet") -> str:
    """A PNG within the page."""
    return f'<img class="{kind}" alt="{text(alt)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'


def sparkline(channels: Sequence[Sequence[float]]) -> str:
    """Curves of a sequence, without axes."""
    colors = ("--train", "--val", "--test")
    paths = []
    for values, color in zip(channels, colors, strict=False):
        low, high = min(values), max(values)
        span, last = (high - low) or 1.0, max(len(values) - 1, 1)
        points = " ".join(f"{200 * i / last:.1f},{56 - 52 * (v - low) / span:.1f}" for i, v in enumerate(values))
        paths.append(f'<polyline points="{points}" fill="none" stroke="var({color})" stroke-width="1.5"/>')
    start = '<svg viewBox="0 0 200 60" preserveAspectRatio="none" role="img" aria-label="the sequence">'
    return f"{start}{''.join(paths)}</svg>"
