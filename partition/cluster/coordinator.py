"""Runs a plan: finds workers, gives them their slots, sends images, gathers and fuses features.

with Coordinator(load_plan("flowers.plan"), ZenohTransport(Network(listen=("127.0.0.1",)))) as c:
    c.wait_ready(10.0)
    answer = c.infer(["rose.jpg"], deadline=0.5)
    answer.predictions(), answer.missing, answer.covered_classes
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlet.data.preprocess import resize_crop
from vitlet.errors import DeadlineError, ShapeError, UsageError, VitletError
from vitlet.partition.cluster.answer import Answer, Fuser
from vitlet.partition.cluster.clock import Clock, RealClock
from vitlet.partition.cluster.counts import Counts, Latencies
from vitlet.partition.cluster.frame import PLAN_BYTES, Body, Frame, FrameError, Kind, decode, encode
from vitlet.partition.cluster.gather import Attempt, Gather, Policy
from vitlet.partition.cluster.identity import Identity
from vitlet.partition.cluster.members import Member, Members
from vitlet.partition.cluster.placer import Placer
from vitlet.partition.cluster.survey import other_clusters
from vitlet.partition.cluster.threads import Jobs, ThreadJobs
from vitlet.partition.cluster.topics import Topics, check_name
from vitlet.partition.cluster.transport import Transport
from vitlet.partition.plan import Plan

MAX_PENDING = 256  # requests under way
_KEEPS_UP = 3  # requests that a worker may have when it is sent to directly
_BUFFERED = 512 << 10  # bytes that sockets of any system hold between two devices
_ENOUGH = 20  # answers of a slot before its percentile means something


class Coordinator:
    """Serves one plan over the workers of a cluster. Safe to use from several threads.

    Args:
        plan: as `load_plan` opened it.
        transport: its end of the network; closed with the coordinator.
        cluster: name of the cluster.
        policy: how hard it tries.
        identity: signs the plan for workers that ask for it.
        clock: the time.
        fuse: where complete requests wait to be fused.
        control: where plans and bundles are sent from.
        threads: threads to fuse with.
        max_pending: requests under way at most; further ones wait.
        log: takes a line about what happened.

    Attributes:
        counts: requests, retries, hedges, dropped frames, by name.

    Raises:
        BundleError: the plan's fusion is damaged.
        UsageError: `min_slots` cannot be reached, or the cluster's name makes no sense.
    """

    def __init__(
        self,
        plan: Plan,
        transport: Transport,
        *,
        cluster: str = "home",
        policy: Policy | None = None,
        identity: Identity | None = None,
        clock: Clock | None = None,
        fuse: Jobs | None = None,
        control: Jobs | None = None,
        threads: int = 1,
        max_pending: int = MAX_PENDING,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.plan = plan
        self.policy = policy or Policy()
        if not 0 <= self.policy.min_slots <= len(plan.slots):
            raise UsageError(
                f"min_slots must be at most {len(plan.slots)}, the plan's number of slots, "
                f"got {self.policy.min_slots}"
            )
        self.topics = Topics(check_name(cluster, "the name of a cluster"))
        self.counts = Counts()
        self.latency = Latencies()
        self._fuser = Fuser(plan, threads)
        self._transport = transport
        self.clock = clock or RealClock()
        self._fuse = fuse or ThreadJobs("fuse", length=4 * max_pending)
        self._control = control or ThreadJobs("push", length=4096)
        self._session = secrets.randbits(64)
        self._numbers = itertools.count(1)
        self._plan_id = bytes.fromhex(plan.hash)[:PLAN_BYTES]
        self._widths = [slot.features for slot in plan.slots]
        self._slot_latency = [Latencies() for _ in plan.slots]
        self._lock = threading.RLock()
        self._pending: dict[Gather, Future[Answer]] = {}
        self._room = threading.BoundedSemaphore(max_pending)
        self._ready = threading.Condition()
        self._open = True
        self._known: set[Member] = set()
        self.members = Members(
            transport, self.topics, plan.hash, self.clock, self._changed, self.counts, log
        )
        self._placer = Placer(
            plan, transport, self.topics, self.members, self.clock, self._control,
            self._session, identity, log,
        )  # fmt: skip

    def start(self) -> None:
        """Begin to find workers and to give them slots."""
        self.members.start()
        self._placer.start()

    def __enter__(self) -> Coordinator:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def wait_ready(self, timeout: float, slots: int | None = None) -> bool:
        """Wait until so many slots, by default all, have a worker; tell whether they do."""
        wanted = len(self.plan.slots) if slots is None else slots
        with self._ready:
            return self._ready.wait_for(lambda: self.held() >= wanted, timeout)

    def held(self) -> int:
        """Return how many slots have a worker."""
        return sum(bool(self.members.holders(index)) for index in range(len(self.plan.slots)))

    def infer(self, images: Any, deadline: float | None = None) -> Answer:
        """Answer one request.

        Args:
            images: one or several of path, Pillow image or uint8 (H, W, C) array; or a float32
                (B, C, H, W) array, taken as already preprocessed.
            deadline: seconds.

        Raises:
            DeadlineError: fewer than `min_slots` slots answered in time.
            ImageError, ShapeError, UsageError: the images cannot be used.
        """
        return self.submit(images, deadline).result()

    def submit(self, images: Any, deadline: float | None = None) -> Future[Answer]:
        """Begin a request; see `infer`. Waits while `max_pending` requests are under way."""
        array = self._array(images)
        seconds = self.policy.deadline if deadline is None else deadline
        if not 0 < seconds < 3600:
            raise UsageError(f"a deadline is above 0 and below 3600 seconds, got {seconds}")
        if not self._room.acquire(timeout=seconds):
            self.counts.add("overload")
            raise DeadlineError("too many requests are under way: try later or send fewer")
        future: Future[Answer] = Future()
        gather = Gather(
            self, Body.of(array), len(array), self._widths, self.clock.now() + seconds,
            lambda: next(self._numbers),
        )  # fmt: skip
        with self._lock:
            self._pending[gather] = future
        self.counts.add("requests")
        gather.start()
        return future

    def stream(
        self, images: Iterable[Any], window: int = 8, deadline: float | None = None
    ) -> Iterator[Answer]:
        """Answer many requests in order, with up to `window` of them under way.

        Raises:
            DeadlineError, ImageError, ShapeError, UsageError: as `infer`; it ends the stream.
        """
        waiting: list[Future[Answer]] = []
        for image in images:
            waiting.append(self.submit(image, deadline))
            if len(waiting) >= window:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()

    def other_clusters(self) -> list[str]:
        """Return the names of other clusters whose workers are on this network."""
        return other_clusters(self._transport, self.topics)

    def status(self) -> dict[str, Any]:
        """Return the cluster as the coordinator sees it, JSON-ready."""
        now = self.clock.now()
        links = self._transport.links()
        return {
            "plan": self.plan.hash,
            "cluster": self.topics.cluster,
            "slots": [
                {
                    "slot": slot.index,
                    "classes": [self.plan.labels[c] for c in slot.classes],
                    "planned": list(slot.devices),
                    "holders": [member.device for member in self.members.holders(slot.index)],
                    "latency": self._slot_latency[slot.index].to_json(),
                }
                for slot in self.plan.slots
            ],
            "workers": [
                {
                    **member.about,
                    "last_seen": round(now - member.seen, 3),
                    "in_flight": member.in_flight,
                    "misses": member.misses,
                    "round_trip": member.latency.to_json(),
                }
                for member in self.members.all()
            ],
            "model": self.plan.model.get("name", ""),
            "unreachable": links.unreachable,
            "pending": len(self._pending),
            "latency": self.latency.to_json(),
            "counts": self.counts.to_json(),
        }

    def close(self) -> None:
        """Leave the cluster; requests under way fail. Again does nothing."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            waiting = [*self._pending.values()]
            self._pending.clear()
        for future in waiting:
            future.set_exception(DeadlineError("the coordinator was closed"))
        self.members.close()
        self._placer.close()
        self._fuse.close()
        self._control.close()
        self._transport.close()
        self.clock.close()

    # What a request asks of its coordinator: see `vitlet.partition.cluster.gather.Desk`.

    def holders(self, slot: int) -> list[Member]:
        """Return who holds a slot, the best first."""
        return self.members.holders(slot)

    def percentile(self, slot: int) -> float:
        """Return the seconds in which 95 % of a slot's answers came; 0 when too few have."""
        latency = self._slot_latency[slot]
        return latency.percentile(95) if len(latency) >= _ENOUGH else 0.0

    def count(self, name: str) -> None:
        """Count something."""
        self.counts.add(name)

    def send(self, gather: Gather, attempt: Attempt, direct: bool) -> None:
        """Send an attempt, from this thread if it may wait and the worker keeps up."""
        member = attempt.member
        budget = max(gather.deadline - self.clock.now(), 0.0)
        frame = Frame(
            Kind.REQUEST, self._plan_id, self._session, attempt.sequence, member.epoch,
            budget=int(budget * 1e6), slot=attempt.slot,
        )  # fmt: skip

        def arrived(content: bytes) -> None:
            try:
                reply, array = decode(content)
            except FrameError as error:
                self.counts.add(f"dropped_{error.reason}")
                return
            if (reply.session, reply.sequence, reply.epoch, reply.slot, reply.plan) != (
                self._session, attempt.sequence, member.epoch, attempt.slot, self._plan_id,
            ):  # fmt: skip
                self.counts.add("dropped_stranger")
                return
            if reply.kind is Kind.REPLY and not attempt.over:
                self._slot_latency[attempt.slot].add(self.clock.now() - attempt.sent)
            gather.replied(attempt, reply, array)

        key = self.topics.infer(self._plan_id.hex(), attempt.slot, member.device)
        content = encode(frame, gather.body)
        # A worker that keeps up has room in its buffers for this; any other gets a thread.
        keeps_up = member.in_flight <= _KEEPS_UP and not member.misses
        direct = direct and keeps_up and len(content) * member.in_flight <= _BUFFERED
        self._transport.query(
            key,
            content,
            budget,
            arrived,
            lambda: gather.failed(attempt, None),
            lane=None if direct else member.device,
        )

    def ended(self, gather: Gather) -> None:
        """Fuse what has come, away from the transport's thread."""
        if not self._fuse.put(lambda: self._conclude(gather)):
            self._give(gather, None, DeadlineError("too many requests wait to be fused"))

    def _conclude(self, gather: Gather) -> None:
        features = gather.features()
        have = sum(part is not None for part in features)
        if have < max(1, self.policy.min_slots):
            self.counts.add("unanswered")
            absent = [str(i) for i, part in enumerate(features) if part is None]
            self._give(
                gather,
                None,
                DeadlineError(
                    f"{have} of {len(features)} slots answered in time, "
                    f"{max(1, self.policy.min_slots)} are needed; missing: {', '.join(absent)}"
                ),
            )
            return
        try:
            latency = self.clock.now() - gather.begin
            answer = self._fuser.answer(features, gather.rows, gather.traces(), latency)
        except VitletError as error:
            self._give(gather, None, error)
            return
        self.latency.add(self.clock.now() - gather.begin)
        self.counts.add("degraded" if answer.missing else "complete")
        self._give(gather, answer, None)

    def _give(self, gather: Gather, answer: Answer | None, error: VitletError | None) -> None:
        with self._lock:
            future = self._pending.pop(gather, None)
        if future is None:
            return
        self._room.release()
        if answer is not None:
            future.set_result(answer)
        else:
            future.set_exception(error or DeadlineError("no answer"))

    def _changed(self) -> None:
        """Tell requests and the placer that a worker came, went or holds other slots."""
        here = {*self.members.all()}
        with self._lock:
            gone = self._known - here
            self._known = here
            pending = [*self._pending]
        for gather in pending:
            for member in gone:
                gather.lost(member)
            gather.new_holder()
        with self._ready:
            self._ready.notify_all()
        self._placer.look()

    def _array(self, images: Any) -> NDArray[Any]:
        size = (self.plan.preprocess.channels, *self.plan.preprocess.size)
        if isinstance(images, np.ndarray) and images.dtype.kind == "f":
            if images.ndim != 4 or images.shape[1:] != size or images.dtype != np.float32:
                raise ShapeError(
                    f"expected float32 (B, {', '.join(map(str, size))}), got {images.dtype} "
                    f"{images.shape}"
                )
            return images
        spec = self.plan.preprocess
        whole = spec.resize == "squash" or spec.size == (spec.resize_to, spec.resize_to)
        if isinstance(images, np.ndarray) and images.dtype == np.uint8 and whole:
            if images.ndim == 4 and images.shape[1:] == (*spec.size, spec.channels):
                return images  # of the right size already: a resize would copy it
        return resize_crop(images, spec)
