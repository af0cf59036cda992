"""Writes a verification report as JSON or as one HTML file that needs nothing else."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from vitlet.data.spec import Preprocess
from vitlet.errors import StorageError
from vitlet.export.cases import Case
from vitlet.export.layer_page import STYLE, layer_section
from vitlet.export.png import data_uri
from vitlet.export.result import EXECUTED, INSPECTED, LIMITS, ArtifactResult, CaseResult, Report
from vitlet.runtime.manifest import Artifact

_PACKAGES = ("vitlet", "numpy", "torch", "onnx", "onnxruntime", "coremltools", "apache-tvm")

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #1a7f37; --bad: #cf222e;
  --warn: #9a6700; --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media (prefers-color-scheme: dark) { :root { --good: #3fb950; --bad: #ff7b72; --warn: #d29922; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; } p { margin: .3rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; }
th, td { text-align: left; padding: .32rem .6rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
td.text { white-space: normal; overflow-wrap: anywhere; }
th { font-weight: 600; background: var(--soft); }
td.number, th.number { text-align: right; font-family: var(--mono); }
code, pre { font-family: var(--mono); font-size: .85rem; overflow-wrap: anywhere; }
pre { background: var(--soft); padding: .7rem; border-radius: 6px; white-space: pre-wrap; }
.passed { color: var(--good); font-weight: 600; } .failed { color: var(--bad); font-weight: 600; }
.not-run { color: var(--warn); font-weight: 600; } .warning { color: var(--warn); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(26rem, 1fr)); gap: 1rem; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .8rem; display: flex;
  gap: .8rem; align-items: flex-start; }
.card img { width: 96px; height: 96px; object-fit: cover; border-radius: 4px;
  image-rendering: auto; flex: none; }
.card table { font-size: .78rem; } .card td, .card th { padding: .1rem .4rem; border: 0; }
details { margin: .5rem 0; } summary { cursor: pointer; }
footer { margin-top: 2.5rem; font-size: .8rem; opacity: .7; }
"""


def environment(artifacts: Iterable[Artifact] = ()) -> dict[str, str]:
    """Return package -> version of what is installed, and the machine; imports none of them."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if "vitlet" not in found:  # run from a source tree
        from vitlet import __version__

        found["vitlet"] = __version__
    for artifact in artifacts:
        for tool, version in artifact.toolchain.items():
            found.setdefault(f"exported with {tool}", str(version))
    return found


def pictures(cases: Sequence[Case], preprocess: Preprocess | None) -> dict[str, str]:
    """Return case name -> data URI of the pictures among cases."""
    if preprocess is None:
        return {}
    return {c.name: data_uri(c.pixels(preprocess)[0]) for c in cases if c.is_pixels}


def write_report(report: Report, path: str | os.PathLike[str]) -> Path:
    """Write `report` as JSON or HTML, by the ending of `path`.

    Raises:
        StorageError: the file cannot be written; an older one is left as it was.
    """
    path = Path(path)
    if path.suffix == ".json":
        return _write(path, json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n")
    return write_html(report, path)


def write_html(report: Report, path: str | os.PathLike[str]) -> Path:
    """Write one self-contained HTML file: no script, no font, no picture from elsewhere.

    Raises:
        StorageError: the file cannot be written; an older one is left as it was.
    """
    return _write(Path(path), html(report))


def html(report: Report) -> str:
    """Return the page; every text in it is escaped, since labels and names come from users."""
    verdict = "passed" if report.passed else "failed"
    says = {
        "passed": "Every artefact that could be checked here computes the source's function.",
        "failed": "At least one artefact does NOT compute the source's function, or none could be "
        "checked.",
    }[verdict]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(report.subject)}: verification {verdict}</title>",
        f"<style>{_STYLE}{STYLE}</style></head><body>",
        f"<h1>{escape(report.subject)}: ",
        f'<span class="{verdict}">verification {verdict}</span></h1>',
        f"<p>{says} The truth: {escape(report.against)}.</p>",
        "<h2>Artefacts</h2>",
        _overview(report),
        _gallery(report),
        *(_details(artifact) for artifact in report.artifacts),
        "<h2>Environment</h2>",
        _table(("what", "version"), [(k, v) for k, v in report.environment.items()]),
        "<h2>Reproduce</h2>",
        f"<pre>vitlet verify {escape(report.subject)} --report report.html</pre>",
        "<footer>Cosine, error and signal-to-noise are those of the worst row. Relative error is "
        "the largest absolute difference over the largest magnitude of the source's output. Spread "
        "tells how far the source's outputs for different inputs lie apart, relative to their "
        "size; "
        "difference error is how far the artefact is off in reproducing that. "
        "Made by vitlet.</footer></body></html>\n",
    ]
    return "".join(parts)


def _write(path: Path, text: str) -> Path:
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _status(status: str) -> str:
    return f'<span class="{status.replace(" ", "-")}">{escape(status)}</span>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int = 99) -> str:
    """Return a table; columns from `numbers` on are right-aligned. Texts are escaped here."""
    return _raw_table(head, ([escape(cell) for cell in row] for row in rows), numbers=numbers)


def _raw_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int = 99) -> str:
    """Return a table of cells that are HTML already."""

    def line(cells: Sequence[str], tag: str) -> str:
        made = []
        for index, cell in enumerate(cells):
            number, last = index >= numbers, index == len(cells) - 1 and len(cell) > 24
            kind = ' class="number"' if number else ' class="text"' if last else ""
            made.append(f"<{tag}{kind}>{cell}</{tag}>")
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="wide"><table>{line(head, "th")}{body}</table></div>'


def _number(artifact: ArtifactResult, name: str, form: str) -> str:
    value = artifact.figures.get(name)
    return "–" if value is None else format(value, form)  # noqa: RUF001


def _overview(report: Report) -> str:
    head = "target,graph,precision,verdict,how it was checked,cosine,max abs,relative,SNR dB,top-1"
    rows = []
    for a in report.artifacts:
        how = a.method if a.method == INSPECTED or not a.engine else f"{a.method}, {a.engine}"
        texts = [escape(a.target), escape(a.graph), escape(a.precision), _status(a.status)]
        texts.append(escape(how))
        numbers = [("cosine", ".7f"), ("max_abs", ".2e"), ("relative", ".2e"), ("snr_db", ".0f")]
        texts += [_number(a, name, form) for name, form in numbers]
        rows.append([*texts, _number(a, "top1", ".0%")])
    return _raw_table(head.split(","), rows, numbers=5)


def _gallery(report: Report) -> str:
    """Show the real pictures with the best guesses of the source and of each artefact."""
    if not report.pictures:
        return ""
    cards = []
    for name, uri in report.pictures.items():
        tables = []
        for artifact in report.artifacts:
            found = [c for c in artifact.cases if c.name == name and c.expected]
            tables += [_guesses(artifact, case) for case in found]
        shown = "".join(tables) or "<p>no classes: the output is an embedding</p>"
        if len(tables) > 2:
            rest = "".join(tables[1:])
            shown = f"{tables[0]}<details><summary>more</summary>{rest}</details>"
        image = f'<img src="{escape(uri, quote=True)}" alt="{escape(name, quote=True)}">'
        cards.append(f'<div class="card">{image}<div><b>{escape(name)}</b>{shown}</div></div>')
    return f'<h2>Real images</h2><div class="cards">{"".join(cards)}</div>'


def _guesses(artifact: ArtifactResult, case: CaseResult) -> str:
    blank = [("", 0.0)] * len(case.expected)
    rows = [
        (f"{label} {score:.1%}", f"{other} {value:.1%}" if other else "nothing finite")
        for (label, score), (other, value) in zip(case.expected, case.actual or blank, strict=False)
    ]
    return _table(("source", f"{artifact.target} {artifact.precision}"), rows)


def _details(artifact: ArtifactResult) -> str:
    title = f"{artifact.target}, graph {artifact.graph}: {artifact.file}"
    parts = [f"<h2>{escape(title)} {_status(artifact.status)}</h2>"]
    parts.append(f"<p>{escape(', '.join(filter(None, (artifact.method, artifact.engine))))}</p>")
    parts += [f'<p class="failed">{escape(reason)}</p>' for reason in artifact.reasons]
    if artifact.first_bad is not None:
        layer = escape(str(artifact.first_bad))
        parts.append(f'<p class="failed">First wrong layer: <code>{layer}</code></p>')
    parts += [f'<p class="warning">{escape(warning)}</p>' for warning in artifact.warnings]
    if artifact.tolerance:
        limits = ", ".join(f"{k} {v:g}" for k, v in artifact.tolerance.items() if v is not None)
        parts.append(f"<p>Limits: {escape(limits)}</p>")
    if "spread" in artifact.figures:
        spread, diff = artifact.figures["spread"], artifact.figures["diff"]
        parts.append(f"<p>Spread {spread:.2g}, difference error {diff:.2g}</p>")
    parts += _core_ml(artifact)
    parts.append(layer_section(artifact))
    if artifact.checks:
        rows = [
            (escape(c.name), _status("passed" if c.passed else "failed"), escape(c.detail))
            for c in artifact.checks
        ]
        parts.append(_raw_table(("check", "verdict", "found"), rows))
    if artifact.cases:
        parts.append("<details open><summary>Cases</summary>")
        parts.append(_cases(artifact))
        parts.append("</details>")
    return "".join(parts)


def _core_ml(artifact: ArtifactResult) -> list[str]:
    """Say how a Core ML program was run, what float16 costs it, and what that does not show."""
    if artifact.target != "coreml" or artifact.method != EXECUTED:
        return []
    parts = [f"<p>{escape(LIMITS)}</p>"]
    if "cosine_fp32" in artifact.figures:
        head = ("arithmetic", "cosine", "relative", "SNR dB")
        forms = (("cosine", ".7f"), ("relative", ".2e"), ("snr_db", ".0f"))
        rows = [
            (title, *(_number(artifact, name + ending, form) for name, form in forms))
            for title, ending in (
                ("as declared (float16)", ""),
                ("float32 on the stored weights", "_fp32"),
            )
        ]
        parts.append(_table(head, rows, numbers=1))
    if "headroom" in artifact.figures:
        parts.append(f"<p>Headroom of float16: {artifact.figures['headroom']:.3g} times</p>")
    return parts


def _cases(artifact: ArtifactResult) -> str:
    head = ("case", "verdict", "top-1", "batch", "cosine", "max abs", "relative", "SNR dB", "NaN")
    words = {None: "–", True: "agrees", False: "differs"}  # noqa: RUF001
    rows = [
        (
            escape(c.name),
            _status("passed" if c.passed else "failed"),
            words[c.top1],
            str(c.batch),
            f"{c.cosine:.7f}",
            f"{c.max_abs:.2e}",
            f"{c.relative:.2e}",
            f"{c.snr_db:.0f}",
            str(c.nonfinite),
        )
        for c in artifact.cases
    ]
    return _raw_table(head, rows, numbers=3)
