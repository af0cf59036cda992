"""Small tools for reading and changing an ONNX graph: constants, single uses, replacements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


def constant(value: ir.Value | None) -> Array | None:
    """Return the array behind a value that never changes, else None."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def sole_producer(value: ir.Value | None, *ops: str) -> ir.Node | None:
    """Return the node behind a value if it is one of `ops` and nothing else reads its output."""
    node = None if value is None else value.producer()
    if node is None or node.domain != "" or node.op_type not in ops or len(node.outputs) != 1:
        return None
    assert value is not None
    return None if value.is_graph_output() or len(value.uses()) != 1 else node


def sole_consumer(value: ir.Value, *ops: str) -> ir.Node | None:
    """Return the one node that reads a value, if it is one of `ops`."""
    uses = list(value.uses())
    if value.is_graph_output() or len(uses) != 1:
        return None
    node = uses[0].node
    return node if node.domain == "" and node.op_type in ops else None


def const_operand(node: ir.Node) -> tuple[Array, ir.Value] | None:
    """Split a two-operand node into (its constant, its variable operand)."""
    first, second = node.inputs
    for fixed, free in ((second, first), (first, second)):
        array = constant(fixed)
        if array is not None and free is not None:
            return array, free
    return None


def add_constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Add an initializer under a free name that starts with `name`."""
    free, count = name, 0
    while free in graph.initializers:
        count += 1
        free = f"{name}_{count}"
    value = ir.val(free, const_value=ir.tensor(np.ascontiguousarray(array), name=free))
    value.shape, value.type = (
        ir.Shape(array.shape),
        ir.TensorType(ir.DataType.from_numpy(array.dtype)),
    )
    graph.register_initializer(value)
    return value


def insert_before(
    anchor: ir.Node,
    op: str,
    inputs: Sequence[ir.Value | None],
    attributes: dict[str, Any] | None = None,
) -> ir.Value:
    """Add a node in front of `anchor`, of the same source module; return its output."""
    node = ir.node(op, inputs, attributes or {}, metadata_props=dict(anchor.metadata_props))
    assert anchor.graph is not None
    anchor.graph.insert_before(anchor, node)
    output = node.outputs[0]
    output.type = anchor.outputs[0].type
    return output


def bypass(node: ir.Node, value: ir.Value) -> None:
    """Let every reader of `node`'s first output read `value` instead, and drop the node."""
    output, graph = node.outputs[0], node.graph
    assert graph is not None
    if output.is_graph_output():
        graph.outputs[list(graph.outputs).index(output)] = value
        value.name, value.shape, value.type = output.name, output.shape, output.type
    ir.convenience.replace_all_uses_with(output, value)
    graph.remove(node, safe=True)


def scope_of(node: ir.Node) -> str:
    """Return the module path that a node came from, as the exporter recorded it, or ""."""
    text = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    names = [part.strip(" '\"") for part in text.strip("[]").split(",")]
    return names[-2] if len(names) >= 2 else ""
