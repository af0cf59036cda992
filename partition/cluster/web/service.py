"""What the API does, apart from HTTP: images in, answers out, no more than there is room for."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vitlet.data.image import decode_image
from vitlet.errors import DeadlineError, ImageError, UsageError, VitletError
from vitlet.partition.cluster.answer import Answer
from vitlet.partition.cluster.coordinator import Coordinator

MAX_IMAGE = 16 << 20  # bytes of an image file
MAX_DEADLINE = 60.0  # seconds


class Refusal(VitletError):
    """Why a request was not answered, as HTTP says it.

    Attributes:
        status: the HTTP status.
        code: one word for programs.
        retry_after: whole seconds after which trying again makes sense; None for never.
    """

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after

    def to_json(self) -> dict[str, Any]:
        """Return the body of the response."""
        return {"error": {"code": self.code, "message": str(self)}}


class Service:
    """Takes requests for a coordinator; used from one event loop.

    Args:
        coordinator: answers them.
        limit: requests that may be under way.
        threads: threads that decode images.
    """

    def __init__(self, coordinator: Coordinator, *, limit: int = 64, threads: int = 2) -> None:
        self.coordinator = coordinator
        self.limit = limit
        self.busy = 0
        self._threads = ThreadPoolExecutor(threads, "vitlet-http")
        self._free = asyncio.Condition()

    @property
    def is_ready(self) -> bool:
        """Whether enough slots have a worker."""
        return self.coordinator.held() >= max(1, self.coordinator.policy.min_slots)

    async def classify(self, content: bytes, topk: int, deadline: float | None) -> dict[str, Any]:
        """Return the answer to one image file, JSON-ready; refuse when there is no room.

        Raises:
            Refusal: 400 for what is no image, 413, 429, 503, or 504 for a missed deadline.
        """
        async with self.place(wait=False):
            return await self.answer(content, topk, deadline)

    @contextlib.asynccontextmanager
    async def place(self, wait: bool) -> AsyncIterator[None]:
        """Hold one of the places for requests under way.

        Args:
            wait: for one to become free.

        Raises:
            Refusal: 429 when none is free and `wait` is false, 503 when there are too few workers.
        """
        self._check_ready()
        if self.busy >= self.limit and not wait:
            self.coordinator.counts.add("http_busy")
            median = self.coordinator.latency.percentile(50)
            raise Refusal(
                429,
                "busy",
                f"{self.limit} requests are under way: send fewer at a time",
                max(1, math.ceil(median)),
            )
        async with self._free:
            await self._free.wait_for(lambda: self.busy < self.limit)
            self.busy += 1
        try:
            yield
        finally:
            async with self._free:
                self.busy -= 1
                self._free.notify()

    async def answer(self, content: bytes, topk: int, deadline: float | None) -> dict[str, Any]:
        """Return the answer to one image file, for whoever holds a place; see `classify`."""
        if len(content) > MAX_IMAGE:
            raise Refusal(413, "too_large", f"an image has at most {MAX_IMAGE} bytes")
        self._check_ready()
        loop = asyncio.get_running_loop()
        try:
            future = await loop.run_in_executor(self._threads, self._submit, content, deadline)
            answer: Answer = await asyncio.wrap_future(future)
        except (ImageError, UsageError) as error:
            raise Refusal(400, "bad_request", str(error)) from None
        except DeadlineError as error:
            self._check_ready()
            raise Refusal(504, "deadline", str(error)) from None
        except VitletError as error:
            raise Refusal(500, "failed", str(error)) from None
        return answer.to_json(topk)

    def close(self) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _submit(self, content: bytes, deadline: float | None) -> Any:
        mode = self.coordinator.plan.preprocess.mode
        return self.coordinator.submit(decode_image(content, mode), deadline)

    def _check_ready(self) -> None:
        held, slots = self.coordinator.held(), len(self.coordinator.plan.slots)
        if held < max(1, self.coordinator.policy.min_slots):
            raise Refusal(
                503, "no_workers", f"{held} of {slots} slots have a worker: start more", 2
            )
