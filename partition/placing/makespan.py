"""Places sub-models so that the slowest device is done as early as possible.

First the longest sub-model to whom it delays least, then moves and swaps while they help; then, as
far as a bounded number of steps goes, all placements that could be better (branch and bound). Small
cases, which are the usual ones, are so solved to the optimum.
"""

from __future__ import annotations

from collections.abc import Sequence

from vitlet.partition.devices import Device
from vitlet.partition.placing.loads import (
    InfeasibleError,
    Load,
    Violation,
    finish_times,
    fits,
    nearest_violation,
    room_left,
)

STEPS = 20_000  # of branch and bound: well under a second


def makespan(loads: Sequence[Load], devices: Sequence[Device], received: int = 0) -> list[int]:
    """Return the device index of each sub-model; a device may get several or none.

    Raises:
        InfeasibleError: no placement was found.
    """
    for load in loads:
        if not any(fits(load, device) for device in devices):
            raise InfeasibleError(nearest_violation(load, devices))
    order = sorted(
        range(len(loads)),
        key=lambda i: (-min(loads[i].time_on(device) for device in devices), -loads[i].memory, i),
    )
    start = _longest_first(order, loads, devices, received)
    if start is not None:
        start = _improve(start, loads, devices, received)
    search = _Search(order, loads, devices, received, start)
    search.run()
    if search.best is None:
        raise _packing_error(loads, devices)
    return search.best


def _longest_first(
    order: Sequence[int], loads: Sequence[Load], devices: Sequence[Device], received: int
) -> list[int] | None:
    """Return a placement, or None where this simple way runs out of room."""
    place: list[int | None] = [None] * len(loads)
    for i in order:
        left = room_left(loads, devices, place)
        options = []
        for j in range(len(devices)):
            if fits(loads[i], left[j]):
                chosen = [k for k, at in enumerate(place) if at == j] + [i]
                one = [loads[k] for k in chosen]
                options.append((finish_times(one, devices, [j] * len(one), received)[j], j))
        if not options:
            return None
        place[i] = min(options)[1]
    return [j for j in place if j is not None]


def _improve(
    place: list[int], loads: Sequence[Load], devices: Sequence[Device], received: int
) -> list[int]:
    """Move one sub-model or swap two, the best step first, while the slowest device gains."""
    while True:
        now = _score(loads, devices, place, received)
        steps = [
            trial
            for trial in _neighbours(place, len(devices))
            if _roomy(loads, devices, trial) and _score(loads, devices, trial, received) < now
        ]
        if not steps:
            return place
        place = min(steps, key=lambda trial: _score(loads, devices, trial, received))


def _score(
    loads: Sequence[Load], devices: Sequence[Device], place: Sequence[int], received: int
) -> tuple[float, float]:
    times = finish_times(loads, devices, place, received)
    return max(times), sum(times)


def _neighbours(place: list[int], devices: int) -> list[list[int]]:
    trials = []
    for i, at in enumerate(place):
        trials += [[*place[:i], j, *place[i + 1 :]] for j in range(devices) if j != at]
        for k in range(i + 1, len(place)):
            if place[k] != at:
                trial = list(place)
                trial[i], trial[k] = trial[k], trial[i]
                trials.append(trial)
    return trials


def _roomy(loads: Sequence[Load], devices: Sequence[Device], place: Sequence[int]) -> bool:
    for device, left in zip(devices, room_left(loads, devices, place), strict=True):
        # Sums of budgets are rounded: a millionth more is no violation.
        if left.memory < 0 or (left.budget or 0.0) < -1e-6 * (device.budget or 0.0):
            return False
    return True


class _Search:
    """Depth-first over the sub-models, longest first; a branch ends where it cannot be better."""

    def __init__(
        self,
        order: Sequence[int],
        loads: Sequence[Load],
        devices: Sequence[Device],
        received: int,
        start: list[int] | None,
    ) -> None:
        self.order, self.loads, self.devices, self.received = order, loads, devices, received
        self.best = start
        self.bound = float("inf") if start is None else _score(loads, devices, start, received)[0]
        self.steps = STEPS
        self.place: list[int | None] = [None] * len(loads)

    def run(self) -> None:
        empty = [0.0] * len(self.devices)
        self._go(0, list(self.devices), empty)

    def _go(self, depth: int, left: list[Device], times: list[float]) -> None:
        if depth == len(self.order):
            self.best, self.bound = [j for j in self.place if j is not None], max(times)
            return
        i = self.order[depth]
        load = self.loads[i]
        options = []
        for j, device in enumerate(self.devices):
            if not fits(load, left[j]):
                continue
            first = device.transfer_seconds(self.received, 0) if times[j] == 0 else 0.0
            back = device.transfer_seconds(0, load.sent) - 2 * device.link_latency
            options.append((times[j] + load.time_on(device) + first + back, j))
        for time, j in sorted(options):
            self.steps -= 1
            # Less than a millionth better is rounding.
            if self.steps < 0 or time >= self.bound * (1 - 1e-6):
                return
            self.place[i] = j
            after = room_left([load], left, [j])
            self._go(depth + 1, after, [*times[:j], time, *times[j + 1 :]])
            self.place[i] = None


def _packing_error(loads: Sequence[Load], devices: Sequence[Device]) -> InfeasibleError:
    """Each sub-model fits somewhere, but not all at once: name the bound that they share."""
    needed = sum(load.memory for load in loads)
    available = sum(device.memory for device in devices)
    biggest = max(loads, key=lambda load: load.memory)
    names = ", ".join(device.name for device in devices)
    if needed > available:
        violation = Violation(biggest.index, "memory", names, needed, available, "bytes")
        return InfeasibleError(violation, f"{violation} (all sub-models together)")
    violation = Violation(biggest.index, "devices", names, len(loads), len(devices), "devices")
    return InfeasibleError(violation)
