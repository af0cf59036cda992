"""Our operators in ONNX: functions of the domain `ai.vitlet`, in standard operators.

A file that calls one carries its body, so any runtime can run it. Where `libvitlet_ort` is
registered, ONNX Runtime takes the kernel of the same name instead.
"""

from __future__ import annotations

import onnx_ir as ir

from vitlet.export.functions.additive_token_mixer import MIXER
from vitlet.export.functions.binary_linear_attention import BINARY_LINEAR_ATTENTION
from vitlet.export.functions.depthwise_conv2d import DEPTHWISE_CONV2D
from vitlet.export.functions.linear import INT8_LINEAR, LINEAR, SHIFT_LINEAR
from vitlet.export.functions.operator import DOMAIN, VERSION, Operator

__all__ = ["DOMAIN", "OPERATORS", "VERSION", "Operator", "attach"]

OPERATORS = {
    operator.name: operator
    for operator in (
        MIXER,
        BINARY_LINEAR_ATTENTION,
        DEPTHWISE_CONV2D,
        INT8_LINEAR,
        LINEAR,
        SHIFT_LINEAR,
    )
}


def attach(model: ir.Model) -> tuple[str, ...]:
    """Add the body of every operator of ours that the graph calls; return their names, sorted."""
    opset = model.graph.opset_imports[""]
    calls: dict[tuple[str, str], Operator] = {}
    for node in model.graph:
        if node.domain == DOMAIN:
            operator = OPERATORS[node.op_type]
            node.overload = operator.variant(node)
            calls[node.op_type, node.overload] = operator
    model.functions.clear()
    for (_, variant), operator in sorted(calls.items(), key=lambda call: call[0]):
        body = ir.serde.deserialize_function(operator.function(variant, opset))
        model.functions[body.identifier()] = body
    if calls:
        model.graph.opset_imports[DOMAIN] = VERSION
    else:
        model.graph.opset_imports.pop(DOMAIN, None)
    return tuple(sorted({name for name, _ in calls}))
