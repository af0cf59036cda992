"""What sub-models ask of devices, whether they fit, and how long they take there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vitlet.errors import UsageError
from vitlet.partition.devices import Device


@dataclass(frozen=True)
class Load:
    """What a sub-model asks of its device.

    Attributes:
        index: of its slot.
        macs: multiply-accumulates of one image.
        memory: bytes while running.
        sent: bytes of the features that go back.
        seconds: measured time by device name, where there is one; else it follows from `macs`.
    """

    index: int
    macs: float
    memory: int
    sent: int
    seconds: tuple[tuple[str, float], ...] = ()

    def time_on(self, device: Device) -> float:
        """Return the seconds that it computes on a device."""
        return dict(self.seconds).get(device.name, device.compute_seconds(self.macs))


@dataclass(frozen=True)
class Violation:
    """Why a sub-model has no place.

    Attributes:
        slot: its index.
        bound: "memory" or "budget" of `device`; "devices": all that it fits are taken; "total":
            bytes of all sub-models together; "time": until the last feature is there.
        device: the one that comes nearest.
        needed: bytes, or the budget's unit; of "devices" the number of sub-models.
        available: likewise.
        unit: "bytes", "flops", "joules", "seconds" or "devices".
    """

    slot: int
    bound: Literal["memory", "budget", "devices", "total", "time"]
    device: str
    needed: float
    available: float
    unit: str

    def __str__(self) -> str:
        return f"{self.problem()}: prune more, or {self.remedy()}"

    def problem(self) -> str:
        """Return what is wrong, in words."""
        if self.bound == "devices":
            return f"slot {self.slot} fits only devices that are taken ({self.device})"
        need, have = amount(self.needed, self.unit), amount(self.available, self.unit)
        if self.bound == "total":
            return f"the sub-models together have {need} of parameters, the limit is {have}"
        if self.bound == "time":
            return (
                f"the last feature is there after {need} (from {self.device}), the limit is {have}"
            )
        return (
            f"slot {self.slot} needs {need}, and {self.device}, which comes nearest, has {have} "
            f"left of its {self.bound}"
        )

    def remedy(self) -> str:
        """Return what helps beside pruning, in words."""
        if self.bound == "devices":
            return 'add a device, or let devices hold several sub-models with "makespan"'
        if self.bound == "total":
            return f"allow a total of {amount(self.needed, self.unit)}"
        if self.bound == "time":
            return f"take a faster device, or allow {amount(self.needed, self.unit)}"
        missing = amount(self.needed - self.available, self.unit)
        return f"raise the {self.bound} of {self.device} by {missing}"


class InfeasibleError(UsageError):
    """No placement keeps all bounds.

    Attributes:
        violation: the first bound that cannot be kept.
    """

    def __init__(self, violation: Violation, why: str | None = None) -> None:
        super().__init__(f"no placement keeps every bound: {why or violation}")
        self.violation = violation


def finish_times(
    loads: Sequence[Load], devices: Sequence[Device], place: Sequence[int], received: int
) -> list[float]:
    """Return when each device's last feature is back: image in, computing in turn, features out."""
    times = [0.0] * len(devices)
    sent = [0] * len(devices)
    for load, j in zip(loads, place, strict=True):
        times[j] += load.time_on(devices[j])
        sent[j] += load.sent
    return [
        time + device.transfer_seconds(received, out) if time else 0.0
        for time, out, device in zip(times, sent, devices, strict=True)
    ]


def room_left(
    loads: Sequence[Load], devices: Sequence[Device], place: Sequence[int | None]
) -> list[Device]:
    """Return the devices with what the placed sub-models leave of memory and budget."""
    left = list(devices)
    for load, j in zip(loads, place, strict=True):
        if j is not None:
            budget = left[j].budget
            left[j] = replace(
                left[j],
                memory=left[j].memory - load.memory,
                budget=None if budget is None else budget - cost_on(load, devices[j]),
            )
    return left


def cost_on(load: Load, device: Device) -> float:
    """Return what one inference takes from the device's budget."""
    if device.budget_unit == "joules":
        return (device.watts or 0.0) * load.time_on(device)
    return device.cost(load.macs)


def violation(load: Load, left: Device) -> Violation | None:
    """Return which bound of a device with this much left a sub-model breaks, or None."""
    if load.memory > left.memory:
        return Violation(load.index, "memory", left.name, load.memory, left.memory, "bytes")
    needed = cost_on(load, left)
    # Sums of budgets are rounded: a millionth more is no violation.
    if left.budget is not None and needed > left.budget + 1e-6 * needed:
        return Violation(load.index, "budget", left.name, needed, left.budget, left.budget_unit)
    return None


def fits(load: Load, left: Device) -> bool:
    """Whether a device with this much left can take a sub-model."""
    return violation(load, left) is None


def nearest_violation(load: Load, left: Sequence[Device]) -> Violation:
    """Return the violated bound of the device that comes nearest to taking a sub-model."""
    found = [v for v in (violation(load, device) for device in left) if v is not None]
    return max(found, key=lambda v: v.available / v.needed)


def amount(value: float, unit: str) -> str:
    """Return a number with its unit, as people read it: "12.3 MB", "2.5 GFLOP", "0.04 J"."""
    if unit in ("joules", "seconds"):
        return f"{value:.3g} J" if unit == "joules" else f"{1e3 * value:.3g} ms"
    powers = ((9, "G"), (6, "M"), (3, "k"), (0, ""))
    power, letter = next((p for p in powers if abs(value) >= 10 ** p[0]), powers[-1])
    return f"{value / 10**power:.3g} {letter}" + {"bytes": "B", "flops": "FLOP"}.get(unit, "")
