"""Deals the classes to the sub-models: every class to exactly one.

The paper deals them at random, as evenly as possible (arXiv 2410.11650). Two other ways: classes
that the model confuses go together, so that one sub-model tells them apart; and faster devices get
more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vitlet.errors import ShapeError, UsageError

ClassStrategy = Literal["balanced-random", "confusable-together", "load-weighted"]
CLASS_STRATEGIES: tuple[ClassStrategy, ...] = get_args(ClassStrategy)
Parts = tuple[tuple[int, ...], ...]


def deal_classes(
    strategy: str,
    classes: int,
    parts: int,
    *,
    seed: int = 0,
    means: NDArray[np.floating] | None = None,
    shares: Sequence[float] | None = None,
) -> Parts:
    """Return the classes of each sub-model, sorted.

    Args:
        strategy: "balanced-random", "confusable-together" or "load-weighted".
        classes: number of classes.
        parts: number of sub-models.
        seed: of what is random.
        means: mean features of each class, (classes, D); for "confusable-together".
        shares: what each sub-model can do, such as its device's speed; for "load-weighted".

    Raises:
        UsageError: an unknown strategy, fewer than two classes, more parts than classes, or
            something that the strategy needs is not given.
        ShapeError: `means` or `shares` of the wrong size.
    """
    if strategy not in CLASS_STRATEGIES:
        raise UsageError(
            f"unknown class strategy {strategy!r}: the strategies are {', '.join(CLASS_STRATEGIES)}"
        )
    check_counts(classes, parts)
    if strategy == "balanced-random":
        return balanced_random(classes, parts, seed)
    if strategy == "load-weighted":
        if shares is None:
            raise UsageError("load-weighted needs the share of each sub-model")
        return load_weighted(classes, shares, seed)
    if means is None:
        raise UsageError("confusable-together needs the mean features of each class")
    return confusable_together(means, parts)


def check_counts(classes: int, parts: int) -> None:
    """Refuse numbers of classes and sub-models that cannot go together.

    Raises:
        UsageError: as said.
    """
    if classes < 2:
        raise UsageError(f"a model of {classes} class cannot be split by class: it needs two")
    if parts < 1:
        raise UsageError(f"expected at least one sub-model, got {parts}")
    if parts > classes:
        raise UsageError(
            f"{parts} sub-models for {classes} classes: each needs at least one class; use fewer "
            f"devices, or --slots {classes} so that the others hold replicas"
        )


def balanced_random(classes: int, parts: int, seed: int = 0) -> Parts:
    """Deal at random, the numbers of classes differing by at most one."""
    order = np.random.default_rng(seed).permutation(classes)
    return _sorted([order[part::parts] for part in range(parts)])


def load_weighted(classes: int, shares: Sequence[float], seed: int = 0) -> Parts:
    """Deal at random, the numbers of classes in proportion to `shares`, and at least one each.

    Raises:
        ShapeError: a share is not a positive number.
    """
    weights = np.asarray(shares, np.float64)
    if weights.ndim != 1 or not np.isfinite(weights).all() or (weights <= 0).any():
        raise ShapeError(f"expected a positive share of each sub-model, got {list(shares)}")
    check_counts(classes, len(weights))
    counts = np.ones(len(weights), np.int64)
    for _ in range(classes - len(weights)):  # the next class to whom it makes the least late
        counts[np.argmin((counts + 1) / weights)] += 1
    order = np.random.default_rng(seed).permutation(classes)
    return _sorted(np.split(order, np.cumsum(counts)[:-1]))


def confusable_together(means: NDArray[np.floating], parts: int) -> Parts:
    """Put classes with close mean features together, the numbers differing by at most one.

    Seeds that are far apart take turns in taking the nearest class; then classes are exchanged as
    long as that brings the members of the parts closer together. Nothing is random.

    Args:
        means: (classes, D), finite.
        parts: number of sub-models.

    Raises:
        ShapeError: `means` is not a finite matrix.
    """
    points = np.asarray(means, np.float64)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise ShapeError(f"expected finite mean features (classes, D), got shape {points.shape}")
    classes = len(points)
    check_counts(classes, parts)
    points = points - points.mean(axis=0)  # smaller numbers, less rounding in the differences
    squares = (points**2).sum(axis=1)
    gap = np.maximum(squares[:, None] + squares[None] - 2 * points @ points.T, 0)
    np.fill_diagonal(gap, 0)
    seeds = [int(gap.sum(axis=1).argmax())]
    while len(seeds) < parts:
        seeds.append(int(np.where(np.isin(range(classes), seeds), -1, gap[seeds].min(0)).argmax()))
    members = [[seed] for seed in seeds]
    left = set(range(classes)) - set(seeds)
    while left:
        for part in members[: len(left)]:
            nearest = min(sorted(left), key=lambda c, part=part: gap[c, part].mean())  # type: ignore[misc]
            part.append(nearest)
            left.remove(nearest)
    owner = np.empty(classes, np.int64)
    for index, part in enumerate(members):
        owner[part] = index
    _exchange(gap, owner)
    return _sorted([np.flatnonzero(owner == index) for index in range(parts)])


def _exchange(gap: NDArray[np.float64], owner: NDArray[np.int64]) -> None:
    """Swap the owners of two classes, best swap first, while that lowers the gaps inside parts."""
    classes, parts = len(owner), int(owner.max()) + 1
    for _ in range(classes):
        inside = np.eye(parts)[owner]  # (classes, parts)
        sums = gap @ inside  # of the gaps from each class to each part's members
        own = sums[np.arange(classes), owner]
        # Swapping a and b: each leaves its part and joins the other's, where the partner has gone.
        gain = own[:, None] + own[None] - sums[:, owner] - sums[:, owner].T + 2 * gap
        gain[owner[:, None] == owner[None]] = 0
        a, b = np.unravel_index(int(gain.argmax()), gain.shape)
        if gain[a, b] <= 1e-9 * max(1.0, float(gap.max())):
            return
        owner[a], owner[b] = owner[b], owner[a]


def _sorted(parts: Sequence[NDArray[np.int64]]) -> Parts:
    return tuple(tuple(sorted(int(c) for c in part)) for part in parts)
