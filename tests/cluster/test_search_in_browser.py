"""A real search and a real study, by the commands, and the reports that they leave in a real Chromium.

With RAYNN_SCREENSHOTS=FOLDER in the environment each page's picture is kept there, to be looked at.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import CHROMIUM, Browser, Tab, chart_id, draw_all, fits, selection

from raynn.folder import read_result

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.timeout(600),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]

DIGITS: dict[str, Any] = {
    "data": {"train": "digits", "target": "label", "test": 0.2},
    "network": {"kind": "feedforward", "hidden": [16]},
    "optimization": {"global_batch_size": 64, "max_epochs": 9, "learning_rate": 3e-3},
    "early_stopping": {"patience": 3},
}
SEARCH = {
    "trials": 12,
    "concurrent_trials": 2,
    "scheduler": "asha",
    "metric": "val/accuracy",
    "repeats": {"top": 1, "seeds": 2},
    "space": {
        "regularization.dropout": {"uniform": [0.0, 0.6]},
        "regularization.weight_decay": {"loguniform": [1e-6, 1e-1]},
        "optimization.learning_rate": {"loguniform": [1e-4, 3e-2]},
        "network.normalization": {"choice": ["none", "batch"]},
    },
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def ran(command: str, job: dict[str, Any], folder: Path) -> Path:
    """The run folder of a command, which has left its report."""
    (folder / "job.yaml").write_text(yaml.safe_dump(DIGITS | {"storage": str(folder / "runs")} | job))
    environment = {name: value for name, value in os.environ.items() if name != "RAYNN_REPORT"}
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as scratch:  # Ray's sockets want a short path
        done = subprocess.run(
            [sys.executable, "-m", "raynn", command, str(folder / "job.yaml")],
            env=environment | {"RAY_TMPDIR": scratch},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / job["name"]


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search of twelve trials, the best repeated twice."""
    return ran("tune", {"name": "search", "search": SEARCH}, tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of two knobs over two seeds."""
    job = {"name": "study", "regularization": {"dropout": 0.3}}
    job |= {"study": {"seeds": 2, "knobs": ["dropout", "l2"], "epochs": 3}}
    return ran("study", job, tmp_path_factory.mktemp("study"))


def hover(tab: Tab, key: str, x: float, y: float) -> None:
    """The mouse to a place of a chart, given as shares of its size."""
    left, top, width, height = tab.place_of(f"#{key}")
    tab.move(left + x * width, top + y * height)


def switched(tab: Tab) -> None:
    """The theme, by the button, and back."""
    before = tab.run("getComputedStyle(document.body).backgroundColor")
    for theme in ("dark", "light"):
        tab.run("document.getElementById('theme').click()")
        assert tab.run("document.documentElement.dataset.theme") == theme
        assert (tab.run("getComputedStyle(document.body).backgroundColor") == before) == (theme == "light")


def printed(tab: Tab) -> None:
    """On paper, with every chart drawn."""
    pdf = tab.pdf()
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 2
    assert tab.run("raynn.drawn.size") == tab.run("Object.keys(raynn.charts).length")


def test_the_report_of_a_real_search(search: Path, browser: Browser) -> None:
    result = read_result(search)
    count = sum(result["trials"].values())
    tab = browser.open(search / "report.html")
    assert selection(tab) == f"all {count} trials"
    assert count >= SEARCH["trials"]  # type: ignore[operator]
    draw_all(tab)
    assert tab.run("document.querySelectorAll('#trial-table tbody tr').length") == count
    # hover: a point of the history of trials tells its settings
    key = chart_id(tab, "Trial after trial")
    best = result["best"]
    items = f"raynn.charts[{key!r}].option.series.flatMap((s) => s.data)"
    x, y = tab.run(
        f"raynn.drawn.get({key!r}).convertToPixel('grid', {items}.find((d) => d.trial === {best['number']}).value)"
    )
    left, top, _, _ = tab.place_of(f"#{key}")
    tab.move(left + x, top + y)
    tab.wait(f"[...document.querySelectorAll('#{key} > div')].some((e) => "
             f"/trial \\d+[^]*regularization.dropout/.test(e.textContent))")  # fmt: skip
    # brush: what lies in the upper half of the first axis is selected, here and in the table
    key = chart_id(tab, "Parallel coordinates")
    left, top, _, height = tab.place_of(f"#{key}")
    tab.drag((left + 60, top + 40), (left + 60, top + height / 2))
    words = selection(tab)
    chosen = int(re.findall(r"\d+", words)[0]) if " of " in words else count
    assert 0 < tab.run("raynn.selected.size") < count
    assert words in (f"{chosen} of {count} trials selected", f"trial {chosen} of {count}")
    tab.run("document.getElementById('clear').click()")
    assert selection(tab) == f"all {count} trials"
    # select: the best trial's row, by a click
    row = f"#trial-table tr[data-trial='{best['number']}']"
    left, top, width, height = tab.place_of(row)
    tab.click(left + min(width, 200) / 2, top + height / 2)
    assert selection(tab) == f"trial {best['number']} of {count}"
    tab.run("document.getElementById('clear').click()")
    switched(tab)
    printed(tab)
    fits(tab, "real-search")
    assert tab.complaints() == []
    tab.close()


def test_the_report_of_a_real_study(study: Path, browser: Browser) -> None:
    tab = browser.open(study / "report.html")
    draw_all(tab)
    arms = [arm["arm"] for arm in json.loads((study / "study.json").read_text())["arms"]]
    assert set(arms) <= set(tab.run("[...document.querySelectorAll('td')].map((e) => e.innerText.trim())"))
    key = chart_id(tab, "Train, validation, test")
    hover(tab, key, 0.5, 0.5)
    tab.wait(f"[...document.querySelectorAll('#{key} > div')].some((e) => /train[^]*test/.test(e.textContent))")
    key = chart_id(tab, "Gain over no regularizer")
    hover(tab, key, 0.6, 0.2)
    tab.wait(
        f"[...document.querySelectorAll('#{key} > div')].some((e) => {arms!r}.some((a) => e.textContent.includes(a)))"
    )
    switched(tab)
    printed(tab)
    fits(tab, "real-study")
    assert tab.complaints() == []
    tab.close()
