"""Time for the runner: now, and calls at a later time. A real one, and one that tests move."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that is due later."""

    def cancel(self) -> None:
        """Do not make the call; nothing happens when it was made already."""
        ...


class Clock(Protocol):
    """Tells the time in seconds from an arbitrary start, and makes calls at a later time."""

    def now(self) -> float:
        """Return the time."""
        ...

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        """Make `call` at the time `when`, or as soon as possible when that has passed.

        Calls are short: they come one after the other on one thread.
        """
        ...

    def close(self) -> None:
        """Make no more calls."""
        ...


class _Due:
    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None  # what it refers to can go, though the entry stays until it is due


class RealClock:
    """The system's monotonic clock, with one thread for the calls."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, _Due]] = []
        self._numbers = itertools.count()
        self._change = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._run, name="vitlet-clock", daemon=True)
        self._thread.start()

    def now(self) -> float:
        """Return the time."""
        return time.monotonic()

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        """Make `call` at the time `when`."""
        due = _Due(call)
        with self._change:
            heapq.heappush(self._due, (when, next(self._numbers), due))
            if self._due[0][2] is due:
                self._change.notify()
        return due

    def close(self) -> None:
        """Make no more calls and end the thread."""
        with self._change:
            self._open = False
            self._change.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._change:
                while self._open and (not self._due or self._due[0][0] > self.now()):
                    wait = self._due[0][0] - self.now() if self._due else None
                    self._change.wait(wait)
                if not self._open:
                    return
                _, _, due = heapq.heappop(self._due)
            call = due.call
            if call is not None:
                call()


class FakeClock:
    """A clock that stands still until `advance`: calls come in order of their time, every time.

    Args:
        start: the time it shows, in seconds.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._due: list[tuple[float, int, _Due]] = []
        self._numbers = itertools.count()

    def now(self) -> float:
        """Return the time."""
        return self._now

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        """Make `call` when `advance` reaches the time `when`."""
        due = _Due(call)
        heapq.heappush(self._due, (max(when, self._now), next(self._numbers), due))
        return due

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass, making the calls that are due."""
        end = self._now + seconds
        while self._due and self._due[0][0] <= end:
            when, _, due = heapq.heappop(self._due)
            self._now = when
            if due.call is not None:
                due.call()
        self._now = end

    def step(self) -> None:
        """Go on to the next call that is due, and make it; without one, nothing happens."""
        if self._due:
            self.advance(max(0.0, self._due[0][0] - self._now))

    def close(self) -> None:
        """Make no more calls."""
        self._due.clear()
