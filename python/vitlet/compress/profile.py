"""What a model computes and moves, layer by layer, and the energy that a table gives for it.

Counts are exact for the input that is given (a mixture's depend on its tokens). The energy is
**modelled**: ShiftAddViT's table of picojoules per operation (You et al., 2023,
https://arxiv.org/abs/2306.06446; 45 nm, 8 and 32 bits) with stricter rules than the paper's own
model. Every multiply, shift and masked addition is followed by an addition to a sum, which is
charged; and the same memory rules hold for every operation, additive attention and plain attention
included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vitlet.errors import UsageError

# Picojoules: of an operation in 32 and in 8 bits.
MULTIPLY = {32: 3.7, 8: 0.2}
ADD = {32: 0.9, 8: 0.03}
SHIFT = {32: 0.13, 8: 0.024}
# Of moving 16 bits: weights come from DRAM, maps of tokens go through the on-chip buffer.
DRAM, BUFFER = 200.0, 22.2


@dataclass
class LayerCost:
    """What one layer costs for the given input.

    Attributes:
        path: of the module.
        multiplies: multiplications, each followed by an addition to a sum.
        shifts: multiplications by powers of two.
        adds: additions, those of the sums included.
        weight_bytes: read once, as small as the operation stores them (4-bit shift codes).
        activation_bytes: read and written.
        compute_pj: modelled picojoules of the operations.
        memory_pj: modelled picojoules of the bytes.
    """

    path: str
    multiplies: int = 0
    shifts: int = 0
    adds: int = 0
    weight_bytes: float = 0.0
    activation_bytes: float = 0.0
    compute_pj: float = 0.0
    memory_pj: float = 0.0

    def charge(
        self, *, kind: str, count: int, bits: int, weights: float, activations: float
    ) -> None:
        """Add `count` operations of "multiply", "shift" or "add" and what they move, in bytes."""
        energy = {"multiply": MULTIPLY[bits], "shift": SHIFT[bits], "add": 0.0}[kind]
        self.multiplies += count * (kind == "multiply")
        self.shifts += count * (kind == "shift")
        self.adds += count
        # Sums are kept in 32 bits, whatever is summed.
        self.compute_pj += count * (energy + ADD[32])
        self.weight_bytes += weights
        self.activation_bytes += activations
        self.memory_pj += weights / 2 * DRAM + activations / 2 * BUFFER


@dataclass(frozen=True)
class Profile:
    """The costs of a model for one input; energies are modelled, not measured."""

    layers: tuple[LayerCost, ...]

    @property
    def total(self) -> LayerCost:
        """The sum over all layers, with an empty path."""
        out = LayerCost("")
        for layer in self.layers:
            for name, value in asdict(layer).items():
                if name != "path":
                    setattr(out, name, getattr(out, name) + value)
        return out

    @property
    def modelled_mj(self) -> float:
        """Modelled energy of one pass, in millijoules."""
        total = self.total
        return (total.compute_pj + total.memory_pj) * 1e-9

    def to_json(self) -> dict[str, Any]:
        """Return everything, with the words that belong to it."""
        return {
            "energy": "modelled: ShiftAddViT's table, sums charged, the same memory for all",
            "modelled_mj": self.modelled_mj,
            "total": asdict(self.total),
            "layers": [asdict(layer) for layer in self.layers],
        }


def profile(model: nn.Module, example: Tensor | Sequence[Tensor]) -> Profile:
    """Count what a model computes for an input.

    Counted are convolutions, linear layers, matrix products and vitlet's operators; what is done
    per element (normalization, activations) is left out, as in the paper.

    Args:
        model: run once in eval mode, without gradients.
        example: its input, or several.

    Raises:
        UsageError: the model computes nothing that is counted.
    """
    given = (example,) if isinstance(example, Tensor) else tuple(example)
    counter = _Counter()
    hooks = [hook for name, part in model.named_modules() for hook in counter.follow(name, part)]
    training = model.training
    try:
        with torch.no_grad(), counter:
            model.eval()(*given)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    if not counter.costs:
        raise UsageError(f"{type(model).__name__} has no product or convolution to count")
    return Profile(tuple(counter.costs.values()))


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Charges every operator to the innermost module that is running."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.costs: dict[str, LayerCost] = {}
        self._running = [""]

    def follow(self, name: str, part: nn.Module) -> list[Any]:
        def enter(*_: Any) -> None:
            self._running.append(name)

        def leave(*_: Any) -> None:
            self._running.pop()

        return [part.register_forward_pre_hook(enter), part.register_forward_hook(leave)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        rule = _RULES.get(str(func))
        if rule is not None:
            path = self._running[-1]
            rule(self.costs.setdefault(path, LayerCost(path)), args, out)
        return out


Rule = Callable[[LayerCost, Sequence[Any], Tensor], None]


def _product(left: int, right: int) -> Rule:
    """A matrix product of arguments `left` and `right`: (..., M, K) x (..., K, N)."""

    def rule(cost: LayerCost, args: Sequence[Any], out: Tensor) -> None:
        a, b = args[left], args[right]
        weighs = b.ndim == 2  # a matrix without batch is a layer's weight
        moved = 4.0 * (a.numel() + out.numel() + (0 if weighs else b.numel()))
        cost.charge(
            kind="multiply",
            count=out.numel() * a.shape[-1],
            bits=32,
            weights=4.0 * b.numel() if weighs else 0.0,
            activations=moved,
        )

    return rule


def _convolution(cost: LayerCost, args: Sequence[Any], out: Tensor) -> None:
    x, weight = args[0], args[1]
    cost.charge(
        kind="multiply",
        count=out.numel() * math.prod(weight.shape[1:]),
        bits=32,
        weights=4.0 * weight.numel(),
        activations=4.0 * (x.numel() + out.numel()),
    )


def _quantized(kind: str, bytes_each: float) -> Rule:
    def rule(cost: LayerCost, args: Sequence[Any], out: Tensor) -> None:
        x, weight = args[0], args[1]
        wide = kind == "shift" and len(args) > 3 and bool(args[3])
        cost.charge(
            kind=kind,
            count=out.numel() * x.shape[-1] * (2 if wide else 1),
            bits=8,
            weights=bytes_each * weight.numel() * (2 if wide else 1),
            activations=1.0 * x.numel() + 4.0 * out.numel(),
        )

    return rule


def _binary_attention(cost: LayerCost, args: Sequence[Any], out: Tensor) -> None:
    q, v = args[0], args[2]
    # K^T V and Q (K^T V): at most one addition for every bit and number of V.
    cost.charge(
        kind="add",
        count=2 * v.numel() * q.shape[-1],
        bits=32,
        weights=0.0,
        activations=2 * q.numel() / 8 + 4.0 * (v.numel() + out.numel()),
    )
    if len(args) > 5 and args[5] is not None:
        count = v.numel() * args[5].shape[-1]
        cost.charge(kind="multiply", count=count, bits=32, weights=0.0, activations=0.0)


_RULES: dict[str, Rule] = {
    "aten.mm.default": _product(0, 1),
    "aten.bmm.default": _product(0, 1),
    "aten.addmm.default": _product(1, 2),
    "aten.convolution.default": _convolution,
    "vitlet.shift_linear.default": _quantized("shift", 0.5),
    "vitlet.int8_linear.default": _quantized("multiply", 1.0),
    "vitlet.binary_linear_attention.default": _binary_attention,
}
