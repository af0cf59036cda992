"""The pictures of a camera, a stream or a film: of a live one always the newest. Read by OpenCV."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlet._extras import require
from vitlet.errors import DeadlineError, UsageError

PATIENCE = 10.0  # seconds that a camera may be gone
RETRY = 0.5


class Camera:
    """Where pictures come from until it ends or is closed.

    A live source is read all the time, and a picture that nobody took before the next one came is
    passed over: an answer about what was seen seconds ago is of no use. Of a film every picture is
    given. A live source that fails is opened again for `PATIENCE` seconds.

    Args:
        source: the number of a camera ("0"), a device ("/dev/video0"), the address of a stream
            ("rtsp://...") or the path of a film.
        log: is told when the source fails and comes back.
        capture: opens a source, for tests; None for OpenCV.

    Attributes:
        live: whether pictures are lost when they are not taken in time.
        passed_over: how many were.

    Raises:
        UsageError: nothing of that name can be opened.
        MissingDependencyError: OpenCV is not installed.
    """

    def __init__(
        self,
        source: str,
        log: Callable[[str], None],
        capture: Callable[[str], Any] | None = None,
    ) -> None:
        self.live = not Path(source).is_file()
        self.passed_over = 0
        self._source, self._log, self._capture = source, log, capture or _opencv
        self._changed = threading.Condition()
        self._newest: NDArray[np.uint8] | None = None
        self._failed = self._closed = False
        self._opened = self._capture(source)
        if not self._opened.isOpened():
            raise UsageError(
                f"--camera {source} cannot be opened: expected the number of a camera such as 0, "
                "a device such as /dev/video0, the address of a stream, or the path of a film"
            )
        self._thread = threading.Thread(target=self._read_on, name="vitlet-camera", daemon=True)
        if self.live:
            self._thread.start()

    def pictures(self) -> Iterator[NDArray[np.uint8]]:
        """Give pictures as RGB, uint8 (H, W, 3), until the film ends or the camera is closed.

        Raises:
            DeadlineError: a live source gave no picture for `PATIENCE` seconds.
        """
        while not self._closed:
            picture = self._take() if self.live else self._read()
            if picture is None:
                return
            yield picture

    def close(self) -> None:
        """Read no more; again does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(PATIENCE)
        self._opened.release()

    def _read(self) -> NDArray[np.uint8] | None:
        good, picture = self._opened.read()
        return np.ascontiguousarray(picture[..., ::-1]) if good else None  # OpenCV's are BGR

    def _take(self) -> NDArray[np.uint8] | None:
        with self._changed:
            while self._newest is None and not self._closed and not self._failed:
                self._changed.wait()
            picture, self._newest = self._newest, None
        if picture is None and self._failed:
            raise DeadlineError(f"--camera {self._source} gave no picture for {PATIENCE:g} s")
        return picture

    def _read_on(self) -> None:
        while not self._closed:
            picture = self._read()
            if picture is None:
                if not self._again():
                    return
                continue
            with self._changed:
                self.passed_over += self._newest is not None
                self._newest = picture
                self._changed.notify_all()

    def _again(self) -> bool:
        """Open the source again; say whether it is there."""
        self._log(f"camera {self._source} gives no picture: opening it again")
        until = time.monotonic() + PATIENCE
        while not self._closed and time.monotonic() < until:
            self._opened.release()
            self._opened = self._capture(self._source)
            if self._opened.isOpened():
                self._log(f"camera {self._source} is back")
                return True
            with self._changed:
                self._changed.wait(RETRY)
        with self._changed:
            self._failed = True
            self._changed.notify_all()
        return False


def _opencv(source: str) -> Any:
    # It would write to the terminal what is reported here in one line.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2 = require("cv2", extra="camera", why="read a camera or a film")
    return cv2.VideoCapture(int(source) if source.isdecimal() else source)
