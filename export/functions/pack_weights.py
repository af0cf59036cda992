"""Rounds the float weights that torch's integer layers carry, once they are constants of a graph.

`torch.ops.vitlet.shift_linear` and `int8_linear` take a plain weight, which training can change.
The exporter writes them as operators of that form; here they become `ShiftLinear`, with 4 or 8
bits a weight in the file, and `Int8Linear`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from vitlet.errors import UnsupportedError
from vitlet.export.functions.operator import DOMAIN
from vitlet.export.onnx_graph import Array, add_constant, constant, scope_of
from vitlet.ops.shift_linear import pack_int8_weight, pack_shift_weight

FLOAT_SHIFT, FLOAT_INT8 = "FloatShiftLinear", "FloatInt8Linear"


def pack_weights(model: ir.Model) -> None:
    """Replace every such layer of a graph, in place.

    Raises:
        UnsupportedError: the graph computes a weight.
    """
    for node in list(model.graph):
        if node.domain == DOMAIN and node.op_type in (FLOAT_SHIFT, FLOAT_INT8):
            _pack(model.graph, node)


def _pack(graph: ir.Graph, node: ir.Node) -> None:
    x, value, *bias = node.inputs
    weight = constant(value)
    if weight is None:
        raise UnsupportedError(
            f"{scope_of(node) or 'the model'} computes the weight of a shift or int8 layer: ONNX "
            "gets such weights rounded, so they must be constants"
        )
    attributes: dict[str, Any] = {
        "activation": node.attributes.get_string("activation", "none"),
    }
    if node.op_type == FLOAT_SHIFT:
        wide = bool(node.attributes.get_int("wide", 0))
        packed, scale = shift_codes(weight, wide)
        attributes |= {"in_features": weight.shape[1], "wide": int(wide)}
        op = "ShiftLinear"
    else:
        rounded = pack_int8_weight(weight)
        scale, op = rounded.scale, "Int8Linear"
        packed = _integers(rounded.dequantize(), scale).astype(np.int8)
    name = (value.name if value is not None else None) or "weight"
    inputs = [
        x,
        add_constant(graph, name, packed),
        add_constant(graph, f"{name.removesuffix('.weight')}.scale", scale),
        *bias,
    ]
    new = ir.node(op, inputs, attributes, domain=DOMAIN, metadata_props=dict(node.metadata_props))
    output, old = new.outputs[0], node.outputs[0]
    output.type, output.shape = old.type, old.shape
    graph.insert_before(node, new)
    if old.is_graph_output():
        graph.outputs[list(graph.outputs).index(old)] = output
        output.name = old.name
    ir.convenience.replace_all_uses_with(old, output)
    graph.remove(node, safe=True)


def shift_codes(weight: Array, wide: bool = False) -> tuple[Array, Array]:
    """Round a weight (N, K) to signed powers of two.

    Returns:
        The codes and the scale (N,) of `ShiftLinear`: see `vitlet.export.functions.linear`.
    """
    rounded = pack_shift_weight(weight, wide)
    integers = _integers(rounded.dequantize(), rounded.scale)
    if not wide:
        return _two_a_byte(_codes(integers)), rounded.scale
    # 2^7 is the one power between the parts: 256 - 128, and -128 is a code of its own.
    middle = np.abs(integers) == 128
    high = np.where(np.abs(integers) > 128, integers // 256, np.where(integers == 128, 1, 0))
    low = np.where(np.abs(integers) < 128, integers, 0)
    codes = np.stack([_codes(high), np.where(middle, 8, _codes(low))])
    return _two_a_byte(codes), rounded.scale


def _integers(weight: Array, scale: Array) -> Array:
    divisor = np.where(scale > 0, scale, 1).astype(np.float64)[:, None]
    integers: Array = np.rint(weight / divisor).astype(np.int64)
    return integers


def _codes(powers: Array) -> Array:
    """Return the codes of 0 and +-2^(0..6)."""
    _, exponent = np.frexp(np.abs(powers).astype(np.float64))  # 2^e is a half times 2^(e + 1)
    codes: Array = np.where(powers == 0, 0, exponent + 8 * (powers < 0))
    return codes


def _two_a_byte(codes: Array) -> Array:
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    packed: Array = (codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8)
    return packed
