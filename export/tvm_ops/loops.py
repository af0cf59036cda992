"""What the schedules of vitlet's operators share: register tiles on a CPU, threads on a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ScheduleError

from vitlet.export.tvm_rules.vectors import WORTH

THREADS = 128  # of a CUDA block
_OPAQUE = 8  # relax.OpPatternKind: nothing is fused into it


def rows_of_tile(rows: int | None, most: int) -> int:
    """Return the rows of a register tile that wastes least of `rows` when they are rounded up."""
    if rows is None:
        return min(4, most)
    return min(
        range(min(most, max(rows, 1)), 0, -1), key=lambda part: -(-rows // part) * (part + 4)
    )


def round_up(size: Any, multiple: int) -> Any:
    """Return `size`, a number or a symbolic one, rounded up to a multiple."""
    if isinstance(size, int):
        return -(-size // multiple) * multiple
    return tirx.floordiv(size + (multiple - 1), multiple) * multiple


def begin(function: Any) -> Any:
    """Return a schedule in which what was written for brevity only is computed where it is used."""
    schedule = Schedule(function)
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        if schedule.get(block).name_hint.startswith(("T_", "inline_")):
            try:
                schedule.compute_inline(block)
            except ScheduleError:  # the last one: it is the result
                continue
    return schedule


def finish(schedule: Any, name: str) -> Any:
    """Return the scheduled function, named, marked so that no later pass touches its loops."""
    function = schedule.mod["main"]
    return function.with_attr(
        {"global_symbol": name, "tirx.is_scheduled": True, "op_pattern": _OPAQUE}
    )


def block_names(schedule: Any) -> list[str]:
    """Return the names of the blocks that are left, in order."""
    blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    return [str(schedule.get(block).name_hint) for block in blocks]


def spread(schedule: Any, name: str, lanes: int, outer: int = 1) -> None:
    """Run a block's first `outer` loops on all cores, and its last one in vectors of `lanes`."""
    block = schedule.get_sblock(name)
    loops = list(schedule.get_loops(block))
    kinds = [v.iter_type for v in schedule.get(block).iter_vars]
    if kinds[-1] == tirx.IterVar.DataPar and len(loops) > 1:
        _, inner = schedule.split(loops[-1], [None, lanes])
        schedule.vectorize(inner)
    share(schedule, name, loops[:outer])


def share(schedule: Any, name: str, loops: Iterable[Any]) -> Any:
    """Fuse a block's outer loops; all cores run them if that is worth waking them. Return them."""
    work = 1
    for loop in schedule.get_loops(schedule.get_sblock(name)):
        extent = schedule.get(loop).extent
        work *= int(extent) if isinstance(extent, tirx.IntImm) else WORTH
    together = schedule.fuse(*loops)
    if work >= WORTH:
        schedule.parallel(together)
    return together


def compute_within(schedule: Any, producers: Iterable[str], loop: Any) -> None:
    """Compute blocks once for each turn of a loop, just before they are needed, in vectors."""
    for producer in producers:
        schedule.compute_at(schedule.get_sblock(producer), loop)
        loops = schedule.get_loops(schedule.get_sblock(producer))
        schedule.vectorize(schedule.split(loops[-1], [None, 16])[1])


def tile_product(
    schedule: Any, name: str, rows: int, columns: int, *, within: Iterable[str] = ()
) -> None:
    """Cut ``out[.., m, n] += ..`` into tiles of `rows` x `columns` sums that stay in registers.

    Args:
        schedule: of a function with a block `name` whose last loops are m, n and the sum's.
        name: of the block. m and n must be multiples of `rows` and `columns`.
        rows: of a tile.
        columns: of a tile; one or a few vectors.
        within: blocks to compute once for each of the outer loops, just before they are needed.
    """
    block = schedule.get_sblock(name)
    *outer, m, n, k = schedule.get_loops(block)
    m_outer, m_inner = schedule.split(m, [None, rows])
    n_outer, n_inner = schedule.split(n, [None, columns])
    schedule.reorder(*outer, m_outer, n_outer, k, m_inner, n_inner)
    schedule.unroll(m_inner)
    schedule.vectorize(n_inner)
    # What is computed within is there for all rows; else threads share rows too.
    together = schedule.fuse(*outer) if within else schedule.fuse(*outer, m_outer)
    schedule.parallel(together)
    compute_within(schedule, within, together)
    copy = schedule.cache_write(block, 0, "global")
    schedule.reverse_compute_at(copy, n_outer)
    rows_loop, columns_loop = list(schedule.get_loops(copy))[-2:]
    schedule.unroll(rows_loop)
    schedule.vectorize(columns_loop)
    schedule.decompose_reduction(block, k)


def bind(schedule: Any, name: str, threads: int = THREADS) -> None:
    """Give each number of a block a CUDA thread; sums run inside the thread."""
    block = schedule.get_sblock(name)
    loops = list(schedule.get_loops(block))
    kinds = [v.iter_type for v in schedule.get(block).iter_vars]
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == 0]
    rest = [loop for loop, kind in zip(loops, kinds, strict=True) if kind != 0]
    schedule.reorder(*spatial, *rest)
    outer, inner = schedule.split(schedule.fuse(*spatial), [None, threads])
    schedule.bind(outer, "blockIdx.x")
    schedule.bind(inner, "threadIdx.x")
    if rest:
        schedule.decompose_reduction(block, rest[0])
