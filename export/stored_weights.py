"""Runs a source graph in torch on the weights that a compiled Core ML program stores.

Weights of 8 bits or fewer are off from the source's, and so is the output. To see whether the rest
of the program is right, the source is run with the program's own weights: what is left is the order
of sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from vitlet.errors import UnsupportedError
from vitlet.export.coreml_program import Program, Weight
from vitlet.export.coreml_source import source_facts
from vitlet.export.coreml_weights import layouts, match_weights

Array = NDArray[Any]


def run_on_stored_weights(
    program: Program, traced: torch.export.ExportedProgram, x: Tensor
) -> NDArray[np.float32]:
    """Return the source graph's output with every weight replaced by the program's.

    Args:
        program: from `vitlet.export.coreml_program.read_program`.
        traced: the source graph, from `vitlet.export.trace.trace`.
        x: its input.

    Raises:
        UnsupportedError: a weight of the program belongs to no tensor of the source.
    """
    facts = source_facts(traced)
    found = match_weights(program.weights, facts.tensors, facts.scalars)
    if found.strange:
        name, why = next(iter(found.strange.items()))
        raise UnsupportedError(f"the weight {name} is not the source's: {why}")
    stored = {weight.name: weight for weight in program.weights}
    values: dict[str, Tensor] = {}
    for name, parts in found.pairs.items():
        # A product of two: the first takes all of the change, the second stays.
        exact = facts.tensors[parts[0]].values
        scale: Array | float = 1.0
        if len(parts) == 2:
            scale = _column(facts.tensors[parts[1]].values, stored[name].values)
        elif (factor := _factor(stored[name], exact, facts.scalars)) is not None:
            scale = factor
        values[parts[0]] = torch.from_numpy(_in_source_layout(stored[name], exact, scale))
    with torch.no_grad():
        output = _Replacing(traced, values).run(*_arguments(traced, x))[0]
    return np.asarray(output.numpy(), np.float32)


class _Replacing(fx.Interpreter):
    """Runs a traced graph, with other values for tensors named as in `source_facts`."""

    def __init__(self, traced: torch.export.ExportedProgram, values: Mapping[str, Tensor]) -> None:
        super().__init__(traced.graph_module)
        self._names = _held(traced)
        self._replaced = values

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node, or take the value that stands for it."""
        value = super().run_node(n)
        return self._replaced.get(self._names.get(n.name, n.name), value)


def _held(traced: torch.export.ExportedProgram) -> dict[str, str]:
    signature = traced.graph_signature
    return {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }


def _arguments(traced: torch.export.ExportedProgram, x: Tensor) -> list[Tensor]:
    held, state = _held(traced), {**traced.state_dict, **traced.constants}
    names = [node.name for node in traced.graph.nodes if node.op == "placeholder"]
    return [state[held[name]] if name in held else x for name in names]


def _column(scale: Array, like: Array) -> Array:
    return scale.reshape(-1, *[1] * (like.ndim - 1))


def _factor(weight: Weight, exact: Array, scalars: tuple[float, ...]) -> float | None:
    """Return the number that the converter multiplied into a weight, if it did."""
    size = float(np.abs(exact).max())
    ratio = float(np.abs(weight.values).max()) / size if size else 1.0
    near = [factor for factor in scalars if np.isclose(abs(factor), ratio, rtol=5e-2)]
    return near[0] if near and not np.isclose(ratio, 1.0, rtol=5e-2) else None


def _in_source_layout(weight: Weight, exact: Array, scale: Array | float) -> Array:
    """Return the weight over `scale`, with its elements where the source has them."""
    values = weight.values / scale
    places = np.arange(exact.size).reshape(exact.shape)
    pairs = zip(layouts(exact, values.shape), layouts(places, values.shape), strict=True)
    with np.errstate(invalid="ignore"):  # -inf in an attention mask, less -inf
        best = min(pairs, key=lambda pair: _distance(pair[0] - values))
    made = np.empty(exact.size, np.float32)
    made[best[1].ravel()] = values.ravel()
    return made.reshape(exact.shape)


def _distance(off: Array) -> float:
    return float(
        (np.nan_to_num(off, nan=0.0, posinf=1e9, neginf=1e9).astype(np.float64) ** 2).sum()
    )
