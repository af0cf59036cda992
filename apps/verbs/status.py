"""`vitlet status`: who is in the cluster, and how they are."""

from __future__ import annotations

from typing import Annotated

import typer

from vitlet.apps.joining import Cluster, Connect, InsecureLan, Keys, Listen, Scout
from vitlet.apps.options import Json, NoProgress, Quiet, Verbose
from vitlet.apps.output import Output


def status(
    wait: Annotated[
        str, typer.Option("--wait", metavar="TIME", help="That workers have to answer.")
    ] = "2s",
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
    """Show the workers of a cluster."""
    from vitlet.apps.cluster_table import workers_table
    from vitlet.apps.joining import advice, joining, open_transport
    from vitlet.apps.lists import duration
    from vitlet.errors import DeadlineError
    from vitlet.partition.cluster.survey import other_clusters, survey
    from vitlet.partition.cluster.topics import Topics

    with Output(json, quiet, verbose, not no_progress) as out:
        seconds = duration(wait, "--wait")
        joined = joining(cluster, listen, connect, keys, scout, insecure_lan, coordinator=True)
        transport = open_transport(joined, coordinator=True)
        try:
            with out.progress("ask the workers"):
                workers = survey(transport, Topics(joined.cluster), seconds)
            others = [] if workers else other_clusters(transport, Topics(joined.cluster))
            unreachable = transport.links().unreachable
        finally:
            transport.close()
        for address, reason in unreachable.items():
            out.warn(f"{address}: {reason}")
        result = {"cluster": joined.cluster, "workers": workers, "unreachable": unreachable}
        out.result(result, lambda: out.print(workers_table(workers)) if workers else None)
        if not workers:
            raise DeadlineError(
                f"no worker of the cluster {joined.cluster} answered within {wait}: "
                f"{advice(others)}"
            )
