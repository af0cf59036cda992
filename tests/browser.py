"""A headless Chromium of the system, spoken to over a pipe: open, evaluate, take a picture."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """One page of a browser whose profile lies in `folder`."""

    def __init__(self, folder: Path, width: int = 1200, height: int = 1250) -> None:
        assert CHROMIUM is not None
        ours, theirs = os.pipe(), os.pipe()  # to the browser, from the browser
        # The browser speaks on descriptors 3 and 4.
        start = 'exec 3<&"$1" 4>&"$2"; shift 2; exec "$@"'
        self._process = subprocess.Popen(
            [
                "/bin/bash", "-c", start, "-", str(ours[0]), str(theirs[1]), CHROMIUM, "--headless",
                "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--remote-debugging-pipe", f"--user-data-dir={folder}",
                f"--window-size={width},{height}", "about:blank",
            ],
            pass_fds=(ours[0], theirs[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(ours[0])
        os.close(theirs[1])
        self._out, self._in = os.fdopen(ours[1], "wb"), os.fdopen(theirs[0], "rb")
        self._number = 0
        self._session: str | None = None
        page = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]

    def open(self, url: str) -> None:
        self._ask("Page.navigate", url=url)

    def evaluate(self, code: str) -> Any:
        """The value of an expression in the page; None for one that cannot be evaluated yet."""
        found = self._ask("Runtime.evaluate", expression=code, returnByValue=True)
        return None if "exceptionDetails" in found else found["result"].get("value")

    def wait(self, code: str, patience: float = 30.0) -> Any:
        """Wait until an expression is true; return it."""
        end = time.monotonic() + patience
        while not (value := self.evaluate(code)):
            assert time.monotonic() < end, (code, self.evaluate("document.body.innerText"))
            time.sleep(0.05)
        return value

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self._out.close()  # a browser without its pipe ends
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._in.close()

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        while True:
            told = json.loads(self._read())
            if told.get("id") == self._number:
                assert "error" not in told, told
                return dict(told["result"])

    def _read(self) -> bytes:
        parts = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            assert byte, "the browser has ended"
            parts += byte
        return bytes(parts)
