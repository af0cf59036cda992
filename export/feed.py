"""What a case means to one artefact: the input as it takes it, the answer as it gives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitlet.export.cases import Case
from vitlet.runtime.batching import BatchSizes
from vitlet.runtime.manifest import Artifact

if TYPE_CHECKING:
    from vitlet.export.truth import Truth


def feed(case: Case, artifact: Artifact, truth: Truth) -> NDArray[Any] | None:
    """Return a case's input as the artefact takes it; None if the artefact cannot take it.

    What preprocesses by itself (a graph with its own normalization, a Core ML picture) takes
    pixels; noise in floats is no picture.
    """
    spec = artifact.inputs[0]
    if artifact.preprocess != "none":
        if not case.is_pixels or truth.preprocess is None:
            return None
        return case.pixels(truth.preprocess)
    return case.floats(truth.preprocess).astype(spec.dtype)


def gives_probabilities(artifact: Artifact) -> bool:
    """Return whether it gives the softmax of the source's logits, as Core ML classifiers do."""
    return bool(artifact.details.get("class_labels"))


def answers(cases: Sequence[Case], artifact: Artifact) -> list[Case]:
    """Return the cases with their answers as the artefact should give them."""
    if not gives_probabilities(artifact):
        return [*cases]
    return [replace(case, output=softmax(case.output)) for case in cases]


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return exp(x) / sum(exp(x)) of the rows of (B, classes)."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    made: NDArray[np.float32] = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return made


def telling_cases(cases: Sequence[Case]) -> list[Case]:
    """Return few cases that a device can meet: a real one, noise, and the brightest or longest."""
    possible = [case for case in cases if case.is_pixels or case.stored.dtype.kind == "i"]
    chosen = {case.kind: case for case in reversed(possible) if case.kind != "worst"}
    chosen.update({case.kind: case for case in possible if case.name in ("ones", "full")})
    return [*chosen.values()]


def feeds_of(
    cases: Sequence[Case], artifact: Artifact, truth: Truth
) -> dict[str, dict[str, NDArray[Any]]]:
    """Return case name -> what an engine takes, at the lowest batch of the artefact."""
    low = BatchSizes.of(artifact.inputs, artifact).low
    pairs = [(case, feed(case, artifact, truth)) for case in cases]
    name = artifact.inputs[0].name
    return {
        case.name: {name: array.repeat(low, axis=0)} for case, array in pairs if array is not None
    }
