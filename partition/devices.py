"""The devices that a model is split over, as plain data, and the file that lists them.

A device file is TOML (or JSON of the same shape); `vitlet bench --device-profile` measures the
machine it runs on and writes an entry:

```toml
[[devices]]
name = "pi-kitchen"
memory = "512 MB"        # or a number of bytes; MB is 10^6, MiB is 2^20
speed = 1.2e9            # multiply-accumulates a second of a small ViT, measured
overhead = 0.002         # seconds of an inference that do not shrink with the model
budget = 2.5e9           # per inference; leave it out for no limit
budget_unit = "flops"    # a multiply-accumulate is two; or "joules", which needs `watts`
watts = 5.0              # power while computing
link_rate = 2.5e6        # bytes a second from the coordinator; leave it out for "no wait"
link_latency = 0.001     # seconds, one way
```
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from vitlet.errors import MissingDependencyError, UsageError
from vitlet.partition.fields import entries, number, only, text, whole

BudgetUnit = Literal["flops", "joules"]
FLOPS_PER_MAC = 2
FILE_LIMIT = 1 << 20  # bytes of a device file
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        name: unique in its list.
        memory: bytes that a worker may use for its sub-models.
        speed: multiply-accumulates a second.
        budget: what one inference may cost, in `budget_unit`; None for no limit.
        budget_unit: "flops" (two for a multiply-accumulate) or "joules".
        watts: power while computing; needed for a budget in joules.
        overhead: seconds of every inference that do not depend on the model's size.
        link_rate: bytes a second between the coordinator and the device; None takes no time.
        link_latency: seconds that a message takes beyond its bytes, one way.
    """

    name: str
    memory: int
    speed: float
    budget: float | None = None
    budget_unit: BudgetUnit = "flops"
    watts: float | None = None
    overhead: float = 0.0
    link_rate: float | None = None
    link_latency: float = 0.0

    def compute_seconds(self, macs: float) -> float:
        """Return the predicted time of a model of `macs` multiply-accumulates."""
        return self.overhead + macs / self.speed

    def transfer_seconds(self, sent: float, received: float) -> float:
        """Return the time for `sent` bytes to the device and `received` bytes back."""
        seconds = 0.0 if self.link_rate is None else (sent + received) / self.link_rate
        return seconds + 2 * self.link_latency

    def cost(self, macs: float) -> float:
        """Return what one inference takes from the budget, in `budget_unit`."""
        if self.budget_unit == "flops":
            return FLOPS_PER_MAC * macs
        return (self.watts or 0.0) * self.compute_seconds(macs)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, without the fields that are not set."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {key: value for key, value in values.items() if value is not None}

    @classmethod
    def from_json(cls, data: Any, where: str = "a device") -> Device:
        """Read back one entry.

        Raises:
            UsageError: a field is missing, unknown or senseless.
        """
        data = only(data, [f.name for f in fields(cls)], where)
        name = text(data, "name", where)
        where = f"device {name!r}"
        unit = data.get("budget_unit", "flops")
        if unit not in ("flops", "joules"):
            raise UsageError(f'{where}: budget_unit must be "flops" or "joules", got {unit!r}')
        limits = {
            key: number(data, key, where, above=0)
            for key in ("budget", "watts", "link_rate")
            if data.get(key) is not None
        }
        if unit == "joules" and "budget" in limits and "watts" not in limits:
            raise UsageError(f"{where}: a budget in joules needs `watts`, the power it draws")
        return cls(
            name=name,
            memory=_bytes(data, where),
            speed=number(data, "speed", where, above=0),
            budget_unit=unit,
            overhead=number(data, "overhead", where, default=0.0),
            link_latency=number(data, "link_latency", where, default=0.0),
            **limits,
        )


def read_devices(path: str | os.PathLike[str]) -> tuple[Device, ...]:
    """Read a device file, `.toml` or `.json`.

    Raises:
        UsageError: it cannot be read, or does not describe devices.
        MissingDependencyError: TOML on Python 3.10, which has no reader for it.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_LIMIT + 1)
        content = raw.decode("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read the device file {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise UsageError(f"the device file {path} is not UTF-8 text") from None
    if len(raw) > FILE_LIMIT:
        raise UsageError(f"the device file {path} is larger than {FILE_LIMIT} bytes")
    return parse_devices(_parse(content, path), str(path))


def parse_devices(data: Any, where: str = "the device file") -> tuple[Device, ...]:
    """Read a list of devices, or a table with the list `devices`.

    Raises:
        UsageError: there is no device, or one is described wrongly or twice.
    """
    if not isinstance(data, list):
        data = entries(only(data, ("devices",), where), "devices", where)
    devices = tuple(
        Device.from_json(entry, f"{where}, device {index}") for index, entry in enumerate(data, 1)
    )
    check_devices(devices, where)
    return devices


def check_devices(devices: Sequence[Device], where: str = "the devices") -> None:
    """Refuse an empty list and names that come twice.

    Raises:
        UsageError: as said.
    """
    if not devices:
        raise UsageError(f"{where}: expected at least one device")
    names = [device.name for device in devices]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{where}: the device name {twice!r} comes twice")


def write_devices(devices: Sequence[Device], path: str | os.PathLike[str]) -> None:
    """Write a device file of the kind that its ending says.

    Raises:
        UsageError: the ending is neither `.toml` nor `.json`.
    """
    path = Path(path)
    if path.suffix == ".json":
        content = json.dumps({"devices": [d.to_json() for d in devices]}, indent=1) + "\n"
    elif path.suffix == ".toml":
        content = "\n".join(_toml(device) for device in devices)
    else:
        raise UsageError(f"a device file ends in .toml or .json, got {path.name!r}")
    path.write_text(content, encoding="utf-8")


def _toml(device: Device) -> str:
    # JSON's texts and numbers are TOML's too.
    lines = [f"{key} = {json.dumps(value)}" for key, value in device.to_json().items()]
    return "\n".join(["[[devices]]", *lines, ""])


def _parse(content: str, path: Path) -> Any:
    try:
        if path.suffix == ".json":
            return json.loads(content)
        if path.suffix == ".toml":
            if sys.version_info < (3, 11):
                raise MissingDependencyError(
                    f"{path.name} is TOML, which Python reads from 3.11 on: write it as JSON"
                )
            import tomllib

            return tomllib.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the device file {path} cannot be read: {error}") from None
    raise UsageError(f"a device file ends in .toml or .json, got {path.name!r}")


def parse_bytes(text: str) -> int | None:
    """Return "512 MB", "1.5 GiB" or "4096" as bytes; None for what is no size."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    factor = _UNITS.get((found[2] or "B").upper()) if found else None
    size = int(float(found[1]) * factor) if found and factor else 0
    return size if size >= 1 else None


def _bytes(data: Any, where: str) -> int:
    value = data.get("memory")
    if not isinstance(value, str):
        return whole(data, "memory", where, least=1)
    size = parse_bytes(value)
    if size is None:
        raise UsageError(
            f'{where}: memory must be bytes or a text such as "512 MB" or "1.5 GiB", got {value!r}'
        )
    return size
