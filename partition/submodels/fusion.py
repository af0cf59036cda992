"""The fusion: features of all slots, some of them missing, to one answer.

A tower MLP whose layers halve (LayerNorm, Linear to 1/2, GELU, Linear to 1/2, GELU, Linear to the
classes). A missing slot's features are replaced by a learned vector before the LayerNorm; training
drops slots at random, so that any subset of devices still gives an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitlet.compress.training import (
    Journal,
    Recipe,
    Run,
    is_finished,
    quiet_journal,
    train,
)
from vitlet.errors import UsageError


class Fusion(nn.Module):
    """Joins the features of all slots, in their order.

    Args:
        features: numbers that each slot sends.
        classes: size of the output.
    """

    def __init__(self, features: Sequence[int], classes: int) -> None:
        super().__init__()
        if not features or min(features) < 1 or classes < 2:
            raise UsageError(
                f"expected at least one slot with features and two classes, got {tuple(features)} "
                f"and {classes}"
            )
        width = sum(features)
        half, quarter = max(classes, width // 2), max(classes, width // 4)
        slot_of = torch.repeat_interleave(torch.arange(len(features)), torch.tensor(features))
        # (slots, width): which features belong to which slot.
        spread = (slot_of == torch.arange(len(features))[:, None]).float()
        self.register_buffer("spread", spread, persistent=False)
        self.spread: Tensor
        self.missing = nn.Parameter(torch.zeros(width))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1, self.fc2 = nn.Linear(width, half), nn.Linear(half, quarter)
        self.head = nn.Linear(quarter, classes)

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """Return logits (B, classes).

        Args:
            features: (B, sum of features); those of a missing slot may be any finite numbers.
            present: (B, slots) of 1 and 0.
        """
        there = present @ self.spread
        x = self.norm(there * features + (1 - there) * self.missing)
        out: Tensor = self.head(F.gelu(self.fc2(F.gelu(self.fc1(x)))))
        return out

    @property
    def hidden(self) -> tuple[int, int]:
        """Widths of the two hidden layers."""
        return self.fc1.out_features, self.fc2.out_features

    def macs(self) -> int:
        """Return multiply-accumulates of one image."""
        linears = (self.fc1, self.fc2, self.head)
        return sum(layer.in_features * layer.out_features for layer in linears)


@dataclass(frozen=True)
class FusionTask:
    """How a fusion is trained.

    Attributes:
        recipe: how long.
        slot_dropout: chance that a slot is missing in a step; one always stays.
        distil: weight of the KL from the full model; the cross-entropy with the labels has 1.
        temperature: of that KL.
        seed: of weights, order and dropout.
    """

    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=15, batch=256, lr=1e-3))
    slot_dropout: float = 0.15
    distil: float = 1.0
    temperature: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.slot_dropout < 1:
            raise UsageError(f"slot_dropout must be in [0, 1), got {self.slot_dropout}")


def present_mask(count: int, slots: int, dropout: float, rng: torch.Generator) -> Tensor:
    """Return (count, slots) of 1 and 0 in which a slot misses with a chance; one always stays."""
    kept = torch.rand(count, slots, generator=rng) >= dropout
    lucky = torch.randint(0, slots, (count, 1), generator=rng)
    kept.scatter_(1, lucky, kept.gather(1, lucky) | ~kept.any(1, keepdim=True))
    return kept.float()


def train_fusion(
    features: Callable[[], Tensor],
    sizes: Sequence[int],
    answers: Tensor,
    labels: Tensor,
    allowed: Tensor,
    task: FusionTask,
    folder: Path,
    journal: Journal = quiet_journal,
    *,
    inputs: dict[str, Any],
) -> Fusion:
    """Train the fusion on frozen features; resumable as `vitlet.compress.training.train`.

    Args:
        features: gives those of all slots side by side, (views, n, sum of sizes); not called where
            the fusion was finished before.
        sizes: numbers that each slot sends.
        answers: the full model's log probabilities, (views, n, classes).
        labels: (n,).
        allowed: indices that may be trained on.
        task: how.
        folder: of this run alone.
        journal: told of each epoch.
        inputs: what the features were made from, as JSON.

    Returns:
        The fusion in eval mode.

    Raises:
        TrainingError, StorageError, CheckpointError: as `train`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        fusion = Fusion(sizes, answers.shape[-1])
    known: list[Tensor] = []

    def given() -> Tensor:
        if not known:
            known.append(features())
        return known[0]

    def order(rng: torch.Generator) -> Tensor:
        return allowed[torch.randperm(len(allowed), generator=rng)]

    def loss(indices: Tensor, rng: torch.Generator) -> Tensor:
        views = torch.randint(0, len(given()), (len(indices),), generator=rng)
        present = present_mask(len(indices), len(sizes), task.slot_dropout, rng)
        said = fusion(given()[views, indices], present)
        t = task.temperature
        told = F.softmax(answers[views, indices] / t, dim=-1)
        kl = F.kl_div(F.log_softmax(said / t, dim=-1), told, reduction="batchmean")
        return F.cross_entropy(said, labels[indices]) + task.distil * t**2 * kl

    facts = {
        **inputs,
        "slot_dropout": task.slot_dropout,
        "distil": task.distil,
        "temperature": task.temperature,
    }
    run = Run("fusion", fusion, order, loss, task.recipe, task.seed, facts)
    if not is_finished(folder, run.key()):
        with torch.no_grad():  # before anything is learned, a missing slot says what is usual
            fusion.missing.copy_(given()[0, allowed].mean(0))
    train(run, folder, journal)
    return fusion.eval()


@torch.no_grad()
def fused_logits(fusion: Fusion, features: Tensor, lost: Sequence[int] = ()) -> Tensor:
    """Return logits (n, classes) of features (n, sum of sizes) without the slots in `lost`."""
    present = torch.ones(len(features), fusion.spread.shape[0])
    present[:, list(lost)] = 0
    parts = zip(torch.split(features, 2000), torch.split(present, 2000), strict=True)
    return torch.cat([fusion(given, mask) for given, mask in parts])


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return what logits must be divided by for their softmax to be a calibrated confidence.

    It minimizes the cross-entropy on held-out pictures (Guo et al., 2017, arXiv 1706.04599), by
    golden-section search over the logarithm, from 0.05 to 20.
    """
    if len(labels) == 0:
        raise UsageError("a temperature cannot be fitted to no pictures")
    low, high = -3.0, 3.0
    ratio = (5**0.5 - 1) / 2

    def cost(log_t: float) -> float:
        scaled = logits.double() / float(torch.tensor(log_t).exp())
        return float(F.cross_entropy(scaled, labels))

    for _ in range(40):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if cost(left) < cost(right):
            high = right
        else:
            low = left
    return round(float(torch.tensor((low + high) / 2).exp()), 6)
