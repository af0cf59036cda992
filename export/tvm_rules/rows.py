"""Steps over rows, such as softmax and layer normalization, one row at a time.

Every step of a row runs before the next row begins, so that what is in between stays in the
innermost cache. Steps come in the form that `vitlet.export.tvm_rows` gives them: lengths that
vectors divide, except where the row itself is read and written.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from vitlet.export.tvm_rules.blocks import axes, children, finish, is_plain, is_reduction
from vitlet.export.tvm_rules.vectors import spread, vectorize_last

if TYPE_CHECKING:
    from vitlet.export.tvm_gemm import Tile

_VECTOR = 16


def schedule(given: Any, tile: Tile) -> Any:
    """Return the scheduled function; None if its sums are not along the last axis of rows."""
    work = given
    blocks = [(work.get(b).name_hint, axes(work.get(b)), work.get(b)) for b in children(work)]
    sums = [found for _, found, block in blocks if is_reduction(block)]
    if len(sums) < 2 or not all(is_plain(block) for _, _, block in blocks):
        return None
    outer = min(len(found.spatial) for found in sums)
    rows = sums[0].sizes[:outer]
    if outer == 0 or any(found.sizes[:outer] != rows for _, found, _ in blocks):
        return None
    if any(len(found.spatial) > outer + 1 for _, found, _ in blocks):
        return None
    (output,) = work.get_output_blocks(work.get_sblock("root"))
    last = work.get(output).name_hint
    row = spread(work, list(work.get_loops(output))[:outer], prod(sums[0].sizes))
    for name, _, _ in reversed(blocks):
        if name != last:
            work.compute_at(work.get_sblock(name), row, preserve_unit_loops=True)
    for name, found, block in blocks:
        loops = list(work.get_loops(work.get_sblock(name)))[1:]
        if name != last:
            loops = loops[outer:]
        if is_reduction(block):
            _fold(work, name, found, loops, outer)
        elif len(found.spatial) > outer:
            vectorize_last(work, loops[-1], found.sizes[-1], _VECTOR)
    return finish(work)


def _fold(work: Any, name: str, found: Any, loops: list[Any], outer: int) -> None:
    """A sum along the row: lanes of it side by side, or the last few one after the other."""
    block = work.get_sblock(name)
    if len(found.spatial) > outer:
        lanes, *summed = loops
        work.reorder(*summed, lanes)
        work.vectorize(lanes)
    else:
        summed = loops
        for loop in summed:
            work.unroll(loop)
    work.decompose_reduction(block, summed[0])
