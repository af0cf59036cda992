"""Pictures sampled at computed places: grids, affine maps and boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from vitlet.errors import UnsupportedError
from vitlet.runtime.coreml.call import Call
from vitlet.runtime.coreml.table import op

_PADDING = ("constant", "border", "reflection", "symmetric")
_COORDINATES = ("unnormalized", "normalized_minus_one_to_one", "normalized_zero_to_one")
_BOXES = (
    "CORNERS_HEIGHT_FIRST",
    "CORNERS_WIDTH_FIRST",
    "CENTER_SIZE_HEIGHT_FIRST",
    "CENTER_SIZE_WIDTH_FIRST",
)


def _pixels(values: Tensor, size: int, kind: str, corners: bool) -> Tensor:
    """Bring one coordinate to pixels: 0 is the centre of the first, size - 1 of the last."""
    if kind == "unnormalized":
        return values.float()
    unit = values if kind == "normalized_zero_to_one" else (values + 1) / 2
    return unit * (size - 1) if corners else unit * size - 0.5


def _inside(places: Tensor, size: int, padding: str) -> tuple[Tensor, Tensor]:
    """Return (whole places in [0, size), which of them held a pixel before)."""
    known = (places >= 0) & (places < size)
    if padding in ("constant", "border"):
        return places.clamp(0, size - 1), known
    if padding == "reflection":
        period = max(2 * (size - 1), 1)
        places = places.remainder(period)
        return torch.where(places >= size, period - places, places), torch.ones_like(known)
    places = places.remainder(2 * size)
    return torch.where(places >= size, 2 * size - 1 - places, places), torch.ones_like(known)


def sampled(
    x: Tensor, rows: Tensor, columns: Tensor, nearest: bool, padding: str, value: float
) -> Tensor:
    """Sample x (B, C, H, W) at pixel places (B, h, w); returns (B, C, h, w)."""
    batch, channels, height, width = x.shape
    shape = [batch, channels, *rows.shape[1:]]
    # Far away, or not a number, is outside in any mode; integers must not overflow.
    rows, columns = (v.nan_to_num(-1e6).clamp(-1e6, 1e6) for v in (rows, columns))
    flat = x.reshape(batch, channels, -1)

    def at(row: Tensor, column: Tensor) -> Tensor:
        (row, here), (column, there) = (
            _inside(row.long(), height, padding),
            _inside(column.long(), width, padding),
        )
        places = (row * width + column).reshape(batch, 1, -1).expand(-1, channels, -1)
        picked = flat.gather(2, places).reshape(shape)
        if padding != "constant":
            return picked
        return torch.where((here & there)[:, None], picked, x.new_tensor(value))

    if nearest:
        return at(rows.round(), columns.round())
    top, left = rows.floor(), columns.floor()
    down, across = (rows - top)[:, None], (columns - left)[:, None]
    upper = at(top, left) * (1 - across) + at(top, left + 1) * across
    lower = at(top + 1, left) * (1 - across) + at(top + 1, left + 1) * across
    return upper * (1 - down) + lower * down


@op("resample")
def resample(call: Call) -> Tensor:
    """X (B, C, H, W) at coordinates (B, h, w, 2), which are (x, y)."""
    x, places = call["x"], call["coordinates"].float()
    kind = call.choice("coordinates_mode", None, _COORDINATES)
    nearest = call.choice("sampling_mode", None, ("bilinear", "nearest")) == "nearest"
    padding = call.choice("padding_mode", None, _PADDING)
    if x.ndim != 4 or places.ndim != 4 or places.shape[-1] != 2 or len(x) != len(places):
        raise call.bad(f"x of shape {tuple(x.shape)}, coordinates of {tuple(places.shape)}")
    call.room([*x.shape[:2], *places.shape[1:3]])
    corners = call.flag("align_corners")
    rows = _pixels(places[..., 1], x.shape[2], kind, corners)
    columns = _pixels(places[..., 0], x.shape[3], kind, corners)
    return sampled(x, rows, columns, nearest, padding, call.number("padding_value", 0.0))


@op("affine")
def affine(call: Call) -> Tensor:
    """X (B, C, H, W) under maps (B or 1, 6) from result to source coordinates in [-1, 1]."""
    x, maps = call["x"], call["transform_matrix"]
    call.choice("sampling_mode", "bilinear", ("bilinear",))
    call.choice("padding_mode", "constant", ("constant",))
    call.choice("coordinates_mode", _COORDINATES[1], (_COORDINATES[1],))
    if not call.flag("align_corners", True):
        raise UnsupportedError(f"affine at {call.place}: align_corners False is not defined")
    height, width = call.whole("output_height"), call.whole("output_width")
    call.room([*x.shape[:2], height, width])
    y = torch.linspace(-1, 1, height)[:, None] if height > 1 else torch.zeros(1, 1)
    x_axis = torch.linspace(-1, 1, width) if width > 1 else torch.zeros(1)
    a0, a1, a2, b0, b1, b2 = maps.expand(len(x), 6).T[:, :, None, None]
    columns = _pixels(a0 * x_axis + a1 * y + a2, x.shape[3], _COORDINATES[1], True)
    rows = _pixels(b0 * x_axis + b1 * y + b2, x.shape[2], _COORDINATES[1], True)
    return sampled(x, rows, columns, False, "constant", call.number("padding_value", 0.0))


def _span(low: Tensor, high: Tensor, count: int, mode: str) -> Tensor:
    """Return (N, count) sample places between two ends, each (N,)."""
    steps = torch.arange(count, dtype=torch.float32)
    low, high = low[:, None], high[:, None]
    if mode == "OFFSET_CORNERS":
        return low + (steps + 0.5) * (high - low) / count
    if count == 1:
        return (low + high) / 2 if mode == "ALIGN_CORNERS" else low.clone()
    return low + steps * (high - low) / (count - 1)


@op("crop_resize")
def crop_resize(call: Call) -> Tensor:
    """Boxes of pictures, each in one size, interpolated.

    From iOS 16 on places outside hold pad_value; before, those at the edge.
    The sampling modes whose grid depends on a box being made of whole pixels are refused.
    """
    x = call["x"]
    modes = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "OFFSET_CORNERS")
    mode = call.choice("sampling_mode", "DEFAULT", modes)
    order = call.choice("box_coordinate_mode", _BOXES[0], _BOXES)
    height, width = call.whole("target_height", 1), call.whole("target_width", 1)
    old = call.args.get("boxes") is None
    every = False
    if old:
        boxes = call["roi"].reshape(len(call["roi"]), -1)
        every = boxes.shape[1] == 4
        owners = None if every else boxes[:, 0].long()
        boxes = boxes[:, -4:]
    else:
        boxes = call["boxes"].float()
        given = call.get("box_indices")
        owners = torch.arange(len(boxes)) if given is None else given.long()
    if every:
        owners = torch.arange(len(x)).repeat(len(boxes))
        boxes = boxes.repeat_interleave(len(x), 0)
    assert owners is not None
    if owners.numel() and not (int(owners.min()) >= 0 and int(owners.max()) < len(x)):
        raise call.bad(f"a box of picture {int(owners.max())} among {len(x)}")
    call.room([len(boxes), x.shape[1], height, width])
    top, left, bottom, right = _corners(boxes, order)
    down, across = (
        (x.shape[2] - 1, x.shape[3] - 1)
        if call.flag("normalized_coordinates")
        else (
            1,
            1,
        )
    )
    factor = call.number("spatial_scale", 1.0)
    rows = _span(top * down * factor, bottom * down * factor, height, mode)
    columns = _span(left * across * factor, right * across * factor, width, mode)
    shape = (len(boxes), height, width)
    rows, columns = rows[:, :, None].expand(shape), columns[:, None, :].expand(shape)
    picked = x.index_select(0, owners)
    y = sampled(picked, rows, columns, False, "border", 0.0)
    value = call.get("pad_value")
    if value is not None or not old:
        outside = (rows < 0) | (rows > x.shape[2] - 1)
        outside |= (columns < 0) | (columns > x.shape[3] - 1)
        y = torch.where(outside[:, None], y.new_tensor(call.number("pad_value", 0.0)), y)
    if old:
        return y.reshape(-1, len(x) if every else 1, *y.shape[1:])
    return y


def _corners(boxes: Tensor, order: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (top, left, bottom, right), each (N,)."""
    a, b, c, d = boxes.T
    if order.endswith("WIDTH_FIRST"):
        a, b, c, d = b, a, d, c
    if order.startswith("CORNERS"):
        return a, b, c, d
    return a - c / 2, b - d / 2, a + c / 2, b + d / 2
