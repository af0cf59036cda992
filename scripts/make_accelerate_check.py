"""Write python/vitlet/runtime/accelerate_check.onnx: the model that our kernels are tried out on.

It calls each operator of vitlet and holds its definition; a test compares it with the one in git.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vitlet.export.functions import DOMAIN, OPERATORS, VERSION

PLACE = Path(__file__).parents[1] / "python" / "vitlet" / "runtime" / "accelerate_check.onnx"
CHANNELS, HEIGHT, WIDTH = 20, 9, 7
OPSET, IR_VERSION = 17, 10  # functions have overloads from 10 on
C = CHANNELS
Arrays = dict[str, NDArray[Any]]


def _layers() -> list[tuple[str, str, list[str], str, dict[str, Any]]]:
    """Return (output, operator, inputs, variant, attributes) of every call."""
    mixer = ["x", *(f"mixer_{name}" for name in OPERATORS["AdditiveTokenMixer"].inputs[1:])]
    calls: list[tuple[str, str, list[str], str, dict[str, Any]]] = [
        (precision, "AdditiveTokenMixer", mixer, variant,
         {"channels": C, "precision": precision, "layout": "nchw"})
        for precision, variant in (("fp32", ""), ("bf16", ""), ("int8", "int8"), ("shift", "shift"))
    ]  # fmt: skip
    both = "bias_and_residual_and_gelu"
    linear = ["last", "linear_weight", "linear_bias", "last"]
    calls += [
        (f"linear_{precision}", "Linear", linear, both,
         {"activation": "gelu", "precision": precision})
        for precision in ("fp32", "bf16")
    ]  # fmt: skip
    integers = ["last", "int8_weight", "linear_scale", "linear_bias", "last"]
    calls.append(("int8_linear", "Int8Linear", integers, both, {"activation": "gelu"}))
    codes = ["last", "shift_codes", "linear_scale", "linear_bias"]
    shift = {"activation": "none", "in_features": C, "wide": 0}
    calls.append(("shift_linear", "ShiftLinear", codes, "bias", shift))
    calls.append(
        ("depthwise", "DepthwiseConv2d", ["last", "taps", "linear_bias"], "bias_and_relu",
         {"activation": "relu", "channels": C, "pads": [1] * 4, "strides": [2, 2]})
    )  # fmt: skip
    calls.append(
        ("attention", "BinaryLinearAttention", ["x", "x", "x", "", "", "token_taps"], "taps",
         {"exact": 0, "heads": C, "signed": 0})
    )  # fmt: skip
    return calls


def _weights(random: np.random.Generator) -> Arrays:
    gate = [(C, 1, 3, 3), (C,), (1, C, 1, 1), (C, C, 1, 1)]
    shapes = [(3 * C, C, 1, 1), (3 * C,), *gate, *gate, *[(C, 1, 3, 3), (C,)] * 2]
    names = OPERATORS["AdditiveTokenMixer"].inputs[1:]

    def normal(*shape: int) -> NDArray[Any]:
        return random.normal(0, 0.4, shape).astype(np.float32)

    mixer = {f"mixer_{n}": normal(*shape) for n, shape in zip(names, shapes, strict=True)}
    return {
        **mixer,
        "linear_weight": normal(C, C),
        "linear_bias": normal(C),
        "linear_scale": np.abs(normal(C)) / 100,
        "int8_weight": random.integers(-127, 128, (C, C)).astype(np.int8),
        "shift_codes": random.integers(0, 256, (C, C // 2)).astype(np.uint8),
        "taps": normal(C, 1, 3, 3),
        "token_taps": normal(C, 9),
    }


def make() -> onnx.ModelProto:
    """Return a model with a call of every operator over one input, each an output."""
    random = np.random.default_rng(0)
    calls, weights = _layers(), _weights(random)
    nodes = [helper.make_node("Transpose", ["x"], ["last"], perm=[0, 2, 3, 1])]
    functions = {}
    for output, op, inputs, variant, attributes in calls:
        node = helper.make_node(op, inputs, [output], domain=DOMAIN, **attributes)
        node.overload = variant
        nodes.append(node)
        functions[op, variant] = OPERATORS[op].function(variant, OPSET)
    shape = [2, C, HEIGHT, WIDTH]
    half = [2, (HEIGHT + 1) // 2, (WIDTH + 1) // 2, C]
    first = {"fp32", "bf16", "int8", "shift", "attention"}
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    for output, *_ in calls:
        sizes = shape if output in first else half if output == "depthwise" else [2, *shape[2:], C]
        values.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, sizes))
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "accelerate_check", values[:1], values[1:], constants)
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(
        graph, opset_imports=imports, functions=list(functions.values()), ir_version=IR_VERSION
    )
    onnx.checker.check_model(model, full_check=True)
    return model


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else PLACE
    out.write_bytes(make().SerializeToString(deterministic=True))
