"""`vitlet partition evaluate`: how good a plan is, whole and with devices lost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitlet.apps.options import Json, NoProgress, Quiet, Verbose
from vitlet.apps.output import Output


def evaluate(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN", help="What `vitlet partition export` made.")
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

    with Output(json, quiet, verbose, not no_progress) as out:
        seconds = parse_duration(duration, "--duration")
        existing(plan, "the plan")
        from vitlet.partition.evaluate import evaluate as measure
        from vitlet.partition.plan import load_plan

        with out.progress(f"check {plan.name}"):
            opened = load_plan(plan)
        pictures = read_pictures(data, "test")
        if limit is not None and limit < len(pictures):
            pictures = pictures.take(_spread(len(pictures), limit))
        full: Any = None
        if work is not None:
            from vitlet.partition.draft import read_draft
            from vitlet.partition.work import load_full

            full = load_full(read_draft(work), work)
        with out.progress(f"evaluate on {len(pictures)} pictures"):
            found = measure(opened, pictures, full, seconds=seconds, progress=out.detail)
        if opened.details.get("trained") is False:
            out.warn("the plan is untrained: its answers mean nothing")
        out.result({"plan": plan, **found.to_json()}, lambda: out.print(found.table()))


def _spread(count: int, limit: int) -> list[int]:
    """Return `limit` indices, evenly over all."""
    return [index * count // limit for index in range(limit)]
