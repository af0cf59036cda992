"""Reads the small languages of option values: comma lists, numbers, durations."""

from __future__ import annotations

import re

from vitlet.errors import UsageError

_UNITS = {"ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0}


def words(text: str) -> list[str]:
    """Return the parts of a comma list, without spaces and empty parts."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(
    text: str, option: str, *, low: float, high: float = float("inf"), whole: bool = False
) -> list[float]:
    """Return the numbers of a comma list.

    Raises:
        UsageError: no number, not a number, or one out of range; names the option.
    """
    kind = "whole numbers" if whole else "numbers"
    limit = f" of at least {low:g}" if high == float("inf") else f" from {low:g} to {high:g}"
    found: list[float] = []
    for word in words(text):
        try:
            value = float(int(word)) if whole else float(word)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise UsageError(f"{option} takes {kind}{limit}, separated by commas, got {text!r}")
        found.append(value)
    if not found:
        raise UsageError(f"{option} takes {kind}{limit}, separated by commas, got {text!r}")
    return found


def duration(text: str, option: str) -> float:
    """Return a time such as "10s", "500ms", "2m" in seconds.

    Raises:
        UsageError: not a time, or none at all.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|)", text.strip())
    value = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if value <= 0:
        raise UsageError(f"{option} takes a time such as 10s, 500ms or 2m, got {text!r}")
    return value


def byte_size(text: str, option: str) -> int:
    """Return a size such as "180 MB" or "1.5GiB" in bytes; a bare number is bytes.

    Raises:
        UsageError: not a size, or none at all.
    """
    from vitlet.partition.devices import parse_bytes

    value = parse_bytes(text)
    if value is None:
        raise UsageError(f"{option} takes a size such as 180MB or 1.5GiB, got {text!r}")
    return value
