"""Reads a Core ML package (.mlpackage)."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitlet._extras import require
from vitlet.apps.readers.contents import Contents, folder_size
from vitlet.apps.units import plural
from vitlet.errors import CorruptInputError
from vitlet.runtime.manifest import TensorSpec

# Core ML specification version -> the first systems that read it (coremltools documentation).
_SYSTEMS = {6: "iOS 15", 7: "iOS 16", 8: "iOS 17", 9: "iOS 18", 10: "iOS 26"}
_BLOB_SENTINEL = 0xDEADBEEF
_BLOB_HEADER = struct.Struct("<IIQQ")  # sentinel, dtype, size and offset of the data
_COMPRESSED = "constexpr_"


def read(path: Path) -> Contents:
    """Return what is in a package whose model is an ML Program.

    Raises:
        CorruptInputError: files are missing, truncated or damaged.
        MissingDependencyError: coremltools is not installed.
    """
    model, weights = _files(path)
    coremltools = require("coremltools", extra="coreml", why="read a Core ML package")
    spec = coremltools.proto.Model_pb2.Model()
    try:
        spec.ParseFromString(model.read_bytes())
    except Exception as error:  # protobuf's DecodeError, of whichever implementation
        raise CorruptInputError(f"{path} is damaged: {model.name}: {error}") from None
    if spec.WhichOneof("Type") != "mlProgram":
        raise CorruptInputError(
            f"{path} is damaged or no ML Program: its model is {spec.WhichOneof('Type')!r}"
        )
    contents = Contents(path, "Core ML program", folder_size(path))
    version = spec.specificationVersion
    blocks = [
        (name, block)
        for function in spec.mlProgram.functions.values()
        for name, block in function.block_specializations.items()
    ]
    contents.facts = {
        "specification": f"{version} (runs on {_SYSTEMS.get(version, 'unknown')} and later)",
        "opset": ", ".join(sorted({name for name, _ in blocks})) or "none",
        "weights": "weights/weight.bin" if weights else "in the model file",
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
    contents.inputs = [_feature(coremltools, feature) for feature in spec.description.input]
    contents.outputs = [_feature(coremltools, feature) for feature in spec.description.output]
    for _, block in blocks:
        for operation in _operations(block):
            contents.ops[operation.type] = contents.ops.get(operation.type, 0) + 1
            if operation.type == "const" or operation.type.startswith(_COMPRESSED):
                _constant(coremltools, operation, contents, weights, path)
    _scan(contents)
    return contents


def _files(path: Path) -> tuple[Path, Path | None]:
    """Return the model file and the weight file that the package's manifest names."""
    try:
        manifest = json.loads((path / "Manifest.json").read_text())
        root = manifest["rootModelIdentifier"]
        item = path / "Data" / manifest["itemInfoEntries"][root]["path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptInputError(f"{path} is incomplete: no sound Manifest.json ({error})") from None
    if ".." in item.parts or not item.resolve().is_relative_to(path.resolve()):
        raise CorruptInputError(f"{path} points outside itself: {item}")
    if not item.is_file():
        raise CorruptInputError(f"{path} is incomplete: {item.relative_to(path)} is not there")
    weights = item.parent / "weights" / "weight.bin"
    return item, weights if weights.is_file() else None


def _operations(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _operations(inner)


def _feature(coremltools: Any, feature: Any) -> TensorSpec:
    kind = feature.type.WhichOneof("Type")
    if kind == "imageType":
        image = feature.type.imageType
        space = type(image).ColorSpace.Name(image.colorSpace).lower()
        return TensorSpec(feature.name, f"image ({space})", (image.height, image.width))
    if kind == "multiArrayType":
        array = feature.type.multiArrayType
        dtype = type(array).ArrayDataType.Name(array.dataType).lower()
        return TensorSpec(feature.name, dtype, tuple(array.shape))
    return TensorSpec(feature.name, str(kind).removesuffix("Type"), ())


def _constant(
    coremltools: Any, operation: Any, contents: Contents, weights: Path | None, path: Path
) -> None:
    for value in operation.attributes.values():
        if value.WhichOneof("value") != "blobFileValue":
            continue
        tensor = value.type.tensorType
        sizes = [d.constant.size for d in tensor.dimensions]
        dtype = coremltools.proto.MIL_pb2.DataType.Name(tensor.dataType).lower()
        contents.add_tensor(dtype, _blob_size(weights, value.blobFileValue.offset, path, sizes))


def _blob_size(weights: Path | None, offset: int, path: Path, sizes: list[int]) -> int:
    """Return the bytes of one weight; its header says where it lies in the file."""
    if weights is None:
        raise CorruptInputError(f"{path} is incomplete: its weight file is not there")
    with weights.open("rb") as file:
        file.seek(offset)
        header = file.read(_BLOB_HEADER.size)
    if len(header) < _BLOB_HEADER.size:
        raise CorruptInputError(f"{path} is truncated: a weight starts after {weights.name} ends")
    sentinel, _, length, begin = _BLOB_HEADER.unpack(header)
    if sentinel != _BLOB_SENTINEL or length * 8 < math.prod(sizes):
        raise CorruptInputError(f"{path} is damaged: no weight at byte {offset} of {weights.name}")
    if begin + length > weights.stat().st_size:
        raise CorruptInputError(f"{path} is truncated: a weight ends after {weights.name} does")
    return int(length)


def _scan(contents: Contents) -> None:
    compressed = sum(n for op, n in contents.ops.items() if op.startswith(_COMPRESSED))
    contents.facts["compressed weights"] = compressed
    if contents.ops.get("batch_norm", 0):
        contents.problem(f"{plural(contents.ops['batch_norm'], 'batch_norm')} not folded")
    for spec in contents.inputs:
        if not spec.shape:
            contents.note(f"input {spec.name} has no fixed shape")
        elif len(spec.shape) == 4 and not spec.dtype.startswith("image"):
            contents.note(f"input {spec.name} is an array: the app must preprocess the image")
