"""Small ViTs for all classes, trained from random weights: what a split has to be better than."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vitlet.compress.pictures import Pictures
from vitlet.compress.training import Journal, Recipe, Run, quiet_journal, train
from vitlet.models.deit import DeiT
from vitlet.partition.submodels.cut import build, spread_weights
from vitlet.partition.submodels.features import logits
from vitlet.partition.submodels.prune import Lecture
from vitlet.partition.submodels.widths import Widths

_PORTION = 250


def train_small(
    lecture: Lecture,
    widths: Widths,
    recipe: Recipe,
    seed: int,
    folder: Path,
    journal: Journal = quiet_journal,
    *,
    limit: int | None = None,
    temperature: float = 2.0,
) -> DeiT:
    """Train one ViT of these widths on all classes, with labels and the full model's answers.

    It is taught as a sub-model is, so that a difference is the split's doing.

    Args:
        lecture: the full model, the pictures, the answers.
        widths: of the small model.
        recipe: how long.
        seed: of weights, order and augmentation.
        folder: of this run alone.
        journal: told of each epoch.
        limit: the most pictures in an epoch; None: all.
        temperature: at which the full model's answers are compared.

    Raises:
        TrainingError, StorageError, CheckpointError: as `vitlet.compress.training.train`.
    """
    pictures, allowed = lecture.pictures, lecture.allowed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(lecture.model, widths, pictures.classes)
        spread_weights(model)

    def order(rng: torch.Generator) -> Tensor:
        return allowed[torch.randperm(len(allowed), generator=rng)[:limit]]

    def loss(indices: Tensor, rng: torch.Generator) -> Tensor:
        views = pictures.draw_views(len(indices), rng)
        given = logits(model, pictures.batch(indices, views))
        told = F.softmax(lecture.answers[views, indices] / temperature, dim=-1)
        kl = F.kl_div(F.log_softmax(given / temperature, dim=-1), told, reduction="batchmean")
        return F.cross_entropy(given, pictures.labels[indices]) + temperature**2 * kl

    facts: dict[str, Any] = {"lecture": lecture.digest, "widths": asdict(widths), "limit": limit}
    facts["temperature"] = temperature
    train(Run(folder.name, model, order, loss, recipe, seed, facts), folder, journal)
    return model.eval()


@torch.no_grad()
def ensemble_probabilities(models: list[DeiT], pictures: Pictures) -> Tensor:
    """Return the mean of the models' probabilities, (n, classes)."""
    rows = []
    for part in torch.split(torch.arange(len(pictures)), _PORTION):
        given = pictures.batch(part)
        said = [F.softmax(logits(model, given), dim=-1) for model in models]
        rows.append(torch.stack(said).mean(0))
    return torch.cat(rows)
