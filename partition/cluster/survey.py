"""Asks every worker of a cluster how it is, without a plan."""

from __future__ import annotations

import threading
import time
from typing import Any

from vitlet.partition.cluster.control import unpack
from vitlet.partition.cluster.frame import FrameError
from vitlet.partition.cluster.topics import Topics
from vitlet.partition.cluster.transport import Transport


class Survey:
    """Follows every worker of a cluster: who is there, and what each last told about itself.

    Args:
        transport: carries the questions; it is not closed here.
        topics: of the cluster.
        patience: seconds that a worker has to answer the first question.
    """

    def __init__(self, transport: Transport, topics: Topics, patience: float = 2.0) -> None:
        self._transport = transport
        self._topics = topics
        self._patience = patience
        self._lock = threading.Lock()
        self._found: dict[str, dict[str, Any]] = {}
        self._seen: dict[str, float] = {}
        self._handles = [
            transport.watch(topics.everybody, self._on_presence),
            transport.subscribe(topics.metrics("*"), self._on_metrics),
        ]

    def workers(self) -> list[dict[str, Any]]:
        """Return what each tells about itself, by name; see `Worker.about`.

        A worker that is present and says nothing is listed with its name and "silent".
        """
        with self._lock:
            return [self._found[device] for device in sorted(self._found)]

    def seen(self) -> dict[str, float]:
        """Return the seconds since each worker's last report."""
        now = time.monotonic()
        with self._lock:
            return {device: now - when for device, when in self._seen.items()}

    def close(self) -> None:
        """Follow no more."""
        for handle in self._handles:
            handle.close()

    def _on_presence(self, key: str, is_there: bool) -> None:
        try:
            device, epoch = self._topics.who(key)
        except ValueError:
            return
        with self._lock:
            if not is_there:
                # The process that left may be one that was replaced already.
                if self._found.get(device, {}).get("epoch") == epoch:
                    del self._found[device]
                    self._seen.pop(device, None)
                return
            self._found[device] = {"device": device, "epoch": epoch, "silent": True}

        def arrived(content: bytes) -> None:
            self._take(device, content)

        key = self._topics.about(device)
        self._transport.query(key, b"", self._patience, arrived, _done, lane=device)

    def _on_metrics(self, key: str, content: bytes) -> None:
        self._take(key.rsplit("/", 1)[-1], content)

    def _take(self, device: str, content: bytes) -> None:
        """Keep what a worker told, if it is the one that is present."""
        error = ""
        try:
            about = unpack(content).table
            if about.get("device") != device or not _is_report(about):
                return
        except FrameError as problem:
            about, error = {}, str(problem)
        with self._lock:
            known = self._found.get(device)
            if known is None:
                return
            if error:
                known["error"] = error
            elif about["epoch"] == known["epoch"]:
                self._found[device] = about
                self._seen[device] = time.monotonic()


def survey(transport: Transport, topics: Topics, seconds: float) -> list[dict[str, Any]]:
    """Return what each worker tells about itself within so many seconds; see `Survey.workers`."""
    following = Survey(transport, topics, seconds)
    time.sleep(seconds)
    following.close()
    return following.workers()


def other_clusters(transport: Transport, topics: Topics, seconds: float = 0.3) -> list[str]:
    """Return the names of other clusters whose workers are here: what a wrong --cluster misses."""
    found: set[str] = set()

    def on_presence(key: str, is_there: bool) -> None:
        found.add(key.split("/")[1])

    handle = transport.watch(Topics("*").everybody, on_presence)
    time.sleep(seconds)
    handle.close()
    return sorted(found - {topics.cluster})


def _is_report(about: dict[str, Any]) -> bool:
    """Tell whether a report has what a table shows: workers of other versions may differ."""
    try:
        latency, memory = about["latency"], about["memory"]
        numbers = [latency["p50_ms"], latency["p99_ms"], memory["taken"], memory["budget"]]
        numbers += [about["epoch"], about["queue"], about["counts"].get("answered", 0)]
        heat = about["temperature"]
        slots = [slot["slot"] for slot in about["slots"]]
    except (KeyError, TypeError, AttributeError):
        return False
    numbers += [] if heat is None else [heat]
    return all(isinstance(number, int | float) for number in (*numbers, *slots))


def _done() -> None:
    return
