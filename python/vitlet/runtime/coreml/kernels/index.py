"""Slices and gathers. A place outside is an error, whatever `validate_indices` says.

Places below zero count from the end. From iOS 17 on they are undefined on a device; programs that
coremltools makes convert them first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitlet.runtime.coreml.call import Call
from vitlet.runtime.coreml.table import op


def wrapped(call: Call, places: Tensor, size: int) -> Tensor:
    """Return places counted from the front, int64.

    Raises:
        CorruptInputError: one lies outside.
    """
    places = places.long()
    if places.numel() and not (-size <= int(places.min()) and int(places.max()) < size):
        raise call.bad(f"places {int(places.min())} to {int(places.max())} of {size} values")
    return torch.where(places < 0, places + size, places)


def slices(call: Call) -> list[range | int]:
    """Return, per axis of x, the places of a slice, or the one place of an axis that goes."""
    x = call["x"]
    rank = x.ndim
    begin, end = call.ints("begin"), call.ints("end")
    stride = call.ints("stride", [1] * rank)
    from_start, to_end = call.flags("begin_mask", rank), call.flags("end_mask", rank)
    gone = call.flags("squeeze_mask", rank)
    if {len(part) for part in (begin, end, stride, from_start, to_end, gone)} != {rank}:
        raise call.bad(f"a slice of other than the {rank} axes")
    found: list[range | int] = []
    for axis, size in enumerate(x.shape):
        if gone[axis]:
            place = 0 if from_start[axis] else begin[axis]
            if not -size <= place < size:
                raise call.bad(f"place {place} of {size} values")
            found.append(place % size)
            continue
        if stride[axis] == 0:
            raise call.bad("a stride of 0")
        first = None if from_start[axis] else begin[axis]
        last = None if to_end[axis] else end[axis]
        found.append(range(size)[first : last : stride[axis]])
    return found


@op("slice_by_index")
def slice_by_index(call: Call) -> Tensor:
    """x[begin:end:stride] as in numpy."""
    x, kept = call["x"], []
    for axis, places in enumerate(slices(call)):
        if isinstance(places, int):
            x = x.narrow(axis, places, 1)
            continue
        kept.append(axis)
        if places.step > 0 or len(places) < 2:
            start = places.start if len(places) else 0
            stop = start + len(places) * abs(places.step)
            cut: list[slice] = [slice(None)] * x.ndim
            cut[axis] = slice(start, max(stop - abs(places.step) + 1, start), abs(places.step))
            x = x[tuple(cut)]
        else:
            x = x.index_select(axis, torch.tensor([*places]))
    return x.reshape([x.shape[axis] for axis in kept])


@op("slice_update")
def slice_update(call: Call) -> Tensor:
    """A copy of x with x[begin:end:stride] replaced."""
    x, update = call["x"].clone(), call["update"]
    grid = [[place] if isinstance(place, int) else [*place] for place in slices(call)]
    shape = [len(places) for places in grid]
    index = torch.meshgrid(*(torch.tensor(p, dtype=torch.long) for p in grid), indexing="ij")
    x[index] = update.reshape(shape)
    return x


@op("slice_by_size")
def slice_by_size(call: Call) -> Tensor:
    """A block of given begin and size; a size of -1 goes to the end."""
    x, begins, sizes = call["x"], call.ints("begin"), call.ints("size")
    if len(begins) != x.ndim or len(sizes) != x.ndim:
        raise call.bad(f"a block of other than the {x.ndim} axes")
    for axis, (begin, size) in enumerate(zip(begins, sizes, strict=True)):
        whole = x.shape[axis]
        begin = begin + whole if begin < 0 else begin
        size = whole - begin if size == -1 else size
        if begin < 0 or size < 0 or begin + size > whole:
            raise call.bad(f"{size} values from {begin} of {whole}")
        x = x.narrow(axis, begin, size)
    return x


@op("crop")
def crop(call: Call) -> Tensor:
    """Without some rows and columns at the edges."""
    x = call["x"]
    (top, bottom), (left, right) = call.ints("crop_height"), call.ints("crop_width")
    h, w = x.shape[-2:]
    if min(top, bottom, left, right) < 0 or top + bottom > h or left + right > w:
        raise call.bad(f"{top}, {bottom} rows and {left}, {right} columns off {h} x {w}")
    return x[..., top : h - bottom, left : w - right]


@op("gather")
def gather(call: Call) -> Tensor:
    """Slices of an axis at places; the first batch_dims axes of both go together."""
    x, places = call["x"], call["indices"]
    axis, batch = call.axis(default=0), call.whole("batch_dims", 0)
    if not 0 <= batch <= min(axis, places.ndim) or x.shape[:batch] != places.shape[:batch]:
        raise call.bad(f"{batch} batch axes of {tuple(x.shape)} and {tuple(places.shape)}")
    places = wrapped(call, places, x.shape[axis])
    shape = [*x.shape[:axis], *places.shape[batch:], *x.shape[axis + 1 :]]
    call.room(shape)
    if batch == 0:
        return x.index_select(axis, places.reshape(-1)).reshape(shape)
    rows = x.flatten(0, batch - 1)
    picked = places.flatten(0, batch - 1).flatten(1)
    parts = [row.index_select(axis - batch, at) for row, at in zip(rows, picked, strict=True)]
    return (torch.stack(parts) if parts else x.new_empty(shape)).reshape(shape)


@op("gather_along_axis")
def gather_along_axis(call: Call) -> Tensor:
    """One element of the axis per place; x and places differ only in that axis."""
    x, axis = call["x"], call.axis(default=0)
    return torch.gather(x, axis, wrapped(call, call["indices"], x.shape[axis]))


@op("gather_nd")
def gather_nd(call: Call) -> Tensor:
    """Slices at places whose coordinates are the last axis of the indices."""
    x, places, batch = call["x"], call["indices"], call.whole("batch_dims", 0)
    depth = places.shape[-1]
    if batch + depth > x.ndim or x.shape[:batch] != places.shape[:batch]:
        raise call.bad(f"{depth} coordinates after {batch} batch axes of {tuple(x.shape)}")
    coordinates = [wrapped(call, places[..., part], x.shape[batch + part]) for part in range(depth)]
    rest = places.ndim - 1 - batch
    leading = [
        torch.arange(x.shape[axis]).reshape([-1] + [1] * (batch - axis - 1 + rest))
        for axis in range(batch)
    ]
    call.room([*places.shape[:-1], *x.shape[batch + depth :]])
    return x[tuple(leading + coordinates)]
