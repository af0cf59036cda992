"""Which units to keep: what the ways of ranking them are worth before anything is retrained.

    python benchmarks/partition_ranking.py --work DIR    # DIR: of benchmarks/partition.py

The full model is cut once, by each ranking, and asked to tell the test pictures of a sub-model's
own classes apart. Equal bytes; three deals of the classes to five devices; mean and deviation over
the fifteen sub-models. Training hides most of it: benchmarks/partition.py shows what is left.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from _partition import FULL, QUICK, Bench

from vitlet.compress.training import Recipe
from vitlet.partition.submodels.features import logits
from vitlet.partition.submodels.prune import Ranking, Task, make_submodel
from vitlet.partition.submodels.widths import keep_heads

RANKINGS: tuple[Ranking, ...] = ("class-wise", "uniform", "magnitude")
SEEDS = (0, 1, 2)
HEADS = (6, 4)
DEVICES = 5
NONE = Recipe(epochs=0)


def accuracy(
    bench: Bench, classes: tuple[int, ...], heads: int, ranking: Ranking, seed: int
) -> float:
    """Return how many pictures of these classes an untrained sub-model tells apart rightly."""
    task = Task(
        "cut", classes, keep_heads(bench.geometry, heads), seed, NONE, NONE, ranking,
        pictures=bench.scale.scored,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        vit = make_submodel(bench.lecture, task, Path(folder)).vit
    own = torch.tensor(classes)
    members = torch.isin(bench.judged.labels, own).nonzero()[:, 0]
    with torch.no_grad():
        said = torch.cat([logits(vit, bench.judged.batch(part)) for part in members.split(500)])
    return float((own[said[:, own].argmax(1)] == bench.judged.labels[members]).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="of benchmarks/partition.py")
    parser.add_argument("--dataset", type=Path, help="folder of Fashion-MNIST's four .gz files")
    parser.add_argument("--quick", action="store_true", help="as of benchmarks/partition.py")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(QUICK if args.quick else FULL, args.work, args.dataset)
    print(f"{'heads kept':>10}" + "".join(f"{name:>22}" for name in RANKINGS))
    for heads in HEADS:
        line = f"{heads:>5} of {bench.geometry.heads}"
        for ranking in RANKINGS:
            found = [
                100 * accuracy(bench, classes, heads, ranking, seed)
                for seed in SEEDS
                for classes in bench.classes("balanced-random", DEVICES, seed)
            ]
            line += f"{statistics.fmean(found):>14.2f} +-{statistics.stdev(found):>4.1f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
