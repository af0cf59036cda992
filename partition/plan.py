"""The plan: which sub-model answers for which classes, on which device, and how answers are joined.

A plan directory holds `plan.json`, a bundle per sub-model (`slot-00.vitlet`: graph "features", an
image -> "features" (B, D_i)) and the fusion's bundle (`fusion.vitlet`: graph "fusion", "features"
(B, sum of D_i, in the order of the slots) and "present" (B, slots), 1 or 0 -> "logits"
(B, classes)). The features of an absent slot may be any finite numbers: the graph puts learned
ones in their place.

```json
{"schema": 1, "vitlet": "0.1.0", "hash": "<sha256 of all the rest>",
 "model": {"name": "deit", "config": {"dim": 384}, "bytes": 8724000, "macs": 1.2e8},
 "preprocess": {"size": [28, 28], "...": "see vitlet.data.spec.Preprocess"},
 "labels": ["T-shirt", "Trouser", "..."],
 "slots": [{"index": 0, "classes": [0, 7], "bundle": "slot-00.vitlet", "sha256": "...",
            "features": 64, "bytes": 412000, "params": 101000, "macs": 1200000, "memory": 3100000,
            "latency": 0.004, "devices": ["pi-kitchen", "pi-garage"], "details": {}}],
 "devices": [{"name": "pi-kitchen", "...": "see vitlet.partition.devices.Device"}],
 "fusion": {"bundle": "fusion.vitlet", "sha256": "...", "bytes": 90000, "macs": 21000,
            "details": {}},
 "strategy": {"classes": "balanced-random", "assign": "greedy", "seed": 0},
 "calibration": {"temperature": 1.3}, "details": {}}
```
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vitlet.data.spec import Preprocess
from vitlet.errors import BundleError, StorageError, UsageError
from vitlet.partition.devices import Device, parse_devices
from vitlet.partition.fields import entries, number, only, text
from vitlet.partition.slots import Fusion, Slot
from vitlet.runtime.bundle import Bundle, open_bundle, read_json
from vitlet.runtime.manifest import MANIFEST, Manifest, TensorSpec

__all__ = [
    "FUSION",
    "PLAN",
    "SCHEMA",
    "Fusion",
    "Plan",
    "Slot",
    "check_graph",
    "load_plan",
    "manifest_sha256",
    "slot_bundle_name",
    "write_plan",
]

SCHEMA = 1
PLAN = "plan.json"
FUSION = "fusion.vitlet"


def slot_bundle_name(index: int) -> str:
    """Return the folder of a sub-model: "slot-00.vitlet"."""
    return f"slot-{index:02d}.vitlet"


@dataclass(frozen=True)
class Plan:
    """The whole of `plan.json`.

    Attributes:
        vitlet: version that made it.
        model: of the full model: "name", "config", "bytes", "params", "macs" and others.
        preprocess: how an image becomes every sub-model's input.
        labels: class names.
        slots: in order of `index`, which counts from 0; every class is in exactly one.
        devices: that the slots speak of.
        fusion: the network that joins.
        strategy: how it was made: "classes", "assign", "seed".
        calibration: "temperature": what logits are divided by before the softmax.
        details: what else is known: accuracies, reasons.
        path: where its bundles lie; None for a plan that was read from a message.
    """

    vitlet: str
    model: dict[str, Any]
    preprocess: Preprocess
    labels: tuple[str, ...]
    slots: tuple[Slot, ...]
    devices: tuple[Device, ...]
    fusion: Fusion
    strategy: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, float] = field(default_factory=lambda: {"temperature": 1.0})
    details: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA
    path: Path | None = field(default=None, compare=False, repr=False)

    @property
    def hash(self) -> str:
        """SHA-256 over everything in the plan, so also over its bundles' manifests."""
        content = json.dumps(self._content(), sort_keys=True, allow_nan=False, ensure_ascii=True)
        return hashlib.sha256(content.encode("ascii")).hexdigest()

    @property
    def temperature(self) -> float:
        """What logits are divided by before the softmax."""
        return self.calibration["temperature"]

    def device(self, name: str) -> Device:
        """Return the device of a name.

        Raises:
            UsageError: the plan has none of this name.
        """
        for device in self.devices:
            if device.name == name:
                return device
        names = ", ".join(device.name for device in self.devices)
        raise UsageError(f"the plan has no device {name!r}: it has {names}")

    def slots_of(self, name: str) -> tuple[Slot, ...]:
        """Return the slots whose primary device or replica `name` is."""
        return tuple(slot for slot in self.slots if name in slot.devices)

    def covered_classes(self, present: Iterable[int]) -> tuple[int, ...]:
        """Return the classes of the slots in `present`, sorted."""
        return tuple(sorted(c for index in set(present) for c in self.slots[index].classes))

    def slot_bundle(self, index: int, *, hashes: bool = True) -> Bundle:
        """Open the bundle of a slot, checked against the plan.

        Raises:
            BundleError: it was changed, is incomplete, or is not what the plan says.
        """
        slot = self.slots[index]
        image = ("batch", self.preprocess.channels, *self.preprocess.size)
        return self._bundle(
            slot.bundle,
            slot.sha256,
            "features",
            (TensorSpec("image", "float32", image),),
            TensorSpec("features", "float32", ("batch", slot.features)),
            hashes,
        )

    def fusion_bundle(self, *, hashes: bool = True) -> Bundle:
        """Open the bundle of the fusion, checked against the plan.

        Raises:
            BundleError: it was changed, is incomplete, or is not what the plan says.
        """
        features = sum(slot.features for slot in self.slots)
        return self._bundle(
            self.fusion.bundle,
            self.fusion.sha256,
            "fusion",
            (
                TensorSpec("features", "float32", ("batch", features)),
                TensorSpec("present", "float32", ("batch", len(self.slots))),
            ),
            TensorSpec("logits", "float32", ("batch", len(self.labels))),
            hashes,
        )

    def save(self, out: str | os.PathLike[str]) -> Plan:
        """Write the plan and copies of its bundles into a new or empty folder.

        Returns:
            The plan as it lies there.

        Raises:
            UsageError: the folder holds something already, or the plan has no bundles.
            StorageError: it cannot be written.
        """
        out = Path(out)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{out} is not an empty folder: choose another place for the plan")
        source = self._root()
        try:
            out.mkdir(parents=True, exist_ok=True)
            for name in (*(slot.bundle for slot in self.slots), self.fusion.bundle):
                shutil.copytree(source / name, out / name, symlinks=True)
        except OSError as error:
            raise StorageError(f"cannot write {out}: {error.strerror or error}") from error
        write_plan(self, out)
        return load_plan(out)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary with the plan's hash."""
        return {**self._content(), "hash": self.hash}

    @classmethod
    def from_json(cls, data: Any) -> Plan:
        """Read back what `to_json` wrote.

        Raises:
            BundleError: not a plan, of another schema, changed by hand, or contradicting itself.
        """
        if not isinstance(data, Mapping) or "schema" not in data:
            raise BundleError(f"{PLAN} is not a plan: it has no schema number")
        if data["schema"] != SCHEMA or type(data["schema"]) is not int:
            raise BundleError(
                f"{PLAN} has schema {data['schema']!r}, this vitlet reads {SCHEMA}: "
                "update vitlet or make the plan again"
            )
        try:
            plan = cls._read(data)
        except (UsageError, TypeError, AttributeError) as error:
            raise BundleError(f"{PLAN} does not follow schema {SCHEMA}: {error}") from None
        if plan.hash != data.get("hash"):
            raise BundleError(
                f"{PLAN} was changed after it was made: its hash is {plan.hash[:12]}..., it says "
                f"{str(data.get('hash'))[:12]}...; make the plan again"
            )
        return plan

    def _content(self) -> dict[str, Any]:
        # A loop over the fields, not asdict(): that would copy and then throw away `path`.
        return {
            "schema": self.schema,
            "vitlet": self.vitlet,
            "model": self.model,
            "preprocess": self.preprocess.to_json(),
            "labels": list(self.labels),
            "slots": [asdict(slot) for slot in self.slots],
            "devices": [device.to_json() for device in self.devices],
            "fusion": asdict(self.fusion),
            "strategy": self.strategy,
            "calibration": self.calibration,
            "details": self.details,
        }

    @classmethod
    def _read(cls, data: Mapping[str, Any]) -> Plan:
        known = [*(name for name in cls.__dataclass_fields__ if name != "path"), "hash"]
        only(data, known, "the plan")
        labels = entries(data, "labels", "the plan")
        if not labels or not all(isinstance(label, str) for label in labels):
            raise UsageError(f"labels must be class names, got {labels!r}")
        calibration = {
            "temperature": number(
                _table(data, "calibration"), "temperature", "calibration", above=0
            )
        }
        plan = cls(
            vitlet=text(data, "vitlet", "the plan"),
            model=_table(data, "model"),
            preprocess=Preprocess.from_json(_table(data, "preprocess")),
            labels=tuple(labels),
            slots=tuple(Slot.from_json(slot) for slot in entries(data, "slots", "the plan")),
            devices=parse_devices(data.get("devices"), "the plan"),
            fusion=Fusion.from_json(data.get("fusion")),
            strategy=_table(data, "strategy"),
            calibration=calibration,
            details=_table(data, "details"),
        )
        plan._check()
        return plan

    def _check(self) -> None:
        """Refuse a plan whose parts contradict each other; raises UsageError."""
        if [slot.index for slot in self.slots] != list(range(len(self.slots))):
            raise UsageError("the slots must be numbered 0, 1, ... in order")
        dealt = sorted(c for slot in self.slots for c in slot.classes)
        if dealt != list(range(len(self.labels))):
            raise UsageError(
                f"every one of the {len(self.labels)} classes must be in exactly one slot"
            )
        names = {device.name for device in self.devices}
        for slot in self.slots:
            strangers = [name for name in slot.devices if name not in names]
            if strangers or len(set(slot.devices)) != len(slot.devices):
                raise UsageError(
                    f"slot {slot.index} speaks of devices that are unknown or come twice: "
                    f"{', '.join(slot.devices)}"
                )
        bundles = [*(slot.bundle for slot in self.slots), self.fusion.bundle]
        if len(set(bundles)) != len(bundles):
            raise UsageError("two slots share one bundle")

    def _root(self) -> Path:
        if self.path is None:
            raise UsageError("this plan has no folder with bundles: load it with load_plan(dir)")
        return self.path

    def _bundle(
        self,
        name: str,
        sha256: str,
        graph: str,
        inputs: tuple[TensorSpec, ...],
        output: TensorSpec,
        hashes: bool,
    ) -> Bundle:
        folder = self._root() / name
        if folder.is_symlink():
            raise BundleError(f"{folder} is a link: a plan holds plain folders only")
        bundle = open_bundle(folder, hashes=hashes)
        found = manifest_sha256(folder)
        if found != sha256:
            raise BundleError(
                f"{folder} was changed after the plan was made: the SHA-256 of its {MANIFEST} is "
                f"{found[:12]}..., the plan says {sha256[:12]}...; make the plan again"
            )
        check_graph(bundle.manifest, graph, inputs, output, name)
        return bundle


def load_plan(
    folder: str | os.PathLike[str],
    *,
    slots: Sequence[int] | None = None,
    fusion: bool = True,
) -> Plan:
    """Open a plan directory and trust nothing in it before it is checked.

    Args:
        folder: holds `plan.json` and the bundles.
        slots: whose bundles must be there and unchanged; None for all. A worker names its own.
        fusion: whether the fusion's bundle must be there and unchanged.

    Raises:
        BundleError: it is not a plan, of an unknown schema, or anything in it was changed.
    """
    root = Path(folder)
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise BundleError(f"{root} {what}: expected a plan, which is a folder with {PLAN}")
    root = root.resolve()
    plan = replace(Plan.from_json(read_json(root, PLAN)), path=root)
    for index in range(len(plan.slots)) if slots is None else slots:
        if not 0 <= index < len(plan.slots):
            raise UsageError(f"the plan has slots 0 to {len(plan.slots) - 1}, got {index}")
        plan.slot_bundle(index)
    if fusion:
        plan.fusion_bundle()
    return plan


def write_plan(plan: Plan, folder: str | os.PathLike[str]) -> None:
    """Write `plan.json` beside the bundles, whole or not at all.

    Raises:
        UsageError: the plan contradicts itself.
        StorageError: it cannot be written.
    """
    plan._check()
    content = json.dumps(plan.to_json(), indent=1, sort_keys=True, allow_nan=False) + "\n"
    part = Path(folder) / f".{PLAN}.part"
    try:
        part.write_text(content, encoding="utf-8")
        part.replace(Path(folder) / PLAN)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error


def manifest_sha256(bundle: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a bundle's manifest, which stands for the whole bundle."""
    return hashlib.sha256((Path(bundle) / MANIFEST).read_bytes()).hexdigest()


def check_graph(
    manifest: Manifest,
    graph: str,
    inputs: tuple[TensorSpec, ...],
    output: TensorSpec,
    name: str,
) -> None:
    """Refuse a bundle whose artefacts for `graph` take or give something else; any batch is fine.

    Raises:
        BundleError: as said, or there is no artefact for `graph`.
    """
    found = [artifact for artifact in manifest.artifacts if artifact.graph == graph]
    if not found:
        raise BundleError(f"{name} has no graph {graph!r}")
    for artifact in found:
        sides = ((artifact.inputs, inputs), (artifact.outputs, (output,)))
        for got, wanted in sides:
            if [_free(spec) for spec in got] != [_free(spec) for spec in wanted]:
                raise BundleError(
                    f"{name}/{artifact.file} does not fit the plan: expected "
                    f"{', '.join(map(str, wanted))}, got {', '.join(map(str, got))}"
                )


def _free(spec: TensorSpec) -> tuple[str, str, tuple[int | str, ...]]:
    return spec.name, spec.dtype, spec.shape[1:]


def _table(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    if not isinstance(value, dict):
        raise UsageError(f"{key} must be a table, got {value!r}")
    return value
