"""A work folder: the draft, the full model, and what is trained; a split can stop and go on there.

```
WORK/draft.json            classes, widths and places (vitlet.partition.draft)
WORK/model.safetensors     the full model's weights
WORK/slot-00/ ... fusion/  a folder per training run, each resumable
WORK/trained/              once all are finished: sub-models, fusion and trained.json
```
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitlet.checkpoint import load_state_dict
from vitlet.compress.training import save_weights
from vitlet.data.spec import Preprocess
from vitlet.errors import BundleError, CheckpointError, StorageError, UsageError
from vitlet.models.deit import DeiT
from vitlet.partition.draft import Draft
from vitlet.partition.submodels.cut import Kept, build, cut
from vitlet.partition.submodels.fusion import Fusion
from vitlet.partition.submodels.scores import best, magnitude_scores
from vitlet.partition.submodels.teacher import model_digest
from vitlet.partition.submodels.train import TrainedSplit
from vitlet.partition.submodels.widths import Geometry, Widths
from vitlet.runtime.bundle import read_json

FULL = "model.safetensors"
TRAINED = "trained"
_FACTS, _FUSION = "trained.json", "fusion.safetensors"


def save_full(model: DeiT, work: str | os.PathLike[str]) -> None:
    """Keep the full model's weights in a work folder.

    Raises:
        StorageError: it cannot be written.
    """
    folder = Path(work)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    save_weights(model.state_dict(), folder / FULL)


def load_full(draft: Draft, work: str | os.PathLike[str]) -> DeiT:
    """Return the full model of a work folder, in eval mode.

    Raises:
        UsageError: the folder has none.
        CheckpointError: its weights are not those that the draft was made for.
    """
    path = Path(work) / FULL
    if not path.is_file():
        raise UsageError(f"{path} is not there: plan the split again")
    model = empty_model(draft.geometry)
    _fill(model, path)
    if model_digest(model) != draft.model.get("sha256"):
        raise CheckpointError(f"{path} was changed after the split was planned: plan it again")
    return model


def empty_model(geometry: Geometry) -> DeiT:
    """Return an untrained full model, in eval mode."""
    return DeiT(
        dim=geometry.dim,
        depth=geometry.depth,
        heads=geometry.heads,
        patch_size=geometry.patch_size,
        mlp_ratio=geometry.hidden / geometry.dim,
        num_classes=geometry.classes,
        img_size=geometry.img_size,
        in_chans=geometry.in_chans,
    ).eval()


def save_trained(trained: TrainedSplit, widths: tuple[Widths, ...], work: Path) -> None:
    """Keep a finished split: tensors first, `trained.json` last, so that half a split is none.

    Raises:
        StorageError: it cannot be written.
    """
    folder = work / TRAINED
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _FACTS).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error
    for index, model in enumerate(trained.submodels):
        save_weights(model.state_dict(), folder / _slot(index))
    save_weights(trained.fusion.state_dict(), folder / _FUSION)
    facts = {
        "labels": list(trained.labels),
        "preprocess": trained.preprocess.to_json(),
        "classes": [list(part) for part in trained.classes],
        "outputs": [len(model.state_dict()["head.bias"]) for model in trained.submodels],
        "widths": [width.to_json() for width in widths],
        "temperature": trained.temperature,
        "facts": trained.facts,
    }
    try:
        part = folder / f".{_FACTS}.part"
        part.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        part.replace(folder / _FACTS)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error


def load_trained(draft: Draft, model: DeiT, work: str | os.PathLike[str]) -> TrainedSplit:
    """Return the finished split of a work folder.

    Raises:
        UsageError: it is not finished, or was trained for another draft.
        BundleError, CheckpointError: a file is damaged.
    """
    folder = Path(work) / TRAINED
    if not (folder / _FACTS).is_file():
        raise UsageError(
            f"{work} is planned and not trained: run `vitlet partition train {work} --data DATA`"
        )
    data = read_json(folder, _FACTS)
    try:
        classes = tuple(tuple(part) for part in data["classes"])
        widths = tuple(Widths.from_json(width) for width in data["widths"])
        outputs = [int(count) for count in data["outputs"]]
        preprocess = Preprocess.from_json(data["preprocess"])
        labels, temperature = tuple(data["labels"]), float(data["temperature"])
        facts: dict[str, Any] = dict(data["facts"])
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{folder / _FACTS} is damaged: {error}") from None
    wanted = (draft.classes, draft.widths, draft.preprocess, draft.labels, draft.model["sha256"])
    if (classes, widths, preprocess, labels, facts.get("full_sha256")) != wanted:
        raise UsageError(
            f"{work} was trained for another draft: run `vitlet partition train` again"
        )
    submodels = []
    for index, (width, count) in enumerate(zip(widths, outputs, strict=True)):
        submodels.append(build(model, width, count).eval())
        _fill(submodels[-1], folder / _slot(index))
    fusion = Fusion([width.dim for width in widths], len(labels)).eval()
    _fill(fusion, folder / _FUSION)
    return TrainedSplit(labels, preprocess, classes, tuple(submodels), fusion, temperature, facts)


def untrained(draft: Draft, model: DeiT) -> TrainedSplit:
    """Return sub-models cut by the size of their weights, with a random fusion: to try a plan.

    Sizes, operators and times are those of the trained split; the answers mean nothing.
    """
    submodels = []
    for classes, widths in zip(draft.classes, draft.widths, strict=True):
        heads = [
            best(score, count)
            for score, count in zip(magnitude_scores(model, "heads"), widths.heads, strict=True)
        ]
        hidden = [
            best(score, count)
            for score, count in zip(magnitude_scores(model, "hidden"), widths.hidden, strict=True)
        ]
        channels = best(magnitude_scores(model, "channels")[0], widths.dim)
        small = cut(model, Kept(channels, tuple(heads), tuple(hidden)))
        small.head = nn.Linear(widths.dim, len(classes) + 1)
        submodels.append(small.eval())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draft.choices.seed)
        fusion = Fusion([width.dim for width in draft.widths], len(draft.labels)).eval()
    facts = {"full_sha256": draft.model["sha256"], "trained": False}
    return TrainedSplit(
        draft.labels, draft.preprocess, draft.classes, tuple(submodels), fusion, 1.0, facts
    )


def with_places(draft: Draft, other: Draft) -> Draft:
    """Return `draft` with the places and devices of `other`, of which the rest is the same."""
    return replace(
        draft,
        devices=other.devices,
        choices=other.choices,
        placements=other.placements,
        seconds=other.seconds,
        bottleneck=other.bottleneck,
    )


def _slot(index: int) -> str:
    return f"slot-{index:02d}.safetensors"


def _fill(module: nn.Module, path: Path) -> None:
    try:
        module.load_state_dict(load_state_dict(path))
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(f"{path} does not fit: {first}") from None
