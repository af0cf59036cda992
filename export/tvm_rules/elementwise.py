"""Chains of elementwise operators, copies, transposes, concatenations and resizes.

A chain becomes one expression, so that nothing in between is stored. It runs along the last axis
of what is written; where that is not the last axis of what is read, in blocks of 8 x 8, which use
every cache line whole.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from tvm.s_tir.schedule import ScheduleError

from vitlet.export.tvm_rules.blocks import (
    Axes,
    axes,
    children,
    divisors,
    finish,
    is_plain,
    is_reduction,
    loads,
    step,
    uses,
)
from vitlet.export.tvm_rules.vectors import spread, vectorize_last

if TYPE_CHECKING:
    from vitlet.export.tvm_gemm import Tile

_BLOCK = 8  # numbers of half a cache line
_VECTOR = 16


def schedule(work: Any, tile: Tile) -> Any:
    """Return the scheduled function; None if it sums, or its blocks are not one step each."""
    if any(is_reduction(work.get(b)) or not is_plain(work.get(b)) for b in children(work)):
        return None
    inline(work)
    for block in children(work):
        run(work, work.get(block).name_hint, tile)
    return finish(work)


def inline(work: Any) -> None:
    """Compute every block where it is used, but for the results."""
    results = {work.get(b).name_hint for b in work.get_output_blocks(work.get_sblock("root"))}
    for name in [work.get(b).name_hint for b in children(work)]:
        if name not in results:
            work.compute_inline(work.get_sblock(name))


def run(work: Any, name: str, tile: Tile) -> None:
    """Schedule one elementwise block."""
    block = work.get(work.get_sblock(name))
    found = axes(block)
    loops = list(work.get_loops(work.get_sblock(name)))
    if not loops:
        return
    amount = prod(found.sizes)
    across = _crossed(block, found)
    if across is not None and len(loops) > 1:
        _blocks(work, loops, across, found, amount)
        return
    size = found.sizes[-1]
    if size % tile.lanes and _same(block, found):
        # One long row: only its very end is shorter than a vector.
        together = work.fuse(*loops) if len(loops) > 1 else loops[0]
        vectorize_last(work, together, amount, _VECTOR)
        return
    taken = [index for load in loads(block.body.value) for index in load.indices]
    constants = [constant for index in taken for constant in divisors(index)]
    fits = [part for part in (16, 8, 4) if all(c % part == 0 for c in constants)]
    exact = [part for part in fits if size % part == 0]
    if len(loops) > 1:
        spread(work, loops[:-1], amount)
    for part in (exact or fits)[:1]:
        vectorize_last(work, loops[-1], size, part)


def _same(block: Any, found: Axes) -> bool:
    """Whether everything is read at the place that is written, in buffers of one shape."""
    shape = [str(extent) for extent in block.body.buffer.shape]
    for load in loads(block.body.value):
        if [str(extent) for extent in load.source.shape] != shape:
            return False
        pairs = zip(load.indices, found.variables, found.sizes, strict=True)
        if not all(i.same_as(v) or size == 1 for i, v, size in pairs):
            return False
    return len(found.variables) == len(shape)


def _crossed(block: Any, found: Axes) -> int | None:
    """Return the variable along which a transposed input is contiguous, if there is one."""
    if len(found.variables) < 2:
        return None
    last = found.variables[-1]
    for load in loads(block.body.value):
        inside = load.indices[-1] if load.indices else None
        if inside is None or uses(inside, last) or not any(uses(i, last) for i in load.indices):
            continue
        for place, variable in enumerate(found.variables[:-1]):
            if uses(inside, variable) and found.sizes[place] >= _BLOCK <= found.sizes[-1]:
                plain = step(inside, variable) == 1 or bool(divisors(inside))
                return place if plain else None
    return None


def _blocks(work: Any, loops: list[Any], across: int, found: Axes, amount: int) -> None:
    *outer, last = loops
    wide, tall = found.sizes[-1], found.sizes[across]
    column = next(b for b in (_BLOCK, 7, 6, 5, 4, 3, 2, 1) if wide % b == 0)
    row = next(b for b in (_BLOCK, 7, 6, 5, 4, 3, 2, 1) if tall % b == 0)
    try:
        outer[across], inside = work.split(outer[across], [None, row])
        last, lanes = work.split(last, [None, column])
        work.reorder(*outer, last, inside, lanes)
    except ScheduleError:
        return
    work.unroll(inside)
    work.unroll(lanes)
    spread(work, outer, amount)
