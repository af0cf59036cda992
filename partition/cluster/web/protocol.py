"""HTTP that closes connections on which no request arrives; uvicorn has no such limit itself."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_PATIENCE = 10.0  # seconds for a request's line and headers, to their last byte


class PatientProtocol(H11Protocol):
    """One connection. Without it, clients that send a byte a minute would take all connections."""

    _overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Wait on while a request has begun and its headers have not ended."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._enough()
        elif self._overdue is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._enough()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._overdue = self.loop.call_later(HEADER_PATIENCE, self.transport.close)

    def _enough(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
