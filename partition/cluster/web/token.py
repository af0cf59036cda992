"""The bearer token that every request but the public pages must carry."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitlet.errors import StorageError, UsageError
from vitlet.partition.cluster.counts import Counts, Once

VARIABLE = "VITLET_HTTP_TOKEN"
LEAST = 16  # characters: less can be guessed
_LIMIT = 4096  # bytes of a token's file


def obtain(path: Path) -> tuple[str, str]:
    """Return the token, and where the user finds it, which is what may be printed.

    It is that of the environment variable `VITLET_HTTP_TOKEN`, else of the file; a file that is not
    there is made, for its owner's eyes only.

    Raises:
        UsageError: it is too short, or others can read the file.
        StorageError: the file cannot be made.
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        return _checked(given.strip(), f"${VARIABLE}"), f"${VARIABLE}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = secrets.token_urlsafe(32)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(fresh + "\n")
        return fresh, str(path)
    except FileExistsError:
        pass  # that of an earlier start
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise UsageError(f"{path} can be read by others: chmod 600 it")
        text = path.read_bytes()[:_LIMIT].decode("ascii", "replace").strip()
    except OSError as error:
        raise UsageError(f"cannot read the token in {path}: {error.strerror or error}") from None
    return _checked(text, str(path)), str(path)


def _checked(token: str, where: str) -> str:
    if len(token) < LEAST or not token.isprintable() or " " in token or not token.isascii():
        raise UsageError(f"{where} holds no token: expected at least {LEAST} characters of ASCII")
    return token


class Guard:
    """Lets requests with the right token through, and everybody to the public paths.

    Args:
        app: what it guards, an ASGI application.
        token: what requests must carry.
        public: paths that anybody may read: they hold nothing of the cluster.
        counts: where refusals are counted, as "http_unauthorized".
        log: takes a line about the first refusal of each address.
    """

    def __init__(
        self,
        app: Any,
        token: str,
        public: frozenset[str],
        counts: Counts,
        log: Callable[[str], None],
    ) -> None:
        self._app = app
        self._token = token.encode()
        self._public = public
        self._counts = counts
        self._once = Once(log)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] != "http":
            return  # no websockets, no lifespan
        if scope["path"] in self._public or self._may(scope):
            await self._app(scope, receive, send)
            return
        self._counts.add("http_unauthorized")
        who = (scope.get("client") or ("?",))[0]
        self._once.say(who, f"an HTTP request from {who} without the right token was refused")
        from starlette.responses import JSONResponse

        error = {"code": "unauthorized", "message": "expected Authorization: Bearer TOKEN"}
        refusal = JSONResponse({"error": error}, 401, {"WWW-Authenticate": "Bearer"})
        await refusal(scope, receive, send)

    def _may(self, scope: Any) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, token = given[0].partition(b" ")
        right = secrets.compare_digest(token.strip(), self._token)
        return bool(right and scheme.lower() == b"bearer")
