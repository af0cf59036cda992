"""How much a unit of a ViT matters for some classes.

The importance of a unit is I = mean over pictures of KL(p(y|x; model) || p(y|x; without the unit)).
It is exact for heads and for groups of residual channels, one pass each. For single channels and
hidden units it is the leading term: with a gate g on the unit, the KL and its slope are 0 at g = 1,
and what is left of first-order changes of the log probabilities is

    I ~ 1/2 * sum_y p(y|x) * (d log p(y|x) / dg)^2,

from one backward pass for each likely class y and all units at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vitlet.errors import UsageError
from vitlet.models.deit import DeiT
from vitlet.partition.submodels.cut import widths_of
from vitlet.partition.submodels.gates import Gates, gated_logits

Kind = Literal["channels", "heads", "hidden"]
_PORTION = 64  # pictures a pass; each has its own gates in a backward pass
_CLASSES = 8  # likely classes y whose log probability is differentiated


def unit_scores(model: DeiT, images: Tensor, kind: Kind, *, group: int = 16) -> list[Tensor]:
    """Return the importance of every unit of a kind on `images` (B, C, H, W).

    Args:
        model: in eval mode.
        images: of the classes that the units are to matter for.
        kind: heads are exact. Channels are estimated one by one and scaled so that each group's
            sum is its exact importance. Hidden units are estimated.
        group: channels to a group.

    Returns:
        One tensor of scores: of all channels; or one for each block.

    Raises:
        UsageError: no images, or not a plain ViT.
    """
    if len(images) == 0:
        raise UsageError("scores need at least one picture of the sub-model's classes")
    if kind == "heads":
        return exact_scores(model, images, kind)
    estimate = estimated_scores(model, images, kind)
    if kind == "hidden":
        return estimate
    (single,) = estimate
    size = max(1, min(group, len(single) // 2))  # a group of all channels cannot be left out
    members = [part.tolist() for part in torch.split(torch.arange(len(single)), size)]
    if len(members) == 1:
        return estimate
    exact = group_scores(model, images, members)
    scaled = single.clone()
    for chosen, whole in zip(members, exact.tolist(), strict=True):
        total = float(single[chosen].sum())
        scaled[chosen] = single[chosen] * (whole / total) if total > 0 else whole / len(chosen)
    return [scaled]


@torch.no_grad()
def exact_scores(model: DeiT, images: Tensor, kind: Kind) -> list[Tensor]:
    """Return each unit's exact KL, one pass a unit: see `unit_scores`."""
    sizes = _sizes(model, kind)
    scores = [torch.zeros(size) for size in sizes]
    for block, size in enumerate(sizes):
        for unit in range(size):
            gates = [torch.ones(1, n) for n in sizes]
            gates[block][0, unit] = 0
            scores[block][unit] = _divergence(model, images, _gates(kind, gates))
    return scores


@torch.no_grad()
def group_scores(model: DeiT, images: Tensor, members: list[list[int]]) -> Tensor:
    """Return the exact KL of the model without each group of residual channels, (groups,)."""
    size = widths_of(model).dim
    scores = torch.zeros(len(members))
    for i, chosen in enumerate(members):
        if len(chosen) == size:
            raise UsageError("a group of all channels cannot be left out: make groups smaller")
        gate = torch.ones(1, size)
        gate[0, chosen] = 0
        scores[i] = _divergence(model, images, Gates(channels=gate))
    return scores


def estimated_scores(model: DeiT, images: Tensor, kind: Kind) -> list[Tensor]:
    """Return each unit's estimated KL, a few backward passes for all: see the module's text."""
    sizes = _sizes(model, kind)
    totals = [torch.zeros(size) for size in sizes]
    for part in torch.split(images, _PORTION):
        gates = [torch.ones(len(part), size, requires_grad=True) for size in sizes]
        logs = F.log_softmax(gated_logits(model, part, _gates(kind, gates)), dim=-1)
        chances, likely = logs.detach().exp().topk(min(_CLASSES, logs.shape[1]), dim=-1)
        chosen = logs.gather(1, likely)
        for rank in range(likely.shape[1]):
            last = rank == likely.shape[1] - 1
            slopes = torch.autograd.grad(chosen[:, rank].sum(), gates, retain_graph=not last)
            for total, slope in zip(totals, slopes, strict=True):
                total += 0.5 * (chances[:, rank, None] * slope**2).sum(0)
    return [total / len(images) for total in totals]


def magnitude_scores(model: DeiT, kind: Kind) -> list[Tensor]:
    """Return the squared norm of each unit's weights, which ignores the pictures: a baseline."""
    state = {name: tensor.detach() ** 2 for name, tensor in model.state_dict().items()}
    if kind == "channels":
        total = state["patch_embed.proj.weight"].flatten(1).sum(1) + state["head.weight"].sum(0)
        for name, tensor in state.items():
            if name.endswith(("attn.proj.weight", "fc2.weight")):
                total = total + tensor.sum(1)
            elif name.endswith(("qkv.weight", "fc1.weight")):
                total = total + tensor.sum(0)
        return [total]
    scores = []
    for i, size in enumerate(_sizes(model, kind)):
        prefix = f"blocks.{i}."
        if kind == "hidden":
            into, out = state[prefix + "mlp.fc1.weight"], state[prefix + "mlp.fc2.weight"]
            scores.append(into.sum(1) + out.sum(0))
        else:
            qkv, proj = state[prefix + "attn.qkv.weight"], state[prefix + "attn.proj.weight"]
            scores.append(
                qkv.sum(1).reshape(3, size, -1).sum((0, 2)) + proj.sum(0).reshape(size, -1).sum(1)
            )
    return scores


def best(scores: Tensor, count: int) -> tuple[int, ...]:
    """Return the indices of the `count` highest scores in rising order; of equals the first."""
    if not 1 <= count <= len(scores):
        raise UsageError(f"expected to keep 1 to {len(scores)} units, got {count}")
    order = torch.sort(scores, descending=True, stable=True).indices[:count]
    return tuple(sorted(order.tolist()))


def _sizes(model: DeiT, kind: Kind) -> list[int]:
    widths = widths_of(model)
    sizes = {"channels": [widths.dim], "heads": widths.heads, "hidden": widths.hidden}
    return list(sizes[kind])


def _gates(kind: Kind, gates: list[Tensor]) -> Gates:
    make: dict[Kind, Callable[[], Gates]] = {
        "channels": lambda: Gates(channels=gates[0]),
        "heads": lambda: Gates(heads=tuple(gates)),
        "hidden": lambda: Gates(hidden=tuple(gates)),
    }
    return make[kind]()


def _divergence(model: DeiT, images: Tensor, gates: Gates) -> float:
    total = 0.0
    for part in torch.split(images, 4 * _PORTION):
        whole = F.log_softmax(gated_logits(model, part, Gates()), dim=-1)
        without = F.log_softmax(gated_logits(model, part, gates), dim=-1)
        total += float(F.kl_div(without, whole, reduction="sum", log_target=True))
    return total / len(images)
