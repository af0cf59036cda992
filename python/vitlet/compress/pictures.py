"""Labelled pictures as a model takes them: normalized batches, plain or mirrored."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vitlet.data.labelled import LabelledImages
from vitlet.data.spec import Preprocess


class Pictures:
    """Batches of a data set for one preprocessing.

    Args:
        data: the pictures and their classes.
        spec: what the model expects of an image.
        mirror: whether a mirrored picture still shows its class (of letters it does not). It then
            has two views: 0 as it is, 1 mirrored. A data set of few views lets the teacher's
            answers be computed once for all sub-models.
    """

    def __init__(self, data: LabelledImages, spec: Preprocess, *, mirror: bool = False) -> None:
        self.data, self.spec, self.views = data, spec, 2 if mirror else 1
        self.labels = torch.from_numpy(data.labels.copy())
        self._mean = torch.tensor(spec.mean).reshape(1, -1, 1, 1)
        self._std = torch.tensor(spec.std).reshape(1, -1, 1, 1)

    def __len__(self) -> int:
        return len(self.data)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.data.classes)

    def batch(self, indices: Tensor, views: Tensor | None = None) -> Tensor:
        """Return the pictures at `indices`, float32 (B, C, H, W), in these `views` (0 each)."""
        pixels = self.data.pixels(indices.numpy(), self.spec)
        x = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float()
        x = (x / 255 - self._mean) / self._std
        if views is not None and bool(views.any()):
            x = torch.where(views.bool()[:, None, None, None], x.flip(-1), x)
        return x

    def draw_views(self, count: int, rng: torch.Generator) -> Tensor:
        """Return a view for each of `count` pictures, (count,) int64."""
        return torch.randint(0, self.views, (count,), generator=rng)

    def shuffled(self, rng: torch.Generator) -> Tensor:
        """Return all indices in random order."""
        return torch.randperm(len(self), generator=rng)
