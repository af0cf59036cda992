"""What this machine says about itself, where it does: memory and temperature."""

from __future__ import annotations

import os
from pathlib import Path

_FALLBACK = 1 << 30  # bytes


def memory_available() -> int:
    """Return the bytes of memory that programs may still take."""
    found = _kib("/proc/meminfo", "MemAvailable:")
    if found is not None:
        return found
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError):
        return _FALLBACK


def memory_used() -> int | None:
    """Return the bytes of memory that this process takes; None where that is not said."""
    return _kib("/proc/self/status", "VmRSS:")


def temperature() -> float | None:
    """Return the highest temperature in degrees Celsius; None where none can be read."""
    found = []
    for zone in Path("/sys/class/thermal").glob("thermal_zone*/temp"):
        try:
            found.append(int(zone.read_text()) / 1000)
        except (OSError, ValueError):
            continue
    return max(found, default=None)


def _kib(path: str, name: str) -> int | None:
    try:
        with Path(path).open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith(name):
                    return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        return None
    return None
