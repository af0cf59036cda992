"""Reads a Core ML package into plain arrays and facts, on any system."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlet._extras import require
from vitlet.errors import CorruptInputError, UnsupportedError, VitletError
from vitlet.runtime.manifest import TensorSpec

HALF_STEP = 2.0**-10  # one unit in the last place of float16, relative
_HALF_TINY = 2.0**-24  # the smallest float16
_SINGLE_STEP = 1e-6
_ARRAYS = {65568: "float32", 65552: "float16", 131104: "int32", 65600: "float64"}
_COLOURS = {10: "GRAYSCALE", 20: "RGB", 30: "BGR", 40: "GRAYSCALE_FLOAT16"}


@dataclass(frozen=True)
class Weight:
    """One constant of a program with more than one element, as the operations see it.

    Attributes:
        name: in the program.
        values: float32, decompressed.
        users: numbers of the operations that take it.
        step: how far a stored value may lie from the exact one: `relative` times its magnitude plus
            an absolute part, an array or a number (half a quantization step).
        relative: see `step`.
        palette: the table that the values were chosen from, or None. A value must then be the
            entry that is nearest to the exact one.
    """

    name: str
    values: NDArray[Any]
    users: tuple[int, ...]
    step: NDArray[np.float64] | float = 0.0
    relative: float = HALF_STEP
    palette: NDArray[np.float64] | None = None

    def allowed(self, exact: NDArray[Any]) -> NDArray[Any]:
        """Return the largest error allowed per element if `exact` is what was stored."""
        room = self.relative * np.abs(exact) + _HALF_TINY * (self.relative == HALF_STEP)
        if self.palette is None:
            # The weight was float16 before it was quantized, and the step is float16 too.
            return np.asarray(room + np.where(self.step > 0, room, 0.0) + 1.01 * self.step)
        table = np.sort(self.palette)
        right = np.clip(np.searchsorted(table, exact), 1, max(len(table) - 1, 1))
        near = [np.abs(table[np.minimum(i, len(table) - 1)] - exact) for i in (right - 1, right)]
        # coremltools computes in float16: four roundings to an evenly spaced entry's index, and two
        # to the table's step, each of up to half a HALF_STEP of the range, there and back.
        slack = 6 * HALF_STEP * (table[-1] - table[0])
        return np.asarray(np.minimum(*near) + room + slack)


@dataclass(frozen=True)
class Program:
    """A package's interface and computation.

    Attributes:
        inputs: arrays as they are, pictures as uint8 (1, H, W, C).
        outputs: arrays only.
        colour: "RGB", "BGR", "GRAYSCALE" of the image input; None for an array input.
        labels: class labels, if the program is a classifier.
        weights: the constants with more than one element.
        operations: type of every operation but constants, in order.
        feeds: operation -> the operations that take its results.
        affine: (scale, shift), each per channel, that the program itself applies to its input
            before anything else; None if it touches the input otherwise.
        convolutions: one (weight shape, strides, pads, dilations, groups) each.
        norms: epsilon of every layer normalization.
        gelus: mode of every GELU.
        precision: "fp16", "fp32", "int8", "palette4" and so on, from the weights.
        specification: version of the file format.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    colour: str | None
    labels: tuple[str, ...] | None
    weights: tuple[Weight, ...]
    operations: tuple[str, ...]
    feeds: dict[int, tuple[int, ...]]
    affine: tuple[NDArray[np.float64], NDArray[np.float64]] | None
    convolutions: Counter[tuple[Any, ...]]
    norms: tuple[float, ...]
    gelus: tuple[str, ...]
    precision: str
    specification: int = 0
    histogram: dict[str, int] = field(default_factory=dict)


def read_program(path: Path) -> Program:
    """Read a package.

    Raises:
        CorruptInputError: it is not a sound package.
        UnsupportedError: it holds something else than an ML program.
        MissingDependencyError: coremltools is not installed.
    """
    from vitlet.runtime.coreml.executor import MEMORY_LIMIT
    from vitlet.runtime.coreml.package import check_sizes
    from vitlet.runtime.coreml.quiet import quiet_coremltools

    with quiet_coremltools():
        ct: Any = require("coremltools", extra="coreml", why="read a Core ML program")
        from coremltools.converters.mil.frontend.milproto.load import load

        try:
            model = ct.models.MLModel(str(path), skip_model_load=True)
            spec = model.get_spec()
            kind = spec.WhichOneof("Type")
            if kind == "mlProgram":
                check_sizes(path, spec.mlProgram, MEMORY_LIMIT)
            program = kind == "mlProgram" and load(
                spec,
                specification_version=spec.specificationVersion,
                file_weights_dir=model.weights_dir,
            )
        except VitletError:
            raise
        except Exception as error:  # the reader raises anything, from C++ down to AssertionError
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CorruptInputError(f"{path} is not a sound Core ML package: {first}") from error
    if not program:
        raise UnsupportedError(f"{path} holds a {kind}, not an ML program: export it again")
    return _view(spec, program)


def _view(spec: Any, program: Any) -> Program:
    function = program.functions["main"]
    operations = [op for op in function.operations if op.op_type != "const"]
    number = {id(op): index for index, op in enumerate(operations)}
    inputs = tuple(_feature(entry) for entry in spec.description.input)
    pictures = [
        entry.type.imageType
        for entry in spec.description.input
        if entry.type.WhichOneof("Type") == "imageType"
    ]
    colour = _COLOURS.get(pictures[0].colorSpace, "unknown") if pictures else None
    outputs = tuple(
        _feature(entry)
        for entry in spec.description.output
        if entry.type.WhichOneof("Type") == "multiArrayType"
    )
    labels = None
    for op in operations:
        if op.op_type == "classify":
            labels = tuple(str(label) for label in np.asarray(op.classes.val).tolist())
    if labels is not None and not outputs:
        outputs = tuple(_dictionary(entry, len(labels)) for entry in spec.description.output[-1:])
    weights = tuple(_weights(function, number))
    histogram = Counter(op.op_type for op in operations)
    return Program(
        inputs,
        outputs,
        colour,
        labels,
        weights,
        tuple(op.op_type for op in operations),
        {
            index: tuple(
                number[id(child)]
                for result in op.outputs
                for child in result.child_ops
                if id(child) in number
            )
            for index, op in enumerate(operations)
        },
        _affine(function, pictures),
        Counter(_convolution(op) for op in operations if op.op_type == "conv"),
        tuple(sorted(_number(op.epsilon) for op in operations if op.op_type == "layer_norm")),
        tuple(sorted(str(op.mode.val) for op in operations if op.op_type == "gelu")),
        _precision(operations, weights),
        int(spec.specificationVersion),
        dict(sorted(histogram.items(), key=lambda item: (-item[1], item[0]))),
    )


def _feature(entry: Any) -> TensorSpec:
    kind = entry.type.WhichOneof("Type")
    if kind == "imageType":
        picture = entry.type.imageType
        channels = 1 if picture.colorSpace in (10, 40) else 3
        return TensorSpec(entry.name, "uint8", (1, picture.height, picture.width, channels))
    array = entry.type.multiArrayType
    sizes: list[int | str] = [int(size) for size in array.shape]
    ranges = list(array.shapeRange.sizeRanges)
    if ranges and ranges[0].lowerBound != ranges[0].upperBound:
        sizes[0] = "batch"
    return TensorSpec(entry.name, _ARRAYS.get(array.dataType, "unknown"), tuple(sizes))


def _dictionary(entry: Any, classes: int) -> TensorSpec:
    return TensorSpec(entry.name, "float32", (1, classes))


def _number(value: Any) -> float:
    return float(np.asarray(value.val))


def _convolution(op: Any) -> tuple[Any, ...]:
    def ints(value: Any, default: int) -> tuple[int, ...]:
        if value is None:
            return (default,) * (len(op.weight.shape) - 2)
        return tuple(int(v) for v in np.asarray(value.val).ravel())

    kernel = op.weight.shape[2:]
    kind = str(op.pad_type.val) if op.pad_type is not None else "valid"
    pads: tuple[Any, ...] = (0,) * (2 * len(kernel)) if kind == "valid" else (kind,)
    if kind == "custom":
        pads = ints(op.pad, 0)
    groups = int(op.groups.val) if op.groups is not None else 1
    shape = tuple(int(size) for size in op.weight.shape)
    return (shape, ints(op.strides, 1), pads, ints(op.dilations, 1), groups)


def _weights(function: Any, number: dict[int, int]) -> list[Weight]:
    """Return constants and decompressed constants that computing operations take."""
    found = []
    for op in function.operations:
        compressed = op.op_type.startswith("constexpr_")
        if op.op_type != "const" and not compressed:
            continue
        users = [child for child in op.outputs[0].child_ops if child.op_type != "const"]
        users = [child for child in users if not child.op_type.startswith("constexpr_")]
        if not users:
            continue
        # A loaded program gives no value for what it decompresses; ask the operation itself.
        raw = op.materialized_val_inference() if compressed else op.outputs[0].val
        if not isinstance(raw, np.ndarray) or raw.dtype.kind != "f" or raw.size < 2:
            continue
        relative = _SINGLE_STEP if raw.dtype == np.float32 else HALF_STEP
        values = raw.astype(np.float32)
        step, palette = _compression(op) if compressed else (0.0, None)
        numbers = tuple(number[id(child)] for child in users)
        found.append(Weight(op.outputs[0].name, values, numbers, step, relative, palette))
    return found


def _compression(op: Any) -> tuple[NDArray[np.float64] | float, NDArray[np.float64] | None]:
    """Return (largest error of rounding to the grid, palette) of a compressed constant."""
    if op.op_type == "constexpr_affine_dequantize":
        scale = np.asarray(op.scale.val, np.float64)
        if scale.ndim:
            shape = [1] * np.asarray(op.quantized_data.val).ndim
            shape[int(op.axis.val)] = -1
            scale = scale.reshape(shape)
        return np.asarray(np.abs(scale) / 2), None
    if op.op_type == "constexpr_blockwise_shift_scale":
        scale = np.abs(np.asarray(op.scale.val, np.float64))
        for axis, (whole, blocks) in enumerate(zip(op.data.shape, scale.shape, strict=True)):
            scale = scale.repeat(whole // blocks, axis=axis)
        return scale / 2, None
    if op.op_type == "constexpr_lut_to_dense":
        return 0.0, np.asarray(op.lut.val, np.float64).ravel()
    # Pruned to zero: nothing is known of how far a value may have been.
    raise UnsupportedError(f"{op.op_type} constants cannot be checked against the source")


def _precision(operations: list[Any], weights: tuple[Weight, ...]) -> str:
    kinds = Counter(op.op_type for op in operations if op.op_type.startswith("constexpr_"))
    if kinds["constexpr_lut_to_dense"]:
        largest = max(
            np.asarray(op.lut.val).size
            for op in operations
            if op.op_type == "constexpr_lut_to_dense"
        )
        return f"palette{4 if largest <= 16 else 6 if largest <= 64 else 8}"
    if kinds["constexpr_affine_dequantize"] or kinds["constexpr_blockwise_shift_scale"]:
        return "int8"
    halves = sum(weight.values.size for weight in weights if weight.relative == HALF_STEP)
    return "fp16" if 2 * halves > sum(weight.values.size for weight in weights) else "fp32"


def _affine(
    function: Any, pictures: list[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Follow the input through multiplications and additions by constants.

    Each channel becomes x * scale + shift; the walk ends at the first other operation.
    """
    variable = next(iter(function.inputs.values()))
    channels = int(variable.shape[1]) if len(variable.shape) == 4 else 1
    scale, shift = np.ones(channels), np.zeros(channels)
    while True:
        users = [op for op in variable.child_ops if op.op_type != "const"]
        if len(users) != 1:
            return scale, shift
        op = users[0]
        if op.op_type == "cast":
            variable = op.outputs[0]
            continue
        if op.op_type not in ("mul", "add", "sub", "real_div"):
            return scale, shift
        first = op.x.name == variable.name
        other = op.y if first else op.x
        if other.val is None:
            return (scale, shift) if pictures else None
        values = np.asarray(other.val, np.float64)
        if values.size not in (1, channels):
            return scale, shift
        values = np.broadcast_to(values.ravel(), (channels,))
        if op.op_type == "mul":
            scale, shift = scale * values, shift * values
        elif op.op_type == "add":
            shift = shift + values
        elif op.op_type == "sub":
            scale, shift = (scale, shift - values) if first else (-scale, values - shift)
        elif first:
            scale, shift = scale / values, shift / values
        else:
            return None
        variable = op.outputs[0]
