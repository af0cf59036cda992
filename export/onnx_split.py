"""One layer whose output is split becomes one layer per part: a split is a copy, a layer is not."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from vitlet.export.onnx_graph import Array, add_constant, constant, insert_before, scope_of


@dataclass(frozen=True)
class Linear:
    """A linear layer of a graph: ``source @ weight (in, out) + bias``."""

    source: ir.Value
    weight: Array
    bias: Array | None
    name: str
    output: ir.Value


def projection(value: ir.Value | None) -> Linear | None:
    """Read the linear layer behind a value that has one reader: MatMul, or MatMul and Add."""
    node = None if value is None else value.producer()
    if node is None or value is None or len(value.uses()) != 1 or value.is_graph_output():
        return None
    bias: Array | None = None
    if node.op_type == "Add":
        bias = constant(node.inputs[1])
        product = node.inputs[0]
        node = None if product is None or len(product.uses()) != 1 else product.producer()
        if bias is None or bias.ndim != 1:
            return None
    if node is None or node.op_type != "MatMul":
        return None
    weight, source = constant(node.inputs[1]), node.inputs[0]
    if weight is None or weight.ndim != 2 or source is None:
        return None
    return Linear(source, weight, bias, scope_of(node) or "linear", value)


def linear_columns(anchor: ir.Node, layer: Linear, columns: slice, suffix: str) -> ir.Value:
    """Add the linear layer that computes some of a layer's outputs, in front of `anchor`."""
    assert anchor.graph is not None
    weight, bias = layer.weight[:, columns], layer.bias
    name = f"{layer.name}.{suffix}"
    matrix = add_constant(anchor.graph, f"{name}.weight", weight)
    shape = None
    if layer.output.shape is not None:
        shape = [*layer.output.shape[:-1], weight.shape[1]]
    value = insert_before(anchor, "MatMul", [layer.source, matrix])
    value.shape = None if shape is None else ir.Shape(shape)
    if bias is not None:
        vector = add_constant(anchor.graph, f"{name}.bias", bias[columns])
        value = insert_before(anchor, "Add", [value, vector])
        value.shape = None if shape is None else ir.Shape(shape)
    return value


def _widths(node: ir.Node, total: int) -> list[int] | None:
    sizes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    count = len(node.outputs)
    widths = [total // count] * count if sizes is None else [int(size) for size in sizes]
    inside = not any(output.is_graph_output() for output in node.outputs)
    return widths if inside and sum(widths) == total else None


def split_linear(node: ir.Node) -> bool:
    """Turn a linear layer followed by a split of its outputs into one layer per part."""
    if node.op_type != "Split" or node.graph is None:
        return False
    layer = projection(node.inputs[0])
    if layer is None or layer.output.shape is None:
        return False
    if node.attributes.get_int("axis", 0) not in (-1, len(layer.output.shape) - 1):
        return False
    widths = _widths(node, layer.weight.shape[1])
    if widths is None:
        return False
    start = 0
    letters = "qkv" if len(widths) == 3 else [str(index) for index in range(len(widths))]
    for width, output, letter in zip(widths, node.outputs, letters, strict=True):
        value = linear_columns(node, layer, slice(start, start + width), letter)
        ir.convenience.replace_all_uses_with(output, value)
        start += width
    node.graph.remove(node, safe=True)
    return True


def split_conv(node: ir.Node) -> bool:
    """Turn a 1x1 convolution followed by a channel split into one convolution per part."""
    if node.op_type != "Split" or node.attributes.get_int("axis", 0) != 1 or node.graph is None:
        return False
    source = node.inputs[0]
    conv = None if source is None else source.producer()
    if conv is None or conv.op_type != "Conv" or source is None or len(source.uses()) != 1:
        return False
    weight = constant(conv.inputs[1])
    bias = constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
    if weight is None or conv.attributes.get_int("group", 1) != 1 or source.is_graph_output():
        return False
    widths = _widths(node, weight.shape[0])
    if widths is None:
        return False
    stem = (conv.inputs[1].name if conv.inputs[1] is not None else None) or "conv.weight"
    stem = stem.removesuffix(".weight")
    start = 0
    for index, (width, output) in enumerate(zip(widths, node.outputs, strict=True)):
        part = slice(start, start + width)
        start += width
        inputs = [conv.inputs[0], add_constant(node.graph, f"{stem}.{index}.weight", weight[part])]
        if bias is not None:
            inputs.append(add_constant(node.graph, f"{stem}.{index}.bias", bias[part]))
        value = insert_before(conv, "Conv", inputs, dict(conv.attributes))
        value.shape = output.shape
        ir.convenience.replace_all_uses_with(output, value)
    node.graph.remove([node, conv], safe=True)
    return True
