"""Making, joining, cutting, sorting and padding of tensors; class labels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vitlet.runtime.coreml.call import Call
from vitlet.runtime.coreml.table import op


def filled(call: Call, shape: Sequence[int], like: Tensor | None) -> Tensor:
    """Return a tensor of one value (an argument, by default 0)."""
    call.room(shape)
    kind = torch.float32 if like is None else like.dtype
    value = 0.0 if like is None else like.reshape(-1)[0].item()
    return torch.full([*shape], value, dtype=kind)


@op("fill")
def fill(call: Call) -> Tensor:
    """A value everywhere."""
    return filled(call, call.ints("shape"), call.get("value"))


@op("fill_like")
def fill_like(call: Call) -> Tensor:
    """A value everywhere, in another tensor's shape."""
    return filled(call, call["ref_tensor"].shape, call.get("value"))


@op("concat")
def concat(call: Call) -> Tensor:
    """Values one after the other along an axis, or dealt in turn (interleaved)."""
    values = call.tensors("values")
    axis = call.axis(rank=values[0].ndim)
    if not call.flag("interleave"):
        return torch.cat(values, axis)
    if len({value.shape for value in values}) > 1:
        raise call.bad("interleaved values of different shapes")
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


@op("stack")
def stack(call: Call) -> Tensor:
    """Values along a new axis."""
    values = call.tensors("values")
    return torch.stack(values, call.axis(rank=values[0].ndim + 1))


@op("split")
def split(call: Call) -> tuple[Tensor, ...]:
    """Pieces of an axis, of given sizes or as many equal ones."""
    x = call["x"]
    axis = call.axis()
    if call.args.get("split_sizes") is not None:
        sizes = call.ints("split_sizes")
    else:
        count = call.whole("num_splits")
        if count < 1 or x.shape[axis] % count:
            raise call.bad(f"{count} equal pieces of {x.shape[axis]}")
        sizes = [x.shape[axis] // count] * count
    if sum(sizes) != x.shape[axis]:
        raise call.bad(f"pieces of {sizes} from {x.shape[axis]}")
    starts = itertools.accumulate(sizes, initial=0)
    return tuple(x.narrow(axis, at, size) for at, size in zip(starts, sizes, strict=False))


@op("tile")
def tile(call: Call) -> Tensor:
    """X repeated along every axis."""
    x, times = call["x"], call.ints("reps")
    if len(times) != x.ndim:
        raise call.bad(f"{len(times)} repetitions for {x.ndim} axes")
    call.room([size * count for size, count in zip(x.shape, times, strict=True)])
    return x.repeat(times)


@op("pad")
def pad(call: Call) -> Tensor:
    """The last axes made longer: by a constant, by mirroring, or by repeating the edge."""
    x, amounts = call["x"], call.ints("pad")
    mode = call.choice("mode", "constant", ("constant", "reflect", "replicate"))
    pairs = [*zip(amounts[::2], amounts[1::2], strict=True)]
    if len(pairs) > x.ndim or min(amounts, default=0) < 0:
        raise call.bad(f"pads {amounts} for {x.ndim} axes")
    pairs = [(0, 0)] * (x.ndim - len(pairs)) + pairs
    call.room([size + sum(pair) for size, pair in zip(x.shape, pairs, strict=True)])
    if mode == "constant":
        flat = [side for pair in reversed(pairs) for side in pair]
        value = call.number("constant_val", 0.0)
        return torch.nn.functional.pad(x, flat, value=value)
    for axis, (before, after) in enumerate(pairs):
        size = x.shape[axis]
        if not before and not after:
            continue
        if size == 0 or (mode == "reflect" and max(before, after) >= size):
            raise call.bad(f"{mode} padding by {before}, {after} of {size} values")
        places = torch.arange(-before, size + after)
        if mode == "reflect":
            places = places.abs()
            places = torch.where(places >= size, 2 * (size - 1) - places, places)
        x = x.index_select(axis, places.clamp(0, size - 1))
    return x


@op("range_1d")
def range_1d(call: Call) -> Tensor:
    """start, start + step, ... up to but not including end."""
    start, end, step = call["start"], call["end"], call["step"]
    if float(step) == 0:
        raise call.bad("a step of 0")
    count = max(math.ceil((float(end) - float(start)) / float(step)), 0)
    call.room([count])
    return start + torch.arange(count, dtype=start.dtype) * step


@op("one_hot")
def one_hot(call: Call) -> Tensor:
    """A new axis that holds on_value at the index and off_value elsewhere."""
    places, size = call["indices"], call.whole("one_hot_vector_size")
    axis = call.axis(default=-1, rank=places.ndim + 1)
    shape = [*places.shape]
    shape.insert(axis, size)
    call.room(shape)
    counted = torch.arange(size).reshape([-1] + [1] * (places.ndim - axis))
    hot = places.unsqueeze(axis) == counted
    on, off = call.get("on_value"), call.get("off_value")
    return torch.where(
        hot,
        torch.tensor(1, dtype=torch.int32) if on is None else on.reshape([]),
        torch.tensor(0, dtype=torch.int32) if off is None else off.reshape([]),
    )


@op("topk")
def topk(call: Call) -> tuple[Tensor, ...]:
    """The k largest (or smallest) values and where they were; the first of equals first."""
    x = call["x"]
    axis = call.axis(default=-1)
    count = call.whole("k", 1)
    count = x.shape[axis] if count == -1 else count
    if not 0 <= count <= x.shape[axis]:
        raise call.bad(f"the {count} best of {x.shape[axis]}")
    values, places = torch.sort(x, dim=axis, descending=not call.flag("ascending"), stable=True)
    values, places = values.narrow(axis, 0, count), places.narrow(axis, 0, count)
    return (values, places) if call.flag("return_indices", True) else (values,)


@op("argsort")
def argsort(call: Call) -> Tensor:
    """The order that sorts an axis, by default with the largest first; stable."""
    return torch.sort(
        call["x"], dim=call.axis(default=-1), descending=not call.flag("ascending"), stable=True
    )[1]


@op("cumsum")
def cumsum(call: Call) -> Tensor:
    """Running sums along an axis, from either end, with or without the element itself."""
    x = call["x"]
    axis = call.axis(default=0)
    back = call.flag("reverse")
    x = x.flip(axis) if back else x
    y = x.cumsum(axis, dtype=x.dtype)
    if call.flag("exclusive"):
        y = y - x
    return y.flip(axis) if back else y


@op("band_part")
def band_part(call: Call) -> Tensor:
    """A band of each matrix: `lower` diagonals below the main one, `upper` above, -1 for all."""
    x, lower, upper = call["x"], call.whole("lower", -1), call.whole("upper", -1)
    rows = torch.arange(x.shape[-2])[:, None]
    columns = torch.arange(x.shape[-1])
    keep = torch.ones(x.shape[-2:], dtype=torch.bool)
    if lower >= 0:
        keep &= rows - columns <= lower
    if upper >= 0:
        keep &= columns - rows <= upper
    return torch.where(keep, x, torch.zeros_like(x))


@op("non_zero")
def non_zero(call: Call) -> Tensor:
    """The places (n, rank) of what is not zero, in row-major order."""
    return torch.nonzero(call["x"])


@op("classify")
def classify(call: Call) -> tuple[str | int, dict[str | int, float]]:
    """The likeliest class and a dictionary class -> probability."""
    classes, scores = call.args.get("classes"), call["probabilities"].reshape(-1).tolist()
    if not isinstance(classes, list) or not classes:
        raise call.bad("a classifier without labels")
    if len(classes) != len(scores):
        raise call.bad(f"{len(classes)} labels for {len(scores)} probabilities")
    names = [name if isinstance(name, str) else int(name) for name in classes]
    best = int(call["probabilities"].reshape(-1).argmax())
    return names[best], dict(zip(names, scores, strict=True))
