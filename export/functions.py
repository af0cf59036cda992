"""Our operators in ONNX: functions of the domain `ai.vitlet`, in standard operators.

A file that calls one carries its body, so any runtime can run it. Where `libvitlet_ort` is
registered, ONNX Runtime takes the kernel of the same name instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnxscript.values import Op, Opset

import vitlet.ops.torch_ops  # noqa: F401  (registers the operators)

DOMAIN = "ai.vitlet"
VERSION = 1

# The body of each function. SPLIT3 is spelled as the opset wants it.
_BODIES = {
    "AdditiveTokenMixer": """
        <domain: "ai.vitlet", opset_import: ["" : OPSET]>
        AdditiveTokenMixer <channels, precision>
            (x, qkv_weight, qkv_bias,
             q_conv_weight, q_conv_bias, q_point_weight, q_pool_weight,
             k_conv_weight, k_conv_bias, k_point_weight, k_pool_weight,
             dwc_weight, dwc_bias, proj_weight, proj_bias) => (y) {
          qkv = Conv (x, qkv_weight, qkv_bias)
          q, k, v = SPLIT3 (qkv)

          q_conv = Conv <pads = [1, 1, 1, 1], group: int = @channels>
              (q, q_conv_weight, q_conv_bias)
          q_relu = Relu (q_conv)
          q_point = Conv (q_relu, q_point_weight)
          q_gate = Sigmoid (q_point)
          q_gated = Mul (q, q_gate)
          q_mean = GlobalAveragePool (q_gated)
          q_pool = Conv (q_mean, q_pool_weight)
          q_weights = Sigmoid (q_pool)
          q_out = Mul (q_gated, q_weights)

          k_conv = Conv <pads = [1, 1, 1, 1], group: int = @channels>
              (k, k_conv_weight, k_conv_bias)
          k_relu = Relu (k_conv)
          k_point = Conv (k_relu, k_point_weight)
          k_gate = Sigmoid (k_point)
          k_gated = Mul (k, k_gate)
          k_mean = GlobalAveragePool (k_gated)
          k_pool = Conv (k_mean, k_pool_weight)
          k_weights = Sigmoid (k_pool)
          k_out = Mul (k_gated, k_weights)

          sum = Add (q_out, k_out)
          context = Conv <pads = [1, 1, 1, 1], group: int = @channels> (sum, dwc_weight, dwc_bias)
          mixed = Mul (context, v)
          y = Conv <pads = [1, 1, 1, 1], group: int = @channels> (mixed, proj_weight, proj_bias)
        }
    """,
}


def _schema(name: str) -> onnx.defs.OpSchema:
    body = function(name, 18)
    kinds = onnx.defs.OpSchema
    return kinds(
        body.name,
        DOMAIN,
        VERSION,
        inputs=[kinds.FormalParameter(entry, "tensor(float)") for entry in body.input],
        outputs=[kinds.FormalParameter(entry, "tensor(float)") for entry in body.output],
        attributes=[
            kinds.Attribute("channels", kinds.AttrType.INT),
            kinds.Attribute("precision", kinds.AttrType.STRING),
        ],
    )


def _mixer_call(*inputs: Any, precision: str = "fp32") -> Any:
    call = Op(Opset(DOMAIN, VERSION), "AdditiveTokenMixer", _schema("AdditiveTokenMixer"))
    return call(*inputs, channels=int(inputs[-1].shape[0]), precision=precision)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the entries for the exporter's table: torch operator -> call of the ONNX function."""

    def mixer(
        x: Any, qkv_weight: Any, qkv_bias: Any,
        q_conv_weight: Any, q_conv_bias: Any, q_point_weight: Any, q_pool_weight: Any,
        k_conv_weight: Any, k_conv_bias: Any, k_point_weight: Any, k_pool_weight: Any,
        dwc_weight: Any, dwc_bias: Any, proj_weight: Any, proj_bias: Any,
        precision: str = "fp32",
    ) -> Any:  # fmt: skip
        return _mixer_call(
            x, qkv_weight, qkv_bias,
            q_conv_weight, q_conv_bias, q_point_weight, q_pool_weight,
            k_conv_weight, k_conv_bias, k_point_weight, k_pool_weight,
            dwc_weight, dwc_bias, proj_weight, proj_bias,
            precision=precision,
        )  # fmt: skip

    return {torch.ops.vitlet.additive_token_mixer.default: mixer}


def function(name: str, opset: int) -> onnx.FunctionProto:
    """Return an operator's body in standard operators.

    Args:
        name: the operator, such as "AdditiveTokenMixer".
        opset: of the graph that calls it, from 17.
    """
    text = _BODIES[name].replace("OPSET", str(opset))
    split = "Split <axis = 1>" if opset < 18 else "Split <axis = 1, num_outputs = 3>"
    return onnx.parser.parse_function(text.replace("SPLIT3", split))


def attach(model: ir.Model) -> tuple[str, ...]:
    """Add the body of every operator of ours that the graph calls; return their names, sorted."""
    names = sorted({node.op_type for node in model.graph if node.domain == DOMAIN})
    opset = model.graph.opset_imports[""]
    for name in names:
        body = ir.serde.deserialize_function(function(name, opset))
        model.functions[body.identifier()] = body
    if names:
        model.graph.opset_imports[DOMAIN] = VERSION
    else:
        model.graph.opset_imports.pop(DOMAIN, None)
    return tuple(names)
