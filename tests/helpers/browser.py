"""Drive headless Chromium over the Chrome DevTools Protocol on two pipes: no port, no driver, no package."""

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ANSWER = 60  # seconds for one command
INSTALL = "apt-get install -y --no-install-recommends chromium fonts-dejavu-core"
SWITCHES = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
)  # fmt: skip

# Parts of the page that cannot be seen: without a size, or outside the window.
HIDDEN = """[...document.querySelectorAll("svg polyline, figure, figure img, .tiles div, h2, .card")].filter(part => {
  const box = part.getBoundingClientRect();
  return box.width < 2 || box.right > document.documentElement.clientWidth + 1 && !part.closest(".scroll");
}).map(part => part.outerHTML.slice(0, 200))"""
# Pairs of words in a chart that overlap.
OVERLAPS = """[...document.querySelectorAll("figure.chart")].flatMap(figure => {
  const words = [...figure.querySelectorAll("svg text, h3, .at, .legend li")];
  const boxes = words.map(word => word.getBoundingClientRect());
  return boxes.flatMap((a, i) => boxes.slice(i + 1).flatMap((b, j) =>
    a.left < b.right && b.left < a.right && a.top < b.bottom - 1 && b.top < a.bottom - 1
      ? [words[i].textContent + " / " + words[i + 1 + j].textContent] : []));
})"""


class Browser:
    """One page in Chromium.

    Attributes:
        requests: URLs that the page has requested since `open`.
        complaints: console errors and warnings, and script exceptions, since `open`.
    """

    def __init__(self, to: int, answers: int):
        self.to, self.answers = to, answers
        self.number, self.unread = 0, b""
        self.session: dict[str, str] = {}
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.session = {"sessionId": session}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, page: Path | str, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Open a file or URL in a window of this size in CSS pixels; a width of at most 600 emulates a phone."""
        phone = width <= 600
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1 + phone, mobile=phone
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.requests.clear()
        self.complaints.clear()
        self.loaded = False
        self.call("Page.navigate", url=page if isinstance(page, str) else page.absolute().as_uri())
        self.wait_for_load()

    def wait_for_load(self) -> None:
        """Wait until the page has loaded, or loaded again if `loaded` was set to False."""
        while not self.loaded:
            self.receive()

    def evaluate(self, expression: str) -> Any:
        """Evaluate a JavaScript expression in the page and return its value."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def point_at(self, x: float, y: float) -> None:
        """Move the mouse to a point, in CSS pixels of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, file: Path, *, whole: bool = True) -> None:
        """Write a PNG of the whole page or, without `whole`, of its visible part."""
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(picture["data"]))

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events that arrive meanwhile are recorded."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": params, **self.session}
        os.write(self.to, json.dumps(command).encode() + b"\0")
        while (message := self.receive()).get("id") != self.number:
            pass
        assert "error" not in message, (method, message["error"])
        return message["result"]

    def receive(self) -> dict[str, Any]:
        """Return the next message; if it is an event, record it."""
        deadline = time.monotonic() + ANSWER
        while b"\0" not in self.unread:
            ready, _, _ = select.select([self.answers], [], [], deadline - time.monotonic())
            assert ready, f"Chromium did not answer within {ANSWER} s"
            piece = os.read(self.answers, 1 << 20)
            assert piece, "Chromium exited"
            self.unread += piece
        text, _, self.unread = self.unread.partition(b"\0")
        message = json.loads(text)
        self.note(message.get("method", ""), message.get("params", {}))
        return message

    def note(self, event: str, params: dict[str, Any]) -> None:
        """Record a load, a request, an error or a warning."""
        if event == "Page.loadEventFired":
            self.loaded = True
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(params["args"]))
        elif event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])


def check_layout(browser: Browser, width: int) -> None:
    """Assert that nothing is missing, cut off or overlapping."""
    assert browser.evaluate("innerWidth") == width  # a phone widens the window to what overflows
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert browser.evaluate(HIDDEN) == []
    assert browser.evaluate(OVERLAPS) == []


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """Run Chromium with `profile` as its data folder.

    Raises:
        AssertionError: Chromium is not installed; the message has the command that installs it.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, f"the report tests need Chromium; install it with: {INSTALL}"
    (commands, to), (answers, back) = os.pipe(), os.pipe()
    process = subprocess.Popen(
        # Chromium reads commands from descriptor 3 and answers on 4.
        ["bash", "-c", f'exec "$@" 3<&{commands} 4>&{back}', "bash", program, *SWITCHES, f"--user-data-dir={profile}"],
        pass_fds=(commands, back), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env={**os.environ, "HOME": str(profile)},
    )  # fmt: skip
    os.close(commands)
    os.close(back)
    try:
        yield Browser(to, answers)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(to)
        os.close(answers)
