"""Headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from websockets.sync.client import ClientConnection, connect

from ..support import CHROMIUM_FLAGS

FLAGS: Final = (
    *CHROMIUM_FLAGS,
    "--remote-debugging-port=0",
)
WAITING_S: Final = 20.0


class Tab:
    """One page. `errors` holds what its console, its scripts and its security policy complained of."""

    def __init__(self, connection: ClientConnection) -> None:
        self.errors: list[str] = []
        self._connection, self._count = connection, 0
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol; events that come in between are noted."""
        self._count += 1
        self._connection.send(json.dumps({"id": self._count, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(timeout=WAITING_S))
            self._note(message)
            if message.get("id") == self._count:
                assert "error" not in message, message
                found: dict[str, Any] = message["result"]
                return found

    def _note(self, message: dict[str, Any]) -> None:
        about = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(about["exceptionDetails"])[:500])
        if message.get("method") == "Runtime.consoleAPICalled" and about["type"] in {"error", "warning", "assert"}:
            self.errors.append(json.dumps(about["args"])[:500])
        if message.get("method") == "Log.entryAdded" and about["entry"]["level"] in {"error", "warning"}:
            self.errors.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")

    def open(self, address: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open an address in a window of this size."""
        self.size(width, height)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Page.navigate", url=address)
        self.wait(f"document.readyState === 'complete' && location.href.startsWith({address!r})")

    def size(self, width: int, height: int) -> None:
        """Change the window's size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def value(self, script: str) -> Any:
        """What an expression, or the promise that it gives, evaluates to."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        """Wait until an expression is true; its value."""
        end = time.monotonic() + WAITING_S
        while not (found := self.value(script)):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.05)
        return found

    def point(self, selector: str, x: float, y: float) -> None:
        """Move the mouse to a place in an element, in shares of its width and height."""
        box = self.value(f"document.querySelector({selector!r}).getBoundingClientRect().toJSON()")
        left, top = box["x"] + x * box["width"], box["y"] + y * box["height"]
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=left, y=top)

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if kind == "keyDown" and len(key) == 1 else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, modifiers=8 if shift else 0, **text)

    def choose(self, selector: str, path: Path) -> None:
        """Choose a file in an input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def screenshot(self, path: Path) -> None:
        """Write what is seen as PNG."""
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=False)
        path.write_bytes(base64.b64decode(taken["data"]))


@contextmanager
def chromium(program: str, folder: Path, *flags: str) -> Iterator[Tab]:
    """Start a browser with one empty page; its profile is in `folder`."""
    command = [program, *FLAGS, *flags, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stderr is not None
            place = next(found[1] for line in process.stderr if (found := re.search(r"ws://([^/]+)/devtools", line)))
            with urllib.request.urlopen(f"http://{place}/json", timeout=WAITING_S) as answer:
                pages = [each for each in json.load(answer) if each["type"] == "page"]
            with connect(pages[0]["webSocketDebuggerUrl"], max_size=None, compression=None) as connection:
                yield Tab(connection)
        finally:
            process.terminate()
            process.communicate(timeout=WAITING_S)
