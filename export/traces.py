"""Runs an artefact on one input and keeps every tensor inside: ONNX, TVM and Core ML alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlet.export.onnx_trace import onnx_tensors
from vitlet.runtime.manifest import Artifact

Array = NDArray[Any]


def artifact_tensors(
    path: Path, artifact: Artifact, feed: dict[str, Array]
) -> list[tuple[str, Array]]:
    """Return (name, float32 array) of every floating-point tensor, in order.

    Names are those of ONNX tensors, of the kernels that TVM compiled, and of Core ML values (each
    rounded to the type that the program declares for it).

    Raises:
        CorruptInputError: the artefact cannot be run.
        MissingDependencyError: what runs it is not installed.
    """
    if artifact.target == "onnx":
        (tensors,) = onnx_tensors(path, [feed])
        return [(name, value.astype(np.float32)) for name, value in tensors.items()]
    if artifact.target == "tvm":
        from vitlet.runtime.tvm import TvmEngine

        outputs, calls = TvmEngine(path, artifact, 1).run_traced(feed)
        return [*calls, *outputs.items()]
    from vitlet.runtime.coreml.engine import CoreMLEngine

    return CoreMLEngine(path, artifact).run_traced(feed)[1]
