"""Writes the turning of tokens into images, and back, as a transpose of the image.

A token is a pixel with its channels last, so ``(B, N, C)`` is a view of ``(B, H, W, C)``. Models
say ``transpose(1, 2).reshape(B, C, H, W)``; as a reshape and a transpose of four axes it is one
that the choice of the layout knows how to save. A GELU between an image and its tokens goes to the
image, where a convolution can take it in.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitlet.export.accelerate.layers import gelu_after
from vitlet.export.onnx_graph import add_constant, constant, insert_before, sole_consumer

TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
_SWAP = [0, 2, 1]


def turn_tokens(graph: ir.Graph) -> int:
    """Rewrite every such place in a graph with shapes; return how many there were."""
    count = 0
    for node in list(graph):
        if node.graph is None or node.domain != "":
            continue
        if node.op_type == "Transpose" and _permutes(node, _SWAP):
            count += _to_image(graph, node)
        elif node.op_type == "Reshape":
            count += _to_tokens(graph, node)
    return count


def is_turn(node: ir.Node, order: list[int]) -> bool:
    """Tell whether a node is a transpose of four axes to this order."""
    return node.domain == "" and node.op_type == "Transpose" and _permutes(node, order)


def _permutes(node: ir.Node, order: list[int]) -> bool:
    return list(node.attributes.get_ints("perm", [])) == order


def _to_image(graph: ir.Graph, swap: ir.Node) -> bool:
    """Transpose (B, N, C) -> (B, C, N), Reshape to (B, C, H, W)."""
    reshape = sole_consumer(swap.outputs[0], "Reshape")
    sizes = None if reshape is None else _sizes(reshape.outputs[0], 4)
    batch = None if reshape is None else _batch(reshape)
    tokens = swap.inputs[0]
    if reshape is None or sizes is None or batch is None or _sizes(tokens, 3) is None:
        return False
    channels, height, width = sizes
    shape = add_constant(graph, "map", np.array([batch, height, width, channels], np.int64))
    last = insert_before(reshape, "Reshape", [tokens, shape])
    out = reshape.outputs[0]
    assert out.shape is not None
    last.shape = ir.Shape([out.shape[0], height, width, channels])
    first = insert_before(reshape, "Transpose", [last], {"perm": TO_FIRST})
    _put(graph, first, out, [reshape, swap])
    return True


def _to_tokens(graph: ir.Graph, reshape: ir.Node) -> bool:
    """Reshape (B, C, H, W) -> (B, C, N), Transpose to (B, N, C), and perhaps GELU."""
    image, batch = reshape.inputs[0], _batch(reshape)
    swap = sole_consumer(reshape.outputs[0], "Transpose")
    if swap is None or not _permutes(swap, _SWAP) or image is None or batch is None:
        return False
    sizes, tokens = _sizes(image, 4), _sizes(swap.outputs[0], 3)
    flat = _sizes(reshape.outputs[0], 3)
    if sizes is None or tokens is None or flat is None or flat[0] != sizes[0]:
        return False
    assert image.shape is not None
    channels, height, width = sizes
    gelu = gelu_after(swap.outputs[0])
    alone = len(list(image.uses())) == 1 and not image.is_graph_output()
    if len(gelu) == 1 and alone:
        shaped = image.shape
        image = insert_before(reshape, "Gelu", [image])
        image.shape = shaped
    last = insert_before(reshape, "Transpose", [image], {"perm": TO_LAST})
    last.shape = ir.Shape([image.shape[0], height, width, channels])  # type: ignore[index]
    shape = add_constant(graph, "tokens", np.array([batch, *tokens], np.int64))
    made = insert_before(reshape, "Reshape", [last, shape])
    if len(gelu) == 1 and alone:
        _put(graph, made, gelu[0].outputs[0], [gelu[0], swap, reshape])
    else:
        _put(graph, made, swap.outputs[0], [swap, reshape])
    return True


def _put(graph: ir.Graph, new: ir.Value, old: ir.Value, nodes: list[ir.Node]) -> None:
    """Let the readers of `old` read `new`, and drop the nodes that made it, last to first."""
    new.shape, new.type = old.shape, old.type
    if old.is_graph_output():
        graph.outputs[list(graph.outputs).index(old)] = new
        new.name = old.name
    ir.convenience.replace_all_uses_with(old, new)
    for node in nodes:
        if not any(True for out in node.outputs for _ in out.uses()):
            graph.remove(node, safe=True)


def _sizes(value: ir.Value | None, axes: int) -> list[int] | None:
    """Return the sizes after the batch, all known, of a value of so many axes."""
    if value is None or value.shape is None or len(value.shape) != axes:
        return None
    sizes = [size for size in list(value.shape)[1:] if isinstance(size, int)]
    return sizes if len(sizes) == axes - 1 else None


def _batch(reshape: ir.Node) -> int | None:
    """Return the first number of a constant target: the batch, or what stands for it."""
    target = constant(reshape.inputs[1])
    keeps_zeros = reshape.attributes.get_int("allowzero", 0) != 0
    if target is None or (keeps_zeros and 0 in target):
        return None
    # Only one size may be left open, and the others are written out.
    return int(target.ravel()[0]) if target.size else None
