"""Matrix products. Stress mode adds CHUNK products at a time and rounds each sum to float16."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vitlet.runtime.coreml.call import CHUNK, Call, add_up, pieces
from vitlet.runtime.coreml.table import op


def product(x: Tensor, y: Tensor, stressed: bool) -> Tensor:
    """Return x @ y with y of two or more axes; stressed, its sums are kept in float16."""
    if not stressed or y.shape[-2] == 0:
        return x @ y
    parts = zip(pieces(x, CHUNK, -1), pieces(y, CHUNK, -2), strict=True)
    return add_up([a @ b for a, b in parts])


@op("linear")
def linear(call: Call) -> Tensor:
    """X (*, K) times weight (N, K) transposed, plus bias (N,)."""
    x, weight, bias = call["x"], call["weight"], call.get("bias")
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise call.bad(f"x of shape {tuple(x.shape)}, weight of {tuple(weight.shape)}")
    if not x.is_floating_point():
        y = x @ weight.T
        return y if bias is None else y + bias
    if not call.stressed:
        return functional.linear(x, weight, bias)
    y = product(x, weight.T, True)
    return y if bias is None else y + bias


@op("matmul")
def matmul(call: Call) -> Tensor:
    """X times y over the last two axes, either transposed first; the others broadcast."""
    x, y = call["x"], call["y"]
    if call.flag("transpose_x") and x.ndim > 1:
        x = x.mT
    if call.flag("transpose_y") and y.ndim > 1:
        y = y.mT
    row, column = x.ndim == 1, y.ndim == 1
    x, y = (x[None] if row else x), (y[:, None] if column else y)
    if x.ndim < 2 or y.ndim < 2 or x.shape[-1] != y.shape[-2]:
        raise call.bad(f"x of shape {tuple(x.shape)}, y of {tuple(y.shape)}")
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    call.room([*batch, x.shape[-2], y.shape[-1]])
    z = product(x, y, call.stressed)
    if column:
        z = z.squeeze(-1)
    return z.squeeze(-1 if column else -2) if row else z


@op("einsum")
def einsum(call: Call) -> Tensor:
    """Sum of products by an equation such as "bhqd,bhkd->bhqk"."""
    values, equation = call.tensors("values"), call.text("equation").replace(" ", "")
    left, _, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(values) or any(
        len(term) != value.ndim for term, value in zip(terms, values, strict=False)
    ):
        raise call.bad(f"{equation!r} for values of {[v.ndim for v in values]} axes")
    sizes: dict[str, int] = {}
    for term, value in zip(terms, values, strict=True):
        sizes.update(zip(term, value.shape, strict=True))
    call.room([sizes.get(label, 1) for label in right])
    summed = [label for label in sizes if label not in right]
    if not call.stressed or not summed or 0 in sizes.values():
        return torch.einsum(equation, *values)
    # Cut along one summed label, so that all of them together make CHUNK products a piece.
    label = max(summed, key=lambda name: sizes[name])
    step = max(1, CHUNK // math.prod(sizes[name] for name in summed if name != label))
    parts = []
    for start in range(0, sizes[label], step):
        length = min(step, sizes[label] - start)
        pieces = [
            value.narrow(term.index(label), start, length) if label in term else value
            for term, value in zip(terms, values, strict=True)
        ]
        parts.append(torch.einsum(equation, *pieces))
    return add_up(parts)
