"""Turns a vision transformer's products into additions and shifts.

ShiftAddViT (You et al., 2023, https://arxiv.org/abs/2306.06446). Softmax attention becomes additive
attention over bits, linear layers become shift layers or mixtures. What the new attention gives is
fitted to what the old one gave on calibration images, in closed form; the rest of the loss is for
`vitlet.compress.finetune`.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from vitlet.compress.calibrate_attention import calibrate
from vitlet.compress.expert_latency import ExpertTimes, Size
from vitlet.errors import ShapeError, UsageError
from vitlet.layers.attention import SelfAttention
from vitlet.layers.linear_angular_attention import LinearAngularAttention
from vitlet.layers.mixture_linear import MixtureLinear
from vitlet.layers.shift_linear import ShiftLinear
from vitlet.layers.spatial_reduction_attention import SpatialReductionAttention
from vitlet.models import deit

Model = TypeVar("Model", bound=nn.Module)
Softmax = (deit.Attention, SelfAttention, SpatialReductionAttention)


@dataclass(frozen=True)
class Change:
    """What became of one layer.

    Attributes:
        path: of the module.
        was: "softmax attention", "spatial-reduction attention" or "linear".
        now: "binary attention", "shift", "mixture", or "unchanged".
        note: why it is unchanged, or what was lost besides precision.
        error: of a layer on the calibration images: what it gives against what it gave, as the
            length of the difference over the length; None where there were none.
    """

    path: str
    was: str
    now: str
    note: str = ""
    error: float | None = None


@dataclass(frozen=True)
class ShiftAddReport:
    """What a conversion did, layer by layer, in the model's order."""

    changes: tuple[Change, ...]

    def count(self, now: str) -> int:
        """Return how many layers became this."""
        return sum(change.now == now for change in self.changes)

    def to_json(self) -> list[dict[str, object]]:
        """Return the changes as JSON takes them."""
        return [vars(change).copy() for change in self.changes]


def shift_add(
    model: Model,
    *,
    attention: Literal["binary", "unchanged"] = "binary",
    linear: Literal["shift", "moe", "dense"] = "dense",
    layers: str | Sequence[str] = "mlp",
    calibration: Tensor | None = None,
    latency: Sequence[float] | ExpertTimes = (6.0, 4.0),
) -> tuple[Model, ShiftAddReport]:
    """Return a copy of a model with additive attention and shift layers, and what was done.

    The last stage of a pyramid keeps its attention, as in the paper: it has few tokens.

    Args:
        model: a zoo classifier: DeiT or PVT.
        attention: "binary", or leave it as it is.
        linear: what linear layers become: "shift", "moe" (a mixture of both), "dense" (unchanged).
        layers: which: "mlp", "attention", "all", or patterns of module paths ("blocks.*.mlp.fc1").
            The classifier's head and the patch embedding stay dense in any case.
        calibration: images (B, C, H, W) for the thresholds and the fit of the projections. Without
            them thresholds are 0 and the converted attention is far off until fine-tuned.
        latency: for "moe", time per token of a dense and a shift layer, or what
            `vitlet.compress.expert_latency` measured of each size on the machine that will run it.

    Returns:
        The model, in eval mode, and the report.

    Raises:
        UsageError: nothing could be converted, a pattern that fits nothing, or an option that is
            unknown; constant or non-finite calibration images.
        ShapeError: calibration that is no batch of images.
    """
    if attention not in ("binary", "unchanged"):
        raise UsageError(f"attention must be binary or unchanged, got {attention!r}")
    if linear not in ("shift", "moe", "dense"):
        raise UsageError(f"linear must be shift, moe or dense, got {linear!r}")
    if calibration is not None:
        _check(calibration)
    source = model
    model = copy.deepcopy(model).eval()
    changes: dict[str, Change] = {}
    if attention == "binary":
        _convert_attention(model, source, calibration, changes)
    if linear != "dense":
        _convert_linear(model, linear, layers, latency, changes)
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    report = ShiftAddReport(tuple(sorted(changes.values(), key=lambda c: order[c.path])))
    if not any(change.now != "unchanged" for change in report.changes):
        reasons = {change.note for change in report.changes} or {"it has no softmax attention"}
        raise UsageError(f"nothing to convert in {type(model).__name__}: {'; '.join(reasons)}")
    return model, report


@torch.no_grad()
def mixture_sizes(
    model: nn.Module, example: Tensor, *, layers: str | Sequence[str] = "all"
) -> list[tuple[Size, int]]:
    """Return the sizes of a model's mixtures, and of the linear layers that could become some.

    Args:
        model: of the zoo, converted or not.
        example: one image (1, C, H, W).
        layers: as in `shift_add`.

    Returns:
        Per layer the numbers in and out, and how many tokens of the image it multiplies.
    """
    patterns = _patterns(layers)
    found: list[tuple[Size, int]] = []

    def note(part: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        given = args[0]
        found.append(((given.shape[-1], out.shape[-1]), given[..., 0].numel()))

    hooks = [
        part.register_forward_hook(note)
        for name, part in model.named_modules()
        if type(part) in (nn.Linear, MixtureLinear)
        and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        and not any(end in name for end in (".experts.", ".gate."))
    ]
    try:
        model.eval()(example)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _check(images: Tensor) -> None:
    if images.ndim != 4 or not images.shape[0]:
        raise ShapeError(f"expected calibration images (B, C, H, W), got {tuple(images.shape)}")
    if not images.isfinite().all():
        raise UsageError("calibration images hold NaN or infinite values")
    if (images.amax((1, 2, 3)) == images.amin((1, 2, 3))).all():
        raise UsageError("every calibration image is constant: thresholds need real images")


def _convert_attention(
    model: nn.Module, source: nn.Module, images: Tensor | None, changes: dict[str, Change]
) -> None:
    found = [(name, part) for name, part in model.named_modules() if isinstance(part, Softmax)]
    last = _last_stage(model)
    replaced: list[str] = []
    for name, part in found:
        reduced = isinstance(part, SpatialReductionAttention) and part.reduction > 1
        was = "spatial-reduction attention" if reduced else "softmax attention"
        if last is not None and name.startswith(f"{last}."):
            changes[name] = Change(name, was, "unchanged", "the last stage has few tokens")
            continue
        width = part.heads and _width(part) // part.heads
        if width > 128:
            changes[name] = Change(name, was, "unchanged", f"heads are {width} wide, at most 128")
            continue
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _binary(part))
        note = "keys and values of all tokens, not of a reduced map" if reduced else ""
        changes[name] = Change(name, was, "binary attention", note)
        replaced.append(name)
    if images is not None:
        for name, error in calibrate(model, source, replaced, images).items():
            changes[name] = Change(**{**vars(changes[name]), "error": error})


def _last_stage(model: nn.Module) -> str | None:
    """Return the name of a pyramid's last list of blocks; None for a plain transformer."""
    stages = [name for name, _ in model.named_children() if name.startswith("block")]
    return max(stages) if len(stages) > 1 else None


def _width(part: nn.Module) -> int:
    projection = part.get_submodule("q" if isinstance(part, SpatialReductionAttention) else "qkv")
    weight = projection.weight
    assert isinstance(weight, Tensor)
    return weight.shape[1]


def _binary(part: nn.Module) -> LinearAngularAttention:
    """Return additive attention with the projections of a softmax attention."""
    heads: int = part.heads  # type: ignore[assignment]
    dim = _width(part)
    made = LinearAngularAttention(dim, heads=heads)
    names = ("q", "kv") if isinstance(part, SpatialReductionAttention) else ("qkv",)
    with torch.no_grad():
        # The unit length of queries and keys takes the scale of the scores away.
        for kind in ("weight", "bias"):
            parts = [getattr(part.get_submodule(name), kind) for name in names]
            if parts[0] is not None:
                getattr(made.qkv, kind).copy_(torch.cat(parts))
            else:
                nn.init.zeros_(made.qkv.bias)  # type: ignore[arg-type]
        made.proj.load_state_dict(part.get_submodule("proj").state_dict())
        made.dconv.weight.zero_()
    return made.eval()


def _convert_linear(
    model: nn.Module,
    kind: str,
    layers: str | Sequence[str],
    latency: Sequence[float] | ExpertTimes,
    changes: dict[str, Change],
) -> None:
    patterns = _patterns(layers)
    used: set[str] = set()
    last = _last_stage(model)
    for name, part in list(model.named_modules()):
        fits = {pattern for pattern in patterns if fnmatch.fnmatchcase(name, pattern)}
        if not fits or not isinstance(part, nn.Linear) or type(part) is not nn.Linear:
            continue
        used |= fits
        if last is not None and name.startswith(f"{last}.") and ".attn." in name:
            note = "a projection of the last stage's attention"
            changes[name] = Change(name, "linear", "unchanged", note)
            continue
        if not part.weight.isfinite().all():
            raise UsageError(f"{name} has weights that are NaN or infinite")
        parent, _, leaf = name.rpartition(".")
        if kind == "shift":
            made: nn.Module = ShiftLinear.from_linear(part)
        else:
            times = latency
            if isinstance(times, ExpertTimes):
                times = times.of((part.in_features, part.out_features))
            made = MixtureLinear.from_linear(part, latency=times)
        setattr(model.get_submodule(parent), leaf, made.eval())
        changes[name] = Change(name, "linear", "shift" if kind == "shift" else "mixture")
    if lost := [pattern for pattern in patterns if pattern not in used]:
        raise UsageError(f"no linear layer of this model fits {', '.join(lost)}")


def _patterns(layers: str | Sequence[str]) -> list[str]:
    if layers == "mlp":
        return ["*.mlp.*"]
    if layers == "attention":
        return ["*.attn.*"]
    if layers == "all":
        return ["*.mlp.*", "*.attn.*"]
    return [layers] if isinstance(layers, str) else list(layers)
