"""`vitlet run`: classify images with a plan, over the workers of a cluster. Needs no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitlet.apps.joining import Cluster, Connect, InsecureLan, Keys, Listen, Scout
from vitlet.apps.options import Json, NoProgress, Quiet, Verbose
from vitlet.apps.output import Output

if TYPE_CHECKING:
    from vitlet.apps.cluster_images import Outcome
    from vitlet.partition.coordinator import Coordinator


def run(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN", help="What `vitlet partition export` made.")
    ],
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE]...", help="Files, folders or patterns.", show_default=False
        ),
    ] = None,
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Read image paths from stdin, one a line.")
    ] = False,
    http: Annotated[
        str | None,
        typer.Option(
            "--http", metavar="[HOST]:PORT", help="Serve a JSON API and a dashboard there."
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file", metavar="FILE", help="What HTTP clients must know; made if not there."
        ),
    ] = None,
    topk: Annotated[
        int, typer.Option("--topk", "-k", metavar="N", min=1, help="Guesses per image.")
    ] = 3,
    deadline: Annotated[
        str, typer.Option("--deadline", metavar="TIME", help="That an image may take.")
    ] = "1s",
    min_slots: Annotated[
        int, typer.Option("--min-slots", metavar="N", min=1, help="That must answer.")
    ] = 1,
    retries: Annotated[
        int, typer.Option("--retries", metavar="N", min=0, help="Of a slot that failed.")
    ] = 2,
    hedge: Annotated[
        bool,
        typer.Option("--hedge/--no-hedge", help="Ask a second device when one is slow."),
    ] = True,
    wait: Annotated[
        str, typer.Option("--wait", metavar="TIME", help="For workers, before it begins.")
    ] = "10s",
    window: Annotated[
        int, typer.Option("--window", metavar="N", min=1, help="Images under way at a time.")
    ] = 8,
    threads: Annotated[
        int, typer.Option("--threads", metavar="N", min=1, help="Threads to join features with.")
    ] = 1,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Look into folders of folders.")
    ] = False,
    cluster: Cluster = None,
    listen: Listen = None,
    connect: Connect = None,
    keys: Keys = None,
    scout: Scout = "",
    insecure_lan: InsecureLan = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Classify images with a plan, over the workers of a cluster."""
    from vitlet.apps.hints import existing
    from vitlet.apps.joining import joining, open_transport
    from vitlet.apps.lists import duration
    from vitlet.apps.serving import serve
    from vitlet.errors import UsageError
    from vitlet.partition.coordinator import Coordinator
    from vitlet.partition.gather import Policy
    from vitlet.partition.plan import load_plan
    from vitlet.partition.web.server import place

    with Output(json, quiet, verbose, not no_progress) as out:
        existing(plan, "the plan")
        policy = Policy(
            deadline=duration(deadline, "--deadline"),
            min_slots=min_slots,
            retries=retries,
            hedge=hedge,
        )
        patience = duration(wait, "--wait")
        if [bool(images), stdin, http is not None].count(True) != 1:
            raise UsageError("give images, or --stdin to read their paths, or --http: one of them")
        paths = _from_stdin() if stdin else iter(_find(out, images or [], recursive))
        joined = joining(cluster, listen, connect, keys, scout, insecure_lan, coordinator=True)
        if joined.identity is not None and not joined.identity.is_coordinator:
            raise UsageError(
                f"--keys {keys} are of a worker: a coordinator needs its own "
                "(`vitlet partition keys issue NAME --coordinator`)"
            )
        with out.progress(f"open {plan.name}"):
            opened = load_plan(plan)
        coordinator = Coordinator(
            opened,
            open_transport(joined, coordinator=True),
            cluster=joined.cluster,
            policy=policy,
            identity=joined.identity,
            threads=threads,
            log=out.detail,
        )
        with coordinator:
            if http is not None:
                where = place(http, joined.identity, insecure_lan=insecure_lan)
                serve(out, coordinator, where, joined.identity, token_file)
                return
            _wait(out, coordinator, patience)
            _classify(out, coordinator, paths, topk, window)


def _find(out: Output, images: list[str], recursive: bool) -> list[Path]:
    if not images:
        return []
    from vitlet.apps.images import find

    found = find(images, recursive=recursive)
    for other in found.others:
        out.detail(f"not an image: {other}")
    return found.images


def _from_stdin() -> Iterator[Path]:
    return (Path(line.rstrip("\n")) for line in sys.stdin if line.strip())


def _wait(out: Output, coordinator: Coordinator, patience: float) -> None:
    """Wait for the plan's slots; go on with some of them, not with too few."""
    from vitlet.apps.units import plural
    from vitlet.errors import DeadlineError

    slots = len(coordinator.plan.slots)
    with out.progress("wait for workers"):
        coordinator.wait_ready(patience)
    held = coordinator.held()
    if held == slots:
        return
    status = coordinator.status()
    for address, reason in status["unreachable"].items():
        out.warn(f"{address}: {reason}")
    missing = ", ".join(str(slot["slot"]) for slot in status["slots"] if not slot["holders"])
    workers = plural(len(status["workers"]), "worker")
    if held < coordinator.policy.min_slots:
        raise DeadlineError(
            f"{held} of {slots} slots have a worker after {patience:g} s ({workers} found): start "
            "`vitlet worker` on each device, and see `vitlet status`"
        )
    out.warn(f"slots {missing} have no worker: answers are without them ({workers} found)")


def _classify(
    out: Output, coordinator: Coordinator, paths: Iterator[Path], topk: int, window: int
) -> None:
    from vitlet.apps.cluster_images import outcomes
    from vitlet.apps.units import plural
    from vitlet.errors import CorruptInputError, DeadlineError

    done: list[Outcome] = []
    for outcome in outcomes(coordinator, paths, window):
        done.append(outcome)
        if not out.json:
            _show(out, outcome, topk)
    entries = [_entry(outcome, topk) for outcome in done]
    result: dict[str, Any] = {
        "plan": coordinator.plan.hash,
        "images": [entry for entry in entries if "error" not in entry],
        "failed": [entry for entry in entries if "error" in entry],
        "status": coordinator.status(),
    }
    out.result(result, lambda: None)
    latency = coordinator.latency.to_json()
    degraded = sum(bool(o.answer and o.answer.degraded) for o in done)
    out.log(
        f"{plural(len(done), 'image')}, {degraded} degraded; "
        f"p50 {latency['p50_ms']} ms, p99 {latency['p99_ms']} ms"
    )
    late = [o for o in done if isinstance(o.error, DeadlineError)]
    bad = [o for o in done if o.error is not None and not isinstance(o.error, DeadlineError)]
    for outcome in (*late, *bad):
        out.warn(f"{outcome.path}: {outcome.error}")
    if late:
        raise DeadlineError(f"{plural(len(late), 'image')} of {len(done)} had no answer in time")
    if bad:
        raise CorruptInputError(f"{plural(len(bad), 'image')} of {len(done)} could not be read")


def _entry(outcome: Outcome, topk: int) -> dict[str, Any]:
    if outcome.answer is None:
        return {"file": outcome.path, "error": str(outcome.error)}
    answer = outcome.answer.to_json(topk)
    (image,) = answer.pop("images")
    return {"file": outcome.path, **image, **answer}


def _show(out: Output, outcome: Outcome, topk: int) -> None:
    from rich.text import Text

    from vitlet.apps.units import percent
    from vitlet.apps.verbs.predict import short

    answer = outcome.answer
    if answer is None:
        out.print(Text.assemble(f"{short(outcome.path)}  ", ("no answer", "red")))
        return
    covered = set(answer.covered_classes)
    line = Text(f"{short(outcome.path)}  ")
    for place, guess in enumerate(answer.predictions(topk)[0]):
        mark = "" if guess.index in covered else "?"
        style = "bold" if place == 0 else "dim"
        line.append(f"{guess.label}{mark} {percent(guess.score)}  ", style=style)
    if answer.missing:
        absent = ", ".join(map(str, answer.missing))
        line.append(f"(degraded: slot {absent} missing)", style="yellow")
    out.print(line)
