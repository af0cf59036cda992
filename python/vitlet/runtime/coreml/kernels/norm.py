"""Normalizations. Stress mode keeps the sums of means and variances in float16."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vitlet.runtime.coreml.call import Call, half
from vitlet.runtime.coreml.kernels.activation import per_channel
from vitlet.runtime.coreml.kernels.reduce import total
from vitlet.runtime.coreml.table import op


@op("batch_norm")
def batch_norm(call: Call) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta, each per channel (axis 1)."""
    x = call["x"]
    scale = 1 / torch.sqrt(per_channel(call, "variance") + call.number("epsilon", 1e-5))
    return _scaled(call, (x - per_channel(call, "mean")) * scale)


@op("instance_norm")
def instance_norm(call: Call) -> Tensor:
    """Normalize each channel of each row over its spatial axes."""
    x = call["x"]
    axes = [*range(2, x.ndim)]
    return _scaled(call, _normalized(call, x, axes, call.number("epsilon", 1e-5)))


@op("layer_norm")
def layer_norm(call: Call) -> Tensor:
    """Normalize over some axes; gamma and beta have the shape of these (1607.06450)."""
    x = call["x"]
    default = [*range(1, x.ndim)]
    axes = sorted(call.wrap_axis(axis, x.ndim) for axis in call.ints("axes", default))
    epsilon = call.number("epsilon", 1e-5)
    gamma, beta = call.get("gamma"), call.get("beta")
    shape = [int(x.shape[axis]) if axis in axes else 1 for axis in range(x.ndim)]
    if axes == [*range(x.ndim - len(axes), x.ndim)] and not call.stressed:
        sizes = [x.shape[axis] for axis in axes]
        flat = [None if part is None else part.reshape(sizes) for part in (gamma, beta)]
        return functional.layer_norm(x, sizes, flat[0], flat[1], epsilon)
    y = _normalized(call, x, axes, epsilon)
    if gamma is not None:
        y = y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


@op("l2_norm")
def l2_norm(call: Call) -> Tensor:
    """X / sqrt(sum of squares + epsilon) over the last three axes."""
    x = call["x"]
    axes = [*range(max(x.ndim - 3, 0), x.ndim)]
    squares = total(x.square(), axes, True, call.stressed)
    return x / torch.sqrt(squares + call.number("epsilon", 1e-6))


@op("local_response_norm")
def local_response_norm(call: Call) -> Tensor:
    """X / (k + alpha / size * sum of squares of neighbouring channels) ** beta."""
    return functional.local_response_norm(
        call["x"],
        call.whole("size"),
        call.number("alpha", 1e-4),
        call.number("beta", 0.75),
        call.number("k", 1.0),
    )


def _normalized(call: Call, x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    mean = total(x, axes, True, call.stressed) / count
    centred = x - (half(mean) if call.stressed else mean)
    variance = total(centred.square(), axes, True, call.stressed) / count
    return centred / torch.sqrt(variance + epsilon)


def _scaled(call: Call, y: Tensor) -> Tensor:
    if call.args.get("gamma") is not None:
        y = y * per_channel(call, "gamma")
    return y + per_channel(call, "beta") if call.args.get("beta") is not None else y
