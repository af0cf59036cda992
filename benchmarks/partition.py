"""base only for now."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.nn import functional as F

from vitlet.data.labelled import fashion_mnist
from vitlet.data.spec import Preprocess
from vitlet.models.deit import DeiT
from vitlet.partition.features import logits
from vitlet.partition.pictures import Pictures
from vitlet.partition.training import Recipe, Run, file_journal, seeded, train

SPEC = Preprocess(size=(28, 28), resize_to=28, mean=(0.2860,), std=(0.3530,), mode="L")
CONFIG = {
    "dim": 256,
    "depth": 3,
    "heads": 8,
    "patch_size": 7,
    "num_classes": 10,
    "img_size": 28,
    "in_chans": 1,
}


def base_run(epochs: int) -> Run:
    data = fashion_mnist("train")
    pictures = Pictures(data, SPEC, mirror=True)
    torch.manual_seed(0)
    model = DeiT(**CONFIG)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            # The usual deviation of 0.02 is made for wide models: here it starts too small.
            torch.nn.init.xavier_uniform_(layer.weight.view(len(layer.weight), -1))

    def loss(indices: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        x = pictures.batch(indices, pictures.draw_views(len(indices), rng))
        return F.cross_entropy(logits(model, x), pictures.labels[indices], label_smoothing=0.1)

    recipe = Recipe(epochs=epochs, batch=128, lr=1e-3)
    inputs = {"data": data.fingerprint(), "model": CONFIG}
    return Run("base", model, pictures.shuffled, loss, recipe, 0, inputs)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    torch.set_num_threads(1)
    train(base_run(args.epochs), args.work / "base", file_journal(args.work / "journal.jsonl"))


if __name__ == "__main__":
    main()
