"""The kernels' test: run as a program, in a process that may crash. LIBRARY MODEL -> "ok"."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np

# Output -> largest difference from the definition, relative to the largest magnitude.
LIMITS = {
    "fp32": 1e-4, "bf16": 2e-2, "int8": 1e-4, "shift": 1e-4, "linear_fp32": 1e-5,
    "linear_bf16": 2e-2, "int8_linear": 1e-5, "shift_linear": 1e-5, "depthwise": 1e-5,
    "attention": 1e-2,
}  # fmt: skip


def run(model: str, library: str | None) -> list[Any]:
    """Return the model's outputs with the library's kernels, or without."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if library is not None:
        options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    spec = session.get_inputs()[0]
    x = np.random.default_rng(0).normal(size=spec.shape).astype(np.float32)
    return list(session.run(list(LIMITS), {spec.name: x}))


def main(library: str, model: str) -> None:
    """Compare; anything but "ok" on stdout is a failure."""
    kernels, definitions = run(model, library), run(model, None)
    fp32, bf16 = kernels[:2]
    if np.array_equal(fp32, bf16):  # the definitions know one precision only
        sys.exit("the kernels did not run")
    for name, ours, plain in zip(LIMITS, kernels, definitions, strict=True):
        error = float(np.abs(ours - plain).max() / np.abs(plain).max())
        if not error < LIMITS[name]:
            sys.exit(f"{name} is off by {error:.2g}")
    print("ok")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
