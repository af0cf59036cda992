"""`binary_linear_attention` in TVM: ``Q (K^T V)`` for Q and K of one bit, as ShiftAddViT has it.

https://arxiv.org/abs/2306.06446. K^T V is a product of matrices of which one holds 0, 1 and -1. For
Q, as in the C++ kernel, four bits at a time choose one of the 16 sums that four rows can have.
Whole numbers are kept in float32, which holds these exactly: the bits of the result are those of
`vitlet.ops.binary_linear_attention` (without `exact` and taps).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import te, tirx

from vitlet.export.tvm_gemm import Tile
from vitlet.export.tvm_ops import loops

NAME, PACK_NAME = "binary_linear_attention", "pack_bits"
LANES, BLOCK, TAPS = 16, 64, 9  # BLOCK: tokens of a column that share a step
_INFINITY, _MAGNITUDE = 0x7F800000, 0x7FFFFFFF  # of a float32's bits
_RANGE = 32700  # of K^T V in whole numbers


def define_pack(batch: int | None, heads: int, tokens: int, bits: int) -> Any:
    """Return `pack_bits`: x float32 (batch, heads, tokens, bits), threshold float32 (heads,).

    The result: int64 (batch, heads, tokens, ceil(bits / 64)).
    """
    n = tirx.Var("batch", "int32") if batch is None else batch
    x = te.placeholder((n, heads, tokens, bits), "float32", "x")
    threshold = te.placeholder((heads,), "float32", "threshold")
    bit = te.reduce_axis((0, 64), "bit")

    def word(b: Any, h: Any, t: Any, w: Any) -> Any:
        place = w * 64 + bit
        above = tirx.if_then_else(
            place < bits, x[b, h, t, place] > threshold[h], tirx.const(0, "bool")
        )
        return te.sum(tirx.Cast("int64", above) << tirx.Cast("int64", bit), axis=bit)

    packed = te.compute((n, heads, tokens, -(-bits // 64)), word, "packed")
    return te.create_prim_func([x, threshold, packed])


def schedule_pack_cpu(function: Any) -> Any:
    """Return `define_pack`'s function with its rows over all cores."""
    schedule = loops.begin(function)
    schedule.parallel(schedule.fuse(*list(schedule.get_loops(schedule.get_sblock("packed")))[:3]))
    return loops.finish(schedule, PACK_NAME)


def define(
    batch: int | None,
    heads: int,
    tokens: int,
    bits: int,
    values: int,
    *,
    signed: bool = False,
    exact: bool = False,
    taps: bool = False,
    tile_rows: int = 6,
) -> Any:
    """Return the attention as a function of TVM, without a schedule.

    Its arguments: q and k int64 (batch, heads, tokens, ceil(bits / 64)), as `pack_bits` gives them;
    v float32 (batch, heads, tokens, values); the taps float32 (heads, 9) if asked for; the result,
    of v's shape.

    Args:
        batch: of all; None for any number.
        heads: of all.
        tokens: of all.
        bits: in a row of q and k.
        values: in a row of v.
        signed: a bit 0 stands for -1.
        exact: do not round V.
        taps: compute ShiftAddViT's whole output; see `vitlet.ops.binary_linear_attention`.
        tile_rows: rows of K^T V are rounded up to a multiple of at most so many.
    """
    n = tirx.Var("batch", "int32") if batch is None else batch
    q, k = (te.placeholder((n, heads, tokens, -(-bits // 64)), "int64", name) for name in "qk")
    v = te.placeholder((n, heads, tokens, values), "float32", "v")
    rows = loops.round_up(bits, loops.rows_of_tile(bits, tile_rows))
    columns = loops.round_up(values, LANES)
    per_block = tokens if exact else BLOCK
    blocks = -(-tokens // per_block)

    def value(b: Any, h: Any, t: Any, j: Any) -> Any:
        return tirx.if_then_else(tirx.all(t < tokens, j < values), v[b, h, t, j], _f32(0))

    def code(b: Any, h: Any, t: Any, i: Any) -> Any:
        bit = (k[b, h, t, i // 64] >> tirx.Cast("int64", i % 64)) & tirx.const(1, "int64")
        number = _code(tirx.Cast("int32", bit), signed)
        return tirx.if_then_else(tirx.all(t < tokens, i < bits), number, _f32(0))

    codes = te.compute((n, heads, blocks * per_block, rows), code, "codes")
    whole, step = _exactly(value), None
    if not exact:
        whole, step = _rounded(n, heads, blocks, columns, value)
    numbers = te.compute((n, heads, blocks * per_block, columns), whole, "numbers")
    m = te.reduce_axis((0, per_block), "m")
    sums = te.compute(
        (n, heads, blocks, rows, columns),
        lambda b, h, t, i, j: te.sum(
            codes[b, h, t * per_block + m, i] * numbers[b, h, t * per_block + m, j], axis=m
        ),
        "sums",
    )
    if step is None:
        kv, unit = _as_they_are(sums)
    else:
        kv, unit = _to_whole(sums, step, bits)
    looked_up = _look_up(q, kv, bits, columns, signed)
    scaled = te.compute(
        (n, heads, tokens, values),
        lambda b, h, t, j: looked_up[b, h, t, j] * unit(b, h, j),
        "scaled" if taps else "out",
    )
    if not taps:
        return te.create_prim_func([q, k, v, scaled])
    filters = te.placeholder((heads, TAPS), "float32", "taps")
    return te.create_prim_func([q, k, v, filters, _output_form(scaled, v, filters)])


def schedule_cpu(function: Any, tile: Tile, bits: int) -> Any:
    """Return the definition with tiles, vectors and loops over all cores."""
    schedule = loops.begin(function)
    block = schedule.get_sblock
    loops.tile_product(schedule, "sums", loops.rows_of_tile(bits, tile.rows), LANES)
    for name in loops.block_names(schedule):
        found = list(schedule.get_loops(block(name)))
        if name in ("peak", "kv", "magnitude"):  # the last loop is the sum's
            *outer, j, k = found
            schedule.reorder(*outer, k, j)
            schedule.vectorize(schedule.split(j, [None, LANES])[1])
            schedule.parallel(schedule.fuse(*outer[:2]))
            schedule.decompose_reduction(block(name), k)
        elif name in ("codes", "numbers", "whole", "table", "out", "scaled"):
            loops.spread(schedule, name, LANES, outer=2)
        elif name == "squares":
            schedule.parallel(schedule.fuse(*found[:3]))
    b, h, t, j, g = schedule.get_loops(block("looked_up"))
    j_outer, j_inner = schedule.split(j, [None, LANES])
    schedule.reorder(b, h, t, g, j_outer, j_inner)
    copy = schedule.cache_write(block("looked_up"), 0, "global")
    together = schedule.fuse(b, h, t)
    schedule.reverse_compute_at(copy, together)
    schedule.parallel(together)
    schedule.unroll(j_outer)
    schedule.vectorize(j_inner)
    last = list(schedule.get_loops(copy))[-1]
    schedule.vectorize(schedule.split(last, [None, LANES])[1])
    schedule.decompose_reduction(block("looked_up"), g)
    return loops.finish(schedule, NAME)


def schedule_cuda(function: Any, name: str = NAME) -> Any:
    """Return a definition, or `define_pack`'s, as CUDA kernels: one thread to a number."""
    schedule = loops.begin(function)
    for block in loops.block_names(schedule):
        loops.bind(schedule, block)
    return loops.finish(schedule, name)


def _code(bit: Any, signed: bool) -> Any:
    return tirx.Cast("float32", bit * _i32(2) - _i32(1) if signed else bit)


def _exactly(value: Any) -> Any:
    return value


def _rounded(n: Any, heads: int, blocks: int, columns: int, value: Any) -> tuple[Any, Any]:
    """V in whole steps, and the step of each block of a column: a NaN where V is not finite."""
    m = te.reduce_axis((0, BLOCK), "m")
    peak = te.compute(
        (n, heads, blocks, columns),
        lambda b, h, t, j: te.max(
            tirx.reinterpret("int32", value(b, h, t * BLOCK + m, j)) & _i32(_MAGNITUDE), axis=m
        ),
        "peak",
    )

    def step(b: Any, h: Any, t: Any, j: Any) -> Any:
        """The power of two of which the largest is 256 to 511 times, rounded."""
        largest = peak[b, h, t, j]
        up = tirx.Select((largest & _i32(0x7FFFFF)) >= _i32(0x7FC000), _i32(1), _i32(0))
        exponent = tirx.max((largest >> _i32(23)) + up - _i32(8), _i32(1))
        power = tirx.reinterpret("float32", exponent << _i32(23))
        return tirx.Select(largest < _i32(_INFINITY), power, _f32(math.nan))

    def whole(b: Any, h: Any, t: Any, j: Any) -> Any:
        finite = peak[b, h, t // BLOCK, j] < _i32(_INFINITY)
        number = tirx.nearbyint(value(b, h, t, j) / step(b, h, t // BLOCK, j))
        return tirx.if_then_else(finite, number, _f32(0))

    return whole, step


def _as_they_are(sums: Any) -> tuple[Any, Any]:
    return (lambda b, h, i, j: sums[b, h, 0, i, j]), (lambda b, h, j: _f32(1))


def _to_whole(sums: Any, step: Any, bits: int) -> tuple[Any, Any]:
    """K^T V rounded to whole numbers, and what one of them stands for in each column."""
    n, heads, blocks, rows, columns = sums.shape
    t = te.reduce_axis((0, blocks), "t")
    kv = te.compute(
        (n, heads, rows, columns),
        lambda b, h, i, j: te.sum(sums[b, h, t, i, j] * step(b, h, t, j), axis=t),
        "kv",
    )
    i = te.reduce_axis((0, bits), "i")
    magnitude = te.compute(
        (n, heads, columns),
        lambda b, h, j: te.sum(tirx.abs(kv[b, h, i, j]), axis=i),
        "magnitude",
    )

    def size(b: Any, h: Any, j: Any) -> Any:
        found = magnitude[b, h, j]
        return tirx.Select(found < _f32(1e-30), _f32(1e-30), found)

    whole = te.compute(
        (n, heads, rows, columns),
        lambda b, h, i, j: tirx.nearbyint(kv[b, h, i, j] * (_f32(_RANGE) / size(b, h, j))),
        "whole",
    )
    one = float(np.float32(1) / np.float32(_RANGE))
    return whole, lambda b, h, j: size(b, h, j) * _f32(one)


def _look_up(q: Any, kv: Any, bits: int, columns: int, signed: bool) -> Any:
    """Q times K^T V: four bits of a row of Q choose a row of a table of sums."""
    n, heads, tokens, _ = q.shape
    groups = -(-bits // 4)

    def entry(b: Any, h: Any, g: Any, choice: Any, j: Any) -> Any:
        total = _f32(0)
        for r in range(4):
            at = g * 4 + r
            sign = _code((choice >> r) & 1, signed)
            number = kv(b, h, at, j) if callable(kv) else kv[b, h, at, j]
            term = sign * number
            total = total + tirx.if_then_else(at < bits, term, _f32(0))
        return total

    table = te.compute((n, heads, groups, 16, columns), entry, "table")
    g = te.reduce_axis((0, groups), "g")

    def chosen(b: Any, h: Any, t: Any, j: Any) -> Any:
        four = (q[b, h, t, g // 16] >> tirx.Cast("int64", g % 16 * 4)) & tirx.const(15, "int64")
        return te.sum(table[b, h, g, tirx.Cast("int32", four), j], axis=g)

    return te.compute((n, heads, tokens, columns), chosen, "looked_up")


def _output_form(y: Any, v: Any, taps: Any) -> Any:
    """``V / 2 + y / pi``, each row divided by its length, plus a convolution of V along tokens."""
    n, heads, tokens, values = v.shape

    def mixed(b: Any, h: Any, t: Any, j: Any) -> Any:
        return v[b, h, t, j] * _f32(0.5) + y[b, h, t, j] * _f32(1 / math.pi)

    i = te.reduce_axis((0, values), "i")
    squares = te.compute(
        (n, heads, tokens),
        lambda b, h, t: te.sum(mixed(b, h, t, i) * mixed(b, h, t, i), axis=i),
        "squares",
    )

    def output(b: Any, h: Any, t: Any, j: Any) -> Any:
        square = squares[b, h, t]
        inverse = tirx.Select(square.equal(_f32(0)), _f32(0), _f32(1) / tirx.sqrt(square))
        total = mixed(b, h, t, j) * inverse
        for tap in range(TAPS):
            at = t + (tap - TAPS // 2)
            inside = tirx.all(at >= 0, at < tokens)
            total = total + tirx.if_then_else(inside, taps[h, tap] * v[b, h, at, j], _f32(0))
        return total

    return te.compute((n, heads, tokens, values), output, "out")


def _i32(value: int) -> Any:
    return tirx.const(value, "int32")


def _f32(value: float) -> Any:
    return tirx.const(value, "float32")
