"""Fine-tunes a converted model by what the original answers: ShiftAddViT's second stage.

The recipe of the paper (You et al., 2023, https://arxiv.org/abs/2306.06446, section 5) in fewer
epochs: the original model's answers and the true labels, and for mixtures the losses that bring the
shares of their layers to what their speeds imply.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitlet.compress.pictures import Pictures
from vitlet.compress.training import Recipe, Run, file_journal, train
from vitlet.data.labelled import LabelledImages
from vitlet.data.spec import Preprocess
from vitlet.errors import UsageError
from vitlet.layers.mixture_linear import MixtureLinear, balance_loss
from vitlet.partition.submodels.teacher import answers, model_digest

Model = TypeVar("Model", bound=nn.Module)
Stage = Literal["shiftadd-attention", "shiftadd-moe"]
_BALANCE = 0.01  # the paper's lambda


@dataclass(frozen=True)
class FineTuning:
    """How a converted model is trained.

    Attributes:
        recipe: epochs, portions and rates.
        smoothing: of the labels.
        distillation: weight of the original model's answers; the labels have the rest.
        temperature: at which the answers are compared.
        features: weight of the relative squared difference to what the original's blocks give, the
            mean over the blocks; it leads a converted model back in fewer steps than answers do.
        balance: weight of the mixtures' balance losses.
        mirror: whether a mirrored picture still shows its class.
        limit: pictures in an epoch, others each time; None: all.
        seed: of everything that is random.
    """

    recipe: Recipe
    smoothing: float = 0.1
    distillation: float = 0.5
    temperature: float = 2.0
    features: float = 0.0
    balance: float = _BALANCE
    mirror: bool = False
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1 or not 0 <= self.distillation <= 1:
            raise UsageError(
                "expected smoothing in [0, 1) and distillation in [0, 1], got "
                f"{self.smoothing} and {self.distillation}"
            )
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"expected a limit of 1 picture or more, got {self.limit}")


# The paper's rates are for 100 epochs each; these are for a tenth of that.
STAGES: dict[str, FineTuning] = {
    "shiftadd-attention": FineTuning(Recipe(epochs=10, lr=5e-4)),
    "shiftadd-moe": FineTuning(Recipe(epochs=10, lr=2e-4)),
}


def with_recipe(
    stage: Stage, *, epochs: int, batch: int = 128, lr: float | None = None, seed: int = 0
) -> FineTuning:
    """Return a stage's settings with other epochs, portions, rate (None: the stage's) and seed."""
    base = STAGES[stage]
    recipe = replace(base.recipe, epochs=epochs, batch=batch, lr=lr or base.recipe.lr)
    return replace(base, recipe=recipe, seed=seed)


def finetune(
    model: Model,
    data: LabelledImages,
    recipe: Stage | FineTuning,
    *,
    work: str | os.PathLike[str],
    teacher: nn.Module | None = None,
    preprocess: Preprocess | None = None,
    shared: str | os.PathLike[str] | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> Model:
    """Return a trained copy of a model, in eval mode; a call that was stopped goes on.

    The result is the same to the bit however often it was stopped, on one machine and thread count.

    Args:
        model: from `vitlet.compress.shift_add`.
        data: training pictures.
        recipe: "shiftadd-attention" after attention was converted, "shiftadd-moe" after linear
            layers were, or settings of your own.
        work: folder of this run: the last epoch's state, ``journal.jsonl``, and in the end
            ``weights.safetensors``.
        teacher: the original model; without one only the labels teach.
        preprocess: what the model expects of an image; by default what the zoo says of it.
        shared: folder in which the teacher's answers on all pictures are kept for further runs. It
            then answers each picture once; by default once for every batch.
        progress: told of each epoch as the journal is.

    Raises:
        UsageError: an unknown recipe, or data of other classes than the model's.
        TrainingError: the loss is not finite; the last whole epoch is kept.
        StorageError: `work` cannot be written.
    """
    if isinstance(recipe, str) and recipe not in STAGES:
        raise UsageError(f"recipe must be one of {', '.join(STAGES)}, got {recipe!r}")
    settings = STAGES[recipe] if isinstance(recipe, str) else recipe
    spec = preprocess or getattr(getattr(model, "info", None), "preprocess", None)
    if spec is None:
        raise UsageError("give preprocess: the model does not say what images it takes")
    pictures = Pictures(data, spec, mirror=settings.mirror)
    student = copy.deepcopy(model).requires_grad_(True)
    _check(student, pictures)
    if teacher is None:
        settings = replace(settings, distillation=0.0)
    else:
        teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
    known = None
    compared = teacher is not None and settings.features > 0
    if teacher is not None and shared is not None and not compared:
        known = answers(teacher, pictures, Path(shared))
    following = ExitStack()
    own: dict[str, Tensor] = {}
    wanted: dict[str, Tensor] = {}
    if teacher is not None and compared:
        own, wanted = _follow(student, following), _follow(teacher, following)
    mixed = any(isinstance(layer, MixtureLinear) for layer in student.modules())

    def loss(indices: Tensor, rng: torch.Generator) -> Tensor:
        views = pictures.draw_views(len(indices), rng)
        given = pictures.batch(indices, views)
        # A mixture's noise comes from torch's own generator.
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(1 << 62, (1,), generator=rng)))
            logits = student(given)
        target = pictures.labels[indices]
        share = settings.distillation
        total = (1 - share) * F.cross_entropy(logits, target, label_smoothing=settings.smoothing)
        if teacher is not None:
            with torch.no_grad():
                told = teacher(given) if known is None else known[views, indices]
            total = total + share * _divergence(told, logits, settings.temperature)
        if compared:
            total = total + settings.features * _difference(own, wanted)
        return total + settings.balance * balance_loss(student) if mixed else total

    folder = Path(work)
    write = file_journal(folder / "journal.jsonl")

    def note(entry: dict[str, Any]) -> None:
        entry = {**entry, **_shares(student)}
        write(entry)
        if progress is not None:
            progress(entry)

    inputs = {
        "model": model_digest(model),
        "teacher": None if teacher is None else model_digest(teacher),
        "data": data.fingerprint(),
        "answers": "kept" if known is not None else "made",
        "settings": repr(settings),
    }

    def order(rng: torch.Generator) -> Tensor:
        return pictures.shuffled(rng)[: settings.limit]

    run = Run("finetune", student, order, loss, settings.recipe, settings.seed, inputs)
    with following:
        train(run, folder, note)
    return student.eval()


def _follow(model: nn.Module, stack: ExitStack) -> dict[str, Tensor]:
    """Return a table that holds what each block of a transformer gave last, until the stack ends.

    Raises:
        UsageError: the model has no such blocks.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            found[name] = output

        return hook

    blocks = {n: m for n, m in model.named_modules() if hasattr(m, "attn") and hasattr(m, "mlp")}
    if not blocks:
        raise UsageError(
            "features= compares transformer blocks, and the model has none: set it to 0"
        )
    for name, part in blocks.items():
        stack.callback(part.register_forward_hook(keep(name)).remove)
    return found


def _difference(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
    terms = [
        (found[name] - target).square().mean() / target.square().mean().clamp_min(1e-12)
        for name, target in wanted.items()
    ]
    return torch.stack(terms).mean()


def _check(model: nn.Module, pictures: Pictures) -> None:
    with torch.no_grad():
        answer = model.eval()(pictures.batch(torch.zeros(1, dtype=torch.int64)))
    if answer.ndim != 2 or answer.shape[1] != pictures.classes:
        raise UsageError(
            f"the data have {pictures.classes} classes, the model gives {tuple(answer.shape[1:])}"
        )


def _divergence(told: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Return the KL divergence from the teacher's answers, over the batch."""
    wanted = F.log_softmax(told / temperature, dim=-1)
    found = F.log_softmax(logits / temperature, dim=-1)
    loss = F.kl_div(found, wanted, log_target=True, reduction="batchmean")
    return loss * temperature**2


def _shares(model: nn.Module) -> dict[str, float]:
    """Return the share of the tokens that went through dense layers, where there are mixtures."""
    mixtures = [layer for layer in model.modules() if isinstance(layer, MixtureLinear)]
    shares = [layer.shares[0] for layer in mixtures if layer.shares is not None]
    if not shares:
        return {}
    wanted = sum(layer.wanted_shares[0] for layer in mixtures) / len(mixtures)
    return {
        "dense_share": round(float(torch.stack(shares).mean()), 4),
        "wanted_share": round(wanted, 4),
    }
