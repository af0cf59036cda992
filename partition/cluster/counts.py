"""Counts what happens, from any thread; keeps the last latencies for percentiles."""

from __future__ import annotations

import bisect
import itertools
import threading
from collections import Counter, deque
from collections.abc import Callable

_KEPT = 512  # latencies
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)  # seconds


class Counts:
    """Named counters."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, name: str, by: int = 1) -> int:
        """Count and return the new number."""
        with self._lock:
            self._counts[name] += by
            return self._counts[name]

    def get(self, name: str) -> int:
        """Return a number, 0 for what never happened."""
        with self._lock:
            return self._counts[name]

    def to_json(self) -> dict[str, int]:
        """Return all numbers, by name."""
        with self._lock:
            return dict(sorted(self._counts.items()))


class Latencies:
    """The last latencies, in seconds, and their percentiles; and how many there were at all."""

    def __init__(self, kept: int = _KEPT) -> None:
        self._lock = threading.Lock()
        self._last: deque[float] = deque(maxlen=kept)
        self._buckets = [0] * (len(BOUNDS) + 1)
        self._total = 0.0

    def add(self, seconds: float) -> None:
        """Remember one."""
        with self._lock:
            self._last.append(seconds)
            self._buckets[bisect.bisect_left(BOUNDS, seconds)] += 1
            self._total += seconds

    def histogram(self) -> tuple[list[tuple[str, int]], float]:
        """Return (bound, latencies up to it) of all there ever were, and their sum."""
        with self._lock:
            counts, total = list(itertools.accumulate(self._buckets)), self._total
        return list(zip([*map(str, BOUNDS), "+Inf"], counts, strict=True)), total

    def __len__(self) -> int:
        return len(self._last)

    def percentile(self, percent: float) -> float:
        """Return the value that `percent` of the last latencies do not exceed; 0 for none."""
        with self._lock:
            ordered = sorted(self._last)
        if not ordered:
            return 0.0
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]

    def to_json(self) -> dict[str, float]:
        """Return the usual percentiles in milliseconds."""
        return {f"p{p}_ms": round(self.percentile(p) * 1e3, 3) for p in (50, 95, 99)}


class Once:
    """Says each thing once: what an attacker repeats must not fill a log.

    Args:
        log: takes a line.
        limit: how many different things are said at all.
    """

    def __init__(self, log: Callable[[str], None], limit: int = 100) -> None:
        self._log = log
        self._limit = limit
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def say(self, what: str, line: str) -> None:
        """Log `line`, unless something was said about `what` already."""
        with self._lock:
            if what in self._said or len(self._said) >= self._limit:
                return
            self._said.add(what)
        self._log(line)
