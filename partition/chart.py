"""The picture of a split: accuracy, and bytes of one device, against the number of devices."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitlet._extras import require
from vitlet.errors import StorageError, UsageError

_INK, _FAINT, _GRID = "#1f2328", "#7a828a", "#e3e5e4"
_BLUE, _ORANGE, _GREEN = "#3d6fb4", "#d0843c", "#6b8e5a"


@dataclass(frozen=True)
class Point:
    """One split.

    Attributes:
        devices: how many.
        accuracy: nothing lost.
        one_lost: accuracy with the most painful device lost; None if it is not known.
        bytes: of the device that carries the most.
        total: bytes of all devices.
    """

    devices: int
    accuracy: float
    one_lost: float | None
    bytes: int
    total: int


def chart(
    points: Sequence[Point], path: str | Path, *, full: tuple[float, int] | None = None
) -> None:
    """Draw splits into a file; its ending says the format (.png, .svg, .pdf).

    Args:
        points: at least one; several of one number of devices are drawn above each other.
        path: the file.
        full: accuracy and bytes of the full model.

    Raises:
        UsageError: no points.
        MissingDependencyError: matplotlib is not installed.
        StorageError: the file cannot be written.
    """
    if not points:
        raise UsageError("expected at least one split to draw")
    os.environ.setdefault("MPLBACKEND", "Agg")
    require("matplotlib", extra="report", why="draw a plot")
    from matplotlib.figure import Figure

    points = sorted(points, key=lambda point: point.devices)
    counts = [point.devices for point in points]
    figure = Figure(figsize=(10, 4), dpi=150, facecolor="white")
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.07, right=0.97, bottom=0.14, top=0.86, wspace=0.2)
    _frame(left, "accuracy, %", counts)
    left.plot(counts, [100 * p.accuracy for p in points], "o-", color=_BLUE, label="split")
    known = [point for point in points if point.one_lost is not None]
    if known:
        worst = [100 * (point.one_lost or 0.0) for point in known]
        left.plot([p.devices for p in known], worst, "o--", color=_ORANGE,
                  label="worst device lost")  # fmt: skip
    _frame(right, "bytes of compiled sub-models", counts)
    right.set_yscale("log")
    sizes = [size for p in points for size in (p.bytes, p.total)] + ([full[1]] if full else [])
    _name_sizes(right, narrow=max(sizes) < 10 * min(sizes))
    right.plot(counts, [p.bytes for p in points], "o-", color=_BLUE, label="largest device")
    right.plot(counts, [p.total for p in points], "o--", color=_GREEN, label="all devices")
    if full is not None:
        left.axhline(100 * full[0], color=_FAINT, linewidth=1, label="full model")
        right.axhline(full[1], color=_FAINT, linewidth=1, label="full model")
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=8, labelcolor=_INK)
    try:
        figure.savefig(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def _frame(axis: Any, name: str, counts: Sequence[int]) -> None:
    axis.set_title(name, color=_INK, size=10, loc="left")
    axis.set_xlabel("devices", color=_FAINT, size=9)
    axis.set_xticks(sorted(set(counts)))
    axis.tick_params(which="both", length=0, labelsize=8, colors=_FAINT)
    axis.grid(axis="y", color=_GRID, linewidth=0.8)
    axis.spines[:].set_visible(False)
    axis.set_axisbelow(True)


def _name_sizes(axis: Any, *, narrow: bool) -> None:
    """Write sizes at powers of ten; between them too where there is hardly one of them."""
    from matplotlib.ticker import EngFormatter, NullFormatter

    axis.yaxis.set_major_formatter(EngFormatter("B"))
    axis.yaxis.set_minor_formatter(EngFormatter("B") if narrow else NullFormatter())
