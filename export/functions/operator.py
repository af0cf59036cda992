"""What an operator of ours is to ONNX: inputs, attributes, and a body for each variant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx_ir as ir

DOMAIN = "ai.vitlet"
VERSION = 1

_KINDS = {"int": "INT", "ints": "INTS", "string": "STRING"}


@dataclass(frozen=True)
class Operator:
    """One operator.

    A function of ONNX has one list of statements, so an operator with optional parts is a function
    for each set of parts that a file uses: ONNX calls these overloads of one name. A variant is
    the set of parts: the optional inputs that are there, and what `parts` reads in the attributes.

    Attributes:
        name: of the operator and of the kernel.
        inputs: those that are always there.
        optional: those after them that may be absent.
        attributes: name -> "int", "ints" or "string"; a node has all of them.
        parts: from a node's attributes to the further parts of its variant.
        body: from (variant, opset) to the statements, the last of which gives `y`.
        types: of the inputs that are not float32, as ONNX spells them.
    """

    name: str
    inputs: tuple[str, ...]
    optional: tuple[str, ...]
    attributes: Mapping[str, str]
    parts: Callable[[Mapping[str, Any]], tuple[str, ...]]
    body: Callable[[frozenset[str], int], str]
    types: Mapping[str, str] = field(default_factory=dict)

    def variant(self, node: ir.Node) -> str:
        """Return the overload that a node calls, such as "bias_gelu"; "" for no part."""
        there = [value is not None for value in node.inputs[len(self.inputs) :]]
        found = [name for name, used in zip(self.optional, there, strict=False) if used]
        values = {name: attribute.value for name, attribute in node.attributes.items()}
        return "_and_".join((*found, *self.parts(values)))

    def function(self, variant: str, opset: int) -> onnx.FunctionProto:
        """Return the body of a variant in the standard operators of an opset, from 17."""
        chosen = frozenset(variant.split("_and_")) if variant else frozenset()
        inputs = ", ".join((*self.inputs, *self.optional))
        attributes = f" <{', '.join(self.attributes)}>" if self.attributes else ""
        made = onnx.parser.parse_function(
            f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]> '
            f"{self.name}{attributes} ({inputs}) => (y) {{ {self.body(chosen, opset)} }}"
        )
        made.overload = variant
        return made

    def schema(self) -> onnx.defs.OpSchema:
        """Return the signature, for the exporter."""
        kinds = onnx.defs.OpSchema
        option = kinds.FormalParameterOption

        def parameter(name: str, optional: bool) -> onnx.defs.OpSchema.FormalParameter:
            how = option.Optional if optional else option.Single
            kind = f"tensor({self.types.get(name, 'float')})"
            return kinds.FormalParameter(name, kind, param_option=how)

        return kinds(
            self.name,
            DOMAIN,
            VERSION,
            inputs=[
                *(parameter(name, False) for name in self.inputs),
                *(parameter(name, True) for name in self.optional),
            ],
            outputs=[parameter("y", False)],
            attributes=[
                kinds.Attribute(name, getattr(kinds.AttrType, _KINDS[kind]))
                for name, kind in self.attributes.items()
            ],
        )


def activation_part(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the part that the attribute "activation" stands for."""
    activation = str(attributes.get("activation", "none"))
    return () if activation == "none" else (activation,)


def epilogue(value: str, variant: frozenset[str], opset: int) -> str:
    """Return the statements of ``y = activation(value + bias) + residual``."""
    lines, count = [], 0

    def then(statement: str) -> None:
        nonlocal value, count
        count += 1
        lines.append(f"step{count} = {statement.replace('IT', value)}")
        value = f"step{count}"

    if "bias" in variant:
        then("Add (IT, bias)")
    if "relu" in variant:
        then("Relu (IT)")
    if "gelu" in variant and opset >= 20:
        then("Gelu (IT)")
    elif "gelu" in variant:
        lines.append(f"""
            half = Constant <value_float = 0.5> ()
            one = Constant <value_float = 1.0> ()
            root = Constant <value_float = 0.70710678> ()
            scaled = Mul ({value}, root)
            erf = Erf (scaled)
            raised = Add (erf, one)
            halved = Mul ({value}, half)""")
        then("Mul (halved, raised)")
    if "residual" in variant:
        then("Add (IT, residual)")
    return "\n".join((*lines, f"y = Identity ({value})"))
