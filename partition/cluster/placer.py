"""Keeps every slot on a worker: loads as planned, and elsewhere what lost its workers."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

from vitlet.errors import VitletError
from vitlet.partition.cluster.clock import Clock
from vitlet.partition.cluster.identity import Identity
from vitlet.partition.cluster.members import Members
from vitlet.partition.cluster.placement import Placing, place
from vitlet.partition.cluster.push import Conversation, prove, steps
from vitlet.partition.cluster.threads import Jobs
from vitlet.partition.cluster.topics import Topics
from vitlet.partition.cluster.transport import Transport
from vitlet.partition.plan import Plan

GRACE = 2.0  # seconds that an absent worker has to come (back) before its slots go elsewhere
TRY_AGAIN = 5.0  # seconds until what a worker refused is tried again


class Placer:
    """Compares who holds what with what should be, and sends what is missing.

    Args:
        plan: the plan.
        transport: carries orders.
        topics: of the cluster.
        members: who is there.
        clock: the time.
        jobs: where files are read and orders sent.
        session: random number of this process.
        identity: signs the plan.
        log: takes a line about what happened.
    """

    def __init__(
        self,
        plan: Plan,
        transport: Transport,
        topics: Topics,
        members: Members,
        clock: Clock,
        jobs: Jobs,
        session: int,
        identity: Identity | None,
        log: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._transport = transport
        self._topics = topics
        self._members = members
        self._clock = clock
        self._jobs = jobs
        self._session = session
        self._numbers = itertools.count(1 << 62)  # apart from the requests' of the same session
        self._proof = prove(plan, identity)
        self._log = log
        self._lock = threading.RLock()
        self._loading: dict[tuple[str, int], int] = {}
        self._refused: dict[tuple[str, int], int] = {}
        self._empty_since: dict[int, float] = {}
        self._open = False

    def start(self) -> None:
        """Begin; slots are empty from now on."""
        with self._lock:
            self._open = True
        self.look()

    def close(self) -> None:
        """Send nothing more."""
        with self._lock:
            self._open = False

    def look(self) -> None:
        """Send what is missing now, and look again when a grace ends."""
        with self._lock:
            if not self._open:
                return
            now = self._clock.now()
            for slot in self._plan.slots:
                if self._members.holders(slot.index):
                    self._empty_since.pop(slot.index, None)
                elif slot.index not in self._empty_since:
                    self._empty_since[slot.index] = now
                    self._clock.call_at(now + GRACE, self._look_soon)
            members = self._members.all()
            epochs = {member.device: member.epoch for member in members}
            for table in (self._loading, self._refused):
                for key in [k for k, epoch in table.items() if epochs.get(k[0]) != epoch]:
                    del table[key]
            homeless = frozenset(
                index for index, since in self._empty_since.items() if now >= since + GRACE
            )
            placings = place(self._plan, members, self._loading, self._refused, homeless)
            for placing in placings:
                self._loading[placing.member.device, placing.slot] = placing.member.epoch
        for placing in placings:
            self._send(placing)

    def _look_soon(self) -> None:
        self._jobs.put(self.look)

    def _send(self, placing: Placing) -> None:
        device, slot = placing.member.device, placing.slot
        key = device, slot
        self._log(f"slot {slot} goes to {device} ({placing.why})")

        def ended(error: VitletError | None) -> None:
            with self._lock:
                if self._loading.get(key) == placing.member.epoch:
                    del self._loading[key]
                if error is not None and self._open:
                    self._refused[key] = placing.member.epoch
                    self._clock.call_at(self._clock.now() + TRY_AGAIN, forget)
            if error is None:
                self._members.holds(placing.member, slot, True)
            elif self._members.is_here(placing.member):
                self._log(f"slot {slot} could not be loaded on {device}: {error}")
                self.look()

        def forget() -> None:
            with self._lock:
                self._refused.pop(key, None)
            self._look_soon()

        Conversation(
            self._transport,
            self._topics.control(device),
            placing.member.epoch,
            self._session,
            self._numbers,
            steps(self._plan, slot, self._proof),
            self._jobs,
            ended,
        ).start()
