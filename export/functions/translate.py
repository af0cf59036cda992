"""From torch operators to calls of our functions, for the exporter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript.values import Op, Opset

import vitlet.ops.torch_ops  # noqa: F401  (registers the operators)
from vitlet.export.functions import OPERATORS
from vitlet.export.functions.operator import DOMAIN, VERSION


def _call(name: str, *inputs: Any, **attributes: Any) -> Any:
    return Op(Opset(DOMAIN, VERSION), name, OPERATORS[name].schema())(*inputs, **attributes)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the entries for the exporter's table: torch operator -> call of the ONNX function."""

    def mixer(
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

    return {torch.ops.vitlet.additive_token_mixer.default: mixer}
