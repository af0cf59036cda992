"""One training run: seeded, stopped at any time, and resumed to the same weights bit for bit.

Nothing random outlives an epoch: its order and its augmentation come from a generator seeded by
the run's seed and the epoch's number, and the learning rate is a function of the step. So the state
of a run is the weights, their moving average and the optimizer's moments after a whole epoch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitlet._extras import require
from vitlet.checkpoint import load_state_dict
from vitlet.errors import CheckpointError, StorageError, TrainingError, UsageError

Journal = Callable[[dict[str, Any]], None]

WEIGHTS, STATE, RECORD = "weights.safetensors", "state.pt", "run.json"


@dataclass(frozen=True)
class Recipe:
    """How long, and in which portions, a run trains: AdamW, linear warm-up, cosine to zero.

    Attributes:
        epochs: passes over the run's pictures.
        batch: pictures a step.
        lr: the highest learning rate.
        weight_decay: of matrices; vectors have none.
        warmup: share of the steps in which the rate rises.
        average: decay of the moving average of the weights, which is what is kept; 0: none.
        clip: largest norm of the gradient.
    """

    epochs: int
    batch: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    average: float = 0.998
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch < 1:
            raise UsageError(
                f"expected epochs >= 0 and batch >= 1, got {self.epochs} and {self.batch}"
            )
        if not self.lr > 0 or not 0 <= self.warmup < 1 or not 0 <= self.average < 1:
            raise UsageError(
                "expected lr > 0 and warmup and average in [0, 1), got "
                f"lr {self.lr}, warmup {self.warmup}, average {self.average}"
            )


@dataclass(frozen=True)
class Run:
    """What is trained, and on what.

    Attributes:
        name: for the journal.
        model: everything with weights, auxiliary heads included; trained in place.
        order: gives the indices of an epoch's pictures, shuffled, (n,) int64.
        loss: of the pictures at such indices; a scalar.
        recipe: how long.
        seed: of order and augmentation.
        inputs: whatever else decides the result (hashes of data and teacher, classes), as JSON.
    """

    name: str
    model: nn.Module
    order: Callable[[torch.Generator], Tensor]
    loss: Callable[[Tensor, torch.Generator], Tensor]
    recipe: Recipe
    seed: int
    inputs: Mapping[str, Any]

    def key(self) -> str:
        """Return a hash of everything that decides the result but the code and the thread count."""
        facts = {"recipe": asdict(self.recipe), "seed": self.seed, "inputs": self.inputs}
        shapes = {name: list(t.shape) for name, t in self.model.state_dict().items()}
        text = json.dumps({**facts, "shapes": shapes}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def file_journal(path: str | os.PathLike[str]) -> Journal:
    """Return a journal that appends one JSON object a line to `path`.

    After a kill the line of an epoch may come twice; both say the same but for the seconds.
    """
    place = Path(path)

    def write(entry: dict[str, Any]) -> None:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise StorageError(f"cannot write {place}: {error.strerror or error}") from error

    return write


def quiet_journal(entry: dict[str, Any]) -> None:
    """Keep no journal."""


def seeded(*parts: int | str) -> torch.Generator:
    """Return a generator that depends on nothing but `parts`."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def is_finished(folder: Path, key: str) -> bool:
    """Whether a run of this key has left its weights in `folder`."""
    return (folder / WEIGHTS).is_file() and _record(folder).get("key") == key


def train(run: Run, folder: str | os.PathLike[str], journal: Journal = quiet_journal) -> None:
    """Train `run.model`, or take its weights where the same run was finished before.

    Args:
        run: what to train.
        folder: of this run alone: ``state.pt`` after each epoch, ``weights.safetensors`` at the
            end. A run of other settings that is found there is started over.
        journal: given {"run", "epoch", "epochs", "loss", "seconds"} after each epoch.

    Raises:
        TrainingError: the loss is not finite. ``state.pt`` holds the last whole epoch.
        StorageError: the folder cannot be written.
        CheckpointError: the finished weights are damaged.
    """
    place, key = Path(folder), run.key()
    if is_finished(place, key):
        run.model.load_state_dict(load_state_dict(place / WEIGHTS))
        run.model.eval()
        return
    _to_disk(lambda: place.mkdir(parents=True, exist_ok=True), place)
    optimizer = _optimizer(run)
    average = [p.detach().clone() for p in run.model.parameters()]
    begun = _resume(run, place, key, optimizer, average)
    for epoch in range(begun, run.recipe.epochs):
        started = time.monotonic()
        loss = _epoch(run, epoch, optimizer, average)
        entry = {"run": run.name, "epoch": epoch + 1, "epochs": run.recipe.epochs, "loss": loss}
        journal({**entry, "seconds": round(time.monotonic() - started, 2)})
        state = {
            "key": key,
            "epoch": epoch + 1,
            "model": run.model.state_dict(),
            "average": average,
            "optimizer": optimizer.state_dict(),
        }
        _replace(place / STATE, lambda path, s=state: torch.save(s, path))  # type: ignore[misc]
    if run.recipe.average:
        with torch.no_grad():
            for parameter, mean in zip(run.model.parameters(), average, strict=True):
                parameter.copy_(mean)
    run.model.eval()
    save_weights(run.model.state_dict(), place / WEIGHTS)
    record = {"key": key, "run": run.name, "recipe": asdict(run.recipe), "seed": run.seed}
    text = json.dumps({**record, "inputs": dict(run.inputs)}, indent=1) + "\n"
    _replace(place / RECORD, lambda path: path.write_text(text, encoding="utf-8"))
    (place / STATE).unlink(missing_ok=True)


def save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, whole or not at all."""
    save_file = require("safetensors.torch", extra="torch", why="keep weights").save_file
    plain = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    _replace(path, lambda part: save_file(plain, part))


def _optimizer(run: Run) -> torch.optim.Optimizer:
    parameters = list(run.model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": run.recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=run.recipe.lr, fused=True)


def _epoch(run: Run, epoch: int, optimizer: torch.optim.Optimizer, average: list[Tensor]) -> float:
    recipe, rng = run.recipe, seeded(run.seed, "epoch", epoch)
    order = run.order(rng)
    # A last portion that is not full makes a noisy step; it is left out but where it is the only.
    batches = max(1, len(order) // recipe.batch)
    weights = [p.detach() for p in run.model.parameters()]
    run.model.train()
    total = 0.0
    for step, indices in enumerate(torch.split(order, recipe.batch)[:batches]):
        done = epoch * batches + step
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * _rate(done, recipe.epochs * batches, recipe.warmup)
        loss = run.loss(indices, rng)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"{run.name}: the loss became {value} in epoch {epoch + 1}, step {step + 1}: lower "
                f"the learning rate (now {recipe.lr:g}); the weights of epoch {epoch} are kept"
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(run.model.parameters(), recipe.clip)
        optimizer.step()
        # Early on the average follows closely, so that the first weights do not stay in it.
        keep = min(recipe.average, (1 + done) / (10 + done))
        torch._foreach_lerp_(average, weights, 1 - keep)
        total += value
    return total / batches


def _rate(step: int, steps: int, warmup: float) -> float:
    rising = int(steps * warmup)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def _resume(
    run: Run, place: Path, key: str, optimizer: torch.optim.Optimizer, average: list[Tensor]
) -> int:
    """Load the last whole epoch, where there is one of this run; return its number."""
    path = place / STATE
    if not path.is_file():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise CheckpointError(f"{path} cannot be read ({error}): delete it to start over") from None
    if not isinstance(state, dict) or state.get("key") != key:
        return 0
    run.model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    for own, kept in zip(average, state["average"], strict=True):
        own.copy_(kept)
    return int(state["epoch"])


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside `path` and rename, so that a kill leaves the old file or the new one."""
    part = path.with_name(path.name + ".part")

    def whole() -> None:
        write(part)
        part.replace(path)

    _to_disk(whole, path)


def _to_disk(action: Callable[[], object], place: Path) -> None:
    try:
        action()
    except OSError as error:
        raise StorageError(f"cannot write {place}: {error.strerror or error}") from error
