"""Runs an artefact on the cases, at batch 1 and 2, and compares."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitlet.errors import MissingDependencyError, ShapeError, UnsupportedError, VitletError
from vitlet.export.cases import Case
from vitlet.export.compare import best_agree, compare, differences, neighbour_scores
from vitlet.export.feed import answers, feed, feeds_of, gives_probabilities
from vitlet.export.result import EXECUTED, NOT_RUN, ArtifactResult, CaseResult, Status
from vitlet.export.tolerance import Tolerance
from vitlet.runtime.batching import BatchSizes, run_batched
from vitlet.runtime.engine import Engine
from vitlet.runtime.manifest import Artifact
from vitlet.runtime.select import open_engine

if TYPE_CHECKING:
    from vitlet.export.truth import Truth

_ENGINES = {"onnx": "onnxruntime", "tvm": "tvm", "coreml": "coreml"}
_PAIRS = 3  # of cases run at batch 2; one where batch 2 is two calls anyway
WEAK_SPREAD = 1e-3
_LEAST_DIFF = 0.2
_TOP = 5


def runs_here(artifact: Artifact) -> str:
    """Return why the artefact cannot run on this machine, or ""."""
    triple = str(artifact.details.get("triple", ""))
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(
        triple.split("-")[0], triple.split("-")[0]
    )
    here = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower())
    here = here or platform.machine().lower()
    if machine and machine != here:
        return f"compiled for {triple}, this machine is {here}: verify it there"
    return ""


def execute(
    path: Path,
    artifact: Artifact,
    truth: Truth,
    cases: Sequence[Case],
    limits: Tolerance,
    accelerate: bool = False,
    engine: Engine | None = None,
) -> ArtifactResult:
    """Run every case and judge.

    A file that cannot be loaded or run at all is a failed artefact, not an exception; a runtime
    that is not installed leaves it "not run". With `accelerate`, operators of vitlet run in its
    kernels; without, from their definitions. `engine` is the artefact where it is open already.
    """
    head = (artifact.target, artifact.graph, artifact.file, artifact.precision)
    try:
        if engine is None:
            engine = open_engine(_ENGINES[artifact.target], path, artifact, 1, accelerate)
    except MissingDependencyError as error:
        return ArtifactResult(*head, "not run", NOT_RUN, reasons=(str(error),))
    except VitletError as error:
        return ArtifactResult(*head, "failed", EXECUTED, reasons=(str(error),))
    name = f"{engine.name} {engine.version}"
    if artifact.custom_ops:
        with_kernels = getattr(engine, "kernels", "none") == "library"
        name += f" {'with' if with_kernels else 'without'} vitlet's kernels"
    try:
        usable, outputs, results = _run_cases(
            engine, artifact, truth, answers(cases, artifact), limits
        )
    except VitletError as error:
        return ArtifactResult(*head, "failed", EXECUTED, name, reasons=(str(error),))
    expected = np.concatenate([case.output for case in usable])
    actual = np.concatenate(outputs)
    reasons = _failures(results, limits)
    figures = _worst(results)
    single = [result for result in results if result.batch == 1]
    votes = [result.top1 for result in single if result.top1 is not None]
    if votes:
        figures["top1"] = sum(votes) / len(votes)
        if figures["top1"] < limits.top1:
            reasons.append(f"top-1 agrees on {figures['top1']:.0%}, the limit is {limits.top1:.0%}")
    warnings = _sensitivity(usable, expected, actual, limits, figures, reasons)
    if artifact.target == "onnx" and artifact.precision == "fp16":
        _half_range(path, artifact, truth, usable, reasons, warnings)
    status: Status = "failed" if reasons else "passed"
    return ArtifactResult(
        *head,
        status,
        EXECUTED,
        name,
        tuple(reasons),
        tuple(warnings),
        figures,
        (),
        limits.to_json(),
        tuple(results),
    )


def _run_cases(
    engine: Engine,
    artifact: Artifact,
    truth: Truth,
    cases: Sequence[Case],
    limits: Tolerance,
) -> tuple[list[Case], list[NDArray[np.float32]], list[CaseResult]]:
    sizes = BatchSizes.of(artifact.inputs, artifact)
    given, taken = artifact.inputs[0].name, artifact.outputs[0].name

    def run(array: NDArray[Any]) -> NDArray[np.float32]:
        outputs = run_batched(engine.run, sizes, {given: array})
        if taken not in outputs:
            raise ShapeError(f"the artefact gives {', '.join(outputs)}, expected {taken}")
        array = outputs[taken].astype(np.float32)
        return array.reshape(len(array), -1) if array.ndim else array

    pairs = [(case, feed(case, artifact, truth)) for case in cases]
    usable = [(case, array) for case, array in pairs if array is not None]
    if not usable:
        raise UnsupportedError(f"no case can be fed to {artifact.file}: {artifact.inputs[0]}")
    outputs = [run(array) for _, array in usable]
    for (case, _), output in zip(usable, outputs, strict=True):
        if output.shape != case.output.shape:
            raise ShapeError(
                f"the output for {case.name} has shape {output.shape}, expected {case.output.shape}"
            )
    agree = _agreement([case for case, _ in usable], outputs, artifact, truth, limits)
    results = [
        _result(case.name, case.output, output, top1, limits, artifact, truth, case.kind == "real")
        for (case, _), output, top1 in zip(usable, outputs, agree, strict=True)
    ]
    together = sizes.high is None or sizes.high >= 2
    # First real with real, then unlike inputs, so that rows which leak into each other show.
    mixed = [(0, 1), (0, len(usable) - 1), (len(usable) // 2, 1)]
    for first, second in mixed[: _PAIRS if together else 1]:
        if len(usable) < 2:
            break
        (one, left), (two, right) = usable[first], usable[second]
        output = run(np.concatenate([left, right]))
        expected = np.concatenate([one.output, two.output])
        if output.shape != expected.shape:
            raise ShapeError(f"at batch 2 the output has shape {output.shape}")
        label = f"{one.name}+{two.name}"
        results.append(_result(label, expected, output, None, limits, artifact, truth, False))
    return [case for case, _ in usable], outputs, results


def _agreement(
    cases: Sequence[Case],
    outputs: Sequence[NDArray[np.float32]],
    artifact: Artifact,
    truth: Truth,
    limits: Tolerance,
) -> list[bool | None]:
    """Tell per case whether the best class (or nearest prompt, or nearest other case) agrees."""
    expected = np.concatenate([case.output for case in cases])
    actual = np.concatenate(outputs)
    scores: tuple[NDArray[Any], NDArray[Any]]
    if artifact.graph == "model":
        scores = expected, actual
    elif artifact.graph == "image" and truth.prompts is not None:
        table = truth.prompts[1]
        scores = expected @ table.T, np.nan_to_num(actual) @ table.T
    elif len(cases) > 2:
        scores = neighbour_scores(expected), neighbour_scores(actual)
    else:
        return [None] * len(cases)
    agreed = best_agree(scores[0], scores[1], max(1e-5, limits.noise))
    return [bool(value) for value in agreed & np.isfinite(actual).all(axis=1)]


def _result(
    name: str,
    expected: NDArray[np.float32],
    actual: NDArray[np.float32],
    top1: bool | None,
    limits: Tolerance,
    artifact: Artifact,
    truth: Truth,
    guesses: bool,
) -> CaseResult:
    metrics = compare(expected, actual)
    passed = (
        metrics.cosine >= limits.cosine
        and metrics.relative <= limits.rel
        and (limits.max is None or metrics.max_abs <= limits.max)
        and not metrics.nonfinite
    )
    return CaseResult(
        name,
        len(expected),
        metrics.cosine,
        metrics.max_abs,
        metrics.relative,
        metrics.snr_db,
        metrics.nonfinite,
        top1,
        passed,
        _guesses(expected[0], artifact, truth) if guesses else (),
        _guesses(actual[0], artifact, truth) if guesses else (),
    )


def _guesses(
    output: NDArray[np.float32], artifact: Artifact, truth: Truth
) -> tuple[tuple[str, float], ...]:
    """Return the best classes with their probabilities; nothing for a bare embedding."""
    names: Sequence[str] | None = truth.labels
    values = output.astype(np.float64)
    if gives_probabilities(artifact):
        values = np.log(np.maximum(values, 1e-30))
    if artifact.graph != "model":
        if truth.prompts is None or artifact.graph != "image":
            return ()
        names, table, scale = truth.prompts
        values = scale * (table.astype(np.float64) @ values)
    if not np.isfinite(values).all():
        return ()
    scores = np.exp(values - values.max())
    scores /= scores.sum()
    best = np.argsort(-scores, kind="stable")[:_TOP]
    return tuple(
        (names[i] if names and i < len(names) else f"class {i}", float(scores[i])) for i in best
    )


def _worst(results: Sequence[CaseResult]) -> dict[str, float]:
    return {
        "cosine": min(result.cosine for result in results),
        "max_abs": max(result.max_abs for result in results),
        "relative": max(result.relative for result in results),
        "snr_db": min(result.snr_db for result in results),
        "cases": float(len(results)),
    }


def _failures(results: Sequence[CaseResult], limits: Tolerance) -> list[str]:
    """Return one line on the case that is furthest off, and how many there are."""
    failed = [result for result in results if not result.passed]
    if not failed:
        return []
    worst = max(failed, key=lambda r: (r.nonfinite, -r.cosine, r.relative))
    share = f"{len(failed)} of {len(results)} cases differ, " if len(failed) > 1 else ""
    most = ", most of all " if share else ""
    return [f"{share.rstrip(', ')}{most}{_why(worst, limits)}"]


def _why(result: CaseResult, limits: Tolerance) -> str:
    where = f"{result.name} (batch {result.batch})"
    if result.nonfinite:
        return f"{where}: {result.nonfinite} output values are NaN or infinite"
    if result.cosine < limits.cosine:
        return f"{where}: cosine {result.cosine:.6f}, the limit is {limits.cosine:g}"
    if result.relative > limits.rel:
        return f"{where}: relative error {result.relative:.2g}, the limit is {limits.rel:g}"
    return f"{where}: error {result.max_abs:.2g}, the limit is {limits.max:g}"


def _sensitivity(
    cases: Sequence[Case],
    expected: NDArray[np.float32],
    actual: NDArray[np.float32],
    limits: Tolerance,
    figures: dict[str, float],
    reasons: list[str],
) -> list[str]:
    """Compare how outputs move between inputs; add to figures and reasons, return warnings."""
    real = [index for index, case in enumerate(cases) if case.kind == "real"]
    chosen = real if len(real) > 1 else list(range(len(cases)))
    moved = differences(expected[chosen], actual[chosen])
    if moved is None:
        return ["weak proof: one input alone does not show that the output reacts to its input"]
    figures["spread"], figures["diff"] = moved.spread, moved.error
    # Rounding alone may move an output by `noise`; less than that cannot be asked for.
    floor = limits.noise / moved.spread if moved.spread > 0 else 1e9
    limit = max(limits.diff, floor)
    if moved.error > limit and np.isfinite(actual).all():
        reasons.append(
            f"the differences between outputs for different inputs are off by {moved.error:.2g} "
            f"of the largest, the limit is {limit:.2g}"
        )
    if moved.spread < WEAK_SPREAD or limit > max(limits.diff, _LEAST_DIFF):
        return [
            f"weak proof: the source's outputs differ by only {moved.spread:.1e} of their size "
            "between inputs (untrained weights do this), so a wrong input could go unnoticed"
        ]
    return []


def _half_range(
    path: Path,
    artifact: Artifact,
    truth: Truth,
    cases: Sequence[Case],
    reasons: list[str],
    warnings: list[str],
) -> None:
    """Look for float16 overflow inside the graph, for inputs that a device can meet."""
    from vitlet.export.onnx_trace import overflows

    possible = [case for case in cases if case.is_pixels or case.stored.dtype.kind == "i"]
    try:
        found = overflows(path, feeds_of(possible, artifact, truth))
    except MissingDependencyError as error:
        warnings.append(f"the inside was not checked for float16 overflow: {error}")
        return
    if found:
        more = f" (and {len(found) - 1} tensors after it)" if len(found) > 1 else ""
        tensor, case = next(iter(found.items()))
        reasons.append(
            f"{tensor} leaves the range of float16 for {case}: it holds NaN or infinity{more}; "
            "export this graph with precision fp32"
        )
