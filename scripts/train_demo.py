"""Train the models that ship inside the package, on Fashion-MNIST, and measure them.

    python scripts/train_demo.py casvit_fashion              # writes the weights and their accuracy
    python scripts/train_demo.py vit_fashion
    python scripts/train_demo.py --evaluate casvit_fashion   # accuracy of the shipped weights
    python scripts/train_demo.py --bundle-images             # the 200 test images of the demo

The data are the four idx files of Debian's package dataset-fashion-mnist; nothing is downloaded.
The weights kept are the moving average after the last epoch: the test set chooses nothing. The
same seed, number of threads and processor give the same weights.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vitlet.data.preprocess import preprocess
from vitlet.models.registry import ModelInfo, create_model, model_info

PACKAGE = Path(__file__).resolve().parents[1] / "python" / "vitlet"
ASSETS = PACKAGE / "models" / "assets"
DATASET = Path("/usr/share/datasets/fashion-mnist")
LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
PER_CLASS = 20


@dataclass(frozen=True)
class Recipe:
    """How long, and in which portions, a model is trained."""

    epochs: int
    batch: int
    bf16: bool
    lr: float
    shift: int
    erase: float
    xavier: bool


RECIPES = {
    "casvit_fashion": Recipe(
        epochs=10, batch=128, bf16=False, lr=2e-3, shift=2, erase=0.1, xavier=False
    ),
    "vit_fashion": Recipe(
        epochs=12, batch=128, bf16=True, lr=1.5e-3, shift=1, erase=0.0, xavier=True
    ),
}


def read_split(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images (N, 28, 28) and labels (N,) of "train" or "t10k"."""
    with gzip.open(folder / f"{split}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / f"{split}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    return images, labels


def prepare(images: NDArray[np.uint8], info: ModelInfo) -> Tensor:
    """Return the model's input, (N, 1, H, W) float32, as `vitlet predict` makes it."""
    return torch.from_numpy(preprocess(images[..., None], info.preprocess))


def augment(x: Tensor, rng: torch.Generator, *, shift: int, erase: float) -> Tensor:
    """Mirror, shift by up to `shift` pixels, and blank one rectangle in a share of the images."""
    n, _, height, width = x.shape
    flip = torch.rand(n, generator=rng) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    low = float(x.min())
    padded = F.pad(x, (shift,) * 4, value=low)
    dy, dx = torch.randint(0, 2 * shift + 1, (2, n), generator=rng)
    rows = dy[:, None] + torch.arange(height)
    cols = dx[:, None] + torch.arange(width)
    x = padded[torch.arange(n)[:, None, None], 0, rows[:, :, None], cols[:, None, :]].unsqueeze(1)
    size = torch.randint(height // 8, height // 3 + 1, (2, n), generator=rng)
    top = (torch.rand(n, generator=rng) * (height - size[0])).long()
    left = (torch.rand(n, generator=rng) * (width - size[1])).long()
    inside_y = (torch.arange(height) >= top[:, None]) & (
        torch.arange(height) < (top + size[0])[:, None]
    )
    inside_x = (torch.arange(width) >= left[:, None]) & (
        torch.arange(width) < (left + size[1])[:, None]
    )
    chosen = torch.rand(n, generator=rng) < erase
    hole = inside_y[:, :, None] & inside_x[:, None, :] & chosen[:, None, None]
    return x.masked_fill(hole.unsqueeze(1), low)


def new_model(info: ModelInfo) -> nn.Module:
    """Build the model of `info` with default initialisation."""
    module, function = info.factory.split(":")
    model: nn.Module = getattr(importlib.import_module(module), function)(**info.config)
    if RECIPES[info.name].xavier:
        # The usual deviation of 0.02 is made for wide models: at a width of 96 it starts too small.
        for layer in model.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight.view(len(layer.weight), -1))
    return model


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, list[float]]:
    """Return top-1 accuracy, overall and per class."""
    predicted = torch.cat([model.eval()(part).argmax(1) for part in x.split(500)])
    per_class = [float((predicted[y == c] == c).float().mean()) for c in range(len(LABELS))]
    return float((predicted == y).float().mean()), per_class


def train(info: ModelInfo, args: argparse.Namespace) -> dict[str, Tensor]:
    """Train and return the moving average of the weights after the last epoch."""
    torch.manual_seed(args.seed)
    rng = torch.Generator().manual_seed(args.seed)
    images, labels = read_split(args.dataset, "train")
    x, y = prepare(images, info), torch.from_numpy(labels)
    model = new_model(info).to(memory_format=torch.channels_last)
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=args.lr,
    )
    steps = args.epochs * (len(x) // args.batch)
    warmup = steps // 20
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: (
            (s + 1) / warmup
            if s < warmup
            else 0.5 * (1 + math.cos(math.pi * (s - warmup) / (steps - warmup)))
        ),
    )
    state = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    average = {k: v.detach().clone() for k, v in state.items()}
    weights, averaged = list(state.values()), list(average.values())
    for epoch in range(args.epochs):
        model.train()
        started, total = time.monotonic(), 0.0
        order = torch.randperm(len(x), generator=rng)[: len(x) // args.batch * args.batch]
        for index in order.split(args.batch):
            batch = augment(x[index], rng, shift=args.shift, erase=args.erase)
            batch = batch.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                logits = model(batch)
            loss = F.cross_entropy(logits.float(), y[index], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
            with torch.no_grad():
                torch._foreach_lerp_(averaged, weights, 1 - args.ema)
        mean, took = total / (len(x) // args.batch), time.monotonic() - started
        print(f"epoch {epoch + 1}/{args.epochs} loss {mean:.4f} {took:.0f} s", flush=True)
    return {**model.state_dict(), **average}


def save(state: dict[str, Tensor], path: Path) -> None:
    """Write weights in half precision."""
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in half.items()}, path)
    path.chmod(0o644)  # safetensors writes files that only their owner can read


def evaluate(info: ModelInfo, weights: Path, dataset: Path) -> dict[str, object]:
    """Measure the weights in the file, as users load them, on all 10,000 test images."""
    model = create_model(info.name, weights)
    images, labels = read_split(dataset, "t10k")
    top1, per_class = accuracy(model, prepare(images, info), torch.from_numpy(labels))
    return {
        "images": len(images),
        "top1": round(top1, 4),
        "per_class": dict(zip(LABELS, (round(v, 3) for v in per_class), strict=True)),
        "bytes": weights.stat().st_size,
    }


def publish(info: ModelInfo, measured: dict[str, object], path: Path) -> None:
    """Note the measured accuracy beside the weights."""
    known = json.loads(path.read_text()) if path.is_file() else {}
    known[info.name] = measured
    path.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


def bundle_images(dataset: Path) -> None:
    """Write the first 20 test images of each class, their labels and the class names."""
    images, labels = read_split(dataset, "t10k")
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:PER_CLASS] for c in range(10)]))
    folder = PACKAGE / "data" / "assets"
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        folder / "fashion_test.npz",
        images=images[chosen],
        labels=labels[chosen],
        indices=chosen,
    )
    (folder / "fashion_labels.txt").write_text("\n".join(LABELS) + "\n")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", choices=sorted(RECIPES))
    parser.add_argument("--evaluate", action="store_true", help="measure the shipped weights only")
    parser.add_argument("--bundle-images", action="store_true", help="write the demo's test images")
    parser.add_argument("--dataset", type=Path, default=DATASET, help="folder of the idx files")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder of the weights")
    parser.add_argument("--epochs", type=int, help="default: the model's recipe")
    parser.add_argument("--batch", type=int, help="default: the model's recipe")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="default: the recipe")
    parser.add_argument("--lr", type=float, help="default: the model's recipe")
    parser.add_argument("--shift", type=int, help="largest shift, in pixels; default: the recipe")
    parser.add_argument(
        "--erase", type=float, help="share of images with a hole; default: the recipe"
    )
    parser.add_argument("--ema", type=float, default=0.998, help="decay of the moving average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.model is None and not args.bundle_images:
        parser.error("name a model, or give --bundle-images")
    if not (args.dataset / "t10k-images-idx3-ubyte.gz").is_file():
        parser.error(f"no Fashion-MNIST in {args.dataset}: apt install dataset-fashion-mnist")
    torch.set_num_threads(args.threads)
    if args.bundle_images:
        bundle_images(args.dataset)
    if args.model is None:
        return
    for name, value in vars(RECIPES[args.model]).items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
    info = model_info(args.model)
    weights = args.out / f"{info.name}.safetensors"
    if not args.evaluate:
        save(train(info, args), weights)
    measured = evaluate(info, weights, args.dataset)
    if not args.evaluate:
        publish(info, measured, args.out / "accuracy.json")
    print(json.dumps({"model": info.name, **measured}, indent=1))


if __name__ == "__main__":
    main()
