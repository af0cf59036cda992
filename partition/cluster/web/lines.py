"""Many images over one connection: a JSON line per image in, a JSON line per answer out."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncIterator
from typing import Any

from vitlet.partition.cluster.web.service import MAX_IMAGE, Refusal, Service

MAX_LINE = MAX_IMAGE * 4 // 3 + 4096  # bytes: base64 and what is around it
WINDOW = 8  # images of one connection under way
PATIENCE = 30.0  # seconds that a client may let us wait for its next bytes, or take to read ours


async def read_lines(receive: Any) -> AsyncIterator[bytes]:
    """Give a request's body line by line, as it comes.

    Raises:
        Refusal: a line is too long, or nothing came for too long.
    """
    rest, more = b"", True
    while more:
        try:
            message = await asyncio.wait_for(receive(), PATIENCE)
        except asyncio.TimeoutError:
            raise Refusal(408, "slow", f"nothing came for {PATIENCE:g} s") from None
        if message["type"] == "http.disconnect":
            return
        more = message.get("more_body", False)
        *lines, rest = (rest + message.get("body", b"")).split(b"\n")
        if len(rest) > MAX_LINE or any(len(line) > MAX_LINE for line in lines):
            raise Refusal(413, "too_large", f"a line has at most {MAX_LINE} bytes")
        for line in lines:
            if line.strip():
                yield line
    if rest.strip():
        yield rest


class Lines:
    """The response to a stream of images: an ASGI application for one request.

    Answers come in the order in which they are ready; "id" tells whose they are. A client that
    does not read its answers is not read from either.

    Args:
        service: answers.
        topk: guesses per image.
        deadline: seconds per image; None for the policy's.
    """

    def __init__(self, service: Service, topk: int, deadline: float | None) -> None:
        self._service = service
        self._topk = topk
        self._deadline = deadline

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer the request."""
        headers = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        turn, window = asyncio.Lock(), asyncio.Semaphore(WINDOW)
        tasks: set[asyncio.Task[None]] = set()

        async def write(data: dict[str, Any]) -> None:
            body = json.dumps(data).encode() + b"\n"
            part = {"type": "http.response.body", "body": body, "more_body": True}
            async with turn:
                await asyncio.wait_for(send(part), PATIENCE)

        async def one(line: bytes) -> None:
            try:
                await write(await self._one(line))
            finally:
                window.release()

        number = 0
        try:
            async for line in read_lines(receive):
                await window.acquire()
                number += 1
                task = asyncio.create_task(one(line))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)
        except Refusal as error:
            await asyncio.gather(*tasks, return_exceptions=True)
            await write(error.to_json())
        except (asyncio.TimeoutError, OSError):
            return  # a client that does not read its answers: the connection is closed
        finally:
            for task in tasks:
                task.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _one(self, line: bytes) -> dict[str, Any]:
        found: dict[str, Any] = {"id": None}
        try:
            found["id"], content = _parse(line)
            async with self._service.place(wait=True):
                found["answer"] = await self._service.answer(content, self._topk, self._deadline)
        except Refusal as error:
            found |= error.to_json()
        return found


def _parse(line: bytes) -> tuple[Any, bytes]:
    """Return the id and the image file of a line.

    Raises:
        Refusal: 400, it is not what is expected.
    """
    try:
        data = json.loads(line)
        name = data.get("id")
        content = base64.b64decode(data["image"], validate=True)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error):
        raise Refusal(400, "bad_line", 'expected {"id": ..., "image": "BASE64"}') from None
    if not isinstance(name, str | int | None) or len(str(name)) > 200:
        raise Refusal(400, "bad_line", "an id is a short text or a number")
    return name, content
