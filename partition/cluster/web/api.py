"""The HTTP routes: classify, stream, state, events, metrics, health, and the pages.

app = build(coordinator, token, log)      # an ASGI application
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitlet._extras import require
from vitlet.partition.cluster.coordinator import Coordinator
from vitlet.partition.cluster.web.feed import MAX_WATCHERS, Feed
from vitlet.partition.cluster.web.lines import PATIENCE, Lines
from vitlet.partition.cluster.web.metrics import Metrics
from vitlet.partition.cluster.web.openapi import document
from vitlet.partition.cluster.web.service import MAX_DEADLINE, MAX_IMAGE, Refusal, Service
from vitlet.partition.cluster.web.token import Guard

PAGES = {
    "/": ("dashboard.html", "text/html"),
    "/dashboard.js": ("dashboard.js", "text/javascript"),
    "/picture.js": ("picture.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
    "/docs": ("docs.html", "text/html"),
    "/docs.js": ("docs.js", "text/javascript"),
}
PUBLIC = frozenset({*PAGES, "/openapi.json", "/healthz", "/favicon.ico"})
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def build(
    coordinator: Coordinator,
    token: str,
    log: Callable[[str], None] = lambda line: None,
    *,
    limit: int = 64,
) -> Any:
    """Return the ASGI application.

    Args:
        coordinator: answers; it is neither started nor closed here.
        token: that requests must carry.
        log: takes a line about what was refused.
        limit: requests that may be under way before others are told to come later.

    Raises:
        MissingDependencyError: starlette or prometheus-client is not installed.
    """
    require("starlette", extra="edge", why="serve HTTP")
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    service = Service(coordinator, limit=limit)
    feed, metrics = Feed(coordinator), Metrics(coordinator)

    async def classify(request: Any) -> Any:
        topk, deadline = _options(request.query_params)
        content = await _body(request)
        return JSONResponse(await service.classify(content, topk, deadline))

    async def stream(request: Any) -> Any:
        topk, deadline = _options(request.query_params)
        async with service.place(wait=False):
            pass  # a stream waits for places, but does not begin where there is none
        return Lines(service, topk, deadline)

    async def status(request: Any) -> Any:
        return JSONResponse(await feed.look())

    async def events(request: Any) -> Any:
        if feed.watchers >= MAX_WATCHERS:
            raise Refusal(429, "busy", f"{MAX_WATCHERS} are watching already", 5)
        return feed.events

    async def prometheus(request: Any) -> Any:
        return Response(metrics.render(await feed.look()), media_type=metrics.content_type)

    async def health(request: Any) -> Any:
        ready = service.is_ready
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def description(request: Any) -> Any:
        return JSONResponse(document(len(coordinator.plan.slots)))

    async def nothing(request: Any) -> Any:
        return Response(status_code=204)

    async def page(name: str, kind: str, request: Any) -> Any:
        return Response(_page(name), media_type=kind, headers=_HEADERS)

    async def refused(request: Any, error: Exception) -> Any:
        assert isinstance(error, Refusal)
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return JSONResponse(error.to_json(), error.status, headers)

    async def http_error(request: Any, error: Any) -> Any:
        told = Refusal(error.status_code, "http", str(error.detail))
        return JSONResponse(told.to_json(), error.status_code, error.headers)

    from starlette.exceptions import HTTPException

    routes = [
        Route("/v1/classify", classify, methods=["POST"]),
        Route("/v1/stream", stream, methods=["POST"]),
        Route("/v1/status", status),
        Route("/v1/events", events),
        Route("/metrics", prometheus),
        Route("/healthz", health),
        Route("/openapi.json", description),
        Route("/favicon.ico", nothing),
        *(Route(path, functools.partial(page, *what)) for path, what in PAGES.items()),
    ]
    app = Starlette(routes=routes, exception_handlers={Refusal: refused, HTTPException: http_error})
    return Guard(app, token, PUBLIC, coordinator.counts, log)


@functools.cache
def _page(name: str) -> bytes:
    return (Path(__file__).parent / "page" / name).read_bytes()


def _options(query: Any) -> tuple[int, float | None]:
    """Return the number of guesses and the deadline in seconds.

    Raises:
        Refusal: 400, they make no sense.
    """
    strangers = set(query) - {"topk", "deadline_ms"}
    if strangers:
        raise Refusal(400, "bad_request", f"there is no parameter {sorted(strangers)[0]!r:.40}")
    topk = _number(query, "topk", 5, 1, 1000)
    late = _number(query, "deadline_ms", 0, 1, MAX_DEADLINE * 1e3)
    return int(topk), late / 1e3 or None


def _number(query: Any, name: str, default: float, low: float, high: float) -> float:
    if name not in query:
        return default
    try:
        value = float(query[name])
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise Refusal(400, "bad_request", f"{name} must be a number from {low:g} to {high:g}")
    return value


async def _body(request: Any) -> bytes:
    """Return the whole body; raises Refusal when it is too large or comes too slowly."""
    parts: list[bytes] = []

    async def read() -> None:
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > MAX_IMAGE:
                raise Refusal(413, "too_large", f"an image has at most {MAX_IMAGE} bytes")
            parts.append(part)

    try:
        await asyncio.wait_for(read(), PATIENCE)
    except asyncio.TimeoutError:
        raise Refusal(408, "slow", f"the image did not come within {PATIENCE:g} s") from None
    return b"".join(parts)
