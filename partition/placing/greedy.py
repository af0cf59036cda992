"""The paper's placement (arXiv 2410.11650): one sub-model a device, energy first."""

from __future__ import annotations

from collections.abc import Sequence

from vitlet.partition.devices import FLOPS_PER_MAC, Device
from vitlet.partition.placing.loads import InfeasibleError, Load, Violation, fits, nearest_violation


def greedy(loads: Sequence[Load], devices: Sequence[Device]) -> list[int]:
    """Return the device index of each sub-model, one sub-model a device.

    What costs most goes first, to the free device with the most energy left among those whose
    memory and budget it fits. Where that leads into a dead end devices are exchanged, so that a
    placement is found whenever there is one.

    Raises:
        InfeasibleError: there is no such placement.
    """
    place: dict[int, int] = {}  # load -> device
    order = sorted(range(len(loads)), key=lambda i: (-loads[i].macs, -loads[i].memory, i))
    for i in order:
        taken = set(place.values())
        fitting = [j for j, device in enumerate(devices) if fits(loads[i], device)]
        if not fitting:
            raise InfeasibleError(nearest_violation(loads[i], devices))
        free = [j for j in fitting if j not in taken]
        if free:
            place[i] = max(free, key=lambda j: preference(devices[j], j))
        elif not _make_room(i, loads, devices, place, set()):
            names = ", ".join(devices[j].name for j in fitting)
            raise InfeasibleError(
                Violation(loads[i].index, "devices", names, len(loads), len(devices), "devices")
            )
    return [place[i] for i in range(len(loads))]


def preference(device: Device, index: int) -> tuple[float, float, int]:
    """Return what the greedy choice is by: the most energy left, the faster, the earlier.

    Without a budget the energy is endless.
    """
    if device.budget is None:
        return (float("inf"), device.speed, -index)
    scale = FLOPS_PER_MAC * device.speed / (device.watts or 1.0)  # joules as what they compute
    left = device.budget * (scale if device.budget_unit == "joules" else 1.0)
    return (left, device.speed, -index)


def _make_room(
    i: int, loads: Sequence[Load], devices: Sequence[Device], place: dict[int, int], seen: set[int]
) -> bool:
    """Move sub-models along a chain so that load `i` gets a device (Kuhn's augmenting path)."""
    for j, device in enumerate(devices):
        if j in seen or not fits(loads[i], device):
            continue
        seen.add(j)
        holder = next((k for k, at in place.items() if at == j), None)
        if holder is None or _make_room(holder, loads, devices, place, seen):
            place[i] = j
            return True
    return False
