"""Finds the matrix products of a Relax module and puts `vitlet.export.tvm_gemm` in their place.

Linear layers, products of two computed matrices, and convolutions whose windows lie inside the map
and do not need a border: those of 1x1, and those that cut an image into patches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm_ffi
from numpy.typing import NDArray
from tvm import ir, relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from vitlet.export import tvm_gemm

_OUT_FUSABLE = 4  # relax.OpPatternKind: elementwise consumers may be fused into it
_MATMUL, _CONV, _PERMUTE = (
    ir.Op.get(f"relax.{name}") for name in ("matmul", "nn.conv2d", "permute_dims")
)


def lower_products(width: int) -> Any:
    """Return the pass.

    Args:
        width: columns of a panel.
    """

    @ir.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def lower(module: Any, _context: Any) -> Any:
        rewriter = _Rewriter(module, width)
        for variable, function in module.functions.items():
            if isinstance(function, relax.Function):
                rewriter.builder_.update_func(variable, rewriter.visit_expr(function))
        return rewriter.builder_.get()

    return lower


def panels_of(matrix: NDArray[Any], width: int) -> NDArray[np.float32]:
    """(k.., n) to (panels, k.., width), the last panel filled with zeros."""
    *inner, columns = matrix.shape
    count = -(-columns // width)
    padded = np.zeros((*inner, count * width), np.float32)
    padded[..., :columns] = matrix
    return np.ascontiguousarray(np.moveaxis(padded.reshape(*inner, count, width), -2, 0))


def _sizes(expression: Any) -> list[Any] | None:
    """The shape, if all but the first size are known."""
    kind = expression.ty
    shape = getattr(kind, "shape", None)
    if shape is None or str(kind.dtype) != "float32":
        return None
    sizes = list(shape)
    return sizes if all(isinstance(size, tirx.IntImm) for size in sizes[1:]) else None


@mutator
class _Rewriter(PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: Any, width: int) -> None:
        super().__init__(module)
        self.width = width

    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        found = None
        if call.op.same_as(_MATMUL):
            found = self._matmul(*call.args)
        elif call.op.same_as(_CONV):
            found = self._conv(call, *call.args)
        return call if found is None else found

    def _emit(self, definition: Any, *arguments: Any) -> Any:
        return self.builder_.call_te(
            definition,
            *arguments,
            primfunc_name_hint="product",
            primfunc_attrs={"op_pattern": _OUT_FUSABLE},
        )

    def _source(self, expression: Any) -> Any:
        """What an expression was bound to."""
        while isinstance(expression, relax.Var):
            bound = self.lookup_binding(expression)
            if bound is None:
                return expression
            expression = bound
        return expression

    def _constant(self, expression: Any) -> NDArray[Any] | None:
        value = self._source(expression)
        return value.value.numpy() if isinstance(value, ir.GenericConst) else None

    def _matmul(self, a: Any, b: Any) -> Any:
        left, right = _sizes(a), _sizes(b)
        if left is None or right is None or len(left) < 2 or len(right) < 2:
            return None
        weight = self._constant(b) if len(right) == 2 else None
        if weight is not None:
            panels = relax.const(panels_of(weight, self.width))
            columns = int(right[1])

            def linear(x: Any, w: Any) -> Any:
                return tvm_gemm.product(x.shape[:-1], lambda *at: x[at], w, columns)

            return self._emit(linear, a, panels)
        same = len(left) == len(right) and all(
            tvm_ffi.structural_equal(p, q) for p, q in zip(left[:-2], right[:-2], strict=True)
        )
        if len(left) < 3 or not same:
            return None
        swapped = self._source(b)
        last = len(right) - 1
        order = [*range(last - 1), last, last - 1]
        transposed = (
            isinstance(swapped, relax.Call)
            and swapped.op.same_as(_PERMUTE)
            and swapped.attrs.axes is not None
            and [int(axis) for axis in swapped.attrs.axes] == order
        )

        def pairs(x: Any, y: Any) -> Any:
            return tvm_gemm.batched(x, y, self.width, transposed=transposed)

        return self._emit(pairs, a, swapped.args[0] if transposed else b)

    def _conv(self, call: Any, data: Any, weight: Any) -> Any:
        attrs = call.attrs
        sizes, filters = _sizes(data), self._constant(weight)
        plain = (attrs.data_layout, attrs.out_layout, attrs.kernel_layout) == (
            "NHWC", "NHWC", "OHWI"
        )  # fmt: skip
        simple = attrs.groups == 1 and not any(attrs.padding) and set(attrs.dilation) == {1}
        if sizes is None or filters is None or not plain or not simple:
            return None
        if filters.dtype != np.float32:
            return None
        columns, high, wide, inner = filters.shape
        down, along = (int(step) for step in attrs.strides)
        # (kernel rows, kernel columns x channels, columns): both run through memory in order.
        matrix = filters.transpose(1, 2, 3, 0).reshape(high, wide * inner, columns)
        panels = relax.const(panels_of(matrix if high > 1 else matrix[0], self.width))

        def convolution(x: Any, w: Any) -> Any:
            rows = (x.shape[1] - high) // down + 1
            cols = (x.shape[2] - wide) // along + 1

            def element(n: Any, y: Any, z: Any, *k: Any) -> Any:
                if wide == 1:
                    return x[n, y * down + (k[0] if high > 1 else 0), z * along, k[-1]]
                place = z * along + k[-1] // inner
                return x[n, y * down + (k[0] if high > 1 else 0), place, k[-1] % inner]

            return tvm_gemm.product((x.shape[0], rows, cols), element, w, columns)

        return self._emit(convolution, data, panels)
