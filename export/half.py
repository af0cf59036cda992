"""Finds where float16 fails inside a Core ML program: which tensor, and for which input.

A program is run twice side by side: in float32 on the stored weights (what it means), and with
every result rounded to its declared type (what float16 makes of it). Per tensor, over all inputs::

    ranges = half_ranges(CoreMLExecutor(path), CoreMLExecutor(path, "declared"), {"real_0": feeds})
    [r.name for r in ranges if r.overflow]            # leaves float16's range
    min(ranges, key=lambda r: r.headroom).case        # the input that comes nearest to it
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitlet.export.compare import SNR_LIMIT

if TYPE_CHECKING:
    from vitlet.runtime.coreml import CoreMLExecutor, Value

Array = NDArray[Any]
HALF_MAX = 65504.0  # the largest float16
_ROUNDS_UP = 65520.0  # from here on a value becomes infinite
_MASK = -1e30  # what is below stands for minus infinity: attention masks hold such values
# Rounding to 11 bits costs a tensor about 2^-12 of its length; eight times that is no rounding.
_LOST = 2.0**-9


@dataclass
class TensorRange:
    """What one tensor inside a program does over several inputs.

    Attributes:
        name: in the program.
        op: type of the operation that made it.
        declared: its element type in the program, such as "fp16".
        size: number of elements.
        lowest: smallest finite value that it means.
        highest: largest finite value.
        largest: largest finite magnitude.
        case: the input for which that was so.
        overflow: elements that are finite in float32 and not when rounded, over all inputs;
            masks (below -1e30) do not count.
        overflow_case: the first input with such an element; "".
        underflow: elements that are not zero in float32 and would be in float16.
        lost: largest share of the tensor's length that rounding its exact values to float16 takes:
            2^-12 and less is usual, more means values below float16's normal range.
        lost_case: the input for which that was so; "".
        error: largest difference between the rounded run and the exact one, relative to the largest
            magnitude; it holds what all operations before have added.
        snr_db: smallest ratio of the exact tensor's power and that difference's, at most 200.
    """

    name: str
    op: str
    declared: str
    size: int
    lowest: float = float("inf")
    highest: float = float("-inf")
    largest: float = 0.0
    case: str = ""
    overflow: int = 0
    overflow_case: str = ""
    underflow: int = 0
    lost: float = 0.0
    lost_case: str = ""
    error: float = 0.0
    snr_db: float = SNR_LIMIT

    @property
    def headroom(self) -> float:
        """65504 over the largest magnitude; below 1 the tensor does not fit into float16."""
        return HALF_MAX / self.largest if self.largest > 0 else float("inf")

    @property
    def underflows(self) -> bool:
        """Whether so much lies below float16's normal range that the tensor suffers."""
        return self.declared == "fp16" and self.lost > _LOST

    def add(self, case: str, exact: Array, rounded: Array) -> None:
        """Take in the tensor's values for one input, both float32 and of one shape."""
        if not exact.size:
            return
        finite = np.isfinite(exact) & (exact > _MASK)
        values = np.where(finite, exact, 0).astype(np.float64)
        if finite.any():
            self.lowest = min(self.lowest, float(exact[finite].min()))
            self.highest = max(self.highest, float(exact[finite].max()))
        size = float(np.abs(values).max())
        if size > self.largest or not self.case:
            self.largest, self.case = size, case
        lost = finite & ~np.isfinite(rounded)
        if lost.any():
            self.overflow += int(lost.sum())
            self.overflow_case = self.overflow_case or case
        small = np.where(np.abs(values) < _ROUNDS_UP, values, 0)
        half = small.astype(np.float16).astype(np.float64)
        self.underflow += int(((half == 0) & (small != 0)).sum())
        power = float((values**2).sum())
        share = float(np.sqrt(((small - half) ** 2).sum() / power)) if power else 0.0
        if share > self.lost:
            self.lost, self.lost_case = share, case
        with np.errstate(invalid="ignore"):
            off = np.where(finite & ~lost, rounded.astype(np.float64) - values, 0)
        if size:
            self.error = max(self.error, float(np.abs(off).max()) / size)
        noise = float((off**2).sum())
        if noise:
            snr = 10 * np.log10(power / noise) if power else -SNR_LIMIT
            self.snr_db = min(self.snr_db, float(np.clip(snr, -SNR_LIMIT, SNR_LIMIT)))


def half_ranges(
    exact: CoreMLExecutor, rounded: CoreMLExecutor, feeds: Mapping[str, Mapping[str, Any]]
) -> list[TensorRange]:
    """Run a program in two modes at once and return the range of every float tensor, in order.

    Args:
        exact: the program in mode "fp32".
        rounded: the same program in mode "declared" or "stress".
        feeds: name of a case -> what `run` takes.

    Raises:
        ShapeError: a feed is not what the program takes.
        CorruptInputError: the program cannot be computed as it stands.
    """
    found: dict[str, TensorRange] = {}
    for case, feed in feeds.items():

        def take(one: Value, other: Value, case: str = case) -> None:
            if one.array.dtype.kind == "f" and one.array.shape == other.array.shape:
                fresh = TensorRange(one.name, one.op, one.declared, int(one.array.size))
                found.setdefault(one.name, fresh).add(case, one.array, other.array)

        _side_by_side(exact, rounded, dict(feed), take)
    return list(found.values())


def overflow_notes(ranges: Sequence[TensorRange], mode: str = "declared") -> list[str]:
    """Return a line on the first tensor that overflows, with its input; none if none does."""
    over = [entry for entry in ranges if entry.overflow]
    if not over:
        return []
    first = over[0]
    more = f" (and {len(over) - 1} tensors after it)" if len(over) > 1 else ""
    how = "its sums kept in float16" if mode == "stress" else "rounded to float16"
    return [
        f"{first.name} ({first.op}) leaves the range of float16 for {first.overflow_case}, {how}: "
        f"{first.overflow} of its values become infinite or NaN; in float32 it reaches "
        f"{first.largest:.3g} for {first.case}, float16 ends at {HALF_MAX:g}{more}"
    ]


def underflow_notes(ranges: Sequence[TensorRange]) -> list[str]:
    """Return a line on the tensor that suffers most from float16's lower end, with its input."""
    under = [entry for entry in ranges if entry.underflows]
    if not under:
        return []
    worst = max(under, key=lambda entry: entry.lost)
    more = f" (and {len(under) - 1} other tensors)" if len(under) > 1 else ""
    return [
        f"{worst.name} ({worst.op}) is too small for float16 for {worst.lost_case}: rounding takes "
        f"{worst.lost:.2g} of it, its largest value is {worst.largest:.3g}{more}"
    ]


class _Stopped(Exception):
    """Ends the exact run when its partner is done with it."""


def _side_by_side(
    exact: CoreMLExecutor,
    rounded: CoreMLExecutor,
    feed: dict[str, Any],
    each: Callable[[Value, Value], None],
) -> None:
    """Give the values of both runs to `each` in pairs, while both are alive: none is kept.

    Loops and branches may go other ways in the two: pairs end where the names part.
    """
    parted = False
    handed: queue.Queue[Value | BaseException | None] = queue.Queue()
    wanted = threading.Semaphore(0)
    stop = threading.Event()

    def hand_over(value: Value) -> None:
        handed.put(value)
        wanted.acquire()  # the array is good until this returns
        if stop.is_set():
            raise _Stopped

    def run_exact() -> None:
        try:
            exact.run(feed, watch=hand_over)
            handed.put(None)
        except _Stopped:
            pass
        except BaseException as error:  # raised again by the thread that asked for it
            handed.put(error)

    def watch(value: Value) -> None:
        nonlocal parted
        if parted:
            return
        partner = handed.get()
        if isinstance(partner, BaseException):
            raise partner
        parted = partner is None or partner.name != value.name
        if partner is not None and not parted:
            each(partner, value)
            wanted.release()

    other = threading.Thread(target=run_exact, daemon=True)
    other.start()
    try:
        rounded.run(feed, watch=watch)
    finally:
        stop.set()
        wanted.release()
        other.join()
