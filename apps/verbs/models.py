"""`vitlet models`: what `create_model` and `vitlet export` know by name."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vitlet.apps.options import Json, NoProgress, Quiet, Verbose
from vitlet.apps.output import Output, columns
from vitlet.apps.units import count


def models(
    family: Annotated[
        str | None, typer.Option("--family", metavar="NAME", help="Only one family.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """List the models of the zoo."""
    from vitlet.models.registry import list_models, model_info

    with Output(json, quiet, verbose, not no_progress) as out:
        infos = [model_info(name) for name in list_models(family)]
        infos.sort(key=lambda info: (info.family, info.params))

        def show() -> None:
            heads = ("name", "family", ">params", ">MACs", ">input", "~licence")
            rows = [
                (
                    info.name,
                    info.family,
                    count(info.params),
                    count(info.macs * 1e6) if info.macs else "-",
                    shape(info.input_shape),
                    info.licence,
                )
                for info in infos
            ]
            out.print(columns(heads, rows))

        out.result({"models": [entry(info) for info in infos]}, show)
        out.next("vitlet info NAME", "vitlet demo")


def entry(info: Any) -> dict[str, Any]:
    """Return a ModelInfo as JSON has it."""
    return {
        "name": info.name,
        "family": info.family,
        "kind": info.kind,
        "params": info.params,
        "macs": info.macs * 1e6,
        "input": list(info.input_shape),
        "preprocess": info.preprocess.to_json(),
        "licence": info.licence,
        "source": info.source,
        "weights": "embedded" if info.weights else None,
        "notes": info.notes,
    }


def shape(sizes: tuple[int | str, ...]) -> str:
    """Return "3x256x256"."""
    return "x".join(str(size) for size in sizes)
