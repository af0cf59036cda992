"""Compares a source with an artefact layer by layer, for one input.

The source is a torch graph or another compiled file. Its tensors are paired with the artefact's by
content (`vitlet.export.pairing`); a row stands for a torch module's output, or for a tensor where
there are no modules. Noise is counted as power over the signal's: what a layer adds is the noise of
its output less that of its noisiest input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitlet.export.cases import Case
from vitlet.export.compare import compare
from vitlet.export.feed import feed
from vitlet.export.firstbad import first_bad
from vitlet.export.half import HALF_MAX
from vitlet.export.pairing import Pairing, Step, distance, movement, nearest, pair, run_source
from vitlet.export.result import ArtifactResult, LayerRow
from vitlet.export.trace import trace
from vitlet.export.traces import artifact_steps
from vitlet.layers.fused_mixer import fuse_mixers
from vitlet.layers.spelled_out import spell_out
from vitlet.runtime.manifest import Artifact

if TYPE_CHECKING:
    from vitlet.export.truth import Truth

FIRST, MOST = "first bad", "most error"


def look_inside(
    path: Path,
    artifact: Artifact,
    result: ArtifactResult,
    truth: Truth,
    cases: Sequence[Case],
    *,
    layers: bool,
) -> ArtifactResult:
    """Add the first wrong layer of a failed artefact, and with `layers` a row per layer.

    The case that is furthest off shows the error best. Returns the result as it was where the
    artefact did not run or there is no source to look into.

    Raises:
        MissingDependencyError: what traces the artefact is not installed.
    """
    ran = [case for case in result.cases if case.batch == 1]
    worst = min(ran, key=lambda case: (case.cosine, -case.relative), default=None)
    case = next((case for case in cases if worst and case.name == worst.name), None)
    given = None if case is None else feed(case, artifact, truth)
    if case is None or given is None:
        return result
    steps = _source_steps(artifact, truth, case)
    if not steps:
        return result
    inside = artifact_steps(path, artifact, {artifact.inputs[0].name: given})
    held = [(step.name, step.value) for step in inside]
    other = next((c for c in cases if c is not case and feed(c, artifact, truth) is not None), None)
    moved = movement(steps, _source_steps(artifact, truth, other)) if other else None
    pairing = pair(steps, held, artifact.precision, moved)
    found = first_bad(steps, held, pairing)
    rows = layer_rows(steps, inside, pairing, found.node if found else "") if layers else ()
    bad = found if result.status == "failed" else None
    return replace(result, first_bad=bad, layers=rows, layers_case=case.name)


def _source_steps(artifact: Artifact, truth: Truth, case: Case) -> list[Step]:
    if truth.reference is not None:
        return truth.reference.steps(artifact.graph, case)
    graph = truth.graphs.get(artifact.graph)
    if graph is None:
        return []
    if artifact.target == "tvm":  # there a mixer is one function, with nothing to see inside
        graph = replace(graph, module=fuse_mixers(graph.module, "fp32"))
    elif artifact.target == "coreml":
        graph = replace(graph, module=spell_out(graph.module))
    return run_source(trace(graph, 1), case.floats(truth.wanted))


def layer_rows(
    steps: Sequence[Step], inside: Sequence[Step], pairing: Pairing, bad: str = ""
) -> tuple[LayerRow, ...]:
    """Return a row per layer in the source's order.

    Args:
        steps: of the source.
        inside: of the artefact.
        pairing: of the two.
        bad: name of the first wrong step, or "".
    """
    rows: dict[str, LayerRow] = {}
    noise: dict[str, float] = {}
    free = [index for index in range(len(inside)) if index not in pairing.taken]
    last = -1
    for step in steps:
        incoming = max((noise.get(name, 0.0) for name in step.before), default=0.0)
        noise[step.name] = incoming
        if step.given:
            continue
        key = step.module or f"({step.name})"
        before = rows.get(key)
        partner = pairing.partner.get(step.name)
        agrees = step.name in pairing.sound
        if partner is None and not agrees:
            partner = _stand_in(step, inside, free, last)
            if partner is not None:
                free.remove(partner)
        if partner is None or (step.moves_only and before is not None and before.tensor):
            if before is None and not step.moves_only:
                rows[key] = LayerRow(step.module, step.op, step.name, "")
            continue
        last = max(last, partner)
        row = _compared(step, inside[partner], agrees)
        noise[step.name] = 10 ** (-(row.snr_db or 0.0) / 10)
        added = (before.added if before else 0.0) + max(0.0, noise[step.name] - incoming)
        mark = FIRST if bad == step.name or (before and before.mark) else ""
        rows.pop(key, None)  # a layer stands where its last output is computed
        rows[key] = replace(row, added=added, mark=mark)
    made = [*rows.values()]
    # Behind the first wrong layer every figure is that layer's doing.
    first = next((index for index, row in enumerate(made) if row.mark), len(made))
    own = [row for row in made[: first + 1] if row.agrees or row.mark]
    most = max(own, key=lambda row: row.added, default=None)
    if most is not None and most.added > 0:
        mark = f"{most.mark}, {MOST}" if most.mark else MOST
        made[made.index(most)] = replace(most, mark=mark)
    return tuple(made)


def _stand_in(step: Step, inside: Sequence[Step], free: Sequence[int], last: int) -> int | None:
    """Return the tensor that a wrong step has probably become.

    By name; else the next of its size after those found so far, of the same operator if there is
    one; else the nearest in content.
    """
    fitting = [index for index in free if inside[index].value.size == step.value.size]
    kind = step.op.removeprefix("aten.").split(".")[0]

    def rank(index: int) -> tuple[bool, bool, bool, float]:
        other = inside[index]
        same = other.op.lower() in kind or kind in other.op.lower()
        behind = index <= last
        order = distance(step.value, other.value) if behind else float(index)
        return other.name != step.name, behind, not same, order

    return min(fitting, key=rank, default=None)


def _compared(step: Step, other: Step, agrees: bool) -> LayerRow:
    want, got = nearest(step.value, other.value), other.value.ravel()
    figures = compare(want[None], got[None].astype(np.float64))
    finite = got[np.isfinite(got)]
    largest = float(np.abs(finite).max(initial=0.0))
    return LayerRow(
        step.module,
        step.op,
        step.name,
        other.name,
        figures.cosine,
        figures.snr_db,
        figures.max_abs,
        float(finite.min()) if finite.size else None,
        float(finite.max()) if finite.size else None,
        HALF_MAX / largest if largest else None,
        agrees=agrees,
    )
