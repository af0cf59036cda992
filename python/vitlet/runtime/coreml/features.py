"""A program's inputs and outputs as apps see them, and arrays on their way in and out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vitlet.errors import CorruptInputError, ShapeError, UnsupportedError

_ARRAYS = {65568: "float32", 65552: "float16", 131104: "int32", 65600: "float64"}
_COLOURS = {10: "GRAYSCALE", 20: "RGB", 30: "BGR", 40: "GRAYSCALE_FLOAT16"}
Bound = tuple[int, int | None]


@dataclass(frozen=True)
class Feature:
    """One input or output.

    Attributes:
        name: in the program.
        kind: "array", "image", "label" (the best class) or "scores" (class -> probability).
        dtype: of an array, or of a picture's pixels; "" for labels and scores.
        shape: the default shape; (H, W) or (H, W, 3) for a picture.
        ranges: (lowest, highest or None) per axis of `shape`, where any size between will do.
        choices: shapes of which one will do; empty where `ranges` counts.
        colour: "RGB", "BGR", "GRAYSCALE" or "GRAYSCALE_FLOAT16" of a picture.
        default: what an array that is not given is filled with; None if it must be given.
    """

    name: str
    kind: Literal["array", "image", "label", "scores"]
    dtype: str = ""
    shape: tuple[int, ...] = ()
    ranges: tuple[Bound, ...] = ()
    choices: tuple[tuple[int, ...], ...] = ()
    colour: str = ""
    default: float | None = None

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a value of this shape is taken."""
        if self.choices:
            return tuple(shape) in self.choices
        return len(shape) == len(self.ranges) and all(
            low <= size and (high is None or size <= high)
            for size, (low, high) in zip(shape, self.ranges, strict=True)
        )

    def spell(self) -> str:
        """Return name, type and shapes for a message."""
        if self.choices:
            shapes = " or ".join(str(shape) for shape in self.choices)
        else:
            sizes = [
                str(low) if low == high else f"{low} to {'any' if high is None else high}"
                for low, high in self.ranges
            ]
            shapes = f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
        if self.kind == "image":
            return f"{self.name}: a {self.colour} picture of {self.dtype} {shapes}"
        return f"{self.name}: {self.dtype} {shapes}"


def read_feature(entry: Any, variable: Any = None) -> Feature:
    """Make a feature of its description.

    Args:
        entry: the protobuf description.
        variable: the program's input of that name; its shape counts where none is described.

    Raises:
        UnsupportedError: an input or output of another kind.
    """
    kind = entry.type.WhichOneof("Type")
    if kind == "imageType":
        return _picture(entry.name, entry.type.imageType)
    if kind == "multiArrayType":
        return _array(entry, variable)
    if kind in ("stringType", "int64Type"):
        return Feature(entry.name, "label")
    if kind == "dictionaryType":
        return Feature(entry.name, "scores")
    raise UnsupportedError(f"{entry.name} is a {kind}: only arrays, pictures and classes are taken")


def _array(entry: Any, variable: Any) -> Feature:
    array = entry.type.multiArrayType
    shape = tuple(int(size) for size in array.shape)
    flexible = array.WhichOneof("ShapeFlexibility")
    choices: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[Bound, ...] = tuple((size, size) for size in shape)
    if flexible == "enumeratedShapes":
        choices = tuple(tuple(int(s) for s in c.shape) for c in array.enumeratedShapes.shapes)
    elif flexible == "shapeRange":
        ranges = tuple(_bound(size) for size in array.shapeRange.sizeRanges)
    elif not shape and variable is not None:
        sizes = [int(s) if isinstance(s, int | np.integer) else None for s in variable.shape]
        ranges = tuple((0, None) if size is None else (size, size) for size in sizes)
        shape = tuple(size or 1 for size in sizes)
    default = None
    which = array.WhichOneof("defaultOptionalValue")
    if entry.type.isOptional:
        default = float(getattr(array, which)) if which else 0.0
    dtype = _ARRAYS.get(array.dataType)
    if dtype is None:
        raise UnsupportedError(f"{entry.name} has the unknown element type {array.dataType}")
    return Feature(entry.name, "array", dtype, shape, ranges, choices, default=default)


def _picture(name: str, picture: Any) -> Feature:
    colour = _COLOURS.get(picture.colorSpace)
    if colour is None:
        raise UnsupportedError(f"{name} has the unknown colour space {picture.colorSpace}")
    channels: tuple[int, ...] = (3,) if colour in ("RGB", "BGR") else ()
    dtype = "float16" if colour == "GRAYSCALE_FLOAT16" else "uint8"
    shape = (int(picture.height), int(picture.width), *channels)
    fixed = tuple((size, size) for size in channels)
    flexible = picture.WhichOneof("SizeFlexibility")
    if flexible == "enumeratedSizes":
        sizes = tuple(
            (int(s.height), int(s.width), *channels) for s in picture.enumeratedSizes.sizes
        )
        return Feature(name, "image", dtype, shape, choices=sizes, colour=colour)
    if flexible == "imageSizeRange":
        allowed = picture.imageSizeRange
        ranges = (_bound(allowed.heightRange), _bound(allowed.widthRange), *fixed)
        return Feature(name, "image", dtype, shape, ranges, colour=colour)
    plain = (*((size, size) for size in shape[:2]), *fixed)
    return Feature(name, "image", dtype, shape, plain, colour=colour)


def _bound(sizes: Any) -> Bound:
    high = int(sizes.upperBound)
    return int(sizes.lowerBound), None if high < 0 else high


def check_names(feeds: dict[str, Any], features: Sequence[Feature]) -> None:
    """Compare the names of what is fed with what is asked for.

    Raises:
        ShapeError: one is missing or too many.
    """
    needed = {feature.name for feature in features if feature.default is None}
    if not needed <= set(feeds) <= {feature.name for feature in features}:
        listed = "; ".join(feature.spell() for feature in features)
        raise ShapeError(f"expected the inputs {listed}; got {', '.join(feeds) or 'none'}")


def to_tensor(value: Any, feature: Feature) -> Any:
    """Return an input as a program's float32 or int32 tensor.

    Args:
        value: an array of the feature's type; for a picture also a Pillow image or an array
            (1, H, W, C). Pictures are RGB: a program that wants BGR gets them turned.
        feature: what is asked for. None stands for an optional array that is not given.

    Raises:
        ShapeError: another type or shape.
    """
    import torch

    if value is None and feature.default is not None:
        kind = torch.int32 if feature.dtype == "int32" else torch.float32
        return torch.full(feature.shape, feature.default, dtype=kind)
    if feature.kind == "image":
        return _pixels(value, feature)
    _check_array(value, feature, value)
    return torch.from_numpy(np.array(value, "int32" if feature.dtype == "int32" else "float32"))


def _check_array(value: Any, feature: Feature, given: Any) -> None:
    if not isinstance(value, np.ndarray):
        raise ShapeError(f"expected {feature.spell()}; got {type(given).__name__}")
    if str(value.dtype) != feature.dtype or not feature.fits(value.shape):
        raise ShapeError(f"expected {feature.spell()}; got {value.dtype} {value.shape}")


def _pixels(value: Any, feature: Feature) -> Any:
    import torch

    grey = feature.colour.startswith("GRAYSCALE")
    pixels = value
    if hasattr(value, "convert") and hasattr(value, "getbands"):  # a Pillow image
        pixels = np.asarray(value.convert("L" if grey else "RGB"))
        pixels = pixels.astype(feature.dtype)
    if isinstance(pixels, np.ndarray):
        if pixels.ndim == 4 and len(pixels) == 1:
            pixels = pixels[0]
        if grey and pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[:, :, 0]
    _check_array(pixels, feature, value)
    planes = pixels[None] if grey else pixels.transpose(2, 0, 1)
    if feature.colour == "BGR":
        planes = planes[::-1]
    return torch.from_numpy(np.array(planes[None], np.float32))


def from_value(value: Any, feature: Feature) -> Any:
    """Return an output as apps get it: an array, a class, or a dictionary of probabilities.

    A picture comes back as RGB or grey pixels (H, W, 3) or (H, W), rounded and cut to 0..255.

    Raises:
        CorruptInputError: the program's result is of another kind than its description says.
    """
    if feature.kind in ("label", "scores"):
        if hasattr(value, "numpy"):
            raise CorruptInputError(f"{feature.name} is described as a class, and is an array")
        return value
    if not hasattr(value, "numpy"):
        raise CorruptInputError(f"{feature.name} is described as an array, and is none")
    array = value.numpy()
    if feature.kind == "array":
        with np.errstate(over="ignore"):
            return np.array(array, dtype=feature.dtype)
    planes = array.reshape(-1, *array.shape[-2:])
    if len(planes) != (1 if feature.colour.startswith("GRAYSCALE") else 3):
        raise CorruptInputError(f"{feature.name} of shape {array.shape} is no {feature.colour}")
    if feature.colour == "BGR":
        planes = planes[::-1]
    if feature.dtype == "uint8":
        planes = np.clip(np.rint(np.nan_to_num(planes)), 0, 255)
    planes = planes.astype(feature.dtype)
    return np.ascontiguousarray(planes[0] if len(planes) == 1 else planes.transpose(1, 2, 0))
