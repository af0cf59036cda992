"""Reads plain data that people or other machines wrote: each field's kind and range is checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from vitlet.errors import UsageError


def only(data: Any, known: Iterable[str], where: str) -> Mapping[str, Any]:
    """Return `data` if it is a table with no field but the known ones.

    Raises:
        UsageError: it is not a table, or has a field that means nothing.
    """
    if not isinstance(data, Mapping):
        raise UsageError(f"{where} must be a table, got {type(data).__name__}")
    known = list(known)
    unknown = sorted(str(key) for key in data if key not in known)
    if unknown:
        raise UsageError(
            f"{where} has the unknown field {unknown[0]!r}: it takes {', '.join(known)}"
        )
    return data


def text(data: Mapping[str, Any], key: str, where: str, default: str | None = None) -> str:
    """Return a non-empty text."""
    value = data.get(key, default)
    if value is None:
        raise UsageError(f"{where} has no {key!r}")
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise UsageError(f"{where}: {key} must be a text, got {value!r}")
    return value


def whole(data: Mapping[str, Any], key: str, where: str, *, least: int = 0) -> int:
    """Return a whole number from `least` up."""
    if key not in data:
        raise UsageError(f"{where} has no {key!r}")
    value = data[key]
    if type(value) is not int or not least <= value < 2**63:
        raise UsageError(f"{where}: {key} must be a whole number from {least} up, got {value!r}")
    return value


def number(
    data: Mapping[str, Any],
    key: str,
    where: str,
    *,
    default: float | None = None,
    above: float | None = None,
) -> float:
    """Return a finite number, at least 0, or greater than `above`."""
    value = data.get(key, default)
    if value is None:
        raise UsageError(f"{where} has no {key!r}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"{where}: {key} must be a number, got {value!r}")
    if value < 0 or (above is not None and value <= above):
        bound = "at least 0" if above is None else f"greater than {above:g}"
        raise UsageError(f"{where}: {key} must be {bound}, got {value!r}")
    return float(value)


def entries(data: Mapping[str, Any], key: str, where: str) -> list[Any]:
    """Return a list."""
    value = data.get(key)
    if not isinstance(value, list | tuple):
        raise UsageError(f"{where}: {key} must be a list, got {value!r}")
    return list(value)
