"""What is decided before anything is trained: classes, widths and places of the sub-models.

A work folder holds it as `draft.json`, beside the full model's weights and whatever is trained
already. Everything that can be wrong with a split is found here, before hours of work start.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vitlet
from vitlet.data.spec import Preprocess
from vitlet.errors import BundleError, StorageError, UsageError
from vitlet.partition.devices import Device, check_devices, parse_devices
from vitlet.partition.placing.assign import Assignment, Placement
from vitlet.partition.placing.greedy import preference
from vitlet.partition.placing.search import Bounds, Found, search_widths
from vitlet.partition.submodels.classes import CLASS_STRATEGIES, Parts, check_counts, deal_classes
from vitlet.partition.submodels.widths import Cost, Geometry, Widths, cost, full_cost
from vitlet.runtime.bundle import read_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 1
DRAFT = "draft.json"


@dataclass(frozen=True)
class Choices:
    """How a split is to be made.

    Attributes:
        slots: number of sub-models; None for one a device.
        classes: how classes are dealt, as in `vitlet.partition.submodels.classes.deal_classes`.
        assign: how sub-models are placed, as in `vitlet.partition.placing.assign.assign`.
        prune: "per-model" or "global", as in `vitlet.partition.placing.search.search_widths`.
        keep: heads that the search begins with; None for all.
        total_bytes: of all sub-models' parameters; None for as many as the full model has.
        seconds: until the last feature is there; None for any time.
        replicas: further devices per sub-model, where they fit.
        image_bytes: that are sent to each device; 0 where devices see the image themselves.
        seed: of everything random.
    """

    slots: int | None = None
    classes: str = "balanced-random"
    assign: str = "greedy"
    prune: str = "per-model"
    keep: int | None = None
    total_bytes: int | None = None
    seconds: float | None = None
    replicas: int = 0
    image_bytes: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Draft:
    """A split that is decided and not yet trained.

    Attributes:
        model: of the full model: "name", "sha256" of its weights.
        geometry: of the full model.
        preprocess: how an image becomes every sub-model's input.
        labels: class names.
        devices: that sub-models were placed on.
        choices: that led here.
        classes: of each sub-model.
        widths: of each sub-model.
        placements: of each sub-model.
        seconds: predicted time until the last feature is there.
        bottleneck: name of the device that takes this long.
        steps: what was pruned why, in words.
    """

    model: dict[str, Any]
    geometry: Geometry
    preprocess: Preprocess
    labels: tuple[str, ...]
    devices: tuple[Device, ...]
    choices: Choices
    classes: Parts
    widths: tuple[Widths, ...]
    placements: tuple[Placement, ...]
    seconds: float
    bottleneck: str
    steps: tuple[str, ...] = field(default=(), compare=False)

    @property
    def costs(self) -> tuple[Cost, ...]:
        """Of each sub-model."""
        return tuple(cost(self.geometry, widths) for widths in self.widths)

    @property
    def strategy(self) -> dict[str, Any]:
        """What a plan keeps of the choices."""
        chosen = self.choices
        return {
            "classes": chosen.classes,
            "assign": chosen.assign,
            "prune": chosen.prune,
            "seed": chosen.seed,
        }

    def explain(self) -> list[str]:
        """Return why each sub-model is as wide as it is and sits where it does, a line each."""
        lines = Assignment(self.placements, self.seconds, self.bottleneck).explain()
        return [*(f"pruned {step}" for step in self.steps[-3:]), *lines]

    def figures(self) -> dict[str, Any]:
        """Return sizes against the full model's: per device and in total, apart."""
        full, costs = full_cost(self.geometry), self.costs
        held: dict[str, list[Cost]] = {}
        for place, one in zip(self.placements, costs, strict=True):
            held.setdefault(place.devices[0], []).append(one)
        largest = max(sum(c.bytes for c in mine) for mine in held.values())
        busiest = max(sum(c.macs for c in mine) for mine in held.values())
        total = sum(c.bytes for c in costs)
        return {
            "full": asdict(full),
            "per_device": {
                "bytes": largest,
                "macs": busiest,
                "bytes_ratio": full.bytes / largest,
                "macs_ratio": full.macs / busiest,
            },
            "total": {"bytes": total, "bytes_ratio": full.bytes / total},
        }

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "schema": SCHEMA,
            "vitlet": vitlet.__version__,
            "model": self.model,
            "geometry": asdict(self.geometry),
            "preprocess": self.preprocess.to_json(),
            "labels": list(self.labels),
            "devices": [device.to_json() for device in self.devices],
            "choices": asdict(self.choices),
            "classes": [list(part) for part in self.classes],
            "widths": [widths.to_json() for widths in self.widths],
            "placements": [{**asdict(p), "devices": list(p.devices)} for p in self.placements],
            "seconds": self.seconds,
            "bottleneck": self.bottleneck,
            "steps": list(self.steps),
        }

    @classmethod
    def from_json(cls, data: Any) -> Draft:
        """Read back what `to_json` wrote.

        Raises:
            BundleError: it is no draft, or of another schema.
        """
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise BundleError(f"{DRAFT} does not follow schema {SCHEMA}: plan the split again")
        try:
            return cls(
                model=dict(data["model"]),
                geometry=Geometry.from_json(data["geometry"]),
                preprocess=Preprocess.from_json(data["preprocess"]),
                labels=tuple(data["labels"]),
                devices=parse_devices(data["devices"], DRAFT),
                choices=Choices(**data["choices"]),
                classes=tuple(tuple(part) for part in data["classes"]),
                widths=tuple(Widths.from_json(widths) for widths in data["widths"]),
                placements=tuple(
                    Placement(**{**place, "devices": tuple(place["devices"])})
                    for place in data["placements"]
                ),
                seconds=float(data["seconds"]),
                bottleneck=str(data["bottleneck"]),
                steps=tuple(data["steps"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"{DRAFT} does not follow schema {SCHEMA}: {error}") from None


def make_draft(
    geometry: Geometry,
    devices: Sequence[Device],
    labels: Sequence[str],
    preprocess: Preprocess,
    choices: Choices | None = None,
    *,
    model: dict[str, Any] | None = None,
    means: NDArray[np.floating] | None = None,
) -> Draft:
    """Decide classes, widths and places; takes well under a second.

    Args:
        geometry: of the full model.
        devices: to place sub-models on.
        labels: class names.
        preprocess: what the model expects of an image.
        choices: how.
        model: "name" and "sha256" of the full model.
        means: mean features of each class, (classes, D), for "confusable-together".

    Raises:
        UsageError: one class, more sub-models than classes, a strategy that does not exist,
            labels or preprocessing that do not go with the model.
        InfeasibleError: no widths and places keep every bound; names the bound.
    """
    choices = choices or Choices()
    devices = tuple(devices)
    check_devices(devices)
    check_inputs(geometry, labels, preprocess)
    if choices.classes not in CLASS_STRATEGIES:
        raise UsageError(
            f"unknown class strategy {choices.classes!r}: the strategies are "
            f"{', '.join(CLASS_STRATEGIES)}"
        )
    slots = len(devices) if choices.slots is None else choices.slots
    check_counts(len(labels), slots)
    classes = deal_classes(
        choices.classes,
        len(labels),
        slots,
        seed=choices.seed,
        means=means,
        shares=_shares(devices, slots),
    )
    total = full_cost(geometry).bytes if choices.total_bytes is None else choices.total_bytes
    found: Found = search_widths(
        geometry,
        slots,
        devices,
        strategy=choices.assign,
        mode=choices.prune,
        keep=choices.keep,
        bounds=Bounds(total, choices.seconds),
        received=choices.image_bytes,
        replicas=choices.replicas,
    )
    return Draft(
        model=dict(model or {}),
        geometry=geometry,
        preprocess=preprocess,
        labels=tuple(labels),
        devices=devices,
        choices=choices,
        classes=classes,
        widths=found.widths,
        placements=found.assignment.placements,
        seconds=found.assignment.seconds,
        bottleneck=found.assignment.bottleneck,
        steps=found.steps,
    )


def check_inputs(geometry: Geometry, labels: Sequence[str], preprocess: Preprocess) -> None:
    """Refuse labels or preprocessing that do not go with the model.

    Raises:
        UsageError: as said.
    """
    if len(labels) != geometry.classes:
        raise UsageError(
            f"the model gives {geometry.classes} classes, and the data or labels have "
            f"{len(labels)}: use the data that it was trained for"
        )
    size = (geometry.img_size, geometry.img_size)
    if preprocess.size != size or preprocess.channels != geometry.in_chans:
        raise UsageError(
            f"the preprocessing gives {preprocess.channels} channels of {preprocess.size}, and the "
            f"model takes {geometry.in_chans} of {size}: give the preprocessing that it was "
            "trained with"
        )


def write_draft(draft: Draft, work: str | os.PathLike[str]) -> None:
    """Write `draft.json` into a work folder, whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    folder = Path(work)
    part = folder / f".{DRAFT}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(draft.to_json(), indent=1) + "\n", encoding="utf-8")
        part.replace(folder / DRAFT)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error


def read_draft(work: str | os.PathLike[str]) -> Draft:
    """Read the draft of a work folder.

    Raises:
        UsageError: the folder has none.
        BundleError: it is damaged.
    """
    folder = Path(work)
    if not (folder / DRAFT).is_file():
        raise UsageError(f"{folder} has no {DRAFT}: make one with `vitlet partition plan`")
    return Draft.from_json(read_json(folder, DRAFT))


def same_split(one: Draft, other: Draft) -> bool:
    """Whether what is trained for one draft can be used for the other: places may differ."""
    free: dict[str, Any] = {
        "devices": (), "placements": (), "seconds": 0.0, "bottleneck": "", "choices": Choices(),
    }  # fmt: skip
    return replace(one, **free) == replace(other, **free)


def _shares(devices: Sequence[Device], slots: int) -> list[float]:
    """Return what each sub-model can count on: the first are placed first, on the strongest."""
    order = sorted(range(len(devices)), key=lambda j: preference(devices[j], j), reverse=True)
    holders = [order[i % len(order)] for i in range(slots)]
    return [devices[j].speed / holders.count(j) for j in holders]
