"""`vitlet partition export`: compile what was trained into a plan directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitlet.apps.options import Json, NoProgress, Quiet, Verbose
from vitlet.apps.output import Output, columns

if TYPE_CHECKING:
    from vitlet.partition.plan import Plan

_COMPILERS = {"tvm": "tvm", "coreml": "coremltools"}


def export(
    work: Annotated[
        Path, typer.Argument(metavar="WORK", help="What `vitlet partition train` finished.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The plan's folder.")
    ],
    untrained: Annotated[
        bool,
        typer.Option("--untrained", help="Sub-models of the right sizes that know nothing."),
    ] = False,
    to: Annotated[
        str,
        typer.Option("--to", metavar="LIST", help="Beside onnx: tvm, coreml (commas)."),
    ] = "onnx",
    triple: Annotated[
        str | None,
        typer.Option(
            "--triple", metavar="T", help="TVM: such as aarch64-linux-gnu. [default: this machine]"
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a plan that is there.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Compile sub-models and fusion, check them, write the plan."""
    from vitlet._extras import require
    from vitlet.errors import UsageError
    from vitlet.export.targets import parse_targets

    with Output(json, quiet, verbose, not no_progress) as out:
        from vitlet.partition.draft import read_draft

        read_draft(work)
        targets = [target for target in parse_targets(to) if target != "onnx"]
        if triple is not None and "tvm" not in targets:
            raise UsageError("--triple is for TVM: add --to tvm")
        packages = {"torch": "torch", "onnx": "onnx", "onnxruntime": "runtime"}
        packages |= {_COMPILERS[target]: target for target in targets}
        for package, extra in packages.items():
            require(package, extra=extra, why="compile a plan")
        from vitlet.partition.splitting import export_planned

        made = export_planned(
            work,
            output,
            random=untrained,
            targets=targets,
            triple=triple,
            force=force,
            progress=out.progress,
        )
        full = made.model["bytes"]
        result = {
            "plan": output,
            "hash": made.hash,
            "slots": made.to_json()["slots"],
            "fusion": made.to_json()["fusion"],
            "largest_ratio": full / max(slot.bytes for slot in made.slots),
        }
        out.result(result, lambda: _show(out, made))
        if untrained:
            out.warn("the plan is untrained: its answers mean nothing")
        out.log(f"wrote {output}")
        out.next(f"vitlet partition evaluate {output} --data DATA")


def _show(out: Output, made: Plan) -> None:
    from vitlet.apps.units import count, milliseconds, size

    rows = []
    for slot in made.slots:
        here = milliseconds(1e3 * slot.details["latency_here"])
        there = milliseconds(1e3 * slot.latency)
        cells = (slot.bundle, size(slot.bytes), count(slot.macs), str(slot.features), here, there)
        rows.append((*cells, "+".join(slot.devices)))
    fusion = made.fusion
    here = milliseconds(1e3 * fusion.details["latency_here"])
    rows.append((fusion.bundle, size(fusion.bytes), count(fusion.macs), "", here, "", ""))
    heads = ("bundle", ">bytes", ">MACs", ">sends", ">ms here", ">ms there", "~devices")
    out.print(columns(heads, rows))
