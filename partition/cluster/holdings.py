"""What a worker has: plans it accepted, and slots that are loaded within its memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from vitlet.errors import BundleError, UsageError, VitletError
from vitlet.partition.cluster.cache import Cache
from vitlet.partition.cluster.frame import PLAN_BYTES
from vitlet.partition.cluster.loaded import LoadedSlot
from vitlet.partition.plan import Plan


class Holdings:
    """Plans and loaded slots of one worker.

    Args:
        cache: where plans and bundles lie.
        threads: threads for each sub-model.
        budget: bytes that loaded slots may take together, by their plans' predictions.
    """

    def __init__(self, cache: Cache, threads: int, budget: int) -> None:
        self.cache = cache
        self.budget = budget
        self._threads = threads
        self._lock = threading.RLock()
        self._plans: dict[str, Plan] = {}
        self._slots: dict[tuple[bytes, int], tuple[str, LoadedSlot]] = {}

    @property
    def taken(self) -> int:
        """Bytes that the loaded slots are predicted to take."""
        with self._lock:
            return sum(slot.memory for _, slot in self._slots.values())

    def restore(self, check: Callable[[Plan, Mapping[str, str]], None]) -> list[str]:
        """Load what was loaded before; return lines about what could not be.

        Args:
            check: raises a `VitletError` for a plan that is not to be trusted any more.
        """
        lines = []
        for plan, proof in self.cache.plans():
            try:
                check(plan, proof)
                self._plans[plan.hash] = plan
            except VitletError as error:
                lines.append(f"plan {plan.hash[:12]} is not taken up again: {error}")
        for hash_, index in self.cache.loaded():
            try:
                self.load(hash_, index)
            except VitletError as error:
                lines.append(f"slot {index} of plan {hash_[:12]} is not loaded again: {error}")
        return lines

    def add_plan(self, plan: Plan, proof: dict[str, str]) -> None:
        """Accept a plan, and keep it."""
        with self._lock:
            if plan.hash not in self._plans:
                self.cache.save_plan(plan, proof)
                self._plans[plan.hash] = plan

    def plan(self, hash_: str) -> Plan:
        """Return an accepted plan; raises UsageError."""
        with self._lock:
            if hash_ not in self._plans:
                raise UsageError(f"the plan {hash_[:12]} was not accepted here")
            return self._plans[hash_]

    def sha256(self, hash_: str, index: int) -> str:
        """Return the hash of a slot's bundle, as an accepted plan says it; raises UsageError."""
        plan = self.plan(hash_)
        if not 0 <= index < len(plan.slots):
            raise UsageError(f"plan {hash_[:12]} has no slot {index}")
        return plan.slots[index].sha256

    def load(self, hash_: str, index: int) -> None:
        """Load a slot whose bundle is here.

        Raises:
            UsageError: the plan was not accepted, or there is not enough memory.
            BundleError: the bundle is not here.
        """
        sha256 = self.sha256(hash_, index)
        plan = self.plan(hash_)
        key = bytes.fromhex(hash_)[:PLAN_BYTES], index
        with self._lock:
            if key in self._slots:
                return
            need = plan.slots[index].memory
            if need > self.budget - self.taken:
                raise UsageError(
                    f"slot {index} needs {need} bytes of memory, and {self.budget - self.taken} "
                    f"of {self.budget} are left"
                )
        bundle = self.cache.bundle(sha256)
        if bundle is None:
            raise BundleError(f"the bundle of slot {index} is not here")
        loaded = LoadedSlot(plan, index, bundle.path, self._threads)
        with self._lock:
            self._slots[key] = (hash_, loaded)
            self._save()

    def unload(self, hash_: str, index: int) -> None:
        """Free a slot; its bundle stays on the disk."""
        with self._lock:
            if self._slots.pop((bytes.fromhex(hash_)[:PLAN_BYTES], index), None) is not None:
                self._save()

    def get(self, plan: bytes, index: int) -> LoadedSlot | None:
        """Return a loaded slot by the plan's short hash."""
        with self._lock:
            found = self._slots.get((plan, index))
        return found[1] if found else None

    def to_json(self) -> list[dict[str, Any]]:
        """Return the loaded slots."""
        with self._lock:
            return [
                {"plan": hash_, "slot": index, "engine": slot.engine}
                for (_, index), (hash_, slot) in sorted(self._slots.items())
            ]

    def _save(self) -> None:
        self.cache.save_loaded((hash_, index) for (_, index), (hash_, _) in self._slots.items())
