"""`vitlet inspect`: what is in a file; nothing is executed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitlet.apps.options import Json, NoProgress, Quiet, Verbose
from vitlet.apps.output import Output, columns, facts, mark

if TYPE_CHECKING:
    from rich.text import Text

    from vitlet.apps.readers.contents import Contents

_OPS_SHOWN = 12
_LAYERS_SHOWN = 6


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A bundle, .onnx, .mlpackage, .tvm.so, .safetensors or .pt."
        ),
    ],
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Look into a file: inputs, operators, dtypes, risks."""
    from vitlet.apps.hints import existing
    from vitlet.apps.readers import read

    with Output(json, quiet, verbose, not no_progress) as out:
        existing(path, "the file")
        with out.progress(f"read {path.name}"):
            contents = read(path)
        out.result(contents, lambda: show(out, contents))
        if contents.parts:
            out.next(f"vitlet inspect {path / contents.parts[0]['file']}", f"vitlet verify {path}")


def show(out: Output, contents: Contents) -> None:
    """Print contents as tables; `--verbose` lists every operator."""
    from vitlet.apps.readers.contents import by_count
    from vitlet.apps.readers.coreml_placement import UNKNOWN
    from vitlet.apps.units import size

    known = {k: v for k, v in contents.facts.items() if v not in (0, "", None)}
    rows = [("format", contents.format), ("size", size(contents.bytes)), *known.items()]
    rows += [(name.rpartition(".")[2], text) for name, text in contents.metadata.items()]
    out.print(facts([(name, str(value)) for name, value in rows]))
    if contents.parts:
        heads = ("artefact", "graph", "precision", ">size", "takes", "verified")
        out.print("", columns(heads, [_part_row(part) for part in contents.parts]))
    if contents.inputs or contents.outputs:
        specs = [("in", s) for s in contents.inputs] + [("out", s) for s in contents.outputs]
        tensors = [(way, s.name, s.dtype, _shape(s.shape)) for way, s in specs]
        out.print("", columns(("", "tensor", "dtype", "shape"), tensors))
    if contents.dtypes:
        dtypes = sorted(contents.dtypes.items(), key=lambda item: -item[1][1])
        rows_ = [(dtype, number, size(total)) for dtype, (number, total) in dtypes]
        out.print("", columns(("stored as", ">tensors", ">size"), rows_))
    if contents.layers:
        _layers(out, contents)
    if contents.ops:
        ordered = by_count(contents.ops)
        shown = ordered if out.verbose else ordered[:_OPS_SHOWN]
        if "library" in contents.format:  # each function is there once: nothing to count
            out.print("", columns(("function",), [(name,) for name, _ in shown]))
        else:
            out.print("", columns(("operator", ">count"), shown))
        if len(ordered) > len(shown):
            out.print(f"and {len(ordered) - len(shown)} more (--verbose lists them)")
    if out.verbose and len(contents.compute) > 1:
        kinds = [(p, op, n) for p, ops in contents.compute.items() for op, n in by_count(ops)]
        out.print("", columns(("computes in", "operator", ">count"), kinds))
    out.print("")
    for risk in contents.risks:
        out.print(_risk(risk.level, risk.text))
    if not contents.risks:
        out.print(mark(True, "no risks found"))
    if contents.compute:
        out.print(UNKNOWN)


def _layers(out: Output, contents: Contents) -> None:
    """Print the largest weights of a Core ML program, where each is used."""
    from vitlet.apps.units import percent, plural, size

    total = sum(layer["bytes"] for layer in contents.layers)
    shown = contents.layers if out.verbose else contents.layers[:_LAYERS_SHOWN]
    rows = [
        (
            layer["weight"],
            layer["op"],
            _shape(layer["shape"]),
            layer["storage"],
            size(layer["bytes"]),
            percent(layer["bytes"] / max(total, 1)),
        )
        for layer in shown
    ]
    out.print("", columns(("~weight", "used by", "shape", "stored as", ">size", ">share"), rows))
    if len(contents.layers) > len(shown):
        out.print(f"and {plural(len(contents.layers) - len(shown), 'smaller weight')} (--verbose)")


def _risk(level: str, text: str) -> Text:
    from rich.text import Text

    return Text.assemble((f"{level:<8}", "red" if level == "problem" else "yellow"), text)


def _part_row(part: dict[str, object]) -> tuple[object, ...]:
    from vitlet.apps.units import size

    verification = part["verification"]
    status = verification.get("status", "not run") if isinstance(verification, dict) else ""
    total = part["bytes"]
    return (
        part["file"],
        part["graph"],
        part["precision"],
        size(total if isinstance(total, int) else 0),
        {"none": "array", "in-graph": "uint8 image", "image-type": "image"}[
            str(part["preprocess"])
        ],
        mark(status == "passed", str(status)),
    )


def _shape(sizes: tuple[int | str, ...]) -> str:
    return " x ".join(str(s) for s in sizes) or "scalar"
