"""`vitlet run`: classify images with a plan, over the workers of a cluster. Needs no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitlet.apps.joining import Cluster, Connect, InsecureLan, Keys, Listen, Scout
from vitlet.apps.options import Json, NoProgress, Quiet, Verbose
from vitlet.apps.output import Output

if TYPE_CHECKING:
    from vitlet.partition.cluster.coordinator import Coordinator


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
    camera: Annotated[
        str | None,
        typer.Option(
            "--camera", metavar="SOURCE", help="A camera (0, /dev/video0), a stream or a film."
        ),
    ] = None,
    frames: Annotated[
        int, typer.Option("--frames", metavar="N", min=0, help="Of --camera; 0: until it ends.")
    ] = 0,
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
        int | None,
        typer.Option(
            "--window",
            metavar="N",
            min=1,
            show_default=False,
            help="Images under way at a time; by default 8, 1 of --camera.",
        ),
    ] = None,
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
    from vitlet.apps.camera import Camera
    from vitlet.apps.cluster_answers import classify, watch
    from vitlet.apps.hints import existing
    from vitlet.apps.joining import joining, open_transport
    from vitlet.apps.lists import duration
    from vitlet.apps.serving import serve
    from vitlet.errors import UsageError
    from vitlet.partition.cluster.coordinator import Coordinator
    from vitlet.partition.cluster.gather import Policy
    from vitlet.partition.cluster.web.server import place
    from vitlet.partition.plan import load_plan

    with Output(json, quiet, verbose, not no_progress) as out:
        existing(plan, "the plan")
        policy = Policy(
            deadline=duration(deadline, "--deadline"),
            min_slots=min_slots,
            retries=retries,
            hedge=hedge,
        )
        patience = duration(wait, "--wait")
        if [bool(images), stdin, camera is not None, http is not None].count(True) != 1:
            raise UsageError(
                "give images, or --stdin to read their paths, or --camera, or --http: one of them"
            )
        paths = _from_stdin() if stdin else iter(_find(out, images or [], recursive))
        joined = joining(
            cluster, listen, connect, keys, scout, insecure_lan, coordinator=True, calls=True
        )
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
            seen = None if camera is None else Camera(camera, out.log)
            try:
                _wait(out, coordinator, patience)
                if seen is None:
                    classify(out, coordinator, paths, topk, window or 8)
                else:
                    watch(out, coordinator, seen, topk, window or 1, frames)
            finally:
                if seen is not None:
                    seen.close()


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
    from vitlet.apps.joining import advice
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
        others = [] if status["workers"] else coordinator.other_clusters()
        raise DeadlineError(
            f"{held} of {slots} slots have a worker after {patience:g} s ({workers} found): "
            f"{advice(others)}, and see `vitlet status`"
        )
    out.warn(f"slots {missing} have no worker: answers are without them ({workers} found)")
