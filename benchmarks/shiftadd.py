"""What do additions and shifts cost in accuracy, and what do they save?

    python benchmarks/shiftadd.py --work DIR                     # everything; hours on one core
    python benchmarks/shiftadd.py --work DIR --stage vit --stage pvt    # accuracy only
    python benchmarks/shiftadd.py --work DIR --stage latency     # PVTv2-B0 in ONNX Runtime
    python benchmarks/shiftadd.py --work DIR --report            # the tables of what is there

Accuracy is on Fashion-MNIST's 10,000 test pictures, of the shipped `vit_fashion` and of a small
PVTv2 that is trained here; they choose nothing. Everything is kept in DIR and goes on where it was
stopped. Stages: mixtures (of the ViT, attention unchanged), vit, pvt (one row after the other: seed
0 first), latency, energy, bytes. Latencies are medians of thread CPU time of one picture in ONNX
Runtime with one thread, all files in turn.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from _results import Results
from _shiftadd import Amounts, Bench
from _shiftadd_latency import energy, latencies, weight_bytes
from _shiftadd_report import SEEDS, lines

STAGES = ("mixtures", "vit", "pvt", "latency", "energy", "bytes")
# Converted and not trained: attention, what linear layers become, and which.
ONESHOT = {
    "attention": (True, "dense", "mlp"),
    "mlp": (False, "shift", "mlp"),
    "all": (False, "shift", "all"),
    "both": (True, "shift", "mlp"),
}


def accuracies(bench: Bench, results: Results, seeds: tuple[int, ...]) -> None:
    """Fill the rows of one model."""
    kind = bench.kind
    results.once(f"{kind}-original", lambda: bench.judge(bench.model))
    for seed in seeds:
        results.once(f"{kind}-attention-s{seed}", lambda s=seed: bench.judge(bench.attention(s)))
        for row in ("moe", "mlp"):
            results.once(
                f"{kind}-{row}-s{seed}", lambda r=row, s=seed: bench.judge(bench.linear(r, s))
            )
        for name, how in ONESHOT.items() if seed == 0 else ():
            results.once(f"{kind}-oneshot-{name}", lambda h=how: bench.judge(bench.converted(*h)))
    results.once(f"{kind}-control-s0", lambda: bench.judge(bench.control()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="everything is kept here")
    parser.add_argument("--dataset", type=Path, help="folder of Fashion-MNIST's four .gz files")
    parser.add_argument("--stage", action="append", choices=STAGES, help="default: all")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many of three")
    parser.add_argument("--attention", type=int, help="pictures that train converted attention")
    parser.add_argument("--linear", type=int, help="pictures that train converted linear layers")
    parser.add_argument("--base", type=int, help="pictures that train the PVT")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing for each size")
    parser.add_argument("--threads", type=int, default=1, help="of training")
    parser.add_argument("--report", action="store_true", help="train nothing: print what is known")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = Results(args.work)
    stages = () if args.report else args.stage or STAGES
    given = {name: getattr(args, name) for name in ("base", "attention", "linear")}
    amounts = replace(Amounts(), **{name: n for name, n in given.items() if n is not None})
    for kind in ("vit", "pvt"):
        if kind in stages:
            bench = Bench(kind, args.work / kind, args.dataset, amounts)
            accuracies(bench, results, SEEDS[: args.seeds])
    if "mixtures" in stages:
        bench = Bench("vit", args.work / "vit", args.dataset, amounts)
        for seed in SEEDS[: args.seeds]:
            results.once(f"vit-mixtures-s{seed}", lambda s=seed: bench.judge(bench.mixtures(s)))
    if "energy" in stages:
        results.once("energy", energy)
    if "bytes" in stages:
        results.once("bytes", lambda: weight_bytes(args.work))
    if "latency" in stages:
        latencies(args.work, results, args.seconds)
    print("\n".join(lines(results.get)))


if __name__ == "__main__":
    main()
