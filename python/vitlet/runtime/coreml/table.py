"""The table of operations: MIL type -> kernel. Each file in `kernels` adds its family."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitlet.runtime.coreml.call import Call

Kernel = Callable[["Call"], Any]

FAMILIES = (
    "elementwise",
    "activation",
    "conv",
    "pool",
    "linear",
    "attention",
    "norm",
    "reduce",
    "tensor",
    "shape",
    "index",
    "scatter",
    "resize",
    "sample",
    "quantize",
    "constexpr",
    "state",
    "control",
)
# Known, and left out on purpose.
REFUSED = {
    "random_bernoulli": "its result differs from run to run",
    "random_categorical": "its result differs from run to run",
    "random_normal": "its result differs from run to run",
    "random_uniform": "its result differs from run to run",
    "gru": "recurrent layers are not implemented",
    "lstm": "recurrent layers are not implemented",
    "rnn": "recurrent layers are not implemented",
    "make_list": "lists are not implemented",
    "list_gather": "lists are not implemented",
    "list_length": "lists are not implemented",
    "list_read": "lists are not implemented",
    "list_scatter": "lists are not implemented",
    "list_write": "lists are not implemented",
    "non_maximum_suppression": "detection is not implemented",
    "conv_quantized": "Core ML has replaced it by constexpr_ operations",
}

_TABLE: dict[str, Kernel] = {}
_FAMILY: dict[str, str] = {}


def op(*types: str) -> Callable[[Kernel], Kernel]:
    """Enter a kernel into the table under one or more MIL operation types."""

    def enter(kernel: Kernel) -> Kernel:
        for name in types:
            if name in _TABLE:
                raise AssertionError(f"two kernels for {name}")
            _TABLE[name] = kernel
            _FAMILY[name] = kernel.__module__.rsplit(".", 1)[1]
        return kernel

    return enter


def kernels() -> dict[str, Kernel]:
    """Return the whole table; imports torch."""
    for family in FAMILIES:
        importlib.import_module(f"vitlet.runtime.coreml.kernels.{family}")
    return _TABLE


def families() -> dict[str, str]:
    """Return operation type -> the file in `kernels` that computes it."""
    kernels()
    return dict(_FAMILY)
