"""Plants errors in the weights of an `.mlpackage`."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlet.runtime.coreml.quiet import quiet_coremltools

Random = np.random.Generator


@dataclass(frozen=True)
class Stored:
    """A weight in the file: the parameter that it is, and where its numbers lie."""

    parameter: str
    shape: tuple[int, ...]
    dtype: type[Any]
    start: int

    @property
    def layer(self) -> str:
        return self.parameter.rpartition(".")[0]


class Package:
    """A copy of a package, whose uncompressed weights can be written over.

    `parameters` are the source's; coremltools names a weight "p_" and the parameter's name with
    underscores, and our wrappers add "module".
    """

    def __init__(self, original: Path, copy: Path, parameters: list[str]) -> None:
        shutil.copytree(original, copy)
        self._file = copy / "Data/com.apple.CoreML/weights/weight.bin"
        names = {
            f"p_{outer}{name.replace('.', '_')}": name
            for name in parameters
            for outer in ("", "module_")
        }
        with quiet_coremltools():
            from coremltools.proto import Model_pb2

        model = Model_pb2.Model()
        model.ParseFromString((copy / "Data/com.apple.CoreML/model.mlmodel").read_bytes())
        (block,) = model.mlProgram.functions["main"].block_specializations.values()
        blob = self._file.read_bytes()
        self.weights: list[Stored] = []
        for operation in block.operations:
            if operation.type != "const" or not operation.attributes["val"].HasField(
                "blobFileValue"
            ):
                continue
            kind = operation.outputs[0].type.tensorType
            name = operation.outputs[0].name.removesuffix("_to_fp16")
            if name not in names or kind.dataType not in (10, 11):
                continue
            at = operation.attributes["val"].blobFileValue.offset
            sentinel, _, _, start = struct.unpack_from("<IIQQ", blob, at)
            assert sentinel == 0xDEADBEEF
            shape = tuple(d.constant.size for d in kind.dimensions)
            dtype = np.float16 if kind.dataType == 10 else np.float32
            self.weights.append(Stored(names[name], shape, dtype, start))

    def read(self, weight: Stored) -> NDArray[Any]:
        blob, count = self._file.read_bytes(), int(np.prod(weight.shape))
        flat = np.frombuffer(blob, weight.dtype, count, weight.start)
        return flat.reshape(weight.shape).copy()

    def write(self, weight: Stored, values: NDArray[Any]) -> None:
        blob = bytearray(self._file.read_bytes())
        data = np.ascontiguousarray(values, weight.dtype).tobytes()
        blob[weight.start : weight.start + len(data)] = data
        self._file.write_bytes(blob)

    def pick(self, random: Random, fits: Callable[[Stored], bool]) -> Stored:
        fitting = [weight for weight in self.weights if fits(weight)]
        return fitting[int(random.integers(len(fitting)))]


def flip(package: Package, random: Random, mask: Callable[[int], int]) -> Stored:
    """Change bits of one element, among the larger half of one convolution's or linear layer's.

    `mask` gives the bits from the number of mantissa bits: 10 or 23.
    """
    weight = package.pick(random, lambda w: w.parameter.endswith("weight") and len(w.shape) > 1)
    values = package.read(weight)
    large = np.flatnonzero(np.abs(values).ravel() >= np.median(np.abs(values)))
    place = int(large[random.integers(len(large))])
    half = weight.dtype is np.float16
    bits = values.ravel().view(np.uint16 if half else np.uint32)
    bits[place] ^= mask(10 if half else 23)
    package.write(weight, values)
    return weight


def wrong_bias(package: Package, random: Random) -> Stored:
    """Give every channel its neighbour's bias."""
    weight = package.pick(random, lambda w: w.parameter.endswith("bias") and w.shape[0] > 8)
    package.write(weight, np.roll(package.read(weight), 1))
    return weight


def swapped_axes(package: Package, random: Random) -> Stored:
    """Swap height and width of a convolution's kernel, or rows and columns of a square matrix."""

    def fits(weight: Stored) -> bool:
        return len(weight.shape) in (2, 4) and weight.shape[-1] == weight.shape[-2] > 1

    weight = package.pick(random, fits)
    package.write(weight, package.read(weight).swapaxes(-1, -2))
    return weight


PLANTS: dict[str, Callable[[Package, Random], Stored]] = {
    "sign": lambda p, r: flip(p, r, lambda mantissa: 0x8000 if mantissa == 10 else 1 << 31),
    "exponent": lambda p, r: flip(p, r, lambda mantissa: 1 << (mantissa + 2)),
    "mantissa": lambda p, r: flip(p, r, lambda mantissa: 1 << (mantissa - 1)),
    "byte": lambda p, r: flip(p, r, lambda mantissa: 0xFF << (8 if mantissa == 10 else 24)),
    "bias": wrong_bias,
    "axes": swapped_axes,
}
