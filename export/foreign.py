"""Describes a compiled file that has no manifest, so that any tool's output can be verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitlet._extras import require
from vitlet.errors import CorruptInputError, UsageError
from vitlet.runtime.manifest import Artifact, Target, TensorSpec

if TYPE_CHECKING:
    from vitlet.export.coreml_program import Program
    from vitlet.export.truth import Truth

_KINDS: dict[str, Target] = {
    ".onnx": "onnx",
    ".so": "tvm",
    ".mlpackage": "coreml",
    ".mlmodel": "coreml",
}


def read_file(path: Path) -> Artifact:
    """Return what a manifest would say of a file, as far as the file tells; with all its outputs.

    Raises:
        UsageError: there is no such file, it is of an unknown kind, or takes several inputs.
        CorruptInputError: it cannot be read.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    target = _KINDS.get(path.suffix)
    if target is None:
        raise UsageError(f"{path} is neither a bundle folder nor one of {', '.join(_KINDS)}")
    details: dict[str, Any] = {}
    place: Literal["none", "in-graph", "image-type"]
    if target == "coreml":
        from vitlet.export.coreml_program import read_program

        program = read_program(path)
        inputs, outputs, precision = program.inputs, program.outputs, program.precision
        place = "none" if program.colour is None else "image-type"
        details["class_labels"] = program.labels is not None and _classifies_softmax(program)
    else:
        from vitlet.runtime.select import open_engine

        engine = open_engine("onnxruntime" if target == "onnx" else "tvm", path, None, 1)
        inputs, outputs = engine.inputs, engine.outputs
        precision = _onnx_precision(path) if target == "onnx" else "fp32"
        place = "in-graph" if inputs and inputs[0].dtype == "uint8" else "none"
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise UsageError(f"{path.name} takes {names or 'nothing'}: expected one input")
    return Artifact(
        target, "model", path.name, precision, tuple(inputs), tuple(outputs), place, details=details
    )


def describe(path: Path, truth: Truth) -> Artifact:
    """Return what a manifest would say of a file, as far as the file and the truth tell.

    Raises:
        UsageError: as `read_file`; or no single output fits the model.
        CorruptInputError: it cannot be read.
    """
    found = read_file(path)
    graph = _graph(found.inputs[0], truth)
    return replace(found, graph=graph, outputs=_chosen(found.outputs, graph, truth))


def _classifies_softmax(program: Program) -> bool:
    """Whether a classifier's scores come out of a softmax; other tools also give bare logits."""
    place = program.operations.index("classify")
    while True:
        place = next((op for op, users in program.feeds.items() if place in users), -1)
        if place < 0 or program.operations[place] != "cast":
            return place >= 0 and program.operations[place] == "softmax"


def _graph(spec: TensorSpec, truth: Truth) -> str:
    tokens = spec.dtype in ("int32", "int64") and len(spec.shape) == 2
    wanted = "text" if tokens else "image" if "image" in truth.cases else "model"
    if wanted not in truth.cases:
        known = ", ".join(truth.cases)
        raise UsageError(f"its input {spec.name} {spec.dtype} {spec.shape} fits none of {known}")
    return wanted


def _chosen(outputs: Sequence[TensorSpec], graph: str, truth: Truth) -> tuple[TensorSpec, ...]:
    """Return the output that has the source's width; exporters may leave others beside it."""
    width = truth.cases[graph][0].output.shape[1]
    fitting = [spec for spec in outputs if len(spec.shape) == 2 and spec.shape[1] == width]
    if not fitting and len(outputs) == 1:
        fitting = list(outputs)
    if len(fitting) != 1:
        shapes = ", ".join(f"{spec.name} {spec.shape}" for spec in outputs)
        raise UsageError(f"no single output of width {width} in the file: it gives {shapes}")
    return tuple(fitting)


def _onnx_precision(path: Path) -> str:
    """Tell from the stored weights what an ONNX file computes in."""
    onnx: Any = require("onnx", extra="onnx", why="read the precision of an ONNX file")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own classes are not public
        raise CorruptInputError(f"{path} is not a sound ONNX model: {error}") from error
    sizes: dict[int, int] = {}
    for tensor in model.graph.initializer:
        count = 1
        for size in tensor.dims:
            count *= size
        sizes[tensor.data_type] = sizes.get(tensor.data_type, 0) + count
    if not sizes:
        return "fp32"
    kind = max(sizes, key=lambda code: sizes[code])
    proto = onnx.TensorProto
    names = {proto.FLOAT16: "fp16", proto.INT8: "int8", proto.UINT8: "int8"}
    return names.get(kind, "fp32")
