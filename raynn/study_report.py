"""The report of a study: what each regularizer is worth on the test set, and what it does to the generalization gap."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raynn import page as html
from raynn.charts import Chart, Line, bars, lines_chart
from raynn.errors import RunError
from raynn.folder import STUDY
from raynn.page import Page
from raynn.progress import duration

WORDS = {"better": "helps", "worse": "hurts", "unclear": "unclear"}
METHOD = (
    "All arms have the same seeds, which means the same splits, initial weights and order of rows, and are compared in "
    "pairs. Intervals are those of Student's t at 95 %: mean \u00b1 t(0.975, n - 1) sd / \u221an, over the seeds; each "
    "is of one comparison, not corrected for their number. Train figures are of the kept weights over all training "
    "rows, no regularizer at work. A gain or a gap is positive where the first of the two is better. Nothing was "
    "chosen by these figures: to choose by them would need other test data."
)


@dataclass(frozen=True)
class Study:
    """A study folder: what study.json and result.json say."""

    folder: Path
    content: dict[str, Any]
    result: dict[str, Any]

    @property
    def arms(self) -> list[dict[str, Any]]:
        """In their order: `arm`, `kind`, `knob`, `settings`, and estimates."""
        found: list[dict[str, Any]] = self.content["arms"]
        return found

    @property
    def quantity(self) -> str:
        """What is compared."""
        return str(self.content["quantity"])


def is_study(folder: Path) -> bool:
    """Whether the folder is that of a study."""
    return (folder / STUDY).exists()


def read_study(folder: Path) -> Study:
    """Reads a study folder, ended or not.

    Raises:
        RunError: study.json is damaged.
    """
    try:
        content = json.loads((folder / STUDY).read_text())
        result = json.loads((folder / "result.json").read_text()) if (folder / "result.json").exists() else {}
    except (OSError, ValueError) as error:
        raise RunError(f"{folder / STUDY} is damaged ({error}); continue the study, which writes it anew") from None
    return Study(folder, content, result)


def study_page(study: Study) -> Page:
    """The report of one study."""
    name = str(study.result.get("name", study.folder.name))
    page = Page(f"{name}: raynn study report")
    page.head = _head(study, name)
    told = [arm for arm in study.arms if arm["test"] is not None]
    if told:
        page.add("worth", "What each is worth", page.figures(_gains(study, told), large=True), _table(study))
        page.add("gap", "Where it generalizes", page.figures(_gaps(study, told), large=True))
    method = f'<p class="lead">{html.text(METHOD)}</p>'
    page.add("method", "How it was measured", method, _failures(study))
    page.add("again", "Repeat", f"<pre>{html.text(_command(study))}</pre>")
    return page


def _head(study: Study, name: str) -> str:
    status = str(study.result.get("status", "not ended"))
    by_name = {arm["arm"]: arm for arm in study.arms}
    entries = {}
    for key, word in (("none", "without any"), ("all", "with the job's")):
        if arm := by_name.get(key):
            entries[f"test/{study.quantity} {word}"] = _estimate(arm["test"])
    if (arm := by_name.get("all")) and arm["gain"]:
        entries["gain of the job's"] = _estimate(arm["gain"], signed=True)
    entries["seeds"] = str(study.content["seeds"])
    if study.result.get("seconds"):
        entries["in all"] = duration(study.result["seconds"])
    lead = f"{len(study.arms)} arms, compared by <strong>{html.text(f'test/{study.quantity}')}</strong>."
    title = f'<h1>{html.text(name)}<span class="badge">{html.text(status)}</span></h1>'
    return f'{title}<p class="lead">{lead}</p>{html.tiles(entries)}'


def _estimate(found: dict[str, Any] | None, signed: bool = False) -> str:
    """`0.913 +- 0.004`."""
    if found is None:
        return "\u2013"
    text = f"{found['mean']:{'+' if signed else ''}.4g}"
    return (
        text if found["low"] is None else f"{text}\u00a0\u00b1\u00a0{found['high'] - found['mean']:.2g}"
    )  # on one line


def _gains(study: Study, told: Sequence[dict[str, Any]]) -> Iterator[Chart]:
    note = f"Difference in test/{study.quantity}; the bar is the mean over seeds, to the right is better."
    for key, kind, title in (
        ("gain", ("all", "alone", "without"), "Gain over no regularizer"),
        ("loss_of_leaving", ("without",), "What leaving one out costs"),
    ):
        arms = [arm for arm in told if arm["kind"] in kind and arm[key] is not None]
        if arms:
            yield _bars(title, arms, key, study.quantity, note, "var(--val)")


def _gaps(study: Study, told: Sequence[dict[str, Any]]) -> Iterator[Chart]:
    quantity = study.quantity
    known = [arm for arm in told if arm["gap"] is not None]
    if not known:
        return
    note = f"By how much {quantity} on the training rows is better than on the test set."
    yield _bars("Generalization gap", known, "gap", quantity, note, "var(--test)")
    names = [arm["arm"] for arm in known]
    lines = [
        Line(split, [arm[key]["mean"] if arm[key] else None for arm in known], f"var(--{split})", symbol="circle")
        for split, key in (("train", "train"), ("val", "validation"), ("test", "test"))
    ]
    yield lines_chart(
        "Train, validation, test",
        names,
        lines,
        "",
        quantity,
        gap=(lines[0].y, lines[2].y),
        category=True,
        slanted=True,
        note="Means over seeds; the band is the gap.",
        height=360,
    )


def _bars(title: str, arms: Sequence[dict[str, Any]], key: str, value_name: str, note: str, color: str) -> Chart:
    means = [arm[key]["mean"] for arm in arms]
    whole = all(arm[key]["low"] is not None for arm in arms)
    low, high = ([arm[key][end] for arm in arms] if whole else None for end in ("low", "high"))
    names = [arm["arm"] for arm in arms]
    return bars(title, names, means, value_name, low=low, high=high, ends=("low", "high"), color=color, note=note)


def _table(study: Study) -> str:
    header = (
        "arm",
        "n",
        "test",
        "gain over none",
        "",
        "cost of leaving out",
        "",
        "validation",
        "train",
        "gap",
        "narrowed",
    )
    rows, classes = [], []
    for arm in study.arms:
        gain, cost = arm["gain"], arm["loss_of_leaving"]
        rows.append(
            (
                arm["arm"],
                arm["test"]["n"] if arm["test"] else 0,
                _estimate(arm["test"]),
                _estimate(gain, signed=True),
                WORDS[gain["verdict"]] if gain else "",
                _estimate(cost, signed=True),
                WORDS[cost["verdict"]] if cost else "",
                _estimate(arm["validation"]),
                _estimate(arm["train"]),
                _estimate(arm["gap"], signed=True),
                _estimate(arm["narrowed"], signed=True),
            )
        )
        classes.append("changed" if arm["kind"] == "all" else "")
    return f"<br>{html.card(html.scrolled(html.table(header, rows, classes)), f'{study.quantity}, arm by arm')}"


def _failures(study: Study) -> str:
    failures = [(row["arm"], row["seed"], row["reason"]) for row in study.content.get("failed", ())]
    return (
        html.card(html.scrolled(html.table(("arm", "seed", "why"), failures)), "Runs that failed") if failures else ""
    )


def _command(study: Study) -> str:
    return f"{shlex.join(['raynn', 'study', str(study.folder / 'job.yaml')])}    # repeat the study"
