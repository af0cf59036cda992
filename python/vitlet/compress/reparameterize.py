"""Exact merges, over a whole model."""

from __future__ import annotations

import copy
from typing import Protocol, TypeVar, runtime_checkable

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


@runtime_checkable
class Reparameterizable(Protocol):
    """A module that knows its cheaper form."""

    def reparameterized(self) -> nn.Module:
        """Return the deploy-time module: the same function in eval mode with fewer operations."""
        ...


def _walk(module: nn.Module) -> nn.Module:
    # Children first, so that a block merges what its parts have already become.
    for name, child in list(module.named_children()):
        setattr(module, name, _walk(child))
    return module.reparameterized() if isinstance(module, Reparameterizable) else module


def reparameterize(model: Module) -> Module:
    """Return a new model with every exact merge done; the argument is never changed.

    Parallel branches (MobileOne, RepMixer, large-kernel, RepCPE) become one convolution and
    every BatchNorm is folded into a neighbour. The result is in eval mode, takes no gradient, and
    equals the eval-mode argument up to float32 rounding (1e-5 relative).
    """
    merged = copy.deepcopy(model).eval()
    return _walk(merged).requires_grad_(False)  # type: ignore[return-value]
