"""`vitlet predict`: what is in these images. Needs no torch, but for `--engine coreml`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitlet.apps.options import Engine, Json, NoProgress, Quiet, Verbose
from vitlet.apps.output import Output

if TYPE_CHECKING:
    from vitlet.apps.classify import Answer

_BAR = 16  # characters
_NAME = 32


def predict(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="What `vitlet export` made.")],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="Files, folders or patterns.")
    ],
    topk: Annotated[
        int, typer.Option("--topk", "-k", metavar="N", min=1, help="Guesses per image.")
    ] = 5,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts", metavar="TEXT", help='Class names such as "a dog,a cat" (CLIP bundles).'
        ),
    ] = None,
    engine: Engine = "auto",
    threads: Annotated[
        int, typer.Option("--threads", metavar="N", min=1, help="Threads to use.")
    ] = 1,
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", min=1, help="Images at a time.")
    ] = 8,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Look into folders of folders.")
    ] = False,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write a table too.")
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option("--sheet", metavar="FILE", help="Draw a contact sheet too (.png, .jpg)."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> int:
    """Classify images with a bundle; needs no torch."""
    from vitlet.apps import classify
    from vitlet.apps.hints import existing
    from vitlet.apps.images import find
    from vitlet.apps.units import plural
    from vitlet.errors import CorruptInputError
    from vitlet.runtime.select import CHECKING, SLOW

    with Output(json, quiet, verbose, not no_progress) as out:
        existing(bundle, "the bundle")
        if sheet is not None:
            classify.check_sheet_name(sheet)
        found = find(images, recursive=recursive)
        for other in found.others:
            out.detail(f"not an image: {other}")
        if found.others:
            what = plural(len(found.others), "other file")
            out.log(f"{what} in the folders left alone" + ("" if verbose else " (-v lists them)"))
        with out.progress(f"load {bundle.name}"):
            classifier = classify.Classifier(bundle, engine, threads, prompts)
        with out.bar("classify", len(found.images)) as advance:
            answers = list(classifier.answers(found.images, topk, batch, advance))
        if classifier.session.engine == CHECKING:
            out.log(SLOW)
        failed = [answer for answer in answers if answer.error]
        written: list[Path] = []
        if csv is not None:
            classify.write_csv(csv, answers)
            written.append(csv)
        if sheet is not None:
            written += classify.write_sheet(sheet, answers, classifier)
        info = classifier.session.info
        result = {
            "bundle": bundle,
            "model": info.model,
            "engine": f"{info.engine} {info.engine_version}",
            "images": [_entry(answer) for answer in answers if not answer.error],
            "failed": [{"file": a.file, "error": a.error} for a in failed],
            "written": written,
        }
        out.result(result, lambda: _show(out, answers))
        for path in written:
            out.log(f"wrote {path}")
        for answer in failed:
            out.warn(answer.error)
        if failed:
            raise CorruptInputError(
                f"{plural(len(failed), 'image')} of {len(answers)} could not be read; "
                "the others are above"
            )
        if sheet is None and len(answers) > 1:
            out.next(f"vitlet predict {bundle} {images[0]} --sheet sheet.png")
    return 0


def _entry(answer: Answer) -> dict[str, Any]:
    guesses = [{"label": g.label, "index": g.index, "score": g.score} for g in answer.guesses]
    return {"file": answer.file, "predictions": guesses}


def _show(out: Output, answers: list[Answer]) -> None:
    from rich.table import Table
    from rich.text import Text

    from vitlet.apps.units import percent

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for number, answer in enumerate(answers):
        if number and len(answer.guesses) > 1:
            table.add_row()
        if answer.error:
            table.add_row(Text(short(answer.file)), Text("not read", style="red"))
        for place, guess in enumerate(answer.guesses):
            bar = Text("█" * round(_BAR * guess.score), style="blue" if place == 0 else "dim")
            name = Text(short(answer.file) if place == 0 else "")
            label = Text(guess.label, style="bold" if place == 0 else "")
            table.add_row(name, label, percent(guess.score), bar)
    out.print(table)


def short(path: Path) -> str:
    """Return a path from the current folder, cut on the left to what a table can show."""
    here = Path.cwd()
    text = str(path.relative_to(here) if path.is_relative_to(here) else path)
    return text if len(text) <= _NAME else f"...{text[3 - _NAME :]}"
