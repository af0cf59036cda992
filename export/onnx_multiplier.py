"""Depthwise convolutions with several outputs per channel, as plain depthwise convolutions.

MobileCLIP's reductions are depthwise with two outputs per input channel. Runtimes have fast kernels
for exactly one (ONNX Runtime leaves its blocked layout and computes group by group otherwise:
measured 1.2 to 1.8 times slower on the layers of MobileCLIP-S0, one core, AVX-512). Output j of
every channel together is one plain depthwise convolution; side by side they give the same channels
in another order, and the weights of the layers that follow can take that order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from vitlet.export.onnx_graph import Array, add_constant, bypass, constant, insert_before

_POINTWISE = ("Gelu", "Relu", "Sigmoid", "Erf", "Tanh", "HardSigmoid", "HardSwish", "Identity")
_MOST = 4


@dataclass
class _Reordering:
    """What must change so that nobody notices the new order of channels."""

    order: Array
    seen: dict[int, ir.Value] = field(default_factory=dict)
    edits: list[Callable[[], None]] = field(default_factory=list)
    binary: dict[int, ir.Node] = field(default_factory=dict)

    def follow(self, value: ir.Value) -> bool:
        """Carry the order forward to everything that reads `value`; False if something cannot."""
        if id(value) in self.seen:
            return True
        if value.is_graph_output():
            return False
        self.seen[id(value)] = value
        return all(self._reader(use.node, use.idx) for use in value.uses())

    def settle(self) -> bool:
        """Give the other operand of each product or sum the new order too."""
        for node in self.binary.values():
            for operand in node.inputs:
                if operand is None or id(operand) in self.seen:
                    continue
                if not self._produce(operand):
                    return False
        return True

    def _reader(self, node: ir.Node, index: int) -> bool:
        output = node.outputs[0]
        if node.domain != "" or len(node.outputs) != 1:
            return False
        if node.op_type in (*_POINTWISE, "GlobalAveragePool") or _drops_ones(node):
            return index == 0 and self.follow(output)
        if node.op_type in ("Mul", "Add"):
            self.binary[id(node)] = node
            return self.follow(output)
        if node.op_type == "Conv":
            return index == 0 and self._conv(node)
        if node.op_type in ("MatMul", "Gemm"):
            return index == 0 and self._matrix(node)
        return False

    def _conv(self, conv: ir.Node) -> bool:
        weight = _own(conv.inputs[1])
        if weight is None:
            return False
        channels, groups = len(self.order), conv.attributes.get_int("group", 1)
        if groups == 1:
            self._edit(conv, 1, weight[:, self.order])
            return True
        if groups == channels == weight.shape[0]:
            return self._outputs(conv, weight) and self.follow(conv.outputs[0])
        return False

    def _outputs(self, conv: ir.Node, weight: Array) -> bool:
        has_bias = len(conv.inputs) > 2 and conv.inputs[2] is not None
        bias = _own(conv.inputs[2]) if has_bias else None
        if has_bias and bias is None:
            return False
        self._edit(conv, 1, weight[self.order])
        if bias is not None:
            self._edit(conv, 2, bias[self.order])
        return True

    def _matrix(self, node: ir.Node) -> bool:
        weight, source = _own(node.inputs[1]), node.inputs[0]
        if weight is None or weight.ndim != 2 or source is None or source.shape is None:
            return False
        if len(source.shape) != 2 or node.attributes.get_int("transA", 0) == 1:
            return False
        columns = node.attributes.get_int("transB", 0) == 1
        self._edit(node, 1, weight[:, self.order] if columns else weight[self.order])
        return True

    def _produce(self, value: ir.Value) -> bool:
        """Have a value that is not reordered come out in the new order: a gate, usually."""
        node = value.producer()
        if node is None:
            array = constant(value)
            return array is not None and array.size == 1
        if value.is_graph_output() or len(value.uses()) != 1:
            return False
        if node.op_type in _POINTWISE and node.inputs[0] is not None:
            return self._produce(node.inputs[0])
        weight = _own(node.inputs[1]) if node.op_type == "Conv" else None
        if weight is None or node.attributes.get_int("group", 1) != 1:
            return False
        return len(weight) == len(self.order) and self._outputs(node, weight)

    def _edit(self, node: ir.Node, index: int, array: Array) -> None:
        old = node.inputs[index]
        assert old is not None and node.graph is not None
        graph, name = node.graph, old.name or "weight"
        self.edits.append(lambda: node.replace_input_with(index, add_constant(graph, name, array)))


def _own(value: ir.Value | None) -> Array | None:
    return constant(value) if value is not None and len(value.uses()) == 1 else None


def _drops_ones(node: ir.Node) -> bool:
    """Whether a node turns (B, C, 1, 1) into (B, C)."""
    if node.op_type not in ("Reshape", "Flatten", "Squeeze") or node.inputs[0] is None:
        return False
    before, after = node.inputs[0].shape, node.outputs[0].shape
    if before is None or after is None or len(before) != 4 or len(after) != 2:
        return False
    return tuple(before[2:]) == (1, 1) and before[1] == after[1]


def split_multiplier(conv: ir.Node) -> bool:
    """Turn one depthwise convolution with m outputs per channel into m with one."""
    if conv.op_type != "Conv" or conv.graph is None:
        return False
    groups, output = conv.attributes.get_int("group", 1), conv.outputs[0]
    weight = _own(conv.inputs[1])
    has_bias = len(conv.inputs) > 2 and conv.inputs[2] is not None
    bias = constant(conv.inputs[2]) if has_bias else None
    if groups == 1 or weight is None or weight.shape[1] != 1 or (has_bias and bias is None):
        return False
    times, rest = divmod(weight.shape[0], groups)
    if rest or not 2 <= times <= _MOST or output.shape is None:
        return False
    reordering = _Reordering(np.arange(weight.shape[0]).reshape(groups, times).T.reshape(-1))
    if not reordering.follow(output) or not reordering.settle():
        return False
    for edit in reordering.edits:
        edit()
    stem = ((conv.inputs[1].name if conv.inputs[1] else None) or "conv").removesuffix(".weight")
    parts = []
    for part in range(times):
        inputs = [conv.inputs[0]]
        inputs.append(add_constant(conv.graph, f"{stem}.{part}.weight", weight[part::times]))
        if bias is not None:
            inputs.append(add_constant(conv.graph, f"{stem}.{part}.bias", bias[part::times]))
        value = insert_before(conv, "Conv", inputs, dict(conv.attributes))
        value.shape = ir.Shape([output.shape[0], groups, *output.shape[2:]])
        parts.append(value)
    whole = insert_before(conv, "Concat", parts, {"axis": 1})
    whole.shape = output.shape
    bypass(conv, whole)
    return True
