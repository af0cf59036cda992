"""`vitlet partition train`: train what was planned; can be stopped and goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitlet.apps.options import Json, NoProgress, Quiet, Seed, Verbose
from vitlet.apps.output import Output


def train(
    work: Annotated[
        Path, typer.Argument(metavar="WORK", help="What `vitlet partition plan` began.")
    ],
    data: Annotated[
        str,
        typer.Option("--data", metavar="DATA", help="A folder of class folders, or fashion-mnist."),
    ],
    epochs: Annotated[
        int, typer.Option("--epochs", metavar="N", min=0, help="Of a sub-model's last training.")
    ] = 30,
    short_epochs: Annotated[
        int, typer.Option("--short-epochs", metavar="N", min=0, help="After each of three cuts.")
    ] = 5,
    fusion_epochs: Annotated[
        int, typer.Option("--fusion-epochs", metavar="N", min=1, help="Of the fusion.")
    ] = 15,
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", min=1, help="Pictures a step.")
    ] = 128,
    lr: Annotated[float, typer.Option("--lr", metavar="X", help="Highest learning rate.")] = 1e-3,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", metavar="N", min=1, help="Own pictures in an epoch; by default all."
        ),
    ] = None,
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Mirrored pictures show the same class.")
    ] = False,
    jobs: Annotated[
        int, typer.Option("--jobs", metavar="N", min=1, help="Sub-models at once.")
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray", metavar="ADDRESS", help="Train on this Ray cluster; local starts one."
        ),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Train sub-models and fusion; run again to go on."""
    from vitlet._extras import require
    from vitlet.apps.partitioning import read_pictures
    from vitlet.apps.units import percent, plural

    with Output(json, quiet, verbose, not no_progress) as out:
        from vitlet.partition.draft import read_draft

        draft = read_draft(work)
        require("torch", extra="torch", why="train sub-models")
        if ray is not None:
            require("ray", extra="ray", why="train on a cluster")
        from vitlet.compress.training import Recipe
        from vitlet.partition.splitting import check_data, train_planned
        from vitlet.partition.submodels.fusion import FusionTask
        from vitlet.partition.submodels.train import Settings

        settings = Settings(
            short=Recipe(short_epochs, batch, lr),
            long=Recipe(epochs, batch, lr),
            fusion=FusionTask(Recipe(fusion_epochs, 2 * batch, lr), seed=seed),
            limit=limit,
            mirror=mirror,
            seed=seed,
        )
        pictures = read_pictures(data, "train")
        check_data(draft, pictures)

        def note(entry: dict[str, Any]) -> None:
            done = f"{entry['run']}: epoch {entry['epoch']} of {entry['epochs']}"
            out.log(f"{done}, loss {entry['loss']:.4f}, {entry['seconds']:.1f} s")

        with out.progress(f"train {plural(len(draft.widths), 'sub-model')}"):
            trained = train_planned(
                work, pictures, settings=settings, jobs=jobs, ray=ray, epochs=note
            )
        facts = trained.facts
        result = {"work": work, "temperature": trained.temperature, **facts}
        out.result(
            result,
            lambda: out.print(
                f"on {facts['held_out']} held-out pictures: split "
                f"{percent(facts['held_out_accuracy'])}, full model "
                f"{percent(facts['held_out_accuracy_full'])}"
            ),
        )
        out.next(f"vitlet partition export {work} -o PLAN")
