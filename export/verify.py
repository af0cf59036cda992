"""Proves that compiled artefacts compute the source model's function, or says where they do not.

The truth is the bundle's golden file (a device without torch can check what it runs), a model that
is run afresh, or another compiled file. ONNX and TVM artefacts run in their runtimes, Core ML
programs in vitlet's own executor; these are read part by part, too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vitlet.errors import UsageError, VerificationError
from vitlet.export.cases import KINDS, Case
from vitlet.export.execute import execute, runs_here
from vitlet.export.result import NOT_RUN, ArtifactResult, Report
from vitlet.export.tolerance import parse_tolerance, tolerance_for
from vitlet.export.truth import Truth, golden_truth, model_truth
from vitlet.runtime.accelerate import usable_library
from vitlet.runtime.bundle import open_bundle
from vitlet.runtime.manifest import MANIFEST, Artifact
from vitlet.runtime.progress import Progress, null_progress

if TYPE_CHECKING:
    from torch import nn


__all__ = ["Report", "Truth", "verify", "verify_artifacts"]


def verify(
    bundle_or_file: str | os.PathLike[str],
    against: str | os.PathLike[str] | nn.Module | None = None,
    inputs: str | os.PathLike[str] | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    tolerance: str | Mapping[str, float] | None = None,
    first_bad: bool = False,
    layers: bool = False,
    report: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check every artefact of a bundle, or one file that any tool made.

    Args:
        bundle_or_file: a bundle folder, or an `.onnx`, `.tvm.so` or `.mlpackage`.
        against: the truth: a zoo name, a module, or another compiled file or bundle of any kind.
            None takes the bundle's golden file, and then torch is not needed.
        inputs: "real", "random" or "worst" (or several with commas) to check only these; or a
            folder of images, which needs `against`. None checks all.
        weights: the checkpoint, when `against` is a zoo name.
        tolerance: limits that replace those of the table, as in `parse_tolerance`.
        first_bad: name the first diverging layer of each failed artefact; needs `against`.
        layers: compare every artefact layer by layer, for the case that is furthest off, and run
            Core ML programs with float16 sums too; needs `against`.
        report: file to write, `.html` or `.json`.
        progress: told of each step.

    Returns:
        The report; a difference is in `Report.passed`, not raised.

    Raises:
        UsageError: arguments that do not go together.
        BundleError: the bundle was changed or is damaged.
        CorruptInputError: the file cannot be read.
    """
    path = Path(bundle_or_file)
    artifacts: Sequence[Artifact]
    step = progress or null_progress
    limits = parse_tolerance(tolerance) if isinstance(tolerance, str) else tolerance
    kinds, images = _inputs(inputs)
    if against is None and (images is not None or first_bad or layers):
        what = "a folder of images" if images is not None else "a look at the layers"
        raise UsageError(f"{what} needs the source model: say which with against (--against)")
    if report is not None and Path(report).suffix not in (".html", ".json"):
        raise UsageError(f"the report must be a .html or .json file, got {report}")
    if isinstance(against, str | os.PathLike) and is_compiled(against):
        from vitlet.export.reference import against_file

        if weights is not None:
            raise UsageError("weights go with a zoo name, not with a compiled file")
        with step(f"run {Path(against).name} on the inputs"):
            truth, artifacts, folder = against_file(path, Path(against), images)
    elif path.is_dir() and path.suffix != ".mlpackage":
        bundle = open_bundle(path)
        manifest, folder = bundle.manifest, bundle.path
        artifacts = manifest.artifacts
        truth = (
            golden_truth(manifest, folder)
            if against is None
            else model_truth(against, weights, images, manifest, folder, step)
        )
    else:
        if against is None:
            raise UsageError(
                f"{path.name} is not a bundle and holds no answers: say with against (--against) "
                "which model or file it must agree with"
            )
        from vitlet.export.foreign import describe

        truth = model_truth(against, weights, images, None, path.parent, step)
        artifacts, folder = [describe(path, truth)], path.parent
    made = verify_artifacts(
        folder,
        artifacts,
        truth,
        subject=path.name,
        tolerance=limits,
        kinds=kinds,
        first_bad=first_bad,
        layers=layers,
        progress=step,
    )
    if report is not None:
        from vitlet.export.report import write_report

        write_report(made, report)
    return made


def is_compiled(against: str | os.PathLike[str]) -> bool:
    """Tell whether a truth is meant as a compiled file or a bundle, and not as a zoo name."""
    path = Path(against)
    return path.suffix in (".onnx", ".so", ".mlpackage", ".vitlet") or (
        path.is_dir() and (path / MANIFEST).is_file()
    )


def verify_artifacts(
    folder: str | os.PathLike[str],
    artifacts: Sequence[Artifact],
    truth: Truth,
    *,
    subject: str,
    tolerance: Mapping[str, float] | None = None,
    kinds: Sequence[str] = KINDS,
    first_bad: bool = False,
    layers: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Check artefacts that lie in a folder; what `verify` and `vitlet.export` share.

    Args:
        folder: where `Artifact.file` is looked for.
        artifacts: to check.
        truth: to compare with.
        subject: name for the report.
        tolerance: field of `Tolerance` -> value, replacing the table's.
        kinds: of cases to use.
        first_bad: name the first diverging layer of each failed artefact.
        layers: compare every artefact with `truth` layer by layer.
        progress: told of each step.
    """
    from vitlet.export.report import environment, pictures

    step = progress or null_progress
    results = []
    for artifact in artifacts:
        cases = [case for case in truth.cases.get(artifact.graph, []) if case.kind in kinds]
        with step(f"verify {artifact.file}"):
            file = Path(folder) / artifact.file
            limits = _limits(artifact, truth, tolerance)
            result = _check_one(file, artifact, truth, cases, limits, layers)
        if layers or (first_bad and result.status == "failed"):
            from vitlet.export.layers import look_inside

            with step(f"compare the layers of {artifact.file}"):
                result = look_inside(file, artifact, result, truth, cases, layers=layers)
        results.append(result)
    real = [case for listed in truth.cases.values() for case in listed if case.kind == "real"]
    return Report(
        subject,
        truth.name,
        tuple(results),
        environment(artifacts),
        pictures([case for case in real if case.kind in kinds], truth.preprocess),
    )


def require_passed(report: Report) -> None:
    """Raise unless the report passed.

    Raises:
        VerificationError: names the artefacts and what differs.
    """
    if not report.passed:
        reasons = report.reasons or ["nothing could be checked on this machine"]
        more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
        raise VerificationError(f"{report.subject} differs: {'; '.join(reasons[:3])}{more}")


def _check_one(
    path: Path,
    artifact: Artifact,
    truth: Truth,
    cases: list[Case],
    override: Mapping[str, float] | None,
    stress: bool,
) -> ArtifactResult:
    # Where layers round to 8 bits their definitions do too; bfloat16 is the kernels' alone.
    rounds = "int8" if _rounds_to_8_bits(artifact) else artifact.precision
    limits = tolerance_for(artifact.target, rounds, dict(override or {}))
    if artifact.target == "coreml":
        from vitlet.export.coreml_check import check_coreml

        return check_coreml(path, artifact, truth, cases, limits, stress)
    reason = runs_here(artifact)
    if not reason and not cases:
        reason = f"there is no case for the graph {artifact.graph!r} of the kinds asked for"
    if reason:
        return ArtifactResult(
            artifact.target,
            artifact.graph,
            artifact.file,
            artifact.precision,
            "not run",
            NOT_RUN,
            reasons=(reason,),
        )
    plain = execute(path, artifact, truth, cases, limits)
    if not artifact.custom_ops:
        return plain
    # The same file runs in two ways: from the operators' definitions, and in our kernels.
    library, why = usable_library()
    if library is None:
        warning = f"vitlet's kernels were not checked: {why}"
        return replace(plain, warnings=(*plain.warnings, warning))
    used = str(artifact.details.get("accelerate") or rounds)
    if used == "int8" and rounds != "int8":  # nothing was faster so; mixers may round to bfloat16
        used = "bf16"
    limits = tolerance_for(artifact.target, used, dict(override or {}))
    fast = execute(path, artifact, truth, cases, limits, accelerate=True)
    if plain.status != "failed":
        return replace(fast, warnings=tuple(dict.fromkeys((*plain.warnings, *fast.warnings))))
    reasons = tuple(f"without vitlet's kernels: {reason}" for reason in plain.reasons)
    return replace(plain, reasons=(*reasons, *fast.reasons))


def _limits(
    artifact: Artifact, truth: Truth, override: Mapping[str, float] | None
) -> Mapping[str, float] | None:
    """Return what replaces the table's limits: the truth may be coarser than the artefact."""
    if truth.reference is None:
        return override
    from vitlet.export.reference import common_limits

    return {
        **common_limits(artifact, truth.reference.artifacts[artifact.graph]),
        **(override or {}),
    }


def _rounds_to_8_bits(artifact: Artifact) -> bool:
    """Return whether layers of the file round to 8 bits, or queries and keys to one."""
    if artifact.details.get("arithmetic") == "int8":
        return True
    chosen = artifact.details.get("accelerate_table", {}).get("chosen", {})
    ways = {way for layers in chosen.values() for counts in layers.values() for way in counts}
    coarse = {"Int8Linear", "ShiftLinear", "BinaryLinearAttention"} & set(artifact.custom_ops)
    return bool(coarse) or any(way.startswith("int8") for way in ways)


def _inputs(inputs: str | os.PathLike[str] | None) -> tuple[tuple[str, ...], list[Path] | None]:
    """Return the kinds of cases to use, and the images of a folder."""
    if inputs is None:
        return KINDS, None
    names = [part.strip() for part in str(inputs).split(",")]
    if all(name in KINDS for name in names):
        return tuple(names), None
    folder = Path(inputs)
    if not folder.is_dir():
        raise UsageError(
            f"inputs must be some of {', '.join(KINDS)}, or a folder of images; got {inputs}"
        )
    endings = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
    images = sorted(file for file in folder.iterdir() if file.suffix.lower() in endings)
    if not images:
        raise UsageError(f"{folder} holds no images (of {', '.join(endings)})")
    return ("real",), images
