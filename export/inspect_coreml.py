"""Checks a Core ML program by reading it; `vitlet.export.coreml_check` executes it besides.

What is proved: the interface; that pixels are scaled and normalized exactly once, as the model
wants; that every weight is the source's, element by element, and none is missing; that the weights
sit in the same order in the data flow; that convolutions, normalizations and GELUs have the
source's settings; and that the traced graph itself, run in torch, gives the golden outputs. Where
that is all, the result says "program inspected, not executed".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitlet.errors import MissingDependencyError, VitletError
from vitlet.export.cases import Case
from vitlet.export.compare import compare
from vitlet.export.coreml_program import Program, read_program
from vitlet.export.coreml_weights import Matching, match_weights
from vitlet.export.feed import telling_cases
from vitlet.export.result import INSPECTED, NOT_RUN, ArtifactResult, Check
from vitlet.export.tolerance import EXACT, INT8
from vitlet.runtime.manifest import Artifact

if TYPE_CHECKING:
    import torch

    from vitlet.export.coreml_source import SourceFacts
    from vitlet.export.trace import Graph
    from vitlet.export.truth import Truth

_LISTED = 3  # weights named in a message
_HALF_MAX = 65504.0  # the largest float16


def inspect(path: Path, artifact: Artifact, truth: Truth, cases: Sequence[Case]) -> ArtifactResult:
    """Check a package against its manifest entry and, where `truth.graphs` is there, the source.

    Without the source (a bundle that is verified on a device) the weights are covered by the
    bundle's checksums and by what the export found; the result says so.
    """
    head = (artifact.target, artifact.graph, artifact.file, artifact.precision)
    try:
        program = read_program(path)
    except MissingDependencyError as error:
        return ArtifactResult(*head, "not run", NOT_RUN, reasons=(str(error),))
    except VitletError as error:
        return ArtifactResult(*head, "failed", INSPECTED, reasons=(str(error),))
    checks = [
        _interface(program, artifact),
        _preprocessing(program, artifact, truth),
        _finite(program),
        _operations(program),
    ]
    if truth.labels is not None and program.labels is not None:
        same = list(program.labels) == list(truth.labels)
        detail = f"{len(program.labels)} labels" if same else "the labels differ from the source's"
        checks.append(Check("labels", same, detail))
    warnings: list[str] = []
    figures: dict[str, float] = {}
    graph = truth.graphs.get(artifact.graph)
    if truth.reference is not None:
        warnings.append("weights not compared: the truth is a file, not the model")
    elif graph is None:
        kept = artifact.verification.get("status", "not run")
        warnings.append(
            "weights not compared here, for want of the source model; the bundle's checksums tie "
            f"them to the file that was checked at export (then: {kept})"
        )
    else:
        checks += _against_source(program, graph, artifact, truth, cases, figures)
    reasons = tuple(f"{check.name}: {check.detail}" for check in checks if not check.passed)
    return ArtifactResult(
        *head,
        "failed" if reasons else "passed",
        INSPECTED,
        _reader(),
        reasons,
        tuple(warnings),
        figures,
        tuple(checks),
    )


def _reader() -> str:
    import importlib.metadata

    return f"coremltools {importlib.metadata.version('coremltools')} reader"


def _interface(program: Program, artifact: Artifact) -> Check:
    """Compare names, dtypes and shapes with the manifest."""
    problems = []
    for side, ours, theirs in (
        ("input", artifact.inputs, program.inputs),
        ("output", artifact.outputs, program.outputs),
    ):
        # Core ML may have more outputs (the class label of a classifier), never more inputs.
        held = {spec.name: spec for spec in theirs}
        if side == "input" and set(held) != {spec.name for spec in ours}:
            problems.append(f"the inputs are {', '.join(held)}")
        for spec in ours:
            got = held.get(spec.name)
            if got is None:
                problems.append(f"no {side} {spec.name}")
            elif side == "input" and got.shape[1:] != spec.shape[1:]:
                problems.append(f"{side} {spec.name} has shape {got.shape}, not {spec.shape}")
            elif side == "output" and got.shape and got.shape[1:] != spec.shape[1:]:
                problems.append(f"{side} {spec.name} has shape {got.shape}, not {spec.shape}")
            elif got.dtype != spec.dtype:
                problems.append(f"{side} {spec.name} is {got.dtype}, not {spec.dtype}")
    shown = [f"{s.name} {s.dtype} {s.shape}" for s in (*program.inputs, *program.outputs)]
    return Check("interface", not problems, "; ".join(problems or shown))


def _preprocessing(program: Program, artifact: Artifact, truth: Truth) -> Check:
    """Check that the program normalizes its input exactly as often as it should: once or never."""
    name = "preprocessing"
    picture = artifact.preprocess == "image-type"
    if picture != (program.colour is not None):
        what = "a picture" if program.colour else "an array"
        return Check(name, False, f"the program takes {what}, its entry says {artifact.preprocess}")
    if program.inputs and program.inputs[0].dtype.startswith("int"):
        return Check(name, True, "token ids go in as they are")
    if program.affine is None:
        return Check(name, False, "the input goes through something else than scale and bias")
    scale, shift = program.affine
    channels = len(scale)
    wanted_scale, wanted_shift = np.ones(channels), np.zeros(channels)
    if picture:
        spec = truth.wanted
        if spec is None:
            return Check(name, False, "nothing is known of the source's preprocessing")
        colour = "RGB" if spec.mode == "RGB" else "GRAYSCALE"
        if program.colour != colour:
            return Check(name, False, f"the picture is {program.colour}, the source takes {colour}")
        std = np.asarray(spec.std)
        wanted_scale, wanted_shift = 1 / (255 * std), -np.asarray(spec.mean) / std
    # float16 constants; the bias is compared on the scale of normalized values.
    scale_off = np.abs(scale - wanted_scale) / wanted_scale
    shift_off = np.abs(shift - wanted_shift)
    room = 2e-3 * np.maximum(1.0, np.abs(wanted_shift))
    good = bool((scale_off <= 2e-3).all() and (shift_off <= room).all())
    shown = f"x * {_numbers(scale)} + {_numbers(shift)}"
    if not good:
        shown += f", the source takes x * {_numbers(wanted_scale)} + {_numbers(wanted_shift)}"
    return Check(name, good, f"{program.colour} picture, {shown}" if picture else shown)


def _numbers(values: NDArray[np.float64]) -> str:
    return "[" + ", ".join(f"{value:.5g}" for value in values[:3]) + "]"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _finite(program: Program) -> Check:
    bad = [w.name for w in program.weights if not np.isfinite(w.values).all()]
    detail = f"NaN or infinity in {_some(bad)}" if bad else f"{len(program.weights)} weights"
    return Check("finite weights", not bad, detail)


def _operations(program: Program) -> Check:
    listed = ", ".join(f"{count} {name}" for name, count in program.histogram.items())
    return Check("operations", bool(program.operations), listed)


def _against_source(
    program: Program,
    graph: Graph,
    artifact: Artifact,
    truth: Truth,
    cases: Sequence[Case],
    figures: dict[str, float],
) -> list[Check]:
    from vitlet.export.coreml_source import source_facts
    from vitlet.export.trace import trace
    from vitlet.layers.spelled_out import spell_out

    graph = replace(graph, module=spell_out(graph.module))
    traced = trace(graph, 1)
    facts = source_facts(traced)
    spec = truth.wanted
    weights = program.weights
    if artifact.preprocess == "image-type" and spec is not None:
        # The normalization's own constants are not the source's; `_preprocessing` saw to them.
        weights = tuple(w for w in weights if not _is_normalization(program, w.users))
    found = match_weights(weights, facts.tensors, facts.scalars)
    figures["weights"] = float(len(found.pairs))
    figures["weight_error"] = found.worst
    known = len(found.pairs) + len(found.strange)
    figures["strange"] = len(found.strange) / max(known, 1)
    return [
        *_weight_checks(found, facts, artifact.precision),
        _order(found, replace(program, weights=weights), facts),
        _layers(program, facts),
        *_traced(graph, artifact, truth, cases),
        *(_activations(traced, truth, cases) if artifact.precision != "fp32" else ()),
    ]


def _is_normalization(program: Program, users: tuple[int, ...]) -> bool:
    """Tell whether a constant belongs to the multiplications and additions before anything else."""
    first = next(
        (
            index
            for index, kind in enumerate(program.operations)
            if kind not in ("mul", "add", "sub", "real_div", "cast")
            and not kind.startswith("constexpr_")
        ),
        0,
    )
    return bool(users) and max(users) < first


def _weight_checks(found: Matching, facts: SourceFacts, precision: str) -> list[Check]:
    strange = [f"{name} ({why})" for name, why in found.strange.items()]
    detail = f"{len(found.pairs)} match, largest relative error {found.worst:.1e}"
    large = [
        name
        for name, source in facts.tensors.items()
        if precision != "fp32"
        and source.roots == (name,)
        and np.abs(source.values).max(initial=0) > _HALF_MAX
    ]
    checks = [
        Check("weights", not strange, f"not the source's: {_some(strange)}" if strange else detail),
        Check(
            "all weights used",
            not found.unused,
            f"missing: {_some(found.unused)}" if found.unused else "every source tensor is there",
        ),
    ]
    if large:
        checks.append(Check("float16 range", False, f"too large for float16: {_some(large)}"))
    return checks


def _order(found: Matching, program: Program, facts: SourceFacts) -> Check:
    """Compare which weight lies upstream of which, in the program and in the source.

    Two layers of the same shape that changed places have all the right weights.
    """
    place_there = {w.name: w.users for w in program.weights}
    names, theirs, ours = [], [], []
    taken: dict[str, int] = {}
    for parts in found.pairs.values():
        taken[parts[0]] = taken.get(parts[0], 0) + 1
    for weight, parts in found.pairs.items():
        source = facts.tensors[parts[0]]
        users = (place_there[weight], source.users)
        # Equal tensors and shared ones have no place of their own.
        if len(parts) == 1 and taken[parts[0]] == 1 and len(users[0]) == len(users[1]) == 1:
            if source.values.size > 1 and source.values.std() > 0:
                names.append(parts[0])
                theirs.append(users[0][0])
                ours.append(users[1][0])
    before, after = _reach(facts.feeds, ours), _reach(program.feeds, theirs)
    for i, name in enumerate(names):
        for j in range(len(names)):
            if ours[i] != ours[j] and theirs[i] != theirs[j]:
                if before[i] >> j & 1 and after[j] >> i & 1:
                    return Check("order", False, f"{names[j]} comes before {name}")
    return Check("order", True, f"{len(names)} weights in the source's order")


def _reach(feeds: dict[int, tuple[int, ...]], places: list[int]) -> list[int]:
    """Return, per weight, a bit set of the weights that are used downstream of it."""
    at: dict[int, int] = {}
    for bit, place in enumerate(places):
        at[place] = at.get(place, 0) | 1 << bit
    below: dict[int, int] = {}
    for node in sorted(feeds, reverse=True):  # numbers are in topological order
        mask = 0
        for user in feeds[node]:
            mask |= below.get(user, 0) | at.get(user, 0)
        below[node] = mask
    return [below.get(place, 0) for place in places]


def _layers(program: Program, facts: SourceFacts) -> Check:
    """Compare the settings of convolutions, layer normalizations and GELUs."""
    problems = []
    lost = facts.convolutions - program.convolutions
    extra = program.convolutions - facts.convolutions
    if lost or extra:
        for what, items in (("missing", lost), ("unknown", extra)):
            for item in list(items)[:1]:
                weight, stride, pad, dilation, groups = item
                problems.append(
                    f"{what} convolution {weight} stride {stride} pad {pad} dilation {dilation} "
                    f"groups {groups}"
                )
    if len(facts.norms) == len(program.norms):
        # float16 holds an epsilon of 1e-6 with 17 steps only.
        if not np.allclose(facts.norms, program.norms, rtol=4e-2, atol=0):
            problems.append(f"layer norm epsilon {program.norms[0]:g}, not {facts.norms[0]:g}")
    elif program.norms or facts.norms:
        problems.append(f"{len(program.norms)} layer norms, not {len(facts.norms)}")
    if program.gelus != facts.gelus:
        problems.append(f"GELUs {sorted(set(program.gelus))} x {len(program.gelus)}")
    detail = (
        f"{sum(facts.convolutions.values())} convolutions, {len(facts.norms)} layer norms and "
        f"{len(facts.gelus)} GELUs set as in the source"
    )
    return Check("layers", not problems, "; ".join(problems) or detail)


def _traced(graph: Graph, artifact: Artifact, truth: Truth, cases: Sequence[Case]) -> list[Check]:
    """Run the deployable graph in torch on the cases: the program was made from it."""
    import torch

    if not cases:
        return []
    worst, relative = 1.0, 0.0
    for case in cases:
        with torch.no_grad():
            output = graph.module(torch.from_numpy(case.floats(truth.wanted)))
        metrics = compare(case.output, output.float().numpy())
        worst, relative = min(worst, metrics.cosine), max(relative, metrics.relative)
    # Layers that round flip a step where sums come in another order.
    limits = INT8 if artifact.details.get("arithmetic") == "int8" else EXACT
    good = worst >= limits.cosine and relative <= limits.rel
    detail = f"in torch: cosine {worst:.7f}, relative error {relative:.1e} over {len(cases)} cases"
    return [Check("the graph it was made from", good, detail)]


def _activations(
    program: torch.export.ExportedProgram, truth: Truth, cases: Sequence[Case]
) -> list[Check]:
    """Check that no value inside leaves float16's range, for inputs that a device can meet."""
    from vitlet.export.pairing import run_source

    largest, place = 0.0, ""
    for case in telling_cases(cases):
        for step in run_source(program, case.floats(truth.wanted)):
            # Masks put minus infinity into attention scores on purpose.
            values = np.where(np.isneginf(step.value), 0, np.abs(step.value))
            top = float(values.max(initial=0.0))
            if not top <= largest:
                largest, place = top, f"{step.module or 'the top'} ({step.name})"
    if not place:
        return []
    detail = f"largest value {largest:.3g}, at {place}; float16 ends at {_HALF_MAX:g}"
    return [Check("float16 activations", largest <= _HALF_MAX, detail)]
