"""Softmax and layer normalization as steps over a row that all fill vectors.

A sum of a row is 16 sums of every sixteenth number, and a sum of those. A row whose length is no
multiple of 16 is copied into one that is.
"""

from __future__ import annotations

from typing import Any

from tvm import te, tirx

from vitlet.export.tvm_math import constant, exp

LANES = 16  # two vectors of AVX2, one of AVX-512, four of NEON
_GROUP = 4
_LOWEST = -3.4028234663852886e38
_OUT_FUSABLE = 4  # relax.OpPatternKind: elementwise consumers may be fused into it


def _fold(steps: Any, shape: list[Any], size: int, value: Any, name: str) -> Any:
    """Reduce rows of `size` numbers, a multiple of LANES, given by `value(row, place)`."""
    part = te.reduce_axis((0, size // LANES), "part")
    lanes = te.compute(
        (*shape, LANES),
        lambda *at: steps(value(at[:-1], part * LANES + at[-1]), axis=part),
        f"{name}_lanes",
    )
    group = te.reduce_axis((0, LANES // _GROUP), "group")
    groups = te.compute(
        (*shape, _GROUP),
        lambda *at: steps(lanes[(*at[:-1], group * _GROUP + at[-1])], axis=group),
        f"{name}_groups",
    )
    lane = te.reduce_axis((0, _GROUP), "lane")
    return te.compute(tuple(shape), lambda *at: steps(groups[(*at, lane)], axis=lane), name)


def _whole(x: Any, filler: float) -> tuple[Any, int]:
    """Return x with rows of a multiple of LANES, and that length."""
    *outer, last = x.shape
    size = int(last)
    padded = -(-size // LANES) * LANES
    if padded == size:
        return x, size

    def element(*at: Any) -> Any:
        return tirx.if_then_else(at[-1] < size, x(*at), constant(filler))

    return te.compute((*outer, padded), element, "row"), padded


def _softmax(x: Any) -> Any:
    *outer, _ = x.shape
    row, size = _whole(x, _LOWEST)
    most = _fold(te.max, outer, size, lambda at, j: row[(*at, j)], "most")
    powers = te.compute((*outer, size), lambda *at: exp(row[at] - most[at[:-1]]), "powers")
    total = _fold(te.sum, outer, size, lambda at, j: powers[(*at, j)], "total")
    share = te.compute(tuple(outer), lambda *at: constant(1) / total[at], "share")
    return te.compute(x.shape, lambda *at: powers[at] * share[at[:-1]], "softmax")


def _layer_norm(x: Any, gain: Any, shift: Any, epsilon: float) -> Any:
    *outer, last = x.shape
    count = int(last)
    row, size = _whole(x, 0.0)
    total = _fold(te.sum, outer, size, lambda at, j: row[(*at, j)], "total")
    mean = te.compute(tuple(outer), lambda *at: total[at] * constant(1 / count), "mean")

    def square(at: Any, j: Any) -> Any:
        off = row[(*at, j)] - mean[at]
        return off * off if size == count else tirx.Select(j < count, off * off, constant(0))

    squares = _fold(te.sum, outer, size, square, "squares")
    scale = te.compute(
        tuple(outer),
        lambda *at: constant(1) / tirx.sqrt(squares[at] * constant(1 / count) + constant(epsilon)),
        "scale",
    )
    return te.compute(
        x.shape,
        lambda *at: (row[at] - mean[at[:-1]]) * scale[at[:-1]] * gain[at[-1]] + shift[at[-1]],
        "layer_norm",
    )


def _fits(call: Any) -> bool:
    data = call.args[0].ty
    return str(data.dtype) == "float32" and isinstance(data.shape[-1], tirx.IntImm)


def _default(builder: Any, call: Any) -> Any:
    return call.op.get_attr("FLegalize")(builder, call)


def softmax(builder: Any, call: Any) -> Any:
    """Lower `relax.nn.softmax` over the last axis."""
    dims = len(call.args[0].ty.shape)
    if not _fits(call) or int(call.attrs.axis) not in (-1, dims - 1):
        return _default(builder, call)
    return builder.call_te(
        _softmax,
        call.args[0],
        primfunc_name_hint="softmax",
        primfunc_attrs={"op_pattern": _OUT_FUSABLE},
    )


def layer_norm(builder: Any, call: Any) -> Any:
    """Lower `relax.nn.layer_norm` over the last axis, with a gain and a shift."""
    dims = len(call.args[0].ty.shape)
    axes = [int(axis) for axis in call.attrs.axes]
    plain = bool(call.attrs.center) and bool(call.attrs.scale)
    if not _fits(call) or not plain or axes not in ([-1], [dims - 1]):
        return _default(builder, call)
    return builder.call_te(
        _layer_norm,
        *call.args,
        float(call.attrs.epsilon),
        primfunc_name_hint="layer_norm",
        primfunc_attrs={"op_pattern": _OUT_FUSABLE},
    )


LEGALIZE = {"relax.nn.softmax": softmax, "relax.nn.layer_norm": layer_norm}
