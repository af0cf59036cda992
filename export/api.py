"""`vitlet.export`: a model becomes a bundle of verified artefacts, or nothing at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from numpy.typing import NDArray

import vitlet
from vitlet._extras import require
from vitlet.data.spec import Preprocess
from vitlet.errors import VerificationError
from vitlet.export.bundle import Draft, check_place, write_bundle
from vitlet.export.options import Options, resolve
from vitlet.export.source import PROMPTS, Source, Words, read_source
from vitlet.export.targets import RULES
from vitlet.export.tolerance import parse_tolerance
from vitlet.runtime.bundle import Bundle, open_bundle
from vitlet.runtime.manifest import Artifact, Manifest
from vitlet.runtime.progress import Progress, null_progress

if TYPE_CHECKING:
    from torch import nn

    from vitlet.export.accelerate.table import TableSource
    from vitlet.export.keep_fp32 import Keeper
    from vitlet.export.result import Report
    from vitlet.export.trace import Graph

GOLDEN, TOKENIZER = "golden.safetensors", "tokenizer.json"
_COMPILERS = {"onnx": ("onnx", "onnxscript"), "coreml": ("coremltools",), "tvm": ("tvm",)}


def export(
    model: str | nn.Module,
    targets: str | Sequence[str] = ("onnx", "coreml", "tvm"),
    out: str | os.PathLike[str] | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    config: Mapping[str, Any] | None = None,
    spec: Preprocess | None = None,
    batch: str | int | tuple[int, int] = 1,
    precision: str | Mapping[str, str] | None = None,
    preprocess: str | Mapping[str, str] | None = None,
    opset: int | str | None = None,
    ios: int | None = None,
    palette_mode: str | None = None,
    triple: str | Sequence[str] | None = None,
    accelerate: str | None = None,
    accelerate_table: TableSource | None = None,
    tvm_extern: str | None = None,
    keep_fp32: str | Sequence[str] | None = None,
    xctest: bool = False,
    tvm_target: str | Sequence[str] | None = None,
    tvm_tune: int | None = None,
    tvm_tune_minutes: float | None = None,
    tvm_records: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | Sequence[str] | None = None,
    prompts: Sequence[str] | None = None,
    templates: str | Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    reparameterize: bool = True,
    verify: bool = True,
    tolerance: str | Mapping[str, float] | None = None,
    force: bool = False,
    progress: Progress | None = None,
    on_report: Callable[[Report], None] | None = None,
) -> Bundle:
    """Compile a model to every target, check each artefact, and write the bundle.

    Args:
        model: a zoo name; a zoo module; or any classifier that maps (B, C, H, W) to (B, classes),
            together with `spec`.
        targets: "onnx", "coreml", "tvm", their aliases, or "all".
        out: the bundle's folder, by default NAME.vitlet here.
        weights: checkpoint of a zoo name.
        config: further arguments of `create_model`, such as ``{"num_classes": 10}``.
        spec: what the model expects of an image, where it has no `info` that says so.
        batch: 1, "1:8" or "dyn"; see `vitlet.export.options.resolve`, as for the next arguments.
        precision: "fp32", "fp16", "int8", "palette4"... or "onnx=fp16,coreml=palette4".
        preprocess: "none", "in-graph" (ONNX: uint8 in) or "image-type" (Core ML), or per target.
        opset: of ONNX, or the name of its consumer.
        ios: deployment target of Core ML.
        palette_mode: "kmeans" or "uniform".
        triple: machines for TVM.
        accelerate: "fp32", "bf16" or "int8": let ONNX files call vitlet's operators where its
            kernels, down to that precision, are faster on this machine. They carry definitions
            too, so they run anywhere.
        accelerate_table: an earlier export (a bundle, a JSON file or its content) whose measured
            times decide, so that two exports are byte-equal.
        tvm_extern: "vitlet": TVM libraries call vitlet's C++ kernels for its operators. They then
            run where vitlet is installed only.
        keep_fp32: layers (paths of torch modules) and operations that Core ML programs compute in
            float32; "auto" finds the fewest with which float16 meets the tolerance.
        xctest: add a Swift package to the bundle that runs the Core ML programs on an Apple device
            and compares with the source model; see `vitlet.export.xctest`.
        tvm_target: machines for TVM by name instead: "raspberry-pi-5", "x86-64-v3", "native", or
            "llvm -mtriple=... -mcpu=...".
        tvm_tune: schedules that TVM measures for each kernel on this machine, to keep what is
            faster than vitlet's own.
        tvm_tune_minutes: after which no more is tried; 30 by default.
        tvm_records: folder of what was measured, where the next export goes on; in the user's
            cache by default.
        labels: class names of a classifier: a sequence, or a file with one a line.
        prompts: class names of a CLIP-style model, whose text embeddings go into the bundle.
        templates: prompt templates: a name, or texts with "{}".
        metadata: "author", "license", "version", "description" and others, for Core ML.
        reparameterize: do every exact merge first. Without it the artefacts are slower.
        verify: run the artefacts and compare with the source model.
        tolerance: limits that replace the table's, as in `vitlet.verify`.
        force: replace a bundle that is there already.
        progress: told of each step.
        on_report: given the verification's report, also when it failed.

    Returns:
        The bundle.

    Raises:
        UsageError: a wrong name, value or combination.
        UnsupportedError: a target cannot take an argument or an operator.
        MissingDependencyError: a target's compiler is not installed.
        CheckpointError: the checkpoint does not fit.
        VerificationError: an artefact computes something else. The bundle is kept as
            NAME.vitlet.unverified.
        StorageError: the disk is full or cannot be written. Nothing is left behind.
    """
    options = resolve(
        targets,
        batch=batch,
        precision=precision,
        preprocess=preprocess,
        opset=opset,
        ios=ios,
        palette_mode=palette_mode,
        triple=triple,
        accelerate=accelerate,
        accelerate_table=accelerate_table,
        tvm_extern=tvm_extern,
        keep_fp32=keep_fp32,
        xctest=xctest,
        tvm_target=tvm_target,
        tvm_tune=tvm_tune,
        tvm_tune_minutes=tvm_tune_minutes,
        tvm_records=tvm_records,
    )
    limits = parse_tolerance(tolerance) if isinstance(tolerance, str) else tolerance
    require("torch", extra="torch", why="read a model and export it")
    for target in options.targets:
        for package in _COMPILERS[target]:
            _require_quietly(package, RULES[target].extra, target)
    path = _place(model, out)
    check_place(path, force=force)
    step = progress or null_progress
    with step("build the model"):
        source = read_source(model, weights, config, spec)
        words = Words.of(source, labels, prompts, templates)
    with write_bundle(path, force=force) as draft:
        manifest, golden, graphs = _compile(
            draft.folder, source, words, options, reparameterize, metadata or {}, limits, step
        )
        if options.xctest:
            with step("write the test for Apple devices"):
                _write_xctest(draft.folder, manifest, golden, limits)
        report = None
        if verify:
            manifest, report = _verify(draft, manifest, golden, graphs, words, limits, step)
            if on_report is not None:
                on_report(report)
        failed = [] if report is None else report.reasons
        with step("write the bundle"):
            kept = draft.finish(manifest, verified=not failed)
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise VerificationError(f"{failed[0]}{more}; the bundle was kept as {kept}")
    return open_bundle(kept, hashes=False)


def _require_quietly(package: str, extra: str, target: str) -> None:
    if package == "coremltools":
        from vitlet.runtime.coreml.quiet import quiet_coremltools

        with quiet_coremltools():
            require(package, extra=extra, why=f"export to {target}")
    else:
        require(package, extra=extra, why=f"export to {target}")


def _place(model: str | nn.Module, out: str | os.PathLike[str] | None) -> Path:
    if out is not None:
        return Path(out)
    info = getattr(model, "info", None)
    name = model if isinstance(model, str) else info.name if info else type(model).__name__.lower()
    return Path(f"{name}.vitlet")


def _compile(
    folder: Path,
    source: Source,
    words: Words,
    options: Options,
    merge: bool,
    metadata: Mapping[str, str],
    limits: Mapping[str, float] | None,
    step: Progress,
) -> tuple[Manifest, dict[str, NDArray[Any]], list[Graph]]:
    from vitlet.compress.reparameterize import reparameterize
    from vitlet.export.golden import make_golden
    from vitlet.export.trace import graphs
    from vitlet.runtime.safetensors import save_file

    shape = (source.preprocess.channels, *source.preprocess.size)
    with step("reparameterize" if merge else "read the graphs"):
        deployable = graphs(reparameterize(source.model) if merge else source.model, shape)
    with step("run the source model on the test inputs"):
        golden = make_golden(source.model, deployable, source.preprocess)
        save_file(golden, folder / GOLDEN)
    kept = None
    if options.keep_fp32:
        from vitlet.export.keep_fp32 import Keeper

        kept = Keeper(options, source.preprocess, golden, deployable, limits, step)
    artifacts = [
        artifact
        for target in options.targets
        for graph in deployable
        for artifact in _artifacts(
            target, graph, folder, source, words, options, metadata, kept, step
        )
    ]
    tokenizer = None
    if source.facts["kind"] == "clip":
        from vitlet.data.tokenizer_json import tokenizer_json

        tokenizer = "clip-bpe-77"
        (folder / TOKENIZER).write_text(tokenizer_json(), encoding="utf-8")
    if words.embeddings is not None:
        save_file({"embeddings": words.embeddings}, folder / PROMPTS)
    manifest = Manifest(
        vitlet=vitlet.__version__,
        model={**source.facts, "reparameterized": merge},
        preprocess=source.preprocess,
        artifacts=tuple(artifacts),
        files={},
        labels=words.labels,
        prompts=words.prompts,
        tokenizer=tokenizer,
        golden={graph.name: GOLDEN for graph in deployable},
    )
    return manifest, golden, deployable


def _artifacts(
    target: str,
    graph: Graph,
    folder: Path,
    source: Source,
    words: Words,
    options: Options,
    metadata: Mapping[str, str],
    kept: Keeper | None,
    step: Progress,
) -> list[Artifact]:
    is_image = graph.name != "text"
    place = options.preprocess.get(cast("Any", target), "none")
    pixels = source.preprocess if is_image and place != "none" else None
    precision = options.precision[cast("Any", target)]
    if target == "onnx":
        from vitlet.export.onnx import export_onnx

        with step(f"export {graph.name} to ONNX"):
            return [
                export_onnx(
                    graph,
                    folder / f"{graph.name}.onnx",
                    precision=cast(Literal["fp32", "fp16"], precision),
                    batch=options.batch,
                    opset=options.opset,
                    preprocess=pixels,
                    accelerate=cast(Any, options.accelerate),
                    accelerate_table=options.accelerate_table,
                )
            ]
    if target == "coreml":
        from vitlet.export.coreml import export_coreml

        names, facts = ((), {}) if kept is None else kept.of(graph)
        with step(f"export {graph.name} to Core ML"):
            made = export_coreml(
                graph,
                folder / f"{graph.name}.mlpackage",
                precision=precision,
                ios=options.ios,
                batch=options.batch,
                preprocess=pixels,
                labels=words.labels if graph.name == "model" else None,
                metadata=_core_ml_metadata(source, metadata),
                palette_mode=options.palette_mode,
                keep_fp32=names,
            )
            return [replace(made, details={**made.details, **facts})]
    from vitlet.export.tvm import export_tvm
    from vitlet.export.tvm_targets import find_machine

    return [
        export_tvm(
            graph,
            folder / f"{graph.name}.{find_machine(target=machine).name}.tvm.so",
            target=machine,
            batch=options.batch,
            precision=precision,
            extern=options.tvm_extern is not None,
            tuning=options.tuning,
            progress=step,
        )
        for machine in options.machines
    ]


def _write_xctest(
    folder: Path,
    manifest: Manifest,
    golden: Mapping[str, NDArray[Any]],
    limits: Mapping[str, float] | None,
) -> None:
    from vitlet.export.xctest import write_xctest

    write_xctest(
        folder,
        manifest.artifacts,
        golden,
        manifest.preprocess,
        labels=manifest.labels,
        tolerance=limits,
    )


def _core_ml_metadata(source: Source, given: Mapping[str, str]) -> dict[str, str]:
    facts = {
        "license": source.facts["licence"],
        "description": f"{source.facts['name']}, exported by vitlet {vitlet.__version__}",
        "source": source.facts["source"],
    }
    return {**{key: text for key, text in facts.items() if text}, **given}


def _verify(
    draft: Draft,
    manifest: Manifest,
    golden: dict[str, NDArray[Any]],
    graphs: list[Graph],
    words: Words,
    tolerance: Mapping[str, float] | None,
    step: Progress,
) -> tuple[Manifest, Report]:
    from vitlet.export.verify import Truth, verify_artifacts

    prompts = None
    if words.prompts is not None and words.embeddings is not None:
        prompts = (words.prompts.classes, words.embeddings, words.prompts.logit_scale)
    truth = Truth(
        "the source model, run in torch",
        golden,
        manifest.preprocess,
        labels=manifest.labels,
        prompts=prompts,
        graphs=graphs,
    )
    report = verify_artifacts(
        draft.folder,
        manifest.artifacts,
        truth,
        subject=draft.out.name,
        tolerance=tolerance,
        progress=step,
    )
    results = {result.file: result for result in report.artifacts}
    artifacts = tuple(
        replace(artifact, verification=results[artifact.file].summary())
        for artifact in manifest.artifacts
    )
    return replace(manifest, artifacts=artifacts), report
