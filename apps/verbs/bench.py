"""`vitlet bench`: how fast a bundle is here, and how much memory it takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitlet.apps.options import Json, NoProgress, Quiet, Seed, Verbose
from vitlet.apps.output import Output, columns

if TYPE_CHECKING:
    from vitlet.apps.bench_run import Measured

_PROFILE, _EXPERTS = "Device file", "Mixtures"
_AGREE = 0.999  # cosine below which two engines are said to compute different things


def bench(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            metavar="BUNDLE", help="What `vitlet export` made; for --experts a model of the zoo."
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            metavar="LIST",
            help="ort, tvm, coreml; by default the first two that run.",
        ),
    ] = None,
    graph: Annotated[
        str | None, typer.Option("--graph", metavar="NAME", help="By default the image graph.")
    ] = None,
    threads: Annotated[
        str, typer.Option("--threads", metavar="LIST", help="Thread counts, such as 1,2.")
    ] = "1",
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch", metavar="LIST", help="Such as 1,8; by default what it was made for."
        ),
    ] = None,
    duration: Annotated[
        str | None,
        typer.Option(
            "--duration", metavar="TIME", help="Per configuration, such as 10s. [default: 2s]"
        ),
    ] = None,
    iters: Annotated[
        int | None, typer.Option("--iters", metavar="N", min=1, help="Runs, instead of a duration.")
    ] = None,
    warmup: Annotated[
        int, typer.Option("--warmup", metavar="N", min=0, help="Runs not counted.")
    ] = 10,
    percentiles: Annotated[
        str, typer.Option("--percentiles", metavar="LIST", help="Of the latency.")
    ] = "50,90,99",
    cold: Annotated[
        bool, typer.Option("--cold", help="Load from disk too, not from the page cache.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw it (.png, .svg, .pdf).")
    ] = None,
    device_profile: Annotated[
        Path | None,
        typer.Option(
            "--device-profile",
            metavar="FILE",
            help="Measure this machine, without a bundle, and write its entry into the device "
            "file of `vitlet partition` (.toml, .json).",
            rich_help_panel=_PROFILE,
        ),
    ] = None,
    device_name: Annotated[
        str | None,
        typer.Option(
            "--device-name",
            metavar="NAME",
            help="Of the entry; by default this machine's.",
            rich_help_panel=_PROFILE,
        ),
    ] = None,
    experts: Annotated[
        Path | None,
        typer.Option(
            "--experts",
            metavar="FILE",
            help="Measure a token in the dense and the shift kernel for each linear layer of a "
            "model, for `vitlet compress shift-add --latency` (.json).",
            rich_help_panel=_EXPERTS,
        ),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Measure load time, latency, throughput and memory."""
    from vitlet.apps import bench_run, machine
    from vitlet.apps.files import check_plot
    from vitlet.apps.hints import existing
    from vitlet.apps.lists import duration as parse_duration
    from vitlet.apps.lists import numbers, words
    from vitlet.errors import UsageError
    from vitlet.runtime.select import CHECKING, SLOW, engine_name

    with Output(json, quiet, verbose, not no_progress) as out:
        if iters is not None and duration is not None:
            raise UsageError("--iters and --duration exclude each other: give one")
        if experts is not None:
            if device_profile is not None or bundle is None:
                raise UsageError("--experts measures the layers of one MODEL of the zoo")
            _experts(out, str(bundle), experts, threads, duration)
            return
        if device_profile is not None:
            _profile(out, bundle, device_profile, device_name, threads, duration)
            return
        if bundle is None or device_name is not None:
            raise UsageError("bench measures a BUNDLE, or this machine with --device-profile FILE")
        existing(bundle, "the bundle")
        wanted = numbers(percentiles, "--percentiles", low=0, high=100)
        seconds = parse_duration(duration or "2s", "--duration")
        if plot is not None:
            check_plot(plot)
        engines = [engine_name(word) for word in words(engine)] if engine else None
        jobs = bench_run.plan(
            bundle,
            None if engines == ["auto"] else engines,
            graph,
            [int(n) for n in numbers(threads, "--threads", low=1, whole=True)],
            [int(n) for n in numbers(batch, "--batch", low=1, whole=True)] if batch else None,
            seed,
        )
        rounds = min(bench_run.ROUNDS, iters) if iters else bench_run.ROUNDS
        with out.bar("measure", rounds * len(jobs)) as advance:
            results = bench_run.measure(
                jobs, warmup=warmup, iters=iters, seconds=seconds, cold=cold, advance=advance
            )
        cosines = bench_run.agreement(results)
        if plot is not None:
            from vitlet.apps.bench_plot import plot as draw

            draw(results, plot, f"{bundle.name} on {machine.hardware()['cpu']}")
        rows = [
            {**result.to_json(wanted), "cosine_with_first": cosine}
            for result, cosine in zip(results, cosines, strict=True)
        ]
        data = {
            "bundle": bundle,
            "machine": machine.hardware(),
            "vitlet": machine.vitlet_facts()["version"],
            "warmup": warmup,
            "results": rows,
            "plot": plot,
        }
        out.result(data, lambda: _show(out, results, wanted))
        if any(job.engine == CHECKING for job in jobs):
            out.warn(SLOW)
        for result, cosine in zip(results, cosines, strict=True):
            if cosine < _AGREE:
                out.warn(
                    f"{result.job.name} computes something else than {results[0].job.name} "
                    f"(cosine {cosine:.4f}): run `vitlet verify {bundle}`"
                )
        if plot is not None:
            out.log(f"wrote {plot}")
        else:
            out.next(f"vitlet bench {bundle} --plot bench.png")


def _profile(
    out: Output,
    bundle: Path | None,
    file: Path,
    name: str | None,
    threads: str,
    duration: str | None,
) -> None:
    from vitlet.apps.device_profile import measure, write
    from vitlet.apps.lists import duration as parse_duration
    from vitlet.apps.lists import numbers
    from vitlet.apps.output import facts
    from vitlet.apps.units import count, milliseconds, size
    from vitlet.errors import UsageError

    counts = numbers(threads, "--threads", low=1, whole=True)
    if bundle is not None or len(counts) != 1:
        raise UsageError("--device-profile measures the machine: no BUNDLE and one thread count")
    seconds = parse_duration(duration or "3s", "--duration")
    with out.progress("measure this machine"):
        device = measure(name, int(counts[0]), seconds)
    replaced = write(device, file)
    out.result(
        {"file": file, "replaced": replaced, "device": device.to_json()},
        lambda: out.print(
            facts(
                [
                    ("device", device.name),
                    ("memory", size(device.memory)),
                    ("speed", f"{count(device.speed)}MAC/s"),
                    ("overhead", f"{milliseconds(1e3 * device.overhead)} ms"),
                ]
            )
        ),
    )
    out.log(f"{'replaced its entry in' if replaced else 'added it to'} {file}")
    out.next(f"vitlet partition plan MODEL --devices {file} -o WORK --data DATA")


def _experts(out: Output, model: str, file: Path, threads: str, duration: str | None) -> None:
    from vitlet.apps import expert_times
    from vitlet.apps.lists import duration as parse_duration
    from vitlet.apps.lists import numbers
    from vitlet.apps.output import columns
    from vitlet.errors import UsageError

    counts = numbers(threads, "--threads", low=1, whole=True)
    if len(counts) != 1:
        raise UsageError("--experts takes one thread count")
    seconds = parse_duration(duration or "300ms", "--duration")
    with out.progress("measure the layers"):
        times = expert_times.measure(model, file, int(counts[0]), seconds)
    heads = (">in", ">out", ">tokens", ">dense us", ">shift us", ">dense share")
    out.result(
        {"file": file, **times.to_json()},
        lambda: out.print(columns(heads, expert_times.rows(times))),
    )
    out.log(f"wrote {file}")
    out.next(f"vitlet compress shift-add {model} --linear moe --latency {file} --data DATA -o DIR")


def _show(out: Output, results: list[Measured], wanted: list[float]) -> None:
    from vitlet.apps.units import milliseconds, plural, size

    # A column for what differs, a line for what does not: the table must fit 80 columns.
    threads, batches = ({getattr(r.job, n) for r in results} for n in ("threads", "batch"))
    same = [f"graph {results[0].job.graph}"]
    same += [plural(results[0].job.threads, "thread")] if len(threads) == 1 else []
    same += [f"batch {results[0].job.batch}"] if len(batches) == 1 else []
    columns_: list[tuple[str, Callable[[Measured], str]]] = [("engine", lambda r: r.job.engine)]
    if len(threads) > 1:
        columns_.append((">thr", lambda r: str(r.job.threads)))
    if len(batches) > 1:
        columns_.append((">batch", lambda r: str(r.job.batch)))
    columns_.append((">load", lambda r: milliseconds(r.load_ms)))
    if results[0].cold_ms is not None:
        columns_.append((">cold", lambda r: milliseconds(r.cold_ms or 0.0)))
    columns_.append((">first", lambda r: milliseconds(r.first_ms)))
    for p in wanted:
        columns_.append((f">p{p:g}", partial(_percentile, p)))
    columns_.append((">per s", lambda r: f"{r.throughput:.1f}"))
    columns_.append((">peak", lambda r: size(r.peak_rss or 0)))
    heads = [head for head, _ in columns_]
    out.print(columns(heads, [[cell(r) for _, cell in columns_] for r in results]))
    runs = sorted(len(r.times_ms) for r in results)
    spread = f"{runs[0]} runs" if runs[0] == runs[-1] else f"{runs[0]} to {runs[-1]} runs"
    out.log(f"{', '.join(same)}; times in ms; {spread}, in turns; a fresh process per row")


def _percentile(p: float, result: Measured) -> str:
    from vitlet.apps.units import milliseconds

    return milliseconds(result.percentile(p))
