"""`vitlet top`: the workers of a cluster, live in the terminal."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitlet.apps.joining import Cluster, Connect, InsecureLan, Keys, Listen, Scout
from vitlet.apps.options import Json, NoProgress, Quiet, Verbose
from vitlet.apps.output import Output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vitlet.partition.cluster.survey import Survey


def top(
    every: Annotated[
        str, typer.Option("--every", metavar="TIME", help="Between two looks.")
    ] = "1s",
    looks: Annotated[
        int | None,
        typer.Option("--looks", metavar="N", min=1, help="Then stop; by default go on."),
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
    """Watch the workers of a cluster, until it is stopped."""
    from vitlet.apps.joining import joining, open_transport
    from vitlet.apps.lists import duration
    from vitlet.partition.cluster.survey import Survey
    from vitlet.partition.cluster.topics import Topics

    with Output(json, quiet, verbose, not no_progress) as out:
        period = duration(every, "--every")
        joined = joining(cluster, listen, connect, keys, scout, insecure_lan, coordinator=True)
        transport = open_transport(joined, coordinator=True)
        following = Survey(transport, Topics(joined.cluster))
        screen = Screen(out, joined.cluster, following)
        try:
            _watch(out, screen, period, looks)
        finally:
            following.close()
            transport.close()


class Screen:
    """What is shown, and what it needs to remember for rates.

    Args:
        out: where it goes.
        cluster: its name.
        following: the workers.
    """

    def __init__(self, out: Output, cluster: str, following: Survey) -> None:
        self._out = out
        self._cluster = cluster
        self._following = following
        self._before: dict[str, tuple[int, int]] = {}  # device -> epoch, answers
        self._when = time.monotonic()

    def look(self) -> dict[str, Any]:
        """Return the workers, their rates since the last look, and when they were seen."""
        now = time.monotonic()
        passed, self._when = max(now - self._when, 1e-3), now
        workers = self._following.workers()
        answers = {
            worker["device"]: (worker["epoch"], worker["counts"].get("answered", 0))
            for worker in workers
            if not worker.get("silent")
        }
        rates = {}
        for device, (epoch, count) in answers.items():
            old_epoch, old = self._before.get(device, (epoch, count))
            rates[device] = max(0, count - (old if old_epoch == epoch else 0)) / passed
        self._before = answers
        return {
            "cluster": self._cluster,
            "workers": workers,
            "answers_per_second": rates,
            "last_seen": self._following.seen(),
        }

    def render(self, state: dict[str, Any]) -> RenderableType:
        """Return what is shown of a look."""
        from rich.console import Group
        from rich.text import Text

        from vitlet.apps.cluster_table import workers_table
        from vitlet.apps.units import plural

        workers, rates = state["workers"], state["answers_per_second"]
        head = Text.assemble(
            (f"{self._cluster}  ", "bold"),
            f"{plural(len(workers), 'worker')}, {sum(rates.values()):.1f} sub-model answers a "
            f"second, {sum(w.get('queue', 0) for w in workers)} waiting",
        )
        if not workers:
            return Group(head, Text("start `vitlet worker` on each device", style="dim"))
        return Group(head, workers_table(workers, seen=state["last_seen"], rates=rates))


def _watch(out: Output, screen: Screen, period: float, looks: int | None) -> None:
    from rich.live import Live

    live = Live(console=out.console, auto_refresh=False, screen=False, transient=False)
    moving = not out.json and out.console.is_terminal
    if moving:
        live.start()
    try:
        done = 0
        while looks is None or done < looks:
            time.sleep(period)
            state = screen.look()
            done += 1
            if moving:
                live.update(screen.render(state), refresh=True)
            else:
                out.result(state, partial(_print, out, screen, state))
    finally:
        if moving:
            live.stop()


def _print(out: Output, screen: Screen, state: dict[str, Any]) -> None:
    out.print(screen.render(state))
