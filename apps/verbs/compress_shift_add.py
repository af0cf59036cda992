"""`vitlet compress shift-add`: convert, train back, compile and prove."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitlet.apps.options import Json, NoProgress, Quiet, Seed, Verbose
from vitlet.apps.output import Output, columns

if TYPE_CHECKING:
    from vitlet.compress.shift_add import ShiftAddReport

_MODEL, _TRAINING = "Model", "Training"
_CALIBRATION = 256


def shift_add(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="DeiT or PVT of the zoo, or pkg.module:function.")
    ],
    data: Annotated[
        str,
        typer.Option("--data", metavar="DATA", help="A folder of class folders, or fashion-mnist."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The bundle to write.")
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="TARGETS", help="onnx, coreml, tvm; all.")
    ] = "onnx",
    attention: Annotated[
        str, typer.Option("--attention", metavar="FORM", help="binary or unchanged.")
    ] = "binary",
    linear: Annotated[
        str, typer.Option("--linear", metavar="FORM", help="shift, moe or dense.")
    ] = "dense",
    layers: Annotated[
        str,
        typer.Option("--layers", metavar="WHICH", help="mlp, attention, all, or path patterns."),
    ] = "mlp",
    latency: Annotated[
        Path | None,
        typer.Option(
            "--latency",
            metavar="FILE",
            help="Of the layers of mixtures, from `vitlet bench MODEL --experts FILE`; by default "
            "dense and shift are taken to cost 6 to 4.",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE", help="Checkpoint.", rich_help_panel=_MODEL),
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option("--random-weights", help="To try the machinery.", rich_help_panel=_MODEL),
    ] = False,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="LIST",
            help="What differs from the zoo's model, such as num_classes=10.",
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
    epochs: Annotated[
        int,
        typer.Option(
            "--epochs", metavar="N", min=0, help="0: no training.", rich_help_panel=_TRAINING
        ),
    ] = 10,
    lr: Annotated[
        float | None,
        typer.Option("--lr", metavar="X", help="Highest learning rate.", rich_help_panel=_TRAINING),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(
            "--batch", metavar="N", min=1, help="Pictures a step.", rich_help_panel=_TRAINING
        ),
    ] = 128,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work",
            metavar="DIR",
            help="Training goes on from here; by default beside the bundle.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw the loss by epoch (.png, .svg, .pdf).",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Turn attention into additions and linear layers into shifts."""
    from vitlet._extras import require
    from vitlet.apps.files import check_plot
    from vitlet.apps.lists import words
    from vitlet.apps.partitioning import FullModel, read_config, read_pictures

    with Output(json, quiet, verbose, not no_progress) as out:
        full = FullModel(model, weights, random_weights, read_config(config), preprocess, seed)
        require("torch", extra="torch", why="convert a model")
        import torch

        from vitlet.compress import finetune as tuning
        from vitlet.compress.expert_latency import read_times
        from vitlet.compress.journal_plot import plot_journal
        from vitlet.compress.pictures import Pictures
        from vitlet.compress.shift_add import shift_add as convert
        from vitlet.errors import UsageError
        from vitlet.export.api import export

        for warning in full.warnings:
            out.warn(warning)
        if plot is not None:
            check_plot(plot)
            if not epochs:
                raise UsageError("--plot draws the training: it needs --epochs")
        if latency is not None and linear != "moe":
            raise UsageError("--latency is for --linear moe")
        times = (6.0, 4.0) if latency is None else read_times(latency)
        pictures = read_pictures(data, "train")
        original = full.build()
        spec = full.spec() or getattr(getattr(original, "info", None), "preprocess", None)
        if spec is None:
            raise UsageError(f"{model} does not say what images it takes: give --preprocess FILE")
        some = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
        images = Pictures(pictures, spec).batch(some[:_CALIBRATION])
        choice: Any = attention, linear
        patterns = layers if layers in ("mlp", "attention", "all") else words(layers)
        with out.progress("convert"):
            made, report = convert(
                original, attention=choice[0], linear=choice[1], layers=patterns,
                calibration=images, latency=times,
            )  # fmt: skip
        folder = work or output.with_name(f"{output.name}.work")
        if epochs:
            stage: Any = "shiftadd-moe" if linear != "dense" else "shiftadd-attention"
            settings = tuning.with_recipe(stage, epochs=epochs, batch=batch, lr=lr, seed=seed)

            def note(entry: dict[str, Any]) -> None:
                done = f"epoch {entry['epoch']} of {entry['epochs']}"
                out.log(f"{done}, loss {entry['loss']:.4f}, {entry['seconds']:.1f} s")

            made = tuning.finetune(
                made, pictures, settings, work=folder, teacher=original, preprocess=spec,
                progress=note,
            )  # fmt: skip
            if plot is not None:
                plot_journal(folder / "journal.jsonl", plot)
                out.log(f"wrote {plot}")
        bundle = export(
            made, words(to), output, spec=spec, labels=pictures.classes, force=force,
            progress=out.progress,
        )  # fmt: skip
        changes = report.to_json()
        result = {"bundle": bundle.path, "work": folder if epochs else None, "changes": changes}
        out.result(result, lambda: _show(out, report))
        out.log(f"wrote {output}")
        out.next(f"vitlet predict {output} IMAGE...", f"vitlet bench {output}")


def _show(out: Output, report: ShiftAddReport) -> None:
    rows = [
        (
            change.path,
            change.was,
            change.now,
            "-" if change.error is None else f"{change.error:.2f}",
            change.note,
        )
        for change in report.changes
    ]
    out.print(columns(("layer", "was", "now", ">error before training", "note"), rows))
