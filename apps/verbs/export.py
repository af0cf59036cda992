"""`vitlet export`: from a model to verified artefacts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitlet.apps.options import Json, NoProgress, Quiet, Verbose
from vitlet.apps.output import Output, columns, mark
from vitlet.apps.readers.contents import folder_size
from vitlet.apps.trade import show_trade
from vitlet.apps.units import percent, seconds, size

if TYPE_CHECKING:
    from vitlet.apps.exporting import Request
    from vitlet.runtime.bundle import Bundle
    from vitlet.runtime.manifest import Artifact

_MODEL, _TARGET, _WORDS, _PROOF = "Model", "Target", "Labels and text", "Proof"


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A zoo name, a checkpoint, or your pkg.module:function."
        ),
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="LIST", help="onnx, coreml, tvm (commas) or all.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="NAME.vitlet, or the folder for it."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="Checkpoint, .safetensors or .pt.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights", help="Go on without a checkpoint.", rich_help_panel=_MODEL
        ),
    ] = False,
    img_size: Annotated[
        int | None,
        typer.Option(
            "--img-size", metavar="N", min=1, help="Height and width.", rich_help_panel=_MODEL
        ),
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(
            "--num-classes", metavar="N", min=1, help="Of the classifier.", rich_help_panel=_MODEL
        ),
    ] = None,
    in_chans: Annotated[
        int | None,
        typer.Option(
            "--in-chans", metavar="N", min=1, help="3 (RGB) or 1 (grey).", rich_help_panel=_MODEL
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            min=0,
            help="Of --random-weights. [default: 0]",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    batch: Annotated[
        str,
        typer.Option(
            "--batch", metavar="N|A:B|dyn", help="Fixed, a range, or any.", rich_help_panel=_TARGET
        ),
    ] = "1",
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="P",
            rich_help_panel=_TARGET,
            help="fp32, fp16, int8, palette4; or per target, such as onnx=fp32,coreml=int8.",
        ),
    ] = None,
    preprocess: Annotated[
        str | None,
        typer.Option(
            "--preprocess",
            metavar="WHERE",
            rich_help_panel=_TARGET,
            help="none, in-graph (onnx), image-type (coreml); or per target.",
        ),
    ] = None,
    opset: Annotated[
        str | None,
        typer.Option(
            "--opset",
            metavar="N|NAME",
            help="ONNX opset, or who reads it, such as tensorrt.",
            rich_help_panel=_TARGET,
        ),
    ] = None,
    ios: Annotated[
        int | None,
        typer.Option("--ios", metavar="N", help="Oldest iOS: 16, 17, 18.", rich_help_panel=_TARGET),
    ] = None,
    palette_mode: Annotated[
        str | None,
        typer.Option(
            "--palette-mode",
            metavar="HOW",
            help="Core ML palettes: kmeans or uniform.",
            rich_help_panel=_TARGET,
        ),
    ] = None,
    keep_fp32: Annotated[
        str | None,
        typer.Option(
            "--keep-fp32",
            metavar="auto|NAMES",
            help="Core ML: layers to hold in float32; auto finds the fewest.",
            rich_help_panel=_TARGET,
        ),
    ] = None,
    xctest: Annotated[
        bool,
        typer.Option(
            "--xctest",
            help="Core ML: add a Swift test to run on an Apple device.",
            rich_help_panel=_TARGET,
        ),
    ] = False,
    triple: Annotated[
        str | None,
        typer.Option(
            "--triple",
            metavar="T",
            help="TVM: such as aarch64-linux-gnu. [default: this machine]",
            rich_help_panel=_TARGET,
        ),
    ] = None,
    tvm_target: Annotated[
        str | None,
        typer.Option(
            "--tvm-target",
            metavar="M",
            help='TVM: raspberry-pi-5, raspberry-pi-4, x86-64-v3, x86-64-v4, native, "llvm ...".',
            rich_help_panel=_TARGET,
        ),
    ] = None,
    tvm_tune: Annotated[
        int | None,
        typer.Option(
            "--tvm-tune",
            metavar="TRIALS",
            help="TVM: schedules to measure here for each kernel; keeps what is faster.",
            rich_help_panel=_TARGET,
        ),
    ] = None,
    tvm_tune_minutes: Annotated[
        float | None,
        typer.Option(
            "--tvm-tune-minutes",
            metavar="M",
            help="TVM: the time for that; 30 by default.",
            rich_help_panel=_TARGET,
        ),
    ] = None,
    tvm_records: Annotated[
        Path | None,
        typer.Option(
            "--tvm-records",
            metavar="DIR",
            help="TVM: what was measured, to go on from; by default in the user's cache.",
            rich_help_panel=_TARGET,
        ),
    ] = None,
    tvm_extern: Annotated[
        str | None,
        typer.Option(
            "--tvm-extern",
            metavar="LIB",
            help="TVM: call the C++ kernels of vitlet.",
            rich_help_panel=_TARGET,
        ),
    ] = None,
    accelerate: Annotated[
        str | None,
        typer.Option(
            "--accelerate",
            metavar="HOW",
            help="ONNX: vitlet's kernels where faster: fp32, bf16, int8.",
            rich_help_panel=_TARGET,
        ),
    ] = None,
    accelerate_table: Annotated[
        Path | None,
        typer.Option(
            "--accelerate-table",
            metavar="FILE",
            help="A bundle whose measured times decide again.",
            rich_help_panel=_TARGET,
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels", metavar="FILE", help="One class name a line.", rich_help_panel=_WORDS
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            metavar="TEXT",
            rich_help_panel=_WORDS,
            help='Classes such as "a dog,a cat", baked in (CLIP).',
        ),
    ] = None,
    templates: Annotated[
        str | None,
        typer.Option(
            "--templates",
            metavar="NAME",
            rich_help_panel=_WORDS,
            help="Sentences around the prompts: none, default, imagenet.",
        ),
    ] = None,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not check.", rich_help_panel=_PROOF)
    ] = False,
    tol: Annotated[
        str | None,
        typer.Option(
            "--tol",
            metavar="LIMITS",
            help="Such as cosine=0.999,max=1e-3.",
            rich_help_panel=_PROOF,
        ),
    ] = None,
    first_bad: Annotated[
        bool,
        typer.Option(
            "--first-bad", help="If it differs, name the first wrong layer.", rich_help_panel=_PROOF
        ),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE",
            help="Write a report (.html, .json).",
            rich_help_panel=_PROOF,
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Compile a model to ONNX, Core ML and TVM, and prove it."""
    from vitlet.apps import exporting
    from vitlet.errors import VerificationError

    with Output(json, quiet, verbose, not no_progress) as out:
        request = exporting.Request(
            model=model,
            to=to,
            output=output,
            weights=weights,
            random_weights=random_weights,
            seed=seed,
            config={"img_size": img_size, "num_classes": num_classes, "in_chans": in_chans},
            prompts=prompts,
            report=report,
            verify=not no_verify,
            first_bad=first_bad,
            settings={
                "batch": batch,
                "precision": precision,
                "preprocess": preprocess,
                "opset": opset,
                "ios": ios,
                "palette_mode": palette_mode,
                "keep_fp32": keep_fp32,
                "xctest": xctest or None,
                "triple": triple,
                "tvm_target": tvm_target,
                "tvm_extern": tvm_extern,
                "tvm_tune": tvm_tune,
                "tvm_tune_minutes": tvm_tune_minutes,
                "tvm_records": tvm_records,
                "accelerate": accelerate,
                "accelerate_table": accelerate_table,
                "labels": labels,
                "templates": templates,
                "tolerance": tol,
                "force": force,
            },
        )
        for warning in request.warnings:
            out.warn(warning)
        started = time.perf_counter()
        try:
            bundle = request.run(out.progress)
        except VerificationError:
            if request.found is not None:
                out.result(
                    {"bundle": None, "verification": request.found}, lambda: _failed(out, request)
                )
            raise
        took = time.perf_counter() - started
        data = {
            "bundle": bundle.path,
            "seconds": took,
            "artifacts": [part(bundle, artifact) for artifact in bundle.manifest.artifacts],
            "verified": None if request.found is None else request.found.passed,
            "report": report,
        }
        out.result(data, lambda: show(out, bundle))
        where = _relative(bundle.path)
        out.log(f"wrote {where} in {seconds(took)}")
        if report is not None:
            out.log(f"wrote {report}")
        if no_verify:
            out.warn(f"nothing was verified: run `vitlet verify {where}`")
        out.next(f"vitlet predict {where} IMAGE...", f"vitlet bench {where}")


def part(bundle: Bundle, artifact: Artifact) -> dict[str, Any]:
    """Return one artefact as JSON has it."""
    return {
        "target": artifact.target,
        "graph": artifact.graph,
        "file": artifact.file,
        "precision": artifact.precision,
        "preprocess": artifact.preprocess,
        "bytes": folder_size(bundle.file(artifact.file)),
        "custom_ops": list(artifact.custom_ops),
        "details": artifact.details,
        "verification": artifact.verification,
    }


def show(out: Output, bundle: Bundle) -> None:
    """Print a bundle's artefacts with the figures of their verification."""
    rows = []
    for artifact in bundle.manifest.artifacts:
        figures = artifact.verification
        status = str(figures.get("status"))
        how = "executed" if figures.get("method") == "executed" else "inspected"
        rows.append(
            (
                artifact.file,
                artifact.precision,
                size(folder_size(bundle.file(artifact.file))),
                f"{figures['cosine']:.6f}" if "cosine" in figures else "-",
                percent(figures["top1"]) if "top1" in figures else "-",
                mark(status == "passed", how if status == "passed" else status),
            )
        )
    heads = ("artefact", "precision", ">size", ">cosine", ">top-1", "verified")
    out.print(columns(heads, rows))
    for artifact in bundle.manifest.artifacts:
        show_trade(out, artifact)


def _failed(out: Output, request: Request) -> None:
    from vitlet.apps.verbs.verify import show as show_report

    if request.found is not None:
        show_report(out, request.found)


def _relative(path: Path) -> Path:
    here = Path.cwd().resolve()
    return path.relative_to(here) if path.is_relative_to(here) else path
