"""Fold the BatchNorms of a sequence of layers into the convolutions before them."""

from __future__ import annotations

from torch import nn

from vitlet.layers.fuse import fuse_into_previous


def fold_sequential(block: nn.Sequential) -> nn.Sequential:
    """Return the same function without the BatchNorms that follow a convolution.

    The layers that stay are shared with `block`; those after a folded one move up by one place.
    """
    layers: list[nn.Module] = []
    for layer in block:
        if isinstance(layer, nn.BatchNorm2d) and layers and isinstance(layers[-1], nn.Conv2d):
            layers[-1] = fuse_into_previous(layers[-1], layer)
        else:
            layers.append(layer)
    return nn.Sequential(*layers)
