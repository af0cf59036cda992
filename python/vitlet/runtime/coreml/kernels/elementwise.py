"""Arithmetic, comparison and rounding, element by element with broadcasting."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitlet.runtime.coreml.call import Call
from vitlet.runtime.coreml.table import op

_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "pow": torch.pow,
}
_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "floor": torch.floor,
    "identity": torch.clone,
    "logical_not": torch.logical_not,
    "round": torch.round,  # halves go to the even neighbour
    "sign": torch.sign,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}
_KINDS = ("fp16", "fp32", "int8", "int16", "int32", "uint8", "uint16", "bool", "int64")


def both(call: Call) -> tuple[Tensor, Tensor]:
    """Return x and y of one type; the program's types have been checked to be compatible."""
    x, y = call["x"], call["y"]
    call.room(_broadcast(call, x, y))
    if x.dtype == y.dtype:
        return x, y
    common = torch.promote_types(x.dtype, y.dtype)
    return x.to(common), y.to(common)


def _broadcast(call: Call, x: Tensor, y: Tensor) -> list[int]:
    if x.shape == y.shape:
        return [*x.shape]
    rank = max(x.ndim, y.ndim)
    left = (1,) * (rank - x.ndim) + tuple(x.shape)
    right = (1,) * (rank - y.ndim) + tuple(y.shape)
    for a, b in zip(left, right, strict=True):
        if a != b and 1 not in (a, b):
            raise call.bad(f"shapes {tuple(x.shape)} and {tuple(y.shape)} do not broadcast")
    return [b if a == 1 else a for a, b in zip(left, right, strict=True)]


def _enter_binary(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @op(name)
    def kernel(call: Call) -> Tensor:
        return function(*both(call))


def _enter_unary(name: str, function: Callable[[Tensor], Tensor]) -> None:
    @op(name)
    def kernel(call: Call) -> Tensor:
        return function(call["x"])


for _name, _function in _BINARY.items():
    _enter_binary(_name, _function)
for _name, _one in _UNARY.items():
    _enter_unary(_name, _one)


@op("real_div")
def real_div(call: Call) -> Tensor:
    """X / y; of integers the quotient is cut towards zero."""
    x, y = both(call)
    if x.is_floating_point():
        return x / y
    _no_zero(call, y)
    return torch.div(x, y, rounding_mode="trunc")


@op("floor_div")
def floor_div(call: Call) -> Tensor:
    """The largest whole number not above x / y."""
    x, y = both(call)
    if x.is_floating_point():
        return torch.floor(x / y)
    _no_zero(call, y)
    return torch.div(x, y, rounding_mode="floor")


@op("mod")
def mod(call: Call) -> Tensor:
    """X - floor(x / y) * y: the sign of y."""
    x, y = both(call)
    if not x.is_floating_point():
        _no_zero(call, y)
    return torch.remainder(x, y)


def _no_zero(call: Call, y: Tensor) -> None:
    if bool((y == 0).any()):
        raise call.bad("an integer is divided by zero")


@op("exp2")
def exp2(call: Call) -> Tensor:
    """2 ** x."""
    return torch.exp2(call["x"].float())


@op("inverse")
def inverse(call: Call) -> Tensor:
    """1 / (x + epsilon)."""
    return 1 / (call["x"] + call.number("epsilon", 1e-4))


@op("log")
def log(call: Call) -> Tensor:
    """ln(x + epsilon)."""
    return torch.log(call["x"] + call.number("epsilon", 1e-45))


@op("rsqrt")
def rsqrt(call: Call) -> Tensor:
    """1 / sqrt(x + epsilon)."""
    return 1 / torch.sqrt(call["x"] + call.number("epsilon", 1e-12))


@op("clip")
def clip(call: Call) -> Tensor:
    """Put x between alpha and beta."""
    return call["x"].clamp(call.number("alpha"), call.number("beta"))


@op("threshold")
def threshold(call: Call) -> Tensor:
    """max(x, alpha)."""
    return call["x"].clamp(min=call.number("alpha"))


@op("cast")
def cast(call: Call) -> Tensor:
    """Another type; numbers are cut towards zero to become integers."""
    x = call["x"]
    kind = call.choice("dtype", None, _KINDS)
    if kind == "bool":
        return x != 0
    if kind.startswith("fp"):
        return x.float()
    # Out of int32 the result of a plain conversion depends on the processor.
    return (
        x.nan_to_num(0.0).double().trunc().clamp(-(2**31), 2**31 - 1).long()
        if (x.is_floating_point())
        else x.long()
    )


@op("select")
def select(call: Call) -> Tensor:
    """A where the condition holds, else b."""
    a, b = call["a"], call["b"]
    common = torch.promote_types(a.dtype, b.dtype)
    return torch.where(call["cond"].bool(), a.to(common), b.to(common))
