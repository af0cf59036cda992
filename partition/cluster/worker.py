"""A device of a cluster: takes plans and sub-models, keeps them, and answers requests.

worker = Worker("pi-1", ZenohTransport(Network(connect=("192.168.1.5",), identity=identity)))
worker.start()

Needs numpy, one inference engine and the transport; never torch.
"""

from __future__ import annotations

import os
import platform
import secrets
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import vitlet
from vitlet.errors import ShapeError, UsageError
from vitlet.partition.cluster.cache import Cache, default_cache
from vitlet.partition.cluster.clock import Clock, RealClock
from vitlet.partition.cluster.control import Message, pack
from vitlet.partition.cluster.counts import Counts, Latencies, Once
from vitlet.partition.cluster.device_state import memory_available, memory_used, temperature
from vitlet.partition.cluster.frame import (
    VERSION,
    Body,
    Code,
    Frame,
    FrameError,
    Kind,
    answer,
    decode,
)
from vitlet.partition.cluster.frame import encode as encode_frame
from vitlet.partition.cluster.holdings import Holdings
from vitlet.partition.cluster.identity import Identity
from vitlet.partition.cluster.orders import Orders
from vitlet.partition.cluster.replay import Seen
from vitlet.partition.cluster.threads import Jobs, ThreadJobs
from vitlet.partition.cluster.topics import Topics, check_name
from vitlet.partition.cluster.transport import Handle, Query, Transport

METRICS_PERIOD = 1.0  # seconds
NAME_CHECK = 1.0  # seconds that another worker of the same name has to answer


class Worker:
    """Answers requests for the slots that coordinators load here.

    Args:
        name: of the device, unique in its cluster.
        transport: its end of the network; closed with the worker.
        cluster: name of the cluster.
        cache: where plans and bundles are kept, a folder or an open cache.
        threads: threads to compute one request with.
        memory: bytes that sub-models may take; by default half of what is free at the start.
        identity: whose roster says which coordinators' plans are taken; None takes any plan whose
            hash is right.
        clock: the time.
        compute: where requests wait for their turn.
        control: where orders wait for theirs.
        log: takes a line about what happened.

    Attributes:
        name: of the device.
        epoch: random number of this process; frames that name another one are dropped.
        counts: frames answered, refused and dropped, by reason.

    Raises:
        UsageError: the name makes no sense.
        StorageError: the cache cannot be made.
    """

    def __init__(
        self,
        name: str,
        transport: Transport,
        *,
        cluster: str = "home",
        cache: str | os.PathLike[str] | Cache | None = None,
        threads: int = 1,
        memory: int | None = None,
        identity: Identity | None = None,
        clock: Clock | None = None,
        compute: Jobs | None = None,
        control: Jobs | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.name = check_name(name, "the name of a worker")
        self.topics = Topics(check_name(cluster, "the name of a cluster"))
        self.epoch = secrets.randbits(64) or 1
        self.counts = Counts()
        self._transport = transport
        self._clock = clock or RealClock()
        self._compute = compute or ThreadJobs("compute")
        self._control = control or ThreadJobs("control")
        self._log = log
        self._once = Once(log)
        self._seen = Seen()
        self._spent = Latencies()
        self._handles: list[Handle] = []
        self._open = True
        budget = memory_available() // 2 if memory is None else memory
        store = cache if isinstance(cache, Cache) else Cache(cache or default_cache() / name)
        self.holdings = Holdings(store, threads, budget)
        self._orders = Orders(self.holdings, identity, log)

    def start(self) -> None:
        """Load what the cache says was loaded, then join the cluster.

        Raises:
            UsageError: another worker of this name is there.
        """
        self._refuse_twin()
        for line in self.holdings.restore(self._orders.check):
            self._log(line)
        serve = self._transport.serve
        self._handles = [
            serve(self.topics.infer("*", "*", self.name), self._on_request),
            serve(self.topics.about(self.name), self._on_about),
            serve(self.topics.control(self.name), self._on_order),
            self._transport.announce(self.topics.live(self.name, self.epoch)),
        ]
        self._publish()

    def about(self) -> dict[str, Any]:
        """Return what the worker can do and how it is, JSON-ready."""
        return {
            "device": self.name,
            "epoch": self.epoch,
            "wire": VERSION,
            "vitlet": vitlet.__version__,
            "machine": platform.machine(),
            "cpus": os.cpu_count() or 1,
            "memory": {
                "budget": self.holdings.budget,
                "taken": self.holdings.taken,
                "process": memory_used(),
            },
            "temperature": temperature(),
            "slots": self.holdings.to_json(),
            "queue": self._compute.waiting(),
            "latency": self._spent.to_json(),
            "counts": self.counts.to_json(),
        }

    def close(self) -> None:
        """Leave the cluster and free everything; again does nothing."""
        if not self._open:
            return
        self._open = False
        for handle in reversed(self._handles):
            handle.close()
        self._compute.close()
        self._control.close()
        self._transport.close()
        self._clock.close()

    def _refuse_twin(self) -> None:
        """Raise UsageError when a live worker answers to this name."""
        found: list[bytes] = []
        done: list[bool] = []
        self._transport.query(
            self.topics.about(self.name), b"", NAME_CHECK, found.append, lambda: done.append(True)
        )
        end = time.monotonic() + NAME_CHECK
        while not done and time.monotonic() < end and isinstance(self._clock, RealClock):
            time.sleep(0.005)
        if found:
            raise UsageError(
                f"a worker named {self.name!r} is in the cluster already: choose another --name"
            )

    def _publish(self) -> None:
        if not self._open:
            return
        self._transport.publish(self.topics.metrics(self.name), pack(Message(self.about())))
        self._clock.call_at(self._clock.now() + METRICS_PERIOD, self._publish)

    def _on_about(self, query: Query) -> None:
        query.reply(pack(Message(self.about(), epoch=self.epoch)))
        query.close()

    def _on_order(self, query: Query) -> None:
        def obey() -> None:
            try:
                query.reply(self._orders.obey(query.payload, self.epoch, self.counts))
            except FrameError as error:
                self._dropped(error.reason, f"an order was dropped: {error}")
            finally:
                query.close()

        if not self._control.put(obey):
            self._dropped("orders", "orders are dropped: too many wait")
            query.close()

    def _on_request(self, query: Query) -> None:
        """Read a request and queue it, or say why not; runs on the transport's thread."""
        arrived = self._clock.now()
        try:
            request, array = decode(query.payload)
        except FrameError as error:
            self._dropped(error.reason, f"a request was dropped: {error}")
            query.close()
            return
        if request.kind is not Kind.REQUEST or request.epoch != self.epoch:
            self._dropped("epoch", "a request for another process of this name was dropped")
            query.close()
            return
        if not self._seen.fresh(request.session, request.sequence):
            self._dropped("replayed", "a request that came before was dropped")
            query.close()
            return

        def compute() -> None:
            self._answer(query, request, array, arrived)

        if not self._compute.put(compute):
            self._refuse(query, request, Code.BUSY)

    def _answer(self, query: Query, request: Frame, array: Any, arrived: float) -> None:
        """Compute and reply; runs on a compute thread."""
        begin = self._clock.now()
        waited = begin - arrived
        if waited * 1e6 >= request.budget:
            self._refuse(query, request, Code.EXPIRED)
            return
        slot = self.holdings.get(request.plan, request.slot)
        if slot is None:
            self._refuse(query, request, Code.NOT_READY)
            return
        start = time.perf_counter()
        try:
            features = slot.run(array)
        except ShapeError as error:
            self._once.say("shape", f"a request does not fit slot {request.slot}: {error}")
            self._refuse(query, request, Code.REFUSED)
            return
        except Exception as error:  # whatever an engine raises must not end the thread
            self._once.say(f"broken {request.slot}", f"slot {request.slot} failed: {error}")
            self._refuse(query, request, Code.BROKEN)
            return
        spent = time.perf_counter() - start
        self._spent.add(spent)
        reply = answer(
            request,
            Kind.REPLY,
            device=self.name,
            compute=int(spent * 1e6),
            queue=int(waited * 1e6),
        )
        self.counts.add("answered")
        self._send(query, encode_frame(reply, Body.of(np.asarray(features))))

    def _refuse(self, query: Query, request: Frame, code: Code) -> None:
        self.counts.add(code.name.lower())
        self._send(query, encode_frame(answer(request, Kind.FAILURE, device=self.name, code=code)))

    def _send(self, query: Query, content: bytes) -> None:
        try:
            query.reply(content)
        except Exception as error:  # the asker has gone; its deadline tells it
            self._once.say("reply", f"a reply could not be sent: {error}")
        finally:
            query.close()

    def _dropped(self, reason: str, line: str) -> None:
        self.counts.add(f"dropped_{reason}")
        self._once.say(reason, f"{line} (said once)")
