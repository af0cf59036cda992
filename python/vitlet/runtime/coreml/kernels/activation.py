"""Activations, gates and softmax."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from vitlet.runtime.coreml.call import CHUNK, Call, add_up, half, pieces
from vitlet.runtime.coreml.table import op


@op("relu")
def relu(call: Call) -> Tensor:
    """max(x, 0)."""
    return call["x"].clamp(min=0)


@op("relu6")
def relu6(call: Call) -> Tensor:
    """Put x between 0 and 6."""
    return call["x"].clamp(0, 6)


@op("clamped_relu")
def clamped_relu(call: Call) -> Tensor:
    """min(beta, x) where x >= 0, min(beta, alpha x) below."""
    x = call["x"]
    return torch.where(x >= 0, x, call.number("alpha") * x).clamp(max=call.number("beta"))


@op("leaky_relu")
def leaky_relu(call: Call) -> Tensor:
    """X where x >= 0, alpha x below."""
    x = call["x"]
    return torch.where(x >= 0, x, call.number("alpha") * x)


@op("prelu")
def prelu(call: Call) -> Tensor:
    """X where x >= 0, alpha x below, with alpha per channel (axis 1)."""
    x, alpha = call["x"], per_channel(call, "alpha")
    return torch.where(x >= 0, x, alpha * x)


@op("thresholded_relu")
def thresholded_relu(call: Call) -> Tensor:
    """X where x >= alpha, 0 below."""
    x = call["x"]
    return torch.where(x >= call.number("alpha"), x, torch.zeros_like(x))


@op("elu")
def elu(call: Call) -> Tensor:
    """X where x > 0, alpha (exp(x) - 1) elsewhere."""
    x = call["x"]
    return torch.where(x > 0, x, call.number("alpha") * torch.expm1(x))


@op("gelu")
def gelu(call: Call) -> Tensor:
    """X Phi(x), exact or by one of two approximations (Hendrycks and Gimpel, 1606.08415)."""
    x = call["x"]
    mode = call.choice("mode", "EXACT", ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"))
    if mode == "EXACT":
        return functional.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x * torch.sigmoid(1.702 * x)


@op("linear_activation")
def linear_activation(call: Call) -> Tensor:
    """Alpha x + beta."""
    return call.number("alpha") * call["x"] + call.number("beta", 0.0)


@op("scaled_tanh")
def scaled_tanh(call: Call) -> Tensor:
    """Alpha tanh(beta x)."""
    return call.number("alpha") * torch.tanh(call.number("beta") * call["x"])


@op("sigmoid")
def sigmoid(call: Call) -> Tensor:
    """1 / (1 + exp(-x))."""
    return torch.sigmoid(call["x"])


@op("sigmoid_hard")
def sigmoid_hard(call: Call) -> Tensor:
    """Put alpha x + beta between 0 and 1."""
    return (call.number("alpha") * call["x"] + call.number("beta")).clamp(0, 1)


@op("silu")
def silu(call: Call) -> Tensor:
    """X sigmoid(x)."""
    return functional.silu(call["x"])


@op("softplus")
def softplus(call: Call) -> Tensor:
    """ln(1 + exp(x))."""
    x = call["x"]
    return torch.logaddexp(x, torch.zeros_like(x))


@op("softplus_parametric")
def softplus_parametric(call: Call) -> Tensor:
    """Alpha ln(1 + exp(beta x)), both per channel (axis 1)."""
    inner = per_channel(call, "beta") * call["x"]
    return per_channel(call, "alpha") * torch.logaddexp(inner, torch.zeros_like(inner))


@op("softsign")
def softsign(call: Call) -> Tensor:
    """X / (1 + |x|)."""
    x = call["x"]
    return x / (1 + x.abs())


@op("softmax")
def softmax(call: Call) -> Tensor:
    """exp(x - max) / sum along an axis."""
    x = call["x"]
    return softmax_along(x, call.axis(default=-1), call.stressed)


def softmax_along(x: Tensor, axis: int, stressed: bool) -> Tensor:
    """Softmax; stressed, exponentials and their running sum are rounded to float16."""
    if not stressed:
        return torch.softmax(x, axis)
    powers = half(torch.exp(x - x.amax(axis, keepdim=True)))
    parts = [part.sum(axis, keepdim=True) for part in pieces(powers, CHUNK, axis)]
    return powers / add_up(parts)


def per_channel(call: Call, name: str) -> Tensor:
    """Return a vector argument shaped to multiply axis 1 of x (a lone number stays)."""
    vector, x = call[name], call["x"]
    if vector.numel() == 1:
        return vector.reshape([])
    if x.ndim < 2 or vector.numel() != x.shape[1]:
        raise call.bad(f"{vector.numel()} values of {name} for x of shape {tuple(x.shape)}")
    return vector.reshape([1, -1] + [1] * (x.ndim - 2))
