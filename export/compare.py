"""Measures how far an artefact's outputs are from the source's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32] | NDArray[np.float64]
SNR_LIMIT = 200.0  # dB; stands for "equal", since infinity has no place in JSON


@dataclass(frozen=True)
class Metrics:
    """Figures of a batch, each for its worst row.

    Attributes:
        cosine: between a row and the source's, in [-1, 1]; 1 where both are zero.
        max_abs: largest absolute difference.
        relative: the same, over the largest magnitude of the source's row.
        snr_db: power of the source's row over that of the difference, in dB, at most 200.
        nonfinite: how many output values are NaN or infinite; the other figures then leave
            them out, and `cosine` is -1.
    """

    cosine: float
    max_abs: float
    relative: float
    snr_db: float
    nonfinite: int


def compare(expected: Floats, actual: Floats) -> Metrics:
    """Compare rows of outputs, both (B, ...) of one shape.

    Raises:
        ValueError: the shapes differ.
    """
    if expected.shape != actual.shape:
        raise ValueError(f"shapes differ: expected {expected.shape}, got {actual.shape}")
    want = expected.reshape(len(expected), -1).astype(np.float64)
    got = actual.reshape(len(actual), -1).astype(np.float64)
    bad = ~np.isfinite(got)
    got = np.where(bad, want, got)
    error = np.abs(got - want)
    size = np.abs(want).max(axis=1, initial=0.0)
    worst = error.max(axis=1, initial=0.0)
    noise, signal = (error**2).sum(axis=1), (want**2).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        lengths = np.sqrt(signal) * np.sqrt((got**2).sum(axis=1))
        cosine = np.where(lengths > 0, (want * got).sum(axis=1) / lengths, worst == 0)
        relative = np.where(worst > 0, worst / size, 0.0)
        snr = np.where(noise > 0, 10 * np.log10(signal / noise), SNR_LIMIT)
    return Metrics(
        cosine=-1.0 if bad.any() else float(np.clip(cosine, -1, 1).min(initial=1.0)),
        max_abs=float(worst.max(initial=0.0)),
        # An output where the source gives zeros has no finite relative error: keep JSON sound.
        relative=float(np.minimum(relative, 1e9).max(initial=0.0)),
        snr_db=float(np.clip(snr, -SNR_LIMIT, SNR_LIMIT).min(initial=SNR_LIMIT)),
        nonfinite=int(bad.sum()),
    )


def best_agree(expected: Floats, actual: Floats, tie: float) -> NDArray[np.bool_]:
    """Tell per row of (B, classes) scores whether both have the same best class.

    Args:
        expected: the source's scores.
        actual: the artefact's.
        tie: a class whose source score is within `tie` (relative to the row's largest
            magnitude) of the best counts as best too: rounding may choose either.
    """
    rows = np.arange(len(expected))
    scores = np.where(np.isfinite(actual), actual, -np.inf)
    chosen = expected[rows, scores.argmax(axis=1)]
    room = tie * np.abs(expected).max(axis=1, initial=0.0)
    agreed: NDArray[np.bool_] = chosen >= expected.max(axis=1) - room
    return agreed & np.isfinite(actual).all(axis=1)


@dataclass(frozen=True)
class Differences:
    """How outputs move between inputs.

    Attributes:
        spread: largest deviation of a source output from the mean over the inputs, relative to the
            largest output. Near 0: the source barely reacts to its input, and agreement of
            outputs proves little, since a wrong input would go unnoticed.
        error: largest error of the artefact's deviations, relative to the largest deviation.
    """

    spread: float
    error: float


def differences(expected: Floats, actual: Floats) -> Differences | None:
    """Compare the deviations from the mean over inputs of (n, D) outputs; None for under 2."""
    if len(expected) < 2:
        return None
    want = expected.astype(np.float64) - expected.astype(np.float64).mean(axis=0)
    filled = np.where(np.isfinite(actual), actual, 0).astype(np.float64)
    got = filled - filled.mean(axis=0)
    moved, size = np.abs(want).max(initial=0.0), np.abs(expected).max(initial=0.0)
    off = np.abs(got - want).max(initial=0.0)
    if moved == 0:
        return Differences(0.0, 0.0 if off == 0 else 1e9)
    return Differences(float(moved / size), float(min(off / moved, 1e9)))


def neighbour_scores(outputs: Floats) -> Floats:
    """Return (n, n) cosines between outputs with -2 on the diagonal: who is nearest to whom."""
    values = np.where(np.isfinite(outputs), outputs, 0).astype(np.float64)
    lengths = np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    cosines: Floats = (values / lengths) @ (values / lengths).T
    np.fill_diagonal(cosines, -2.0)
    return cosines
