"""The picture of a fine-tuning run: its loss, and where tokens went, by epoch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vitlet._extras import require
from vitlet.errors import CorruptInputError, StorageError, UsageError

_INK, _FAINT, _GRID = "#1f2328", "#7a828a", "#e3e5e4"
_BLUE, _ORANGE = "#3d6fb4", "#d0843c"


def read_journal(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return a journal's lines, one for each epoch: of an epoch that came twice the last.

    Raises:
        UsageError: there is no journal, or nothing in it.
        CorruptInputError: a line is no journal's.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    epochs: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            entry = json.loads(line)
            epochs[int(entry["epoch"])] = {**entry, "loss": float(entry["loss"])}
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptInputError(f"{path}, line {number}: {error}") from None
    if not epochs:
        raise UsageError(f"{path} has no epoch yet")
    return [epochs[number] for number in sorted(epochs)]


def plot_journal(journal: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Draw a journal into a file; its ending says the format (.png, .svg, .pdf).

    Args:
        journal: `journal.jsonl` of `vitlet.compress.finetune`.
        path: the file.

    Raises:
        UsageError: there is no journal, or nothing in it.
        CorruptInputError: a line is no journal's.
        MissingDependencyError: matplotlib is not installed.
        StorageError: the file cannot be written.
    """
    entries = read_journal(journal)
    os.environ.setdefault("MPLBACKEND", "Agg")
    require("matplotlib", extra="report", why="draw a plot")
    from matplotlib.figure import Figure

    shares = [entry for entry in entries if "dense_share" in entry]
    figure = Figure(figsize=(10 if shares else 5.4, 4), dpi=150, facecolor="white")
    axes = figure.subplots(1, 2 if shares else 1, squeeze=False)[0]
    figure.subplots_adjust(left=0.11, right=0.97, bottom=0.14, top=0.88, wspace=0.2)
    _frame(axes[0], "loss")
    axes[0].plot([e["epoch"] for e in entries], [e["loss"] for e in entries], "o-", color=_BLUE)
    if shares:
        _frame(axes[1], "share of the tokens in dense layers, %")
        axes[1].plot(
            [e["epoch"] for e in shares], [100 * e["dense_share"] for e in shares], "o-",
            color=_BLUE, label="found",
        )  # fmt: skip
        wanted = shares[-1].get("wanted_share")
        if wanted is not None:
            axes[1].axhline(100 * wanted, color=_ORANGE, linewidth=1, label="wanted")
        axes[1].legend(frameon=False, fontsize=8, labelcolor=_INK)
    try:
        figure.savefig(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def _frame(axis: Any, name: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_title(name, color=_INK, size=10, loc="left")
    axis.set_xlabel("epoch", color=_FAINT, size=9)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.tick_params(which="both", length=0, labelsize=8, colors=_FAINT)
    axis.grid(axis="y", color=_GRID, linewidth=0.8)
    axis.spines[:].set_visible(False)
    axis.set_axisbelow(True)
