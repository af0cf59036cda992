"""Weights of a compiled graph beside its code, where they are used in place.

TVM keeps constants in a text of its executable, which is read into memory and unpacked into arrays:
a loaded graph would hold its weights three times. Here they become parameters of the graph's
function, and the linker lays them into the library's read-only data. `vitlet.runtime.tvm_weights`
says in which form.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import ir, relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from vitlet.runtime.tvm import ENTRY
from vitlet.runtime.tvm_weights import ALIGNMENT, KINDS

_LEAST = 1024  # bytes; what is smaller stays a constant of the executable


def lift_weights(weights: list[NDArray[Any]]) -> Any:
    """Return the pass that makes constants parameters, and appends their values to `weights`."""

    @ir.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def lift(module: Any, _context: Any) -> Any:
        rewriter = _Lifter(module, weights)
        name = module.get_global_var(ENTRY)
        function = rewriter.visit_expr(module[name])
        lifted = relax.Function(
            [*function.params, *rewriter.parameters],
            function.body,
            function.ret_ty,
            function.is_pure,
            function.attrs,
        )
        rewriter.builder_.update_func(name, lifted)
        return rewriter.builder_.get()

    return lift


@mutator
class _Lifter(PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: Any, weights: list[NDArray[Any]]) -> None:
        super().__init__(module)
        self.weights = weights
        self.parameters: list[Any] = []
        self.known: dict[int, Any] = {}

    def visit_generic_const_(self, constant: Any) -> Any:
        value = constant.value
        key = value.__chandle__() if hasattr(value, "__chandle__") else id(value)
        if key in self.known:
            return self.known[key]
        array = value.numpy()
        if array.nbytes < _LEAST or array.dtype.kind not in KINDS:
            return constant
        parameter = relax.Var(f"weight{len(self.weights)}", constant.ty)
        self.weights.append(array)
        self.parameters.append(parameter)
        self.known[key] = parameter
        return parameter


def laid_out(weights: list[NDArray[Any]]) -> tuple[bytes, bytes]:
    """Return the bytes of all weights, and the index that says where each one lies."""
    data, index = bytearray(), [len(weights)]
    for array in weights:
        data += bytes(-len(data) % ALIGNMENT)
        kind = KINDS.index(array.dtype.kind)
        index += [len(data), kind, 8 * array.dtype.itemsize, array.ndim, *array.shape]
        data += np.ascontiguousarray(array).tobytes()
    return bytes(data), struct.pack(f"<{len(index)}q", *index)
