"""Write python/vitlet/runtime/accelerate_check.onnx: the model that our kernels are tried out on.

It calls each operator of vitlet and holds its definition; a test compares it with the one in git.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vitlet.export.functions import DOMAIN, VERSION, function

PLACE = Path(__file__).parents[1] / "python" / "vitlet" / "runtime" / "accelerate_check.onnx"
CHANNELS, HEIGHT, WIDTH = 20, 9, 7
OPSET, IR_VERSION = 17, 8  # what any ONNX Runtime that we support reads


def make() -> onnx.ModelProto:
    """Return a model with one mixer per precision over the same weights."""
    random = np.random.default_rng(0)
    c = CHANNELS
    gate = [(c, 1, 3, 3), (c,), (1, c, 1, 1), (c, c, 1, 1)]
    shapes = [(3 * c, c, 1, 1), (3 * c,), *gate, *gate, *[(c, 1, 3, 3), (c,)] * 2]
    mixer = function("AdditiveTokenMixer", OPSET)
    names = list(mixer.input)[1:]
    weights = [
        numpy_helper.from_array(random.normal(0, 0.4, shape).astype(np.float32), name)
        for name, shape in zip(names, shapes, strict=True)
    ]
    nodes = [
        helper.make_node(
            "AdditiveTokenMixer", ["x", *names], [precision],
            domain=DOMAIN, channels=c, precision=precision,
        )
        for precision in ("fp32", "bf16")
    ]  # fmt: skip
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, c, HEIGHT, WIDTH])
        for name in ("x", "fp32", "bf16")
    ]
    graph = helper.make_graph(nodes, "accelerate_check", values[:1], values[1:], weights)
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(
        graph, opset_imports=imports, functions=[mixer], ir_version=IR_VERSION
    )
    onnx.checker.check_model(model, full_check=True)
    return model


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else PLACE
    out.write_bytes(make().SerializeToString(deterministic=True))
