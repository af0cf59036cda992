"""An entry of the device file of `vitlet partition`, measured on this machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from vitlet.errors import StorageError
from vitlet.partition.devices import Device, read_devices, write_devices
from vitlet.partition.placing.probe import measure_speed


def measure(name: str | None, threads: int, seconds: float) -> Device:
    """Return this machine as a device: its free memory, and its speed on small transformers.

    What the budget of an inference is, and how fast the network, nobody can measure here: add them
    to the file by hand.

    Args:
        name: of the device; None for the machine's own.
        threads: of an inference.
        seconds: how long to measure.
    """
    speed, overhead = measure_speed(seconds, threads)
    return Device(
        name=name or platform.node() or "this-machine",
        memory=free_memory(),
        speed=float(f"{speed:.4g}"),
        overhead=float(f"{overhead:.4g}"),
    )


def write(device: Device, path: Path) -> bool:
    """Add a device to a file, or put it in the place of the one of its name.

    Fields that are not measured (budget, power, link) are kept.

    Returns:
        Whether there was one of its name.

    Raises:
        UsageError: the file is there and is no device file.
        StorageError: it cannot be written.
    """
    before = read_devices(path) if path.exists() else ()
    replaced = False
    devices = []
    for old in before:
        if old.name == device.name:
            measured = ("memory", "speed", "overhead")
            new = {**old.to_json(), **{key: getattr(device, key) for key in measured}}
            devices.append(Device.from_json(new))
            replaced = True
        else:
            devices.append(old)
    try:
        write_devices(devices if replaced else [*devices, device], path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    return replaced


def free_memory() -> int:
    """Return the bytes that programs can still have here; half of all where nobody says."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        lines = []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
