"""Runs any number of rows through a graph that was compiled for certain batch sizes only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlet.errors import ShapeError
from vitlet.runtime.engine import Arrays
from vitlet.runtime.manifest import Artifact, TensorSpec


@dataclass(frozen=True)
class BatchSizes:
    """The batch sizes a graph takes: `low` to `high`, `high` None for no upper end."""

    low: int
    high: int | None

    @classmethod
    def of(cls, inputs: tuple[TensorSpec, ...], artifact: Artifact | None = None) -> BatchSizes:
        """Read them from the input shapes; a ranged batch stands in ``details["batch"]``."""
        first = inputs[0].shape[0] if inputs and inputs[0].shape else 1
        if isinstance(first, int):
            return cls(first, first)
        given = artifact.details.get("batch") if artifact else None
        if isinstance(given, list | tuple) and len(given) == 2:
            return cls(max(1, int(given[0])), int(given[1]))
        return cls(1, None)


def run_batched(run: Callable[[Arrays], Arrays], sizes: BatchSizes, feeds: Arrays) -> Arrays:
    """Split rows into batches that fit, pad the last by repeating its last row, join the outputs.

    Args:
        run: computes one batch.
        sizes: the batch sizes that `run` takes.
        feeds: input name -> array; all with the same first size, at least 1.

    Raises:
        ShapeError: no rows, or first sizes that differ.
    """
    rows = {name: array.shape[0] if array.ndim else 0 for name, array in feeds.items()}
    count = min(rows.values(), default=0)
    if count < 1 or len(set(rows.values())) != 1:
        raise ShapeError(
            f"expected the same number of rows, at least 1, in every input; got {rows}"
        )
    step = count if sizes.high is None else sizes.high
    parts: list[Arrays] = []
    for begin in range(0, count, step):
        part = {name: array[begin : begin + step] for name, array in feeds.items()}
        there = min(step, count - begin)
        missing = max(0, sizes.low - there)
        if missing:
            part = {name: _repeat_last(array, missing) for name, array in part.items()}
        outputs = run(part)
        parts.append({n: v[:there] for n, v in outputs.items()} if missing else outputs)
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _repeat_last(array: NDArray[Any], count: int) -> NDArray[Any]:
    # A real row, not zeros: nothing that a graph does to it can be stranger than what it must do.
    return np.concatenate([array, np.repeat(array[-1:], count, axis=0)])
