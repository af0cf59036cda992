"""How good a split is: whole, and with any device or pair of devices lost. No engine in here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlet.errors import ShapeError, UsageError

Answer = Callable[[tuple[int, ...]], NDArray[np.floating]]
_MOST_PAIRS = 200  # of devices; beyond that pairs are left out, and the result says so


@dataclass(frozen=True)
class Case:
    """The answers with some devices lost.

    Attributes:
        lost: names of the lost devices.
        missing: slots that nobody answers for then.
        covered: classes of the slots that are left.
        accuracy: over all pictures.
        accuracy_covered: over pictures of the covered classes.
    """

    lost: tuple[str, ...]
    missing: tuple[int, ...]
    covered: tuple[int, ...]
    accuracy: float
    accuracy_covered: float


@dataclass(frozen=True)
class Judgement:
    """What a split answers.

    Attributes:
        pictures: how many were judged.
        recall: share of each class that is found, (classes,), nothing lost; NaN without pictures.
        whole: nothing lost.
        one_lost: each device lost, in the order of the devices.
        two_lost: every pair lost; empty where there are too many or fewer than three devices.
        calibration_error: expected calibration error of the confidence, nothing lost.
    """

    pictures: int
    recall: tuple[float, ...]
    whole: Case
    one_lost: tuple[Case, ...]
    two_lost: tuple[Case, ...]
    calibration_error: float

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""

        def plain(case: Case) -> dict[str, Any]:
            return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(case).items()}

        return {
            "pictures": self.pictures,
            "recall": [None if share != share else share for share in self.recall],
            "whole": plain(self.whole),
            "one_lost": [plain(case) for case in self.one_lost],
            "two_lost": [plain(case) for case in self.two_lost],
            "calibration_error": self.calibration_error,
        }


def judge(
    answer: Answer,
    labels: NDArray[np.int64],
    classes: Sequence[Sequence[int]],
    holders: Sequence[Sequence[str]],
    temperature: float = 1.0,
) -> Judgement:
    """Judge a split by what it answers to pictures whose classes are known.

    Args:
        answer: logits (n, classes) without the slots whose indices are given.
        labels: (n,) class numbers.
        classes: of each slot.
        holders: names of the devices that hold each slot; it is missing when all are lost.
        temperature: what logits are divided by before the softmax.

    Raises:
        UsageError: no pictures, or not as many `classes` as `holders`.
        ShapeError: the logits are not one finite row for each picture.
    """
    if len(labels) == 0 or len(classes) != len(holders):
        raise UsageError(
            f"expected pictures, and classes and holders of each slot, got {len(labels)} pictures, "
            f"{len(classes)} and {len(holders)}"
        )
    known: dict[tuple[int, ...], NDArray[np.floating]] = {}

    def logits(missing: tuple[int, ...]) -> NDArray[np.floating]:
        if missing not in known:
            rows = answer(missing)
            if rows.ndim != 2 or len(rows) != len(labels) or not np.isfinite(rows).all():
                raise ShapeError(
                    f"expected finite logits ({len(labels)}, classes), got shape {rows.shape}"
                )
            known[missing] = rows
        return known[missing]

    def case(lost: tuple[str, ...]) -> Case:
        gone = [i for i, names in enumerate(holders) if set(names) <= set(lost)]
        covered = sorted(c for i, part in enumerate(classes) if i not in gone for c in part)
        if len(gone) == len(holders):
            return Case(lost, tuple(gone), (), 0.0, 0.0)  # nobody is there to answer
        right = logits(tuple(gone)).argmax(-1) == labels
        among = np.isin(labels, covered)
        share = float(right[among].mean()) if among.any() else 0.0
        return Case(lost, tuple(gone), tuple(covered), float(right.mean()), share)

    devices = list(dict.fromkeys(name for names in holders for name in names))
    pairs = list(itertools.combinations(devices, 2)) if len(devices) > 2 else []
    rows = logits(())
    said = rows.argmax(-1)
    recall = tuple(
        float((said[labels == c] == c).mean()) if (labels == c).any() else float("nan")
        for c in range(rows.shape[1])
    )
    return Judgement(
        len(labels),
        recall,
        case(()),
        tuple(case((name,)) for name in devices),
        tuple(case(pair) for pair in pairs) if len(pairs) <= _MOST_PAIRS else (),
        calibration_error(softmax(rows / temperature), labels),
    )


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return rows that sum to 1."""
    raised = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    whole: NDArray[np.float64] = raised / raised.sum(-1, keepdims=True)
    return whole


def calibration_error(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64], bins: int = 15
) -> float:
    """Return the expected calibration error: the mean gap of confidence and accuracy over bins.

    "On Calibration of Modern Neural Networks" (Guo et al., 2017), arXiv 1706.04599.
    """
    confidence, said = probabilities.max(-1), probabilities.argmax(-1)
    which = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(which, weights=confidence - (said == labels), minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))
