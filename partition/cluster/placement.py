"""Which worker should load which slot now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitlet.partition.cluster.members import Member
from vitlet.partition.plan import Plan


@dataclass(frozen=True)
class Placing:
    """A slot that a worker should load, and why."""

    slot: int
    member: Member
    why: str


def place(
    plan: Plan,
    members: Sequence[Member],
    loading: Mapping[tuple[str, int], int],
    refused: Mapping[tuple[str, int], int],
    homeless: frozenset[int],
) -> list[Placing]:
    """Return what is to be loaded.

    A worker that the plan names for a slot gets it. A slot whose named workers are all absent, and
    have been for long enough, goes to the worker with the most room that has not refused it.

    Args:
        plan: the plan.
        members: the workers that are present.
        loading: (device, slot) -> epoch, of what is under way.
        refused: (device, slot) -> epoch, of what was tried and failed.
        homeless: slots that nobody has held for long enough to give up waiting.
    """
    found: list[Placing] = []
    room = {member.device: member.room(plan.slots) for member in members}
    for (device, index), _ in loading.items():
        if device in room:
            room[device] -= plan.slots[index].memory

    def can(member: Member, index: int) -> bool:
        key = member.device, index
        return (
            index not in member.ready
            and loading.get(key) != member.epoch
            and refused.get(key) != member.epoch
            and room[member.device] >= plan.slots[index].memory
        )

    def take(member: Member, index: int, why: str) -> None:
        found.append(Placing(index, member, why))
        room[member.device] -= plan.slots[index].memory

    for slot in plan.slots:
        named = frozenset(slot.devices)
        for member in members:
            if member.device in named and can(member, slot.index):
                take(member, slot.index, "as planned")
    for slot in plan.slots:
        taken = any(p.slot == slot.index for p in found)
        held = any(slot.index in member.ready for member in members)
        here = {member.device for member in members}
        under_way = any(index == slot.index and device in here for device, index in loading)
        if taken or held or under_way or slot.index not in homeless:
            continue
        fitting = [member for member in members if can(member, slot.index)]
        if fitting:
            best = max(fitting, key=lambda member: (room[member.device], member.device))
            take(best, slot.index, f"{', '.join(slot.devices)} absent")
    return found
