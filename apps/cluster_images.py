"""Sends image files through a cluster, several at a time; one that fails does not stop the rest."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from vitlet.data.image import load_image
from vitlet.errors import VitletError
from vitlet.partition.answer import Answer
from vitlet.partition.coordinator import Coordinator


@dataclass(frozen=True)
class Outcome:
    """What became of one file: an answer, or why there is none."""

    path: Path
    answer: Answer | None = None
    error: VitletError | None = None


def outcomes(coordinator: Coordinator, paths: Iterable[Path], window: int) -> Iterator[Outcome]:
    """Give an outcome per file, in order, with up to `window` images under way."""
    waiting: deque[tuple[Path, Future[Answer] | VitletError]] = deque()
    for path in paths:
        waiting.append((path, _submit(coordinator, path)))
        if len(waiting) >= window:
            yield _outcome(*waiting.popleft())
    while waiting:
        yield _outcome(*waiting.popleft())


def _submit(coordinator: Coordinator, path: Path) -> Future[Answer] | VitletError:
    try:
        return coordinator.submit(load_image(path, coordinator.plan.preprocess.mode))
    except VitletError as error:
        return error


def _outcome(path: Path, begun: Future[Answer] | VitletError) -> Outcome:
    if isinstance(begun, VitletError):
        return Outcome(path, error=begun)
    try:
        return Outcome(path, begun.result())
    except VitletError as error:
        return Outcome(path, error=error)
