"""`vitlet partition simulate`: what a plan will do on N devices. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitlet.apps.options import Json, NoProgress, Quiet, Seed, Verbose
from vitlet.apps.output import Output, columns

_TROUBLE = "Trouble"


def simulate(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN", help="What `vitlet partition export` made.")
    ],
    devices: Annotated[
        str | None,
        typer.Option(
            "--devices", metavar="LIST", help="How many; by default those of the plan, as planned."
        ),
    ] = None,
    requests: Annotated[
        int, typer.Option("--requests", metavar="N", min=1, help="Of one image each.")
    ] = 500,
    window: Annotated[
        int, typer.Option("--window", metavar="N", min=1, help="Under way, for the throughput.")
    ] = 8,
    deadline: Annotated[
        str, typer.Option("--deadline", metavar="TIME", help="That an image may take.")
    ] = "1s",
    hedge: Annotated[
        bool,
        typer.Option("--hedge/--no-hedge", help="Ask a second device when one is slow."),
    ] = True,
    loss: Annotated[
        float,
        typer.Option("--loss", metavar="SHARE", help="Of messages lost.", rich_help_panel=_TROUBLE),
    ] = 0.0,
    jitter: Annotated[
        float,
        typer.Option(
            "--jitter", metavar="SHARE", help="By which computing varies.", rich_help_panel=_TROUBLE
        ),
    ] = 0.0,
    up: Annotated[
        str,
        typer.Option(
            "--up",
            metavar="TIME",
            help="A device stays so long, on average.",
            rich_help_panel=_TROUBLE,
        ),
    ] = "1440m",
    down: Annotated[
        str,
        typer.Option(
            "--down", metavar="TIME", help="And is away so long.", rich_help_panel=_TROUBLE
        ),
    ] = "10m",
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Predict latency, throughput and availability from profiles."""
    from vitlet.apps.hints import existing
    from vitlet.apps.lists import duration, numbers
    from vitlet.partition.cluster.gather import Policy
    from vitlet.partition.cluster.simulate import MAX_DEVICES, Conditions, spread
    from vitlet.partition.cluster.simulate import simulate as run
    from vitlet.partition.cluster.simulated import Outages
    from vitlet.partition.plan import load_plan

    with Output(json, quiet, verbose, not no_progress) as out:
        existing(plan, "the plan")
        policy = Policy(deadline=duration(deadline, "--deadline"), hedge=hedge)
        outages = Outages(duration(up, "--up"), duration(down, "--down"))
        counts: list[int | None] = [None]
        if devices is not None:
            found = numbers(devices, "--devices", low=1, high=MAX_DEVICES, whole=True)
            counts = [int(count) for count in found]
        usual = Conditions(requests, 1, loss, jitter, policy=policy, seed=seed)
        full = Conditions(requests, window, loss, jitter, policy=policy, seed=seed)
        flaky = Conditions(requests, 1, loss, jitter, outages, policy, seed)
        opened = load_plan(plan, slots=())
        rows: list[dict[str, Any]] = []
        for count in counts:
            over = opened if count is None else spread(opened, count)
            with out.progress(f"simulate {len(over.devices)} devices"):
                alone, busy, away = run(over, usual), run(over, full), run(over, flaky)
            rows.append(
                {
                    "devices": len(over.devices),
                    "latency_p50_ms": round(alone.p50 * 1e3, 3),
                    "latency_p99_ms": round(alone.p99 * 1e3, 3),
                    "answers_per_second": round(busy.throughput, 3),
                    "full": away.full,
                    "degraded": away.degraded,
                    "unanswered": away.unanswered,
                    "covered": away.covered,
                }
            )
        out.result({"plan": opened.hash, "forecasts": rows}, lambda: _show(out, rows))


def _show(out: Output, rows: list[dict[str, Any]]) -> None:
    from vitlet.apps.units import milliseconds, percent

    cells = [
        (
            row["devices"],
            f"{milliseconds(row['latency_p50_ms'])} ms",
            f"{milliseconds(row['latency_p99_ms'])} ms",
            f"{row['answers_per_second']:.1f}",
            percent(row["full"]),
            percent(row["degraded"]),
            percent(row["unanswered"]),
            percent(row["covered"]),
        )
        for row in rows
    ]
    heads = (
        ">devices", ">median", ">99 %", ">a second", ">full", ">degraded", ">none", ">classes",
    )  # fmt: skip
    out.print(columns(heads, cells))
