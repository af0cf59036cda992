"""A sub-model while it is trained: its ViT, two heads, its pictures and its loss.

It learns to tell its own classes apart and all others from them (output 0, "other"), and besides,
through a head that is dropped in the end, the full model's opinion on every class: what a device
knows of classes that are not its own is what is left of them when their device is lost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitlet.compress.pictures import Pictures
from vitlet.models.deit import DeiT
from vitlet.partition.submodels.cut import Kept, cut
from vitlet.partition.submodels.features import feature

OTHER = 0  # the output for all classes that are not the sub-model's own


@dataclass(frozen=True)
class Distillation:
    """What a sub-model's loss is made of.

    Attributes:
        temperature: at which the full model's answers are compared.
        labels: weight of the cross-entropy with the true classes.
        own: weight of the KL from the full model on the own classes and "other".
        everything: weight of the KL from the full model on all classes.
    """

    temperature: float = 2.0
    labels: float = 1.0
    own: float = 1.0
    everything: float = 1.0


class Student(nn.Module):
    """A ViT with a head for all classes (its own) and one for a few and "other"."""

    def __init__(self, vit: DeiT, own: nn.Linear) -> None:
        super().__init__()
        self.vit, self.own = vit, own

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of "other" and the own classes, and of all classes."""
        features = feature(self.vit, images)
        return self.own(features), self.vit.head(features)

    def cut(self, kept: Kept) -> Student:
        """Return a smaller student: see `vitlet.partition.submodels.cut.cut`."""
        own = self.own
        if kept.channels is not None:
            own = nn.Linear(len(kept.channels), self.own.out_features)
            own.load_state_dict(
                {
                    "weight": self.own.weight.detach()[:, list(kept.channels)],
                    "bias": self.own.bias.detach(),
                }
            )
        return Student(cut(self.vit, kept), own).train(self.training)


def new_student(vit: DeiT, classes: tuple[int, ...]) -> Student:
    """Return a student whose own head says what the ViT's head says of its classes.

    "Other" starts as the mean of the other classes' rows, raised by the log of their number: the
    sum of their probabilities where they are alike.
    """
    state = vit.state_dict()
    weight, bias = state["head.weight"], state["head.bias"]
    others = [c for c in range(len(bias)) if c not in classes]
    own = nn.Linear(weight.shape[1], len(classes) + 1)
    with torch.no_grad():
        own.weight[1:], own.bias[1:] = weight[list(classes)], bias[list(classes)]
        own.weight[OTHER], own.bias[OTHER] = weight.mean(0), bias.min() - 10.0
        if others:
            own.weight[OTHER] = weight[others].mean(0)
            own.bias[OTHER] = bias[others].mean() + torch.tensor(float(len(others))).log()
    return Student(cut(vit, Kept()), own)


def own_labels(labels: Tensor, classes: tuple[int, ...], count: int) -> Tensor:
    """Return 1 + the place in `classes` of each label, 0 for the others."""
    table = torch.zeros(count, dtype=torch.int64)
    table[list(classes)] = torch.arange(1, len(classes) + 1)
    return table[labels]


def grouped(probabilities: Tensor, classes: tuple[int, ...]) -> Tensor:
    """Return (B, 1 + own): the sum over all other classes, then the own ones."""
    own = probabilities[:, list(classes)]
    return torch.cat(((1 - own.sum(-1, keepdim=True)).clamp_min(0.0), own), dim=-1)


class Lessons:
    """The pictures of a sub-model's epochs, and the loss on them.

    Every epoch has all pictures of the own classes and as many of others, evenly over the other
    classes, drawn anew.

    Args:
        pictures: the whole training set.
        answers: the full model's log probabilities, (views, n, classes).
        classes: the sub-model's own.
        allowed: indices of the pictures that may be used.
        limit: the most pictures of the own classes in an epoch; None: all.
        distillation: weights of the loss.
    """

    def __init__(
        self,
        pictures: Pictures,
        answers: Tensor,
        classes: tuple[int, ...],
        allowed: Tensor,
        *,
        limit: int | None = None,
        distillation: Distillation | None = None,
    ) -> None:
        self.pictures, self.answers, self.classes = pictures, answers, classes
        self.limit, self.distillation = limit, distillation or Distillation()
        labels = pictures.labels[allowed]
        self.own = own_labels(pictures.labels, classes, pictures.classes)
        self.positive = allowed[self.own[allowed] > 0]
        others = [c for c in range(pictures.classes) if c not in classes]
        self.negative = [allowed[labels == c] for c in others if bool((labels == c).any())]

    def order(self, rng: torch.Generator) -> Tensor:
        """Return one epoch's pictures, shuffled: own and others 1:1 where there are enough."""
        shuffled = self.positive[torch.randperm(len(self.positive), generator=rng)]
        chosen = [shuffled[: self.limit]]
        wanted = len(chosen[0])
        for left, others in zip(range(len(self.negative), 0, -1), self._by_size(), strict=True):
            # The smallest class first: what it lacks, the larger ones make up for.
            share = min(len(others), -(-wanted // left))
            chosen.append(others[torch.randperm(len(others), generator=rng)[:share]])
            wanted -= share
        together = torch.cat(chosen)
        return together[torch.randperm(len(together), generator=rng)]

    def _by_size(self) -> list[Tensor]:
        return sorted(self.negative, key=len)

    def loss(self, student: Student, indices: Tensor, rng: torch.Generator) -> Tensor:
        """Return the mean loss on the pictures at `indices`, each in a random view."""
        views = self.pictures.draw_views(len(indices), rng)
        own, everything = student(self.pictures.batch(indices, views))
        weights, t = self.distillation, self.distillation.temperature
        told = F.softmax(self.answers[views, indices] / t, dim=-1)
        loss = weights.labels * F.cross_entropy(own, self.own[indices])
        loss = loss + weights.own * t**2 * _kl(grouped(told, self.classes), own / t)
        return loss + weights.everything * t**2 * _kl(told, everything / t)


def _kl(target: Tensor, logits: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(logits, dim=-1), target, reduction="batchmean")
