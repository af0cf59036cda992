"""`vitlet verify`: does this artefact compute what its model computes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitlet.apps.options import Json, NoProgress, Quiet, Verbose
from vitlet.apps.output import Output, columns, mark

if TYPE_CHECKING:
    from torch import nn

    from vitlet.export.result import ArtifactResult, Report

_REASONS = 3  # shown per artefact
_FIGURES = ("cosine", "SNR dB", "max abs", "lowest", "highest", "headroom")


def verify(
    path: Annotated[
        Path,
        typer.Argument(metavar="BUNDLE|FILE", help="A bundle, or an .onnx, .mlpackage or .tvm.so."),
    ],
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="MODEL|FILE", help="The truth: a model, or any compiled file."
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE", help="Checkpoint of the --against model."),
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option(
            "--inputs", metavar="KIND|DIR", help="real, random, worst (default all), or images."
        ),
    ] = None,
    tol: Annotated[
        str | None,
        typer.Option("--tol", metavar="LIMITS", help="Such as cosine=0.999,max=1e-3."),
    ] = None,
    first_bad: Annotated[
        bool, typer.Option("--first-bad", help="Name the first wrong layer (with --against).")
    ] = False,
    layers: Annotated[
        bool, typer.Option("--layers", help="Compare layer by layer (with --against).")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Write a report (.html or .json)."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Prove that artefacts compute what their model does."""
    from vitlet.apps.hints import existing
    from vitlet.errors import UsageError
    from vitlet.export.verify import require_passed
    from vitlet.export.verify import verify as check

    with Output(json, quiet, verbose, not no_progress) as out:
        existing(path, "the file")
        if weights is not None:
            existing(weights, "the checkpoint")
            if against is None:
                raise UsageError("--weights says what --against is loaded with: give --against too")
        found = check(
            path,
            _truth(against),
            inputs,
            weights=weights,
            tolerance=tol,
            first_bad=first_bad,
            layers=layers,
            report=report,
            progress=out.progress,
        )
        out.result(found, lambda: show(out, found))
        if report is not None:
            out.log(f"wrote {report}")
        require_passed(found)
        if path.is_dir() and path.suffix != ".mlpackage":
            out.next(f"vitlet bench {path}")


def _truth(against: str | None) -> str | nn.Module | Path | None:
    from vitlet.apps.hints import existing
    from vitlet.apps.source import module_for
    from vitlet.export.verify import is_compiled

    if against is None:
        return None
    if is_compiled(against):
        existing(Path(against), "the file to compare with")
        return Path(against)
    return module_for(against)


def show(out: Output, report: Report) -> None:
    """Print a verification as a table, with the reasons under it."""
    from vitlet.apps.units import percent
    from vitlet.export.result import EXECUTED, LIMITS

    heads = ("artefact", "precision", ">cosine", ">max abs", ">top-1", "verified by", "")
    rows = []
    for artifact in report.artifacts:
        figures = artifact.figures
        top1 = percent(figures["top1"]) if "top1" in figures else "-"
        rows.append(
            (
                artifact.file,
                artifact.precision,
                f"{figures['cosine']:.6f}" if "cosine" in figures else "-",
                f"{figures['max_abs']:.1e}" if "max_abs" in figures else "-",
                top1,
                artifact.engine or artifact.method,
                mark(artifact.status == "passed", artifact.status),
            )
        )
    out.print(columns(heads, rows))
    for artifact in report.artifacts:
        shown = artifact.reasons if out.verbose else artifact.reasons[:_REASONS]
        for reason in shown:
            out.print(f"{artifact.file}: {reason}")
        if len(shown) < len(artifact.reasons):
            out.print(f"and {len(artifact.reasons) - len(shown)} more (--verbose lists them)")
        if artifact.first_bad is not None:
            out.print(f"{artifact.file}: first wrong layer: {artifact.first_bad}")
        for warning in artifact.warnings if out.verbose else ():
            out.print(f"{artifact.file}: note: {warning}")
        if artifact.target == "coreml" and artifact.method == EXECUTED:
            out.log(f"{artifact.file}: {LIMITS}")
        if artifact.layers:
            _show_layers(out, artifact)
    out.log(f"compared with {report.against}")


def _show_layers(out: Output, artifact: ArtifactResult) -> None:
    from vitlet.export.layer_page import figures

    heads = ("layer", "~tensor", *(f">{name}" for name in _FIGURES), "")
    rows = []
    for row in artifact.layers:
        if row.tensor:
            note = row.mark or ("" if row.agrees else "off")
            rows.append(
                (row.module or f"({row.name})", row.tensor, *figures(row)[: len(_FIGURES)], note)
            )
    out.print(f"\n{artifact.file}, layer by layer, for {artifact.layers_case}:")
    out.print(columns(heads, rows))
    merged = [row.module or row.name for row in artifact.layers if not row.tensor]
    if merged:
        out.print(f"{len(merged)} layers are merged into others by the compiler")
        for name in merged if out.verbose else ():
            out.print(f"  {name}")
