"""`vitlet partition plan`: decide classes, sizes and places before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitlet.apps.options import Json, NoProgress, Quiet, Seed, Verbose
from vitlet.apps.output import Output, columns

if TYPE_CHECKING:
    from vitlet.partition.draft import Draft

_MODEL, _SPLIT = "Model", "Split"


def plan(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A plain ViT of the zoo, or pkg.module:function.")
    ],
    devices: Annotated[
        Path, typer.Option("--devices", metavar="FILE", help="Device file (.toml, .json).")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Work folder to begin.")
    ],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="What it was trained on: a folder of class folders, or fashion-mnist.",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE", help="Checkpoint.", rich_help_panel=_MODEL),
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option("--random-weights", help="To see what a split costs.", rich_help_panel=_MODEL),
    ] = False,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="LIST",
            help="What differs from the zoo's model, such as num_classes=10,dim=256.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    preprocess: Annotated[
        Path | None,
        typer.Option(
            "--preprocess",
            metavar="FILE",
            help="JSON of what it expects of an image, if not the zoo's.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            "--slots",
            metavar="N",
            min=1,
            help="Sub-models; by default one a device.",
            rich_help_panel=_SPLIT,
        ),
    ] = None,
    classes: Annotated[
        str,
        typer.Option(
            "--classes",
            metavar="WAY",
            help="balanced-random, confusable-together or load-weighted.",
            rich_help_panel=_SPLIT,
        ),
    ] = "balanced-random",
    assign: Annotated[
        str,
        typer.Option("--assign", metavar="WAY", help="greedy or makespan.", rich_help_panel=_SPLIT),
    ] = "greedy",
    prune: Annotated[
        str,
        typer.Option(
            "--prune",
            metavar="WAY",
            help="per-model or global (all alike).",
            rich_help_panel=_SPLIT,
        ),
    ] = "per-model",
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep",
            metavar="N",
            min=1,
            help="Heads that a sub-model keeps at most.",
            rich_help_panel=_SPLIT,
        ),
    ] = None,
    total: Annotated[
        str | None,
        typer.Option(
            "--total",
            metavar="SIZE",
            help="Of all sub-models, such as 180MB; by default the full model's.",
            rich_help_panel=_SPLIT,
        ),
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option(
            "--deadline",
            metavar="TIME",
            help="Until the last feature is there, such as 50ms.",
            rich_help_panel=_SPLIT,
        ),
    ] = None,
    replicas: Annotated[
        int,
        typer.Option(
            "--replicas",
            metavar="N",
            min=0,
            help="Further devices per sub-model.",
            rich_help_panel=_SPLIT,
        ),
    ] = 0,
    image_bytes: Annotated[
        int,
        typer.Option(
            "--image-bytes",
            metavar="N",
            min=0,
            help="Sent to each device; 0 where it sees the image itself.",
            rich_help_panel=_SPLIT,
        ),
    ] = 0,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say why each sub-model sits where it does.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Replace another split in the folder.")
    ] = False,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Decide classes, sizes and places; begin a work folder."""
    from vitlet.apps import partitioning
    from vitlet.apps.lists import byte_size, duration
    from vitlet.apps.units import percent
    from vitlet.partition.devices import read_devices
    from vitlet.partition.draft import Choices

    with Output(json, quiet, verbose, not no_progress) as out:
        full = partitioning.FullModel(
            model, weights, random_weights, partitioning.read_config(config), preprocess, seed
        )
        listed, spec = read_devices(devices), full.spec()
        choices = Choices(
            slots=slots,
            classes=classes,
            assign=assign,
            prune=prune,
            keep=keep,
            total_bytes=None if total is None else byte_size(total, "--total"),
            seconds=None if deadline is None else duration(deadline, "--deadline"),
            replicas=replicas,
            image_bytes=image_bytes,
            seed=seed,
        )
        for warning in full.warnings:
            out.warn(warning)
        pictures = None if data is None else partitioning.read_pictures(data, "train")
        with out.progress(f"build {model}"):
            module = full.build()
        from vitlet.partition.splitting import accuracy_on_some, plan_split
        from vitlet.partition.submodels.widths import Geometry

        count = Geometry.of(module).classes
        draft = plan_split(
            module,
            pictures if pictures is not None else [f"class {c}" for c in range(count)],
            listed,
            output,
            choices=choices,
            preprocess=spec,
            restart=restart,
            progress=out.progress,
        )
        if pictures is not None and not random_weights:
            found = accuracy_on_some(module, pictures, draft.preprocess, seed)
            out.log(f"the full model finds {percent(found)} of a few training pictures")
            if found < 2 / count:
                out.warn(
                    f"the full model finds {percent(found)} of a few training pictures, hardly "
                    "more than chance: are --weights, --preprocess and the order of the classes "
                    "what it was trained with?"
                )
        result = {
            "work": output,
            "sub_models": [_entry(draft, index) for index in range(len(draft.widths))],
            **draft.figures(),
            "seconds": draft.seconds,
            "bottleneck": draft.bottleneck,
            "explain": draft.explain(),
        }
        out.result(result, lambda: _show(out, draft, explain))
        out.log(f"wrote {output}")
        if pictures is None:
            out.next(f"vitlet partition export {output} -o PLAN --untrained")
        else:
            out.next(f"vitlet partition train {output} --data {data}")


def _entry(draft: Draft, index: int) -> dict[str, object]:
    widths, one = draft.widths[index], draft.costs[index]
    return {
        "slot": index,
        "classes": [draft.labels[c] for c in draft.classes[index]],
        "widths": widths.to_json(),
        "params": one.params,
        "bytes": one.bytes,
        "macs": one.macs,
        "memory": one.memory,
        "devices": list(draft.placements[index].devices),
        "latency": draft.placements[index].seconds,
    }


def _show(out: Output, draft: Draft, explain: bool) -> None:
    from vitlet.apps.units import count, milliseconds, size

    rows = []
    for index, (place, widths, one) in enumerate(
        zip(draft.placements, draft.widths, draft.costs, strict=True)
    ):
        names = ", ".join(draft.labels[c] for c in draft.classes[index])
        cells = (widths.heads[0], widths.dim, size(one.bytes), count(one.macs))
        rows.append(
            (index, *cells, milliseconds(1e3 * place.seconds), "+".join(place.devices), names)
        )
    heads = (">slot", ">heads", ">dim", ">bytes", ">MACs", ">ms", "~devices", "~classes")
    out.print(columns(heads, rows))
    figures = draft.figures()
    per, whole = figures["per_device"], figures["total"]
    out.print(
        f"\nlargest device: {size(per['bytes'])}, {per['bytes_ratio']:.1f}x smaller, "
        f"{per['macs_ratio']:.1f}x fewer MACs than the full model; all together "
        f"{size(whole['bytes'])}, {whole['bytes_ratio']:.1f}x smaller"
    )
    if explain:
        out.print("", *draft.explain())
