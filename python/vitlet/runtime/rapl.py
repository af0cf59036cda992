"""Joules that the processor itself has counted (RAPL), where the system lets them be read.

Linux shows them under ``/sys/class/powercap``, of Intel's processors and of AMD's since Zen; most
systems let only root read them, most virtual machines have none. What is counted is the whole
package, with everything that runs on it: measure on an idle machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vitlet.errors import UsageError

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Joules:
    """What some runs of something took.

    Attributes:
        joules: of all packages, **measured**, whatever else ran meanwhile included.
        runs: how many.
        seconds: how long they took.
        idle_watts: of the packages while nothing was run, just before.
    """

    joules: float
    runs: int
    seconds: float
    idle_watts: float

    @property
    def each(self) -> float:
        """Joules of one run, idling included."""
        return self.joules / self.runs

    @property
    def above_idle(self) -> float:
        """Joules of one run above what the packages take when nothing is run."""
        return (self.joules - self.idle_watts * self.seconds) / self.runs


class Rapl:
    """The packages' counters.

    Args:
        root: folder of the zones.
    """

    def __init__(self, root: str | os.PathLike[str] = POWERCAP) -> None:
        # A zone "intel-rapl:0:1" is a part of the package "intel-rapl:0".
        zones = sorted(z for z in Path(root).glob("*-rapl:*") if z.name.count(":") == 1)
        self._zones = [(z / "energy_uj", _number(z / "max_energy_range_uj")) for z in zones]
        self._zones = [(path, span) for path, span in self._zones if _number(path) is not None]

    def __bool__(self) -> bool:
        """Whether there is a counter that can be read."""
        return bool(self._zones)

    def counts(self) -> list[int]:
        """Return microjoules of each package since some moment."""
        return [_number(path) or 0 for path, _ in self._zones]

    def since(self, before: list[int]) -> float:
        """Return joules since `counts` gave `before`; a counter may have started over once."""
        total = 0
        for old, new, (_, span) in zip(before, self.counts(), self._zones, strict=True):
            total += new - old + ((span or 0) if new < old else 0)
        return total * 1e-6


def measure_joules(
    run: Callable[[], object],
    *,
    seconds: float = 2.0,
    root: str | os.PathLike[str] = POWERCAP,
) -> Joules | None:
    """Run something again and again for some time, and read what the processor counted.

    Args:
        run: what to measure.
        seconds: how long; half of it again before, idle.
        root: folder of the zones.

    Returns:
        None where no counter can be read.

    Raises:
        UsageError: no time to measure in.
    """
    if not seconds > 0:
        raise UsageError(f"expected seconds > 0, got {seconds}")
    rapl = Rapl(root)
    if not rapl:
        return None
    run()
    before, begin = rapl.counts(), time.perf_counter()
    time.sleep(seconds / 2)
    idle = rapl.since(before) / (time.perf_counter() - begin)
    before, begin, runs = rapl.counts(), time.perf_counter(), 0
    while runs == 0 or time.perf_counter() - begin < seconds:
        run()
        runs += 1
    joules = rapl.since(before)
    return Joules(joules, runs, time.perf_counter() - begin, idle)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
