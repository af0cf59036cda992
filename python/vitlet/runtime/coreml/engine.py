"""Core ML programs as an engine of `vitlet.load`, to check numbers on any system.

session = vitlet.load("mobileclip_s0.vitlet", engine="coreml")
session.predict("cat.jpg")

A session computes in the executor's mode "declared": what a device's processor computes, but for
the order of sums. It is not what a phone's GPU or Neural Engine computes, and its speed says
nothing about theirs, so "auto" never chooses it. It is the one engine that imports torch.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import vitlet
from vitlet.errors import UnsupportedError, UsageError
from vitlet.runtime.coreml.executor import CoreMLExecutor
from vitlet.runtime.coreml.features import Feature
from vitlet.runtime.engine import Arrays
from vitlet.runtime.manifest import Artifact, TensorSpec

_torch_threads = threading.Lock()  # torch has one number of threads for the whole process


class CoreMLEngine:
    """One Core ML program in the executor.

    Pictures go in as uint8 (1, H, W, C) in RGB order, or grey with C = 1. A classifier gives its
    probabilities as float32 (1, classes), in the order of its labels; the best label is left out.

    Args:
        path: the `.mlpackage` folder.
        artifact: its entry in the manifest, for the batch sizes; None for a bare package.
        mode: "fp32", "declared" or "stress", as `CoreMLExecutor` takes it.
        threads: threads of torch; None leaves its own number.

    Attributes:
        executor: what runs.

    Raises:
        CorruptInputError: the package is damaged.
        UnsupportedError: it is no ML program, or has operations that are not known.
        MissingDependencyError: coremltools or torch is not installed.
    """

    name = "coreml"
    version = vitlet.__version__  # the executor is vitlet's own

    def __init__(
        self,
        path: str | os.PathLike[str],
        artifact: Artifact | None = None,
        mode: str = "declared",
        *,
        threads: int | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}")
        self.path = Path(path)
        self.artifact = artifact
        self.threads = threads
        self.executor = CoreMLExecutor(self.path, mode)
        if self.executor.states:
            raise UnsupportedError(
                f"{self.path.name} keeps a state ({', '.join(self.executor.states)}) between "
                "calls, a session does not: run it with vitlet.runtime.CoreMLExecutor"
            )
        self._labels = self.executor.labels
        scores = [feature for feature in self.executor.outputs if feature.kind == "scores"]
        if scores and len(set(self._labels)) != len(self._labels):
            twice = next(name for name in self._labels if self._labels.count(name) > 1)
            raise UnsupportedError(
                f"{self.path.name} has two classes of the name {twice!r}, and a Core ML classifier "
                "gives one probability per name: export it with names that differ"
            )
        self.inputs = tuple(_spec(feature, 0) for feature in self.executor.inputs)
        self._outputs = [f for f in self.executor.outputs if f.kind != "label"]
        self.outputs = tuple(_spec(feature, len(self._labels)) for feature in self._outputs)

    def run(self, feeds: Arrays) -> Arrays:
        """Compute every output; calls from several threads take turns where `threads` is set.

        Args:
            feeds: input name -> array, of exactly the dtype and shape in `inputs`.

        Raises:
            ShapeError: a name, dtype or shape is not the one asked for.
        """
        with _threads(self.threads):
            results = self.executor.run(feeds)
        return {feature.name: self._array(results[feature.name], feature)
                for feature in self._outputs}  # fmt: skip

    def _array(self, value: Any, feature: Feature) -> NDArray[Any]:
        if feature.kind == "scores":
            return np.array([[value[name] for name in self._labels]], np.float32)
        array: NDArray[Any] = value
        if feature.kind == "image":
            array = array.reshape(1, *array.shape[:2], -1)
        return array


def _spec(feature: Feature, classes: int) -> TensorSpec:
    """Return a feature as a session knows it; a size that is free is a name."""
    if feature.kind == "scores":
        return TensorSpec(feature.name, "float32", (1, classes))
    if feature.choices:
        columns = zip(*feature.choices, strict=True)
        fixed = [sizes[0] if len(set(sizes)) == 1 else None for sizes in map(list, columns)]
    else:
        fixed = [low if low == high else None for low, high in feature.ranges]
    names = ("batch", *(f"size_{axis}" for axis in range(1, len(fixed))))
    sizes = [name if size is None else size for size, name in zip(fixed, names, strict=False)]
    if feature.kind == "image":
        height, width, *channels = sizes
        sizes = [1, height, width, *(channels or [1])]
    return TensorSpec(feature.name, feature.dtype, tuple(sizes))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    import torch

    if count is None:
        yield
        return
    with _torch_threads:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)
