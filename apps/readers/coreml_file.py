"""Reads a Core ML package (.mlpackage) whose model is an ML program.

Needs coremltools for the file's format, and neither torch nor coremltools' converters' arithmetic.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vitlet._extras import require
from vitlet.apps.readers.contents import Contents, folder_size
from vitlet.apps.readers.coreml_placement import findings
from vitlet.apps.readers.coreml_walk import Walk, applied_to
from vitlet.apps.units import plural
from vitlet.errors import CorruptInputError, UnsupportedError
from vitlet.runtime.coreml.quiet import quiet_coremltools
from vitlet.runtime.manifest import TensorSpec

# Core ML specification version -> the first systems that read it (coremltools documentation).
_SYSTEMS = {6: "iOS 15", 7: "iOS 16", 8: "iOS 17", 9: "iOS 18", 10: "iOS 26"}
_SHOWN = 4  # labels


def read(path: Path) -> Contents:
    """Return what is in a package whose model is an ML program.

    Raises:
        CorruptInputError: files are missing, truncated or damaged.
        UnsupportedError: it holds another kind of model.
        MissingDependencyError: coremltools is not installed.
    """
    model, weights = _files(path)
    with quiet_coremltools():
        require("coremltools", extra="coreml", why="read a Core ML package")
        from coremltools.proto import MIL_pb2, Model_pb2
    spec = Model_pb2.Model()
    try:
        spec.ParseFromString(model.read_bytes())
    except Exception as error:  # protobuf's DecodeError, of whichever implementation
        raise CorruptInputError(f"{path} is damaged: {model.name}: {error}") from None
    kind = spec.WhichOneof("Type")
    if kind is None:
        raise CorruptInputError(f"{path} is damaged: {model.name} holds no model")
    if kind != "mlProgram":
        raise UnsupportedError(
            f"{path} holds a {kind}, not an ML program: convert it again with "
            'convert_to="mlprogram"'
        )
    walk = Walk(MIL_pb2, path, weights)
    contents = Contents(path, "Core ML program", folder_size(path))
    try:
        for name in sorted(spec.mlProgram.functions, key=lambda n: (n != "main", n)):
            walk.function(spec.mlProgram.functions[name])
        _describe(contents, spec, walk, weights)
    except (ValueError, IndexError, KeyError, OverflowError, OSError) as error:
        if isinstance(error, CorruptInputError):
            raise
        raise CorruptInputError(f"{path} is damaged: {error}") from None
    return contents


def _describe(contents: Contents, spec: Any, walk: Walk, weights: Path | None) -> None:
    version = spec.specificationVersion
    functions = spec.mlProgram.functions
    inputs = [*spec.description.input, *(i for f in spec.description.functions for i in f.input)]
    outputs = [*spec.description.output, *(o for f in spec.description.functions for o in f.output)]
    states = [*spec.description.state, *(s for f in spec.description.functions for s in f.state)]
    contents.facts = {
        "specification": f"{version} (runs on {_SYSTEMS.get(version, 'unknown')} and later)",
        "opset": ", ".join(sorted({function.opset for function in functions.values()})) or "none",
        "functions": _functions(spec) if len(functions) > 1 else "",
        "states": ", ".join(f"{s.name} {_spell(_state(s))}" for s in _once(states)),
        "weights": "weights/weight.bin" if weights else "in the model file",
        **{f"picture {entry.name}": _picture(entry, walk) for entry in _once(inputs)},
        "computes": _precisions(walk, contents),
        "labels": _labels(contents, walk, functions),
    }
    about = spec.description.metadata
    contents.metadata = {
        "description": about.shortDescription,
        "version": about.versionString,
        "author": about.author,
        "licence": about.license,
        **dict(about.userDefined),
    }
    contents.metadata = {k: v for k, v in contents.metadata.items() if v}
    contents.inputs = [_feature(entry) for entry in _once(inputs)]
    contents.outputs = [_feature(entry) for entry in _once(outputs)]
    contents.ops = walk.counts
    for layer in walk.layers:
        contents.add_tensor(layer.storage, layer.bytes)
    contents.layers = [vars(layer) for layer in sorted(walk.layers, key=lambda x: -x.bytes)]
    contents.functions = sorted(functions)
    contents.states = [TensorSpec(s.name, _state(s)[0], _state(s)[1]) for s in _once(states)]
    ranged = [entry.name for entry in _once(inputs) if _is_ranged(entry)]
    contents.placement = [vars(found) for found in findings(walk, ranged)]
    _scan(contents, inputs)


def _files(path: Path) -> tuple[Path, Path | None]:
    """Return the model file and the weight file that the package's manifest names."""
    if path.is_file():  # the older form, one file
        return path, None
    try:
        manifest = json.loads((path / "Manifest.json").read_text())
        root = manifest["rootModelIdentifier"]
        item = path / "Data" / manifest["itemInfoEntries"][root]["path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptInputError(f"{path} is incomplete: no sound Manifest.json ({error})") from None
    if ".." in item.parts or not item.resolve().is_relative_to(path.resolve()):
        raise CorruptInputError(f"{path} points outside itself: {item}")
    if not item.is_file():
        raise CorruptInputError(f"{path} is incomplete: {item.relative_to(path)} is not there")
    weights = item.parent / "weights" / "weight.bin"
    return item, weights if weights.is_file() else None


def _once(entries: Iterable[Any]) -> list[Any]:
    """Return features by name, each once: functions of a package share theirs."""
    return list({entry.name: entry for entry in entries}.values())


def _feature(feature: Any) -> TensorSpec:
    kind = feature.type.WhichOneof("Type")
    if kind == "imageType":
        image = feature.type.imageType
        space = type(image).ColorSpace.Name(image.colorSpace).lower()
        return TensorSpec(feature.name, f"image ({space})", (image.height, image.width))
    if kind == "multiArrayType":
        array = feature.type.multiArrayType
        dtype = type(array).ArrayDataType.Name(array.dataType).lower()
        return TensorSpec(feature.name, dtype, _array_shape(array))
    return TensorSpec(feature.name, str(kind).removesuffix("Type"), ())


def _array_shape(array: Any) -> tuple[int | str, ...]:
    """Return sizes; a range is "1..8", and the sizes of a list of shapes are "224|256"."""
    flexible = array.WhichOneof("ShapeFlexibility")
    if flexible == "shapeRange":
        return tuple(_range(size) for size in array.shapeRange.sizeRanges)
    if flexible == "enumeratedShapes":
        columns = zip(*(shape.shape for shape in array.enumeratedShapes.shapes), strict=True)
        return tuple(_any_of(column) for column in columns)
    return tuple(array.shape)


def _range(size: Any) -> int | str:
    low, high = int(size.lowerBound), int(size.upperBound)
    return low if low == high else f"{low}..{'any' if high < 0 else high}"


def _any_of(column: Iterable[int]) -> int | str:
    sizes = sorted(set(column))
    return sizes[0] if len(sizes) == 1 else "|".join(map(str, sizes))


def _is_ranged(feature: Any) -> bool:
    kind = feature.type.WhichOneof("Type")
    if kind == "imageType":
        return bool(feature.type.imageType.WhichOneof("SizeFlexibility") == "imageSizeRange")
    flexible = feature.type.multiArrayType.WhichOneof("ShapeFlexibility")
    return kind == "multiArrayType" and bool(flexible == "shapeRange")


def _state(feature: Any) -> tuple[str, tuple[int, ...]]:
    array = feature.type.stateType.arrayType
    return type(array).ArrayDataType.Name(array.dataType).lower(), tuple(array.shape)


def _spell(state: tuple[str, tuple[int, ...]]) -> str:
    return f"{state[0]} {' x '.join(map(str, state[1]))}"


def _functions(spec: Any) -> str:
    default = spec.description.defaultFunctionName
    names = sorted(spec.mlProgram.functions)
    return ", ".join(f"{name} (default)" if name == default else name for name in names)


def _picture(feature: Any, walk: Walk) -> str:
    """Say what the program does to the pixels first: its scale and bias; "" for an array."""
    if feature.type.WhichOneof("Type") != "imageType":
        return ""
    scale, bias = np.ones(1), np.zeros(1)
    for kind, by in applied_to(walk, feature.name):
        if kind in ("mul", "real_div"):
            factor = by if kind == "mul" else 1 / by
            scale, bias = scale * factor.reshape(-1), bias * factor.reshape(-1)
        else:
            bias = bias + (by if kind == "add" else -by).reshape(-1)
    return f"pixel * {_numbers(scale)} + {_numbers(bias)}"


def _numbers(values: Any) -> str:
    shown = [f"{value:.5g}" for value in values]
    return shown[0] if len(set(shown)) == 1 else f"[{', '.join(shown)}]"


def _precisions(walk: Walk, contents: Contents) -> str:
    """Count operations by precision; casts between them are left out."""
    for op in walk.ops:
        if op.type not in ("cast", "classify"):
            kinds = contents.compute.setdefault(op.precision, {})
            kinds[op.type] = kinds.get(op.type, 0) + 1
    counts = {precision: sum(kinds.values()) for precision, kinds in contents.compute.items()}
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{plural(n, 'operation')} in {precision}" for precision, n in ordered)


def _labels(contents: Contents, walk: Walk, functions: Any) -> str:
    """Say which classes a classifier has; its program holds them as a list."""
    if "classify" not in walk.counts:
        return ""
    names = [name for function in functions.values() for name in _classes(function)]
    if not names:
        contents.problem("a classifier without labels: it cannot name a class")
        return "none"
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice and len(functions) == 1:
        contents.problem(
            f"{plural(len(twice), 'label')} given twice ({', '.join(twice[:_SHOWN])}): a Core ML "
            "classifier gives one probability per name"
        )
    return f"{len(names)} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"


def _classes(function: Any) -> list[str]:
    block = function.block_specializations[function.opset]
    lists: dict[str, Any] = {}
    for operation in block.operations:
        if operation.type == "const" and "val" in operation.attributes:
            lists[operation.outputs[0].name] = operation.attributes["val"]
        elif operation.type == "classify":
            for binding in operation.inputs["classes"].arguments:
                value = lists.get(binding.name, binding.value)
                return [
                    _text(item.immediateValue.tensor) for item in value.immediateValue.list.values
                ]
    return []


def _text(tensor: Any) -> str:
    which = tensor.WhichOneof("value")
    values = getattr(tensor, which).values if which else []
    return str(values[0]) if len(values) else ""


def _scan(contents: Contents, inputs: Iterable[Any]) -> None:
    for kind, level in (("batch_norm", contents.problem), ("dropout", contents.note)):
        if contents.ops.get(kind, 0):
            level(f"{plural(contents.ops[kind], kind)} not folded")
    for entry in _once(inputs):
        spec = _feature(entry)
        if not spec.shape and entry.type.WhichOneof("Type") == "multiArrayType":
            contents.note(f"input {spec.name} has no fixed shape")
        elif len(spec.shape) == 4 and not spec.dtype.startswith("image"):
            contents.note(f"input {spec.name} is an array: the app must preprocess the image")
    for found in contents.placement:
        counts = [(len(names), kind) for kind, names in found["ops"].items()]
        what = ", ".join(f"{number} {kind}" for number, kind in counts)
        if len(counts) > _SHOWN:
            what = plural(sum(number for number, _ in counts), "operation")
        contents.note(f"off the Neural Engine: {what}: {found['why']} ({found['source']})")
