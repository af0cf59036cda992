"""`vitlet worker`: lend this device to a cluster. Needs no torch."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitlet.apps.joining import Cluster, Connect, InsecureLan, Keys, Listen, Scout
from vitlet.apps.options import Json, NoProgress, Quiet, Verbose
from vitlet.apps.output import Output, facts

if TYPE_CHECKING:
    from vitlet.partition.cluster.worker import Worker


def worker(
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Of this device; its host name by default."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory", metavar="SIZE", help='For sub-models, such as "256 MB"; by default half.'
        ),
    ] = None,
    threads: Annotated[
        int, typer.Option("--threads", metavar="N", min=1, help="Threads to use.")
    ] = 1,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", metavar="FOLDER", help="Where sub-models are kept."),
    ] = None,
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
    """Lend this device to a cluster, until it is stopped."""
    from vitlet.apps.joining import device_name, joining, open_transport
    from vitlet.apps.lists import byte_size
    from vitlet.partition.cluster.worker import Worker

    with Output(json, quiet, verbose, not no_progress) as out:
        budget = None if memory is None else byte_size(memory, "--memory")
        joined = joining(cluster, listen, connect, keys, scout, insecure_lan, coordinator=False)
        if insecure_lan and joined.identity is None:
            out.warn("nothing is encrypted: whoever reaches this device may read and send")
        lent = Worker(
            name or device_name(),
            open_transport(joined, coordinator=False),
            cluster=joined.cluster,
            cache=cache,
            threads=threads,
            memory=budget,
            identity=joined.identity,
            log=out.log,
        )
        try:
            lent.start()
            out.result(lent.about(), lambda: _show(out, lent, joined.network.connect))
            threading.Event().wait()
        finally:
            lent.close()


def _show(out: Output, lent: Worker, connect: tuple[str, ...]) -> None:
    from vitlet.apps.units import size

    held = ", ".join(str(slot["slot"]) for slot in lent.holdings.to_json())
    out.print(
        facts(
            [
                ("worker", lent.name),
                ("cluster", lent.topics.cluster),
                ("memory", size(lent.holdings.budget)),
                ("slots", held or "none yet"),
                ("joins", ", ".join(connect) or "whoever comes"),
            ]
        )
    )
