"""What a sub-model learns from: its classes and others 1:1, and the full model's answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vitlet.compress.pictures import Pictures
from vitlet.compress.training import seeded
from vitlet.data.labelled import LabelledImages
from vitlet.models.deit import DeiT
from vitlet.partition.submodels.cut import Kept
from vitlet.partition.submodels.student import (
    Distillation,
    Lessons,
    grouped,
    new_student,
    own_labels,
)


@pytest.fixture(scope="module")
def told(full: DeiT, pictures: Pictures) -> Tensor:
    with torch.no_grad():
        return torch.log_softmax(full(pictures.batch(torch.arange(600))), -1)[None]


def test_own_classes_are_numbered_from_one_and_all_others_are_zero() -> None:
    labels = torch.tensor([0, 1, 2, 3, 4, 5])
    assert own_labels(labels, (4, 1), 6).tolist() == [0, 2, 0, 0, 1, 0]


def test_grouping_sums_the_other_classes() -> None:
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    torch.testing.assert_close(grouped(p, (3, 1)), torch.tensor([[0.4, 0.4, 0.2]]))
    torch.testing.assert_close(grouped(p, (0, 1, 2, 3))[:, 0], torch.tensor([0.0]))


def test_an_epoch_has_own_and_other_pictures_one_to_one_evenly(
    pictures: Pictures, told: Tensor
) -> None:
    lessons = Lessons(pictures, told, (1, 4), torch.arange(600))
    order = lessons.order(seeded(0))
    counts = np.bincount(pictures.labels[order].numpy(), minlength=6)
    assert counts.tolist() == [50, 100, 50, 50, 100, 50]
    assert len(order.unique()) == len(order)
    other = lessons.order(seeded(1))
    assert set(other.tolist()) != set(order.tolist())  # negatives are drawn anew
    assert lessons.order(seeded(0)).equal(order)


def test_a_limit_draws_that_many_own_pictures_and_as_many_others(
    pictures: Pictures, told: Tensor
) -> None:
    order = Lessons(pictures, told, (0,), torch.arange(600), limit=20).order(seeded(0))
    own = pictures.labels[order] == 0
    assert (int(own.sum()), len(order)) == (20, 40)


def test_rare_classes_are_made_up_for_and_held_out_pictures_never_come(
    pictures: Pictures, told: Tensor
) -> None:
    labels = pictures.labels
    rare = (labels == 5).nonzero()[:3, 0]
    allowed = torch.cat([(labels < 5).nonzero()[100:, 0], rare])
    order = Lessons(pictures, told, (0, 1), allowed).order(seeded(0))
    assert not set(order.tolist()) - set(allowed.tolist())
    own = int((labels[order] < 2).sum())
    assert len(order) == 2 * own and int((labels[order] == 5).sum()) == 3


def test_a_new_student_says_what_the_full_model_says(full: DeiT, pictures: Pictures) -> None:
    x = pictures.batch(torch.arange(40))
    student = new_student(full, (2, 0)).eval()
    with torch.no_grad():
        own, everything = student(x)
        torch.testing.assert_close(everything, full(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own[:, 1:], everything[:, [2, 0]], rtol=1e-4, atol=1e-5)
    weight, bias = full.head.weight[[1, 3, 4, 5]], full.head.bias[[1, 3, 4, 5]]
    from vitlet.partition.submodels.features import feature

    other = feature(full, x) @ weight.mean(0) + bias.mean() + np.log(4)
    torch.testing.assert_close(own[:, 0], other.detach(), rtol=1e-4, atol=1e-4)


def test_a_student_is_cut_with_both_heads(full: DeiT, pictures: Pictures) -> None:
    student = new_student(full, (2, 0)).eval()
    small = student.cut(Kept(channels=(0, 5, 7), heads=((0,), (1, 2))))
    own, everything = small(pictures.batch(torch.arange(4)))
    assert (own.shape, everything.shape) == ((4, 3), (4, 6))
    assert small.own.weight.equal(student.own.weight[:, [0, 5, 7]])
    assert small.cut(Kept(heads=((0,), (0,)))).own.weight.equal(small.own.weight)


def test_the_loss_is_labels_and_the_full_model_s_answers(
    full: DeiT, pictures: Pictures, told: Tensor
) -> None:
    weights = Distillation(temperature=2.0, labels=0.5, own=2.0, everything=3.0)
    lessons = Lessons(pictures, told, (1, 4), torch.arange(600), distillation=weights)
    student = new_student(full, (1, 4)).eval()
    for parameter in student.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=seeded("w"))
    some = torch.arange(12)
    own, everything = student(pictures.batch(some))

    def kl(p: Tensor, logits: Tensor) -> Tensor:
        return (p * (p.log() - F.log_softmax(logits / 2, -1))).sum(-1).mean()

    p = F.softmax(told[0, some] / 2, -1)
    pooled = torch.stack([1 - p[:, 1] - p[:, 4], p[:, 1], p[:, 4]], -1)
    hard = F.cross_entropy(own, own_labels(pictures.labels[some], (1, 4), 6))
    wanted = 0.5 * hard + 4 * (2 * kl(pooled, own) + 3 * kl(p, everything))
    torch.testing.assert_close(lessons.loss(student, some, seeded(0)), wanted, rtol=1e-4, atol=0)


def test_mirrored_pictures_go_with_the_answers_to_mirrored_pictures(
    data: LabelledImages, pictures: Pictures, full: DeiT
) -> None:
    from vitlet.partition.submodels.teacher import answers

    both = Pictures(data, pictures.spec, mirror=True)
    told = answers(full, both)
    assert told.shape == (2, 600, 6)
    mirrored = both.batch(torch.arange(8), torch.ones(8, dtype=torch.int64))
    assert mirrored.equal(pictures.batch(torch.arange(8)).flip(-1))
    with torch.no_grad():
        wanted = torch.log_softmax(full(mirrored), -1)
    torch.testing.assert_close(told[1, :8], wanted, rtol=1e-4, atol=1e-5)
    mixed = both.batch(torch.arange(4), torch.tensor([0, 1, 0, 1]))
    assert mixed[0].equal(pictures.batch(torch.arange(1))[0]) and mixed[1].equal(mirrored[1])
