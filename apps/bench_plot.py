"""The picture of a benchmark: latency, throughput and memory, one row per configuration."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlet._extras import require
from vitlet.apps.files import write
from vitlet.apps.units import milliseconds

if TYPE_CHECKING:
    from vitlet.apps.bench_run import Measured

_INK, _FAINT, _GRID = "#1f2328", "#7a828a", "#e3e5e4"
_COLOURS = {"onnxruntime": "#3d6fb4", "tvm": "#d0843c", "coreml": "#6b8e5a"}


def plot(results: Sequence[Measured], path: Path, title: str) -> None:
    """Draw the results into a file; its ending says the format (.png, .svg, .pdf).

    Raises:
        MissingDependencyError: matplotlib is not installed.
        StorageError: the file cannot be written.
    """
    os.environ.setdefault("MPLBACKEND", "Agg")
    require("matplotlib", extra="report", why="draw a plot")
    from matplotlib.figure import Figure

    rows = len(results)
    figure = Figure(figsize=(10, 1.7 + 0.52 * rows), dpi=150, facecolor="white")
    axes = figure.subplots(1, 3, sharey=True, width_ratios=(2.1, 1, 1))
    figure.subplots_adjust(
        left=0.19, right=0.975, wspace=0.1, top=1 - 0.85 / figure.get_figheight(),
        bottom=0.62 / figure.get_figheight(),
    )  # fmt: skip
    figure.text(
        0.012, 0.12 / figure.get_figheight(),
        "latency: dot = median, bar = 10th to 90th percentile, line = up to the 99th",
        color=_FAINT, size=8,
    )  # fmt: skip
    figure.text(0.012, 1 - 0.3 / figure.get_figheight(), title, color=_INK, size=12, weight="bold")
    _latency(axes[0], results)
    _bars(axes[1], results, [r.throughput for r in results], "per second", "{:.0f}")
    memory = [(r.peak_rss or 0) / 1e6 for r in results]
    _bars(axes[2], results, memory, "peak memory, MB", "{:.0f}")
    axes[0].set_yticks(range(rows), [_label(r) for r in results], color=_INK, size=9)
    axes[0].set_ylim(rows - 0.4, -0.6)
    write(path, lambda temporary: figure.savefig(temporary))


def _label(result: Measured) -> str:
    job = result.job
    threads = "thread" if job.threads == 1 else "threads"
    return f"{job.engine} {job.graph}\n{job.threads} {threads}, batch {job.batch}"


def _colour(result: Measured) -> str:
    return _COLOURS.get(result.job.engine, _FAINT)


def _frame(axis: Any, name: str) -> None:
    axis.set_title(name, color=_FAINT, size=9, loc="left")
    axis.tick_params(length=0, labelsize=8, colors=_FAINT)
    axis.spines[:].set_visible(False)
    axis.set_axisbelow(True)


def _latency(axis: Any, results: Sequence[Measured]) -> None:
    _frame(axis, "latency, ms")
    axis.grid(axis="x", color=_GRID, linewidth=0.8)
    # One hiccup of the machine must not squeeze everything else against the axis.
    slow = max(result.percentile(90) for result in results)
    end = 1.12 * min(max(result.percentile(99) for result in results), 2 * slow)
    axis.set_xlim(0, end)
    for row, result in enumerate(results):
        low, middle, high, worst = (result.percentile(p) for p in (10, 50, 90, 99))
        colour = _colour(result)
        axis.plot([high, worst], [row, row], color=colour, linewidth=1.2, alpha=0.7)
        axis.plot([low, high], [row, row], color=colour, linewidth=7, alpha=0.35,
                  solid_capstyle="butt")  # fmt: skip
        axis.plot(middle, row, "o", color=colour, markersize=6)
        _note(axis, milliseconds(middle), middle, row, "left" if middle < 0.1 * end else "center")
        if worst > end:
            _note(axis, f"99th {milliseconds(worst)}", end, row, "right")


def _note(axis: Any, text: str, x: float, row: int, side: str) -> None:
    axis.annotate(
        text, (x, row), (0, 8), textcoords="offset points", ha=side, size=8, color=_INK
    )  # fmt: skip


def _bars(axis: Any, results: Sequence[Measured], values: list[float], name: str, fmt: str) -> None:
    _frame(axis, name)
    axis.set_xticks([])
    bars = axis.barh(range(len(values)), values, height=0.5, color=[_colour(r) for r in results])
    axis.bar_label(bars, [fmt.format(v) for v in values], padding=4, size=8, color=_INK)
    axis.set_xlim(0, 1.3 * max(values, default=1) or 1)
