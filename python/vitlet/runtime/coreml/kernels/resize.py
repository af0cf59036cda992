"""Pictures in another size. How a grid of samples lies over the pixels has five conventions."""

from __future__ import annotations

import torch
from torch import Tensor

from vitlet.runtime.coreml.call import Call
from vitlet.runtime.coreml.table import op

MODES = ("DEFAULT", "STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "OFFSET_CORNERS", "UNALIGN_CORNERS")


def grid(size: int, count: int, mode: str) -> Tensor:
    """Return where along `size` pixels `count` samples lie, (count,) float64 in [0, size - 1]."""
    steps = torch.arange(count, dtype=torch.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if count == 1:
            middle = (size - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0
            return torch.full([1], middle, dtype=torch.float64)
        places = steps * (size - 1) / (count - 1)
    elif mode == "DEFAULT":
        places = steps * size / count
    elif mode == "OFFSET_CORNERS":
        places = (steps + 0.5) * max(1, size - 1) / count
    else:
        places = (steps + 0.5) * size / count - 0.5
    return places.clamp(0, max(size - 1, 0))


def linear_along(x: Tensor, axis: int, places: Tensor) -> Tensor:
    """Interpolate between neighbours along an axis."""
    if x.shape[axis] == 0:
        return x.index_select(axis, places.long())
    low = places.floor().long().clamp(max=x.shape[axis] - 1)
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    shape = [-1] + [1] * (x.ndim - axis - 1)
    share = (places - low).float().reshape(shape)
    return x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share


def nearest_along(x: Tensor, axis: int, count: int, mode: str = "DEFAULT") -> Tensor:
    """Take the pixel that a sample falls into; in DEFAULT mode the one at or before it."""
    size = x.shape[axis]
    if mode == "DEFAULT":
        places = torch.arange(count) * size // max(count, 1)
    else:
        places = (grid(size, count, mode) + 0.5).floor().long()
    return x.index_select(axis, places.clamp(0, max(size - 1, 0)))


def _last_two(call: Call, height: int, width: int) -> Tensor:
    x = call["x"]
    if x.ndim < 3 or height < 0 or width < 0:
        raise call.bad(f"x of shape {tuple(x.shape)} in size ({height}, {width})")
    call.room([*x.shape[:-2], height, width])
    return x


def _bilinear(call: Call, height: int, width: int, mode: str) -> Tensor:
    x = _last_two(call, height, width)
    x = linear_along(x, x.ndim - 2, grid(x.shape[-2], height, mode))
    return linear_along(x, x.ndim - 1, grid(x.shape[-1], width, mode))


def _nearest(call: Call, height: int, width: int) -> Tensor:
    x = _last_two(call, height, width)
    return nearest_along(nearest_along(x, x.ndim - 2, height), x.ndim - 1, width)


def _scaled(call: Call) -> tuple[int, int]:
    h, w = call["x"].shape[-2:]
    # float16 factors such as 1.5 are exact; what is not may land a hair below a whole number.
    return (
        int(h * call.number("scale_factor_height", 1.0) + 1e-4),
        int(w * call.number("scale_factor_width", 1.0) + 1e-4),
    )


@op("resize_bilinear")
def resize_bilinear(call: Call) -> Tensor:
    """The last two axes in a given size, interpolated."""
    height, width = call.whole("target_size_height", 1), call.whole("target_size_width", 1)
    return _bilinear(call, height, width, call.choice("sampling_mode", "DEFAULT", MODES))


@op("upsample_bilinear")
def upsample_bilinear(call: Call) -> Tensor:
    """The last two axes scaled, interpolated; the exact scale is that of the sizes."""
    corners = call.flag("align_corners", True)
    half_pixel = call.flag("half_pixel_centers", not corners)
    if corners and half_pixel:
        raise call.bad("align_corners with half_pixel_centers")
    mode = "STRICT_ALIGN_CORNERS" if corners else "UNALIGN_CORNERS" if half_pixel else "DEFAULT"
    return _bilinear(call, *_scaled(call), mode)


@op("resize_nearest_neighbor")
def resize_nearest_neighbor(call: Call) -> Tensor:
    """The last two axes in a given size, by pixels repeated or left out."""
    return _nearest(call, call.whole("target_size_height"), call.whole("target_size_width"))


@op("upsample_nearest_neighbor")
def upsample_nearest_neighbor(call: Call) -> Tensor:
    """The last two axes scaled, by pixels repeated or left out."""
    return _nearest(call, *_scaled(call))


@op("resize")
def resize(call: Call) -> Tensor:
    """The last `resized_dims` axes in given sizes; 0 keeps one (iOS 17)."""
    x, sizes, count = call["x"], call.ints("shape"), call.whole("resized_dims")
    kind = call.choice("interpolation_mode", "LINEAR", ("LINEAR", "NEAREST_NEIGHBOR"))
    mode = call.choice("sampling_mode", "DEFAULT", MODES)
    if not 0 <= count <= min(len(sizes), x.ndim):
        raise call.bad(f"{count} axes of {x.ndim} by {len(sizes)} sizes")
    first = x.ndim - count
    target = [
        size or whole
        for size, whole in zip(sizes[len(sizes) - count :], x.shape[first:], strict=True)
    ]
    call.room([*x.shape[:first], *target])
    for axis, size in enumerate(target, first):
        if size == x.shape[axis]:
            continue
        if kind == "LINEAR":
            x = linear_along(x.float(), axis, grid(x.shape[axis], size, mode))
        else:
            x = nearest_along(x, axis, size, mode)
    return x
