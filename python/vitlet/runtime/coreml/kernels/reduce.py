"""Reductions over some or all axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vitlet.runtime.coreml.call import CHUNK, Call, add_up, pieces
from vitlet.runtime.coreml.table import op


def total(x: Tensor, axes: Sequence[int], keep: bool, stressed: bool) -> Tensor:
    """Return the sum over `axes`; stressed, CHUNK terms at a time, rounded to float16."""
    if not axes:
        return x.clone()
    if not stressed:
        kind = None if x.is_floating_point() else torch.int32
        return x.sum(tuple(axes), keepdim=keep, dtype=kind)
    rest = [axis for axis in range(x.ndim) if axis not in axes]
    flat = x.permute(*rest, *axes).flatten(len(rest))
    summed = add_up([part.sum(-1) for part in pieces(flat, CHUNK, -1)])
    if not keep:
        return summed
    return summed.reshape([1 if axis in axes else int(x.shape[axis]) for axis in range(x.ndim)])


def _axes(call: Call) -> list[int]:
    rank = call["x"].ndim
    return sorted({call.wrap_axis(axis, rank) for axis in call.ints("axes", [*range(rank)])})


def _count(call: Call) -> int:
    count = 1
    for axis in _axes(call):
        count *= call["x"].shape[axis]
    return count


def _sum_of(call: Call, terms: Tensor) -> Tensor:
    return total(terms, _axes(call), call.flag("keep_dims"), call.stressed)


@op("reduce_sum")
def reduce_sum(call: Call) -> Tensor:
    """The sum."""
    return _sum_of(call, call["x"])


@op("reduce_mean")
def reduce_mean(call: Call) -> Tensor:
    """The mean; of integers it is cut towards zero."""
    x, count = call["x"], _count(call)
    if x.is_floating_point():
        return _sum_of(call, x) / count
    if count == 0:
        raise call.bad("the mean of no integers")
    return torch.div(_sum_of(call, x), count, rounding_mode="trunc")


@op("reduce_sum_square")
def reduce_sum_square(call: Call) -> Tensor:
    """The sum of squares."""
    return _sum_of(call, call["x"].square())


@op("reduce_l1_norm")
def reduce_l1_norm(call: Call) -> Tensor:
    """The sum of magnitudes."""
    return _sum_of(call, call["x"].abs())


@op("reduce_l2_norm")
def reduce_l2_norm(call: Call) -> Tensor:
    """The square root of the sum of squares."""
    return torch.sqrt(_sum_of(call, call["x"].square()).float())


@op("reduce_log_sum")
def reduce_log_sum(call: Call) -> Tensor:
    """The logarithm of the sum."""
    return torch.log(_sum_of(call, call["x"]).float())


@op("reduce_log_sum_exp")
def reduce_log_sum_exp(call: Call) -> Tensor:
    """The logarithm of the sum of exponentials, safe from overflow."""
    return torch.logsumexp(call["x"].float(), tuple(_axes(call)), call.flag("keep_dims"))


@op("reduce_max")
def reduce_max(call: Call) -> Tensor:
    """The largest value."""
    return torch.amax(call["x"], tuple(_axes(call)), call.flag("keep_dims"))


@op("reduce_min")
def reduce_min(call: Call) -> Tensor:
    """The smallest value."""
    return torch.amin(call["x"], tuple(_axes(call)), call.flag("keep_dims"))


@op("reduce_prod")
def reduce_prod(call: Call) -> Tensor:
    """The product."""
    x = call["x"]
    for axis in _axes(call):
        kind = None if x.is_floating_point() else torch.int32
        x = x.prod(axis, keepdim=True, dtype=kind)
    return x if call.flag("keep_dims") else x.squeeze(tuple(_axes(call)))


def _first(call: Call, function: Callable[..., Tensor]) -> Tensor:
    x = call["x"]
    return function(x, call.axis(default=-1), keepdim=call.flag("keep_dims"))


@op("reduce_argmax")
def reduce_argmax(call: Call) -> Tensor:
    """Where the largest value is; the first of equals."""
    return _first(call, torch.argmax)


@op("reduce_argmin")
def reduce_argmin(call: Call) -> Tensor:
    """Where the smallest value is; the first of equals."""
    return _first(call, torch.argmin)
