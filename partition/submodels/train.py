"""Trains a split: every sub-model, then the fusion on their features, then its confidence.

Sub-models know nothing of each other, so they can be made at once, by `jobs` processes. All that is
finished lies in the work folder; the same call goes on where the last one was stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitlet.compress.pictures import Pictures
from vitlet.compress.training import Journal, Recipe, file_journal, seeded
from vitlet.data.labelled import LabelledImages
from vitlet.data.spec import Preprocess
from vitlet.errors import UsageError
from vitlet.models.deit import DeiT
from vitlet.partition.submodels.cut import blocks_of
from vitlet.partition.submodels.features import feature
from vitlet.partition.submodels.fusion import (
    Fusion,
    FusionTask,
    fit_temperature,
    fused_logits,
    train_fusion,
)
from vitlet.partition.submodels.jobs import run_jobs
from vitlet.partition.submodels.judge import calibration_error
from vitlet.partition.submodels.prune import Lecture, Ranking, Task, check_task
from vitlet.partition.submodels.student import Distillation
from vitlet.partition.submodels.teacher import accuracy, answers, model_digest
from vitlet.partition.submodels.widths import Widths

_PORTION = 250
Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Settings:
    """How a split is trained.

    Attributes:
        short: after each of the three cuts of a sub-model.
        long: a sub-model's last training.
        fusion: the fusion's training.
        distillation: the sub-models' loss.
        ranking: how units are ranked; all but "class-wise" are for comparisons.
        pictures: of a sub-model's classes that units are scored on.
        limit: the most pictures of its own classes in a sub-model's epoch; None: all.
        mirror: whether a mirrored picture still shows its class.
        held_out: share of each class that nothing but the temperature is fitted to.
        seed: of everything that is random.
    """

    short: Recipe = field(default_factory=lambda: Recipe(epochs=5))
    long: Recipe = field(default_factory=lambda: Recipe(epochs=30))
    fusion: FusionTask = field(default_factory=FusionTask)
    distillation: Distillation = field(default_factory=Distillation)
    ranking: Ranking = "class-wise"
    pictures: int = 256
    limit: int | None = None
    mirror: bool = False
    held_out: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise UsageError(f"held_out must be between 0 and 1, got {self.held_out}")
        if self.pictures < 1 or (self.limit is not None and self.limit < 1):
            raise UsageError(
                f"expected pictures and limit of at least 1, got {self.pictures} and {self.limit}"
            )


@dataclass(frozen=True)
class TrainedSplit:
    """Sub-models and their fusion.

    Attributes:
        labels: class names.
        preprocess: what every sub-model expects of an image.
        classes: of each slot.
        submodels: of each slot; `head` tells "other" (0) and the own classes apart.
        fusion: in eval mode.
        temperature: what logits are divided by before the softmax.
        facts: hashes of the full model and the data, and what was measured on held-out pictures.
    """

    labels: tuple[str, ...]
    preprocess: Preprocess
    classes: tuple[tuple[int, ...], ...]
    submodels: tuple[DeiT, ...]
    fusion: Fusion
    temperature: float
    facts: dict[str, Any]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers that each slot sends."""
        return tuple(int(model.pos_embed.shape[-1]) for model in self.submodels)


def train_split(
    model: DeiT,
    data: LabelledImages,
    preprocess: Preprocess,
    classes: Sequence[Sequence[int]],
    widths: Sequence[Widths],
    work: Path,
    settings: Settings | None = None,
    *,
    jobs: int = 1,
    ray: str | None = None,
    progress: Progress | None = None,
    shared: Path | None = None,
) -> TrainedSplit:
    """Train sub-models of these classes and widths, and their fusion.

    Args:
        model: the full model, a plain ViT in eval mode.
        data: the training pictures.
        preprocess: what the model expects of an image.
        classes: of each slot; every class in exactly one.
        widths: of each slot's sub-model.
        work: what is finished lies there, and ``journal.jsonl`` of each sub-model's epochs.
        settings: budgets and seeds.
        jobs: sub-models that are trained at once, each by one process of one thread.
        ray: address of a Ray cluster that trains them instead; "local" starts one here.
        progress: told of each epoch as the journal is (on Ray, of the fusion's only).
        shared: where the full model's answers are kept, for several splits of one model; None
            keeps them in `work`.

    Raises:
        UsageError: classes or widths that do not fit, or data without pictures of some class.
        TrainingError: a loss that is not finite; what was good is kept.
        StorageError, CheckpointError: the work folder cannot be written, or holds damaged files.
    """
    settings = settings or Settings()
    blocks_of(model)
    dealt = tuple(tuple(int(c) for c in part) for part in classes)
    _check_classes(dealt, len(widths), data)
    pictures = Pictures(data, preprocess, mirror=settings.mirror)
    allowed, held = hold_out(pictures.labels, settings.held_out, settings.seed)
    lecture = make_lecture(model, pictures, allowed, work if shared is None else shared)
    tasks = [
        Task(
            name=f"slot-{i:02d}", classes=part, widths=width, seed=settings.seed,
            short=settings.short, long=settings.long, ranking=settings.ranking,
            pictures=settings.pictures, limit=settings.limit, distillation=settings.distillation,
        )
        for i, (part, width) in enumerate(zip(dealt, widths, strict=True))
    ]  # fmt: skip
    for task in tasks:
        check_task(lecture, task)
    students = run_jobs(lecture, tasks, work, jobs=jobs, ray=ray, progress=progress)
    sizes = tuple(width.dim for width in widths)
    vits = [student.vit for student in students]
    made_from = {
        "lecture": lecture.digest,
        "submodels": [model_digest(student) for student in students],
        "settings": settings.seed,
    }
    fusion = train_fusion(
        lambda: slot_features(vits, pictures),
        sizes,
        lecture.answers,
        pictures.labels,
        allowed,
        settings.fusion,
        work / "fusion",
        _journal(work / "fusion" / "journal.jsonl", progress),
        inputs=made_from,
    )
    judged = Pictures(data.take(held.numpy()), preprocess)
    told, labels = fused_logits(fusion, slot_features(vits, judged)[0]), judged.labels
    temperature = fit_temperature(told, labels)
    for student in students:
        student.vit.head = student.own
    return TrainedSplit(
        data.classes,
        preprocess,
        dealt,
        tuple(vits),
        fusion,
        temperature,
        {
            "full_sha256": model_digest(model),
            "data_sha256": data.fingerprint(),
            "held_out": len(held),
            "held_out_accuracy": accuracy(told, labels),
            "held_out_accuracy_full": accuracy(lecture.answers[0, held], labels),
            "calibration_error": _gap(told / temperature, labels),
            "calibration_error_raw": _gap(told, labels),
        },
    )


def make_lecture(model: DeiT, pictures: Pictures, allowed: Tensor, work: Path) -> Lecture:
    """Return what all sub-models are made from; the model's answers are kept in `work`."""
    told = answers(model, pictures, work)
    facts = [model_digest(model), pictures.data.fingerprint(), pictures.views]
    facts += [pictures.spec.to_json(), allowed.tolist()]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return Lecture(model, pictures, told, allowed, digest)


def hold_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return sorted indices to train on and to hold out: of each class that share, at least one.

    Raises:
        UsageError: a class of one picture, which cannot be in both.
    """
    rng = seeded(seed, "held out")
    held = []
    for c in sorted(set(labels.tolist())):
        members = (labels == c).nonzero()[:, 0]
        if len(members) < 2:
            raise UsageError(f"class {c} has one picture: expected two or more, to hold one out")
        count = min(len(members) - 1, max(1, round(share * len(members))))
        held.append(members[torch.randperm(len(members), generator=rng)[:count]])
    out = torch.zeros(len(labels), dtype=torch.bool)
    out[torch.cat(held)] = True
    return (~out).nonzero()[:, 0], out.nonzero()[:, 0]


@torch.no_grad()
def slot_features(models: Sequence[DeiT], pictures: Pictures) -> Tensor:
    """Return the features of all slots side by side, (views, n, sum of sizes)."""
    views = []
    for view in range(pictures.views):
        rows = []
        for part in torch.split(torch.arange(len(pictures)), _PORTION):
            given = pictures.batch(part, torch.full((len(part),), view))
            rows.append(torch.cat([feature(model, given) for model in models], dim=-1))
        views.append(torch.cat(rows))
    return torch.stack(views)


def _check_classes(dealt: tuple[tuple[int, ...], ...], widths: int, data: LabelledImages) -> None:
    if len(dealt) != widths:
        raise UsageError(f"expected classes and widths of each slot, got {len(dealt)} and {widths}")
    count = len(data.classes)
    if count < 2:
        raise UsageError(f"a split by class needs two classes or more, the data have {count}")
    if sorted(c for part in dealt for c in part) != list(range(count)):
        raise UsageError(f"expected every one of {count} classes in exactly one slot, got {dealt}")
    data.require_every_class(range(count), least=2)


def _gap(logits: Tensor, labels: Tensor) -> float:
    return calibration_error(logits.softmax(-1).numpy(), labels.numpy())


def _journal(path: Path, progress: Progress | None) -> Journal:
    write = file_journal(path)

    def note(entry: dict[str, Any]) -> None:
        write(entry)
        if progress is not None:
            progress(entry)

    return note
