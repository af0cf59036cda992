"""`shift_linear` in TVM: the loops that `vitlet.ops.shift_linear` has in C++, for any target.

A processor without 8-bit dot products multiplies fastest in float32, and there the sums are as
exact: a product is below 2^14, so 1024 of them stay whole numbers. CUDA has a dot product of four
bytes, `__dp4a`, and other processors have vectors of them (`vitlet.export.tvm_ops.byte_dot`), some
of unsigned bytes: those get 128 more, and 128 times the weights' sum is taken from the result.
Weights come in the kernel's own order (`ShiftWeight.panels`), four bits each.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx, topi

from vitlet.export.tvm_gemm import Tile
from vitlet.export.tvm_ops import byte_dot, loops
from vitlet.ops import Int8Weight, ShiftWeight

Format = Literal["shift", "wide", "dense"]
Dot = Literal["float32", "dp4a"]

NAME = "shift_linear"
_EXACT = 1024  # products of a byte and a weight that float32 adds without rounding
_INFINITY, _MAGNITUDE = 0x7F800000, 0x7FFFFFFF  # of a float32's bits
_LEAST = 2.0**-100  # a row below it counts as zero


def format_of(weight: ShiftWeight | Int8Weight) -> Format:
    """Return how a packed weight is stored."""
    if isinstance(weight, Int8Weight):
        return "dense"
    return "wide" if weight.wide else "shift"


def words_of(weight: ShiftWeight | Int8Weight) -> NDArray[np.int32]:
    """Return a packed weight as the function takes it: four inputs of a column to a word."""
    blocks = 4 if isinstance(weight, Int8Weight) else 2
    inputs = -(-weight.inputs // 8) * 8
    words = np.ascontiguousarray(weight.panels).view("<i4")
    return words.reshape(len(weight.sums) // 64, inputs // 4, blocks, 16)


def define(
    rows: int | None,
    inputs: int,
    outputs: int,
    *,
    format: Format = "shift",
    bias: bool = False,
    activation: Literal["none", "gelu"] = "none",
    dot: Dot = "float32",
    unsigned: bool = False,
    tile_rows: int = 6,
) -> Any:
    """Return ``activation(x @ weight.T + bias)`` as a function of TVM, without a schedule.

    Its arguments: x float32 (rows, inputs); words int32, from `words_of`; scale float32 (outputs,);
    sums int32, the packed weight's, if `unsigned`; bias float32 (outputs,) if asked for; the result
    float32 (rows, outputs).

    Args:
        rows: of x; None for any number.
        inputs: of x.
        outputs: of the result.
        format: of the weight, from `format_of`.
        bias: whether there is one.
        activation: "gelu" or "none".
        dot: how products are summed, without rounding either way.
        unsigned: with "dp4a", whether the bytes of x are to be 128 more than they are.
        tile_rows: rows are rounded up to a multiple of at most so many.
    """
    m_size = tirx.Var("rows", "int32") if rows is None else rows
    x = te.placeholder((m_size, inputs), "float32", "x")
    blocks, columns = (4 if format == "dense" else 2), outputs * (2 if format == "wide" else 1)
    panels, words_high = -(-columns // 64), -(-inputs // 8) * 2
    words = te.placeholder((panels, words_high, blocks, 16), "int32", "words")
    scale = te.placeholder((outputs,), "float32", "scale")
    top, row_scale = _row_sizes(x, m_size, inputs)
    padded = loops.round_up(m_size, loops.rows_of_tile(rows, tile_rows))
    arguments = [x, words, scale]
    if dot == "float32":
        total = _sums_in_floats(x, words, top, padded, format)
    else:
        total = _sums_of_four(x, words, top, padded, format, 128 if unsigned else 0)
    if unsigned:
        sums, too_much = te.placeholder((panels * 64,), "int32", "sums"), total
        arguments.append(sums)
        total = lambda m, n: too_much(m, n) - sums[n] * _i32(128)  # noqa: E731

    def linear(m: Any, n: Any) -> Any:
        if format == "wide":
            high = n // 8 * 16 + n % 8
            upper = tirx.Cast("float32", total(m, high)) * _f32(256)
            y = upper + tirx.Cast("float32", total(m, high + 8))
        else:
            y = tirx.Cast("float32", total(m, n))
        return y * (row_scale(m) * scale[n])

    # A name that begins so is computed where it is used: see `loops.begin`.
    out = te.compute((m_size, outputs), linear, "inline_linear" if bias else "out")
    if bias:
        offset = te.placeholder((outputs,), "float32", "bias")
        arguments.append(offset)
        product = out
        out = te.compute((m_size, outputs), lambda m, n: product[m, n] + offset[n], "out")
    if activation == "gelu":
        y = out
        erf = topi.fast_erf(topi.multiply(y, _f32(0.5**0.5)))
        out = te.compute(
            (m_size, outputs),
            lambda m, n: y[m, n] * (_f32(0.5) + erf[m, n] * _f32(0.5)),
            "activated",
        )
    return te.create_prim_func([*arguments, out])


def for_cpu(tile: Tile) -> dict[str, Any]:
    """Return what `define` is told of a processor that `schedule_cpu` is to schedule for."""
    if tile.dot is None:
        return {"tile_rows": tile.rows}
    form = byte_dot.form(tile.dot)
    return {"dot": "dp4a", "unsigned": form.unsigned, "tile_rows": form.rows}


def schedule_cpu(function: Any, tile: Tile, rows: int | None) -> Any:
    """Return a definition made with `for_cpu` in tiles that fill a processor's registers."""
    schedule = loops.begin(function)
    if tile.dot is None:
        height = loops.rows_of_tile(rows, tile.rows)
        loops.tile_product(schedule, "part", height, tile.columns, within=["weights"])
    else:
        height = loops.rows_of_tile(rows, byte_dot.form(tile.dot).rows)
        byte_dot.tile(schedule, "total", tile.dot, height, within=["weights"])
    for name in loops.block_names(schedule):
        if name in ("rounded", "out", "activated") or (name == "total" and tile.dot is None):
            loops.spread(schedule, name, 16)
    schedule.parallel(schedule.get_loops(schedule.get_sblock("top"))[0])
    return loops.finish(schedule, NAME)


def schedule_cuda(function: Any) -> Any:
    """Return a definition with dot="dp4a" as CUDA kernels: one thread to a column of a tile."""
    schedule = loops.begin(function)
    block = schedule.get_sblock("total")
    p, m, j, k = schedule.get_loops(block)
    m_outer, m_inner = schedule.split(m, [None, 4])
    schedule.reorder(p, m_outer, j, k, m_inner)
    schedule.bind(schedule.fuse(p, m_outer), "blockIdx.x")
    schedule.bind(j, "threadIdx.x")
    # A thread decodes four weights at a time and meets some rows with them.
    schedule.set_scope(schedule.get_sblock("weights"), 0, "local")
    schedule.compute_at(schedule.get_sblock("weights"), k)
    schedule.unroll(m_inner)
    sums = schedule.cache_write(block, 0, "local")
    schedule.reverse_compute_at(sums, j)
    schedule.decompose_reduction(block, k)
    for name in loops.block_names(schedule):
        if name in ("top", "rounded", "out", "activated"):
            loops.bind(schedule, name)
    return loops.finish(schedule, NAME)


def _row_sizes(x: Any, rows: Any, inputs: int) -> tuple[Any, Any]:
    """Return the bits of each row's largest magnitude, above infinity's for a NaN; its step."""
    k = te.reduce_axis((0, inputs), "k")
    top = te.compute(
        (rows,),
        lambda m: te.max(tirx.reinterpret("int32", x[m, k]) & _i32(_MAGNITUDE), axis=k),
        "top",
    )

    def step(m: Any) -> Any:
        most = tirx.reinterpret("float32", top[m])
        small = tirx.Select(most < _f32(_LEAST), _f32(0), most / _f32(127))
        return tirx.Select(top[m] < _i32(_INFINITY), small, _f32(float("nan")))

    return top, step


def _rounder(x: Any, top: Any) -> Any:
    rows, inputs = x.shape

    def rounded(m: Any, k: Any) -> Any:
        most = tirx.reinterpret("float32", top[m])
        usable = tirx.all(top[m] < _i32(_INFINITY), most >= _f32(_LEAST))
        value = tirx.nearbyint(x[m, k] * (_f32(127) / most))
        return tirx.if_then_else(tirx.all(m < rows, k < inputs, usable), value, _f32(0))

    return rounded


def _integer(word: Any, k: Any, column: Any, format: Format) -> Any:
    """Return the whole number that a word holds for the k-th of its four inputs."""
    if format == "dense":
        return (word << (_i32(24) - k * 8)) >> _i32(24)
    code = (word >> (k * 8 + column // 16 % 2 * 4)) & _i32(15)
    size = (_i32(1) << (code & _i32(7))) >> _i32(1)
    if format == "wide":  # there a sign without a size is 128
        size = tirx.Select(code.equal(_i32(8)), _i32(128), size)
    return tirx.Select(code > _i32(7), _i32(0) - size, size)


def _word(words: Any, p: Any, k: Any, j: Any) -> Any:
    if int(words.shape[2]) == 4:
        return words[p, k, j // 16, j % 16]
    return words[p, k, j // 32, j % 16]


def _sums_in_floats(x: Any, words: Any, top: Any, padded: Any, format: Format) -> Any:
    inputs = int(x.shape[1])
    panels, have = int(words.shape[0]), int(words.shape[1]) * 4
    parts = max(-(-inputs // _EXACT), 1)
    size = loops.round_up(max(-(-inputs // parts), 1), 16)
    q = te.compute((padded, parts * size), _rounder(x, top), "rounded")

    def weight(p: Any, k: Any, j: Any) -> Any:
        value = tirx.Cast("float32", _integer(_word(words, p, k // 4, j), k % 4, j, format))
        return value if parts * size <= have else tirx.if_then_else(k < have, value, _f32(0))

    w = te.compute((panels, parts * size, 64), weight, "weights")
    k = te.reduce_axis((0, size), "k")
    part = te.compute(
        (parts, panels, padded, 64),
        lambda c, p, m, j: te.sum(q[m, c * size + k] * w[p, c * size + k, j], axis=k),
        "part",
    )
    if parts == 1:
        return lambda m, n: tirx.Cast("int32", part[0, n // 64, m, n % 64])
    c = te.reduce_axis((0, parts), "c")
    total = te.compute(
        (panels, padded, 64),
        lambda p, m, j: te.sum(tirx.Cast("int32", part[c, p, m, j]), axis=c),
        "total",
    )
    return lambda m, n: total[n // 64, m, n % 64]


def _sums_of_four(x: Any, words: Any, top: Any, padded: Any, format: Format, offset: int) -> Any:
    panels, high = int(words.shape[0]), int(words.shape[1])
    rounded = _rounder(x, top)

    def four(value: Any) -> Any:
        packed = _i32(0)
        for i in range(4):
            packed = packed | ((value(i) & _i32(255)) << _i32(8 * i))
        return packed

    q = te.compute(
        (padded, high),
        lambda m, k: four(lambda i: tirx.Cast("int32", rounded(m, k * 4 + i)) + _i32(offset)),
        "rounded",
    )

    def weight(p: Any, k: Any, j: Any) -> Any:
        word = _word(words, p, k, j)
        return word if format == "dense" else four(lambda i: _integer(word, i, j, format))

    w = te.compute((panels, high, 64), weight, "weights")
    k = te.reduce_axis((0, high), "k")

    def product(p: Any, m: Any, j: Any) -> Any:
        dot = tirx.call_pure_extern("int32", "__dp4a", q[m, k], w[p, k, j], _i32(0))
        return te.sum(dot, axis=k)

    total = te.compute((panels, padded, 64), product, "total")
    return lambda m, n: total[n // 64, m, n % 64]


def _i32(value: int) -> Any:
    return tirx.const(value, "int32")


def _f32(value: float) -> Any:
    return tirx.const(value, "float32")
