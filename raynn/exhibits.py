"""What a run's predictions look like: confusion and ROC, residuals, forecasts with bands, texts, images, worst errors.

Shapes: N rows or windows, H steps.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from raynn import page as html
from raynn.charts import Chart, Cloud, Line, bars, heatmap, histogram_chart, lines_chart, pairs, scatter, short
from raynn.findings import ForecastFindings, calibration, histogram, rocs, spread
from raynn.inspection import Case, Inspection

MAX_CURVES = 12  # classes with an ROC curve of their own
MAX_LABELS = 60  # classes of a confusion matrix
CLOUD_POINTS = 2000
NUM_FORECASTS = 4
PAST_STEPS = 96
SHORT_HORIZON = 8  # below it forecasts are shown as one curve, a step ahead each
STRETCH = 150  # steps of that curve
MAX_TARGETS = 3
PALETTE = ("--train", "--val", "--test", "--four", "--five", "--six")


def prediction_charts(found: Inspection) -> Iterator[Chart]:
    if found.classes is not None:
        yield from _classification(found)
    if found.values is not None:
        yield from _regression(found)
    yield from _forecasts(found)
    if found.tokens is not None and len(found.tokens.loss_T):
        edges, counts = histogram(found.tokens.loss_T)
        note = f"{len(found.tokens.loss_T):,} tokens of evenly spaced windows; 0 nats: certain of what came."
        yield histogram_chart("How surprising each token was", edges, counts, "nats", note=note)
        names, means, often = zip(*found.tokens.hardest, strict=True) if found.tokens.hardest else ((), (), ())
        if names:
            shown = [f"{name!r} ({n})" for name, n in zip(names, often, strict=True)]
            yield bars(
                "The hardest tokens", shown, means, "mean nats", color="var(--val)", note="How often in brackets."
            )


def _classification(found: Inspection) -> Iterator[Chart]:
    classes = found.classes
    assert classes is not None
    assert found.logits_NK is not None
    if len(classes.labels) <= MAX_LABELS:
        note = f"{classes.confusion_KK.sum():,} rows, accuracy {classes.accuracy:.4g}; shade: share of the true class."
        yield heatmap("Confusion", classes.confusion_KK, classes.labels, "true class", "predicted", note)
    curves = rocs(found.logits_NK, classes.actual_N, classes.labels) if len(classes.labels) <= MAX_CURVES else []
    if curves:
        clouds = [
            {
                "type": "line",
                "name": f"{curve.label} ({curve.auroc:.4g})",
                "data": pairs(curve.false_positive_P, curve.true_positive_P),
                "symbol": "none",
                "lineStyle": {"width": 2, "type": ("solid", "dashed")[i // len(PALETTE) % 2]},
                "itemStyle": {"color": f"var({PALETTE[i % len(PALETTE)]})"},
            }
            for i, curve in enumerate(curves)
        ]
        base = scatter("ROC", [Cloud("chance", [], [], "var(--soft)")], "false positive rate", "true positive rate")
        chance = {"type": "line", "name": "chance", "data": [[0, 0], [1, 1]], "symbol": "none", "silent": True}
        base.option["series"] = [*clouds, chance | {"lineStyle": {"type": "dotted", "color": "var(--soft)"}}]
        base.option["grid"]["top"] = 40
        base.option["legend"] = {"top": 0, "left": 0, "data": [cloud["name"] for cloud in clouds]}
        base.option["tooltip"] = {"trigger": "axis", "valueFormatter": "fn:number"}
        what = "each class against the others" if len(curves) > 1 else f"class {curves[0].label}"
        rows = tuple((curve.label, short(curve.auroc)) for curve in curves)
        note = f"For {what}; in brackets the area under it."
        yield Chart("ROC", base.option, note, 380, False, ("class", "AUROC"), rows)
    found_calibration = calibration(classes.confidence_N, classes.predicted_N == classes.actual_N)
    note = (
        f"Rows in ten bins by the probability of the predicted class; on the diagonal it is what it says. Expected "
        f"calibration error {found_calibration.error:.3g}; the size of a point is the share of rows."
    )
    share = found_calibration.count_P / found_calibration.count_P.sum()
    dots = scatter(
        "Calibration",
        [Cloud("bin", found_calibration.confidence_P.tolist(), found_calibration.accuracy_P.tolist(), "var(--train)")],
        "probability told",
        "share that was right",
        diagonal=(0.0, 1.0),
        note=note,
        height=380,
    )
    dots.option["series"][0]["data"] = [
        {"value": value, "symbolSize": short(6 + 26 * np.sqrt(size))}
        for value, size in zip(dots.option["series"][0]["data"], share, strict=True)
    ]
    for side in ("xAxis", "yAxis"):
        dots.option[side] |= {"min": 0, "max": 1}
    yield dots


def _regression(found: Inspection) -> Iterator[Chart]:
    values = found.values
    assert values is not None
    chosen = spread(len(values.actual_N), CLOUD_POINTS)
    actual, predicted, residual = values.actual_N[chosen], values.predicted_N[chosen], values.residual_N[chosen]
    ends = float(min(actual.min(), predicted.min())), float(max(actual.max(), predicted.max()))
    some = f" {len(chosen):,} of {len(values.actual_N):,} rows." if len(chosen) < len(values.actual_N) else ""
    cloud = Cloud("rows", actual.tolist(), predicted.tolist(), "var(--train)", size=4)
    note = f"RMSE {values.rmse:.4g}, MAE {values.mae:.4g}, in the target's unit.{some}"
    yield scatter("Predicted against actual", [cloud], "actual", "predicted", diagonal=ends, note=note, height=340)
    cloud = Cloud("rows", predicted.tolist(), residual.tolist(), "var(--val)", size=4)
    note = "Predicted less actual: a slope or a funnel is something the network has not learned."
    yield scatter("Residuals", [cloud], "predicted", "residual", level=0.0, note=note, height=340)
    edges, counts = histogram(values.residual_N)
    yield histogram_chart("How large the residuals are", edges, counts, "residual", "var(--val)")


def _forecasts(found: Inspection) -> Iterator[Chart]:
    if not found.forecasts:
        return
    assert found.times_NH is not None
    assert found.series_N is not None
    time_NH = found.times_NH
    if all(time.endswith(" 00:00:00") for time in time_NH[:, 0]):
        time_NH = np.char.replace(time_NH, " 00:00:00", "")
    horizon = time_NH.shape[1]
    for forecast in found.forecasts[:MAX_TARGETS]:
        if horizon < SHORT_HORIZON:
            yield _one_step_ahead(forecast, time_NH, found.series_N)
        else:
            yield from _windows(forecast, time_NH, found.series_N)
    if horizon > 1:
        lines = [
            Line(forecast.target, forecast.rmse_H.tolist(), f"var({PALETTE[i % len(PALETTE)]})", i >= len(PALETTE))
            for i, forecast in enumerate(found.forecasts)
        ]
        steps = list(range(1, horizon + 1))
        yield lines_chart("Error by step ahead", steps, lines, "steps ahead", "RMSE", wide=True)
    for forecast in found.forecasts[:MAX_TARGETS]:
        edges, counts = histogram((forecast.predicted_NH - forecast.actual_NH).reshape(-1))
        yield histogram_chart(f"Errors of {forecast.target}", edges, counts, "forecast less actual", "var(--val)")


def _one_step_ahead(forecast: ForecastFindings, time_NH: NDArray[np.str_], series_N: NDArray[np.str_]) -> Chart:
    """The last stretch of the first series of a split, each step forecast from those before it."""
    own = np.flatnonzero(series_N == series_N[0])
    times, first = np.unique(time_NH[own, 0], return_index=True)
    times, first = times[-STRETCH:], own[first[-STRETCH:]]
    told = forecast.predicted_NH[first, 0]
    band = tuple((told + forecast.band_QH[q, 0]).tolist() for q in (0, 2))
    lines = [
        Line("actual", forecast.actual_NH[first, 0].tolist(), "var(--train)"),
        Line("forecast", told.tolist(), "var(--val)"),
    ]
    return lines_chart(
        f"{forecast.target}{_of(series_N[0])}, one step ahead",
        times.tolist(),
        lines,
        "",
        forecast.target,
        gap=(band[0], band[1]),
        gap_name="80 % of errors",
        category=True,
        note=f"The last {len(times)} steps. RMSE of all windows {forecast.rmse_H[0]:.4g} at this step.",
        wide=True,
    )


def _of(series: str) -> str:
    return f" of {series}" if series else ""


def _windows(forecast: ForecastFindings, time_NH: NDArray[np.str_], series_N: NDArray[np.str_]) -> Iterator[Chart]:
    """Some windows whole, with what came before them."""
    horizon = time_NH.shape[1]
    band_QH = forecast.band_QH
    for n in _windows_to_show(forecast.rmse_N, time_NH[:, 0]):
        own = series_N == series_N[n]
        times, first = np.unique(time_NH[own], return_index=True)
        known = forecast.actual_NH[own].reshape(-1)[first]
        start = int(np.searchsorted(times, time_NH[n, 0]))
        past = slice(max(0, start - min(PAST_STEPS, max(24, 3 * horizon))), start)
        blank: list[float | None] = [None] * (past.stop - past.start)
        low, high = (blank + (forecast.predicted_NH[n] + band_QH[q]).tolist() for q in (0, 2))
        lines = [
            Line("actual", [*known[past].tolist(), *forecast.actual_NH[n].tolist()], "var(--train)"),
            Line("forecast", blank + forecast.predicted_NH[n].tolist(), "var(--val)"),
        ]
        worst = "The worst window: " if n == int(forecast.rmse_N.argmax()) else ""
        yield lines_chart(
            f"{forecast.target}{_of(series_N[n])} from {time_NH[n, 0]}",
            [*times[past].tolist(), *time_NH[n].tolist()],
            lines,
            "",
            forecast.target,
            gap=(low, high),
            gap_name="80 % of errors",
            category=True,
            note=f"{worst}RMSE {forecast.rmse_N[n]:.4g}.",
            height=280,
        )


def _windows_to_show(rmse_N: NDArray[np.float64], start_N: NDArray[np.str_]) -> list[int]:
    """Windows evenly spaced in time, and the worst."""
    order = np.argsort(start_N, kind="stable")
    inside = order[len(order) // 10 :] if len(order) > NUM_FORECASTS else order  # so that there is a past to show
    return [*inside[spread(len(inside), NUM_FORECASTS - 1)].tolist(), int(rmse_N.argmax())]


def class_table(found: Inspection) -> str:
    classes = found.classes
    if classes is None:
        return ""
    support = classes.confusion_KK.sum(1)
    rows = [
        (label, short(classes.precision_K[k]), short(classes.recall_K[k]), short(classes.f1_K[k]), int(support[k]))
        for k, label in enumerate(classes.labels)
    ]
    rows.append(("all: accuracy, macro F1", None, short(classes.accuracy), short(classes.f1_macro), int(support.sum())))
    inner = html.scrolled(html.table(("class", "precision", "recall", "F1", "rows"), rows))
    return f"<br>{html.card(inner, 'Class by class')}"


def texts(found: Inspection) -> str:
    parts = []
    if found.texts:
        inner = "<hr>".join(f'<div class="text">{html.text(text)}</div>' for text in found.texts)
        parts.append(html.card(inner, "Written by the network, from beginnings that were held out (temperature 0.8)"))
    if found.tokens is not None:
        for title, excerpt in zip(("hardest", "median", "easiest"), found.tokens.excerpts, strict=False):
            words = "".join(_surprise(token, loss) for token, loss in excerpt)
            inner = (
                f'<div class="text">{words}</div><figcaption>The stronger the mark, the more surprising.</figcaption>'
            )
            parts.append(html.card(inner, f"The {title} window that was held out"))
    return f'<br><div class="grid">{"".join(parts)}</div>' if parts else ""


def _surprise(token: str, loss: float | None) -> str:
    if loss is None:
        return html.text(token)
    strength = min(1.0, loss / 8)
    style = f"background:color-mix(in srgb, var(--val) {70 * strength:.0f}%, transparent)"
    return f'<i style="{style}" title="{loss:.2f} nats">{html.text(token)}</i>'


def pictures(found: Inspection) -> str:
    cards = [html.card(html.picture(image, title), title, wide=False) for title, image in found.pictures.items()]
    return f'<div class="grid">{"".join(cards)}</div>' if cards else ""


def cases(found: Inspection) -> str:
    unit = "nats" if found.classes is not None else "off"
    cards = "".join(_case(case, unit) for case in found.worst)
    return f'<div class="cases">{cards}</div>' if cards else ""


def _case(case: Case, unit: str) -> str:
    image = html.picture(case.picture, f"the input of {case.row}", "") if case.picture else ""
    curve = html.sparkline(case.curve) if case.curve else ""
    inputs = "".join(f"<dt>{html.text(name)}</dt><dd>{html.text(value)}</dd>" for name, value in case.inputs)
    inputs = f"<dl>{inputs}</dl>" if inputs else ""
    return (
        f'<div class="card case">{image}{curve}<div class="mark">is {html.text(case.actual)}</div>'
        f'<div class="miss">taken for {html.text(case.predicted)}</div>'
        f"<div>{case.error:.4g} {unit} &middot; {html.text(case.row)}</div>{inputs}</div>"
    )
