"""One pass over a Core ML program: what computes, in which precision, and on which weights.

Only the file's own records are read: nothing is built, unpacked or computed, so a weight costs its
header and an absurd shape costs nothing.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlet.errors import CorruptInputError

_BLOB_SENTINEL = 0xDEADBEEF
_BLOB_HEADER = struct.Struct("<IIQQ")  # sentinel, dtype, size and offset of the data
_COMPRESSED = "constexpr_"
_FLOATS = ("float16", "float32", "float64", "bfloat16", "float8e4m3fn", "float8e5m2")
_PRECISIONS = {"float16": "fp16", "float32": "fp32"}
# Endings that converters and compressors add to the name of a weight.
_ENDINGS = ("_to_fp16", "_to_fp32", "_palettized", "_quantized", "_sparsified", "_cast_fp16")


@dataclass(frozen=True)
class Shape:
    """Type of a value in the program; a size that is free is None."""

    dtype: str
    sizes: tuple[int | None, ...]


@dataclass
class Stored:
    """A constant, or what is unpacked from several: how it is stored, in how many bytes."""

    storage: str
    shape: Shape
    blobs: dict[int, int] = field(default_factory=dict)  # offset in the weight file -> bytes
    numbers: NDArray[Any] | None = None  # of a small constant that stands in the model file


@dataclass(frozen=True)
class Op:
    """One operation that computes.

    Attributes:
        name: of its first output.
        type: the MIL operation type.
        precision: "fp16", "fp32", or "integer" where no floating-point number goes in or out.
        takes: argument -> the values bound to it.
        gives: type of each output.
    """

    name: str
    type: str
    precision: str
    takes: dict[str, list[str]]
    gives: tuple[Shape, ...]


@dataclass(frozen=True)
class Layer:
    """A weight where it is first used."""

    weight: str
    op: str
    storage: str
    shape: tuple[int, ...]
    bytes: int


class Walk:
    """What is in the functions of a program.

    Args:
        proto: the MIL_pb2 module.
        path: the package, for messages.
        weights: the weight file, or None.

    Attributes:
        counts: operation type -> how often, constants too.
        ops: of those that compute, in order.
        layers: a row per stored weight, in the order of use.
        shapes: value -> type.
        stored: constant -> how it is stored.
    """

    def __init__(self, proto: Any, path: Path, weights: Path | None) -> None:
        self._names = {number: name.lower() for name, number in proto.DataType.items()}
        self._path = path
        self._weights = weights
        self.counts: dict[str, int] = {}
        self.ops: list[Op] = []
        self.layers: list[Layer] = []
        self.shapes: dict[str, Shape] = {}
        self.stored: dict[str, Stored] = {}
        self._counted: set[int] = set()  # offsets of blobs that a layer has claimed

    def function(self, function: Any) -> None:
        """Walk through a function, in the version for its own opset.

        Raises:
            CorruptInputError: a value is used before it is computed, or a weight is not there.
        """
        block = function.block_specializations.get(function.opset)
        if block is None:
            raise CorruptInputError(
                f"{self._path} has no program for its own opset {function.opset!r}"
            )
        self.shapes, self.stored = {}, {}  # names are a function's own
        for value in function.inputs:
            self.shapes[value.name] = self._shape(value.type)
        self._block(block)

    def _block(self, block: Any) -> None:
        for value in block.inputs:
            self.shapes[value.name] = self._shape(value.type)
        for operation in block.operations:
            self._operation(operation)
        for name in block.outputs:
            self._known(name, "the end of a block")

    def _operation(self, operation: Any) -> None:
        kind = operation.type
        self.counts[kind] = self.counts.get(kind, 0) + 1
        name = operation.outputs[0].name if operation.outputs else kind
        takes: dict[str, list[str]] = {}
        for argument, given in operation.inputs.items():
            takes[argument] = [
                self._bound(binding, f"{name}.{argument}") for binding in given.arguments
            ]
            for value in takes[argument]:
                self._known(value, name)
        for nested in operation.blocks:
            self._block(nested)
        gives = tuple(self._shape(output.type) for output in operation.outputs)
        for output, shape in zip(operation.outputs, gives, strict=True):
            self.shapes[output.name] = shape
        if kind == "const":
            self.stored[name] = self._constant([*operation.attributes.values()], gives[0])
        elif kind.startswith(_COMPRESSED):
            self.stored[name] = self._compressed(operation, takes, gives[0])
        else:
            self._claim(kind, takes)
            dtypes = [s.dtype for s in gives]
            dtypes += [self.shapes[v].dtype for vs in takes.values() for v in vs]
            floats = [_PRECISIONS.get(d, d) for d in dtypes if d in _FLOATS]
            self.ops.append(Op(name, kind, floats[0] if floats else "integer", takes, gives))

    def _bound(self, binding: Any, name: str) -> str:
        """Return the name of what is bound to an argument; a value that stands there gets one."""
        if binding.WhichOneof("binding") != "value":
            return str(binding.name)
        self.shapes[name] = self._shape(binding.value.type)
        self.stored[name] = self._constant([binding.value], self.shapes[name])
        return name

    def _known(self, value: str, where: str) -> None:
        if value not in self.shapes:
            raise CorruptInputError(
                f"{self._path} is damaged: {where} uses {value!r} before it is computed"
            )

    def _shape(self, kind: Any) -> Shape:
        while kind.WhichOneof("type") == "stateType":
            kind = kind.stateType.wrappedType
        tensor = kind.tensorType
        sizes = tuple(
            d.constant.size if d.WhichOneof("dimension") == "constant" else None
            for d in tensor.dimensions
        )
        return Shape(self._names.get(tensor.dataType, "unknown"), sizes)

    def _constant(self, values: list[Any], shape: Shape) -> Stored:
        found = Stored(shape.dtype, shape)
        for value in values:
            if value.WhichOneof("value") == "blobFileValue":
                self._add_blob(found, value)
            elif value.type.WhichOneof("type") == "tensorType" and found.numbers is None:
                found.numbers = _numbers(value, shape.dtype)
        return found

    def _compressed(self, operation: Any, takes: dict[str, list[str]], shape: Shape) -> Stored:
        """Add up the parts of a compressed weight: attributes, and from iOS 18 on constants."""
        parts = {key: Stored("", self._shape(v.type)) for key, v in operation.attributes.items()}
        for key, value in operation.attributes.items():
            if value.WhichOneof("value") == "blobFileValue":
                self._add_blob(parts[key], value)
        for argument, values in takes.items():
            for value in values:
                parts[argument] = self.stored.get(value) or Stored("", self.shapes[value])
        blobs = {at: size for part in parts.values() for at, size in part.blobs.items()}
        return Stored(storage(operation.type, parts, shape), shape, blobs)

    def _claim(self, kind: str, takes: dict[str, list[str]]) -> None:
        """Note the weights that an operation is the first to use."""
        for value in (v for values in takes.values() for v in values):
            found = self.stored.get(value)
            fresh = (
                {at: n for at, n in found.blobs.items() if at not in self._counted} if found else {}
            )
            if found is None or not fresh:
                continue
            self._counted |= set(fresh)
            sizes = tuple(size or 0 for size in found.shape.sizes)
            total = sum(fresh.values())
            self.layers.append(Layer(_plain(value), kind, found.storage, sizes, total))

    def _add_blob(self, found: Stored, value: Any) -> None:
        offset = value.blobFileValue.offset
        shape = self._shape(value.type)
        found.blobs[offset] = _blob_size(self._weights, offset, self._path, shape)


def storage(kind: str, parts: dict[str, Stored], shape: Shape) -> str:
    """Name how a compressed weight is stored: "int8 linear", "palette 4 bit", "sparse float16".

    Args:
        kind: the `constexpr_` operation.
        parts: its arguments.
        shape: of the weight.
    """
    if kind == "constexpr_cast":
        return parts["source_val"].shape.dtype if "source_val" in parts else "cast"
    if "lut" in kind:
        entries = parts["lut"].shape.sizes if "lut" in parts else ()
        # iOS 16 stores one flat table; iOS 18 tables of (..., entries, numbers per entry).
        size = (entries[0] if len(entries) == 1 else entries[-2] if entries else 0) or 0
        table = parts["lut"].storage if "lut" in parts else ""
        name = f"palette {max(size - 1, 1).bit_length()} bit"
        if len(entries) > 1 and (entries[-1] or 1) > 1:
            name += f" of {entries[-1]} numbers"
        if "linear" in table or "blocks" in table:
            name += f", table {table}"
        return f"sparse {name}" if "sparse" in kind else name
    if kind in ("constexpr_affine_dequantize", "constexpr_blockwise_shift_scale"):
        data = parts.get("quantized_data") or parts.get("data")
        return _linear(data, parts.get("scale"))
    if kind == "constexpr_sparse_blockwise_shift_scale":
        return f"sparse {_linear(parts.get('nonzero_data'), None)}"
    if kind == "constexpr_sparse_to_dense":
        inside = parts.get("nonzero_data")
        name = (inside.storage or inside.shape.dtype) if inside else shape.dtype
        return name if name.startswith("sparse") else f"sparse {name}"
    return kind.removeprefix(_COMPRESSED)


def _linear(data: Stored | None, scale: Stored | None) -> str:
    """Tell one scale, or one per channel, from one per block of numbers inside a channel."""
    if data is None:
        return "linear"
    pairs = list(zip(data.shape.sizes, scale.shape.sizes if scale else (), strict=False))
    shared = len(pairs) == len(data.shape.sizes)
    blocks = [d // s for d, s in pairs if d and s and 1 < s < d] if shared else []
    if blocks:
        return f"{data.shape.dtype} in blocks of {blocks[-1]}"
    return f"{data.shape.dtype} linear"


def _plain(name: str) -> str:
    for ending in _ENDINGS * 2:
        name = name.removesuffix(ending)
    return name


def _numbers(value: Any, dtype: str) -> NDArray[Any] | None:
    """Return a constant that stands in the model file; None where it holds no numbers."""
    tensor = value.immediateValue.tensor
    which = tensor.WhichOneof("value")
    if which is None or which == "strings":
        return None
    values = getattr(tensor, which).values
    if which != "bytes":
        return np.asarray(list(values))
    kinds = {"float16": "<f2", "int8": "i1", "uint8": "u1", "int16": "<i2", "uint16": "<u2"}
    if dtype not in kinds or len(values) % np.dtype(kinds[dtype]).itemsize:
        return None
    return np.frombuffer(values, kinds[dtype])


def _blob_size(weights: Path | None, offset: int, path: Path, shape: Shape) -> int:
    """Return the bytes of one weight; its header says where it lies in the file."""
    if weights is None:
        raise CorruptInputError(f"{path} is incomplete: its weight file is not there")
    total = weights.stat().st_size
    with weights.open("rb") as file:
        file.seek(min(offset, total))
        header = file.read(_BLOB_HEADER.size)
    if len(header) < _BLOB_HEADER.size:
        raise CorruptInputError(f"{path} is truncated: a weight starts after {weights.name} ends")
    sentinel, _, length, begin = _BLOB_HEADER.unpack(header)
    count = math.prod(size or 0 for size in shape.sizes)
    if sentinel != _BLOB_SENTINEL or length * 8 < count:
        raise CorruptInputError(f"{path} is damaged: no weight at byte {offset} of {weights.name}")
    if begin + length > total:
        raise CorruptInputError(f"{path} is truncated: a weight ends after {weights.name} does")
    return int(length)


def applied_to(walk: Walk, name: str) -> Iterator[tuple[str, NDArray[Any]]]:
    """Give (operation, constant) for what is done to an input before anything else."""
    current = name
    while True:
        users = [op for op in walk.ops if any(current in vs for vs in op.takes.values())]
        if len(users) != 1 or users[0].type not in ("cast", "mul", "add", "sub", "real_div"):
            return
        op = users[0]
        if op.type != "cast":
            x, y = (op.takes.get(side, [""])[:1] for side in "xy")
            others = [v for v in (*x, *y) if v != current]
            constant = walk.stored.get(others[0]) if others else None
            if constant is None or constant.numbers is None or constant.numbers.size not in (1, 3):
                return
            if op.type in ("sub", "real_div") and x != [current]:
                return
            yield op.type, constant.numbers.astype(np.float64)
        current = op.name
