"""One sub-model of a plan and the network that joins them, as plain data.

Their JSON is shown in `vitlet.partition.plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitlet.errors import UsageError
from vitlet.partition.fields import entries, number, only, text, whole
from vitlet.runtime.bundle import safe_name


@dataclass(frozen=True)
class Slot:
    """One sub-model and where it runs.

    Attributes:
        index: its place in the order in which features are joined.
        classes: indices into the plan's labels that it was made for.
        bundle: its folder in the plan directory.
        sha256: of the bundle's `manifest.json`, which in turn lists the hash of every file.
        features: numbers per image that it sends, D_i.
        bytes: of the compiled file.
        params: number of parameters.
        macs: multiply-accumulates of one image.
        memory: predicted bytes while running: weights and activations.
        latency: predicted seconds on its primary device, without transfer.
        devices: names; the first is the primary one, the rest are replicas.
        details: what else is known: widths, accuracy, reasons for its place.
    """

    index: int
    classes: tuple[int, ...]
    bundle: str
    sha256: str
    features: int
    bytes: int
    params: int
    macs: int
    memory: int
    latency: float
    devices: tuple[str, ...]
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def primary(self) -> str:
        """Name of the device that it runs on first."""
        return self.devices[0]

    @classmethod
    def from_json(cls, data: Any) -> Slot:
        """Read back one entry of "slots"; raises UsageError."""
        data = only(data, cls.__dataclass_fields__, "a slot")
        index = whole(data, "index", "a slot")
        where = f"slot {index}"
        classes, devices = entries(data, "classes", where), entries(data, "devices", where)
        if not classes or any(type(entry) is not int or entry < 0 for entry in classes):
            raise UsageError(f"{where}: classes must be class indices, got {classes!r}")
        if not devices or any(not isinstance(entry, str) for entry in devices):
            raise UsageError(f"{where}: devices must be device names, got {devices!r}")
        sizes = {
            key: whole(data, key, where, least=1 if key == "features" else 0)
            for key in ("features", "bytes", "params", "macs", "memory")
        }
        return cls(
            index=index,
            classes=tuple(classes),
            bundle=_folder(data, where),
            sha256=_digest(data, where),
            latency=number(data, "latency", where),
            devices=tuple(devices),
            details=_details(data, where),
            **sizes,
        )


@dataclass(frozen=True)
class Fusion:
    """The network that joins the features.

    Attributes:
        bundle: its folder in the plan directory.
        sha256: of the bundle's `manifest.json`.
        bytes: of the compiled file.
        macs: multiply-accumulates of one image.
        details: what else is known: hidden widths, device dropout.
    """

    bundle: str
    sha256: str
    bytes: int
    macs: int
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Any) -> Fusion:
        """Read back "fusion"; raises UsageError."""
        data = only(data, cls.__dataclass_fields__, "fusion")
        return cls(
            bundle=_folder(data, "fusion"),
            sha256=_digest(data, "fusion"),
            bytes=whole(data, "bytes", "fusion"),
            macs=whole(data, "macs", "fusion"),
            details=_details(data, "fusion"),
        )


def _folder(data: Mapping[str, Any], where: str) -> str:
    name = text(data, "bundle", where)
    if not safe_name(name) or "/" in name:
        raise UsageError(f"{where} has the unsafe path {name!r}")
    return name


def _digest(data: Mapping[str, Any], where: str) -> str:
    value = text(data, "sha256", where)
    if len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise UsageError(f"{where} has no SHA-256")
    return value


def _details(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    value = data.get("details", {})
    if not isinstance(value, dict):
        raise UsageError(f"{where}: details must be a table, got {value!r}")
    return value
