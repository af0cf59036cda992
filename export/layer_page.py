"""The part of the HTML report that shows a comparison layer by layer: a plot and a table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vitlet.export.compare import SNR_LIMIT
from vitlet.export.result import ArtifactResult, LayerRow

STYLE = """
.plot { width: 100%; height: auto; color: inherit; }
.plot text { font-size: 11px; fill: currentColor; }
.plot .line { fill: none; stroke: currentColor; stroke-width: 1.2; opacity: .55; }
.plot .grid { stroke: var(--line); } .plot circle { fill: currentColor; }
.plot .bad { fill: var(--bad); } .plot .most { fill: var(--warn); }
tr.bad td { color: var(--bad); } tr.most td { color: var(--warn); }
"""
_WIDTH, _HEIGHT = 1000.0, 260.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 48.0, 12.0, 14.0, 24.0
_HEAD = "layer,operator,tensor,,cosine,SNR dB,max abs,lowest,highest,fp16 headroom,noise added"


def layer_section(artifact: ArtifactResult) -> str:
    """Return a plot of the signal-to-noise ratio over the layers and a table; "" without layers."""
    shown = [row for row in artifact.layers if row.tensor]
    if not shown:
        return ""
    merged = len(artifact.layers) - len(shown)
    note = f", {merged} more are merged into others by the compiler" if merged else ""
    table = "".join(_line(row) for row in shown)
    head = "".join(
        f"<th{_number(index)}>{escape(name)}</th>" for index, name in enumerate(_HEAD.split(","))
    )
    return (
        f"<h3>Layers, for {escape(artifact.layers_case)}</h3>"
        f"<p>{len(shown)} layers{note}. Signal-to-noise ratio of each layer's output in dB, in the "
        f"order of computation; {SNR_LIMIT:.0f} means equal.</p>"
        f"{snr_plot(shown)}"
        f"<details><summary>Table</summary><div class='wide'><table><tr>{head}</tr>{table}</table>"
        "</div></details>"
    )


def snr_plot(rows: Sequence[LayerRow]) -> str:
    """Return an SVG of the rows' SNR; a layer's figures show when the pointer rests on it."""
    values = [_snr(row) for row in rows]
    low = min(0.0, *values)
    high = max(60.0, *values)
    wide, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(index: int, value: float) -> tuple[float, float]:
        across = index / max(len(rows) - 1, 1)
        return _LEFT + across * wide, _TOP + (high - value) / (high - low) * tall

    grid = []
    for mark in range(int(low // 20) * 20, int(high) + 1, 20):
        if mark >= low:
            y = place(0, mark)[1]
            grid.append(
                f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" '
                f'y2="{y:.1f}"/>'
                f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{mark}</text>'
            )
    points = [place(index, value) for index, value in enumerate(values)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(
        f'<circle{_kind(row)} cx="{x:.1f}" cy="{y:.1f}" r="{5 if row.mark else 2.4}">'
        f"<title>{escape(_title(row))}</title></circle>"
        for row, (x, y) in zip(rows, points, strict=True)
    )
    marks = "".join(
        f'<text x="{min(max(x, _LEFT + 60), _WIDTH - 70):.1f}" y="{max(y - 9, 11):.1f}" '
        f'text-anchor="middle">{escape(row.mark)}: {escape(row.module or row.name)}</text>'
        for row, (x, y) in zip(rows, points, strict=True)
        if row.mark
    )
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" '
        f'aria-label="Signal-to-noise ratio per layer">{"".join(grid)}'
        f'<polyline class="line" points="{line}"/>{dots}{marks}'
        f'<text x="{_LEFT}" y="{_HEIGHT - 6:.0f}">input</text>'
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6:.0f}" text-anchor="end">output</text></svg>'
    )


def _snr(row: LayerRow) -> float:
    return 0.0 if row.snr_db is None else row.snr_db


def _title(row: LayerRow) -> str:
    return f"{row.module or row.name} ({row.op}) in {row.tensor}: {_snr(row):.1f} dB"


def _kind(row: LayerRow) -> str:
    if not row.agrees:
        return ' class="bad"'
    return ' class="most"' if row.mark else ""


def _number(index: int) -> str:
    return ' class="number"' if index >= 4 else ""


def _line(row: LayerRow) -> str:
    cells = [row.module or row.name, row.op, row.tensor, row.mark or ("" if row.agrees else "off")]
    cells += figures(row)
    made = "".join(f"<td{_number(i)}>{escape(cell)}</td>" for i, cell in enumerate(cells))
    return f"<tr{_kind(row)}>{made}</tr>"


def figures(row: LayerRow) -> list[str]:
    """Return cosine, SNR, largest error, range, headroom and added noise as short texts."""
    forms = (
        (row.cosine, ".6f"),
        (row.snr_db, ".1f"),
        (row.max_abs, ".1e"),
        (row.lowest, ".3g"),
        (row.highest, ".3g"),
        (row.headroom, ".3g"),
        (row.added, ".1e"),
    )
    return ["-" if value is None else format(value, form) for value, form in forms]
