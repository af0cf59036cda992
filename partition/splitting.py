"""`split`: a trained plain ViT becomes a plan: small sub-models on devices, and their fusion.

"Efficient Partitioning Vision Transformer on Edge Devices for Distributed Inference" (2024),
arXiv 2410.11650. The three steps (`plan_split`, `train_planned`, `export_planned`) can be taken one
by one over a work folder, and each goes on where it was stopped.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitlet.compress.pictures import Pictures
from vitlet.compress.training import seeded
from vitlet.data.labelled import LabelledImages
from vitlet.data.spec import Preprocess
from vitlet.errors import UsageError
from vitlet.models.deit import DeiT
from vitlet.partition.devices import Device, read_devices
from vitlet.partition.draft import (
    DRAFT,
    Choices,
    Draft,
    check_inputs,
    make_draft,
    read_draft,
    same_split,
    write_draft,
)
from vitlet.partition.exporting import export_plan
from vitlet.partition.plan import Plan
from vitlet.partition.submodels.features import feature, logits
from vitlet.partition.submodels.teacher import accuracy, model_digest
from vitlet.partition.submodels.train import Settings, TrainedSplit, train_split
from vitlet.partition.submodels.widths import Geometry
from vitlet.partition.submodels.work import (
    load_full,
    load_trained,
    save_full,
    save_trained,
    untrained,
)
from vitlet.runtime.manifest import Target
from vitlet.runtime.progress import Progress, null_progress

LEAST = 2  # pictures of a class: one to train on, one to hold out
_MEANS = 64  # pictures of a class whose features are averaged
Epochs = Callable[[dict[str, Any]], None]


def split(
    model: nn.Module,
    data: LabelledImages,
    devices: Sequence[Device] | str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    work: str | os.PathLike[str] | None = None,
    choices: Choices | None = None,
    settings: Settings | None = None,
    preprocess: Preprocess | None = None,
    jobs: int = 1,
    ray: str | None = None,
    targets: Sequence[Target] = (),
    triple: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    epochs: Epochs | None = None,
) -> Plan:
    """Split a model by class over devices: plan, train and export.

    Args:
        model: a trained plain ViT in DeiT's layout, with a classifier, in eval mode.
        data: the pictures that it was trained on, of every class.
        devices: or the file that lists them.
        out: the plan's folder.
        work: where training can be stopped and go on; None works in a temporary folder.
        choices: how classes are dealt, sub-models placed and pruned.
        settings: how sub-models and fusion are trained.
        preprocess: what the model expects of an image; by default what its `info` says.
        jobs: sub-models that are trained at once on this machine.
        ray: address of a Ray cluster that trains them instead; "local" starts one here.
        targets: what sub-models are compiled to beside ONNX: "tvm", "coreml".
        triple: machine that TVM compiles for; None for this one.
        force: replace a plan that is there already.
        progress: told of each step.
        epochs: told of each epoch of training.

    Returns:
        The plan as it lies in `out`.

    Raises:
        UnsupportedError: the model is not a plain ViT.
        UsageError: classes, data, devices or preprocessing that do not go together; found before
            anything is trained.
        InfeasibleError: the devices cannot hold the model however much is pruned.
        TrainingError: a loss that is not finite.
        StorageError: a folder cannot be written.
    """
    listed = devices if isinstance(devices, Sequence) and not isinstance(devices, str) else None
    found = tuple(listed) if listed is not None else read_devices(devices)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder if work is None else work)
        plan_split(model, data, found, place, choices=choices, preprocess=preprocess)
        train_planned(place, data, settings=settings, jobs=jobs, ray=ray, epochs=epochs)
        return export_planned(
            place, out, targets=targets, triple=triple, force=force, progress=progress
        )


def plan_split(
    model: nn.Module,
    data: LabelledImages | Sequence[str],
    devices: Sequence[Device],
    work: str | os.PathLike[str],
    *,
    choices: Choices | None = None,
    preprocess: Preprocess | None = None,
    restart: bool = False,
    progress: Progress | None = None,
) -> Draft:
    """Decide classes, widths and places, and begin a work folder.

    Args:
        model: a trained plain ViT in DeiT's layout, in eval mode.
        data: the pictures to train on; class names alone do where no picture is needed to plan.
        devices: to place sub-models on.
        work: the folder. One with the same split keeps what is trained, and takes the new places.
        choices: how.
        preprocess: what the model expects of an image; by default what its `info` says.
        restart: begin anew in a folder with another split.
        progress: told of each step.

    Raises:
        As `split`.
    """
    step, choices = progress or null_progress, choices or Choices()
    geometry = Geometry.of(model)
    if not isinstance(model, DeiT):
        raise UsageError(f"expected a vitlet.models.deit.DeiT, got {type(model).__name__}")
    info = getattr(model, "info", None)
    spec = preprocess or (info.preprocess if info is not None else None)
    if spec is None:
        raise UsageError("the model has no `info`: say with preprocess what it expects of an image")
    pictures = data if isinstance(data, LabelledImages) else None
    labels = pictures.classes if pictures is not None else tuple(data)  # type: ignore[arg-type]
    check_inputs(geometry, labels, spec)
    if pictures is not None:
        pictures.require_every_class(range(len(labels)), least=LEAST)
    means = None
    if choices.classes == "confusable-together":
        if pictures is None:
            raise UsageError("confusable-together needs pictures: say with data which")
        with step("compare the classes' features"):
            means = class_means(model, pictures, spec, choices.seed)
    facts = {"name": info.name if info is not None else "deit", "sha256": model_digest(model)}
    with step("plan"):
        draft = make_draft(geometry, devices, labels, spec, choices, model=facts, means=means)
    folder = Path(work)
    if (folder / DRAFT).exists() and not restart and not same_split(draft, read_draft(folder)):
        raise UsageError(
            f"{folder} holds another split: choose another folder, or replace it with restart "
            "(--restart)"
        )
    save_full(model, folder)
    write_draft(draft, folder)
    return draft


def train_planned(
    work: str | os.PathLike[str],
    data: LabelledImages,
    *,
    settings: Settings | None = None,
    jobs: int = 1,
    ray: str | None = None,
    epochs: Epochs | None = None,
) -> TrainedSplit:
    """Train the sub-models and the fusion of a work folder; what is finished is kept.

    Args:
        work: from `plan_split`.
        data: the pictures to train on.
        settings: how.
        jobs: sub-models that are trained at once.
        ray: address of a Ray cluster that trains them instead; "local" starts one here.
        epochs: told of each epoch.

    Raises:
        UsageError: the data have other classes than the draft, or lack pictures of one.
        TrainingError: a loss that is not finite.
        CheckpointError, StorageError: the folder is damaged or cannot be written.
    """
    draft = read_draft(work)
    check_data(draft, data)
    model = load_full(draft, work)
    trained = train_split(
        model,
        data,
        draft.preprocess,
        draft.classes,
        draft.widths,
        Path(work),
        settings,
        jobs=jobs,
        ray=ray,
        progress=epochs,
    )
    save_trained(trained, draft.widths, Path(work))
    return trained


def export_planned(
    work: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    random: bool = False,
    targets: Sequence[Target] = (),
    triple: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Plan:
    """Compile what a work folder holds into a plan directory.

    Args:
        work: from `train_planned`.
        out: the plan's folder.
        random: take untrained sub-models of the right sizes: what a plan costs before training.
        targets: what sub-models are compiled to beside ONNX: "tvm", "coreml".
        triple: machine that TVM compiles for; None for this one.
        force: replace a plan that is there already.
        progress: told of each step.

    Raises:
        UsageError: nothing is trained yet.
        VerificationError: an artefact computes something else than its sub-model.
        BundleError, CheckpointError, StorageError: the folder is damaged or `out` not writable.
    """
    draft = read_draft(work)
    model = load_full(draft, work)
    trained = untrained(draft, model) if random else load_trained(draft, model, work)
    return export_plan(
        trained,
        model,
        out,
        devices=draft.devices,
        placement=[place.devices for place in draft.placements],
        strategy=draft.strategy,
        details={
            "name": draft.model["name"],
            "predicted_seconds": draft.seconds,
            "bottleneck": draft.bottleneck,
            "explain": draft.explain(),
        },
        targets=targets,
        triple=triple,
        force=force,
        progress=progress,
    )


def check_data(draft: Draft, data: LabelledImages) -> None:
    """Refuse pictures of other classes than the draft's, or with a class missing.

    Raises:
        UsageError: as said.
    """
    if data.classes != draft.labels:
        wanted, got = ", ".join(draft.labels[:4]), ", ".join(data.classes[:4])
        raise UsageError(
            f"the split was planned for {len(draft.labels)} classes ({wanted}...), the data have "
            f"{len(data.classes)} ({got}...): the names and their order must be the same"
        )
    data.require_every_class(range(len(data.classes)), least=LEAST)


@torch.no_grad()
def accuracy_on_some(
    model: nn.Module, data: LabelledImages, spec: Preprocess, seed: int = 0, most: int = 200
) -> float:
    """Return the full model's accuracy on a few pictures, as evenly over the classes as they allow.

    Close to chance it is not the model of these pictures, or not their preprocessing: what took
    hours to train would be of no use.
    """
    assert isinstance(model, DeiT)
    pictures, rng = Pictures(data, spec), seeded(seed, "some")
    order = pictures.shuffled(rng)
    ranks = torch.zeros(len(order), dtype=torch.int64)
    for c in range(pictures.classes):
        members = order[pictures.labels[order] == c]
        ranks[members] = torch.arange(len(members))
    chosen = ranks.argsort(stable=True)[:most]
    return accuracy(logits(model, pictures.batch(chosen)), pictures.labels[chosen])


@torch.no_grad()
def class_means(
    model: DeiT, data: LabelledImages, spec: Preprocess, seed: int
) -> NDArray[np.float32]:
    """Return the mean feature of each class over a few pictures, (classes, D)."""
    pictures = Pictures(data, spec)
    rng = seeded(seed, "means")
    rows = []
    for c in range(pictures.classes):
        members = (pictures.labels == c).nonzero()[:, 0]
        chosen = members[torch.randperm(len(members), generator=rng)[:_MEANS]]
        rows.append(feature(model, pictures.batch(chosen)).mean(0))
    means: NDArray[np.float32] = torch.stack(rows).numpy()
    return means
