"""Which workers are there, what they hold, and how fast they answer; seen from a coordinator."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitlet.partition.cluster.clock import Clock
from vitlet.partition.cluster.control import unpack
from vitlet.partition.cluster.counts import Counts, Latencies, Once
from vitlet.partition.cluster.frame import VERSION, FrameError
from vitlet.partition.cluster.topics import Topics
from vitlet.partition.cluster.transport import Handle, Transport
from vitlet.partition.slots import Slot

ASK_TIMEOUT = 2.0  # seconds for a worker to tell about itself
_SMOOTH = 0.2  # share of the newest answer in the average


@dataclass(eq=False)
class Member:
    """One worker's process.

    Attributes:
        device: name.
        epoch: of its process.
        about: what it last told about itself; see `Worker.about`.
        seen: when that was, by the coordinator's clock.
        ready: slots of the coordinator's plan that it holds.
        in_flight: requests sent to it and not answered.
        misses: requests in a row that it did not answer in time.
        latency: its answers' times from sending to receiving.
        average: of the latest of them, in seconds; 0 before the first.
    """

    device: str
    epoch: int
    about: dict[str, Any] = field(default_factory=dict)
    seen: float = 0.0
    ready: set[int] = field(default_factory=set)
    in_flight: int = 0
    misses: int = 0
    latency: Latencies = field(default_factory=Latencies)
    average: float = 0.0

    def room(self, slots: Sequence[Slot]) -> int:
        """Return the bytes of memory that it has left for sub-models.

        What it told may be a second old: the slots that it has taken since count too.
        """
        memory = self.about.get("memory", {})
        ready = sum(slots[index].memory for index in self.ready if index < len(slots))
        return int(memory.get("budget", 0)) - max(int(memory.get("taken", 0)), ready)

    def answered(self, seconds: float) -> None:
        """Remember that it answered."""
        self.misses = 0
        self.latency.add(seconds)
        self.average += (seconds - self.average) * (_SMOOTH if self.average else 1.0)

    def is_slow(self, seconds: float) -> None:
        """Remember that it has not answered for so long: others are asked first from now on."""
        if seconds > self.average:
            self.average += (seconds - self.average) * _SMOOTH


class Members:
    """Follows who comes and goes.

    Args:
        transport: where to look.
        topics: of the cluster.
        plan: full hash of the plan whose slots count.
        clock: the time.
        on_change: called, on any thread, when a worker came, went or holds other slots.
        counts: where dropped frames are counted.
        log: takes a line about what happened.
    """

    def __init__(
        self,
        transport: Transport,
        topics: Topics,
        plan: str,
        clock: Clock,
        on_change: Callable[[], None],
        counts: Counts,
        log: Callable[[str], None],
    ) -> None:
        self._transport = transport
        self._topics = topics
        self._plan = plan
        self._clock = clock
        self._on_change = on_change
        self._counts = counts
        self._log = log
        self._once = Once(log)
        self._lock = threading.RLock()
        self._present: dict[str, list[int]] = {}  # device -> epochs, the newest last
        self._members: dict[str, Member] = {}
        self._handles: list[Handle] = []

    def start(self) -> None:
        """Begin to follow."""
        self._handles = [
            self._transport.watch(self._topics.everybody, self._on_presence),
            self._transport.subscribe(self._topics.metrics("*"), self._on_metrics),
        ]

    def close(self) -> None:
        """Follow no more."""
        for handle in self._handles:
            handle.close()

    def all(self) -> list[Member]:
        """Return the workers that are present, by name."""
        with self._lock:
            return [self._members[name] for name in sorted(self._members)]

    def holders(self, slot: int) -> list[Member]:
        """Return who holds a slot, the one that should answer first in front."""
        with self._lock:
            found = [member for member in self._members.values() if slot in member.ready]
            return sorted(found, key=_burden)

    def is_here(self, member: Member) -> bool:
        """Tell whether this process is still present."""
        with self._lock:
            return self._members.get(member.device) is member

    def holds(self, member: Member, slot: int, holds: bool) -> None:
        """Remember that a worker holds a slot, or no longer does."""
        with self._lock:
            if holds:
                member.ready.add(slot)
            else:
                member.ready.discard(slot)
        self._on_change()

    def _on_presence(self, key: str, is_there: bool) -> None:
        try:
            device, epoch = self._topics.who(key)
        except ValueError:
            return
        gone: Member | None = None
        with self._lock:
            epochs = self._present.setdefault(device, [])
            if is_there and epoch not in epochs:
                epochs.append(epoch)
            elif not is_there and epoch in epochs:
                epochs.remove(epoch)
                member = self._members.get(device)
                if member is not None and member.epoch == epoch:
                    gone = self._members.pop(device)
            if not epochs:
                del self._present[device]
        if is_there:
            self._ask(device, epoch)
        elif gone is not None:
            self._log(f"{device} has left")
            self._on_change()

    def _ask(self, device: str, epoch: int) -> None:
        """Ask a worker that came what it can do; again until it answers or is gone."""
        got: list[bool] = []

        def arrived(content: bytes) -> None:
            if self._take(device, content):
                got.append(True)

        def done() -> None:
            if not got and epoch in self._present.get(device, ()):
                self._clock.call_at(self._clock.now() + 0.2, again)

        def again() -> None:
            if epoch in self._present.get(device, ()):
                self._ask(device, epoch)

        key = self._topics.about(device)
        self._transport.query(key, b"", ASK_TIMEOUT, arrived, done, lane=device)

    def _on_metrics(self, key: str, content: bytes) -> None:
        self._take(key.rsplit("/", 1)[-1], content)

    def _take(self, device: str, content: bytes) -> bool:
        """Believe what a worker tells about itself; False when it cannot be."""
        try:
            about = unpack(content).table
            epoch, slots = int(about["epoch"]), about["slots"]
            ready = {int(s["slot"]) for s in slots if s["plan"] == self._plan}
        except FrameError as error:
            self._counts.add(f"dropped_{error.reason}")
            if error.reason == "version":
                self._once.say(f"{device} version", f"{device} is left out: {error}")
            return False
        except (KeyError, TypeError, ValueError):
            self._counts.add("dropped_about")
            return False
        if about.get("device") != device or about.get("wire") != VERSION:
            self._once.say(
                f"{device} wire",
                f"{device} is left out: it speaks version {about.get('wire')}, not {VERSION}",
            )
            return False
        with self._lock:
            if epoch not in self._present.get(device, ()):
                return False
            member = self._members.get(device)
            is_new = member is None or member.epoch != epoch
            if member is not None and is_new and epoch != self._present[device][-1]:
                self._once.say(f"{device} twice", f"two workers are named {device}: one is ignored")
                return False
            if member is None or is_new:
                member = self._members[device] = Member(device, epoch)
            changed = member.ready != ready
            member.about, member.seen, member.ready = about, self._clock.now(), ready
        if is_new:
            self._log(f"{device} has joined")
        if is_new or changed:
            self._on_change()
        return True


def _burden(member: Member) -> tuple[int, float, str]:
    return min(member.misses, 2), (member.in_flight + 1) * (member.average or 1e-3), member.device
