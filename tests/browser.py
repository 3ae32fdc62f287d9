"""A real Chromium, driven through the pipe of its DevTools protocol: no driver and no package between."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
DESKTOP, PHONE = (1280, 900), (390, 844)
SWITCHES = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
QUIET = ("--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update")
TIMEOUT_S = 20.0


class Browser:
    """One browser process; `open` shows a file in a new tab."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        read_there, self._write = os.pipe()
        self._read, write_there = os.pipe()

        # it wants them as 3 and 4; the shell moves them, as code between fork and exec may wait forever for a lock
        as_three_and_four = f'exec "$@" 3<&{read_there} 4>&{write_there}'
        command = [CHROMIUM, *SWITCHES, *QUIET, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", as_three_and_four, "bash", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(read_there, write_there),
        )
        os.close(read_there)
        os.close(write_there)
        self._buffer = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def send(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """The result of one command; what happens meanwhile is kept in `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self) -> dict[str, Any]:
        """The next message, an event kept on its way."""
        until = time.monotonic() + TIMEOUT_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"Chromium said nothing for {TIMEOUT_S:g} s"
            self._buffer += os.read(self._read, 1 << 20)
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, path: Path, size: tuple[int, int] = DESKTOP, *, dark: bool = False) -> Tab:
        """Shows a file."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            tab.send(f"{domain}.enable")
        tab.resize(size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        tab.send("Emulation.setEmulatedMedia", features=scheme)
        tab.send("Page.navigate", url=path.resolve().as_uri())
        tab.wait("performance.getEntriesByName('raynn-drawn').length > 0")
        return tab


class Tab:
    """One page that is shown."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command to this page."""
        return self.browser.send(method, self.session, **parameters)

    def resize(self, size: tuple[int, int]) -> None:
        """Width and height in CSS pixels; a narrow one is a phone."""
        width, height = size
        phone = width < 600
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def run(self, script: str) -> Any:
        """The value of an expression of the page."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str) -> None:
        """Until an expression is true."""
        until = time.monotonic() + TIMEOUT_S
        while not self.run(script):
            assert time.monotonic() < until, f"never came true: {script}; {self.complaints()}"
            time.sleep(0.02)

    def move(self, x: float, y: float) -> None:
        """The mouse to a place of the window."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def drag(self, start: tuple[float, float], stop: tuple[float, float]) -> None:
        """The mouse pressed, moved and let go."""
        self.move(*start)
        for kind, (x, y) in (("mousePressed", start), ("mouseMoved", stop), ("mouseReleased", stop)):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def click(self, x: float, y: float) -> None:
        """The left button at a place of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def close(self) -> None:
        """Closes the tab."""
        self.send("Page.close")

    def press(self, key: str) -> None:
        """A key, pressed and let go."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def place_of(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element, scrolled to the middle of the window."""
        found = self.run(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center', "
            "behavior: 'instant'}); const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; })()"
        )
        return tuple(found)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """A screenshot as PNG, of the window or of the whole page."""
        if whole:
            draw = "for (const id of Object.keys(raynn.charts)) raynn.draw(id)"
            self.run(f"(() => {{ {draw}; scrollTo({{top: 0, behavior: 'instant'}}); }})()")
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self) -> bytes:
        """The page on paper."""
        return base64.b64decode(self.send("Page.printToPDF", printBackground=True)["data"])

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions, and requests to anything but the file itself."""
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            what, details = event["method"], event["params"]
            if what == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning", "assert"):
                found.append(f"console: {[a.get('value') for a in details['args']]}")
            if what == "Runtime.exceptionThrown":
                found.append(f"exception: {details['exceptionDetails']}")
            if what == "Log.entryAdded" and details["entry"]["level"] in ("error", "warning"):
                found.append(f"log: {details['entry']['text']}")
            if what == "Network.requestWillBeSent" and not details["request"]["url"].startswith(("file:", "data:")):
                found.append(f"request: {details['request']['url']}")
        return found


def keep(tab: Tab, name: str) -> None:
    """A picture of the whole page, where one is asked for."""
    if folder := os.environ.get("RAYNN_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        tab.picture(Path(folder) / f"{name}.png", whole=True)


def draw_all(tab: Tab) -> None:
    """Those too that are not near yet."""
    tab.run("Object.keys(raynn.charts).forEach(raynn.draw)")


def selection(tab: Tab) -> str:
    """What a search's page says is selected, once it is drawn."""
    tab.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return str(tab.run("document.getElementById('selection').textContent"))


def chart_id(tab: Tab, title: str) -> str:
    """The id of the chart that begins so."""
    return str(tab.run(f"Object.keys(raynn.charts).find((id) => raynn.charts[id].label.startsWith({title!r}))"))


def fits(tab: Tab, name: str) -> None:
    """Nothing sticks out at the side of a desktop's window or a phone's, and charts follow."""
    for width, height in (DESKTOP, PHONE):
        tab.resize((width, height))
        tab.wait("[...document.querySelectorAll('.chart')].every((e) => Math.abs(raynn.drawn.get(e.id).getWidth() - "
                 "e.clientWidth) < 2)")  # fmt: skip
        assert tab.run("document.documentElement.scrollWidth") <= width
        keep(tab, f"{name}-{width}")
