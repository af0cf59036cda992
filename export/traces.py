"""Runs an artefact on one input and keeps every tensor inside: ONNX, TVM and Core ML alike."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlet._extras import require
from vitlet.export.onnx_trace import onnx_tensors
from vitlet.export.pairing import Step
from vitlet.runtime.manifest import Artifact

Array = NDArray[Any]


def artifact_steps(
    path: Path, artifact: Artifact, feed: dict[str, Array], mode: str = "declared"
) -> list[Step]:
    """Return every floating-point tensor with what it was computed from, in order.

    Names are those of ONNX tensors, of the kernels that TVM compiled, and of Core ML values (in
    mode "declared" each is rounded to the type that the program gives it). A compiled TVM library
    does not tell what feeds what: there each tensor counts as computed from the one before.

    Raises:
        CorruptInputError: the artefact cannot be run.
        MissingDependencyError: what runs it is not installed.
    """
    kept = _Kept()
    if artifact.target == "onnx":
        (tensors,) = onnx_tensors(path, [feed])
        onnx: Any = require("onnx", extra="onnx", why="look into an ONNX file")
        for node in onnx.load(str(path), load_external_data=False).graph.node:
            for name in node.output:
                kept.add(name, node.op_type, tensors.get(name), node.input)
    elif artifact.target == "tvm":
        from vitlet.runtime.tvm import TvmEngine

        outputs, calls = TvmEngine(path, artifact, 1).run_traced(feed)
        for name, value in [*calls, *outputs.items()]:
            kept.add(name, name, value, [step.name for step in kept.steps[-1:]])
    else:
        from vitlet.runtime.coreml import Value
        from vitlet.runtime.coreml.engine import CoreMLEngine

        def watch(value: Value) -> None:
            floats = value.array if value.array.dtype.kind == "f" else None
            kept.add(value.name, value.op, floats, value.inputs)

        CoreMLEngine(path, artifact, mode).executor.run(dict(feed), watch=watch)
    return kept.steps


class _Kept:
    """Collects steps; looks through integers and other values that are not kept."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._holders: dict[str, tuple[str, ...]] = {}
        self._times: dict[str, int] = {}

    def add(self, name: str, op: str, value: Array | None, inputs: Iterable[str]) -> None:
        before = tuple(
            dict.fromkeys(held for given in inputs for held in self._holders.get(given, ()))
        )
        self._holders[name] = before
        if value is None or value.dtype.kind != "f":
            return
        count = self._times[name] = self._times.get(name, 0) + 1
        unique = name if count == 1 else f"{name}#{count}"  # loops and kernels that run again
        self._holders[name] = self._holders[unique] = (unique,)
        self.steps.append(Step(unique, op, "", np.array(value, np.float32), before))
