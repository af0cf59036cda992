"""Sums over windows, with the channels last: convolutions, pools and means of maps.

Neighbouring channels fill vector registers; a few positions of a row or of two rows at once keep
enough sums under way to hide what an addition takes (Georganas et al., "Anatomy of High-Performance
Deep Learning Convolutions on SIMD Architectures", SC 2018). No input is rearranged, except that
a border of zeros is written around it where the windows reach over its edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

from tvm import tirx

from vitlet.export.tvm_expressions import size
from vitlet.export.tvm_rules.blocks import (
    axes,
    children,
    consumers,
    divisors,
    finish,
    is_plain,
    is_reduction,
    loads,
    step,
    uses,
)
from vitlet.export.tvm_rules.vectors import spread

if TYPE_CHECKING:
    from vitlet.export.tvm_gemm import Tile

_LIGHT = 8  # operations that may be written out for every position of a tile
_VECTOR = 16  # channels at a time of what is not
_ROWS = 4  # tiles of rows that are worth being a part of their own


@dataclass(frozen=True)
class _Window:
    """A sum over windows: indices into its block's iteration variables."""

    sizes: tuple[int, ...]
    spatial: tuple[int, ...]
    channel: int
    columns: tuple[int, ...]  # how many channels a tile may have
    per_channel: bool  # every channel reads its own inputs: depthwise, pools, means
    pad: str | None  # the block that writes the border of zeros


def schedule(given: Any, tile: Tile) -> Any:
    """Return the scheduled function; None if it is not one sum over windows."""
    schedule = given
    sums = [b for b in children(schedule) if is_reduction(schedule.get(b))]
    if len(sums) != 1:
        return None
    window = _recognize(schedule, sums[0], tile)
    if window is None:
        return None
    name = schedule.get(sums[0]).name_hint
    output = _epilogue(schedule, sums[0], window)
    heavy = output is not None and size(schedule.get(output).body.value) > _LIGHT
    kept = None
    if output is None or heavy:
        kept = schedule.cache_write(schedule.get_sblock(name), 0, "global")
    _tile(schedule, name, output, kept, window, tile)
    return finish(schedule)


def _recognize(schedule: Any, block: Any, tile: Tile) -> _Window | None:
    body = schedule.get(block)
    found = axes(body)
    if not is_plain(body) or not found.spatial:
        return None
    channel = found.spatial[-1]
    variable = found.variables[channel]
    constants: set[int] = set()
    contiguous = broadcast = False
    for load in loads(body.body.value):
        if load.source.same_as(body.body.buffer):
            continue
        for place, index in enumerate(load.indices):
            if not uses(index, variable):
                continue
            divided = divisors(index)
            last = place == len(load.indices) - 1
            if not divided and not (last and step(index, variable) == 1):
                return None
            constants |= divided
        if uses(load.indices[-1], variable):
            contiguous = True
        else:
            broadcast = True
    if not contiguous:
        return None
    columns = _columns(found.sizes[channel], constants, tile)
    pads = [schedule.get(b).name_hint for b in schedule.get_producers(block)]
    if len(pads) > 1:
        return None
    return _Window(
        found.sizes, found.spatial, channel, columns, not broadcast, pads[0] if pads else None
    )


def _columns(count: int, constants: set[int], tile: Tile) -> tuple[int, ...]:
    """Return into how many channels a tile can be cut, without a rest: whole vectors if any.

    Powers of two, since LLVM keeps no others in registers.
    """
    fits = [
        part
        for part in (1, 2, 4, 8, 16, 32, 64)
        if count % part == 0 and all(c % part == 0 or c % count == 0 for c in constants)
    ]
    whole = [part for part in fits if tile.lanes <= part <= 8 * tile.lanes]
    return tuple(whole or fits[-1:])


def _epilogue(schedule: Any, block: Any, window: _Window) -> Any:
    """Merge the elementwise blocks behind a sum into one block in the same loops, and return it.

    None when there is none. Blocks in other loops, as where a mean is spread over its map again,
    stay behind it.
    """
    shape = [window.sizes[i] for i in window.spatial]
    same: list[str] = []
    behind = {schedule.get(consumer).name_hint for consumer in consumers(schedule, block)}
    # In the program's order: the last one reads what all others give, some of them twice over.
    for consumer in children(schedule):
        body = schedule.get(consumer)
        if body.name_hint not in behind:
            continue
        if list(axes(body).sizes) != shape or not is_plain(body):
            break
        same.append(body.name_hint)
    for name in same[:-1]:
        schedule.compute_inline(schedule.get_sblock(name))
    return schedule.get_sblock(same[-1]) if same else None


def _cut(window: _Window, tile: Tile) -> tuple[int, dict[int, int]]:
    """Return a tile's channels, and its positions in each of the last two loops before them."""
    most = tile.rows * tile.columns // tile.lanes  # accumulators, beside what they are fed with
    places = [i for i in window.spatial[:-1] if window.sizes[i] > 1][-2:]
    choices = [[p for p in range(1, 15) if window.sizes[i] % p == 0] for i in places]
    best: tuple[float, int, dict[int, int]] | None = None
    for columns in window.columns:
        vectors = -(-columns // tile.lanes)
        for parts in product(*choices):
            rows = 1
            for part in parts:
                rows *= part
            sums = rows * vectors
            if sums > most and rows > 1:
                continue
            # Per product of one vector: two run in a cycle, as two loads do; a sum takes four.
            reads = sums + vectors if window.per_channel else rows + vectors
            cost = max(sums / 2, reads / 2, 4.0) / sums + 0.001 * len([p for p in parts if p > 1])
            if best is None or cost < best[0]:
                best = cost, columns, dict(zip(places, parts, strict=True))
    assert best is not None
    return best[1], best[2]


def _tile(schedule: Any, name: str, output: Any, kept: Any, window: _Window, tile: Tile) -> None:
    """Cut the result into tiles, and compute the sums of each in registers just before.

    Args:
        schedule: of the function.
        name: of the sum.
        output: what follows in the same loops; None for nothing.
        kept: a copy of the sums: the result itself, or for an `output` so long that it must not be
            written out for every position of a tile, what that reads.
        window: the sum.
        tile: the processor's registers.
    """
    columns, parts = _cut(window, tile)
    place, order, inner = _outer(schedule, output or kept, window, columns, parts)
    if output is not None and kept is not None:
        lanes = inner.pop()
        vector = min(columns, _VECTOR)
        if columns > vector:
            lanes = schedule.split(lanes, [None, vector])[1]
        schedule.vectorize(lanes)
        schedule.compute_at(kept, place, preserve_unit_loops=True)
        inner = list(schedule.get_loops(kept))[-len(window.spatial) :]
    _registers(schedule, inner)
    block = schedule.get_sblock(name)
    schedule.compute_at(block, place, preserve_unit_loops=True)
    own = list(schedule.get_loops(block))[-len(window.sizes) :]
    summed = [own[i] for i in range(len(own)) if i not in window.spatial]
    places = [own[i] for i in window.spatial]
    schedule.reorder(*summed, *places)
    _registers(schedule, places)
    together = spread(schedule, _shares(schedule, order, window), prod(window.sizes))
    if window.pad is not None:
        _pad(schedule, schedule.get_sblock(window.pad), together, window)
    if summed:
        schedule.decompose_reduction(block, summed[0])


def _shares(schedule: Any, order: list[Any], window: _Window) -> list[Any]:
    """Return the loops that threads share: over images, a few parts of the rows, and channels.

    A thread's rows are then about those that it has of the products before and behind. Where each
    share writes the border that it needs, the borders of parts meet.
    """
    if len(order) < 3:
        return order
    images, channels, rows = order[:3]
    count = schedule.get(rows).extent
    if not isinstance(count, tirx.IntImm):
        return order[:2]
    part = next((n for n in (4, 2) if int(count) % n == 0 and int(count) >= _ROWS * n), 1)
    if part == 1:
        return order[:2]
    outer, rows = schedule.split(rows, [part, None])
    schedule.reorder(images, outer, channels, rows)
    return [images, outer, channels]


def _outer(
    schedule: Any, block: Any, window: _Window, columns: int, parts: dict[int, int]
) -> tuple[Any, list[Any], list[Any]]:
    """Cut a block's loops; return the innermost loop around a tile, those around, those inside."""
    where = dict(zip(window.spatial, schedule.get_loops(block), strict=True))
    inner = []
    for place, part in parts.items():
        where[place], inside = schedule.split(where[place], [None, part])
        inner.append(inside)
    where[window.channel], lanes = schedule.split(where[window.channel], [None, columns])
    outer = [where[i] for i in window.spatial[:-1]]
    # Channels outside: their weights, and the part of a map that a depthwise one reads, stay near.
    order = [*outer[:1], where[window.channel], *outer[1:]]
    schedule.reorder(*order, *inner, lanes)
    return order[-1], order, [*inner, lanes]


def _registers(schedule: Any, loops: list[Any]) -> None:
    """Write out the loops of a tile, so that its sums have names and LLVM gives them registers."""
    *rows, lanes = loops
    for loop in rows:
        schedule.unroll(loop)
    schedule.vectorize(lanes)


def _pad(schedule: Any, pad: Any, together: Any, window: _Window) -> None:
    """Write the border: for the channels of a tile where each reads its own, else for all."""
    if window.per_channel:
        schedule.compute_at(pad, together)
    loops = list(schedule.get_loops(pad))
    outside = loops[1 if window.per_channel else 0]
    schedule.vectorize(loops[-1])
    if not window.per_channel:
        outside = spread(schedule, loops[:2], prod(window.sizes))
    if schedule.can_decompose_padding(pad, outside):
        schedule.decompose_padding(pad, outside)
