"""Feature maps with channels last, and constants computed before TVM sees them.

A 1x1 convolution of such a map is a linear layer, and a depthwise one runs its vectors over
channels, however small the map is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import ir, relax
from tvm.relax.expr_functor import PyExprMutator, mutator


def channels_last() -> Any:
    """Return the pass that turns convolutions, and what lies between them, to NHWC."""
    return relax.transform.ConvertLayout({"relax.nn.conv2d": ["NHWC", "OHWI"]})


def fold_constants() -> Any:
    """Return the pass that computes operators of constants, by numpy: TVM compiles each of them."""

    @ir.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def fold(module: Any, _context: Any) -> Any:
        rewriter = _Folder(module)
        for variable, function in module.functions.items():
            if isinstance(function, relax.Function):
                rewriter.builder_.update_func(variable, rewriter.visit_expr(function))
        return rewriter.builder_.get()

    return fold


def _permute(call: Any, x: Any) -> Any:
    axes = call.attrs.axes
    return np.transpose(x, None if axes is None else [int(axis) for axis in axes])


def _reshape(call: Any, x: Any) -> Any:
    return x.reshape([int(size) for size in call.ty.shape])


_FOLDED: dict[str, Callable[..., Any]] = {
    "relax.permute_dims": _permute,
    "relax.reshape": _reshape,
    "relax.expand_dims": _reshape,
    "relax.squeeze": _reshape,
    "relax.add": lambda _, x, y: x + y,
    "relax.subtract": lambda _, x, y: x - y,
    "relax.multiply": lambda _, x, y: x * y,
    "relax.divide": lambda _, x, y: x / y,
    "relax.sqrt": lambda _, x: np.sqrt(x),
    "relax.negative": lambda _, x: -x,
    "relax.astype": lambda call, x: x.astype(str(call.attrs.dtype)),
}


@mutator
class _Folder(PyExprMutator):  # type: ignore[misc]
    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        rule = _FOLDED.get(str(getattr(call.op, "name", "")))
        if rule is None or not isinstance(call.ty, relax.TensorType):
            return call
        values = []
        for argument in call.args:
            if isinstance(argument, relax.ShapeExpr):
                continue
            value = argument
            while isinstance(value, relax.Var):
                value = self.lookup_binding(value)
            if not isinstance(value, ir.GenericConst):
                return call
            values.append(value.value.numpy())
        result = np.ascontiguousarray(rule(call, *values))
        return relax.const(result.astype(str(call.ty.dtype), copy=False))
