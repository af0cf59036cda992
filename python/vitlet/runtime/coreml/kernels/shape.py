"""The same values in another shape or order."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from vitlet.runtime.coreml.call import Call
from vitlet.runtime.coreml.table import op


@op("shape")
def shape(call: Call) -> Tensor:
    """The sizes of x."""
    return torch.tensor([*call["x"].shape], dtype=torch.int32)


@op("reshape")
def reshape(call: Call) -> Tensor:
    """Another shape; 0 keeps the size of the same axis, -1 takes what is left."""
    x, sizes = call["x"], call.ints("shape")
    if 0 in sizes and len(sizes) == x.ndim:
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


@op("reshape_like")
def reshape_like(call: Call) -> Tensor:
    """A shape put together from parts of other tensors' shapes."""
    sizes: list[int] = []
    for value, begin, end, mask in zip(
        call.tensors("ref_tensors"),
        call.tensors("begins"),
        call.tensors("ends"),
        call.tensors("end_masks"),
        strict=True,
    ):
        sizes += value.shape[int(begin) : None if bool(mask) else int(end)]
    return call["x"].reshape(sizes)


@op("flatten2d")
def flatten2d(call: Call) -> Tensor:
    """Two axes: all before `axis` and the rest."""
    x, axis = call["x"], call.whole("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@op("expand_dims")
def expand_dims(call: Call) -> Tensor:
    """New axes of size 1; `axes` are places in the result."""
    x, axes = call["x"], call.ints("axes")
    rank = x.ndim + len(axes)
    for axis in sorted(call.wrap_axis(axis, rank) for axis in axes):
        x = x.unsqueeze(axis)
    return x


@op("squeeze")
def squeeze(call: Call) -> Tensor:
    """Without the given axes, or without all of size 1."""
    x = call["x"]
    if call.args.get("axes") is None:
        return x.squeeze()
    axes = {call.wrap_axis(axis, x.ndim) for axis in call.ints("axes")}
    if any(x.shape[axis] != 1 for axis in axes):
        raise call.bad(f"axes {sorted(axes)} of shape {tuple(x.shape)} are not all 1")
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in axes])


@op("transpose")
def transpose(call: Call) -> Tensor:
    """The axes in another order."""
    x = call["x"]
    return x.permute([call.wrap_axis(axis, x.ndim) for axis in call.ints("perm")])


@op("reverse")
def reverse(call: Call) -> Tensor:
    """Some or all axes backwards."""
    x = call["x"]
    return x.flip([call.wrap_axis(axis, x.ndim) for axis in call.ints("axes", [*range(x.ndim)])])


@op("reverse_sequence")
def reverse_sequence(call: Call) -> Tensor:
    """The first lengths[i] elements of row i backwards."""
    x, lengths = call["x"], call.ints("lengths")
    along = call.axis("seq_axis", 0)
    rows = call.axis("batch_axis", 0)
    if len(lengths) != x.shape[rows] or not all(0 <= n <= x.shape[along] for n in lengths):
        raise call.bad(f"lengths {lengths} for shape {tuple(x.shape)}")
    y = x.clone()
    for row, length in enumerate(lengths):
        part = y.narrow(rows, row, 1).narrow(along, 0, length)
        part.copy_(part.flip(along))
    return y


def _blocks(call: Call, name: str) -> tuple[Tensor, int]:
    x, block = call["x"], call.whole(name)
    if x.ndim < 3 or block < 1:
        raise call.bad(f"blocks of {block} in x of {x.ndim} axes")
    return x, block


@op("pixel_shuffle")
def pixel_shuffle(call: Call) -> Tensor:
    """Channels into pixels, channel-major (C r r, H, W) -> (C, H r, W r)."""
    return functional.pixel_shuffle(*_blocks(call, "upscale_factor"))


@op("pixel_unshuffle")
def pixel_unshuffle(call: Call) -> Tensor:
    """Pixels into channels, the reverse of pixel_shuffle."""
    return functional.pixel_unshuffle(*_blocks(call, "downscale_factor"))


@op("depth_to_space")
def depth_to_space(call: Call) -> Tensor:
    """Channels into pixels, block-major (r r C, H, W) -> (C, H r, W r)."""
    x, block = _blocks(call, "block_size")
    n, c, h, w = x.shape
    y = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(n, c // block**2, h * block, w * block)


@op("space_to_depth")
def space_to_depth(call: Call) -> Tensor:
    """Pixels into channels, the reverse of depth_to_space."""
    x, block = _blocks(call, "block_size")
    n, c, h, w = x.shape
    y = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return y.reshape(n, c * block**2, h // block, w // block)


@op("space_to_batch")
def space_to_batch(call: Call) -> Tensor:
    """Every block_shape-th pixel becomes an image of its own, after zero padding."""
    x, (down, across) = call["x"], call.ints("block_shape")
    top, bottom, left, right = call.ints("paddings")
    x = functional.pad(x, (left, right, top, bottom))
    n, c, h, w = x.shape
    y = x.reshape(n, c, h // down, down, w // across, across).permute(3, 5, 0, 1, 2, 4)
    return y.reshape(down * across * n, c, h // down, w // across)


@op("batch_to_space")
def batch_to_space(call: Call) -> Tensor:
    """The reverse of space_to_batch."""
    x, (down, across) = call["x"], call.ints("block_shape")
    top, bottom, left, right = call.ints("crops")
    n, c, h, w = x.shape
    n = n // (down * across)
    y = x.reshape(down, across, n, c, h, w).permute(2, 3, 4, 0, 5, 1)
    y = y.reshape(n, c, h * down, w * across)
    return y[:, :, top : h * down - bottom, left : w * across - right]


@op("sliding_windows")
def sliding_windows(call: Call) -> Tensor:
    """All windows of a size along an axis; the window is a new axis after it."""
    x, axis, size = call["x"], call.axis(), call.whole("size")
    y = x.unfold(axis, size, call.whole("stride", 1))
    return y.movedim(-1, axis + 1)
