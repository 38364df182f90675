"""Chromium without a window, by its own DevTools protocol over a pipe: what a page looks like to who reads it.

https://chromedevtools.github.io/devtools-protocol; --remote-debugging-pipe takes JSON that ends in a zero byte on descriptor 3 and
answers so on 4. Nothing listens on a port.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60  # seconds that an answer may take


def chromium() -> str | None:
    """MEDRAY_CHROMIUM, else the first of NAMES on PATH; None where there is none."""
    named = os.environ.get("MEDRAY_CHROMIUM")
    return named or next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page of one Chromium. `seen` is what it has asked the network for and complained of since the last `show`."""

    def __init__(self, program: str, profile: Path) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        high = [os.dup2(end, 200 + place) for place, end in enumerate((theirs_in, theirs_out))]
        os.close(theirs_in), os.close(theirs_out)
        options = ["--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--disable-gpu"]
        options += ["--no-first-run", "--disable-background-networking", "--disable-extensions", "--hide-scrollbars"]
        if os.geteuid() == 0:
            options.append("--no-sandbox")  # Chromium's sandbox refuses root
        command = 'exec "$0" "$@" 3<&200 4>&201 200<&- 201>&-'
        self._process = subprocess.Popen(
            ["bash", "-c", command, program, *options, "about:blank"],
            pass_fds=high, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in high:
            os.close(end)
        self._buffer = b""
        self._last = 0
        self._session: str | None = None
        self.seen: list[str] = []
        self._loaded = False
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(each["targetId"] for each in targets if each["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self._session = None
            self.call("Browser.close")
        os.close(self._out)
        os.close(self._in)
        self._process.wait(PATIENCE)

    def call(self, method: str, **settings: Any) -> dict[str, Any]:
        """The result of a command. Raises RuntimeError with Chromium's words for one that fails."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": settings}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._answer()
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def show(self, page: Path, width: int, scheme: str) -> None:
        """Load the file in a window of `width` pixels that prefers the colours of `scheme`: light or dark."""
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=phone)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.seen, self._loaded = [], False
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not self._loaded:
            self._answer()

    def evaluate(self, script: str) -> Any:
        """The JSON value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"])[:2000])
        return found["result"].get("value")

    def screenshot(self, file: Path) -> None:
        """PNG of the whole page."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(shot["data"]))

    def _answer(self) -> dict[str, Any]:
        """The next message. Events of interest go to `seen`."""
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0, end - time.monotonic()))
            piece = os.read(self._in, 1 << 20) if ready else b""
            if not piece:
                raise RuntimeError("Chromium gives no answer" if not ready else "Chromium has ended")
            self._buffer += piece
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        given = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                url = given["request"]["url"]
                if not url.startswith("data:") and given.get("type") != "Document":
                    self.seen.append(f"asks for {url}")
            case "Log.entryAdded":
                self.seen.append(f"{given['entry']['level']}: {given['entry']['text']}")
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown":
                self.seen.append(json.dumps(given)[:500])
        return message


@contextlib.contextmanager
def open_browser(program: str, profile: Path) -> Iterator[Browser]:
    browser = Browser(program, profile)
    try:
        yield browser
    finally:
        browser.close()
