"""Sends images through a cluster, several at a time; one that fails does not stop the rest."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from vitlet.data.image import ImageLike, load_image
from vitlet.errors import VitletError
from vitlet.partition.cluster.answer import Answer
from vitlet.partition.cluster.coordinator import Coordinator


@dataclass(frozen=True)
class Outcome:
    """What became of one image: an answer, or why there is none."""

    name: str
    answer: Answer | None = None
    error: VitletError | None = None


def outcomes(
    coordinator: Coordinator, images: Iterable[tuple[str, ImageLike]], window: int
) -> Iterator[Outcome]:
    """Give an outcome per named image, in order, with up to `window` of them under way."""
    waiting: deque[tuple[str, Future[Answer] | VitletError]] = deque()
    for name, image in images:
        waiting.append((name, _submit(coordinator, image)))
        if len(waiting) >= window:
            yield _outcome(*waiting.popleft())
    while waiting:
        yield _outcome(*waiting.popleft())


def _submit(coordinator: Coordinator, image: ImageLike) -> Future[Answer] | VitletError:
    try:
        return coordinator.submit(load_image(image, coordinator.plan.preprocess.mode))
    except VitletError as error:
        return error


def _outcome(name: str, begun: Future[Answer] | VitletError) -> Outcome:
    if isinstance(begun, VitletError):
        return Outcome(name, error=begun)
    try:
        return Outcome(name, begun.result())
    except VitletError as error:
        return Outcome(name, error=error)
