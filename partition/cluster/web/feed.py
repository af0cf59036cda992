"""The cluster's state for whoever watches: one look at it, shared by all, twice a second."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from vitlet.partition.cluster.coordinator import Coordinator

PERIOD = 0.5  # seconds between looks
MAX_WATCHERS = 16


class Feed:
    """Server-sent events with the coordinator's state; used from one event loop.

    Args:
        coordinator: whose state.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._lock = asyncio.Lock()
        self._last: tuple[float, dict[str, Any]] = (-1.0, {})
        self.watchers = 0

    async def look(self) -> dict[str, Any]:
        """Return the state, at most `PERIOD` old."""
        async with self._lock:
            now = time.monotonic()
            if not self._last[1] or now - self._last[0] >= PERIOD:
                loop = asyncio.get_running_loop()
                # It may try to reach a peer that is away: not on the loop's thread.
                state = await loop.run_in_executor(None, self._coordinator.status)
                self._last = (time.monotonic(), state)
            return self._last[1]

    async def events(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request with events until the client goes: an ASGI application."""
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        gone = asyncio.ensure_future(_gone(receive))
        self.watchers += 1
        try:
            while not gone.done():
                state = json.dumps({"time": time.time(), **await self.look()})
                body = f"event: state\ndata: {state}\n\n".encode()
                part = {"type": "http.response.body", "body": body, "more_body": True}
                await asyncio.wait_for(send(part), 10 * PERIOD)
                await asyncio.wait({gone}, timeout=PERIOD)
        except (asyncio.TimeoutError, OSError):
            return  # a watcher that does not read
        finally:
            self.watchers -= 1
            gone.cancel()


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
