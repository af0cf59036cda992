"""Is a ViT that was split by class over N devices as good as the whole one?

    python benchmarks/partition.py --work DIR                 # everything; hours on two cores
    python benchmarks/partition.py --work DIR --stage base    # the full model only
    python benchmarks/partition.py --work DIR --report        # the table of what is there already
    python benchmarks/partition.py --work DIR --quick         # a small model and few pictures

Fashion-MNIST, full test set. The full model has DeiT's layout, 2.4 M parameters and 17 tokens
(patch 7). Everything is kept in DIR and goes on where it was stopped; nothing chooses by the test
pictures. Stages: base, n2, n3, n5, n10, seeds (two more at N = 5), baselines, plan, deit_base.
Latencies are medians of thread CPU time of one picture in ONNX Runtime with one thread, of the
full model and the sub-model in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _partition import FULL, KEEP, QUICK, Bench
from _results import Results, Row

from vitlet.partition.chart import Point, chart
from vitlet.partition.devices import Device
from vitlet.partition.evaluate import evaluate
from vitlet.partition.exporting import export_plan
from vitlet.partition.placing.search import search_widths
from vitlet.partition.submodels.cut import Kept, cut, widths_of
from vitlet.partition.submodels.widths import Geometry, cost, full_cost, keep_heads

SEEDS = (0, 1, 2)
STAGES = (
    "base", "n10", "n5", "n3", "n2", "seeds", "baselines", "plan", "deit_base",
)  # fmt: skip


def split_row(bench: Bench, name: str, devices: int, seed: int, **how: Any) -> Row:
    trained = bench.split(name, devices, seed, **how)
    widths = widths_of(trained.submodels[0])
    price = cost(bench.geometry, widths)
    judged = bench.judge_split(trained)
    return {
        "devices": devices, "seed": seed, **judged, "widths": widths.to_json(),
        "params": price.params, "macs": price.macs, "fusion_macs": trained.fusion.macs(),
    }  # fmt: skip


def baselines(bench: Bench, results: Results) -> None:
    """At N = 5: other rankings, other classes, heads only, and models that are not split at all."""
    for seed in SEEDS:
        results.once(
            f"uniform-n5-s{seed}",
            lambda s=seed: split_row(bench, f"uniform-n5-s{s}", 5, s, ranking="uniform"),
        )
    for name, how in {
        "magnitude-n5-s0": {"ranking": "magnitude"},
        "confusable-n5-s0": {"strategy": "confusable-together"},
        "scratch-n5-s0": {"ranking": "scratch"},
    }.items():
        results.once(name, lambda n=name, h=how: split_row(bench, n, 5, 0, **h))
    small = bench.widths(5)
    price = cost(bench.geometry, small)
    one = {"params": price.params, "macs": price.macs}
    results.once("small-n5", lambda: {"accuracy": bench.small("small-n5", small, 1), **one})
    results.once("ensemble-n5", lambda: {"accuracy": bench.small("small-n5", small, 5), **one})
    whole = keep_heads(bench.geometry, _equal_total(bench, 5 * price.params))
    big = cost(bench.geometry, whole)
    results.once(
        "small-total-n5",
        lambda: {
            "accuracy": bench.small("small-total-n5", whole, 1),
            "params": big.params, "macs": big.macs,
        },
    )  # fmt: skip
    heads = replace(
        keep_heads(bench.geometry, bench.geometry.heads), heads=(1,) * bench.geometry.depth
    )
    results.once(
        "heads-only-n5-s0", lambda: split_row(bench, "heads-only-n5-s0", 5, 0, widths=heads)
    )


def _equal_total(bench: Bench, params: int) -> int:
    """Return how many heads one model keeps that is about as large as all devices together."""
    return min(
        range(1, bench.geometry.heads + 1),
        key=lambda k: abs(cost(bench.geometry, keep_heads(bench.geometry, k)).params - params),
    )


def plan_row(bench: Bench) -> Row:
    """Export the split of five devices, run its bundles on the test set, and compare with torch."""
    trained = bench.split("n5-s0", 5, 0)
    devices = [Device(f"device-{i}", memory=512 * 10**6, speed=1e9) for i in range(5)]
    plan = export_plan(
        trained, bench.model, bench.work / "plan", devices=devices, force=True,
        placement=[[device.name] for device in devices],
        strategy={"classes": "balanced-random", "assign": "one each", "seed": 0},
    )  # fmt: skip
    found = evaluate(plan, bench.judged.data, bench.model)
    (bench.work / "plan.txt").write_text(found.table() + "\n")
    print(found.table())
    return {
        **found.to_json(),
        "accuracy": found.judgement.whole.accuracy,
        "accuracy_torch": bench.judge_split(trained)["accuracy"],
    }


def deit_base_row() -> Row:
    """Plan DeiT-Base for ten devices of 512 MB and cut it there; weights are random."""
    import vitlet

    begin = time.monotonic()
    model = vitlet.create_model("deit_base")
    geometry = Geometry.of(model)
    devices = [Device(f"device-{i}", memory=512 * 10**6, speed=5e8) for i in range(10)]
    found = search_widths(geometry, 10, devices, keep=2, mode="global")
    widths = found.widths[0]
    kept = Kept(
        tuple(range(widths.dim)),
        tuple(tuple(range(count)) for count in widths.heads),
        tuple(tuple(range(count)) for count in widths.hidden),
    )
    small = cut(model, kept)
    params = sum(p.numel() for name, p in small.named_parameters() if not name.startswith("head."))
    seconds = time.monotonic() - begin
    whole = full_cost(geometry)
    return {
        "keep": found.keep[0], "seconds": seconds, "params": params,
        "predicted_params": found.costs[0].params, "size_ratio": whole.params / params,
        "macs_ratio": whole.macs / found.costs[0].macs,
        "same_layout_macs_ratio": whole.macs / cost(geometry, widths, all_tokens=True).macs,
    }  # fmt: skip


def latencies(bench: Bench) -> Row:
    """Measure the full model and every sub-model in turn, and the median of the ratios."""
    row: Row = {}
    for devices in sorted(KEEP):
        name = f"n{devices}-s0"
        if not (bench.work / "results" / f"{name}.json").is_file():
            continue
        trained = bench.split(name, devices, 0)
        ratios = []
        for _ in range(5):
            whole, part = bench.measured_full(0.3), bench.measured(trained, 0.3)
            ratios.append(whole["latency"] / part["latency"])
        row["full"] = whole
        row[str(devices)] = {**part, "times_faster": statistics.median(ratios)}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="everything is kept here")
    parser.add_argument("--dataset", type=Path, help="folder of Fashion-MNIST's four .gz files")
    parser.add_argument("--stage", action="append", choices=STAGES, help="default: all")
    parser.add_argument("--quick", action="store_true", help="a small model and few pictures")
    parser.add_argument("--report", action="store_true", help="train nothing: print what is known")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--short", type=int, help="epochs after each cut; default 1")
    parser.add_argument("--long", type=int, help="epochs in the end; default 20")
    parser.add_argument("--limit", type=int, help="own pictures in an epoch; default 6000")
    parser.add_argument("--no-mirror", action="store_true", help="half the work of the teacher")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = Results(args.work)
    if not args.report:
        run(args, results)
    print(report(results))
    points = _points(results)
    full = results.get("base")
    if points and full:
        chart(points, args.work / "partition.png", full=(full["accuracy"], full["bytes"]))


def run(args: argparse.Namespace, results: Results) -> None:
    stages = args.stage or list(STAGES)
    if "deit_base" in stages:
        results.once("deit_base", deit_base_row)
    if stages == ["deit_base"]:
        return
    scale = QUICK if args.quick else FULL
    given = {name: getattr(args, name) for name in ("short", "long", "limit")}
    scale = replace(scale, **{name: n for name, n in given.items() if n is not None})
    scale = replace(scale, mirror=scale.mirror and not args.no_mirror)
    bench = Bench(scale, args.work, args.dataset)
    whole = full_cost(bench.geometry)
    results.once(
        "base",
        lambda: {
            "accuracy": bench.accuracy_of_full(), "params": whole.params, "macs": whole.macs,
            **bench.measured_full(0.5),
        },
    )  # fmt: skip
    for devices in sorted(KEEP, reverse=True):
        if f"n{devices}" in stages:
            name = f"n{devices}-s0"
            results.once(name, lambda n=name, d=devices: split_row(bench, n, d, 0))
    if "seeds" in stages:
        for seed in SEEDS[1:]:
            results.once(f"n5-s{seed}", lambda s=seed: split_row(bench, f"n5-s{s}", 5, s))
    if "baselines" in stages:
        baselines(bench, results)
    if "plan" in stages:
        results.once("plan", lambda: plan_row(bench))
    if any((args.work / "results" / f"n{n}-s0.json").is_file() for n in KEEP):
        row = latencies(bench)
        (args.work / "results" / "latencies.json").write_text(json.dumps(row, indent=1) + "\n")


def _points(results: Results) -> list[Point]:
    times = results.get("latencies") or {}
    points = []
    for devices in sorted(KEEP):
        row, measured = results.get(f"n{devices}-s0"), times.get(str(devices))
        if row is not None and measured is not None:
            size = measured["bytes"]
            points.append(
                Point(devices, row["accuracy"], min(row["one_lost"]), size, size * devices)
            )
    return points


def report(results: Results) -> str:
    """Return the evidence: what was reached, what was to be, and blanks for what was not run."""
    from _partition_report import lines

    return "\n".join(lines(results.get))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
