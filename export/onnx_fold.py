"""Folds constant scales and shifts into the weights beside them.

Layer scales, attention scales, pixel scaling and what is left of a BatchNorm are all
`x * scale + shift` with constants. Next to a convolution or matrix product they cost a pass over
the activations and buy nothing. Folding is exact up to rounding, done in float64.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitlet.export.onnx_graph import (
    Array,
    add_constant,
    bypass,
    const_operand,
    constant,
    insert_before,
    sole_consumer,
    sole_producer,
)

# A scalar commutes with these; a vector need not.
_MOVERS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze")


def spell_out_batch_norm(node: ir.Node) -> bool:
    """Turn a BatchNormalization into a Mul and an Add, which fold further."""
    if node.op_type != "BatchNormalization" or len(node.outputs) != 1:
        return False
    parts = [constant(value) for value in node.inputs[1:]]
    if any(part is None for part in parts) or node.graph is None:
        return False
    weight, bias, mean, var = (np.asarray(part, np.float64) for part in parts)
    scale = weight / np.sqrt(var + node.attributes.get_float("epsilon", 1e-5))
    source = node.inputs[0]
    assert source is not None
    rank = len(source.shape) if source.shape is not None else 4
    dtype, name = _dtype(parts[0]), node.inputs[1]
    stem = name.name if name is not None and name.name else "norm"
    affine = []
    for suffix, vector in (("scale", scale), ("shift", bias - mean * scale)):
        array = vector.astype(dtype).reshape(1, -1, *[1] * (rank - 2))
        affine.append(add_constant(node.graph, f"{stem}.{suffix}", array))
    product = insert_before(node, "Mul", [source, affine[0]])
    product.shape = node.outputs[0].shape
    total = insert_before(node, "Add", [product, affine[1]])
    total.shape = node.outputs[0].shape
    bypass(node, total)
    return True


def fold_into_previous(node: ir.Node) -> bool:
    """Fold ``(x * W + b) * scale`` or ``(x * W + b) + shift`` into W and b."""
    if node.op_type not in ("Mul", "Add", "Div"):
        return False
    split = const_operand(node)
    if split is None or (node.op_type == "Div" and constant(node.inputs[1]) is None):
        return False
    array, source = split
    if node.op_type == "Div":
        array = (1.0 / array.astype(np.float64)).astype(array.dtype)
    multiply = node.op_type != "Add"
    layer = source
    while array.size == 1 and multiply and (mover := sole_producer(layer, *_MOVERS)):
        assert mover.inputs[0] is not None
        layer = mover.inputs[0]
    producer = sole_producer(layer, "Conv", "Gemm", "Add", "MatMul")
    if producer is None or not _same_shape(node.outputs[0], source):
        return False
    fold = {"Conv": _conv, "Gemm": _gemm, "Add": _linear, "MatMul": _matmul}[producer.op_type]
    if not fold(producer, array, multiply):
        return False
    bypass(node, source)
    return True


def fold_into_next(node: ir.Node) -> bool:
    """Fold ``conv(x * scale)`` and, where nothing is padded, ``conv(x + shift)`` into the conv."""
    if node.op_type not in ("Mul", "Add") or node.graph is None:
        return False
    split = const_operand(node)
    conv = sole_consumer(node.outputs[0], "Conv")
    if split is None or conv is None or conv.inputs[0] is not node.outputs[0]:
        return False
    array, source = split
    weight = _own_weight(conv.inputs[1])
    if weight is None or not _same_shape(node.outputs[0], source):
        return False
    groups = conv.attributes.get_int("group", 1)
    vector = _per_channel(array, 1, len(weight.shape), weight.shape[1] * groups)
    if vector is None:
        return False
    # (groups, out / group, in / group, ...) times (groups, 1, in / group, 1...)
    grouped = weight.astype(np.float64).reshape(groups, -1, *weight.shape[1:])
    spread = vector.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
    if node.op_type == "Mul":
        new = (grouped * spread).reshape(weight.shape)
        _set(conv, 1, new.astype(weight.dtype), "weight")
    else:
        if any(conv.attributes.get_ints("pads", [])) or _auto_pad(conv):
            return False
        extra = (grouped * spread).sum(axis=tuple(range(2, grouped.ndim))).reshape(-1)
        _add_bias(conv, extra, weight)
    bypass(node, source)
    return True


def _auto_pad(conv: ir.Node) -> bool:
    return conv.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")


def _dtype(array: Array | None) -> np.dtype[np.generic]:
    assert array is not None
    return array.dtype


def _same_shape(one: ir.Value, other: ir.Value) -> bool:
    # A constant that broadcasts its operand to a larger shape is not a scale of that operand.
    return one.shape is not None and other.shape is not None and str(one.shape) == str(other.shape)


def _own_weight(value: ir.Value | None) -> Array | None:
    """Return a weight that only one node reads: a shared one would have to be stored twice."""
    return constant(value) if value is not None and len(value.uses()) == 1 else None


def _per_channel(array: Array, axis: int, rank: int, channels: int) -> Array | None:
    """Return a constant as (channels,) float64 if it varies along `axis` of a rank-`rank` value."""
    if array.size == 1:
        return np.full(channels, array.reshape(-1)[0], np.float64)
    shape = (1,) * (rank - array.ndim) + array.shape
    wanted = tuple(channels if i == axis else 1 for i in range(rank))
    return array.reshape(-1).astype(np.float64) if shape == wanted else None


def _set(node: ir.Node, index: int, array: Array, fallback: str) -> None:
    assert node.graph is not None
    old = node.inputs[index] if index < len(node.inputs) else None
    if old is not None:
        name = old.name or fallback
    else:
        weight = node.inputs[1]
        stem = weight.name if weight is not None and weight.name else fallback
        name = f"{stem.removesuffix('.weight')}.{fallback}"
    value = add_constant(node.graph, name, array)
    while len(node.inputs) <= index:
        node.resize_inputs(len(node.inputs) + 1)
    node.replace_input_with(index, value)


def _add_bias(node: ir.Node, extra: Array, weight: Array) -> None:
    old = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    total = extra if old is None else old.astype(np.float64) + extra
    _set(node, 2, total.astype(weight.dtype), "bias")


def _conv(conv: ir.Node, array: Array, multiply: bool) -> bool:
    weight = _own_weight(conv.inputs[1])
    has_bias = len(conv.inputs) > 2 and conv.inputs[2] is not None
    if weight is None or (has_bias and _own_weight(conv.inputs[2]) is None):
        return False
    vector = _per_channel(array, 1, weight.ndim, weight.shape[0])
    if vector is None:
        return False
    if not multiply:
        _add_bias(conv, vector, weight)
        return True
    new = weight.astype(np.float64) * vector.reshape(-1, *[1] * (weight.ndim - 1))
    if has_bias:
        bias = constant(conv.inputs[2])
        assert bias is not None
        _set(conv, 2, (bias.astype(np.float64) * vector).astype(weight.dtype), "bias")
    _set(conv, 1, new.astype(weight.dtype), "weight")
    return True


def _gemm(gemm: ir.Node, array: Array, multiply: bool) -> bool:
    weight = _own_weight(gemm.inputs[1])
    bias = _own_weight(gemm.inputs[2]) if len(gemm.inputs) > 2 else None
    plain = all(gemm.attributes.get_float(k, 1.0) == 1.0 for k in ("alpha", "beta"))
    if weight is None or bias is None or bias.ndim != 1 or not plain:
        return False
    transposed = gemm.attributes.get_int("transB", 0)
    vector = _per_channel(array, 1, 2, weight.shape[0 if transposed else 1])
    if vector is None:
        return False
    if not multiply:
        _set(gemm, 2, (bias.astype(np.float64) + vector).astype(bias.dtype), "bias")
        return True
    spread = vector[:, None] if transposed else vector
    _set(gemm, 1, (weight.astype(np.float64) * spread).astype(weight.dtype), "weight")
    _set(gemm, 2, (bias.astype(np.float64) * vector).astype(bias.dtype), "bias")
    return True


def _matmul(node: ir.Node, array: Array, multiply: bool) -> bool:
    weight = _own_weight(node.inputs[1])
    rank = node.outputs[0].shape
    if weight is None or weight.ndim != 2 or rank is None or not multiply:
        return False
    vector = _per_channel(array, len(rank) - 1, len(rank), weight.shape[1])
    if vector is None:
        return False
    _set(node, 1, (weight.astype(np.float64) * vector).astype(weight.dtype), "weight")
    return True


def _linear(add: ir.Node, array: Array, multiply: bool) -> bool:
    """MatMul with a constant matrix, then Add of a constant vector: a linear layer in 3-D."""
    split = const_operand(add)
    if split is None:
        return False
    bias, product = split
    matmul = sole_producer(product, "MatMul")
    index = 1 if add.inputs[0] is product else 0
    if matmul is None or bias.ndim != 1 or len(add.inputs[index].uses()) != 1:  # type: ignore[union-attr]
        return False
    rank = matmul.outputs[0].shape
    vector = None if rank is None else _per_channel(array, len(rank) - 1, len(rank), bias.size)
    if vector is None or (multiply and not _matmul(matmul, array, True)):
        return False
    new = bias.astype(np.float64) * vector if multiply else bias.astype(np.float64) + vector
    _set(add, index, new.astype(bias.dtype), "bias")
    return True
