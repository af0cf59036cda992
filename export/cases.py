"""The cases that an artefact must get right, as they stand in `golden.safetensors`.

Each case is two tensors, ``<graph>/<case>/input`` and ``<graph>/<case>/output``, batch 1. The
dtype of the input tells what it is:

* uint8 (1, H, W, C): pixels, already resized and cropped. They are scaled by 1/255 and normalized
  by the bundle's preprocessing for a graph that takes floats, and fed as they are to a graph that
  preprocesses by itself. A size of 1 stands for all of that axis: 255s are stored in one byte.
* float16 (1, C, H, W): values no image can give (noise, out of range), exact in float16.
  Only graphs that take floats can be fed with them.
* int64 (1, 77): token ids.

The output is what the source model (not reparameterized, float32, eval mode) gives, float32
(1, D). Reading needs numpy alone, so a device can verify what it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlet.data.spec import Preprocess
from vitlet.errors import BundleError

# Which names are of which kind; the kind is what `verify --inputs` chooses by.
KINDS = ("real", "random", "worst")
_WORST = ("zeros", "ones", "checkerboard", "out_of_range", "empty", "full")


@dataclass(frozen=True)
class Case:
    """One input with the source model's answer.

    Attributes:
        graph: "model", "image" or "text".
        name: "real_0", "random_0", "zeros", ...
        stored: the input as it stands in the file, see the module's text.
        output: float32 (1, D).
    """

    graph: str
    name: str
    stored: NDArray[Any]
    output: NDArray[np.float32]

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return "worst" if self.name.startswith(_WORST) else self.name.split("_")[0]

    @property
    def is_pixels(self) -> bool:
        """Whether the input is a uint8 picture."""
        return self.stored.dtype == np.uint8

    def pixels(self, preprocess: Preprocess) -> NDArray[np.uint8]:
        """Return the uint8 (1, H, W, C) picture."""
        return np.broadcast_to(self.stored, (1, *preprocess.size, preprocess.channels)).copy()

    def floats(self, preprocess: Preprocess | None) -> NDArray[Any]:
        """Return the input of a graph without preprocessing: float32 (1, C, H, W) or tokens."""
        if not self.is_pixels:
            return self.stored.astype(np.int64 if self.stored.dtype.kind in "iu" else np.float32)
        if preprocess is None:
            raise BundleError(f"the case {self.name} is a picture and there is no preprocessing")
        return normalize(self.pixels(preprocess), preprocess)


def normalize(pixels: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.float32]:
    """Return (x / 255 - mean) / std of uint8 (B, H, W, C) as float32 (B, C, H, W)."""
    scaled = pixels.astype(np.float32) / np.float32(255)
    mean = np.asarray(preprocess.mean, np.float32)
    std = np.asarray(preprocess.std, np.float32)
    return np.ascontiguousarray(((scaled - mean) / std).transpose(0, 3, 1, 2))


def read_cases(golden: Mapping[str, NDArray[Any]]) -> dict[str, list[Case]]:
    """Return graph -> cases, in the order real, random, worst and by name.

    Raises:
        BundleError: a name, pair, dtype or shape that does not belong in a golden file.
    """
    halves: dict[tuple[str, str], dict[str, NDArray[Any]]] = {}
    for key, array in golden.items():
        parts = key.split("/")
        if len(parts) != 3 or parts[2] not in ("input", "output"):
            raise BundleError(f"the golden file holds {key!r}: expected graph/case/input or output")
        halves.setdefault((parts[0], parts[1]), {})[parts[2]] = array
    cases: dict[str, list[Case]] = {}
    for (graph, name), pair in halves.items():
        if set(pair) != {"input", "output"}:
            raise BundleError(f"the golden case {graph}/{name} has only its {', '.join(pair)}")
        case = Case(graph, name, pair["input"], pair["output"].astype(np.float32))
        ranks = {np.dtype(np.uint8): 4, np.dtype(np.float16): 4, np.dtype(np.int64): 2}
        if (
            case.kind not in KINDS
            or case.stored.ndim != ranks.get(case.stored.dtype)
            or case.stored.shape[0] != 1
            or case.output.ndim != 2
            or case.output.shape[0] != 1
        ):
            raise BundleError(
                f"the golden case {graph}/{name} makes no sense: {case.stored.dtype} "
                f"{case.stored.shape} -> {case.output.shape}"
            )
        cases.setdefault(graph, []).append(case)
    for listed in cases.values():
        listed.sort(key=lambda case: (KINDS.index(case.kind), case.name))
    return cases


def write_cases(cases: list[Case]) -> dict[str, NDArray[Any]]:
    """Return the tensors of a golden file."""
    made: dict[str, NDArray[Any]] = {}
    for case in cases:
        made[f"{case.graph}/{case.name}/input"] = case.stored
        made[f"{case.graph}/{case.name}/output"] = case.output
    return made
