"""Decides which parts of a graph keep images with the channels last, counting every transpose.

Vitlet's convolutions want (B, H, W, C), ONNX Runtime's (B, C, H, W). Operators that do not care
follow their neighbours. With the time of each layer in either form and of each transpose, the
choice that takes least time is a minimum cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from vitlet.export.accelerate.cut import Cut
from vitlet.export.accelerate.layers import Layer
from vitlet.export.accelerate.tokens import TO_FIRST, TO_LAST, is_turn
from vitlet.export.onnx_graph import constant

# Element by element, whatever the order of the axes.
UNARY = frozenset(
    ("Relu", "Sigmoid", "Gelu", "Tanh", "Erf", "HardSigmoid", "HardSwish", "Identity", "Clip",
     "LeakyRelu", "Elu", "Softplus", "Neg", "Abs", "Sqrt", "Exp")
)  # fmt: skip
BINARY = frozenset(("Add", "Sub", "Mul", "Div"))


@dataclass(frozen=True)
class Times:
    """What a layer costs, in nanoseconds: left as it is, and computed by a kernel."""

    plain: int
    ours: int


def is_image(value: ir.Value | None) -> bool:
    """Tell whether a value is a computed (B, C, H, W)."""
    return (
        value is not None
        and value.shape is not None
        and len(value.shape) == 4
        and constant(value) is None
    )


def follows(node: ir.Node) -> bool:
    """Tell whether a node can work on either order of the axes."""
    if node.domain != "" or not node.outputs or not all(is_image(out) for out in node.outputs):
        return False
    if node.op_type in UNARY:
        return is_image(node.inputs[0])
    if node.op_type in BINARY:
        return all(is_image(value) or _broadcasts(value) for value in node.inputs)
    if node.op_type == "GlobalAveragePool":
        shape = None if node.inputs[0] is None else node.inputs[0].shape
        return shape is not None and all(isinstance(size, int) for size in shape[1:])
    axis = node.attributes.get_int("axis", 0)
    if node.op_type == "Concat":
        return axis in (1, -3) and all(is_image(value) for value in node.inputs)
    return node.op_type == "Split" and axis in (1, -3) and is_image(node.inputs[0])


def _broadcasts(value: ir.Value | None) -> bool:
    """A constant that can be turned too: a scalar, or one of up to four axes."""
    array = constant(value)
    return array is not None and (array.size == 1 or array.ndim in (3, 4))


def choose(
    graph: ir.Graph,
    layers: list[Layer],
    times: Mapping[int, Times],
    transpose: Callable[[ir.Value], int],
) -> tuple[set[int], set[int]]:
    """Split the graph.

    Args:
        graph: with shapes.
        layers: from `find_layers`.
        times: id of a layer -> its times.
        transpose: nanoseconds that turning a value takes.

    Returns:
        Ids of the layers for the kernels, and of the nodes (`follows`) that work channels last.
    """
    ours = {id(layer) for layer in layers if not layer.image and _wins(times[id(layer)])}
    cut = Cut()
    member: dict[int, int] = {}  # id of a node -> its number
    for layer in layers:
        if layer.image:
            number = cut.member()
            member.update((id(node), number) for node in layer.nodes)
            cut.cost(number, Cut.SINK, times[id(layer)].ours)
            cut.cost(Cut.SOURCE, number, times[id(layer)].plain)
    free = [node for node in graph if id(node) not in member and follows(node)]
    member.update((id(node), cut.member()) for node in free)
    for node in graph:
        for value in node.outputs:
            _count_transposes(cut, member, value, transpose)
    for value in graph.inputs:
        _count_transposes(cut, member, value, transpose)
    last = cut.solve()
    ours |= {id(one) for one in layers if one.image and member[id(one.nodes[0])] in last}
    return ours, {id(node) for node in free if member[id(node)] in last}


def _wins(times: Times) -> bool:
    return times.ours < times.plain


def _count_transposes(
    cut: Cut, member: dict[int, int], value: ir.Value, transpose: Callable[[ir.Value], int]
) -> None:
    """A value is turned once, if any of its readers wants it the other way round."""
    producer = value.producer()
    made = Cut.SINK if producer is None else member.get(id(producer), Cut.SINK)
    readers = {
        # The graph's own transposes end where images are channels last.
        Cut.SOURCE if is_turn(use.node, TO_LAST) else member.get(id(use.node), Cut.SINK)
        for use in value.uses()
    }
    if producer is not None and is_turn(producer, TO_FIRST):
        made = Cut.SOURCE
    if value.is_graph_output():
        readers.add(Cut.SINK)
    readers.discard(made)
    if not readers or not is_image(value):
        return
    cost = transpose(value)
    to_plain, to_last = cut.member(), cut.member()
    cut.cost(made, to_plain, cost)
    cut.cost(to_last, made, cost)
    for reader in readers:
        cut.cost(to_plain, reader)
        cut.cost(reader, to_last)
