"""Chromium without a window, driven over the pipe of its DevTools protocol. Needs no package."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers.waiting import wait_until

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
CONTRAST = """
(() => {
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$|transparent/.test(colour)) return colour;
    }
    return "rgb(255,255,255)";
  };
  let least = 99;
  for (const e of document.querySelectorAll("body *")) {
    const words = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!words || !e.getClientRects().length) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => x - y);
    least = Math.min(least, (b + 0.05) / (a + 0.05));
  }
  return least;
})()
"""
"""The least contrast of a text and what is behind it, on a page that is open."""


class Tab:
    """One page. ``events`` are the DevTools events so far."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._number = os.fdopen(read, "rb", 0), os.fdopen(write, "wb", 0), 0
        self._left = b""
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._number:
                assert "error" not in found, found["error"]
                return found["result"]
            self.events.append(found)

    def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """Return the value of a script."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until a script is true."""
        wait_until(lambda: bool(self.run(condition)))

    def choose_file(self, selector: str, path: Path) -> None:
        """Choose a file in an input, as a user does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def scheme(self, name: str) -> None:
        """Prefer light or dark."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def width(self, pixels: int) -> None:
        """Set the width of the window."""
        self.call("Emulation.setDeviceMetricsOverride", width=pixels, height=900, deviceScaleFactor=1, mobile=False)

    def screenshot(self, path: Path) -> None:
        """Save the whole page as PNG."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            data = self._read.read(65536)
            assert data, "the browser has ended"
            self._left += data
        text, _, self._left = self._left.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        return found

    def close(self) -> None:
        self._read.close()
        self._write.close()


@contextmanager
def browsing() -> Iterator[Tab]:
    """Start the browser and return a tab; it ends with the block."""
    assert BROWSER is not None
    to_browser, from_us = os.pipe()
    to_us, from_browser = os.pipe()
    # Not in the TMPDIR of a test: the path of the browser's socket must be shorter than 108 bytes.
    variables = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True, dir="/tmp") as profile:
        script = f"exec {BROWSER} --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run"
        script += f" --user-data-dir={profile} --remote-debugging-pipe 3<&{to_browser} 4>&{from_browser}"
        process = subprocess.Popen(
            ["bash", "-c", script], pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True, env=variables,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        tab = Tab(to_us, from_us)
        try:
            yield tab
        finally:
            tab.close()
            process.terminate()
            process.wait()
