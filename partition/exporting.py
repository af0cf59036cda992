"""From trained sub-models to a plan directory: bundles, compared with torch, and `plan.json`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import vitlet
from vitlet.errors import StorageError, UsageError
from vitlet.models.deit import DeiT
from vitlet.partition.bundles import export_graph, features_graph, fusion_graph
from vitlet.partition.devices import Device
from vitlet.partition.evaluate import clock
from vitlet.partition.plan import (
    FUSION,
    PLAN,
    Fusion,
    Plan,
    Slot,
    load_plan,
    manifest_sha256,
    slot_bundle_name,
    write_plan,
)
from vitlet.partition.reference import FeatureModel
from vitlet.partition.submodels.cut import widths_of
from vitlet.partition.submodels.train import TrainedSplit
from vitlet.partition.submodels.widths import Geometry, cost, full_cost
from vitlet.runtime.bundle import Bundle
from vitlet.runtime.manifest import Target
from vitlet.runtime.progress import Progress, null_progress


def export_plan(
    trained: TrainedSplit,
    model: DeiT,
    out: str | os.PathLike[str],
    *,
    devices: Sequence[Device],
    placement: Sequence[Sequence[str]],
    strategy: Mapping[str, Any] | None = None,
    details: Mapping[str, Any] | None = None,
    targets: Sequence[Target] = (),
    triple: str | None = None,
    seconds: float = 0.3,
    force: bool = False,
    progress: Progress | None = None,
) -> Plan:
    """Compile every sub-model and the fusion to ONNX, check them, and write the plan.

    A slot's `latency` is its device's prediction for its multiply-accumulates;
    ``details["latency_here"]`` was measured in ONNX Runtime with one thread of this machine.

    Args:
        trained: from `vitlet.partition.submodels.train.train_split`.
        model: the full model.
        out: the plan's folder.
        devices: that `placement` speaks of.
        placement: for each slot the names of its devices, the first to run it first.
        strategy: how the plan was made: "classes", "assign", "seed".
        details: what else is known of the plan.
        targets: what sub-models are compiled to beside ONNX: "tvm", "coreml".
        triple: machine that TVM compiles for; None for this one.
        seconds: how long each latency is measured.
        force: replace a plan that is there already.
        progress: told of each step.

    Returns:
        The plan as it lies in `out`.

    Raises:
        UsageError: a slot without a device, a device that nobody described, or a folder in use.
        VerificationError: an artefact computes something else than the sub-model.
        StorageError: the disk is full or cannot be written.
    """
    step = progress or null_progress
    geometry = Geometry.of(model)
    by_name = {device.name: device for device in devices}
    if len(placement) != len(trained.submodels) or not all(placement):
        raise UsageError(
            f"expected a device for each of {len(trained.submodels)} slots, got {list(placement)}"
        )
    unknown = sorted({name for names in placement for name in names} - set(by_name))
    if unknown:
        raise UsageError(f"the placement names {unknown[0]!r}, which is not among the devices")
    folder = _prepare(Path(out), force)
    info = getattr(model, "info", None)
    facts = {"name": info.name if info else "deit", "family": "partition"}
    pixels = (1, trained.preprocess.channels, *trained.preprocess.size)
    slots = []
    for index, (vit, names) in enumerate(zip(trained.submodels, placement, strict=True)):
        with step(f"compile sub-model {index + 1} of {len(trained.submodels)}"):
            widths = widths_of(vit)
            bundle = export_graph(
                features_graph(FeatureModel(vit), trained.preprocess, widths.dim),
                folder / slot_bundle_name(index),
                model={**facts, "slot": index, "classes": list(trained.classes[index])},
                preprocess=trained.preprocess,
                targets=targets,
                triple=triple,
            )
            price = cost(geometry, widths)
            feeds = {"image": np.zeros(pixels, np.float32)}
            slots.append(
                Slot(
                    index=index,
                    classes=trained.classes[index],
                    bundle=slot_bundle_name(index),
                    sha256=manifest_sha256(bundle.path),
                    features=widths.dim,
                    bytes=_bytes(bundle),
                    params=price.params,
                    macs=price.macs,
                    memory=price.memory,
                    latency=by_name[names[0]].compute_seconds(price.macs),
                    devices=tuple(names),
                    details={
                        "widths": widths.to_json(),
                        "latency_here": _seconds(bundle, feeds, seconds),
                    },
                )
            )
    with step("compile the fusion"):
        fusion = _export_fusion(trained, facts, folder, seconds)
    whole = full_cost(geometry)
    plan = Plan(
        vitlet=vitlet.__version__,
        model={
            **facts,
            "family": "deit",
            "config": _config(model),
            "sha256": trained.facts["full_sha256"],
            "params": whole.params,
            "bytes": whole.bytes,
            "macs": whole.macs,
        },
        preprocess=trained.preprocess,
        labels=trained.labels,
        slots=tuple(slots),
        devices=tuple(devices),
        fusion=fusion,
        strategy=dict(strategy or {}),
        calibration={"temperature": trained.temperature},
        details={**trained.facts, **(details or {})},
    )
    with step("write the plan"):
        write_plan(plan, folder)
    return load_plan(folder)


def _export_fusion(
    trained: TrainedSplit, facts: Mapping[str, Any], folder: Path, seconds: float
) -> Fusion:
    width, count = sum(trained.sizes), len(trained.sizes)
    bundle = export_graph(
        fusion_graph(trained.fusion, width, count, len(trained.labels)),
        folder / FUSION,
        model={**facts, "features": list(trained.sizes)},
        preprocess=trained.preprocess,
        labels=trained.labels,
    )
    feeds = {
        "features": np.zeros((1, width), np.float32),
        "present": np.ones((1, count), np.float32),
    }
    return Fusion(
        bundle=FUSION,
        sha256=manifest_sha256(bundle.path),
        bytes=_bytes(bundle),
        macs=trained.fusion.macs(),
        details={
            "hidden": list(trained.fusion.hidden),
            "latency_here": _seconds(bundle, feeds, seconds),
        },
    )


def _prepare(folder: Path, force: bool) -> Path:
    """Return an empty folder for the plan."""
    try:
        if folder.is_dir() and any(folder.iterdir()):
            if not force:
                raise UsageError(f"{folder} is not empty: choose another place, or use force")
            if not (folder / PLAN).is_file():
                raise UsageError(f"{folder} holds something that is no plan; it is left alone")
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def _config(model: DeiT) -> dict[str, Any]:
    geometry = Geometry.of(model)
    return {
        "dim": geometry.dim, "depth": geometry.depth, "heads": geometry.heads,
        "mlp_ratio": geometry.hidden / geometry.dim, "patch_size": geometry.patch_size,
        "img_size": geometry.img_size, "in_chans": geometry.in_chans,
        "num_classes": geometry.classes,
    }  # fmt: skip


def _bytes(bundle: Bundle) -> int:
    return (bundle.path / bundle.manifest.artifacts[0].file).stat().st_size


def _seconds(bundle: Bundle, feeds: dict[str, Any], seconds: float) -> float:
    artifact = bundle.manifest.artifacts[0]
    return float(f"{clock(bundle.path / artifact.file, feeds, seconds):.4g}")
