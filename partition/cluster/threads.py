"""Threads that work through a queue of bounded length."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Protocol


class Jobs(Protocol):
    """Where work is handed in."""

    def put(self, job: Callable[[], None]) -> bool:
        """Do `job` soon; False when there is no room for it."""
        ...

    def waiting(self) -> int:
        """Return how many jobs have not begun."""
        ...

    def close(self) -> None:
        """Do what is there already, then stop."""
        ...


class ThreadJobs:
    """Threads that take jobs in order.

    Args:
        name: of the threads.
        threads: how many.
        length: how many jobs may wait.
    """

    def __init__(self, name: str, threads: int = 1, length: int = 64) -> None:
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._length = length
        self._threads = [
            threading.Thread(target=self._run, name=f"vitlet-{name}-{n}", daemon=True)
            for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, job: Callable[[], None]) -> bool:
        """Do `job` soon; False when there is no room for it."""
        if self._queue.qsize() >= self._length:
            return False
        self._queue.put(job)
        return True

    def waiting(self) -> int:
        """Return how many jobs have not begun."""
        return self._queue.qsize()

    def close(self) -> None:
        """Do what is there already, then stop."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(5.0)

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            job()


class DirectJobs:
    """Does every job at once, in the caller's thread: for tests on a fake network."""

    def put(self, job: Callable[[], None]) -> bool:
        """Do `job`."""
        job()
        return True

    def waiting(self) -> int:
        """Return 0."""
        return 0

    def close(self) -> None:
        """Do nothing."""
