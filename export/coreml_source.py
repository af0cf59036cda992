"""What a traced torch graph says about its weights and layers, for comparing with a program."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from vitlet.export.coreml_weights import Source

_CONVOLUTIONS = ("aten.conv2d.default", "aten.conv1d.default", "aten.convolution.default")


@dataclass(frozen=True)
class SourceFacts:
    """A graph's constants and layers.

    Attributes:
        tensors: name -> tensor: parameters, buffers, and what is computed from these alone.
        scalars: numbers that multiply or divide somewhere in the graph.
        feeds: node -> the nodes that take its result.
        convolutions: one (weight shape, strides, pads, dilations, groups) each.
        norms: epsilon of every layer normalization.
        gelus: mode of every GELU as Core ML calls it.
    """

    tensors: dict[str, Source]
    scalars: tuple[float, ...]
    feeds: dict[int, tuple[int, ...]]
    convolutions: Counter[tuple[Any, ...]]
    norms: tuple[float, ...]
    gelus: tuple[str, ...]


def source_facts(program: torch.export.ExportedProgram) -> SourceFacts:
    """Collect what a program that was compiled from this one must hold."""
    nodes = list(program.graph.nodes)
    number = {node: index for index, node in enumerate(nodes)}
    tensors, constant = _constants(program, nodes, number)
    tensors.update(_folded_norms(nodes, constant, program, number))
    calls = [node for node in nodes if node.op == "call_function" and node not in constant]
    return SourceFacts(
        tensors,
        tuple(sorted(_scalars(calls))),
        {number[node]: tuple(number[user] for user in node.users) for node in nodes},
        Counter(_convolution(node) for node in calls if str(node.target) in _CONVOLUTIONS),
        tuple(sorted(_epsilon(n) for n in calls if "layer_norm" in str(n.target))),
        tuple(sorted(_gelu(n) for n in calls if str(n.target) == "aten.gelu.default")),
    )


def _constants(
    program: torch.export.ExportedProgram, nodes: list[fx.Node], number: dict[fx.Node, int]
) -> tuple[dict[str, Source], dict[fx.Node, Any]]:
    """Return the constant tensors, and node -> value of every node that needs no input."""
    signature = program.graph_signature
    held = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    values: dict[fx.Node, Any] = {}
    names: dict[fx.Node, tuple[str, ...]] = {}
    tensors: dict[str, Source] = {}
    state = {**program.state_dict, **program.constants}
    for node in nodes:
        if node.op == "placeholder" and node.name in held:
            values[node], names[node] = state[held[node.name]], (held[node.name],)
        elif node.op == "call_function":
            given = node.all_input_nodes
            if not all(arg in values for arg in given):
                continue
            arguments = fx.map_arg((node.args, node.kwargs), lambda arg: values[arg])
            with torch.no_grad():
                values[node] = node.target(*arguments[0], **arguments[1])  # type: ignore[operator]
            names[node] = tuple(sorted({root for arg in given for root in names[arg]}))
        else:
            continue
        value = values[node]
        if isinstance(value, Tensor) and value.is_floating_point() and node.users:
            name = held.get(node.name, node.name)
            users = tuple(number[user] for user in node.users)
            tensors[name] = Source(value.detach().float().numpy(), names[node], users)
    return tensors, values


def _folded_norms(
    nodes: list[fx.Node],
    constant: dict[fx.Node, Any],
    program: torch.export.ExportedProgram,
    number: dict[fx.Node, int],
) -> dict[str, Source]:
    """Return the weight and bias of each convolution with the BatchNorm after it folded in.

    coremltools folds the pairs that were not merged before the export.
    """
    signature = program.graph_signature
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    made: dict[str, Source] = {}
    for node in nodes:
        before = node.args[0] if node.args else None
        if (
            str(node.target) != "aten.batch_norm.default"
            or not isinstance(before, fx.Node)
            or str(before.target) not in _CONVOLUTIONS
            or len(before.users) != 1
        ):
            continue
        given = [
            _argument(before, place, name, None) for place, name in ((1, "weight"), (2, "bias"))
        ]
        given += [_argument(node, place, "", None) for place in range(1, 5)]
        weight, bias, gamma, beta, mean, variance = (
            constant[arg].detach().double() if isinstance(arg, fx.Node) else None for arg in given
        )
        if weight is None or mean is None or variance is None:
            continue
        scale = (variance + _argument(node, 7, "eps", 1e-5)).rsqrt()
        scale = scale if gamma is None else scale * gamma
        shift = (-mean if bias is None else bias - mean) * scale
        shift = shift if beta is None else shift + beta
        fused = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        roots = tuple(held.get(arg.name, arg.name) for arg in given if isinstance(arg, fx.Node))
        for end, value in (("weight", fused), ("bias", shift)):
            made[f"{node.name}.folded.{end}"] = Source(
                value.float().numpy(), roots, (number[before],)
            )
    return made


def _scalars(calls: list[fx.Node]) -> set[float]:
    """Return the numbers that a converter may multiply into a weight."""
    found = set()
    for node in calls:
        if str(node.target).startswith(("aten.mul.", "aten.div.")):
            numbers = {float(arg) for arg in node.args if isinstance(arg, int | float) and arg}
            found |= numbers | {1.0 / number for number in numbers}
    return found - {1.0}


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    if len(node.args) > place:
        return node.args[place]
    return node.kwargs.get(name, default)


def _convolution(node: fx.Node) -> tuple[Any, ...]:
    weight = node.args[1]
    assert isinstance(weight, fx.Node)  # by the operator's schema
    shape = tuple(int(size) for size in weight.meta["val"].shape)
    axes = len(shape) - 2
    spread = [_argument(node, place, name, default) for place, name, default in (
        (3, "stride", 1), (4, "padding", 0), (5, "dilation", 1)
    )]  # fmt: skip
    stride, padding, dilation = (
        tuple(value) * (axes if len(value) == 1 else 1)
        if isinstance(value, list | tuple)
        else (value,) * axes
        for value in spread
    )
    whole = str(node.target) == "aten.convolution.default"
    groups = _argument(node, 8 if whole else 6, "groups", 1)
    pads = tuple(int(pad) for pad in padding for _ in range(2))
    return (shape, stride, pads, dilation, int(groups))


def _epsilon(node: fx.Node) -> float:
    return float(_argument(node, 4, "eps", 1e-5))


def _gelu(node: fx.Node) -> str:
    tanh = node.kwargs.get("approximate", "none") == "tanh"
    return "TANH_APPROXIMATION" if tanh else "EXACT"
