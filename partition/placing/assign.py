"""Places sub-models on devices, and says why each sits where it does.

"greedy" is the way of the paper (arXiv 2410.11650): one sub-model a device, energy first.
"makespan" lets a device hold several sub-models and makes the time of the slowest device, transfer
included, as short as it can. In both, sub-models can have replicas on devices with room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from vitlet.errors import UsageError
from vitlet.partition.devices import Device
from vitlet.partition.placing.greedy import greedy, preference
from vitlet.partition.placing.loads import Load, amount, cost_on, finish_times, fits, room_left
from vitlet.partition.placing.makespan import makespan

AssignStrategy = Literal["greedy", "makespan"]
ASSIGN_STRATEGIES: tuple[AssignStrategy, ...] = get_args(AssignStrategy)


@dataclass(frozen=True)
class Placement:
    """Where one sub-model runs.

    Attributes:
        slot: its index.
        devices: names; the first is the primary one.
        seconds: predicted computing time on the primary device.
        why: in words.
    """

    slot: int
    devices: tuple[str, ...]
    seconds: float
    why: str


@dataclass(frozen=True)
class Assignment:
    """All placements, in the order of the slots.

    Attributes:
        placements: one per sub-model.
        seconds: predicted time until the last feature is there.
        bottleneck: name of the device that takes this long.
    """

    placements: tuple[Placement, ...]
    seconds: float
    bottleneck: str

    def explain(self) -> list[str]:
        """Return a line per sub-model, and one on what limits the whole."""
        lines = [f"slot {p.slot} on {', '.join(p.devices)}: {p.why}" for p in self.placements]
        return [
            *lines,
            f"the slowest device is {self.bottleneck}: {1e3 * self.seconds:.3g} ms with transfer",
        ]


def assign(
    strategy: str,
    loads: Sequence[Load],
    devices: Sequence[Device],
    *,
    received: int = 0,
    replicas: int = 0,
) -> Assignment:
    """Place sub-models on devices.

    Args:
        strategy: "greedy" or "makespan".
        loads: one per sub-model.
        devices: to place them on.
        received: bytes of the image that goes to each device; 0 where devices sense it themselves.
        replicas: further devices per sub-model, where they fit.

    Raises:
        UsageError: an unknown strategy, or nothing to place.
        InfeasibleError: no placement was found; names the violated bound and what would fix it.
    """
    if strategy not in ASSIGN_STRATEGIES:
        raise UsageError(
            f"unknown assignment {strategy!r}: expected {' or '.join(ASSIGN_STRATEGIES)}"
        )
    if not loads or not devices or replicas < 0:
        raise UsageError(
            f"expected sub-models, devices and replicas >= 0, got {len(loads)}, {len(devices)} and "
            f"{replicas}"
        )
    place = greedy(loads, devices) if strategy == "greedy" else makespan(loads, devices, received)
    reasons = [
        _why(strategy, load, device, loads, devices, place, received)
        for load, device in zip(loads, place, strict=True)
    ]
    copies = _replicas(loads, devices, place, replicas)
    times = finish_times(loads, devices, place, received)
    slowest = max(range(len(devices)), key=lambda j: times[j])
    placements = [
        Placement(
            load.index,
            (devices[j].name, *(devices[c].name for c in copy)),
            load.time_on(devices[j]),
            why + (f"; replica on {', '.join(devices[c].name for c in copy)}" if copy else ""),
        )
        for load, j, copy, why in zip(loads, place, copies, reasons, strict=True)
    ]
    return Assignment(tuple(placements), times[slowest], devices[slowest].name)


def _replicas(
    loads: Sequence[Load], devices: Sequence[Device], place: Sequence[int], replicas: int
) -> list[list[int]]:
    """Return further devices of each sub-model: those with the most room, as far as they fit."""
    copies: list[list[int]] = [[] for _ in loads]
    left = room_left(loads, devices, place)
    for _ in range(replicas):
        for i, load in enumerate(loads):
            free = [
                j
                for j in range(len(devices))
                if j != place[i] and j not in copies[i] and fits(load, left[j])
            ]
            if free:
                j = max(free, key=lambda j: (left[j].memory, devices[j].speed, -j))
                copies[i].append(j)
                left = room_left([load], left, [j])
    return copies


def _why(
    strategy: str,
    load: Load,
    j: int,
    loads: Sequence[Load],
    devices: Sequence[Device],
    place: Sequence[int],
    received: int,
) -> str:
    device = devices[j]
    able = [d.name for d in devices if fits(load, d)]
    head = f"takes {amount(load.memory, 'bytes')} of {amount(device.memory, 'bytes')}"
    if device.budget is not None:
        used = amount(cost_on(load, device), device.budget_unit)
        head += f" and {used} of {amount(device.budget, device.budget_unit)}"
    head += f", {1e3 * load.time_on(device):.3g} ms; fits {len(able)} of {len(devices)} devices"
    if len(able) == 1:
        return f"{head}, this one alone"
    if strategy == "greedy":
        best = preference(device, j)
        taken = [
            devices[k].name
            for k in place
            if preference(devices[k], k) > best and fits(load, devices[k])
        ]
        kind = "the fastest free one" if device.budget is None else "the one with most energy left"
        if not taken:
            return f"{head}, this is {kind}"
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        return f"{head}, this is {kind} ({taken[0]}{more} went to what costs as much or more)"
    return f"{head}; {_compared(load, j, loads, devices, place, received)}"


def _compared(
    load: Load,
    j: int,
    loads: Sequence[Load],
    devices: Sequence[Device],
    place: Sequence[int],
    received: int,
) -> str:
    """Return what the whole would take with this sub-model on the best other device."""
    i = loads.index(load)
    others: list[tuple[float, str]] = []
    for other, device in enumerate(devices):
        moved: list[int | None] = [*place[:i], None, *place[i + 1 :]]
        if other != j and fits(load, room_left(loads, devices, moved)[other]):
            trial = [*place[:i], other, *place[i + 1 :]]
            others.append((max(finish_times(loads, devices, trial, received)), device.name))
    now = max(finish_times(loads, devices, place, received))
    if not others:
        return "the others have no room left"
    best, name = min(others)
    return f"all done after {1e3 * now:.3g} ms, with it on {name} after {1e3 * best:.3g} ms"
