"""Pixel normalization as a part of the graph, so that a device hands over bytes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitlet.data.spec import Preprocess
from vitlet.errors import UsageError
from vitlet.export.trace import Graph
from vitlet.runtime.manifest import TensorSpec


class FromPixels(nn.Module):
    """uint8 (B, H, W, C) pixels -> normalized float32 (B, C, H, W) -> the module.

    x / 255, minus mean, over std, as one multiplication and one addition per channel. Resizing and
    cropping stay outside: `vitlet.data.preprocess.resize_crop`.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, module: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.module = module
        mean = torch.tensor(preprocess.mean, dtype=torch.float64).reshape(-1, 1, 1)
        std = torch.tensor(preprocess.std, dtype=torch.float64).reshape(-1, 1, 1)
        # (x - 255 mean) * 1 / (255 std): the shift comes first, because where the mean is zero
        # nothing is left of it, and where it is not, the scale still folds into a padded
        # convolution while the shift cannot.
        self.register_buffer("shift", (-255.0 * mean).float(), persistent=False)
        self.register_buffer("scale", (1.0 / (255.0 * std)).float(), persistent=False)
        self.centred = bool((mean != 0).any())

    def forward(self, pixels: Tensor) -> Tensor:
        """Return what the module gives for the normalized image."""
        x = pixels.permute(0, 3, 1, 2).float()
        if self.centred:
            x = x + self.shift
        return self.module(x * self.scale)  # type: ignore[no-any-return]


def from_pixels(graph: Graph, preprocess: Preprocess) -> Graph:
    """Return the image graph with uint8 ("batch", H, W, C) input named "image".

    Raises:
        UsageError: the graph takes no image, or one of another size.
    """
    given = graph.inputs[0]
    wanted = ("batch", preprocess.channels, *preprocess.size)
    if given.shape != wanted:
        raise UsageError(
            f"in-graph preprocessing needs an image input of shape {wanted}, graph "
            f"{graph.name!r} takes {given.name} {given.shape}"
        )
    spec = TensorSpec("image", "uint8", ("batch", *preprocess.size, preprocess.channels))
    return Graph(graph.name, FromPixels(graph.module, preprocess).eval(), (spec,), graph.outputs)


class HalfInside(nn.Module):
    """A float16 copy of a module between float32 inputs and outputs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Return the module's answer as float32; integers go in as they are."""
        inside = x.half() if x.is_floating_point() else x
        return self.module(inside).float()  # type: ignore[no-any-return]
