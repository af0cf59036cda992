"""From torch operators to calls of our functions, for the exporter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript.values import Op, Opset

import vitlet.ops.torch_ops  # noqa: F401  (registers the operators)
from vitlet.export.functions import OPERATORS
from vitlet.export.functions.operator import DOMAIN, VERSION, Operator
from vitlet.export.functions.pack_weights import FLOAT_INT8, FLOAT_SHIFT


def _float(name: str, attributes: dict[str, str]) -> Operator:
    return Operator(name, ("x", "weight"), ("bias",), attributes, lambda _: (), lambda _, __: "")


# As torch has them, with float weights: `pack_weights` replaces them.
_FLOAT = {
    FLOAT_SHIFT: _float(FLOAT_SHIFT, {"activation": "string", "wide": "int"}),
    FLOAT_INT8: _float(FLOAT_INT8, {"activation": "string"}),
}


def _call(name: str, *inputs: Any, **attributes: Any) -> Any:
    schema = {**OPERATORS, **_FLOAT}[name].schema()
    return Op(Opset(DOMAIN, VERSION), name, schema)(*inputs, **attributes)


def _mixer(
    x: Any, qkv_weight: Any, qkv_bias: Any,
    q_conv_weight: Any, q_conv_bias: Any, q_point_weight: Any, q_pool_weight: Any,
    k_conv_weight: Any, k_conv_bias: Any, k_point_weight: Any, k_pool_weight: Any,
    dwc_weight: Any, dwc_bias: Any, proj_weight: Any, proj_bias: Any,
    precision: str = "fp32",
) -> Any:  # fmt: skip
    return _call(
        "AdditiveTokenMixer",
        x, qkv_weight, qkv_bias,
        q_conv_weight, q_conv_bias, q_point_weight, q_pool_weight,
        k_conv_weight, k_conv_bias, k_point_weight, k_pool_weight,
        dwc_weight, dwc_bias, proj_weight, proj_bias,
        channels=int(proj_bias.shape[0]), precision=precision, layout="nchw",
    )  # fmt: skip


def _shift_linear(
    x: Any, weight: Any, bias: Any = None, wide: bool = False, activation: str = "none"
) -> Any:
    return _call(FLOAT_SHIFT, x, weight, bias, activation=activation, wide=int(wide))


def _int8_linear(x: Any, weight: Any, bias: Any = None, activation: str = "none") -> Any:
    return _call(FLOAT_INT8, x, weight, bias, activation=activation)


def _attention(
    q: Any, k: Any, v: Any,
    q_threshold: Any = None, k_threshold: Any = None, taps: Any = None,
    signed: bool = False, exact: bool = False,
) -> Any:  # fmt: skip
    return _call(
        "BinaryLinearAttention", q, k, v, q_threshold, k_threshold, taps,
        exact=int(exact), heads=int(q.shape[1]), signed=int(signed),
    )  # fmt: skip


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the entries for the exporter's table: torch operator -> call of the ONNX function."""
    ours = torch.ops.vitlet
    return {
        ours.additive_token_mixer.default: _mixer,
        ours.binary_linear_attention.default: _attention,
        ours.int8_linear.default: _int8_linear,
        ours.shift_linear.default: _shift_linear,
    }
