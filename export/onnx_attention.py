"""Attention as runtimes like it: no 5-D tensors, no slices, no scale of its own.

Vision transformers compute query, key and value with one product, view the result as
(B, N, 3, heads, D), permute it and take slices. Each slice is a copy. Three smaller products with
the same weights, each viewed and permuted in 4-D, give the same numbers with two copies fewer per
layer, and let the scale fold into the query's weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import opset18 as op

from vitlet.errors import UnsupportedError
from vitlet.export.onnx_graph import add_constant, bypass, constant, insert_before
from vitlet.export.onnx_split import linear_columns, projection


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Translate `scaled_dot_product_attention` of rank-4 operands, for the exporter's table.

    The exporter's own translation scales both operands by the square root and, where the batch is
    free, computes the key's shape at run time to transpose it.
    """
    if is_causal or enable_gqa or dropout_p or len(query.shape) != 4:
        raise UnsupportedError(
            "ONNX takes attention of (B, heads, N, D) operands without dropout, causal flag or "
            f"grouped queries; got is_causal={is_causal}, enable_gqa={enable_gqa}, "
            f"dropout={dropout_p}, rank {len(query.shape)}: pass a mask instead"
        )
    factor = scale if scale is not None else 1.0 / math.sqrt(int(query.shape[-1]))
    dtype = query.dtype.numpy()
    scaled = op.Mul(query, op.Constant(value=ir.tensor(np.asarray(factor, dtype))))
    scores = op.MatMul(scaled, op.Transpose(key, perm=[0, 1, 3, 2]))
    if attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def _ints(value: ir.Value | None) -> list[int] | None:
    array = constant(value)
    return None if array is None else [int(i) for i in array.reshape(-1)]


def _part(node: ir.Node) -> tuple[int, ir.Node] | None:
    """Return (which of the three, the node whose output it is) of a Slice+Squeeze or a Gather."""
    if node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0:
        index = constant(node.inputs[1])
        return None if index is None or index.ndim != 0 else (int(index), node)
    if node.op_type != "Slice" or len(node.outputs[0].uses()) != 1:
        return None
    starts, ends = _ints(node.inputs[1]), _ints(node.inputs[2])
    axes = _ints(node.inputs[3]) if len(node.inputs) > 3 else [0]
    squeeze = next(iter(node.outputs[0].uses())).node
    if squeeze.op_type != "Squeeze" or axes != [0] or starts is None or ends is None:
        return None
    return (starts[0], squeeze) if ends[0] == starts[0] + 1 else None


def _parts(permute: ir.Node) -> dict[int, ir.Node] | None:
    output = permute.outputs[0]
    if output.is_graph_output():
        return None
    uses = [use.node for use in output.uses()]
    if len(uses) == 1 and uses[0].op_type == "Split":
        return None
    found: dict[int, ir.Node] = {}
    for node in uses:
        part = _part(node)
        if part is None or part[0] in found:
            return None
        found[part[0]] = part[1]
    return found if sorted(found) == [0, 1, 2] else None


def split_qkv(node: ir.Node) -> bool:
    """Replace one product that feeds query, key and value by three; `node` is the 5-D permute."""
    if node.op_type != "Transpose" or node.graph is None:
        return False
    perm = list(node.attributes.get_ints("perm", []))
    view = node.inputs[0].producer() if node.inputs[0] is not None else None
    if perm not in ([2, 0, 3, 1, 4], [2, 0, 3, 4, 1]) or view is None or view.op_type != "Reshape":
        return False
    shape = _ints(view.inputs[1])
    layer = projection(view.inputs[0])
    parts = _parts(node)
    if shape is None or layer is None or parts is None or len(view.outputs[0].uses()) != 1:
        return False
    heads, width = shape[3], shape[4]
    if layer.weight.shape[1] != 3 * heads * width or shape[2] != 3:
        return False
    graph = node.graph
    target = add_constant(graph, "heads", np.array([shape[0], shape[1], heads, width], np.int64))
    order = [0, 2, 1, 3] if perm[3:] == [1, 4] else [0, 2, 3, 1]
    anchor = view
    for index, (end, letter) in enumerate(zip((parts[i] for i in range(3)), "qkv", strict=True)):
        columns = slice(index * heads * width, (index + 1) * heads * width)
        value = linear_columns(anchor, layer, columns, letter)
        value = insert_before(anchor, "Reshape", [value, target], {"allowzero": 0})
        value = insert_before(anchor, "Transpose", [value], {"perm": order})
        value.shape = end.outputs[0].shape
        bypass(end, value)
    return True


def merge_transposes(node: ir.Node) -> bool:
    """Make one Transpose of two in a row; drop one that changes nothing."""
    if node.op_type != "Transpose" or node.inputs[0] is None:
        return False
    perm = list(node.attributes.get_ints("perm", []))
    if perm and perm == sorted(perm):
        bypass(node, node.inputs[0])
        return True
    first = node.inputs[0].producer()
    if first is None or first.op_type != "Transpose" or first.inputs[0] is None:
        return False
    before = list(first.attributes.get_ints("perm", []))
    if not before or len(before) != len(perm):
        return False
    merged = insert_before(node, "Transpose", [first.inputs[0]], {"perm": _compose(before, perm)})
    merged.shape = node.outputs[0].shape
    bypass(node, merged)
    return True


def _compose(first: Sequence[int], second: Sequence[int]) -> list[int]:
    return [first[axis] for axis in second]


def fits(program: Any) -> bool:
    """Whether every attention call of a traced program is one that `attention` translates."""
    for node in program.graph.nodes:
        if str(node.target) != "aten.scaled_dot_product_attention.default":
            continue
        others = [v for k, v in node.kwargs.items() if k not in ("attn_mask", "scale")]
        rest = [*node.args[4:], *others]
        if any(bool(value) for value in rest) or node.args[0].meta["val"].ndim != 4:
            return False
    return True
