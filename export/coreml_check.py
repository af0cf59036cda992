"""Checks a Core ML program: read part by part, and executed operation by operation.

The program runs in vitlet's own executor: every result rounded to its declared type, which is what
the limits judge, and again in float32 on the stored weights, which tells a wrong program from one
that float16 harms. What reading finds (`vitlet.export.inspect_coreml`) is kept beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vitlet.errors import MissingDependencyError, UnsupportedError, UsageError, VitletError
from vitlet.export.cases import Case
from vitlet.export.execute import execute
from vitlet.export.feed import feeds_of, telling_cases
from vitlet.export.half import half_ranges, overflow_notes, underflow_notes
from vitlet.export.inspect_coreml import inspect
from vitlet.export.result import EXECUTED, ArtifactResult
from vitlet.export.tolerance import Tolerance
from vitlet.runtime.manifest import Artifact

if TYPE_CHECKING:
    from vitlet.export.truth import Truth
    from vitlet.runtime.coreml.engine import CoreMLEngine

_KEPT = ("cosine", "relative", "snr_db")  # figures of the float32 run that are worth a row
_NARROW = 2.0  # a tensor nearer to float16's end than this factor is worth a warning
_OWN = ("weights", "all weights used", "order", "layers")  # checks that suppose our own converter
_MANY = 0.1  # share of weights that another converter may have merged with something


def check_coreml(
    path: Path,
    artifact: Artifact,
    truth: Truth,
    cases: Sequence[Case],
    limits: Tolerance,
    stress: bool = False,
) -> ArtifactResult:
    """Read and execute a package and join what both find.

    A program that cannot be executed here (no torch, an operation that is not known) is judged by
    reading alone, and a warning says why.

    Args:
        path: the `.mlpackage` folder.
        artifact: its entry.
        truth: to compare with.
        cases: inputs with the right answers.
        limits: for the outputs.
        stress: also run with float16 sums, to warn of overflow on processors that keep them.
    """
    looked = inspect(path, artifact, truth, cases)
    if looked.status == "not run" or (looked.status == "failed" and not looked.checks):
        return looked
    try:
        if not cases:
            raise UsageError(f"there is no case for the graph {artifact.graph!r}")
        from vitlet.runtime.coreml.engine import CoreMLEngine

        rounded = CoreMLEngine(path, artifact, "declared")
        exact = CoreMLEngine(path, artifact, "fp32") if artifact.precision != "fp32" else None
    except (MissingDependencyError, UnsupportedError, UsageError) as error:
        return replace(looked, warnings=(f"not executed: {error}", *looked.warnings))
    except VitletError as error:
        return replace(looked, status="failed", reasons=(*looked.reasons, str(error)))
    ran = execute(path, artifact, truth, cases, limits, engine=rounded)
    reasons, warnings = [*ran.reasons], [*ran.warnings]
    figures = {**looked.figures, **ran.figures}
    if exact is not None:
        _in_float32(path, artifact, truth, cases, limits, exact, ran, figures, reasons)
        _half(artifact, truth, cases, exact, rounded, figures, reasons, warnings, stress)
    seen = _weigh(looked, artifact, ran, warnings)
    reasons = [*seen, *reasons]
    return replace(
        ran,
        status="failed" if reasons else "passed",
        method=EXECUTED,
        engine=f"{rounded.name} {rounded.version}",
        reasons=tuple(reasons),
        warnings=tuple((*warnings, *looked.warnings)),
        figures=figures,
        checks=looked.checks,
    )


def _in_float32(
    path: Path,
    artifact: Artifact,
    truth: Truth,
    cases: Sequence[Case],
    limits: Tolerance,
    exact: CoreMLEngine,
    ran: ArtifactResult,
    figures: dict[str, float],
    reasons: list[str],
) -> None:
    """Run without any rounding; say whose fault a difference is."""
    free = execute(path, artifact, truth, cases, limits, engine=exact)
    figures.update({f"{name}_fp32": free.figures[name] for name in _KEPT if name in free.figures})
    if free.status == "failed" and ran.status == "failed":
        reasons.append("the same in float32 on the stored weights: it is not float16's rounding")
    elif ran.status == "failed":
        reasons.append(
            f"in float32 the program is right (cosine {free.figures['cosine']:.6f}): rounding to "
            "float16 makes the difference; keep the operations that it harms in float32"
        )
    elif free.status == "failed":
        reasons += [f"in float32 on the stored weights: {reason}" for reason in free.reasons]


def _half(
    artifact: Artifact,
    truth: Truth,
    cases: Sequence[Case],
    exact: CoreMLEngine,
    rounded: CoreMLEngine,
    figures: dict[str, float],
    reasons: list[str],
    warnings: list[str],
    stress: bool,
) -> None:
    """Look for tensors that float16 cannot hold, for inputs that a device can meet."""
    feeds = feeds_of(telling_cases(cases), artifact, truth)
    if not feeds:
        return
    try:
        ranges = half_ranges(exact.executor, rounded.executor, feeds)
    except VitletError as error:
        reasons.append(f"the inside could not be checked for float16 overflow: {error}")
        return
    over = overflow_notes(ranges)
    reasons += over
    warnings += underflow_notes(ranges)
    halves = [entry for entry in ranges if entry.declared == "fp16"]
    nearest = min(halves, key=lambda entry: entry.headroom, default=None)
    if nearest is not None and nearest.largest > 0:
        figures["headroom"] = nearest.headroom
        if not over and nearest.headroom < _NARROW:
            warnings.append(
                f"{nearest.name} ({nearest.op}) comes near the end of float16's range for "
                f"{nearest.case}: {nearest.largest:.3g} of 65504"
            )
    if stress and not over:
        from vitlet.runtime.coreml import CoreMLExecutor
        from vitlet.runtime.coreml.engine import CoreMLEngine

        summed: CoreMLExecutor = CoreMLEngine(exact.path, artifact, "stress").executor
        notes = overflow_notes(half_ranges(exact.executor, summed, feeds), "stress")
        warnings += [f"may overflow on a device: {note}" for note in notes]


def _weigh(
    looked: ArtifactResult, artifact: Artifact, ran: ArtifactResult, warnings: list[str]
) -> list[str]:
    """Return the findings of reading that count as failures.

    Another tool may merge weights in ways that are not known here. Where many weights of its file
    look strange and the outputs are right, that is what happened; one strange weight is an error.
    """
    if artifact.toolchain or ran.status != "passed":
        return [*looked.reasons]
    many = looked.figures.get("strange", 0.0) > _MANY
    kept: list[str] = []
    for check in looked.checks:
        if check.passed:
            continue
        line = f"{check.name}: {check.detail}"
        if many and check.name in _OWN:
            warnings.append(f"read, not explained: {line}")
        else:
            kept.append(line)
    return kept
