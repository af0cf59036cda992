"""Finds how much to prune each sub-model so that all of them find a place.

As in the paper (arXiv 2410.11650) a sub-model keeps k of the model's h heads and k/h of every
width, and one more head goes until the placement keeps every bound. "per-model" takes it from the
one that does not fit; "global", as the paper does, from all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from vitlet.errors import UsageError
from vitlet.partition.devices import Device
from vitlet.partition.placing.assign import Assignment, assign
from vitlet.partition.placing.loads import InfeasibleError, Load, Violation
from vitlet.partition.submodels.widths import (
    FLOAT,
    Cost,
    Geometry,
    Widths,
    cost,
    full_cost,
    keep_heads,
)

PruneMode = Literal["per-model", "global"]
PRUNE_MODES: tuple[PruneMode, ...] = get_args(PruneMode)


@dataclass(frozen=True)
class Bounds:
    """What all sub-models together must keep.

    Attributes:
        total_bytes: of all their parameters, replicas not counted.
        seconds: until the last feature is there, transfer included; None for any time.
    """

    total_bytes: int
    seconds: float | None = None


@dataclass(frozen=True)
class Found:
    """Sub-models that fit.

    Attributes:
        keep: heads that each keeps.
        widths: of each.
        costs: of each.
        assignment: their places.
        steps: what was pruned why, in words.
    """

    keep: tuple[int, ...]
    widths: tuple[Widths, ...]
    costs: tuple[Cost, ...]
    assignment: Assignment
    steps: tuple[str, ...]


def search_widths(
    geometry: Geometry,
    slots: int,
    devices: Sequence[Device],
    *,
    strategy: str = "greedy",
    mode: str = "per-model",
    keep: int | None = None,
    bounds: Bounds | None = None,
    received: int = 0,
    replicas: int = 0,
) -> Found:
    """Return the widest sub-models that find a place.

    Args:
        geometry: of the full model.
        slots: number of sub-models.
        devices: to place them on.
        strategy: of the placement, as in `vitlet.partition.placing.assign.assign`.
        mode: "per-model" or "global".
        keep: heads to begin with; all of them by default.
        bounds: by default the sub-models together are not larger than the full model.
        received: bytes of the image that goes to each device.
        replicas: further devices per sub-model, where they fit.

    Raises:
        UsageError: an unknown mode, or `keep` beyond the number of heads.
        InfeasibleError: with one head each, some bound is still violated; names it.
    """
    if mode not in PRUNE_MODES:
        raise UsageError(f"unknown pruning {mode!r}: expected {' or '.join(PRUNE_MODES)}")
    bounds = bounds or Bounds(full_cost(geometry).bytes)
    kept = [geometry.heads if keep is None else keep] * slots
    steps: list[str] = []
    while True:
        widths = tuple(keep_heads(geometry, heads) for heads in kept)
        costs = tuple(cost(geometry, width) for width in widths)
        loads = [
            Load(i, c.macs, c.memory, FLOAT * width.dim)
            for i, (c, width) in enumerate(zip(costs, widths, strict=True))
        ]
        try:
            found = assign(strategy, loads, devices, received=received, replicas=replicas)
            violation = _over(loads, costs, found, bounds)
            if violation is None:
                return Found(tuple(kept), widths, costs, found, tuple(steps))
        except InfeasibleError as error:
            violation = error.violation
            if strategy == "greedy" and slots > len(devices):
                # Smaller sub-models do not need fewer devices.
                why = (
                    f"{slots} sub-models for {len(devices)} devices, and greedy places one a "
                    f'device: choose "makespan" (--assign makespan), or {len(devices)} sub-models '
                    f"(--slots {len(devices)})"
                )
                raise InfeasibleError(violation, why) from None
        smaller = _prune(kept, violation.slot, mode)
        if smaller is None:
            why = f"{violation.problem()}, with one head left to each: {violation.remedy()}"
            raise InfeasibleError(violation, why)
        steps.append(f"{_told(kept, smaller)}: {violation.problem()}")
        kept = smaller


def _over(
    loads: Sequence[Load], costs: Sequence[Cost], found: Assignment, bounds: Bounds
) -> Violation | None:
    """Return the common bound that a placement breaks, with the sub-model to blame."""
    total = sum(c.bytes for c in costs)
    places = found.placements
    if total > bounds.total_bytes:
        slot = max(range(len(costs)), key=lambda i: (costs[i].bytes, places[i].seconds, i))
        return Violation(slot, "total", "", total, bounds.total_bytes, "bytes")
    if bounds.seconds is not None and found.seconds > bounds.seconds:
        held = [i for i, p in enumerate(places) if p.devices[0] == found.bottleneck]
        slot = max(held, key=lambda i: loads[i].macs)
        return Violation(slot, "time", found.bottleneck, found.seconds, bounds.seconds, "seconds")
    return None


def _prune(kept: Sequence[int], slot: int, mode: str) -> list[int] | None:
    """Return one head less of a sub-model, or of all; None where there is none to give."""
    if mode == "global":
        return [heads - 1 for heads in kept] if min(kept) > 1 else None
    if kept[slot] == 1:  # it cannot give way; the largest can
        slot = max(range(len(kept)), key=lambda i: kept[i])
    if kept[slot] == 1:
        return None
    return [heads - (i == slot) for i, heads in enumerate(kept)]


def _told(before: Sequence[int], after: Sequence[int]) -> str:
    changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    who = f"slot {changed[0]}" if len(changed) == 1 else "all slots"
    return f"{who} to {after[changed[0]]} heads"
