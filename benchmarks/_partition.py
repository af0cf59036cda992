"""What `benchmarks/partition.py` trains: the full model, splits of it, and what could beat them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitlet.compress.pictures import Pictures
from vitlet.compress.training import Recipe, Run, file_journal, train
from vitlet.data.labelled import LabelledImages, fashion_mnist
from vitlet.data.spec import Preprocess
from vitlet.models.deit import DeiT
from vitlet.models.registry import ModelInfo
from vitlet.partition.evaluate import clock
from vitlet.partition.reference import compile_features, full_engine
from vitlet.partition.submodels.classes import deal_classes
from vitlet.partition.submodels.cut import spread_weights, widths_of
from vitlet.partition.submodels.features import feature, logits
from vitlet.partition.submodels.fusion import FusionTask, fused_logits
from vitlet.partition.submodels.judge import judge
from vitlet.partition.submodels.small import ensemble_probabilities, train_small
from vitlet.partition.submodels.teacher import accuracy, answers, model_digest
from vitlet.partition.submodels.train import (
    Settings,
    TrainedSplit,
    hold_out,
    make_lecture,
    slot_features,
    train_split,
)
from vitlet.partition.submodels.widths import Geometry, Widths, keep_heads

SPEC = Preprocess(size=(28, 28), resize_to=28, mean=(0.2860,), std=(0.3530,), mode="L")
KEEP = {2: 4, 3: 3, 5: 2, 10: 1}  # of 8 heads, for so many devices


@dataclass(frozen=True)
class Scale:
    """How much work a run of the benchmark is.

    Attributes:
        config: of the full model.
        epochs: of the full model with smoothed labels.
        plain: further ones with plain labels.
        pictures: for training; None: all 60,000.
        judged: test pictures; None: all 10,000.
        short: epochs after each cut.
        long: epochs in the end.
        limit: pictures of the own classes in an epoch of a sub-model.
        fusion: epochs of the fusion.
        scored: pictures that units are scored on.
        mirror: whether sub-models learn from mirrored pictures too.
    """

    config: dict[str, int]
    epochs: int
    plain: int
    pictures: int | None
    judged: int | None
    short: int
    long: int
    limit: int
    fusion: int
    scored: int
    mirror: bool = True


_LAYOUT = {"patch_size": 7, "num_classes": 10, "img_size": 28, "in_chans": 1}
FULL = Scale(
    {"dim": 256, "depth": 3, "heads": 8, **_LAYOUT}, 6, 2, None, None, 1, 20, 6000, 15, 128
)
QUICK = Scale({"dim": 64, "depth": 2, "heads": 8, **_LAYOUT}, 6, 2, 3000, 1000, 1, 4, 600, 8, 64)


class Bench:
    """Data, full model and settings of one work folder; everything in it can be resumed."""

    def __init__(self, scale: Scale, work: Path, dataset: Path | None) -> None:
        self.scale, self.work = scale, work
        self.data = _first(fashion_mnist("train", dataset), scale.pictures)
        self.judged = Pictures(_first(fashion_mnist("test", dataset), scale.judged), SPEC)
        self.pictures = Pictures(self.data, SPEC, mirror=True)
        self.model = self._base()
        self.geometry = Geometry.of(self.model)
        train_on, _ = hold_out(self.pictures.labels, 0.05, 0)
        told = Pictures(self.data, SPEC, mirror=scale.mirror)
        self.lecture = make_lecture(self.model, told, train_on, work)

    def _base(self) -> DeiT:
        torch.manual_seed(0)
        model = DeiT(**self.scale.config)
        spread_weights(model)

        # Smoothed labels learn fast, and plain ones at a low rate give the last points of accuracy
        # and a teacher whose answers say more about the classes that a picture resembles.
        inputs: dict[str, Any] = {"data": self.data.fingerprint(), "model": self.scale.config}
        for name, recipe, smoothing in (
            ("base", Recipe(epochs=self.scale.epochs, lr=1e-3), 0.1),
            ("base-plain", Recipe(epochs=self.scale.plain, lr=4e-4), 0.0),
        ):

            def loss(indices: Tensor, rng: torch.Generator, smoothing: float = smoothing) -> Tensor:
                x = self.pictures.batch(indices, self.pictures.draw_views(len(indices), rng))
                labels = self.pictures.labels[indices]
                return F.cross_entropy(logits(model, x), labels, label_smoothing=smoothing)

            run = Run(name, model, self.pictures.shuffled, loss, recipe, 0, inputs)
            train(run, self.work / name, self.journal)
            inputs = {"from": model_digest(model)}
        model.info = ModelInfo(  # type: ignore[assignment]
            name="deit_fashion_patch7", family="deit", kind="classifier",
            factory="vitlet.models.deit:deit", config=dict(self.scale.config), preprocess=SPEC,
            params=sum(p.numel() for p in model.parameters()), macs=0.0, licence="Apache-2.0",
            source="trained by benchmarks/partition.py on Fashion-MNIST",
        )  # fmt: skip
        return model

    @property
    def journal(self) -> Callable[[dict[str, Any]], None]:
        """Writes to the folder's journal and to the screen."""
        write = file_journal(self.work / "journal.jsonl")

        def note(entry: dict[str, Any]) -> None:
            write(entry)
            print(
                f"  {entry['run']}: epoch {entry['epoch']}/{entry['epochs']} loss "
                f"{entry['loss']:.4f} {entry['seconds']:.1f} s",
                flush=True,
            )

        return note

    def settings(self, seed: int) -> Settings:
        """Return the budgets of a split."""
        scale, small = self.scale, self.scale.pictures is not None
        average = 0.98 if small else 0.99  # of some hundred steps
        return Settings(
            short=Recipe(epochs=scale.short, lr=1e-3, average=average),
            long=Recipe(epochs=scale.long, lr=2e-3, average=average),
            fusion=FusionTask(
                recipe=Recipe(epochs=scale.fusion, batch=256, lr=1e-3, average=average), seed=seed
            ),
            pictures=scale.scored, limit=scale.limit, mirror=scale.mirror, seed=seed,
        )  # fmt: skip

    def widths(self, devices: int) -> Widths:
        """Return what a sub-model keeps for so many devices."""
        return keep_heads(self.geometry, KEEP[devices])

    def classes(self, strategy: str, devices: int, seed: int) -> tuple[tuple[int, ...], ...]:
        """Deal the classes."""
        return deal_classes(
            strategy, self.pictures.classes, devices, seed=seed, means=self.class_means()
        )

    def class_means(self) -> np.ndarray:
        """Return the mean feature of each class over 200 pictures of it, (classes, dim)."""
        with torch.no_grad():
            rows = [
                feature(self.model, self.pictures.batch(members[:200])).mean(0)
                for c in range(self.pictures.classes)
                for members in [(self.pictures.labels == c).nonzero()[:, 0]]
            ]
        return torch.stack(rows).numpy()

    def accuracy_of_full(self) -> float:
        """Return the full model's accuracy on the test pictures."""
        return accuracy(answers(self.model, self.judged, self.work)[0], self.judged.labels)

    def split(
        self, name: str, devices: int, seed: int, *, widths: Widths | None = None,
        strategy: str = "balanced-random", ranking: str = "class-wise",
    ) -> TrainedSplit:  # fmt: skip
        """Train a split, or take it from the work folder."""
        return train_split(
            self.model, self.data, SPEC, self.classes(strategy, devices, seed),
            [widths or self.widths(devices)] * devices, self.work / name,
            replace(self.settings(seed), ranking=ranking), progress=self.journal,
            shared=self.work,
        )  # fmt: skip

    def judge_split(self, trained: TrainedSplit) -> dict[str, Any]:
        """Return accuracies of a split on the test pictures, by torch."""
        features = slot_features(trained.submodels, self.judged)[0]
        judgement = judge(
            lambda missing: fused_logits(trained.fusion, features, missing).numpy(),
            self.judged.data.labels,
            trained.classes,
            [(f"device-{i}",) for i in range(len(trained.classes))],
            trained.temperature,
        )
        return {
            "accuracy": judgement.whole.accuracy,
            "classes": [list(part) for part in trained.classes],
            "one_lost": [case.accuracy for case in judgement.one_lost],
            "two_lost": [case.accuracy for case in judgement.two_lost],
            "recall": list(judgement.recall),
            "calibration_error": judgement.calibration_error,
        }

    def small(self, name: str, widths: Widths, count: int) -> float:
        """Return the accuracy of so many small ViTs from random weights, answering together."""
        settings = self.settings(0)
        # As many pictures pass as through a sub-model: own ones and others 1:1, all its epochs.
        recipe = replace(settings.long, epochs=3 * self.scale.short + self.scale.long)
        models = [
            train_small(
                self.lecture, widths, recipe, seed, self.work / name / f"member-{seed:02d}",
                self.journal, limit=2 * self.scale.limit,
            )
            for seed in range(count)
        ]  # fmt: skip
        return accuracy(ensemble_probabilities(models, self.judged), self.judged.labels)

    def measured(self, trained: TrainedSplit, seconds: float) -> dict[str, Any]:
        """Return what a slot's compiled file takes: bytes and seconds of one picture."""
        vit = trained.submodels[0]
        widths = widths_of(vit)
        name = "-".join(map(str, (widths.dim, *widths.heads, *widths.hidden)))
        path = self.work / "compiled" / f"{name}.onnx"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            compile_features(vit, SPEC, path)
        return {"bytes": path.stat().st_size, "latency": self.time(path, seconds)}

    def measured_full(self, seconds: float) -> dict[str, Any]:
        """Return bytes and latency of the full model's compiled file."""
        with full_engine(self.model, SPEC) as (engine, size):
            return {"bytes": size, "latency": self.time(engine.path, seconds)}

    def time(self, path: Path, seconds: float) -> float:
        """Return seconds of one picture."""
        return clock(path, {"image": self.judged.batch(torch.arange(1)).numpy()}, seconds)


def _first(data: LabelledImages, count: int | None) -> LabelledImages:
    return data if count is None else data.take(np.arange(count))
