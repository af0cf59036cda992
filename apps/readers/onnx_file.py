"""Reads an ONNX file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from vitlet._extras import require
from vitlet.apps.readers.contents import Contents
from vitlet.apps.readers.values import ValueScan
from vitlet.apps.units import plural, size
from vitlet.errors import CorruptInputError
from vitlet.runtime.manifest import TensorSpec

_STANDARD = ("", "ai.onnx", "ai.onnx.ml")
_GELU_NATIVE = 20  # opset that brought Gelu; LayerNormalization came with 17


def read(path: Path) -> Contents:
    """Return what is in an ONNX file.

    Raises:
        CorruptInputError: it is no ONNX model, or a damaged one.
        MissingDependencyError: onnx is not installed.
    """
    onnx = require("onnx", extra="onnx", why="read an ONNX file")
    message = require("google.protobuf.message", extra="onnx", why="read an ONNX file")
    try:
        model = onnx.load_model(path, load_external_data=False)
    except (message.DecodeError, ValueError) as error:
        raise CorruptInputError(f"{path} is not a sound ONNX model: {error}") from None
    # What a cut-off end takes with it: the operator sets are the last thing in the file.
    if not (model.ir_version and model.graph.output and (model.opset_import or model.functions)):
        raise CorruptInputError(
            f"{path} is not a sound ONNX model: it has no graph, outputs or operator set"
        )
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    contents = Contents(path, "ONNX", path.stat().st_size)
    contents.facts = {
        "opset": ", ".join(f"{domain} {version}" for domain, version in opsets.items()),
        "IR version": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}".strip() or "unknown",
        "nodes": len(model.graph.node),
        "functions": len(model.functions),
    }
    contents.metadata = {entry.key: entry.value for entry in model.metadata_props}
    stored = {tensor.name for tensor in model.graph.initializer}
    contents.inputs = [_spec(onnx, v) for v in model.graph.input if v.name not in stored]
    contents.outputs = [_spec(onnx, v) for v in model.graph.output]
    nodes = list(_nodes(onnx, model.graph.node))
    nodes += [n for function in model.functions for n in _nodes(onnx, function.node)]
    contents.ops = dict(Counter(_op(node) for node in nodes))
    contents.custom_ops = sorted({_op(n) for n in nodes if n.domain not in _STANDARD})
    _read_tensors(onnx, model, contents, path.parent)
    _scan(model, contents, opsets.get("ai.onnx", 0))
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        contents.problem(f"onnx.checker: {str(error).strip().splitlines()[0]}")
    return contents


def _nodes(onnx: Any, nodes: Iterable[Any]) -> Iterator[Any]:
    """Give nodes and those of the graphs inside them (If, Loop, Scan)."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else []
            for graph in (*inner, *attribute.graphs):
                yield from _nodes(onnx, graph.node)


def _op(node: Any) -> str:
    return node.op_type if node.domain in _STANDARD else f"{node.domain}::{node.op_type}"


def _spec(onnx: Any, value: Any) -> TensorSpec:
    tensor = value.type.tensor_type
    sizes = [
        d.dim_value if d.HasField("dim_value") else d.dim_param or "any" for d in tensor.shape.dim
    ]
    return TensorSpec(value.name, _dtype(onnx, tensor.elem_type), tuple(sizes))


def _dtype(onnx: Any, number: int) -> str:
    return (
        str(onnx.TensorProto.DataType.Name(number)).lower().replace("float", "float32", 1)
        if (number == onnx.TensorProto.FLOAT)
        else str(onnx.TensorProto.DataType.Name(number)).lower()
    )


def _read_tensors(onnx: Any, model: Any, contents: Contents, folder: Path) -> None:
    scan = ValueScan()
    seen: dict[tuple[bytes, str, tuple[int, ...]], str] = {}
    repeated: list[int] = []
    outside: list[str] = []
    for tensor in model.graph.initializer:
        dtype = _dtype(onnx, tensor.data_type)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            outside.append(entries.get("location", ""))
            contents.add_tensor(dtype, int(entries.get("length", 0)))
            continue
        try:
            array = onnx.numpy_helper.to_array(tensor)
        except (TypeError, ValueError) as error:
            raise CorruptInputError(
                f"{contents.path} is not a sound ONNX model: weight {tensor.name}: {error}"
            ) from None
        contents.add_tensor(dtype, array.nbytes)
        scan.look(tensor.name, array)
        key = (hashlib.sha256(array.tobytes()).digest(), dtype, array.shape)
        if array.nbytes >= 1024 and key in seen:
            repeated.append(array.nbytes)
        seen.setdefault(key, tensor.name)
    scan.report(contents)
    if repeated:
        contents.note(
            f"{plural(len(repeated), 'weight')} stored twice ({size(sum(repeated))} to be saved)"
        )
    for location in sorted(set(outside)):
        unsafe = PurePosixPath(location).is_absolute() or ".." in PurePosixPath(location).parts
        if unsafe or not location:
            contents.problem(f"external data outside the model's folder: {location!r}")
        elif not (folder / location).is_file():
            contents.problem(f"external data file {location} is missing")
        else:
            contents.note(f"weights are in a second file, {location}: ship both")


def _scan(model: Any, contents: Contents, opset: int) -> None:
    left = contents.ops.get("BatchNormalization", 0)
    if left:
        contents.problem(
            f"{plural(left, 'BatchNormalization')} not folded: reparameterize before exporting"
        )
    if contents.ops.get("Dropout", 0):
        contents.note(f"{plural(contents.ops['Dropout'], 'Dropout')} left from training")
    if contents.ops.get("Erf", 0) and opset < _GELU_NATIVE:
        contents.note(f"GELU is spelled out: opset {_GELU_NATIVE} has a native Gelu")
    own = {(f.domain, f.name) for f in model.functions}
    foreign = [op for op in contents.custom_ops if tuple(op.split("::")) not in own]
    if foreign:
        contents.note(f"runs only where {', '.join(foreign)} is implemented")
    for spec in contents.inputs:
        free = [str(s) for s in spec.shape if isinstance(s, str)]
        if free:
            contents.note(f"input {spec.name} has free sizes: {', '.join(free)}")
