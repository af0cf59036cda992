"""`vitlet demo`: the main job, start to end, on the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitlet.apps.options import Json, NoProgress, Quiet, Verbose
from vitlet.apps.output import Output, columns, mark

if TYPE_CHECKING:
    from vitlet.apps.demo_cluster import ClusterAct
    from vitlet.apps.demonstration import Demonstration


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where everything goes.")
    ] = Path("vitlet-demo"),
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Export, prove, measure and classify, with the embedded models."""
    from vitlet._extras import require
    from vitlet.apps.demo_report import next_commands
    from vitlet.apps.demonstration import Demonstration
    from vitlet.apps.units import seconds

    with Output(json, quiet, verbose, not no_progress) as out:
        # What the last steps need, so that nobody waits for minutes to be told.
        require("PIL", extra="runtime", why="draw the contact sheet")
        require("matplotlib", extra="report", why="draw the benchmark")
        run = Demonstration(output, out.progress)
        run.export()
        run.measure()
        run.classify()
        report = run.draw()
        act = _second_act(out, run)
        data: dict[str, Any] = {
            "model": run.model,
            "seconds": run.seconds,
            "images": len(run.truth),
            "artifacts": run.rows(),
            "verification": run.verification,
            "report": report,
            "folder": output,
            "cluster": None if act is None else act.to_json(),
        }
        out.result(data, lambda: _show(out, run, act))
        out.log(f"\ndone in {seconds(run.seconds)}; open {report}")
        for name, what in (
            (f"{run.model}.vitlet", "the bundle: three artefacts, manifest, golden outputs"),
            ("verification.html", "every figure of the verification"),
            ("bench.png, sheet.png", "the pictures of the report"),
            ("images", "some of the test images"),
            *[("cluster/plan", "the split model: `vitlet run` takes it")] * (act is not None),
        ):
            out.log(f"  {name:<22} {what}")
        out.next(*next_commands(run))


def _second_act(out: Output, run: Demonstration) -> ClusterAct | None:
    """Split the embedded ViT over three workers and kill one; None without the packages for it."""
    from importlib.util import find_spec

    from vitlet.apps.demo_cluster import ClusterAct
    from vitlet.data.demo import demo_images

    if find_spec("zenoh") is None:
        out.warn('the second act, a split model on three workers, needs pip install "vitlet[edge]"')
        return None
    act = ClusterAct(run.folder / "cluster", out.progress)
    act.export()
    images, truth, _ = demo_images()
    act.run(images, truth)
    return act


def _show(out: Output, run: Demonstration, act: ClusterAct | None) -> None:
    from vitlet.apps.units import milliseconds, percent, size

    rows = []
    for row in run.rows():
        passed = row["status"] == "passed"
        how = "executed" if row["method"] == "executed" else "inspected"
        rows.append(
            (
                row["target"],
                row["precision"],
                size(row["bytes"]),
                mark(passed, how if passed else str(row["status"])),
                "-" if row["cosine"] is None else f"{row['cosine']:.6f}",
                "-" if row["accuracy"] is None else percent(row["accuracy"]),
                "-" if row["p50_ms"] is None else f"{milliseconds(row['p50_ms'])} ms",
                "-" if row["peak_rss"] is None else size(row["peak_rss"]),
            )
        )
    heads = ("target", "", ">size", "verified", ">cosine", ">accuracy", ">median", ">memory")
    out.print(columns(heads, rows))
    if act is not None:
        _show_cluster(out, act)


def _show_cluster(out: Output, act: ClusterAct) -> None:
    from vitlet.apps.units import milliseconds, percent, seconds, size

    assert act.plan is not None
    labels = act.plan.labels
    parts = [
        (s.devices[0], s.index, size(s.bytes), ", ".join(labels[c] for c in s.classes))
        for s in act.plan.slots
    ]
    out.print("\nvit_fashion, split over three workers of this machine")
    out.print(columns(("worker", ">slot", ">size", "classes"), parts))
    rows = []
    for stage in act.stages:
        absent = ", ".join(map(str, stage.missing))
        rows.append(
            (
                stage.when,
                mark(not absent, f"without slot {absent}" if absent else "full"),
                percent(stage.accuracy),
                percent(stage.covered_accuracy),
                f"{milliseconds(stage.p50_ms)} ms",
            )
        )
    heads = ("", "answers", ">accuracy", ">of covered classes", ">median")
    out.print("")
    out.print(columns(heads, rows))
    same = "bit for bit" if act.same_as_one_process else "NOT bit for bit"
    out.print(f"as one process answers: {same}; full again {seconds(act.recovery)} after the start")
