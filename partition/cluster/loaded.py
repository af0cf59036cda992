"""A sub-model that is ready to answer: pixels or a tensor in, features out."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlet.data.preprocess import preprocess
from vitlet.errors import ShapeError
from vitlet.partition.plan import Plan
from vitlet.runtime.session import load

MAX_BATCH = 256


class LoadedSlot:
    """One slot's bundle in an engine, warmed up.

    Args:
        plan: the plan that it belongs to.
        slot: its index.
        bundle: the bundle's folder.
        threads: threads to compute with.

    Raises:
        BundleError: the bundle is damaged or is not what the plan says.
        UnsupportedError, MissingDependencyError: nothing in it runs here.
    """

    def __init__(
        self, plan: Plan, slot: int, bundle: str | os.PathLike[str], threads: int = 1
    ) -> None:
        self.width = plan.slots[slot].features
        self.memory = plan.slots[slot].memory
        size = plan.preprocess.size
        self._pixels = (*size, plan.preprocess.channels)
        self._tensor = (plan.preprocess.channels, *size)
        # The coordinator has resized and cropped already: what is left is to scale and normalize.
        self._normalize = replace(plan.preprocess, resize="squash", resize_to=0)
        self._session = load(bundle, threads=threads, graph="features", check="used")
        self.engine = self._session.engine
        self.run(np.zeros((1, *self._pixels), np.uint8))

    def run(self, array: NDArray[Any]) -> NDArray[np.float32]:
        """Compute features.

        Args:
            array: uint8 (B, H, W, C), resized and cropped; or float32 (B, C, H, W), preprocessed.

        Returns:
            float32 (B, D).

        Raises:
            ShapeError: neither of the two, or of another size.
        """
        expected = {"uint8": self._pixels, "float32": self._tensor}.get(array.dtype.name)
        if array.ndim != 4 or array.shape[1:] != expected or not 1 <= len(array) <= MAX_BATCH:
            raise ShapeError(
                f"expected uint8 (B, {', '.join(map(str, self._pixels))}) or float32 "
                f"(B, {', '.join(map(str, self._tensor))}) with B from 1 to {MAX_BATCH}, "
                f"got {array.dtype} {array.shape}"
            )
        if array.dtype == np.uint8:
            array = preprocess(array, self._normalize)
        outputs = self._session.run({"image": array})
        return outputs["features"].astype(np.float32, copy=False)
