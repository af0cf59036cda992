"""`vitlet info`: what is known of a model, a bundle or a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitlet.apps.options import Json, NoProgress, Quiet, Verbose
from vitlet.apps.output import Output, facts

if TYPE_CHECKING:
    from vitlet.apps.readers.contents import Contents


def info(
    name: Annotated[
        str, typer.Argument(metavar="MODEL|BUNDLE|CHECKPOINT", help="A name or a path.")
    ],
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Show what is known of a model, bundle or checkpoint."""
    from vitlet.apps import readers
    from vitlet.apps.source import is_path
    from vitlet.apps.verbs.inspect import show as show_contents

    with Output(json, quiet, verbose, not no_progress) as out:
        if is_path(name):
            path = Path(name)
            with out.progress(f"read {path.name}"):
                contents = readers.read(path)
                fits = _fits(path, contents) if readers.is_checkpoint(path) else None
            out.result({**contents.to_json(), "fits": fits}, lambda: show_contents(out, contents))
            if fits:
                out.next(f"vitlet export {fits} --weights {name} --to all")
            elif contents.parts:
                out.next(f"vitlet verify {name}", f"vitlet bench {name}")
            return
        data = _model(name)
        out.result(data, lambda: _show(out, data))
        weights = "" if data["weights"] else " --weights CHECKPOINT"
        out.next(f"vitlet export {name}{weights} --to all")


def _fits(path: Path, contents: Contents) -> str | None:
    """Add the zoo model that a checkpoint fits to its facts; to know it, torch is needed."""
    from vitlet.apps.source import fitting_model
    from vitlet.errors import MissingDependencyError

    try:
        name = fitting_model(path)
    except MissingDependencyError as error:
        contents.note(str(error))
        return None
    contents.facts["fits"] = name or "no model of the zoo as it is"
    return name


def _model(name: str) -> dict[str, Any]:
    from vitlet.apps.machine import targets
    from vitlet.apps.verbs.models import entry
    from vitlet.export.targets import RULES
    from vitlet.models.registry import model_info

    here = {target["target"]: target for target in targets()}
    return {
        **entry(model_info(name)),
        "targets": [
            {
                "target": target,
                "precisions": list(rule.precisions),
                "export_here": here[target]["export"]["here"],
                "fix": here[target]["fix"],
            }
            for target, rule in RULES.items()
        ],
    }


def _show(out: Output, data: dict[str, Any]) -> None:
    from vitlet.apps.units import count

    pre = data["preprocess"]
    height, width = pre["size"]
    shortest = f"shortest side to {pre['resize_to']}, centre crop"
    how = shortest if pre["resize"] == "shortest" else "squashed"
    rows = [
        ("name", data["name"]),
        ("kind", "image and text towers" if data["kind"] == "clip" else "image classifier"),
        ("parameters", count(data["params"])),
        ("MACs", f"{count(data['macs'])} per image"),
        ("input", f"{'RGB' if pre['mode'] == 'RGB' else 'grey'} {height} x {width}"),
        ("resize", f"{how if pre['resize'] == 'shortest' else 'squashed'}, {pre['interpolation']}"),
        ("mean", ", ".join(f"{v:.4g}" for v in pre["mean"])),
        ("std", ", ".join(f"{v:.4g}" for v in pre["std"])),
        ("weights", data["weights"] or "not included: bring a checkpoint"),
        ("licence", data["licence"]),
        ("source", data["source"]),
    ]
    rows += [("notes", data["notes"])] if data["notes"] else []
    for target in data["targets"]:
        here = "" if target["export_here"] else f"; not here: {target['fix']}"
        rows.append((f"to {target['target']}", f"{', '.join(target['precisions'])}{here}"))
    out.print(facts(rows))
