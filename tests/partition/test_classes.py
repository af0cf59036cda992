"""Every class is dealt to exactly one sub-model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vitlet.errors import ShapeError, UsageError
from vitlet.partition.submodels.classes import (
    CLASS_STRATEGIES,
    Parts,
    confusable_together,
    deal_classes,
)


def deal(strategy: str, classes: int, parts: int, seed: int = 0) -> Parts:
    means = np.random.default_rng(seed).standard_normal((classes, 6))
    return deal_classes(
        strategy, classes, parts, seed=seed, means=means, shares=range(1, parts + 1)
    )


@pytest.mark.parametrize("strategy", CLASS_STRATEGIES)
@pytest.mark.parametrize(("classes", "parts"), [(2, 1), (2, 2), (10, 3), (7, 7), (31, 4)])
def test_every_class_is_dealt_once(strategy: str, classes: int, parts: int) -> None:
    dealt = deal(strategy, classes, parts)
    assert len(dealt) == parts and all(dealt)
    assert sorted(itertools.chain(*dealt)) == list(range(classes))
    assert dealt == deal(strategy, classes, parts)
    if strategy != "load-weighted":
        sizes = [len(part) for part in dealt]
        assert max(sizes) - min(sizes) <= 1


def test_another_seed_deals_otherwise() -> None:
    assert len({deal("balanced-random", 10, 3, seed) for seed in range(5)}) == 5


def test_faster_devices_get_more_classes() -> None:
    dealt = deal_classes("load-weighted", 12, 3, shares=[1.0, 3.0, 2.0])
    assert [len(part) for part in dealt] == [2, 6, 4]
    dealt = deal_classes("load-weighted", 4, 3, shares=[1000.0, 1.0, 1.0])
    assert [len(part) for part in dealt] == [2, 1, 1]  # nobody is left without


def test_confusable_classes_go_together() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(3), 4)
    shuffled = rng.permutation(12)
    means = (10 * np.eye(3)[group] + rng.standard_normal((12, 3)))[shuffled]
    dealt = confusable_together(means, 3)
    assert all(len(set(group[shuffled[list(part)]])) == 1 for part in dealt)


def inside(means: np.ndarray, dealt: Parts) -> float:
    return sum(
        float(((means[a] - means[b]) ** 2).sum())
        for part in dealt
        for a, b in itertools.combinations(part, 2)
    )


def test_confusable_parts_are_near_the_best() -> None:
    # The best of all ways to deal 6 classes to 3 parts of 2.
    for seed in range(20):
        means = np.random.default_rng(seed).standard_normal((6, 4))
        best = min(
            inside(means, (order[:2], order[2:4], order[4:]))
            for order in itertools.permutations(range(6))
        )
        assert inside(means, confusable_together(means, 3)) <= 1.1 * best + 1e-9


@pytest.mark.parametrize(
    ("classes", "parts", "message"),
    [(1, 1, "cannot be split"), (3, 4, "4 sub-models for 3 classes.*--slots 3"), (3, 0, "one sub")],
)
def test_numbers_that_cannot_go_together_are_refused(
    classes: int, parts: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        deal_classes("balanced-random", classes, parts)


def test_what_a_strategy_needs_is_asked_for() -> None:
    with pytest.raises(UsageError, match="unknown class strategy"):
        deal_classes("best", 4, 2)
    with pytest.raises(UsageError, match="mean features"):
        deal_classes("confusable-together", 4, 2)
    with pytest.raises(UsageError, match="share"):
        deal_classes("load-weighted", 4, 2)
    with pytest.raises(ShapeError, match="positive share"):
        deal_classes("load-weighted", 4, 2, shares=[1.0, 0.0])
    with pytest.raises(ShapeError, match="finite"):
        deal_classes("confusable-together", 2, 2, means=np.array([[0.0], [np.nan]]))
