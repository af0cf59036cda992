"""Answers to names that do not exist."""

from __future__ import annotations

import difflib
from pathlib import Path

from vitlet.errors import UsageError


def existing(path: Path, what: str) -> Path:
    """Return `path` if something is there.

    Raises:
        UsageError: nothing is there; the message has the nearest name in the same folder.
    """
    if path.exists():
        return path
    raise UsageError(f"{what} {path} does not exist{nearest_file(path)}")


def nearest_file(path: Path) -> str:
    """Return ": did you mean X?" with the nearest name beside `path`, or an empty text."""
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f": there is no folder {path.parent}"
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f": did you mean {path.parent / near[0]}?" if near else ""
