"""One request: asks a holder of every slot, asks again where it must, and ends by its deadline.

The rules, in order of time:
- a failure (busy, not loaded, broken, device gone) goes to another holder at once, or again to the
  same one when there is no other, until the retries are spent;
- an attempt slower than 95 % of the slot's answers is *hedged*: another holder is asked too, and
  the first answer counts; without another holder the same one is asked again, later;
- a slot that nobody holds is not waited for, unless fewer than `min_slots` would be left;
- at the deadline what has come is what there is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vitlet.partition.cluster.answer import Trace
from vitlet.partition.cluster.clock import Clock, Timer
from vitlet.partition.cluster.frame import Body, Code, Frame, Kind
from vitlet.partition.cluster.members import Member

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Policy:
    """How hard a coordinator tries.

    Attributes:
        deadline: seconds for a request that says none.
        min_slots: slots that must answer, or the request fails.
        retries: further attempts for a slot that failed.
        hedge: whether slow attempts are doubled.
        hedge_least: seconds that an attempt is given at least before that.
        resend: seconds before the only holder is asked again, at least.
    """

    deadline: float = 1.0
    min_slots: int = 1
    retries: int = 2
    hedge: bool = True
    hedge_least: float = 0.005
    resend: float = 0.1


class Desk(Protocol):
    """What a request needs of its coordinator."""

    clock: Clock
    policy: Policy

    def holders(self, slot: int) -> list[Member]:
        """Return who holds a slot, the best first."""
        ...

    def send(self, gather: Gather, attempt: Attempt, direct: bool) -> None:
        """Send an attempt; its end comes back to `Gather.replied` or `Gather.failed`.

        Args:
            gather: the request.
            attempt: what to send.
            direct: whether this thread may wait for the transport.
        """
        ...

    def percentile(self, slot: int) -> float:
        """Return the seconds in which 95 % of a slot's answers came; 0 when too few have."""
        ...

    def ended(self, gather: Gather) -> None:
        """Take over a request whose features are all there that will be."""
        ...

    def count(self, name: str) -> None:
        """Count something."""
        ...


@dataclass(eq=False)
class Attempt:
    """One sending of one slot's request to one worker."""

    slot: int
    member: Member
    sequence: int
    sent: float
    over: bool = False


@dataclass
class _Slot:
    index: int
    features: Features | None = None
    attempts: list[Attempt] = field(default_factory=list)
    device: str = ""
    compute: float = 0.0
    queue: float = 0.0
    total: float = 0.0
    hedged: bool = False
    timer: Timer | None = None

    def pending(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if not attempt.over]


class Gather:
    """The state of one request.

    Args:
        desk: the coordinator.
        body: the images, ready to be sent.
        rows: number of images B.
        widths: numbers per image that each slot sends.
        deadline: when it ends, by the desk's clock.
        next_sequence: gives the number of an attempt.
    """

    def __init__(
        self,
        desk: Desk,
        body: Body,
        rows: int,
        widths: list[int],
        deadline: float,
        next_sequence: Callable[[], int],
    ) -> None:
        self.body = body
        self.rows = rows
        self.begin = desk.clock.now()
        self.deadline = deadline
        self._desk = desk
        self._widths = widths
        self._next = next_sequence
        self._lock = threading.RLock()
        self._slots = [_Slot(index) for index in range(len(widths))]
        self._over = False
        self._outbox: list[Attempt] = []
        self._timer = desk.clock.call_at(deadline, self._out_of_time)

    def start(self) -> None:
        """Ask for every slot."""
        with self._lock:
            for slot in self._slots:
                self._ask(slot)
        self._post(direct=True)
        self._maybe_end()

    def new_holder(self) -> None:
        """Ask again for the slots that nobody held until now."""
        with self._lock:
            if self._over:
                return
            for slot in self._slots:
                if slot.features is None and not slot.pending():
                    self._ask(slot)
        self._post()

    def lost(self, member: Member) -> None:
        """End the attempts at a worker that is gone."""
        with self._lock:
            gone = [a for s in self._slots for a in s.pending() if a.member is member]
        for attempt in gone:
            self.failed(attempt, None)

    def replied(self, attempt: Attempt, frame: Frame, array: NDArray[np.generic]) -> None:
        """Take a worker's answer to an attempt."""
        slot = self._slots[attempt.slot]
        if frame.kind is not Kind.REPLY:
            self._desk.count(f"failed_{frame.code.name.lower()}")
            self.failed(attempt, frame.code)
            return
        if array.dtype != np.float32 or array.shape != (self.rows, self._widths[slot.index]):
            self._desk.count("dropped_features")
            self.failed(attempt, Code.BROKEN)
            return
        with self._lock:
            if not attempt.over:
                attempt.over = True
                attempt.member.in_flight -= 1
                attempt.member.answered(self._desk.clock.now() - attempt.sent)
            if self._over or slot.features is not None:
                return
            slot.features = array.astype(np.float32, copy=False)
            slot.device, slot.compute, slot.queue = (
                frame.device, frame.compute * 1e-6, frame.queue * 1e-6,
            )  # fmt: skip
            slot.total = self._desk.clock.now() - slot.attempts[0].sent
            if slot.timer is not None:
                slot.timer.cancel()
        self._maybe_end()

    def failed(self, attempt: Attempt, code: Code | None) -> None:
        """End an attempt without features; `code` is None when the worker said nothing."""
        slot = self._slots[attempt.slot]
        with self._lock:
            if attempt.over:
                return
            attempt.over = True
            attempt.member.in_flight -= 1
            if code is None:
                attempt.member.misses += 1
            if self._over or slot.features is not None:
                return
            hopeless = code in (Code.REFUSED, Code.EXPIRED)
            if not slot.pending() and not hopeless and self._may_retry(slot):
                self._desk.count("retries")
                self._ask(slot)
        self._post()
        self._maybe_end()

    def traces(self) -> tuple[Trace, ...]:
        """Return how each slot's features came."""
        return tuple(
            Trace(s.index, s.device, s.compute, s.queue, s.total, len(s.attempts), s.hedged)
            for s in self._slots
        )

    def features(self) -> list[Features | None]:
        """Return what has come, slot by slot."""
        return [slot.features for slot in self._slots]

    def _may_retry(self, slot: _Slot) -> bool:
        return len(slot.attempts) <= self._desk.policy.retries

    def _ask(self, slot: _Slot) -> None:
        """Note an attempt at the best holder that is not being waited for; lock held."""
        now = self._desk.clock.now()
        if now >= self.deadline:
            return
        busy = [attempt.member for attempt in slot.pending()]
        tried = [attempt.member for attempt in slot.attempts]
        holders = [m for m in self._desk.holders(slot.index) if m not in busy]
        holders.sort(key=lambda member: tried.count(member))
        if not holders:
            return
        self._try(slot, holders[0])
        self._arm(slot, spare=len(holders) > 1)

    def _try(self, slot: _Slot, member: Member) -> None:
        """Note an attempt, to be posted when the lock is free; lock held."""
        attempt = Attempt(slot.index, member, self._next(), self._desk.clock.now())
        member.in_flight += 1
        slot.attempts.append(attempt)
        self._outbox.append(attempt)

    def _post(self, direct: bool = False) -> None:
        """Send what was noted; never under the lock, which the transport's own threads take.

        A transport calls back with locks of its own held: whoever sends under this one waits for
        those, and they for this one.
        """
        with self._lock:
            posted, self._outbox = self._outbox, []
        for attempt in posted:
            self._desk.send(self, attempt, direct)

    def _arm(self, slot: _Slot, spare: bool) -> None:
        """Look again when the attempt has taken longer than usual; lock held."""
        policy = self._desk.policy
        if slot.timer is not None:
            slot.timer.cancel()
        if not policy.hedge or not self._may_retry(slot):
            return
        usual = self._desk.percentile(slot.index)
        if spare:
            wait = max(usual, policy.hedge_least) if usual else policy.resend
        else:
            wait = max(4 * usual, policy.resend) * 2 ** (len(slot.attempts) - 1)
        when = self._desk.clock.now() + wait
        if when < self.deadline:
            slot.timer = self._desk.clock.call_at(when, lambda: self._slow(slot))

    def _slow(self, slot: _Slot) -> None:
        with self._lock:
            if self._over or slot.features is not None:
                return
            waiting = slot.pending()
            busy = [attempt.member for attempt in waiting]
            others = [m for m in self._desk.holders(slot.index) if m not in busy]
            if others:
                slot.hedged = True
                self._desk.count("hedges")
                self._ask(slot)
            elif waiting:
                # Perhaps the message was lost: ask the same worker again.
                self._desk.count("resends")
                self._try(slot, waiting[-1].member)
                self._arm(slot, spare=False)
        self._post()

    def _maybe_end(self) -> None:
        with self._lock:
            if self._over or any(s.features is None and s.pending() for s in self._slots):
                return
            have = sum(slot.features is not None for slot in self._slots)
            if have < max(1, self._desk.policy.min_slots):
                return  # a holder may come before the deadline
            self._finish()
        self._desk.ended(self)

    def _out_of_time(self) -> None:
        with self._lock:
            if self._over:
                return
            self._finish()
        self._desk.ended(self)

    def _finish(self) -> None:
        """Let go of everything that is under way; lock held."""
        self._over = True
        self._timer.cancel()
        for slot in self._slots:
            if slot.timer is not None:
                slot.timer.cancel()
            for attempt in slot.pending():
                attempt.over = True
                attempt.member.in_flight -= 1
                if slot.features is None:
                    attempt.member.misses += 1
                attempt.member.is_slow(self._desk.clock.now() - attempt.sent)
