"""`additive_token_mixer` in TVM: CAS-ViT's mixer (https://arxiv.org/abs/2408.03703), float32.

As in the C++ kernel, maps lie in blocks of 16 channels with an edge of zeros, so that every stage
is vectors of 16 numbers, and the weights are put in that order once, at compile time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from vitlet.errors import ShapeError
from vitlet.export.tvm_gemm import Tile
from vitlet.export.tvm_ops import loops

NAME = "additive_token_mixer"
_HALVED = 28  # rows from which on two threads take one half each of a block of channels
LANES = 16
WEIGHTS = 14  # of the torch operator
_Array = NDArray[np.float32]


def pack_weights(weights: Sequence[_Array]) -> list[_Array]:
    """Return the torch operator's 14 weights as the function's eight, in blocks of 16 channels.

    Raises:
        ShapeError: there are more or fewer, or their sizes are not a mixer's.
    """
    if len(weights) != WEIGHTS or len({weight.shape[0] for weight in weights[-4:]}) != 1:
        raise ShapeError(f"[additive_token_mixer] expected a mixer's {WEIGHTS} weights")
    channels = len(weights[-1])
    gates = [weights[2:6], weights[6:10]]
    try:
        qkv = weights[0].reshape(3, channels, channels)
        return [
            _blocks(qkv).reshape(-1, channels, LANES),
            _blocks(weights[1].reshape(3, channels, 1)).reshape(-1, LANES),
            _blocks(np.stack([gate[0].reshape(channels, 9) for gate in gates])),
            _blocks(np.stack([gate[1].reshape(channels, 1) for gate in gates]))[:, :, 0],
            _blocks(np.stack([gate[2].reshape(channels, 1) for gate in gates]))[:, :, 0],
            _blocks(np.stack([gate[3].reshape(channels, channels) for gate in gates])),
            _blocks(np.stack([weights[i].reshape(channels, 9) for i in (10, 12)])),
            _blocks(np.stack([weights[i].reshape(channels, 1) for i in (11, 13)]))[:, :, 0],
        ]
    except ValueError:
        shapes = ", ".join(str(weight.shape) for weight in weights)
        raise ShapeError(
            f"[additive_token_mixer] expected a mixer's weights, got {shapes}"
        ) from None


def _blocks(rows: _Array) -> _Array:
    """(n, C, k) to (n, C / 16, k, 16), the last block filled with zeros."""
    n, channels, k = rows.shape
    padded = np.zeros((n, loops.round_up(channels, LANES), k), np.float32)
    padded[:, :channels] = rows
    return np.ascontiguousarray(padded.reshape(n, -1, LANES, k).swapaxes(2, 3))


def define(batch: int | None, channels: int, height: int, width: int, *, tile_rows: int = 6) -> Any:
    """Return the mixer as a function of TVM, without a schedule.

    Its arguments: x float32 (batch, channels, height, width); the arrays of `pack_weights`; the
    result, of x's shape.

    Args:
        batch: of x; None for any number.
        channels: of x.
        height: of x.
        width: of x.
        tile_rows: pixels are rounded up to a multiple of at most so many.
    """
    n = tirx.Var("batch", "int32") if batch is None else batch
    blocks, pixels = -(-channels // LANES), height * width
    x = te.placeholder((n, channels, height, width), "float32", "x")
    qkv = te.placeholder((3 * blocks, channels, LANES), "float32", "qkv")
    qkv_bias = te.placeholder((3 * blocks, LANES), "float32", "qkv_bias")
    taps = te.placeholder((2, blocks, 9, LANES), "float32", "gate_taps")
    taps_bias = te.placeholder((2, blocks, LANES), "float32", "gate_bias")
    point = te.placeholder((2, blocks, LANES), "float32", "gate_point")
    channel = te.placeholder((2, blocks, channels, LANES), "float32", "gate_channel")
    filters = te.placeholder((2, blocks, 9, LANES), "float32", "filters")
    filters_bias = te.placeholder((2, blocks, LANES), "float32", "filters_bias")

    rows = loops.round_up(pixels, loops.rows_of_tile(pixels, tile_rows))
    flat = te.compute(
        (n, channels, rows),
        lambda b, c, p: tirx.if_then_else(p < pixels, x[b, c, p // width, p % width], _f32(0)),
        "flat",
    )
    k = te.reduce_axis((0, channels), "k")
    projected = te.compute(
        (n, 3 * blocks, rows, LANES),
        lambda b, c, p, i: te.sum(flat[b, k, p] * qkv[c, k, i], axis=k),
        "projected",
    )

    def map_at(b: Any, c: Any, y: Any, x: Any, i: Any) -> Any:
        return projected[b, c, y * width + x, i] + qkv_bias[c, i]

    def edged(name: str, planes: int, value: Any) -> Any:
        """A map with an edge of zeros."""

        def cell(b: Any, c: Any, y: Any, x: Any, i: Any) -> Any:
            inside = tirx.all(y >= 1, y <= height, x >= 1, x <= width)
            return tirx.if_then_else(inside, value(b, c, y - 1, x - 1, i), _f32(0))

        return te.compute((n, planes, height + 2, width + 2, LANES), cell, name)

    maps = edged("maps", 2 * blocks, map_at)
    c = te.reduce_axis((0, blocks), "c")

    def near(b: Any, g: Any, y: Any, x: Any, i: Any) -> Any:
        value = _nine(maps, taps, b, g * blocks + c, (g, c), y, x, i) + taps_bias[g, c, i]
        return te.sum(point[g, c, i] * tirx.max(value, _f32(0)), axis=c)

    neighbourhood = te.compute((n, 2, height, width, LANES), near, "neighbourhood")
    lane = te.reduce_axis((0, LANES), "lane")
    position = te.compute(
        (n, 2, height, width),
        lambda b, g, y, x: te.sum(neighbourhood[b, g, y, x, lane], axis=lane),
        "position",
    )
    gate = te.compute((n, 2, height, width), lambda *at: _sigmoid(position[at]), "gate")
    down, along = te.reduce_axis((0, height), "down"), te.reduce_axis((0, width), "along")
    totals = te.compute(
        (n, 2, blocks, LANES),
        lambda b, g, c, i: te.sum(
            maps[b, g * blocks + c, down + 1, along + 1, i] * gate[b, g, down, along],
            axis=[down, along],
        ),
        "totals",
    )
    j = te.reduce_axis((0, channels), "j")
    mixed = te.compute(
        (n, 2, blocks, LANES),
        lambda b, g, c, i: te.sum(
            channel[g, c, j, i] * (totals[b, g, j // LANES, j % LANES] * _f32(1 / pixels)), axis=j
        ),
        "mixed",
    )
    weight = te.compute((n, 2, blocks, LANES), lambda *at: _sigmoid(mixed[at]), "weight")

    def gated(b: Any, c: Any, y: Any, x: Any, i: Any) -> Any:
        parts = [
            maps[b, g * blocks + c, y + 1, x + 1, i] * gate[b, g, y, x] * weight[b, g, c, i]
            for g in range(2)
        ]
        return parts[0] + parts[1]

    context = edged("context", blocks, gated)

    def times_value(b: Any, c: Any, y: Any, x: Any, i: Any) -> Any:
        value = _nine(context, filters, b, c, (0, c), y, x, i) + filters_bias[0, c, i]
        return value * map_at(b, c + 2 * blocks, y, x, i)

    product = edged("product", blocks, times_value)
    image = te.compute(
        (n, blocks, height, width, LANES),
        lambda b, c, y, x, i: (
            _nine(product, filters, b, c, (1, c), y, x, i) + filters_bias[1, c, i]
        ),
        "image",
    )
    out = te.compute(
        (n, channels, height, width),
        lambda b, c, y, x: image[b, c // LANES, y, x, c % LANES],
        "out",
    )
    given = [x, qkv, qkv_bias, taps, taps_bias, point, channel, filters, filters_bias]
    return te.create_prim_func([*given, out])


def schedule_cpu(function: Any, tile: Tile, pixels: int) -> Any:
    """Return the definition with tiles, vectors and loops over all cores."""
    schedule = loops.begin(function)
    block = schedule.get_sblock
    loops.spread(schedule, "flat", tile.lanes, outer=2)
    loops.tile_product(schedule, "projected", loops.rows_of_tile(pixels, tile.rows), LANES)
    loops.spread(schedule, "maps", LANES, outer=3)

    b, g, y, x, i, c = schedule.get_loops(block("neighbourhood"))
    schedule.reorder(b, g, y, c, x, i)  # the taps of a block of channels stay in registers
    schedule.vectorize(i)
    loops.share(schedule, "neighbourhood", [b, g, y])
    schedule.decompose_reduction(block("neighbourhood"), c)
    for name in ("position", "gate"):
        loops.share(schedule, name, list(schedule.get_loops(block(name)))[:3])
    for name in ("totals", "mixed"):
        *outer, i, first, last = _sum_loops(schedule, block(name))
        schedule.reorder(*outer, first, *([last] if last is not None else []), i)
        schedule.vectorize(i)
        loops.share(schedule, name, outer)
        schedule.decompose_reduction(block(name), first)

    b, c, y, *_, i = schedule.get_loops(block("image"))
    schedule.vectorize(i)
    shared = [b, c]
    blocks, height = (int(schedule.get(loop).extent) for loop in (c, y))
    if blocks % 2 and height % 2 == 0 and height >= _HALVED:  # two threads share it equally
        shared.append(schedule.split(y, [2, None])[0])
    both = schedule.fuse(*shared)
    schedule.parallel(both)
    for name in ("product", "context"):  # of one block of channels, while it is in the cache
        schedule.compute_at(block(name), both)
        schedule.vectorize(list(schedule.get_loops(block(name)))[-1])
    loops.share(schedule, "out", list(schedule.get_loops(block("out")))[:2])
    return loops.finish(schedule, NAME)


def _sum_loops(schedule: Any, block: Any) -> list[Any]:
    """The loops (b, g, c, lane, sum, second sum or None)."""
    found = list(schedule.get_loops(block))
    return [*found, None] if len(found) == 5 else found


def schedule_cuda(function: Any) -> Any:
    """Return the definition as CUDA kernels, one thread to a number."""
    schedule = loops.begin(function)
    for name in loops.block_names(schedule):
        loops.bind(schedule, name)
    return loops.finish(schedule, NAME)


def _nine(source: Any, taps: Any, b: Any, c: Any, at: Any, y: Any, x: Any, i: Any) -> Any:
    """A depthwise 3x3 convolution at one place of an edged map."""
    total = None
    for t in range(9):
        term = source[b, c, y + t // 3, x + t % 3, i] * taps[(*at, t, i)]
        total = term if total is None else total + term
    return total


def _sigmoid(value: Any) -> Any:
    return _f32(1) / (_f32(1) + tirx.exp(_f32(0) - value))


def _f32(value: float) -> Any:
    return tirx.const(value, "float32")
