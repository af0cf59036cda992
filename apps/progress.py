"""Progress on a terminal: nothing for the first second, then one line that moves.

A step that took longer than that leaves a line with its time, on a terminal and in a log alike.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from vitlet.apps.units import seconds

DELAY = 1.0  # seconds that need no explanation
Bar: TypeAlias = Callable[[], None]


class Steps:
    """The steps under way; steps inside a step replace its text while they last."""

    def __init__(self, enabled: bool, log: Callable[[str], None]) -> None:
        self._log = log
        self._draws = enabled and sys.stderr.isatty()
        self._texts: list[str] = []
        self._live: Any = None
        self._task: Any = None
        self._timer: threading.Timer | None = None
        self._lock = threading.RLock()
        self._counts: tuple[int, int] | None = None

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show `text` while the body runs, if it runs for long."""
        started = time.perf_counter()
        self._enter(text)
        try:
            yield
        finally:
            self._leave()
        took = time.perf_counter() - started
        if took > DELAY:
            self._log(f"{'  ' * len(self._texts)}{text}: {seconds(took)}")

    @contextmanager
    def bar(self, text: str, total: int) -> Iterator[Bar]:
        """Show how far a count has come; call what this gives once for every thing done."""
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            self._count(done, total)

        with self.step(text):
            self._count(0, total)
            try:
                yield advance
            finally:
                self._counts = None

    def _count(self, done: int, total: int) -> None:
        with self._lock:
            self._counts = (done, total)
            if self._live is not None:
                self._live.update(self._task, completed=done, total=total)

    def _enter(self, text: str) -> None:
        with self._lock:
            self._texts.append(text)
            if self._live is not None:
                self._live.update(self._task, description=text)
            elif self._draws and self._timer is None:
                self._timer = threading.Timer(DELAY, self._show)
                self._timer.daemon = True
                self._timer.start()

    def _leave(self) -> None:
        with self._lock:
            self._texts.pop()
            if self._texts:
                if self._live is not None:
                    self._live.update(self._task, description=self._texts[-1])
                return
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._live is not None:
                self._live.stop()
                self._live = None

    def _show(self) -> None:
        with self._lock:
            if not self._texts or self._live is not None:
                return
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                SpinnerColumn,
                TextColumn,
                TimeElapsedColumn,
            )

            counted = self._counts is not None
            parts = [SpinnerColumn(), TextColumn("{task.description}", markup=False)]
            parts += [BarColumn(24), MofNCompleteColumn()] if counted else []
            self._live = Progress(
                *parts, TimeElapsedColumn(), console=Console(stderr=True), transient=True
            )
            done, total = self._counts or (0, None)
            self._task = self._live.add_task(self._texts[-1], completed=done, total=total)
            self._live.start()
