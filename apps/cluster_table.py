"""The workers of a cluster as a table, for `vitlet status` and `vitlet top`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitlet.apps.output import columns
from vitlet.apps.units import milliseconds, size

if TYPE_CHECKING:
    from rich.console import RenderableType

_HOT = 80.0  # degrees Celsius at which small boards begin to slow down
_LATE = 3.0  # seconds without a report


def workers_table(
    workers: Sequence[dict[str, Any]],
    *,
    seen: Mapping[str, float] | None = None,
    rates: Mapping[str, float] | None = None,
) -> RenderableType:
    """Return the table.

    Args:
        workers: what they tell about themselves, as `vitlet.partition.cluster.survey` gives it.
        seen: device -> seconds since its last report; None leaves the column out.
        rates: device -> answers per second; None leaves the column out.
    """
    heads = ["worker", "slots", "memory", ">queue", ">median", ">99 %", ">answered"]
    heads += [">a second"] * (rates is not None) + [">heat"] + [">seen"] * (seen is not None)
    rows = []
    for worker in workers:
        name = worker["device"]
        if worker.get("silent"):
            row: list[Any] = [name, "silent", *[""] * (len(heads) - 2)]
        else:
            row = _row(worker)
            if rates is not None:
                row.insert(-1, f"{rates.get(name, 0.0):.1f}")
            if seen is not None:
                row.append("")
        if seen is not None:
            row[-1] = _seen(seen.get(name))
        rows.append(row)
    return columns(heads, rows)


def _row(worker: dict[str, Any]) -> list[Any]:
    from rich.text import Text

    memory, latency, heat = worker["memory"], worker["latency"], worker["temperature"]
    return [
        worker["device"],
        ", ".join(str(slot["slot"]) for slot in worker["slots"]) or "none",
        f"{size(memory['taken'])} of {size(memory['budget'])}",
        worker["queue"],
        f"{milliseconds(latency['p50_ms'])} ms",
        f"{milliseconds(latency['p99_ms'])} ms",
        worker["counts"].get("answered", 0),
        "" if heat is None else Text(f"{heat:.0f} °C", style="red" if heat >= _HOT else ""),
    ]


def _seen(seconds: float | None) -> Any:
    from rich.text import Text

    if seconds is None:
        return Text("never", style="yellow")
    return Text(f"{seconds:.1f} s", style="red" if seconds > _LATE else "")
