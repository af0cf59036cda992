"""Finds the layers of an ONNX graph that vitlet's kernels can compute, with what follows them.

A layer is a 1x1 or depthwise convolution, or a product with a constant matrix; then its bias, GELU
or ReLU, and one addition of a value of the same shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from vitlet.export.functions.operator import DOMAIN
from vitlet.export.onnx_graph import Array, constant, sole_consumer

LINEAR, DEPTHWISE, MIXER = "Linear", "DepthwiseConv2d", "AdditiveTokenMixer"
_ROOT_HALF = 0.5**0.5


@dataclass(eq=False)
class Layer:
    """One call of a kernel, and the nodes that it would replace.

    Attributes:
        kind: "Linear", "DepthwiseConv2d" or "AdditiveTokenMixer".
        nodes: in the order of the graph; the last one gives the output.
        image: whether the layer is a convolution, so that the order of the axes matters.
        shape: what the time depends on, in words.
        weight: (N, K), or (N, 1, kh, kw) of a depthwise convolution.
        weight_name: of the initializer it came from.
        bias: (N,), or None.
        activation: "none", "gelu" or "relu".
        adds: whether the last node adds a residual.
        attributes: what a depthwise convolution needs besides.
    """

    kind: str
    nodes: list[ir.Node]
    image: bool
    shape: str
    weight: Array
    weight_name: str
    bias: Array | None = None
    activation: str = "none"
    adds: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> ir.Value:
        """The input, (B, C, H, W) if `image`."""
        value = self.nodes[0].inputs[0]
        assert value is not None
        return value

    @property
    def residual(self) -> ir.Value | None:
        """What is added at the end."""
        if not self.adds:
            return None
        before = self.nodes[-2].outputs[0]
        first, second = self.nodes[-1].inputs
        return second if first is before else first

    @property
    def output(self) -> ir.Value:
        """What the layer computes."""
        return self.nodes[-1].outputs[0]

    @property
    def key(self) -> str:
        """What layers of equal time have in common, such as "Linear 196x64x256 bias gelu"."""
        parts = [f"{self.kind} {self.shape}"]
        parts += ["bias"] if self.bias is not None else []
        parts += [self.activation] if self.activation != "none" else []
        parts += ["residual"] if self.adds else []
        return " ".join(parts)


def find_layers(graph: ir.Graph) -> list[Layer]:
    """Return every layer, in the order of the graph; no node is part of two."""
    found: list[Layer] = []
    taken: set[int] = set()
    for node in graph:
        layer = None if id(node) in taken else _begin(node)
        if layer is not None:
            if layer.kind != MIXER:
                _extend(layer, taken)
            taken.update(id(part) for part in layer.nodes)
            found.append(layer)
    return found


def _begin(node: ir.Node) -> Layer | None:
    if node.domain == DOMAIN and node.op_type == MIXER:
        return _mixer(node)
    if node.domain != "" or node.op_type not in ("Conv", "MatMul", "Gemm"):
        return None
    source, weight = node.inputs[0], constant(node.inputs[1])
    if source is None or source.shape is None or weight is None or weight.dtype != np.float32:
        return None
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if len(node.inputs) > 2 and node.inputs[2] is not None and bias is None:
        return None
    if node.op_type == "Conv":
        return _convolution(node, source, weight, bias)
    return _product(node, source, weight, bias)


def _sizes(value: ir.Value, axes: range) -> list[int] | None:
    """Return sizes that are known; a free batch counts as 1."""
    if value.shape is None:
        return None
    sizes = [value.shape[axis] for axis in axes]
    if axes and axes[0] == 0 and not isinstance(sizes[0], int):
        sizes[0] = 1
    known = [size for size in sizes if isinstance(size, int)]
    return known if len(known) == len(sizes) else None


def _mixer(node: ir.Node) -> Layer | None:
    source, weight = node.inputs[0], constant(node.inputs[1])
    assert source is not None and weight is not None
    sizes = _sizes(source, range(4))
    if sizes is None:
        return None
    _, channels, height, width = sizes
    shape = f"{height}x{width}x{channels}"
    return Layer(MIXER, [node], True, shape, weight, "")


def _convolution(
    node: ir.Node, source: ir.Value, weight: Array, bias: Array | None
) -> Layer | None:
    sizes = _sizes(source, range(4)) if weight.ndim == 4 else None
    read = node.attributes
    strides, pads = list(read.get_ints("strides", [1, 1])), list(read.get_ints("pads", [0] * 4))
    if (
        sizes is None
        or any(size != 1 for size in read.get_ints("dilations", [1, 1]))
        or read.get_string("auto_pad", "NOTSET") != "NOTSET"
    ):
        return None
    batch, channels, height, width = sizes
    name = (node.inputs[1].name if node.inputs[1] is not None else None) or "weight"
    group = read.get_int("group", 1)
    if weight.shape[2:] == (1, 1) and group == 1 and strides == [1, 1] and not any(pads):
        shape = f"{batch * height * width}x{channels}x{len(weight)}"
        return Layer(LINEAR, [node], True, shape, weight.reshape(len(weight), -1), name, bias)
    if group != channels or channels == 1 or weight.shape[1] != 1 or strides[0] != strides[1]:
        return None
    shape = (
        f"{batch}x{height}x{width}x{channels}x{len(weight)} "
        f"{weight.shape[2]}x{weight.shape[3]} stride {strides[0]} pads {','.join(map(str, pads))}"
    )
    attributes = {"channels": channels, "pads": pads, "strides": strides}
    return Layer(DEPTHWISE, [node], True, shape, weight, name, bias, attributes=attributes)


def _product(node: ir.Node, source: ir.Value, weight: Array, bias: Array | None) -> Layer | None:
    read = node.attributes
    if read.get_float("alpha", 1.0) != 1.0 or read.get_float("beta", 1.0) != 1.0:
        return None
    if weight.ndim != 2 or read.get_int("transA", 0) != 0:
        return None
    if not read.get_int("transB", 0):
        weight = weight.T
    if bias is not None and bias.shape != (len(weight),):
        return None
    assert source.shape is not None
    sizes = _sizes(source, range(len(source.shape)))
    if sizes is None or len(sizes) < 2:
        return None
    rows = int(np.prod(sizes[:-1]))
    name = (node.inputs[1].name if node.inputs[1] is not None else None) or "weight"
    shape = f"{rows}x{weight.shape[1]}x{weight.shape[0]}"
    return Layer(LINEAR, [node], False, shape, weight, name, bias)


def _extend(layer: Layer, taken: set[int]) -> None:
    """Take in what follows, as far as a kernel can do it too."""
    if layer.bias is None and not layer.image:
        add = sole_consumer(layer.output, "Add")
        for operand in () if add is None else add.inputs:
            array = constant(operand)
            if add is not None and array is not None and array.shape == (len(layer.weight),):
                layer.bias = array
                layer.nodes.append(add)
    for activation, nodes in (("gelu", gelu_after(layer.output)), ("relu", _relu(layer.output))):
        if nodes and not any(id(node) in taken for node in nodes):
            layer.activation = activation
            layer.nodes += nodes
            break
    add = sole_consumer(layer.output, "Add")
    if add is None or id(add) in taken:
        return
    others = [value for value in add.inputs if value is not layer.output]
    other = others[0] if len(others) == 1 else None
    if other is None or constant(other) is not None or other.shape is None:
        return
    if str(other.shape) == str(layer.output.shape):
        layer.adds = True
        layer.nodes.append(add)


def _relu(value: ir.Value) -> list[ir.Node]:
    node = sole_consumer(value, "Relu")
    return [] if node is None else [node]


def gelu_after(value: ir.Value) -> list[ir.Node]:
    """Return the nodes of a GELU (the one with erf) that alone read a value; else nothing.

    Below opset 20 it is spelled out: ``(x / sqrt(2), erf, + 1)`` times ``x``, times a half.
    """
    node = sole_consumer(value, "Gelu")
    if node is not None:
        return [node] if node.attributes.get_string("approximate", "none") == "none" else []
    if value.is_graph_output():
        return []
    for use in value.uses():
        erf = sole_consumer(use.node.outputs[0], "Erf")
        if erf is None or not _scales_by(use.node, _ROOT_HALF):
            continue
        plus = sole_consumer(erf.outputs[0], "Add")
        if plus is None or not any(_is(operand, 1.0) for operand in plus.inputs):
            continue
        chain = _halved_product(value, plus.outputs[0])
        inside = [use.node, erf, plus, *chain]
        readers = {id(one.node) for one in value.uses()}
        if chain and readers <= {id(one) for one in inside}:
            return inside
    return []


def _halved_product(value: ir.Value, factor: ir.Value) -> list[ir.Node]:
    """Return the nodes of ``0.5 * value * factor``, in one of the orders it is written in."""
    mul = sole_consumer(factor, "Mul")
    if mul is None:
        return []
    (other,) = [operand for operand in mul.inputs if operand is not factor]
    if other is value:  # (value * factor) * 0.5
        half = sole_consumer(mul.outputs[0], "Mul")
        return [mul, half] if half is not None and _scales_by(half, 0.5) else []
    before = None if other is None else other.producer()
    if before is not None and value in before.inputs and _scales_by(before, 0.5):
        return [before, mul]  # (value * 0.5) * factor
    if _is(other, 0.5):  # value * (factor * 0.5)
        last = sole_consumer(mul.outputs[0], "Mul")
        return [mul, last] if last is not None and value in last.inputs else []
    return []


def _scales_by(node: ir.Node, factor: float) -> bool:
    if node.op_type == "Mul":
        return any(_is(operand, factor) for operand in node.inputs)
    return node.op_type == "Div" and _is(node.inputs[1], 1 / factor)


def _is(value: ir.Value | None, number: float) -> bool:
    array = constant(value)
    return array is not None and array.size == 1 and abs(array.item() - number) < 1e-6
