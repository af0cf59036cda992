"""vitlet's C++ kernels under names that a graph exported with `extern` calls in TVM's machine.

A function takes the tensors in the order in which `vitlet.export.tvm_ops.convert` lists them, the
one to write into last. They are registered in the process once, when TVM's runtime is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlet.ops import binary_linear_attention, pack_bits
from vitlet.ops.native import extension

Array = NDArray[Any]


def register(ffi: ModuleType, threads: Callable[[], int]) -> None:
    """Register every kernel.

    Args:
        ffi: the module `tvm_ffi`.
        threads: tells how many threads a call may use.
    """

    def add(name: str, kernel: Callable[..., Array]) -> None:
        def run(*tensors: Any) -> None:
            *given, out = (np.from_dlpack(tensor) for tensor in tensors)
            _writable(out)[...] = kernel(*given, threads=threads())

        ffi.register_global_func(f"vitlet.{name}", run, override=True)

    for precision in ("fp32", "bf16", "int8", "shift"):
        add(f"additive_token_mixer.{precision}", partial(_mixer, precision))
    for kind, activation in product(("shift", "wide", "dense"), ("none", "gelu")):
        add(f"shift_linear.{kind}.{activation}", partial(_linear, kind, activation))
    for signed, exact in product((False, True), (False, True)):
        name = f"{'signed' if signed else 'plain'}.{'exact' if exact else 'rounded'}"
        add(f"binary_linear_attention.{name}", partial(_attention, signed, exact))


def _writable(array: Array) -> Array:
    """A view to write through: numpy takes what comes by DLPack for read-only."""
    if array.flags.writeable:
        return array
    view = np.lib.stride_tricks.as_strided(array)
    view.flags.writeable = True
    return view


def _mixer(precision: str, x: Array, packed: Array, *, threads: int) -> Array:
    return extension.additive_token_mixer(
        x, packed, x.shape[1], precision=precision, threads=threads
    )


def _linear(
    kind: str,
    activation: str,
    x: Array,
    panels: Array,
    sums: Array,
    scale: Array,
    bias: Array | None = None,
    *,
    threads: int,
) -> Array:
    return extension.shift_linear(
        x, panels, sums, scale, bias=bias, format=kind, activation=activation, threads=threads
    )


def _attention(
    signed: bool,
    exact: bool,
    q: Array,
    k: Array,
    v: Array,
    q_threshold: Array,
    k_threshold: Array,
    taps: Array | None = None,
    *,
    threads: int,
) -> Array:
    queries, keys = pack_bits(q, q_threshold.tolist()), pack_bits(k, k_threshold.tolist())
    return binary_linear_attention(
        queries, keys, v, signed=signed, exact=exact, taps=taps, threads=threads
    )
