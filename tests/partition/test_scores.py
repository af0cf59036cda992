"""Scores of units: KL(p_full || p_without), exact by cutting, and its leading term by slopes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vitlet.compress.pictures import Pictures
from vitlet.errors import UsageError
from vitlet.models.deit import DeiT
from vitlet.partition.submodels.cut import Kept, cut
from vitlet.partition.submodels.scores import (
    best,
    estimated_scores,
    exact_scores,
    group_scores,
    magnitude_scores,
    unit_scores,
)


@pytest.fixture(scope="module")
def images(pictures: Pictures) -> Tensor:
    return pictures.batch(torch.arange(48))


def divergence(full: DeiT, small: DeiT, x: Tensor) -> float:
    """The definition: mean of sum_y p log(p / q)."""
    with torch.no_grad():
        p, q = F.softmax(full(x), -1), F.softmax(small(x), -1)
    return float((p * (p / q).log()).sum(-1).mean())


def without(count: int, units: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(i for i in range(count) if i not in units)


def ranks(values: Tensor) -> np.ndarray:
    return np.argsort(np.argsort(values.numpy()))


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's: the correlation of the ranks."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def test_head_scores_are_the_divergence_of_the_model_without_the_head(
    full: DeiT, images: Tensor
) -> None:
    scores = unit_scores(full, images, "heads")
    assert [len(score) for score in scores] == [4, 4]
    for head in range(4):
        small = cut(full, Kept(heads=((0, 1, 2, 3), without(4, (head,)))))
        assert scores[1][head] == pytest.approx(divergence(full, small, images), rel=1e-3, abs=1e-6)


def test_group_scores_are_the_divergence_of_the_model_without_the_channels(
    full: DeiT, images: Tensor
) -> None:
    scores = group_scores(full, images, [[0, 1], [5, 9, 30]])
    for score, group in zip(scores, ((0, 1), (5, 9, 30)), strict=True):
        small = cut(full, Kept(channels=without(32, group)))
        assert float(score) == pytest.approx(divergence(full, small, images), rel=1e-3)


def test_channel_scores_of_a_group_sum_to_its_exact_score(full: DeiT, images: Tensor) -> None:
    (scores,) = unit_scores(full, images, "channels", group=8)
    exact = group_scores(full, images, [list(range(i, i + 8)) for i in (0, 8, 16, 24)])
    torch.testing.assert_close(scores.reshape(4, 8).sum(1), exact, rtol=1e-4, atol=0)
    estimate = estimated_scores(full, images, "channels")[0]  # inside a group, its proportions
    torch.testing.assert_close(scores[:8] / scores[0], estimate[:8] / estimate[0])


def test_estimates_are_half_the_expected_squared_slope_of_the_log_probability(
    full: DeiT, images: Tensor
) -> None:
    x, unit, step = images[:3], 7, 1e-2

    def logs(gate: float) -> Tensor:
        changed = cut(full, Kept()).double()
        changed.blocks[0].mlp.fc2.weight.data[:, unit] *= gate
        with torch.no_grad():
            return F.log_softmax(changed(x.double()), -1)

    slope = (logs(1 + step) - logs(1 - step)) / (2 * step)
    wanted = 0.5 * (logs(1).exp() * slope**2).sum(-1).mean()
    got = estimated_scores(full, x, "hidden")[0][unit]
    assert float(got) == pytest.approx(float(wanted), rel=2e-3)


@pytest.mark.parametrize("kind", ["hidden", "heads", "channels"])
def test_estimates_rank_units_nearly_as_exact_scores_do(
    full: DeiT, images: Tensor, kind: str
) -> None:
    if kind == "channels":
        pairs = [
            (
                group_scores(full, images, [[i] for i in range(32)]),
                estimated_scores(full, images, "channels")[0],
            )
        ]
    else:
        exact = exact_scores(full, images, kind)  # type: ignore[arg-type]
        pairs = list(zip(exact, estimated_scores(full, images, kind), strict=True))  # type: ignore[arg-type]
    if kind == "heads":  # four to a block are too few to rank: those of all blocks together
        pairs = [tuple(torch.cat(scores) for scores in zip(*pairs, strict=True))]
    assert min(rank_correlation(a, b) for a, b in pairs) > 0.8


def test_a_unit_that_writes_nothing_scores_nothing(full: DeiT, images: Tensor) -> None:
    model = cut(full, Kept())
    model.blocks[0].mlp.fc2.weight.data[:, 3] = 0
    model.blocks[1].attn.proj.weight.data[:, 8:16] = 0  # head 1
    assert float(unit_scores(model, images, "hidden")[0][3]) == 0
    heads = unit_scores(model, images, "heads")
    assert float(heads[1][1]) == pytest.approx(0, abs=1e-6) and float(heads[1][0]) > 1e-5


def test_scores_depend_on_the_classes_of_the_pictures(full: DeiT, pictures: Pictures) -> None:
    first, second = (
        unit_scores(full, pictures.batch((pictures.labels == c).nonzero()[:48, 0]), "hidden")[1]
        for c in (0, 3)
    )
    assert best(first, 32) != best(second, 32)


def test_magnitudes_are_squared_norms_of_a_unit_s_weights(full: DeiT) -> None:
    block = full.blocks[1]
    mlp, attention = block.mlp, block.attn
    hidden = (mlp.fc1.weight**2).sum(1) + (mlp.fc2.weight**2).sum(0)
    torch.testing.assert_close(magnitude_scores(full, "hidden")[1], hidden.detach())
    rows = [part * 32 + 2 * 8 + i for part in range(3) for i in range(8)]
    head = (attention.qkv.weight[rows] ** 2).sum() + (attention.proj.weight[:, 16:24] ** 2).sum()
    torch.testing.assert_close(magnitude_scores(full, "heads")[1][2], head.detach())
    written = sum((b.attn.proj.weight[5] ** 2).sum() + (b.mlp.fc2.weight[5] ** 2).sum()
                  for b in full.blocks)  # fmt: skip
    read = sum((b.attn.qkv.weight[:, 5] ** 2).sum() + (b.mlp.fc1.weight[:, 5] ** 2).sum()
               for b in full.blocks)  # fmt: skip
    ends = (full.patch_embed.proj.weight[5] ** 2).sum() + (full.head.weight[:, 5] ** 2).sum()
    torch.testing.assert_close(
        magnitude_scores(full, "channels")[0][5], (written + read + ends).detach()
    )


def test_the_best_units_are_kept_in_order_and_of_equals_the_first() -> None:
    assert best(torch.tensor([1.0, 3.0, 2.0, 3.0, 1.0]), 3) == (1, 2, 3)
    assert best(torch.zeros(4), 2) == (0, 1)
    with pytest.raises(UsageError, match="keep 1 to 4 units, got 5"):
        best(torch.zeros(4), 5)


def test_scores_need_pictures_and_groups_leave_something(full: DeiT, images: Tensor) -> None:
    with pytest.raises(UsageError, match="at least one picture"):
        unit_scores(full, images[:0], "heads")
    with pytest.raises(UsageError, match="all channels"):
        group_scores(full, images, [list(range(32))])
