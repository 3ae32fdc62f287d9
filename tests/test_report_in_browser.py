"""Reports in a real Chromium: they draw, answer the mouse and the keyboard, print, fit a phone, and ask for nothing.

With RAYNN_SCREENSHOTS=FOLDER in the environment each page's picture is kept there, to be looked at.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser, chart_id, draw_all, fits, selection
from searches import write_search

from raynn.report import write_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]
RUNS = ("classifier", "regressor", "image_classifier", "forecaster", "writer", "painter")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a search of 60 trials."""
    return write_report(write_search(tmp_path_factory.mktemp("search"), 60, objectives=True))


@pytest.fixture(scope="module")
def page(classifier: Path) -> Path:
    """The report of a run that tells classes."""
    return write_report(classifier)


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Path:
    folder = request.getfixturevalue(request.param)
    assert isinstance(folder, Path)
    return folder


@pytest.mark.parametrize("run", RUNS, indirect=True)
def test_the_report_of_a_run_draws_everywhere(run: Path, browser: Browser) -> None:
    tab = browser.open(write_report(run))
    draw_all(tab)
    charts, drawn = tab.run("[Object.keys(raynn.charts).length, document.querySelectorAll('.chart svg path').length]")
    assert charts >= 2
    assert drawn > 10 * charts
    fits(tab, run.name)
    assert tab.complaints() == []
    tab.close()


def test_the_mouse_over_a_curve_tells_its_numbers(page: Path, browser: Browser) -> None:
    tab = browser.open(page)
    left, top, width, height = tab.place_of(f"#{chart_id(tab, 'Loss, training and validation')}")
    tab.move(left + width / 2, top + height / 2)
    tab.wait("[...document.querySelectorAll('.chart div')].some((e) => /training[^]*validation/.test(e.textContent))")
    tab.close()


def test_the_mouse_over_a_norm_tells_its_layer_and_epoch(page: Path, browser: Browser) -> None:
    tab = browser.open(page)
    key = chart_id(tab, "Gradient norms")
    left, top, _, _ = tab.place_of(f"#{key}")
    tab.wait(f"raynn.drawn.has({key!r})")
    x, y = tab.run(f"raynn.drawn.get({key!r}).convertToPixel({{xAxisIndex: 0, yAxisIndex: 0}}, ['2', 'head'])")
    tab.move(left + x, top + y)
    tab.wait(f"[...document.querySelectorAll('#{key} > div')].some((e) => "
             "/gradient norm [^]*head, epoch 2/.test(e.textContent))")  # fmt: skip
    assert tab.complaints() == []
    tab.close()


def test_the_keyboard_walks_along_a_curve(page: Path, browser: Browser) -> None:
    tab = browser.open(page)
    key = chart_id(tab, "Loss, training and validation")
    tab.run(f"document.getElementById({key!r}).focus()")
    shown = []
    for _ in range(2):
        tab.press("ArrowRight")
        tab.wait(f"/training/.test(document.querySelector('#{key} > div:last-child').textContent)")
        shown.append(tab.run(f"document.querySelector('#{key} > div:last-child').textContent"))
    assert shown[0].startswith("1")
    assert shown[1].startswith("2")
    # every chart is reached by Tab and says what it is
    assert tab.run("[...document.querySelectorAll('.chart')].every((e) => e.tabIndex === 0 && e.ariaLabel.length > 3)")
    tab.close()


def test_the_theme_is_switched_and_everything_with_it(page: Path, browser: Browser) -> None:
    tab = browser.open(page)

    def colors() -> list[str]:
        key = chart_id(tab, "Loss, training and validation")
        line = f"document.querySelector('#{key} svg path[stroke-width=\"2\"]').getAttribute('stroke')"
        return [str(tab.run("getComputedStyle(document.body).backgroundColor")), str(tab.run(line))]

    light = colors()
    left, top, width, height = tab.run("(() => { const r = document.getElementById('theme').getBoundingClientRect(); "
                                       "return [r.x, r.y, r.width, r.height]; })()")  # fmt: skip
    tab.click(left + width / 2, top + height / 2)
    dark = colors()
    assert tab.run("document.documentElement.dataset.theme") == "dark"
    assert all(a != b for a, b in zip(light, dark, strict=True))
    tab.click(left + width / 2, top + height / 2)
    assert colors() == light
    assert tab.complaints() == []
    tab.close()


@pytest.mark.parametrize("which", ["run", "search"])
def test_on_paper_every_chart_is_drawn_in_the_light(which: str, page: Path, search: Path, browser: Browser) -> None:
    tab = browser.open({"run": page, "search": search}[which], dark=True)
    before = tab.run("raynn.drawn.size")
    pdf = tab.pdf()
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 2
    assert before < tab.run("raynn.drawn.size") == tab.run("Object.keys(raynn.charts).length")
    assert tab.run("document.documentElement.dataset.theme") == "dark", "and afterwards as it was"
    if folder := os.environ.get("RAYNN_SCREENSHOTS"):
        (Path(folder) / f"{which}.pdf").write_bytes(pdf)
    assert tab.complaints() == []
    tab.close()


def test_the_report_of_a_search_draws_everywhere(search: Path, browser: Browser) -> None:
    tab = browser.open(search, dark=True)
    draw_all(tab)
    assert tab.run("document.documentElement.dataset.theme") == "dark"
    assert selection(tab) == "all 60 trials"
    assert tab.run("document.querySelectorAll('#trial-table tbody tr').length") == 60
    fits(tab, "search")
    assert tab.complaints() == []
    tab.close()


def test_a_brush_on_an_axis_selects_trials_everywhere(search: Path, browser: Browser) -> None:
    tab = browser.open(search)
    key = chart_id(tab, "Parallel coordinates")
    left, top, _, height = tab.place_of(f"#{key}")
    tab.drag((left + 60, top + 60), (left + 60, top + height / 2))
    words = selection(tab)
    number = int(words.split()[0])
    assert words == f"{number} of 60 trials selected"
    assert 0 < number < 60
    # the upper half of the first axis: what lies there is what is selected
    name = tab.run(f"raynn.charts[{key!r}].option.parallelAxis[0].name")
    place = f"raynn.charts[{key!r}].option.series[0].data"
    values = tab.run(f"{place}.map((d) => [raynn.selected.has(d.trial), d.value[0]])")
    inside, outside = ([v for on, v in values if on is which] for which in (True, False))
    assert min(inside) > max(v for v in outside if v <= min(inside)), name
    assert tab.run("[...document.querySelectorAll('#trial-table tbody tr')].filter((r) => !r.hidden).length") == number
    draw_all(tab)
    faded = (
        "raynn.drawn.get({key!r}).getOption().series.flatMap((s) => s.data).filter((d) => d.itemStyle?.opacity < 0.1)"
    )
    other = chart_id(tab, "Trial after trial")
    assert (
        len(tab.run(faded.format(key=other) + ".map((d) => d.trial)"))
        == tab.run(
            f"raynn.charts[{other!r}].option.series.flatMap((s) => s.data).filter((d) => d.trial !== undefined).length"
        )
        - number
    )
    tab.run("document.getElementById('clear').click()")
    assert selection(tab) == "all 60 trials"
    assert tab.complaints() == []
    tab.close()


def test_a_brush_over_points_selects_those_inside(search: Path, browser: Browser) -> None:
    tab = browser.open(search)
    key = chart_id(tab, "Trial after trial")
    left, top, width, height = tab.place_of(f"#{key}")
    start, stop = (0.3 * width, 0.2 * height), (0.7 * width, 0.8 * height)
    tab.wait(f"raynn.drawn.has({key!r})")
    tab.drag((left + start[0], top + start[1]), (left + stop[0], top + stop[1]))
    tab.wait("raynn.selected !== null")
    (x0, y1), (x1, y0) = (
        tab.run(f"raynn.drawn.get({key!r}).convertFromPixel('grid', {list(corner)})") for corner in (start, stop)
    )
    points = tab.run(f"raynn.charts[{key!r}].option.series.flatMap((s) => s.data).filter((d) => d.trial !== undefined)")
    inside = {p["trial"] for p in points if x0 <= p["value"][0] <= x1 and y0 <= p["value"][1] <= y1}
    assert set(tab.run("[...raynn.selected]")) == inside
    assert selection(tab) == f"{len(inside)} of 60 trials selected"
    assert tab.complaints() == []
    tab.close()


def test_a_trial_is_selected_by_keyboard_and_the_table_sorted(search: Path, browser: Browser) -> None:
    tab = browser.open(search)
    tab.run("document.querySelector('#trial-table tbody tr').focus()")
    tab.press("ArrowDown")
    second = tab.run("document.activeElement.dataset.trial")
    assert second == tab.run("document.querySelectorAll('#trial-table tbody tr')[1].dataset.trial")
    tab.press("Enter")
    assert selection(tab) == f"trial {second} of 60"
    assert tab.run("document.querySelectorAll('#trial-table tr[aria-selected=true]').length") == 1
    tab.press("Enter")
    assert selection(tab) == "all 60 trials"
    tab.run("document.querySelector('#trial-table th button').click()")
    numbers = tab.run("[...document.querySelectorAll('#trial-table tbody tr')].map((r) => Number(r.dataset.trial))")
    assert numbers == list(range(60))
    tab.run("document.querySelector('#trial-table th button').click()")
    assert tab.run("document.querySelector('#trial-table tbody tr').dataset.trial") == "59"
    fate = "document.getElementById('fate')"
    tab.run(f"{fate}.value = 'cut'; {fate}.dispatchEvent(new Event('change'))")
    selection(tab)
    rows = "[...document.querySelectorAll('#trial-table tbody tr')].filter((row) => !row.hidden)"
    assert set(tab.run(f"{rows}.map((row) => row.cells[1].innerText.trim())")) == {"cut"}
    tab.close()


def test_what_waits_for_the_next_frame_is_on_paper_too(page: Path, browser: Browser) -> None:
    """A browser prints what stands there when `beforeprint` returns."""
    tab = browser.open(page)
    sizes = tab.run(
        "(() => { dispatchEvent(new Event('beforeprint')); const found = [...document.querySelectorAll('.chart svg')]"
        ".map((e) => [e.getBBox().width, Number(e.getAttribute('width'))]); dispatchEvent(new Event('afterprint')); "
        "return found; })()"
    )
    assert len(sizes) == tab.run("Object.keys(raynn.charts).length")
    assert all(drawn <= width + 2 <= 660 for drawn, width in sizes), sizes
    tab.close()


@pytest.mark.slow  # half a minute with one core among many
def test_five_hundred_trials_stay_usable(tmp_path: Path, browser: Browser) -> None:
    path = write_report(write_search(tmp_path, 500))
    assert path.stat().st_size < 6e6
    tab = browser.open(path)
    assert selection(tab) == "all 500 trials"
    draw_all(tab)
    left, top, _, height = tab.place_of(f"#{chart_id(tab, 'Parallel coordinates')}")
    tab.drag((left + 60, top + 60), (left + 60, top + height / 2))
    assert re.fullmatch(r"\d+ of 500 trials selected", selection(tab))
    assert tab.complaints() == []
    tab.close()


def test_complaints_are_heard(tmp_path: Path, browser: Browser) -> None:
    """The tests above would notice an error, a warning and a request."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><link rel=icon href='data:,'><script>console.warn('careful'); performance.mark('raynn-drawn'); "
        "fetch('http://127.0.0.1:9/x').catch(() => {}); setTimeout(() => { done = true; nothing.there }, 0)</script>"
    )
    tab = browser.open(page)
    tab.wait("typeof done !== 'undefined'")
    kinds = {complaint.partition(":")[0] for complaint in tab.complaints()}
    assert {"console", "exception", "request"} <= kinds
    tab.close()
