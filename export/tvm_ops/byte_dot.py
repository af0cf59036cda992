"""Sums of products of bytes by the instructions that processors have for them.

In TensorIR a sum of four products is a call of CUDA's ``__dp4a``, of two words that hold four bytes
each. Here a vector of such calls becomes one instruction, or on AVX2 four.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from vitlet.export.tvm_gemm import ByteDot
from vitlet.export.tvm_ops.loops import compute_within

Vectors = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True)
class _Form:
    """How an instruction is used.

    Attributes:
        lanes: sums of a vector.
        rows: of a tile of sums, so that all of them, and what they are fed with, have registers.
        columns: of the tile.
        unsigned: whether the first factor's bytes are from 0 to 255.
        add: sums, a word for all lanes and words as vectors of int32 -> sums.
    """

    lanes: int
    rows: int
    columns: int
    unsigned: bool
    add: Vectors


def _call(name: str, dtype: str, *arguments: Any) -> Any:
    from tvm.target.codegen import llvm_lookup_intrinsic_id

    return tirx.call_llvm_pure_intrin(dtype, llvm_lookup_intrinsic_id(name), *arguments)


def _one(name: str, lanes: int) -> Vectors:
    """A single instruction."""
    bytes_type = f"int8x{4 * lanes}"

    def add(sums: Any, a: Any, b: Any) -> Any:
        a, b = (tirx.reinterpret(bytes_type, value) for value in (a, b))
        return _call(name, f"int32x{lanes}", sums, a, b)

    return add


def _avx2(sums: Any, a: Any, b: Any) -> Any:
    """Magnitudes of `b` times `a` with the signs of `b`: pairs stay below 2^15, none saturates.

    `b` may be -128, whose magnitude is right as an unsigned byte; `a` is from -127 to 127.
    """
    a, b = (tirx.reinterpret("int8x32", value) for value in (a, b))
    magnitude = _call("llvm.x86.avx2.psign.b", "int8x32", b, b)
    signed = _call("llvm.x86.avx2.psign.b", "int8x32", a, b)
    pairs = _call("llvm.x86.avx2.pmadd.ub.sw", "int16x16", magnitude, signed)
    return sums + _call("llvm.x86.avx2.pmadd.wd", "int32x8", pairs, tirx.const(1, "int16x16"))


_FORMS: dict[ByteDot, _Form] = {
    "avx512vnni": _Form(16, 8, 32, True, _one("llvm.x86.avx512.vpdpbusd.512", 16)),
    "avxvnni": _Form(8, 6, 16, True, _one("llvm.x86.avx512.vpdpbusd.256", 8)),
    "avx2": _Form(8, 4, 16, False, _avx2),
    "dotprod": _Form(4, 6, 16, False, _one("llvm.aarch64.neon.sdot.v4i32.v16i8", 4)),
}


def form(dot: ByteDot) -> _Form:
    """Return how an instruction is used."""
    return _FORMS[dot]


def tile(schedule: Any, name: str, dot: ByteDot, rows: int, *, within: Sequence[str] = ()) -> None:
    """Cut ``total[p, m, n] += __dp4a(..)`` into tiles of sums that stay in registers.

    Args:
        schedule: of a function with a block `name` with the loops p, m, n and the sum's.
        name: of the block. m must be a multiple of `rows`, n of every form's columns.
        dot: the instruction.
        rows: of a tile.
        within: blocks to compute once for each p, just before they are needed.
    """
    found = form(dot)
    block = schedule.get_sblock(name)
    p, m, n, k = schedule.get_loops(block)
    m_outer, m_inner = schedule.split(m, [None, rows])
    n_outer, n_inner = schedule.split(n, [None, found.columns])
    vector, lane = schedule.split(n_inner, [None, found.lanes])
    schedule.reorder(m_outer, n_outer, k, m_inner, vector, lane)
    schedule.parallel(p)
    compute_within(schedule, within, p)
    copy = schedule.cache_write(block, 0, "global")
    schedule.reverse_compute_at(copy, n_outer)
    first = schedule.decompose_reduction(block, k)
    row, column = list(schedule.get_loops(copy))[-2:]
    column, inner = schedule.split(column, [None, found.lanes])
    for loops in ([row, column, inner], list(schedule.get_loops(first))[-3:]):
        schedule.unroll(loops[0])
        schedule.unroll(loops[1])
        schedule.vectorize(loops[2])
    schedule.unroll(m_inner)
    schedule.unroll(vector)
    schedule.tensorize(lane, _intrinsic(dot))


@cache
def _intrinsic(dot: ByteDot) -> str:
    """Tell TVM of an instruction, once, and return the name that it has there."""
    lanes, add = form(dot).lanes, form(dot).add

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def meaning(a: T.handle, b: T.handle, c: T.handle) -> None:
        word = T.match_buffer(a, (1,), "int32", offset_factor=1)
        words = T.match_buffer(b, (lanes,), "int32", offset_factor=1)
        sums = T.match_buffer(c, (lanes,), "int32", offset_factor=1)
        with T.sblock("root"):
            T.reads(sums[0:lanes], word[0:1], words[0:lanes])
            T.writes(sums[0:lanes])
            for i in T.serial(0, lanes):
                with T.sblock("update"):
                    v = T.axis.remap("S", [i])
                    sums[v] = sums[v] + T.call_pure_extern(
                        "__dp4a", word[0], words[v], T.int32(0), dtype="int32"
                    )

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def instruction(a: T.handle, b: T.handle, c: T.handle) -> None:
        word = T.match_buffer(a, (1,), "int32", offset_factor=1)
        words = T.match_buffer(b, (lanes,), "int32", offset_factor=1)
        sums = T.match_buffer(c, (lanes,), "int32", offset_factor=1)
        with T.sblock("root"):
            T.reads(sums[0:lanes], word[0:1], words[0:lanes])
            T.writes(sums[0:lanes])
            sums[T.ramp(0, 1, lanes)] = add(
                sums[T.ramp(0, 1, lanes)], T.broadcast(word[0], lanes), words[T.ramp(0, 1, lanes)]
            )

    name = f"vitlet.dp4a.{dot}"
    TensorIntrin.register(name, meaning, instruction, override=True)
    return name
