"""Carries out what coordinators order: plans, chunks of bundles, slots to load.

| order | with | answer |
| --- | --- | --- |
| plan | plan, certificate, signature | |
| begin | plan, slot; the manifest as data | held: file -> bytes that are here |
| chunk | plan, slot, name, offset; bytes as data | held |
| finish | plan, slot | |
| load | plan, slot | |
| unload | plan, slot | |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vitlet.errors import CorruptInputError, UsageError, VitletError
from vitlet.partition.cluster.control import Message, pack, unpack
from vitlet.partition.cluster.counts import Counts
from vitlet.partition.cluster.frame import FrameError
from vitlet.partition.cluster.holdings import Holdings
from vitlet.partition.cluster.identity import Identity, canonical, check_signature
from vitlet.partition.cluster.replay import Seen
from vitlet.partition.plan import Plan


class Orders:
    """Obeys one order at a time.

    Args:
        holdings: what the worker has.
        identity: whose roster says who may order; None: whoever can reach the worker.
        log: takes a line about what happened.
    """

    def __init__(
        self, holdings: Holdings, identity: Identity | None, log: Callable[[str], None]
    ) -> None:
        self._holdings = holdings
        self._identity = identity
        self._log = log
        self._seen = Seen()
        self._orders: dict[str, Callable[[Message], dict[str, Any]]] = {
            "plan": self._plan,
            "begin": self._begin,
            "chunk": self._chunk,
            "finish": self._finish,
            "load": self._load,
            "unload": self._unload,
        }

    def obey(self, frame: bytes, epoch: int, counts: Counts) -> bytes:
        """Carry out an order and return the answer's frame.

        Args:
            frame: what came.
            epoch: of this worker's process.
            counts: where orders are counted.

        Raises:
            FrameError: not an order, or one for another process, or one that came before.
        """
        message = unpack(frame)
        if message.epoch != epoch:
            raise FrameError("epoch", "it is for another process of this name")
        if not self._seen.fresh(message.session, message.sequence):
            raise FrameError("replayed", "it came before")
        name = message.table.get("order")
        try:
            if not isinstance(name, str) or name not in self._orders:
                raise UsageError(f"there is no order {name!r}: is this worker older?")
            answer = {"ok": True, **self._orders[name](message)}
        except VitletError as error:
            counts.add("orders_refused")
            answer = {"ok": False, "error": str(error), "kind": type(error).__name__}
        except (KeyError, TypeError, ValueError) as error:
            counts.add("orders_refused")
            answer = {"ok": False, "error": f"a senseless order {name}: {error!r}", "kind": ""}
        if not answer["ok"]:
            self._log(f"an order was refused: {answer['error']}")
        return pack(Message(answer, epoch=epoch))

    def check(self, plan: Plan, proof: Mapping[str, str]) -> None:
        """Refuse a plan that no coordinator on the roster signed; without a roster take any.

        Raises:
            CorruptInputError: as said.
        """
        if self._identity is None:
            return
        if not proof.get("signature"):
            raise CorruptInputError("the plan is not signed: start the coordinator with --keys")
        certificate, signature = proof.get("certificate", ""), proof["signature"]
        who = check_signature(self._identity, certificate, signature, canonical(plan.hash))
        self._log(f"accepted plan {plan.hash[:12]} from {who}")

    def _plan(self, message: Message) -> dict[str, Any]:
        plan = Plan.from_json(message.table["plan"])
        proof = {key: str(message.table.get(key, "")) for key in ("certificate", "signature")}
        self.check(plan, proof)
        self._holdings.add_plan(plan, proof)
        return {}

    def _begin(self, message: Message) -> dict[str, Any]:
        return {"held": self._holdings.cache.begin(self._sha256(message), message.data)}

    def _chunk(self, message: Message) -> dict[str, Any]:
        name, offset = message.table["name"], message.table["offset"]
        if type(name) is not str or type(offset) is not int:
            raise TypeError("name and offset")
        held = self._holdings.cache.write(self._sha256(message), name, offset, message.data)
        return {"held": held}

    def _finish(self, message: Message) -> dict[str, Any]:
        self._holdings.cache.finish(self._sha256(message))
        return {}

    def _load(self, message: Message) -> dict[str, Any]:
        self._holdings.load(*_which(message))
        return {}

    def _unload(self, message: Message) -> dict[str, Any]:
        self._holdings.unload(*_which(message))
        return {}

    def _sha256(self, message: Message) -> str:
        return self._holdings.sha256(*_which(message))


def _which(message: Message) -> tuple[str, int]:
    plan, slot = message.table["plan"], message.table["slot"]
    if type(plan) is not str or type(slot) is not int:
        raise TypeError("plan and slot")
    return plan, slot
