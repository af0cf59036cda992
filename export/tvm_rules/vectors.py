"""Cutting loops into vectors, and spreading them over threads."""

from __future__ import annotations

from typing import Any

from tvm import tirx

WORTH = 1 << 14  # operations from which on waking other threads pays


def vectorize_last(schedule: Any, loop: Any, size: int, lanes: int) -> None:
    """Run an innermost loop in vectors of `lanes`, and what is left of it number by number."""
    whole = size // lanes * lanes
    if whole == 0 or not isinstance(schedule.get(loop).extent, tirx.IntImm):
        return
    if whole == lanes == size:
        schedule.vectorize(loop)
        return
    if whole < size:
        loop, _rest = schedule.loop_partition(loop, [whole, None])
    schedule.vectorize(schedule.split(loop, [None, lanes])[1])


def spread(schedule: Any, loops: list[Any], work: int) -> Any:
    """Fuse loops, run them on all threads if there is enough to do, and return the one loop."""
    together = schedule.fuse(*loops) if len(loops) > 1 else loops[0]
    free = not isinstance(schedule.get(together).extent, tirx.IntImm)
    if free or work >= WORTH:
        schedule.parallel(together)
    return together
