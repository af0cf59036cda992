"""The demo's report: one HTML file with its pictures inside."""

from __future__ import annotations

import base64
import html as escape
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vitlet
from vitlet.apps import machine
from vitlet.apps.units import milliseconds, percent, seconds, size

if TYPE_CHECKING:
    from vitlet.apps.demonstration import Demonstration

_STYLE = """
:root { color-scheme: light; --ink: #1f2328; --faint: #6b737b; --line: #e3e5e4; }
body { font: 15px/1.55 system-ui, sans-serif; color: var(--ink); background: #fbfbf9;
  max-width: 62rem; margin: 3rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .6rem; }
p { max-width: 44rem; } .faint { color: var(--faint); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; color: var(--faint); }
th, td { padding: .45rem .9rem .45rem 0; border-bottom: 1px solid var(--line); }
th.n, td.n { text-align: right; }
.passed { color: #2f8f5b; } .failed { color: #c4453c; }
img { max-width: 100%; border: 1px solid var(--line); border-radius: 6px; background: #fff; }
pre { background: #f1f2f0; padding: .9rem 1.1rem; border-radius: 6px; overflow-x: auto; }
"""
_HEADS = (
    "artefact", "precision", ">size", "verified", ">cosine", ">accuracy", ">median", ">99th",
    ">memory",
)  # fmt: skip


def html(demo: Demonstration) -> str:
    """Return the page."""
    host = machine.hardware()
    facts = f"{host['cpu']}, {host['threads']} threads, {host['system']}"
    pictures = sorted(demo.folder.glob("sheet*.png"), key=lambda p: (len(p.name), p.name))
    sheets = "\n".join(_picture(path, "classified images") for path in pictures)
    body = f"""
<h1>{demo.model}</h1>
<p class="faint">vitlet {vitlet.__version__}, {_text(facts)}; made in {seconds(demo.seconds)}</p>
<p>One checkpoint, compiled for three targets. Each artefact was compared with the source model on
real, random and worst-case inputs before anything below was measured
(<a href="verification.html">all figures</a>).</p>
<div class="wide">{_table(demo)}</div>
<p class="faint">Accuracy on {len(demo.truth)} bundled test images of Fashion-MNIST; latency at one
thread and batch 1; memory is the peak of a fresh process. Core ML runs on Apple devices only:
here its program and weights were compared with the source.</p>
<h2>Latency and memory</h2>
{_picture(demo.folder / "bench.png", "latency, throughput and memory per engine")}
<h2>What it saw</h2>
<p class="faint">Green: right. Red: wrong, with the true class.</p>
{sheets}
<h2>Go on</h2>
<pre>{_text(chr(10).join(next_commands(demo)))}</pre>
"""
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>vitlet demo</title><style>{_STYLE}</style>{body}</html>\n"
    )


def next_commands(demo: Demonstration) -> list[str]:
    """Return what to type after the demo."""
    folder = Path(os.path.relpath(demo.folder))
    bundle = folder / f"{demo.model}.vitlet"
    return [
        f"vitlet predict {bundle} {folder / 'images'} --sheet mine.png",
        f"vitlet inspect {bundle}",
        f"vitlet bench {bundle} --threads 1,2",
    ]


def _table(demo: Demonstration) -> str:
    head = "".join(
        f'<th class="n">{name[1:]}</th>' if name[0] == ">" else f"<th>{name}</th>"
        for name in _HEADS
    )
    return f"<table><tr>{head}</tr>{''.join(_row(row) for row in demo.rows())}</table>"


def _row(row: dict[str, Any]) -> str:
    status = str(row["status"])
    how = "executed" if row["method"] == "executed" else "inspected"
    cells = [
        _text(row["file"]),
        _text(row["precision"]),
        size(row["bytes"]),
        f'<span class="{_text(status)}">{_text(how if status == "passed" else status)}</span>',
        "-" if row["cosine"] is None else f"{row['cosine']:.6f}",
        "-" if row["accuracy"] is None else percent(row["accuracy"]),
        "-" if row["p50_ms"] is None else f"{milliseconds(row['p50_ms'])} ms",
        "-" if row["p99_ms"] is None else f"{milliseconds(row['p99_ms'])} ms",
        "-" if row["peak_rss"] is None else size(row["peak_rss"]),
    ]
    return "".join(
        ["<tr>"]
        + [
            f'<td class="n">{cell}</td>' if head[0] == ">" else f"<td>{cell}</td>"
            for head, cell in zip(_HEADS, cells, strict=True)
        ]
        + ["</tr>"]
    )


def _picture(path: Path, what: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{_text(what)}" src="data:image/png;base64,{data}"></p>'


def _text(value: Any) -> str:
    return escape.escape(str(value))
