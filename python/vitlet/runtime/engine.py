"""What an inference engine is to a session: named arrays in, named arrays out."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vitlet.errors import ShapeError
from vitlet.runtime.manifest import TensorSpec

Arrays = dict[str, NDArray[Any]]


class Engine(Protocol):
    """Runs one compiled graph at the batch sizes that the graph was made for.

    Attributes:
        name: "onnxruntime", "tvm" or "coreml".
        version: the runtime's version.
        inputs: what `run` takes; a free size is a name, such as "batch".
        outputs: what it gives.
    """

    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Arrays) -> Arrays:
        """Compute every output; safe to call from several threads."""
        ...


def check_feeds(feeds: Arrays, specs: tuple[TensorSpec, ...], *, skip_batch: bool = False) -> None:
    """Compare arrays with what a graph takes; nothing is converted silently.

    Args:
        feeds: input name -> array.
        specs: what the graph takes.
        skip_batch: do not look at the first size, which the caller splits.

    Raises:
        ShapeError: a name, dtype or shape is not the one asked for.
    """
    expected = ", ".join(f"{s.name} {s.dtype} {_spell(s.shape)}" for s in specs)
    if set(feeds) != {spec.name for spec in specs}:
        raise ShapeError(f"expected the inputs {expected}; got {', '.join(feeds) or 'none'}")
    for spec in specs:
        array = feeds[spec.name]
        if not isinstance(array, np.ndarray):
            raise ShapeError(f"{spec.name} must be a numpy array, got {type(array).__name__}")
        first = 1 if skip_batch else 0
        pairs = list(zip(array.shape, spec.shape, strict=False))[first:]
        fits = len(array.shape) == len(spec.shape) and all(
            got == want or isinstance(want, str) for got, want in pairs
        )
        if str(array.dtype) != spec.dtype or not fits:
            raise ShapeError(
                f"expected {spec.name} as {spec.dtype} {_spell(spec.shape)}, "
                f"got {array.dtype} {_spell(array.shape)}"
            )


def _spell(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(str(size) for size in shape)}{',' if len(shape) == 1 else ''})"
