"""`vitlet partition evaluate`: how good a plan is, whole and with devices lost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitlet.apps.options import Json, NoProgress, Quiet, Verbose
from vitlet.apps.output import Output

if TYPE_CHECKING:
    from vitlet.partition.evaluate import Evaluation


def evaluate(
    plans: Annotated[
        list[Path],
        typer.Argument(metavar="PLAN", help="What `vitlet partition export` made."),
    ],
    data: Annotated[
        str,
        typer.Option("--data", metavar="DATA", help="A folder of class folders, or fashion-mnist."),
    ],
    work: Annotated[
        Path | None,
        typer.Option("--work", metavar="WORK", help="Compare with the full model kept there."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Pictures; by default all.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="Accuracy and bytes against the devices (.png, .svg)."
        ),
    ] = None,
    duration: Annotated[
        str, typer.Option("--duration", metavar="TIME", help="Of each latency measurement.")
    ] = "500ms",
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Measure accuracy with devices lost, sizes and latencies."""
    from vitlet.apps.hints import existing
    from vitlet.apps.lists import duration as parse_duration
    from vitlet.apps.partitioning import read_pictures
    from vitlet.apps.units import plural

    with Output(json, quiet, verbose, not no_progress) as out:
        seconds = parse_duration(duration, "--duration")
        for plan in plans:
            existing(plan, "the plan")
        if plot is not None:
            _check_plot(plot)
        from vitlet.partition.evaluate import evaluate as measure
        from vitlet.partition.plan import load_plan

        with out.progress(f"check {plural(len(plans), 'plan')}"):
            opened = [load_plan(plan) for plan in plans]
        pictures = read_pictures(data, "test")
        if limit is not None and limit < len(pictures):
            pictures = pictures.take(_spread(len(pictures), limit))
        full: Any = None
        if work is not None:
            from vitlet.partition.draft import read_draft
            from vitlet.partition.submodels.work import load_full

            full = load_full(read_draft(work), work)
        found = []
        for plan, one in zip(plans, opened, strict=True):
            if one.details.get("trained") is False:
                out.warn(f"{plan.name} is untrained: its answers mean nothing")
            with out.progress(f"evaluate {plan.name} on {len(pictures)} pictures"):
                found.append(measure(one, pictures, full, seconds=seconds, progress=out.detail))
        entries = [{"plan": plan, **one.to_json()} for plan, one in zip(plans, found, strict=True)]
        result = entries[0] if len(entries) == 1 else {"plans": entries}
        out.result(result, lambda: _show(out, plans, found))
        if plot is not None:
            _draw(found, plot)
            out.log(f"wrote {plot}")


def _show(out: Output, plans: list[Path], found: list[Evaluation]) -> None:
    from vitlet.partition.tables import comparison_table

    for plan, one in zip(plans, found, strict=True):
        out.print(*([f"{plan.name}:", ""] if len(plans) > 1 else []), one.table())
        if len(plans) > 1:
            out.print("")
    if len(plans) > 1:
        out.print(comparison_table(found))


def _check_plot(plot: Path) -> None:
    from vitlet._extras import require
    from vitlet.errors import UsageError

    if plot.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--plot takes a .png, .svg or .pdf file, got {plot.name!r}")
    require("matplotlib", extra="report", why="draw a plot")


def _draw(found: list[Evaluation], plot: Path) -> None:
    from vitlet.partition.chart import Point, chart

    points = [
        Point(
            len(one.devices),
            one.judgement.whole.accuracy,
            min((case.accuracy for case in one.judgement.one_lost), default=None),
            one.largest_bytes,
            one.total_bytes,
        )
        for one in found
    ]
    full = found[0].full
    chart(points, plot, full=None if full is None else (full["accuracy"], full["bytes"]))


def _spread(count: int, limit: int) -> list[int]:
    """Return `limit` indices, evenly over all."""
    return [index * count // limit for index in range(limit)]
