"""The report of a search: the best settings, what mattered, every trial and how it ended."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from raynn import page as html
from raynn.charts import Chart, Cloud, Line, bars, scatter, short, shorts
from raynn.importance import Importance, columns_of, importance, pareto_front
from raynn.page import Page
from raynn.progress import duration
from raynn.trial_table import FATES, Search, Trial

MAX_AXES = 10  # of the parallel coordinates
MAX_SLICES = 12
MAX_POINTS = 12_000  # of all learning curves together
SYMBOLS = {
    "finished": "circle",
    "stopped_early": "diamond",
    "cut": "triangle",
    "failed": "rect",
    "paused": "roundRect",
    "running": "pin",
    "waiting": "circle",
}
WORDS = {
    "finished": "finished",
    "stopped_early": "stopped early",
    "cut": "cut by the scheduler",
    "failed": "failed",
    "paused": "paused",
    "running": "running",
    "waiting": "waiting",
}


def search_page(search: Search) -> Page:
    """The report of one search."""
    name = str(search.result.get("name", search.folder.name))
    page = Page(f"{name}: raynn search report")
    page.trials = [
        {"number": t.number, "status": t.status, "value": short(t.value), "settings": _shorts(t.settings)}
        for t in search.trials
    ]
    found = _importance(search)
    ranked = _ranked(search, found)
    page.head = _head(search, name)
    page.add("best", "Best settings", _best(search))
    page.add("trials", "Trials", _toolbar(), page.figures(_overview(search, ranked), large=True), _table(search))
    page.add("importance", "What mattered", page.figures(_importance_chart(found), large=True), _caveat(search, found))
    page.add("slices", "Setting by setting", page.figures(_slices(search, ranked)))
    page.add("tradeoffs", "Several objectives", page.figures(_pareto(search), large=True))
    page.add("time", "Time", _time(search))
    page.add("again", "Use and repeat", _commands(search))
    return page


def _shorts(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: short(value) if isinstance(value, float) else value for name, value in settings.items()}


def _told(search: Search) -> list[Trial]:
    """The trials that have a value."""
    return [trial for trial in search.trials if trial.value is not None and math.isfinite(trial.value)]


def _best_trial(search: Search) -> Trial | None:
    number = (search.result.get("best") or {}).get("number")
    for trial in search.trials:
        if trial.number == number:
            return trial
    told = [trial for trial in _told(search) if trial.status in ("finished", "stopped_early", "cut")]
    sign = -1.0 if search.higher else 1.0
    return min(told, key=lambda trial: sign * float(trial.value or 0.0), default=None)


def _head(search: Search, name: str) -> str:
    result, best = search.result, _best_trial(search)
    status = str(result.get("status", "not ended"))
    counts = {fate: sum(trial.status == fate for trial in search.trials) for fate in FATES}
    entries = {}
    if best is not None:
        entries[f"best {search.metric}"] = html.shown(best.value)
        entries["in trial"] = str(best.number)
    entries |= {WORDS[fate]: f"{count:,}" for fate, count in counts.items() if count}
    if result.get("seconds"):
        entries["in all"] = duration(result["seconds"])
    reason = str(result.get("stop_reason") or "the search goes on")
    reason = html.text(reason[:1].upper() + reason[1:])
    better = "higher" if search.higher else "lower"
    return (
        f'<h1>{html.text(name)}<span class="badge">{html.text(status)}</span></h1>'
        f'<p class="lead">Search of {len(search.trials)} trials over {len(search.settings)} settings for '
        f"<strong>{html.text(search.metric)}</strong> ({better} is better). {reason}.</p>{html.tiles(entries)}"
    )


def _best(search: Search) -> str:
    best = _best_trial(search)
    if best is None:
        return '<p class="lead">No trial has a value yet.</p>'
    settings = html.table(("setting", "value"), [(k, _plain(v)) for k, v in best.settings.items()])
    told = search.result.get("best") or {}  # which has test figures, too
    figures = told.get("metrics") or {} if told.get("number") == best.number else best.metrics
    metrics = html.table(("metric", "value"), [(k, v) for k, v in figures.items() if v is not None])
    parts = [html.card(settings, f"Trial {best.number}, {WORDS.get(best.status, best.status)}", wide=False)]
    parts.append(html.card(metrics, f"Its best epoch, {best.best_epoch} of {best.epochs}", wide=False))
    repeats = search.result.get("repeats")
    if isinstance(repeats, list) and repeats and all(isinstance(row, dict) for row in repeats):
        header = list(dict.fromkeys(key for row in repeats for key in row))
        rows = [[_plain(row.get(key)) for key in header] for row in repeats]
        words = {"number": "trial", "values": f"{search.metric}, seed by seed", "sd": "standard deviation"}
        header = [words.get(key, key) for key in header]
        parts.append(html.card(html.scrolled(html.table(header, rows)), "Repeated with other seeds"))
    elif repeats:
        parts.append(html.card(f"<pre>{html.text(_plain(repeats))}</pre>", "Repeated", wide=False))
    return f'<div class="grid">{"".join(parts)}</div>'


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return "\u2013" if value is None else str(value)


def _toolbar() -> str:
    options = "".join(f'<option value="{fate}">{WORDS[fate]}</option>' for fate in FATES)
    return (
        '<p class="lead">Drag along an axis, or over points, to select trials everywhere; a click, or Enter in the '
        "table, selects one.</p>"
        f'<div class="toolbar"><label>Fate <select id="fate"><option value="">all</option>{options}</select></label>'
        '<button id="clear" type="button">Clear selection</button><span id="selection" role="status"></span></div>'
    )


# ---- trials -----------------------------------------------------------------------------------------------------


def _overview(search: Search, ranked: Sequence[str]) -> Iterator[Chart]:
    told = _told(search)
    if not told:
        return
    yield _parallel(search, ranked[:MAX_AXES])
    best, so_far = math.nan, []
    for trial in sorted(told, key=lambda trial: trial.number):
        value = float(trial.value or 0.0)
        best = value if math.isnan(best) or (value > best) == search.higher else best
        so_far.append((trial.number, best))
    x, y = zip(*so_far, strict=True)
    yield scatter(
        "Trial after trial",
        _clouds(told, [t.number for t in told], [t.value for t in told]),
        "trial",
        search.metric,
        line=Line("best so far", y, "var(--text)"),
        line_x=x,
        log_y=_log_values(told),
        brush=True,
        note="The line is the best value so far.",
        height=360,
    )
    if search.curves:
        yield _curves(search)


def _log_values(told: Sequence[Trial]) -> bool:
    values = [float(trial.value or 0.0) for trial in told]
    return min(values) > 0 and max(values) > 50 * min(values)


def _clouds(trials: Sequence[Trial], x: Sequence[Any], y: Sequence[Any]) -> list[Cloud]:
    """A color and a shape for each fate."""
    clouds = []
    for fate in FATES:
        places = [i for i, trial in enumerate(trials) if trial.status == fate]
        if places:
            numbers = [trials[i].number for i in places]
            points = [x[i] for i in places], [y[i] for i in places]
            clouds.append(Cloud(WORDS[fate], *points, f"var(--{fate})", SYMBOLS[fate], 7, numbers))
    return clouds


def _is_word(value: Any) -> bool:
    """Whether a setting's value has its place among words: no number, but a name, a switch or a list."""
    return value is not None and (isinstance(value, bool) or not isinstance(value, int | float))


def _parallel(search: Search, names: Sequence[str]) -> Chart:
    told = _told(search)
    axes: list[dict[str, Any]] = []
    for dim, name in enumerate(names):
        values = [trial.settings[name] for trial in told]
        if any(map(_is_word, values)):
            known = sorted({str(value) for value in values if value is not None})
            axes.append({"dim": dim, "name": _key(name), "type": "category", "data": known})
        else:
            log = search.logs[search.settings.index(name)]
            axes.append({"dim": dim, "name": _key(name), "type": "log" if log else "value", "scale": True})
            numbers = [float(value) for value in values if value is not None]
            if log:  # whole decades would squeeze what was drawn
                axes[-1] |= {"min": short(min(numbers)), "max": short(max(numbers))}
    values = [float(trial.value or 0.0) for trial in told]
    axes.append({"dim": len(names), "name": search.metric, "type": "log" if _log_values(told) else "value"})
    axes[-1] |= {"scale": True, "nameTextStyle": {"fontWeight": "bold"}}
    data = []
    order = sorted(range(len(told)), key=lambda i: values[i], reverse=not search.higher)  # the best on top
    for i in order:
        row = [_coordinate(told[i].settings[name]) for name in names]
        data.append({"value": [*row, short(values[i])], "trial": told[i].number})
    low, high = (short(q) for q in np.quantile(values, [0.05, 0.95]))
    ramp = ["var(--seq0)", "var(--seq1)", "var(--seq2)"]
    option = {
        "parallel": {"left": 60, "right": 70, "top": 46, "bottom": 22, "parallelAxisDefault": {"nameRotate": 0}},
        "parallelAxis": [
            axis | {"areaSelectStyle": {"color": "var(--band)", "borderColor": "var(--val)", "width": 18}}
            for axis in axes
        ],
        "visualMap": {
            "show": False,
            "dimension": len(names),
            "min": low,
            "max": high,
            "inRange": {"color": ramp if search.higher else ramp[::-1]},
        },
        "tooltip": {"trigger": "item", "formatter": "fn:trial"},
        "series": [
            {
                "type": "parallel",
                "data": data,
                "lineStyle": {"width": 1.2, "opacity": 0.5},
                "inactiveOpacity": 0.03,
                "activeOpacity": 0.8,
                "emphasis": {"lineStyle": {"width": 3, "opacity": 1}},
                "progressive": 0,
            }
        ],
    }
    more = (
        f" The {len(names)} that mattered most of {len(search.settings)}." if len(names) < len(search.settings) else ""
    )
    note = f"A line is a trial, the brighter the better. Drag along an axis to select.{more}"
    return Chart("Parallel coordinates", option, note, 420, True, trials=True)


def _key(name: str) -> str:
    """The last part of a dotted key: what tells it on a narrow axis."""
    return name.rpartition(".")[2]


def _coordinate(value: Any) -> Any:
    if value is None:
        return "-"  # ECharts' word for nothing
    return str(value) if _is_word(value) else short(value)


def _curves(search: Search) -> Chart:
    """Every trial's metric by epoch, colored by how it ended."""
    by_number = {trial.number: trial for trial in search.trials}
    total = sum(map(len, search.curves.values()))
    step = max(1, math.ceil(total / MAX_POINTS))
    series: list[dict[str, Any]] = []
    values: list[float] = []
    for fate in FATES:
        data = []
        for number, curve in search.curves.items():
            if by_number[number].status != fate:
                continue
            kept = curve[::-step][::-1] if step > 1 else curve
            kept = kept if len(kept) > 1 else [(kept[0][0] - 0.4, kept[0][1]), *kept]  # a point as a dash
            values += [y for _, y in kept]
            style = {"color": f"var(--{fate})", "type": "dashed" if fate == "failed" else "solid"}
            data.append({"coords": [shorts(point) for point in kept], "trial": number, "lineStyle": style})
        if data:
            series.append(
                {
                    "type": "lines",
                    "name": WORDS[fate],
                    "coordinateSystem": "cartesian2d",
                    "polyline": True,
                    "data": data,
                    "lineStyle": {"width": 1.2, "opacity": 0.5, "color": f"var(--{fate})"},
                    "itemStyle": {"color": f"var(--{fate})"},
                    "emphasis": {"lineStyle": {"width": 3, "opacity": 1}},
                }
            )
    low, high = min(values), max(values)
    log = low > 0 and high > 50 * low
    if not log and not search.higher:
        high = float(np.quantile(values, 0.98))  # a trial that went wild must not flatten the others
    longest = max(point[0] for curve in search.curves.values() for point in curve)
    room = 0.03 * (high - low)
    option = {
        "grid": {"left": 54, "right": 24, "top": 34, "bottom": 34},
        "legend": {"top": 0, "left": 0},
        "tooltip": {"trigger": "item", "formatter": "fn:trial"},
        "xAxis": {"type": "value", "name": "epoch", "nameLocation": "middle", "min": 0, "max": longest},
        "yAxis": {
            "type": "log" if log else "value",
            "name": search.metric,
            "nameLocation": "middle",
            "nameGap": 42,
            "min": short(low if log else low - room),
            "max": short(high if log else high + room),
        },
        "series": series,
        "dataZoom": [{"type": "inside", "zoomOnMouseWheel": "ctrl"}],
    }
    return Chart("Learning curves of all trials", option, "Colored by how they ended.", 360, False, trials=True)


def _table(search: Search) -> str:
    keys = ["trial", "fate", search.metric, "epochs", "s", "origin", *search.settings, "why"]
    best = _best_trial(search)
    sign = -1.0 if search.higher else 1.0
    rows = []
    for trial in sorted(search.trials, key=lambda t: (t.value is None, sign * (t.value or 0.0))):
        cells = [trial.number, trial.status, trial.value, trial.epochs, trial.seconds, trial.origin]
        cells += [*trial.settings.values(), trial.reason]
        tds = []
        for i, value in enumerate(cells):
            inner = html.shown(short(value) if isinstance(value, float) else value)
            if i == 1:
                inner = f'<span class="dot" style="background:var(--{trial.status})"></span>{inner}'
            numeric = isinstance(value, int | float) and not isinstance(value, bool)
            raw = "" if value is None else html.text(value)
            tds.append(f'<td{" class=n" if numeric else ""} data-v="{raw}">{inner}</td>')
        bold = ' class="changed"' if best is not None and trial.number == best.number else ""
        rows.append(f'<tr tabindex="0" data-trial="{trial.number}"{bold}>{"".join(tds)}</tr>')
    head = "".join(
        f'<th scope="col" title="{html.text(key)}"><button type="button">{html.text(_key(key))}</button></th>'
        for key in keys
    )
    inner = f'<table id="trial-table"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f"<br>{html.card(html.scrolled(inner), 'All trials, the best first')}"


# ---- what mattered ----------------------------------------------------------------------------------------------


def _importance(search: Search) -> Importance | None:
    told = [trial for trial in _told(search) if trial.status != "failed"]
    if not told or not search.settings:
        return None
    rows = [[trial.settings[name] for name in search.settings] for trial in told]
    y = np.array([float(trial.value or 0.0) for trial in told])
    y = np.log(y) if _log_values(told) else y
    varied = [s for s, column in enumerate(zip(*rows, strict=True)) if len({str(value) for value in column}) > 1]
    names = [search.settings[s] for s in varied]
    if not names:
        return None
    x = columns_of([[row[s] for s in varied] for row in rows], [search.logs[s] for s in varied])
    return importance(names, x, y, beside_N=np.log([max(trial.epochs, 1) for trial in told]))


def _ranked(search: Search, found: Importance | None) -> list[str]:
    """Settings, the most important first; as searched where that is not known."""
    if found is None:
        return list(search.settings)
    first = [found.names[s] for s in np.argsort(-found.mean_S, kind="stable")]
    return first + [name for name in search.settings if name not in first]


def _importance_chart(found: Importance | None) -> Iterator[Chart]:
    if found is None:
        return
    order = np.argsort(-found.mean_S, kind="stable")
    yield bars(
        "Importance of each setting",
        [found.names[s] for s in order],
        found.mean_S[order].tolist(),
        "share of what the settings explain",
        low=found.low_S[order].tolist(),
        high=found.high_S[order].tolist(),
        note=f"Permutation importance in a random forest of {found.num_trials} trials, which also knows how long each "
        "trained and what that is worth; whiskers: 10 % to 90 % over "
        f"resamples of them. On trials it did not see, it explains {max(found.r2, 0.0):.0%} of the differences.",
    )


def _caveat(search: Search, found: Importance | None) -> str:
    if found is None:
        return '<p class="lead">Too few trials with a value, or too alike, to say what mattered.</p>'
    notes = []
    if found.r2 < 0.2:
        notes.append("The forest hardly predicts trials it did not see: do not trust this order.")
    if any(trial.status == "cut" for trial in search.trials):
        notes.append("Trials that were cut count with the value they had reached, at the epochs they had.")
    return f'<p class="lead">{" ".join(notes)}</p>' if notes else ""


def _slices(search: Search, ranked: Sequence[str]) -> Iterator[Chart]:
    told = _told(search)
    for name in ranked[:MAX_SLICES] if told else ():
        having = [trial for trial in told if trial.settings[name] is not None]
        values = [trial.settings[name] for trial in having]
        if not having:
            continue
        categories = None
        if any(map(_is_word, values)):
            values = [str(value) for value in values]
            categories = sorted(set(values))
        yield scatter(
            name,
            _clouds(having, values, [trial.value for trial in having]),
            _key(name),
            search.metric,
            log_x=categories is None and search.logs[search.settings.index(name)],
            log_y=_log_values(told),
            categories=categories,
            brush=True,
            height=280,
        )


def _pareto(search: Search) -> Iterator[Chart]:
    objectives = search.result.get("objectives") or []
    if len(objectives) < 2:
        return
    names = [str(objective["metric"]) for objective in objectives]
    higher = [objective.get("direction") in ("max", "maximize") for objective in objectives]
    having = [trial for trial in search.trials if all(trial.metrics.get(name) is not None for name in names)]
    if not having:
        return
    values = np.array([[float(trial.metrics[name] or 0.0) for name in names] for trial in having])
    front = pareto_front(values, higher)
    for second in range(1, len(names)):
        clouds = []
        for on, word, color, symbol, size in (
            (False, "beaten", "var(--paused)", "circle", 6),
            (True, "on the front", "var(--val)", "diamond", 10),
        ):
            places = np.flatnonzero(front == on)
            numbers = [having[i].number for i in places]
            clouds.append(
                Cloud(word, values[places, 0].tolist(), values[places, second].tolist(), color, symbol, size, numbers)
            )
        arrows = [f"{name} ({'higher' if up else 'lower'} is better)" for name, up in zip(names, higher, strict=True)]
        note = f"{int(front.sum())} of {len(having)} trials are beaten by no other in every objective."
        title = f"Pareto front: {names[0]} and {names[second]}"
        yield scatter(title, clouds, arrows[0], arrows[second], note=note, height=380, brush=True)


# ---- time, commands ---------------------------------------------------------------------------------------------


def _time(search: Search) -> str:
    estimate = search.result.get("estimate") or {}
    entries = {}
    told, true = estimate.get("seconds_at_start"), estimate.get("seconds_true", search.result.get("seconds"))
    if told is not None:
        entries["estimated at the start"] = duration(told)
    if true is not None:
        entries["it took"] = duration(true)
    if told and true:
        entries["truth over estimate"] = f"{true / told:.2f}"
    work = sum(trial.seconds or 0.0 for trial in search.trials)
    if true and work:
        entries["trials at once, mean"] = f"{work / true:.1f}"
        entries["seconds a trial, mean"] = f"{work / len(search.trials):,.2f}"
    spared = [t for t in search.trials if t.status in ("cut", "stopped_early")]
    longest = max((trial.epochs for trial in search.trials), default=0)
    if spared and longest:
        share = 1 - sum(t.epochs for t in search.trials) / (longest * len(search.trials))
        entries["epochs spared by stopping"] = f"{share:.0%}"
    return html.tiles(entries) if entries else ""


def _commands(search: Search) -> str:
    folder, best = str(search.folder), _best_trial(search)
    lines = []
    if best is not None:
        run = str(search.folder / best.run)
        overrides = [f"{name}={_yaml(value)}" for name, value in best.settings.items() if value is not None]
        train = ["raynn", "train", f"{folder}/job.yaml", *overrides]
        lines = [
            (["raynn", "predict", run, "DATA", "--out", "predictions.parquet"], "predict with the best trial"),
            (["raynn", "report", run], "look at the best trial"),
            (train, "train the best settings again"),
        ]
    lines.append((["raynn", "tune", f"{folder}/job.yaml"], "repeat the search"))
    commands = "\n".join(f"{shlex.join(words)}    # {what}" for words, what in lines)
    return f"<pre>{html.text(commands)}</pre>"


def _yaml(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
