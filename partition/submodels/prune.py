"""From the full model to one sub-model: score, cut and retrain, three times, then train longer.

The order is that of UP-ViTs and ED-ViT: residual channels, heads, hidden units. Scores are taken on
pictures of the sub-model's own classes, and of the model as the stage finds it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitlet.checkpoint import load_state_dict
from vitlet.compress.pictures import Pictures
from vitlet.compress.training import (
    WEIGHTS,
    Journal,
    Recipe,
    Run,
    is_finished,
    quiet_journal,
    seeded,
    train,
)
from vitlet.errors import UsageError
from vitlet.models.deit import DeiT
from vitlet.partition.submodels.cut import Kept, build, spread_weights, widths_of
from vitlet.partition.submodels.scores import Kind, best, magnitude_scores, unit_scores
from vitlet.partition.submodels.student import Distillation, Lessons, Student, new_student
from vitlet.partition.submodels.widths import Widths

Ranking = Literal["class-wise", "uniform", "magnitude", "scratch"]
_STAGES: tuple[Kind, ...] = ("channels", "heads", "hidden")


@dataclass(frozen=True)
class Task:
    """One sub-model that is to be made.

    Attributes:
        name: for the journal and its folder.
        classes: its own.
        widths: what is left of the full model.
        seed: of scoring pictures, order and augmentation.
        short: after each of the three cuts.
        long: in the end.
        ranking: "class-wise" is the method. For comparisons: "uniform" scores on pictures of all
            classes, "magnitude" on the weights alone, and "scratch" begins with random weights.
        pictures: of the own classes, for the scores.
        limit: the most pictures of the own classes in an epoch; None: all.
        distillation: the loss.
    """

    name: str
    classes: tuple[int, ...]
    widths: Widths
    seed: int = 0
    short: Recipe = field(default_factory=lambda: Recipe(epochs=5))
    long: Recipe = field(default_factory=lambda: Recipe(epochs=30))
    ranking: Ranking = "class-wise"
    pictures: int = 256
    limit: int | None = None
    distillation: Distillation = field(default_factory=Distillation)


@dataclass(frozen=True)
class Lecture:
    """What all sub-models of a split are made from.

    Attributes:
        model: the full model.
        pictures: the training set.
        answers: the model's log probabilities on it, (views, n, classes).
        allowed: indices of the pictures that may be trained on.
        digest: a hash of all four.
    """

    model: DeiT
    pictures: Pictures
    answers: Tensor
    allowed: Tensor
    digest: str


def make_submodel(
    lecture: Lecture, task: Task, folder: Path, journal: Journal = quiet_journal
) -> Student:
    """Prune the full model for the task's classes and retrain it.

    Args:
        lecture: the model, the pictures, the answers.
        task: what to make.
        folder: of this sub-model alone. What was finished there is not done again, and a run that
            was killed goes on after its last whole epoch, with the same result.
        journal: told of each epoch.

    Returns:
        The trained student, in eval mode; `student.vit` without its head is the sub-model.

    Raises:
        UsageError: classes that are not there or have no pictures, or widths beyond the model's.
        TrainingError: a loss that is not finite.
        StorageError, CheckpointError: the folder cannot be written, or holds damaged files.
    """
    check_task(lecture, task)
    shape = Student(
        build(lecture.model, task.widths, lecture.pictures.classes),
        nn.Linear(task.widths.dim, len(task.classes) + 1),
    )
    lessons = Lessons(
        lecture.pictures, lecture.answers, task.classes, lecture.allowed,
        limit=task.limit, distillation=task.distillation,
    )  # fmt: skip
    inputs = {"lecture": lecture.digest, "task": asdict(replace(task, name=""))}
    final = _run(f"{task.name} final", shape, lessons, task.long, task.seed, {**inputs, "stage": 4})
    if is_finished(folder / "final", final.key()):
        shape.load_state_dict(load_state_dict(folder / "final" / WEIGHTS))
        return shape.eval()
    if task.ranking == "scratch":
        student = _scratch(lecture.model, task, lecture.pictures.classes)
    else:
        student = new_student(lecture.model, task.classes).eval()
        images = _scoring_pictures(lecture, task)
        for number, kind in enumerate(_STAGES, start=1):
            if _sizes(widths_of(student.vit), kind) == _sizes(task.widths, kind):
                continue
            kept = _choose(student.vit, images, kind, task)
            student = student.cut(kept)
            chosen = hashlib.sha256(json.dumps(asdict(kept)).encode()).hexdigest()
            facts = {**inputs, "stage": number, "kept": chosen}
            name = f"{task.name} {kind}"
            run = _run(name, student, lessons, task.short, task.seed + number, facts)
            train(run, folder / f"{number}-{kind}", journal)
    shape.load_state_dict(student.state_dict())
    train(final, folder / "final", journal)
    return shape


def check_task(lecture: Lecture, task: Task) -> None:
    """Refuse what could only fail after hours; see `make_submodel`."""
    if not task.classes or len(set(task.classes)) != len(task.classes):
        raise UsageError(f"{task.name}: expected different classes, got {task.classes}")
    if min(task.classes) < 0 or max(task.classes) >= lecture.pictures.classes:
        raise UsageError(
            f"{task.name}: classes go from 0 to {lecture.pictures.classes - 1}, got {task.classes}"
        )
    usable = lecture.pictures.data.take(lecture.allowed.numpy())
    usable.require_every_class(task.classes)
    full, small = widths_of(lecture.model), task.widths
    if small.head_dim != full.head_dim or len(small.heads) != len(full.heads):
        raise UsageError(
            f"{task.name}: a sub-model has its full model's head size {full.head_dim} and "
            f"{len(full.heads)} blocks, got {small.head_dim} and {len(small.heads)}"
        )
    pairs = [(small.dim, full.dim), *zip(small.heads, full.heads, strict=True)]
    pairs += zip(small.hidden, full.hidden, strict=True)
    if any(mine > its for mine, its in pairs):
        raise UsageError(f"{task.name}: {small} is wider than the full model, {full}")


def _run(
    name: str, student: Student, lessons: Lessons, recipe: Recipe, seed: int, inputs: dict[str, Any]
) -> Run:
    loss: Callable[[Tensor, torch.Generator], Tensor] = lambda indices, rng: lessons.loss(  # noqa: E731
        student, indices, rng
    )
    return Run(name, student, lessons.order, loss, recipe, seed, inputs)


def _scratch(like: DeiT, task: Task, classes: int) -> Student:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        vit = build(like, task.widths, classes)
        spread_weights(vit)
        return new_student(vit, task.classes)


def _scoring_pictures(lecture: Lecture, task: Task) -> Tensor:
    """Return pictures to score on, as evenly over their classes as they allow."""
    rng = seeded(task.seed, "scores")
    everything = task.ranking == "uniform"
    classes = range(lecture.pictures.classes) if everything else task.classes
    labels = lecture.pictures.labels[lecture.allowed]
    chosen, left = [], task.pictures
    for rest, c in zip(range(len(classes), 0, -1), classes, strict=True):
        members = lecture.allowed[labels == c]
        share = min(len(members), -(-left // rest))
        chosen.append(members[torch.randperm(len(members), generator=rng)[:share]])
        left -= share
    return lecture.pictures.batch(torch.cat(chosen))


def _sizes(widths: Widths, kind: Kind) -> tuple[int, ...]:
    return {"channels": (widths.dim,), "heads": widths.heads, "hidden": widths.hidden}[kind]


def _choose(vit: DeiT, images: Tensor, kind: Kind, task: Task) -> Kept:
    """Return which units of a kind stay; of equal scores the first."""
    by_pictures = task.ranking != "magnitude"
    scores = unit_scores(vit, images, kind) if by_pictures else magnitude_scores(vit, kind)
    if kind == "channels":
        return Kept(channels=best(scores[0], task.widths.dim))
    counts = task.widths.heads if kind == "heads" else task.widths.hidden
    chosen = tuple(best(score, count) for score, count in zip(scores, counts, strict=True))
    return Kept(heads=chosen) if kind == "heads" else Kept(hidden=chosen)
