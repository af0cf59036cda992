"""Serves the HTTP API: on this machine in the clear, elsewhere over TLS only."""

from __future__ import annotations

import re
import socket
import threading
from dataclasses import dataclass
from typing import Any

from vitlet._extras import require
from vitlet.errors import UsageError
from vitlet.partition.cluster.endpoints import is_loopback
from vitlet.partition.cluster.identity import CERTIFICATE, KEY, Identity

HOME = "127.0.0.1"
MAX_CONNECTIONS = 256
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.%\w]+\]|[^\s:/\[\]]*):(\d{1,5})")


@dataclass(frozen=True)
class Place:
    """Where to serve.

    Attributes:
        host: name or number, without brackets.
        port: 0 for any.
        tls: whether clients must encrypt.
    """

    host: str
    port: int
    tls: bool


def place(text: str, identity: Identity | None, *, insecure_lan: bool) -> Place:
    """Return what `--http` means: ":8080" is this machine.

    Raises:
        UsageError: no address, or one off this machine without certificates.
    """
    match = _ADDRESS.fullmatch(text.strip())
    if match is None or int(match[2]) > 65535:
        raise UsageError(f"--http takes an address such as :8080 or 192.168.1.5:8080, got {text!r}")
    host = match[1].strip("[]") or HOME
    inside = is_loopback(f"tcp/{text if match[1] else HOME + text}")
    if not inside and identity is None and not insecure_lan:
        raise UsageError(
            f"--http {text} is not on this machine, and without certificates anybody on the way "
            "could read the token: give --keys FOLDER, or say --insecure-lan"
        )
    return Place(host, int(match[2]), tls=not inside and identity is not None)


class Server:
    """An HTTP server whose address is taken as soon as it is made.

    Args:
        app: the ASGI application.
        where: to serve it.
        identity: whose certificate TLS shows.

    Attributes:
        url: of its root.

    Raises:
        UsageError: the address is in use or is not one of this machine.
        MissingDependencyError: uvicorn is not installed.
    """

    def __init__(self, app: Any, where: Place, identity: Identity | None = None) -> None:
        uvicorn = require("uvicorn", extra="edge", why="serve HTTP")
        from vitlet.partition.cluster.web.protocol import PatientProtocol

        self._socket = _listen(where)
        scheme, name = ("https" if where.tls else "http"), where.host
        shown = f"[{name}]" if ":" in name else name
        self.url = f"{scheme}://{shown}:{self._socket.getsockname()[1]}"
        tls: dict[str, Any] = {}
        if where.tls and identity is not None:
            tls = {
                "ssl_certfile": identity.file(CERTIFICATE),
                "ssl_keyfile": identity.file(KEY),
            }
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", ws="none", http=PatientProtocol,
            loop="asyncio", limit_concurrency=MAX_CONNECTIONS, timeout_keep_alive=10,
            timeout_graceful_shutdown=1, server_header=False, h11_max_incomplete_event_size=16384,
            **tls,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Serve until the process is interrupted."""
        self._server.run(sockets=[self._socket])

    def start(self) -> None:
        """Serve on a thread, until `close`."""
        self._thread = threading.Thread(target=self.run, name="vitlet-http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Serve no more; again does nothing."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(10.0)
        self._socket.close()


def _listen(where: Place) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            where.host, where.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"--http: {where.host} cannot be found: {error.strerror}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise UsageError(
            f"--http: {where.host}:{where.port} cannot be used: {reason}; choose another port"
        ) from None
    listener.set_inheritable(False)
    return listener
