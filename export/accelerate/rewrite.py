"""Puts the chosen layers into the graph, channels last, with transposes where the choice ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from vitlet.export.accelerate.layers import DEPTHWISE, MIXER, Layer
from vitlet.export.accelerate.layout import UNARY
from vitlet.export.accelerate.tokens import TO_FIRST, TO_LAST, is_turn
from vitlet.export.functions.operator import DOMAIN
from vitlet.export.onnx_graph import Array, add_constant, constant, insert_before


class Rewriter:
    """Replaces nodes in the order of the graph; values channels last have twins in `turned`.

    Args:
        graph: changed in place.
        layers: those that kernels compute, with the format of each.
        last: ids of the other nodes that work channels last.
    """

    def __init__(self, graph: ir.Graph, layers: list[tuple[Layer, str]], last: set[int]) -> None:
        self._graph = graph
        self._layers = {id(layer.nodes[-1]): (layer, format) for layer, format in layers}
        self._parts = {id(n): n for layer, _ in layers for n in layer.nodes[:-1]}
        self._last = last
        self._turned: dict[int, ir.Value] = {}  # id of a value -> the same, channels last
        self._keep: list[ir.Value] = []  # whose ids are in use
        self._made: list[tuple[ir.Value, str]] = []  # constants, and the names they should have

    def run(self) -> None:
        """Change the graph."""
        for node in list(self._graph):
            if id(node) in self._parts:
                continue
            if id(node) in self._layers:
                self._put_layer(node, *self._layers[id(node)])
            elif id(node) in self._last:
                self._put_turned(node)
            elif is_turn(node, TO_FIRST):
                self._note_turn(node)
            elif is_turn(node, TO_LAST):
                self._save_turn(node)
        for part in reversed(list(self._parts.values())):
            self._graph.remove(part, safe=True)
        for value in list(self._graph.initializers.values()):
            if not value.uses() and not value.is_graph_output():
                self._graph.initializers.pop(value.name or "")
        for value, name in self._made:
            if value.name != name and name not in self._graph.initializers:
                value.name = name
                if value.const_value is not None:
                    value.const_value.name = name

    def _constant(self, name: str, array: Array) -> ir.Value:
        value = add_constant(self._graph, name, array)
        self._made.append((value, name))
        return value

    def _put_layer(self, at: ir.Node, layer: Layer, format: str) -> None:
        if layer.kind == MIXER:
            self._put_mixer(at, format)
            return
        turn = self._last_of if layer.image else _same
        inputs: list[ir.Value | None] = [turn(layer.source), *self._weights(layer, format)]
        residual = None if layer.residual is None else turn(layer.residual)
        bias = None
        if layer.bias is not None:
            name = f"{layer.weight_name.removesuffix('.weight')}.bias"
            bias = self._constant(name, layer.bias)
        inputs += [bias, residual]
        while inputs[-1] is None:
            inputs.pop()
        attributes: dict[str, Any] = {"activation": layer.activation, **layer.attributes}
        op = layer.kind
        if layer.kind != DEPTHWISE and format == "int8":
            op = "Int8Linear"
        elif layer.kind != DEPTHWISE:
            attributes["precision"] = format
        node = ir.node(
            op,
            inputs,
            attributes,
            domain=DOMAIN,
            metadata_props=dict(layer.nodes[0].metadata_props),
        )
        self._graph.insert_before(at, node)
        self._replace(at, node, layer.image)

    def _weights(self, layer: Layer, format: str) -> list[ir.Value]:
        name, weight = layer.weight_name, np.ascontiguousarray(layer.weight)
        if layer.kind == DEPTHWISE or format != "int8":
            return [self._constant(name, weight)]
        integers, scale = round_weight(weight)
        stem = name.removesuffix(".weight")
        return [
            self._constant(name, integers),
            self._constant(f"{stem}.scale", scale),
        ]

    def _put_mixer(self, node: ir.Node, format: str) -> None:
        precision, _, last = format.partition(" ")
        node.attributes["precision"] = ir.AttrString("precision", precision)
        if not last:
            return
        node.attributes["layout"] = ir.AttrString("layout", "nhwc")
        source = node.inputs[0]
        assert source is not None
        copy = ir.node(
            node.op_type, [self._last_of(source), *node.inputs[1:]],
            dict(node.attributes), domain=DOMAIN, metadata_props=dict(node.metadata_props),
        )  # fmt: skip
        self._graph.insert_before(node, copy)
        self._replace(node, copy, True)

    def _put_turned(self, node: ir.Node) -> None:
        """Let a node that does not care about the order of the axes work channels last."""
        inputs = [
            None if value is None else self._operand(node, index, value)
            for index, value in enumerate(node.inputs)
        ]
        attributes: dict[str, Any] = dict(node.attributes)
        op = node.op_type
        if op in ("Concat", "Split"):
            attributes["axis"] = ir.AttrInt64("axis", 3)
        if op == "GlobalAveragePool":
            op, inputs = "Reshape", self._pooled(node, inputs[0])
        copy = ir.node(
            op, inputs, attributes, num_outputs=len(node.outputs),
            metadata_props=dict(node.metadata_props),
        )  # fmt: skip
        self._graph.insert_before(node, copy)
        self._replace(node, copy, True)

    def _pooled(self, node: ir.Node, image: ir.Value | None) -> list[ir.Value | None]:
        """Return what to reshape into the mean of (B, H, W, C): ReduceMean is slow over H and W."""
        source = node.inputs[0]
        assert source is not None and source.shape is not None
        channels, height, width = (int(str(size)) for size in source.shape[1:])
        rows = self._constant("rows", np.array([0, -1, channels], np.int64))
        share = np.full((1, height * width), 1 / (height * width), np.float32)
        tokens = insert_before(node, "Reshape", [image, rows])
        mean = insert_before(node, "MatMul", [self._constant("share", share), tokens])
        return [mean, self._constant("pooled", np.array([0, 1, 1, channels], np.int64))]

    def _operand(self, node: ir.Node, index: int, value: ir.Value) -> ir.Value:
        array = constant(value)
        if array is None:
            return self._last_of(value)
        if (node.op_type in UNARY and index > 0) or node.op_type == "Split" or array.size == 1:
            return value
        turned = array.reshape((1,) * (4 - array.ndim) + array.shape).transpose(TO_LAST)
        return self._constant(value.name or "constant", turned)

    def _replace(self, old: ir.Node, new: ir.Node, turned: bool) -> None:
        """Let readers of the old outputs find the new ones; a plain reader gets a transpose."""
        after = new
        for before, value in zip(old.outputs, new.outputs, strict=True):
            value.type = before.type
            shape = before.shape
            if turned:
                assert shape is not None
                value.shape = ir.Shape([shape[axis] for axis in TO_LAST])
                back = ir.node("Transpose", [value], {"perm": TO_FIRST})
                self._graph.insert_after(after, back)
                after = back
                result = back.outputs[0]
                result.type = before.type
                self._turned[id(result)] = value
                self._keep.append(result)
            else:
                result = value
            result.shape = shape
            if before.is_graph_output():
                outputs = self._graph.outputs
                outputs[list(outputs).index(before)] = result
                result.name = before.name
            ir.convenience.replace_all_uses_with(before, result)
        if id(old) not in self._parts:
            self._parts[id(old)] = old

    def _note_turn(self, node: ir.Node) -> None:
        """Whoever wants the output of the graph's own transpose channels last takes its input."""
        if node.inputs[0] is not None:
            self._turned[id(node.outputs[0])] = node.inputs[0]
            self._keep.append(node.outputs[0])

    def _save_turn(self, node: ir.Node) -> None:
        """The graph's own transpose of what is there channels last is not needed."""
        twin = None if node.inputs[0] is None else self._turned.get(id(node.inputs[0]))
        if twin is not None and not node.outputs[0].is_graph_output():
            ir.convenience.replace_all_uses_with(node.outputs[0], twin)

    def _last_of(self, value: ir.Value) -> ir.Value:
        found = self._turned.get(id(value))
        if found is not None:
            return found
        node = ir.node("Transpose", [value], {"perm": TO_LAST})
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(producer, node)
        made = node.outputs[0]
        made.type = value.type
        assert value.shape is not None
        made.shape = ir.Shape([value.shape[axis] for axis in TO_LAST])
        self._turned[id(value)] = made
        self._keep.append(value)
        return made


def _same(value: ir.Value) -> ir.Value:
    return value


def round_weight(weight: Array) -> tuple[Array, Array]:
    """Return (N, K) int8 and (N,) float32: the weight rounded per output channel, and the step."""
    scale = (np.abs(weight).max(axis=1, initial=0) / 127).astype(np.float32)
    divisor = np.where(scale > 0, scale, 1).astype(np.float64)[:, None]
    integers = np.clip(np.rint(weight / divisor), -127, 127)
    return integers.astype(np.int8), scale
