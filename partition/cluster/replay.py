"""Knows which request ids have been seen, in bounded memory."""

from __future__ import annotations

import threading
from collections import OrderedDict

WINDOW = 4096  # ids of one session that may overtake each other
SESSIONS = 256


class Seen:
    """A window of sequence numbers per session, the least recently used session going first.

    A number that was seen, or that is older than the window, is not fresh. What a forgotten
    session sent cannot be told from new requests; the worker's epoch in every frame limits that to
    the life of one process.

    Args:
        window: how far a number may lie behind the newest one of its session.
        sessions: how many sessions are remembered.
    """

    def __init__(self, window: int = WINDOW, sessions: int = SESSIONS) -> None:
        self._mask = (1 << window) - 1
        self._window = window
        self._sessions = sessions
        self._newest: OrderedDict[int, tuple[int, int]] = OrderedDict()  # session -> newest, bits
        self._lock = threading.Lock()

    def fresh(self, session: int, sequence: int) -> bool:
        """Tell whether a request id comes for the first time, and remember it."""
        with self._lock:
            newest, bits = self._newest.pop(session, (sequence, 0))
            ahead = sequence - newest
            if ahead > 0:  # bit n: newest - n was seen
                bits = (bits << ahead) & self._mask if ahead < self._window else 0
                newest, ahead = sequence, 0
            is_new = -ahead < self._window and not bits >> -ahead & 1
            if is_new:
                bits |= 1 << -ahead
            self._newest[session] = (newest, bits)
            while len(self._newest) > self._sessions:
                self._newest.popitem(last=False)
            return is_new
