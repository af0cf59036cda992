"""Finds the first layer at which a compiled artefact leaves its source.

The source graph is run node by node in torch, the artefact with every intermediate tensor kept, and
the two are paired by content (`vitlet.export.pairing`). A node without a partner is hidden by
fusion if something that is computed from it has one; the first bad node is the earliest that has
neither a partner nor a descendant with one, while the artefact does hold a tensor of that size that
belongs to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from vitlet.export.pairing import Named, Pairing, Step, distance
from vitlet.export.result import FirstBad


def first_bad(steps: Sequence[Step], held: Sequence[Named], pairing: Pairing) -> FirstBad | None:
    """Return the first diverging step of a source that was paired with an artefact."""
    after = ""
    for step in steps:
        if step.name in pairing.sound:
            after = (step.name in pairing.partner and step.module) or after
            continue
        if step.given:
            continue
        free = [i for i in pairing.by_size.get(step.value.size, []) if i not in pairing.taken]
        if not free and step is not steps[-1]:
            continue  # fused away: the artefact holds nothing of this size that could be it
        errors = [distance(step.value, held[i][1]) for i in free]
        # Names survive in ONNX often enough to be believed over the nearest content.
        named = [distance(step.value, held[i][1]) for i in free if held[i][0] == step.name]
        hidden = _hidden(step, steps, pairing)
        guilty = step
        if step.moves_only:
            # Only what computes can be wrong; what it computes is seen here for the first time.
            guilty = next((h for h in reversed(hidden) if not h.moves_only), step)
        others = {h.module for h in hidden if h.name not in pairing.sound} - {guilty.module, ""}
        listed = ", ".join(sorted(others)[:4])
        note = f"or {listed}, merged with it by the compiler" if others else ""
        return FirstBad(
            guilty.module,
            guilty.op,
            guilty.name,
            tuple(int(size) for size in guilty.value.shape),
            min(named or errors, default=None),
            after,
            note,
        )
    return None


def _hidden(bad: Step, steps: Sequence[Step], pairing: Pairing) -> list[Step]:
    """Return the unpaired steps between the last paired ones and the bad one, in order."""
    by_name = {step.name: step for step in steps}
    seen = {bad.name}
    front = list(bad.before)
    while front:
        name = front.pop()
        if name in seen or name in pairing.partner or by_name[name].given:
            continue
        seen.add(name)
        front += by_name[name].before
    return [step for step in steps if step.name in seen and step is not bad]
