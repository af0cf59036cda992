"""Brings a slot to a worker: the plan, the bundle's missing chunks, the order to load it.

The steps are a generator that yields orders and is sent their answers, so that the same steps run
over a real network and a fake one; `Conversation` drives it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from typing import Any

from vitlet.errors import DeadlineError, VitletError
from vitlet.partition.cluster.control import Message, RemoteError, pack, unpack
from vitlet.partition.cluster.frame import FrameError
from vitlet.partition.cluster.identity import CERTIFICATE, Identity, canonical, sign
from vitlet.partition.cluster.threads import Jobs
from vitlet.partition.cluster.transport import Transport
from vitlet.partition.plan import Plan
from vitlet.runtime.manifest import MANIFEST

CHUNK = 1 << 20  # bytes
STALLS = 8  # chunks in a row after which nothing more has arrived
ORDER_TIMEOUT = 30.0  # seconds; loading a large model on a small device takes some
TRIES = 3

Order = tuple[dict[str, Any], bytes]
Steps = Generator[Order, dict[str, Any], None]


def steps(plan: Plan, slot: int, proof: dict[str, str], chunk: int = CHUNK) -> Steps:
    """Yield the orders that bring a slot to a worker, and take their answers.

    Raises:
        BundleError: the bundle here is damaged.
        RemoteError: the worker's copy does not grow.
    """
    bundle = plan.slot_bundle(slot)
    which = {"plan": plan.hash, "slot": slot}
    yield {"order": "plan", "plan": plan.to_json(), **proof}, b""
    answer = yield {"order": "begin", **which}, (bundle.path / MANIFEST).read_bytes()
    held = answer["held"]
    for name, entry in bundle.manifest.files.items():
        at, stalls = int(held.get(name, 0)), 0
        with bundle.file(name).open("rb") as file:
            while at < entry.size:
                file.seek(at)
                table = {"order": "chunk", **which, "name": name, "offset": at}
                reached = int((yield table, file.read(chunk))["held"])
                stalls = 0 if reached > at else stalls + 1
                if stalls > STALLS or not 0 <= reached <= entry.size:
                    raise RemoteError(f"{name} does not arrive: {reached} of {entry.size} bytes")
                at = reached
    yield {"order": "finish", **which}, b""
    yield {"order": "load", **which}, b""


def prove(plan: Plan, identity: Identity | None) -> dict[str, str]:
    """Return what shows that this coordinator stands behind a plan; empty without certificates."""
    if identity is None:
        return {}
    certificate = (identity.folder / CERTIFICATE).read_text("ascii")
    signature = sign(identity.folder, canonical(plan.hash))
    return {"certificate": certificate, "signature": signature}


class Conversation:
    """Sends a worker one order after the other; an order without an answer is sent again.

    Args:
        transport: carries them.
        key: of the worker's orders.
        epoch: of its process.
        session: random number of this process.
        numbers: counts the messages of this process.
        orders: what to send.
        jobs: where the steps run; they read files.
        on_end: called once: None, or what went wrong.
    """

    def __init__(
        self,
        transport: Transport,
        key: str,
        epoch: int,
        session: int,
        numbers: itertools.count[int],
        orders: Steps,
        jobs: Jobs,
        on_end: Callable[[VitletError | None], None],
    ) -> None:
        self._transport = transport
        self._key = key
        self._epoch = epoch
        self._session = session
        self._numbers = numbers
        self._orders = orders
        self._jobs = jobs
        self._on_end = on_end

    def start(self) -> None:
        """Send the first order."""
        self._later(lambda: self._step(None))

    def _later(self, job: Callable[[], None]) -> None:
        if not self._jobs.put(job):
            self._on_end(DeadlineError("too much to do at once"))

    def _step(self, answer: dict[str, Any] | None) -> None:
        try:
            order = next(self._orders) if answer is None else self._orders.send(answer)
        except StopIteration:
            self._on_end(None)
        except VitletError as error:
            self._on_end(error)
        except (OSError, KeyError, TypeError, ValueError) as error:
            self._on_end(RemoteError(f"the push failed: {error!r}"))
        else:
            self._send(order, TRIES)

    def _send(self, order: Order, tries: int) -> None:
        table, data = order
        message = Message(table, data, self._session, next(self._numbers), self._epoch)
        got: list[bytes] = []

        def done() -> None:
            self._later(lambda: self._took(order, tries, got))

        self._transport.query(
            self._key, pack(message), ORDER_TIMEOUT, got.append, done, lane=self._key
        )

    def _took(self, order: Order, tries: int, got: list[bytes]) -> None:
        if not got:
            if tries > 1:
                self._send(order, tries - 1)
            else:
                self._on_end(DeadlineError(f"no answer to the order {order[0]['order']!r}"))
            return
        try:
            answer = unpack(got[0]).table
        except FrameError as error:
            self._on_end(error)
            return
        if answer.get("ok") is not True:
            self._on_end(RemoteError(str(answer.get("error", "the worker refused"))))
            return
        self._step(answer)
