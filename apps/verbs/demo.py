"""`vitlet demo`: the main job, start to end, on the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitlet.apps.options import Json, NoProgress, Quiet, Verbose
from vitlet.apps.output import Output, columns, mark

if TYPE_CHECKING:
    from vitlet.apps.demonstration import Demonstration


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where everything goes.")
    ] = Path("vitlet-demo"),
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Export, prove, measure and classify, with the embedded model."""
    from vitlet._extras import require
    from vitlet.apps.demo_report import next_commands
    from vitlet.apps.demonstration import Demonstration
    from vitlet.apps.units import seconds

    with Output(json, quiet, verbose, not no_progress) as out:
        # What the last steps need, so that nobody waits for minutes to be told.
        require("PIL", extra="runtime", why="draw the contact sheet")
        require("matplotlib", extra="report", why="draw the benchmark")
        run = Demonstration(output, out.progress)
        run.export()
        run.measure()
        run.classify()
        report = run.draw()
        data: dict[str, Any] = {
            "model": run.model,
            "seconds": run.seconds,
            "images": len(run.truth),
            "artifacts": run.rows(),
            "verification": run.verification,
            "report": report,
            "folder": output,
        }
        out.result(data, lambda: _show(out, run))
        out.log(f"\ndone in {seconds(run.seconds)}; open {report}")
        for name, what in (
            (f"{run.model}.vitlet", "the bundle: three artefacts, manifest, golden outputs"),
            ("verification.html", "every figure of the verification"),
            ("bench.png, sheet.png", "the pictures of the report"),
            ("images", "some of the test images"),
        ):
            out.log(f"  {name:<22} {what}")
        out.next(*next_commands(run))


def _show(out: Output, run: Demonstration) -> None:
    from vitlet.apps.units import milliseconds, percent, size

    rows = []
    for row in run.rows():
        passed = row["status"] == "passed"
        how = "executed" if row["method"] == "executed" else "inspected"
        rows.append(
            (
                row["target"],
                row["precision"],
                size(row["bytes"]),
                mark(passed, how if passed else str(row["status"])),
                "-" if row["cosine"] is None else f"{row['cosine']:.6f}",
                "-" if row["accuracy"] is None else percent(row["accuracy"]),
                "-" if row["p50_ms"] is None else f"{milliseconds(row['p50_ms'])} ms",
                "-" if row["peak_rss"] is None else size(row["peak_rss"]),
            )
        )
    heads = ("target", "", ">size", "verified", ">cosine", ">accuracy", ">median", ">memory")
    out.print(columns(heads, rows))
